//! Runs a protocol as a role: from the plan to devices, from devices to the broker.
//!
//! ```text
//!              ┌────────────────────────── one device ───────────────────────────┐
//! plan ► Runner┤ Supervisor ► Connector::connect ► Link ─ Emitter ► Publisher ────┼► broker
//!              │      └► health ► Teller ► operator                               │
//!              └──────────────────────────────────────────────────────────────────┘
//! broker ► Commander ► Link::invoke ► broker
//! ```

pub(crate) mod book;
pub(crate) mod counters;
mod device;
pub(crate) mod frames;
pub(crate) mod message;
pub(crate) mod number;
pub(crate) mod publisher;
pub mod reports;
pub(crate) mod resolve;
mod role;
pub(crate) mod supervisor;
pub(crate) mod turn;
pub(crate) mod watermark;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use foreshore_control::{
    Agent, GivePlan, TakePlan,
    plan::{ConnectionPlan, SecretPlan},
    session::agent::{self, AgentStatus, LinkState},
};
use foreshore_mqtt::{Client, ConnectionState};
use foreshore_runtime::{HealthRegistry, Metrics, Shutdown, spawn};
use foreshore_tls::Identity;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use self::{book::Book, counters::ConnectorMetrics, device::Device, reports::ReportSink};
use crate::{
    command::{
        announce::announce,
        journal::Journal,
        schemas::SchemaBook,
        serve::{Commander, Registry},
    },
    contract::Connector,
};

/// How long another instance may take over one device of an instance that ends.
const TAKING: Duration = Duration::from_secs(20);
/// How long an instance that ends waits for an operator that it lost.
const SILENCE: Duration = Duration::from_secs(3);

/// How a runner works.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// Directory that survives a restart: epochs, the journal of commands, what protocols keep. Made with mode 0700
    /// when it does not exist.
    pub state_dir: PathBuf,
    /// About how many bytes each device may have on its way to the broker. Default: 8 MiB.
    pub device_budget: usize,
    /// Shortest and longest wait after a refusal that needs a change: credentials, trust, configuration. Default:
    /// 60 s and 10 min.
    pub slow_retry: (Duration, Duration),
    /// How often counts are reported when nothing else is. Default: 5 s.
    pub report_interval: Duration,
    /// How long a device that is no longer wanted may take to end. Default: 10 s.
    pub drain: Duration,
}

impl RunnerOptions {
    /// Options with the defaults.
    #[must_use]
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            device_budget: 8 << 20,
            slow_retry: (Duration::from_secs(60), Duration::from_secs(600)),
            report_interval: Duration::from_secs(5),
            drain: Duration::from_secs(10),
        }
    }
}

/// What a runner needs of its process.
#[derive(Clone)]
pub struct Environment {
    /// The role's certificate and trust.
    pub identity: Identity,
    /// Where reports go.
    pub reports: Arc<dyn ReportSink>,
    /// Where metrics are registered.
    pub metrics: Metrics,
    /// Where the connection to the broker is told.
    pub health: HealthRegistry,
    /// Ends everything.
    pub shutdown: Shutdown,
}

