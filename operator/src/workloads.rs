//! What runs: roles as tasks of this process, or as pods.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use foreshore_crds::v1alpha1::{ConnectorSpec, Protocol};
use foreshore_tls::RoleIdentity;
use jiff::Timestamp;
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    facts::{Facts, RoleFacts},
    resources::{Valid, broker, cloud, connector, dataflow, simulator},
    role::RoleName,
};

pub mod local;

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
}

impl Running {
    /// What running roles told about themselves.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        for (role, instances) in &self.instances {
            let merged: &mut RoleFacts = facts.roles.entry(role.clone()).or_default();
            for RoleFacts { addresses, authority } in instances.iter().map(|instance| &instance.facts) {
                for (name, several) in addresses {
                    merged
                        .addresses
                        .entry(name.clone())
                        .or_default()
                        .extend(several.iter().cloned());
                }
                if authority.is_some() {
                    merged.authority.clone_from(authority);
                }
            }
        }
        facts
    }
}

/// One running instance of a workload: a task or a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Who it is in its certificate.
    pub identity: RoleIdentity,
    /// How it stands.
    pub state: InstanceState,
    /// What it told about itself. Kept while it restarts, so that others keep what they were told of it.
    pub facts: RoleFacts,
    /// How often it ended by itself.
    pub restarts: u64,
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
    let mut want = |role: RoleName, uid: &str, task: Task| {
        desired.insert(
            role.clone(),
            Workload {
                role,
                uid: uid.to_owned(),
                task,
            },
        );
    };
    let Valid {
        config_maps: _,
        secrets: _,
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
        want(broker::role(name), &valid.version.meta.uid, Task::Broker);
    }
    for (name, valid) in connectors {
        let spec = (*valid.version.spec).clone();
        if spec.effective_replicas() > 0 {
            let task = ConnectorTask {
                protocol: spec.protocol,
                spec,
            };
            want(
                connector::role(name),
                &valid.version.meta.uid,
                Task::Connector(Box::new(task)),
            );
        }
    }
    for (name, valid) in simulators {
        want(simulator::role(name), &valid.version.meta.uid, Task::Simulator);
    }
    for (name, valid) in clouds {
        want(cloud::role(name), &valid.version.meta.uid, Task::Cloud);
    }
    for (name, valid) in dataflows {
        if valid.version.spec.effective_enabled() {
            let role = dataflow::role(&name.namespace);
            let uid = runner_uid(&role);
            want(role, &uid, Task::Dataflow);
        }
    }
    desired
}

/// A runner belongs to no object, but to its namespace.
fn runner_uid(role: &RoleName) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_DNS, role.server_name().as_bytes()).to_string()
}
