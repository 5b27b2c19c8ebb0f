//! The runner's role in the control session: puts dataflows in force and reports how they are.
//!
//! A plan holds dataflows, endpoints, secrets and connections to brokers, and what endpoints tell of assets. Whatever changes, the desired couriers are
//! computed anew from all of it and compared with those that run: new ones start, changed ones get a new plan, others
//! end. So no order of changes leads to another result than the plan says. A resource that can't be run is refused with
//! a reason, and what ran before runs on.

mod desired;
mod reports;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use foreshore_control::{
    Change, Nack, PlanResource, Resource, ResourceKey, Role,
    plan::{AssetSummaryPlan, ConnectionPlan, DataflowPlan, EndpointPlan, SecretPlan},
    queue::{Paths, client::RemotePaths},
    transport::ConnectOptions,
};
use foreshore_crds::v1alpha1::dataflow_endpoint::EndpointType;
use foreshore_tls::{Identity, ServerName};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::{
    desired::{Desired, DesiredCourier},
    reports::Reports,
};
use crate::{
    courier::{Courier, CourierPlan},
    factory::{SinkFactory, Surroundings},
    health::SinkHealth,
    metrics::{DataflowMetrics, SinkLabels},
    observer::Observer,
};

/// How often the totals of paths are asked for.
const TOTALS_INTERVAL: Duration = Duration::from_secs(5);

/// Gives the queues of a broker.
pub trait Queues: Send + Sync + 'static {
    /// The queues of the broker that a connection leads to. Connects with the first request, if at all.
    ///
    /// # Errors
    /// When the connection can't be used.
    fn of(&self, connection: &ConnectionPlan) -> Result<Arc<dyn Paths>, Nack>;
}

/// Queues over gRPC with mutual TLS.
#[derive(Clone, Debug)]
pub struct RemoteQueues {
    identity: Identity,
}

impl RemoteQueues {
    /// Shows the certificate of that identity.
    #[must_use]
    pub const fn new(identity: Identity) -> Self {
        Self { identity }
    }
}

impl Queues for RemoteQueues {
    fn of(&self, connection: &ConnectionPlan) -> Result<Arc<dyn Paths>, Nack> {
        let refused = |error: &dyn std::fmt::Display| {
            Nack::new(
                "ConnectionInvalid",
                format!("broker {:?}: {error}", connection.broker),
            )
        };
        let name = ServerName::try_from(connection.server_name.clone()).map_err(|error| refused(&error))?;
        let options = ConnectOptions::default();
        let paths = RemotePaths::new(&connection.queue_addresses, &self.identity, &name, &options);
        Ok(Arc::new(paths.map_err(|error| refused(&error))?))
    }
}

/// What a runner is made from.
pub struct RunnerOptions {
    /// Where queues are.
    pub queues: Arc<dyn Queues>,
    /// What makes the sinks, one for each type of endpoint.
    pub factories: Vec<Arc<dyn SinkFactory>>,
    /// What sinks share with the runner.
    pub surroundings: Surroundings,
}

/// Waits for a runner's tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Runner {
    tasks: TaskTracker,
}

impl Runner {
    /// Resolves when all couriers have ended, after the shutdown began.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Runs the dataflows of a plan.
pub struct DataflowRole {
    options: RunnerOptions,
    factories: HashMap<EndpointType, Arc<dyn SinkFactory>>,
    held: Held,
    /// Queues by connection, so that couriers of one broker share them.
    queues: KnownQueues,
    couriers: BTreeMap<String, Running>,
    metrics: DataflowMetrics,
    reports: Reports,
    tasks: TaskTracker,
}

/// Queues by the connection that leads to them.
type KnownQueues = HashMap<ResourceKey, (ConnectionPlan, Arc<dyn Paths>)>;

/// The resources of the plan.
#[derive(Clone, Default)]
pub(crate) struct Held {
    secrets: BTreeMap<ResourceKey, SecretPlan>,
    connections: BTreeMap<ResourceKey, ConnectionPlan>,
    endpoints: BTreeMap<ResourceKey, EndpointPlan>,
    dataflows: BTreeMap<ResourceKey, DataflowPlan>,
}

/// A courier that runs.
struct Running {
    desired: DesiredCourier,
    plan: watch::Sender<Arc<CourierPlan>>,
    task: tokio::task::AbortHandle,
}

impl DataflowRole {
    /// A runner without dataflows. Its couriers end with the shutdown of its surroundings.
    #[must_use]
    pub fn new(options: RunnerOptions) -> (Self, Runner) {
        let tasks = TaskTracker::new();
        let metrics = DataflowMetrics::new(&options.surroundings.metrics);
        let factories = options.factories.iter();
        let factories = factories
            .map(|factory| (factory.endpoint_type(), Arc::clone(factory)))
            .collect();
        let reports = Reports::start(&options.surroundings, metrics.clone(), &tasks, TOTALS_INTERVAL);
        let role = Self {
            factories,
            held: Held::default(),
            queues: HashMap::new(),
            couriers: BTreeMap::new(),
            metrics,
            reports,
            tasks: tasks.clone(),
            options,
        };
        (role, Runner { tasks })
    }