/// Why a connector can't run at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The state directory can't be used.
    #[error("state directory {}: {reason}", path.display())]
    State {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The control session can't work.
    #[error(transparent)]
    Agent(#[from] agent::Error),
}

/// Puts a connector's plan in force; given to the [`Agent`] as its role.
pub struct Runner {
    shared: Arc<Shared>,
    /// By namespace and name.
    secrets: BTreeMap<(String, String), SecretPlan>,
    devices: BTreeMap<(String, String), Device>,
    /// Each with what its messages need.
    assets: BTreeMap<(String, String), Arc<Book>>,
    /// Orders to take and to give devices.
    takes: BTreeMap<(String, String), TakePlan>,
    gives: BTreeMap<(String, String), GivePlan>,
    connection: Option<ConnectionPlan>,
}

/// Waits for what a [`Runner`] began.
pub struct Drain {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    connector: Arc<dyn Connector>,
    options: RunnerOptions,
    environment: Environment,
    metrics: ConnectorMetrics,
    schemas: Arc<SchemaBook>,
    registry: Arc<Registry>,
    journal: Journal,
    /// The client, as soon as a connection is planned.
    client: watch::Sender<Option<Client>>,
    /// Ends the client, after everything that publishes through it.
    client_shutdown: Shutdown,
    /// Devices that are no longer planned and have not ended yet; cancelled when they have.
    ending: Mutex<BTreeMap<(String, String), CancellationToken>>,
    /// Devices, and what serves commands.
    tasks: TaskTracker,
    client_tasks: TaskTracker,
    /// Other instances that could take devices.
    peers: watch::Sender<u32>,
    /// How many devices are planned.
    planned: watch::Sender<usize>,
}

/// Runs a connector until the shutdown begins, then until everything is handed over or the drain deadline has come.
///
/// # Errors
/// When the state directory can't be used, or the control session can't work at all.
pub async fn run(
    connector: Arc<dyn Connector>,
    agent: Agent,
    options: RunnerOptions,
    metrics: Metrics,
    health: HealthRegistry,
    shutdown: Shutdown,
) -> Result<(), Error> {
    let (identity, reports) = (agent.identity(), Arc::new(agent.reporter()));
    // The end of what runs here: later than it is told, if others take the devices first.
    let ending = Shutdown::new();
    let environment = Environment {
        identity,
        reports,
        metrics,
        health,
        shutdown: ending.clone(),
    };
    let (runner, drain) = Runner::new(connector, options, environment).await?;
    let (shared, told, session) = (Arc::clone(&runner.shared), ending.clone(), agent.status());
    let leaving = spawn("leaving", async move {
        shutdown.begun().await;
        shared.let_others_take(session, &shutdown).await;
        told.begin(
            shutdown
                .left()
                .unwrap_or(foreshore_runtime::shutdown::DEFAULT_DRAIN),
        );
    });
    let result = agent.run(runner, ending.clone()).await;
    ending.begin(foreshore_runtime::shutdown::DEFAULT_DRAIN);
    drain.wait().await;
    drop(leaving);
    Ok(result?)
}

impl Runner {
    /// Makes a runner without a plan.
    ///
    /// # Errors
    /// When the state directory can't be used.
    pub async fn new(
        connector: Arc<dyn Connector>,
        options: RunnerOptions,
        environment: Environment,
    ) -> Result<(Self, Drain), Error> {
        let path = options.state_dir.clone();
        let open = move || {
            foreshore_tls::create_private_directory(&path).map_err(|error| error.to_string())?;
            Journal::open(&path, Timestamp::now()).map_err(|error| error.to_string())
        };
        let opened = tokio::task::spawn_blocking(open)
            .await
            .unwrap_or_else(|error| Err(error.to_string()));
        let journal = opened.map_err(|reason| Error::State {
            path: options.state_dir.clone(),
            reason,
        })?;
        let shared = Arc::new(Shared {
            metrics: ConnectorMetrics::new(&environment.metrics),
            connector,
            options,
            environment,
            schemas: Arc::default(),
            registry: Arc::default(),
            journal,
            client: watch::Sender::new(None),
            client_shutdown: Shutdown::new(),
            ending: Mutex::default(),
            tasks: TaskTracker::new(),
            client_tasks: TaskTracker::new(),
            peers: watch::Sender::new(0),
            planned: watch::Sender::new(0),
        });
        let runner = Self {
            shared: Arc::clone(&shared),
            secrets: BTreeMap::new(),
            devices: BTreeMap::new(),
            assets: BTreeMap::new(),
            takes: BTreeMap::new(),
            gives: BTreeMap::new(),
            connection: None,
        };
        Ok((runner, Drain { shared }))
    }
}

impl Drain {
    /// Waits until the shutdown begins and everything that the runner began has ended: devices first, which hand over
    /// what they have, then the connection that they do it through.
    pub async fn wait(self) {
        let Shared {
            environment,
            tasks,
            client_tasks,
            client_shutdown,
            options,
            ..
        } = &*self.shared;
        environment.shutdown.begun().await;
        tasks.close();
        // Devices end by themselves at the drain deadline.
        tasks.wait().await;
        client_shutdown.begin(environment.shutdown.left().unwrap_or(options.drain));
        client_tasks.close();
        client_tasks.wait().await;
    }
}

/// Resolves when there has been no session with the operator for a while.
async fn silent(mut session: watch::Receiver<AgentStatus>) {
    let is_up = |status: &AgentStatus| matches!(status.link, LinkState::Connected { .. });
    loop {
        if session.wait_for(|status| !is_up(status)).await.is_err() {
            return;
        }
        match tokio::time::timeout(SILENCE, session.wait_for(is_up)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

impl Shared {
    /// Waits until other instances have taken the devices, as long as they do.
    async fn let_others_take(&self, session: watch::Receiver<AgentStatus>, shutdown: &Shutdown) {
        let (mut planned, mut peers) = (self.planned.subscribe(), self.peers.subscribe());
        while *planned.borrow_and_update() > 0 {
            // The last quarter is for what the devices have not handed over by then.
            let patience = shutdown
                .left()
                .map_or(TAKING, |left| TAKING.min(left.mul_f32(0.75)));
            tokio::select! {
                // Both senders are here: neither fails.
                _ = planned.changed() => {}
                _ = peers.wait_for(|peers| *peers == 0) => return,
                // Without the operator nobody is told to take anything.
                () = silent(session.clone()) => return,
                () = tokio::time::sleep(patience) => {
                    warn!(devices = *planned.borrow(), "no other instance takes the devices");
                    return;
                }
            }
        }
    }

    /// Begins what needs the broker.
    fn start_client(self: &Arc<Self>, options: foreshore_mqtt::Options) {
        let (client, service) = Client::new(options);
        let run = spawn("mqtt", service.run(self.client_shutdown.clone()));
        self.client_tasks.spawn(async move { drop(run.await) });

        let health = self.environment.health.component("broker-connection");
        let mut state = client.state();
        let watching = async move {
            loop {
                match &*state.borrow_and_update() {
                    ConnectionState::Connected { .. } => health.ok(),
                    ConnectionState::Connecting {
                        error: Some(error), ..
                    } => health.failed(error.to_string()),
                    ConnectionState::Connecting { error: None, .. } => health.failed("connecting"),
                    ConnectionState::Ended => return,
                }
                if state.changed().await.is_err() {
                    return;
                }
            }
        };
        self.client_tasks.spawn(watching);

        let commander = Commander {
            protocol: self.connector.protocol(),
            client: client.clone(),
            registry: Arc::clone(&self.registry),
            schemas: Arc::clone(&self.schemas),
            journal: self.journal.clone(),
            metrics: self.metrics.clone(),
        };
        let shutdown = &self.environment.shutdown;
        let serving = spawn("commands", commander.run(shutdown.clone()));
        self.tasks.spawn(async move { drop(serving.await) });
        let (schemas, reports) = (Arc::clone(&self.schemas), Arc::clone(&self.environment.reports));
        let announcing = spawn(
            "request-schemas",
            announce(schemas, client.clone(), reports, shutdown.clone()),
        );
        self.tasks.spawn(async move { drop(announcing.await) });
        self.client.send_replace(Some(client));
    }
}

#[cfg(test)]
mod tests;
