//! Roles as the operator starts them locally: each enrolls, dials the operator and does what its plan says.
//!
//! In a pod a role does the same; only where its credential and its addresses come from differs.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use foreshore_control::{Agent, AgentOptions};
use foreshore_operator::{
    role::RoleName,
    workloads::{
        Task,
        local::{RoleError, RoleRunner, Start},
    },
};
use foreshore_record::PathLedger;
use foreshore_runtime::{HealthRegistry, Metrics, serve_http};
use foreshore_tls::ServerName;
use parking_lot::Mutex;

mod broker;
mod cloud;
mod connector;
mod dataflow;
mod simulator;

/// How long a role may take to end in order.
const DRAIN: Duration = Duration::from_secs(8);

/// Runs roles as tasks of this process.
pub(crate) struct Roles {
    /// Folder below which each role keeps its state.
    data: PathBuf,
    /// What can be asked about roles that run.
    directory: Arc<Directory>,
}

/// Roles that run, for who asks about all of them. Each registers itself and is forgotten when it ends.
#[derive(Default)]
pub(crate) struct Directory {
    brokers: Mutex<BTreeMap<RoleName, foreshore_broker::Handle>>,
    clouds: Mutex<BTreeMap<RoleName, CloudAccess>>,
    closing: Mutex<BTreeMap<RoleName, Vec<PathLedger>>>,
    observability: Mutex<BTreeMap<RoleName, SocketAddr>>,
}

/// How the JSON API of a cloud endpoint is reached.
#[derive(Clone)]
pub(crate) struct CloudAccess {
    /// Such as `http://127.0.0.1:7080`.
    pub(crate) url: String,
    /// Its holder says for whom it asks.
    pub(crate) token: String,
}

/// What every role serves: health and metrics of its own.
pub(crate) struct Observability {
    pub(crate) health: HealthRegistry,
    pub(crate) metrics: Metrics,
}

impl Directory {
    /// Cloud endpoints that run.
    pub(crate) fn clouds(&self) -> Vec<CloudAccess> {
        self.clouds.lock().values().cloned().collect()
    }

    /// The ledger of all brokers: of those that run as it is now, of those that ended as it was then.
    pub(crate) async fn ledger(&self) -> Vec<PathLedger> {
        let mut ledgers = self.closing.lock().clone();
        let running: Vec<_> = self
            .brokers
            .lock()
            .iter()
            .map(|(role, broker)| (role.clone(), broker.clone()))
            .collect();
        for (role, broker) in running {
            match broker.ledger().await {
                Ok(ledger) => drop(ledgers.insert(role, ledger)),
                Err(error) => tracing::warn!(%role, %error, "no ledger"),
            }
        }
        ledgers.into_values().flatten().collect()
    }

    /// Where each role answers `/metrics` and `/healthz`.
    pub(crate) fn observability(&self) -> BTreeMap<String, SocketAddr> {
        self.observability
            .lock()
            .iter()
            .map(|(role, address)| (role.to_string(), *address))
            .collect()
    }

    fn forget(&self, role: &RoleName) {
        self.brokers.lock().remove(role);
        self.clouds.lock().remove(role);
        self.observability.lock().remove(role);
    }
}

impl Roles {
    /// Roles that keep their state below `data` and can be found in `directory`.
    pub(crate) fn new(data: PathBuf, directory: Arc<Directory>) -> Self {
        Self { data, directory }
    }

    /// Serves `/metrics` and `/healthz` of one role.
    async fn observe(&self, start: &Start) -> Result<Observability, RoleError> {
        let (health, metrics) = (HealthRegistry::new(), Metrics::new());
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = serve_http(any, health.clone(), metrics.clone(), start.shutdown.clone());
        let server = server.await.map_err(RoleError::new)?;
        self.directory
            .observability
            .lock()
            .insert(start.workload.role.clone(), server.address);
        server.task.detach();
        Ok(Observability { health, metrics })
    }

    /// The folder of one role.
    fn directory(&self, start: &Start) -> PathBuf {
        let role = &start.workload.role;
        self.data
            .join(role.role.to_string())
            .join(&role.namespace)
            .join(&role.name)
    }

    /// A role's end of the control session.
    fn agent(&self, start: &Start) -> Result<Agent, RoleError> {
        let credential = Arc::clone(&start.credentials);
        let directory = self.directory(start).join("session");
        let server_name = ServerName::try_from(start.server_name.clone()).map_err(RoleError::new)?;
        let options = AgentOptions {
            server_name: Some(server_name),
            trust: Some(start.trust.clone()),
            expected: Some(start.identity.clone()),
            ..AgentOptions::new(start.control.clone(), credential, directory)
        };
        Agent::new(options).map_err(RoleError::new)
    }
}

#[async_trait]
impl RoleRunner for Roles {
    async fn run(&self, start: Start) -> Result<(), RoleError> {
        let role = start.workload.role.clone();
        let observability = self.observe(&start).await?;
        let component = observability.health.component(role.to_string());
        component.ok();
        let ended = match start.workload.task.clone() {
            Task::Broker => broker::run(self, start, observability).await,
            Task::Connector(task) => connector::run(self, start, observability, task.protocol).await,
            Task::Dataflow => dataflow::run(self, start, observability).await,
            Task::Simulator => simulator::run(self, start).await,
            Task::Cloud => cloud::run(self, start, observability).await,
        };
        self.directory.forget(&role);
        ended
    }
}
