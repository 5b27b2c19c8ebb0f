//! What runs: roles as tasks of this process, or as pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use foreshore_crds::v1alpha1::{
    ConnectorSpec, Protocol,
    broker::ListenerService,
    common::{LogLevel, Pod, Volume},
};
use foreshore_tls::RoleIdentity;
use jiff::Timestamp;
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    object::{Kind, ObjectKey},
    resources::{Valid, broker, cloud, connector, dataflow, simulator},
    role::RoleName,
};

pub mod local;
pub mod pods;
pub mod ports;

/// A role that shall run.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Which.
    pub role: RoleName,
    /// Identity of the object that declares it: another one of the same name starts anew.
    pub uid: String,
    /// What it does, as far as it must know before it has a plan. A change starts it anew; everything else changes
    /// while it runs.
    pub task: Task,
    /// What pods need beyond that.
    pub shape: Shape,
}

/// What surrounds a workload that runs in pods: what may change without another task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shape {
    /// Objects that it is there for: it goes when the last of them does.
    pub owners: Vec<Owner>,
    /// How many pods.
    pub replicas: u32,
    /// Where and how they run.
    pub pod: Option<Pod>,
    /// How much they log.
    pub log_level: Option<LogLevel>,
    /// What they keep over restarts and on other nodes; none where nothing has to be.
    pub volume: Option<Volume>,
    /// The Secret with the keys that what they keep is encrypted with, if it is. It is mounted, not part of their plan: a
    /// plan is kept on the volume.
    pub encryption_keys: Option<String>,
    /// What they serve to others.
    pub ports: Vec<Port>,
}

/// An object that declares a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Which.
    pub object: ObjectKey,
    /// Its identity.
    pub uid: String,
}

/// A port that a workload serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Name, unique for the workload.
    pub name: String,
    /// Number.
    pub number: u16,
    /// The Service of its own that leads to it from outside of the installation, if any.
    pub service: Option<ListenerService>,
}

/// What a workload does.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Serves MQTT and queues.
    Broker,
    /// Dials devices.
    Connector(Box<ConnectorTask>),
    /// Runs the dataflows of a namespace.
    Dataflow,
    /// Plays a device.
    Simulator,
    /// Is the cloud endpoint.
    Cloud,
}

/// What a connector must know before it has a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct ConnectorTask {
    /// Protocol that it speaks.
    pub protocol: Protocol,
    /// Limits, log level, and where and how its pods run.
    pub spec: ConnectorSpec,
}

/// Runs workloads.
#[async_trait]
pub trait Workloads: Send + Sync + 'static {
    /// Makes exactly these run: starts what is new, ends what is gone, and leaves alone what did not change. Returns
    /// when that has begun.
    async fn apply(&self, desired: BTreeMap<RoleName, Workload>);

    /// What runs. The newest state only.
    fn running(&self) -> watch::Receiver<Arc<Running>>;

    /// Ends everything, within the time that the shutdown gives.
    async fn end(&self);
}

/// What runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Running {
    /// Instances by workload; a workload that shall run and has none yet has an empty list.
    pub instances: BTreeMap<RoleName, Vec<Instance>>,
    /// Workloads that can't be made as they shall be, with why.
    pub unmade: BTreeMap<RoleName, String>,
}

/// One running instance of a workload: a task or a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Who it is in its certificate.
    pub identity: RoleIdentity,
    /// How it stands.
    pub state: InstanceState,
    /// How often it ended by itself.
    pub restarts: u64,
    /// Whether it is about to end for good: others take what it has.
    pub leaving: bool,
}

/// How an instance stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// It runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// It ended by itself, and will be started again.
    Failing {
        /// When it ended.
        since: Timestamp,
        /// What it said.
        error: String,
        /// One of `foreshore_crds::conditions::reasons`.
        reason: &'static str,
        /// When it is started again.
        next: Timestamp,
    },
}

/// What shall run, for everything that is valid.
pub(crate) fn desired(valid: &Valid) -> BTreeMap<RoleName, Workload> {
    let mut desired = BTreeMap::new();
    let mut want = |role: RoleName, uid: &str, task: Task, shape: Shape| {
        let workload = Workload {
            role: role.clone(),
            uid: uid.to_owned(),
            task,
            shape,
        };
        desired.insert(role, workload);
    };
    let Valid {
        config_maps: _,
        secrets: _,
        service_accounts: _,
        brokers,
        policies: _,
        connectors,
        simulators,
        clouds,
        endpoints: _,
        devices: _,
        assets: _,
        dataflows,
    } = valid;
    for (name, valid) in brokers {
        let (role, uid) = (broker::role(name), &valid.version.meta.uid);
        want(role, uid, Task::Broker, valid.shape());
    }
    for (name, valid) in connectors {
        let spec = (*valid.version.spec).clone();
        if spec.effective_replicas() > 0 {
            let task = Task::Connector(Box::new(ConnectorTask {
                protocol: spec.protocol,
                spec,
            }));
            let (role, uid) = (connector::role(name), &valid.version.meta.uid);
            want(role, uid, task, valid.shape());
        }
    }
    for (name, valid) in simulators {
        let (role, uid) = (simulator::role(name), &valid.version.meta.uid);
        want(role, uid, Task::Simulator, valid.shape());
    }
    for (name, valid) in clouds {
        let (role, uid) = (cloud::role(name), &valid.version.meta.uid);
        want(role, uid, Task::Cloud, valid.shape());
    }
    let runners = dataflows
        .iter()
        .filter(|(_, valid)| valid.version.spec.effective_enabled())
        .map(|(name, _)| name.namespace.as_str());
    for namespace in runners.collect::<BTreeSet<_>>() {
        let role = dataflow::role(namespace);
        let uid = runner_uid(&role);
        let of_namespace = dataflows.iter().filter(|(name, _)| name.namespace == namespace);
        let owners = of_namespace.map(|(_, valid)| valid.version.owner(Kind::Dataflow));
        let shape = Shape {
            owners: owners.collect(),
            replicas: 1,
            // Of the identity that it shows to clouds, and of files that it delivers to.
            volume: Some(Volume::default()),
            ..Shape::default()
        };
        want(role, &uid, Task::Dataflow, shape);
    }
    desired
}

/// A runner belongs to no object, but to its namespace.
fn runner_uid(role: &RoleName) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_DNS, role.server_name().as_bytes()).to_string()
}