    /// Puts a plan in force if all of it that `changed` touches can be run.
    async fn take(&mut self, held: Held, changed: &ResourceKey) -> Result<(), Nack> {
        let queues = self.queues_of(&held)?;
        let desired = Desired::of(&held, &self.factories, &queues, changed)?;
        self.held = held;
        self.queues = queues;
        for setup in desired.endpoints_to_set(changed) {
            if let Some(factory) = setup
                .endpoint
                .spec
                .endpoint_type()
                .and_then(|kind| self.factories.get(&kind))
            {
                factory.endpoint_set(setup).await;
            }
        }
        self.run(desired.couriers);
        self.reports.show(&self.held, &self.couriers_shown());
        Ok(())
    }

    /// Queues for every connection; those of unchanged connections are kept.
    fn queues_of(&self, held: &Held) -> Result<KnownQueues, Nack> {
        let queues = held.connections.iter().map(|(key, connection)| {
            let paths = match self.queues.get(key) {
                Some((present, paths)) if present == connection => Arc::clone(paths),
                _ => self.options.queues.of(connection)?,
            };
            Ok((key.clone(), (connection.clone(), paths)))
        });
        queues.collect()
    }

    /// Starts, changes and ends couriers.
    fn run(&mut self, mut desired: BTreeMap<String, DesiredCourier>) {
        self.couriers.retain(|path, _| {
            let keep = desired.contains_key(path);
            if !keep {
                info!(path, "sink ends");
            }
            keep
        });
        for (path, running) in &mut self.couriers {
            let Some(wanted) = desired.remove(path) else {
                continue;
            };
            if running.task.is_finished() {
                desired.insert(path.clone(), wanted);
            } else if !running.desired.is_same(&wanted) {
                info!(path, "sink changes");
                running.plan.send_replace(Arc::new(wanted.plan.clone()));
                running.desired = wanted;
            }
        }
        for (path, wanted) in desired {
            info!(path, "sink starts");
            let running = self.start(wanted);
            self.couriers.insert(path, running);
        }
    }

    fn start(&mut self, wanted: DesiredCourier) -> Running {
        let setup = &wanted.plan.setup;
        let labels = SinkLabels {
            namespace: setup.dataflow.namespace.as_str().into(),
            dataflow: setup.dataflow.name.as_str().into(),
            sink: setup.sink.name.as_str().into(),
        };
        let health = self.reports.watch(&setup.path, SinkHealth::starting());
        let observer = Observer::new(setup.path.clone(), labels, self.metrics.clone(), health);
        let (plan, receiver) = watch::channel(Arc::new(wanted.plan.clone()));
        let courier = Courier::new(receiver, observer, self.options.surroundings.shutdown.clone());
        let path = setup.path.clone();
        let guarded = foreshore_runtime::spawn(format!("courier {path}"), courier.run());
        let task = self.tasks.spawn(async move {
            if let Err(error) = guarded.await {
                warn!(path, %error, "courier ended");
            }
        });
        Running {
            desired: wanted,
            plan,
            task: task.abort_handle(),
        }
    }

    fn couriers_shown(&self) -> Vec<reports::Shown> {
        let shown = self.couriers.values().map(|running| reports::Shown {
            setup: running.desired.plan.setup.clone(),
            source: running
                .desired
                .source
                .as_ref()
                .map(|source| source.endpoint.object.clone()),
            paths: Arc::clone(&running.desired.plan.paths),
        });
        shown.collect()
    }
}

#[async_trait]
impl Role for DataflowRole {
    async fn apply(&mut self, change: Change) -> Result<(), Nack> {
        let assets = &self.options.surroundings.assets;
        match change {
            Change::SnapshotComplete => {
                assets.complete();
                Ok(())
            }
            // No courier depends on an asset.
            Change::Set(resource) if resource.key().kind == AssetSummaryPlan::KIND => {
                assets.set(resource.decode()?);
                Ok(())
            }
            Change::Remove(key) if key.kind == AssetSummaryPlan::KIND => {
                assets.remove(&key.namespace, &key.name);
                Ok(())
            }
            Change::Set(resource) => {
                let mut held = self.held.clone();
                held.set(&resource)?;
                self.take(held, resource.key()).await
            }
            Change::Remove(key) => {
                let mut held = self.held.clone();
                held.remove(&key);
                let removed = self
                    .held
                    .endpoints
                    .get(&key)
                    .and_then(|plan| plan.spec.endpoint_type());
                self.take(held, &key).await?;
                if let Some(factory) = removed.and_then(|kind| self.factories.get(&kind)) {
                    factory.endpoint_removed(&key).await;
                }
                Ok(())
            }
        }
    }
}

impl Held {
    fn set(&mut self, resource: &Resource) -> Result<(), Nack> {
        let key = resource.key().clone();
        match key.kind.as_str() {
            SecretPlan::KIND => drop(self.secrets.insert(key, resource.decode()?)),
            ConnectionPlan::KIND => drop(self.connections.insert(key, resource.decode()?)),
            EndpointPlan::KIND => drop(self.endpoints.insert(key, resource.decode()?)),
            DataflowPlan::KIND => drop(self.dataflows.insert(key, resource.decode()?)),
            kind => {
                let allowed = "AssetSummary, Secret, Connection, DataflowEndpoint and Dataflow are";
                return Err(Nack::new(
                    "UnsupportedHere",
                    format!("{kind} is no resource of a dataflow runner, {allowed}"),
                ));
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: &ResourceKey) {
        self.secrets.remove(key);
        self.connections.remove(key);
        self.endpoints.remove(key);
        self.dataflows.remove(key);
    }
}
