//! The bottling line as an OPC UA server.
//!
//! Like a controller with a scan cycle, it shows what was written or called with its next step, not at once.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use opcua::{
    crypto::SecurityPolicy,
    nodes::Event,
    server::{
        ANONYMOUS_USER_TOKEN_ID, ServerBuilder, ServerHandle, ServerUserToken,
        diagnostics::NamespaceMetadata,
        node_manager::memory::{SimpleNodeManager, simple_node_manager},
    },
    types::{DataValue, DateTime, MessageSecurityMode, NodeId, ObjectId, StatusCode, Variant},
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    faults::{Fault, FaultKind, Gate, GateControl},
    line::{Alarm, Line, STEP},
};

mod event;
mod nodes;

pub use nodes::{APPLICATION_URI, NAMESPACE};

/// How the simulated line is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where clients connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Name by which clients reach it, in its own URLs; the address where there is none.
    pub host: Option<String>,
    /// What the plant's behaviour is drawn from.
    pub seed: u64,
    /// User name and password that are accepted beside anonymous clients.
    pub users: Vec<(String, String)>,
    /// Whether clients without a user name are accepted.
    pub anonymous: bool,
    /// Additional variables `Load.0` and up.
    pub load_points: u32,
    /// How often all of them change.
    pub load_interval: Duration,
    /// Where key, certificate and the certificates of clients are kept.
    pub pki_dir: PathBuf,
}

/// Why the simulated line did not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can't be listened on.
    #[error("simulated opc ua server cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The OPC UA stack refused its configuration.
    #[error("simulated opc ua server did not start: {reason}")]
    Server {
        /// What the stack said.
        reason: String,
    },
}

/// A running simulated line.
pub struct Plant {
    options: Options,
    address: SocketAddr,
    line: Arc<Mutex<Line>>,
    gate: GateControl,
    faults: FaultSwitch,
}

/// Faults that the server itself carries out.
#[derive(Clone, Default)]
struct FaultSwitch {
    bad_status: Arc<watch::Sender<bool>>,
    /// Rises with each restart; holds how long the server stays away.
    restart: Arc<watch::Sender<(u64, Duration)>>,
}

/// Injects faults and looks into the model from outside.
#[derive(Clone)]
pub struct Handle {
    address: SocketAddr,
    url: String,
    gate: GateControl,
    faults: FaultSwitch,
    line: Arc<Mutex<Line>>,
}

// === impl Handle ===

impl Handle {
    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL for clients.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The model that the server shows.
    #[must_use]
    pub fn line(&self) -> Arc<Mutex<Line>> {
        Arc::clone(&self.line)
    }

    /// Lets something go wrong; returns when it is over.
    pub async fn inject(&self, fault: Fault) {
        info!(?fault, "injecting a fault");
        let duration = Duration::from_secs(fault.seconds.into());
        match fault.kind {
            FaultKind::DropConnections => {
                self.gate.refuse(true);
                self.gate.cut();
                tokio::time::sleep(duration).await;
                self.gate.refuse(false);
            }
            FaultKind::Refuse => {
                self.gate.refuse(true);
                tokio::time::sleep(duration).await;
                self.gate.refuse(false);
            }
            FaultKind::Slow => {
                self.gate.delay(Duration::from_millis(fault.delay_millis.into()));
                tokio::time::sleep(duration).await;
                self.gate.delay(Duration::ZERO);
            }
            FaultKind::BadStatus => {
                self.faults.bad_status.send_replace(true);
                tokio::time::sleep(duration).await;
                self.faults.bad_status.send_replace(false);
            }
            FaultKind::Restart => {
                self.faults.restart.send_modify(|(count, away)| {
                    *count += 1;
                    *away = duration;
                });
                tokio::time::sleep(duration).await;
            }
        }
    }
}

// === impl Plant ===

impl Plant {
    /// Binds the address that clients connect to; nothing runs before [`Plant::run`].
    ///
    /// # Errors
    /// [`Error::Listen`] when the address is in use or not ours.
    pub async fn bind(options: Options) -> Result<(Self, TcpListener), Error> {
        let listen = |source| Error::Listen {
            address: options.listen,
            source,
        };
        let listener = TcpListener::bind(options.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let line = Arc::new(Mutex::new(Line::new(options.seed)));
        let plant = Self {
            options,
            address,
            line,
            gate: GateControl::default(),
            faults: FaultSwitch::default(),
        };
        Ok((plant, listener))
    }

    fn host(&self) -> String {
        let address = || self.address.ip().to_string();
        self.options.host.clone().unwrap_or_else(address)
    }

    /// Returns what injects faults.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            address: self.address,
            url: format!("opc.tcp://{}:{}/", self.host(), self.address.port()),
            gate: self.gate.clone(),
            faults: self.faults.clone(),
            line: Arc::clone(&self.line),
        }
    }

    /// Serves until shutdown, through every injected restart.
    ///
    /// # Errors
    /// When the OPC UA stack refuses its configuration.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
        let (device, device_address) = watch::channel(self.address);
        let gate = Gate::new(listener, device_address, self.gate.clone());
        let gate = tokio::spawn(gate.run(shutdown.clone()));
        let mut restart = self.faults.restart.subscribe();
        loop {
            let life = shutdown.child_token();
            let running = self.serve_once(&device, life.clone());
            let restarted = tokio::select! {
                ended = running => { ended?; false }
                changed = restart.changed() => changed.is_ok(),
            };
            life.cancel();
            if !restarted || shutdown.is_cancelled() {
                break;
            }
            let away = restart.borrow_and_update().1;
            warn!(seconds = away.as_secs(), "simulated opc ua server restarts");
            self.gate.refuse(true);
            self.gate.cut();
            tokio::time::sleep(away).await;
            self.gate.refuse(false);
        }
        shutdown.cancel();
        gate.await.map_err(|error| Error::Server {
            reason: error.to_string(),
        })
    }

    /// One life of the server, without memory of the one before.
    async fn serve_once(
        &self,
        device: &watch::Sender<SocketAddr>,
        life: CancellationToken,
    ) -> Result<(), Error> {
        let internal = SocketAddr::from(([127, 0, 0, 1], 0));
        let listen = |source| Error::Listen {
            address: internal,
            source,
        };
        let listener = TcpListener::bind(internal).await.map_err(listen)?;
        device.send_replace(listener.local_addr().map_err(listen)?);
        let (server, handle) = self
            .builder(life.clone())
            .build()
            .map_err(|reason| Error::Server { reason })?;
        let player = Player::new(self, &handle)?;
        tokio::select! {
            ended = server.run_with(listener) => ended.map_err(|reason| Error::Server { reason }),
            () = player.play() => Ok(()),
        }
    }

    fn builder(&self, life: CancellationToken) -> ServerBuilder {
        let mut tokens: Vec<String> = (0..self.options.users.len())
            .map(|index| format!("user{index}"))
            .collect();
        if self.options.anonymous {
            tokens.push(ANONYMOUS_USER_TOKEN_ID.to_owned());
        }
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let host = self.host();
        let mut builder = ServerBuilder::new()
            .application_name("Foreshore bottling line")
            .application_uri(APPLICATION_URI)
            .product_uri("urn:foreshore:sim")
            .host(&host)
            .port(self.address.port())
            .pki_dir(&self.options.pki_dir)
            .create_sample_keypair(true)
            .trust_client_certs(true)
            .discovery_urls(vec![format!("opc.tcp://{host}:{}/", self.address.port())])
            .subscription_poll_interval_ms(20)
            .token(life)
            .with_node_manager(simple_node_manager(
                NamespaceMetadata {
                    namespace_uri: NAMESPACE.to_owned(),
                    ..Default::default()
                },
                "line",
            ));
        for (index, (name, password)) in self.options.users.iter().enumerate() {
            builder =
                builder.add_user_token(format!("user{index}"), ServerUserToken::user_pass(name, password));
        }
        let limits = builder.limits_mut();
        limits.subscriptions.max_monitored_items_per_sub = 200_000;
        limits.subscriptions.max_notifications_per_publish = 20_000;
        limits.subscriptions.min_publishing_interval_ms = 10.0;
        limits.subscriptions.min_sampling_interval_ms = 10.0;
        limits.subscriptions.max_monitored_item_queue_size = 1_000;
        limits.operational.max_monitored_items_per_call = 10_000;
        for (id, policy, mode) in [
            ("none", SecurityPolicy::None, MessageSecurityMode::None),
            ("sign", SecurityPolicy::Basic256Sha256, MessageSecurityMode::Sign),
            (
                "encrypt",
                SecurityPolicy::Basic256Sha256,
                MessageSecurityMode::SignAndEncrypt,
            ),
        ] {
            builder = builder.add_endpoint(id, ("/", policy, mode, tokens.as_slice()));
        }
        builder
    }
}

// === impl Player ===

/// Advances the model and shows what changed.
struct Player {
    line: Arc<Mutex<Line>>,
    manager: Arc<SimpleNodeManager>,
    handle: ServerHandle,
    namespace: u16,
    readings: nodes::Readings,
    pending: event::PendingAlarms,
    bad_status: watch::Receiver<bool>,
    load_interval: Duration,
}

impl Player {
    fn new(plant: &Plant, handle: &ServerHandle) -> Result<Self, Error> {
        let missing = || Error::Server {
            reason: "node manager of the line is missing".to_owned(),
        };
        let manager = handle
            .node_managers()
            .get_of_type::<SimpleNodeManager>()
            .ok_or_else(missing)?;
        let namespace = handle.get_namespace_index(NAMESPACE).ok_or_else(missing)?;
        let pending = event::PendingAlarms::default();
        let readings = {
            let space = manager.address_space();
            nodes::build(
                &mut space.write(),
                &mut handle.type_tree().write(),
                namespace,
                plant.options.load_points,
            )
        };
        nodes::connect(&manager, namespace, &plant.line, &pending);
        Ok(Self {
            line: Arc::clone(&plant.line),
            manager,
            handle: handle.clone(),
            namespace,
            readings,
            pending,
            bad_status: plant.faults.bad_status.subscribe(),
            load_interval: plant.options.load_interval,
        })
    }

    async fn play(self) {
        let mut line = tokio::time::interval(STEP);
        line.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut load = tokio::time::interval(self.load_interval.max(Duration::from_millis(1)));
        load.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = 0.0;
        loop {
            tokio::select! {
                _ = line.tick() => self.step(),
                _ = load.tick(), if !self.readings.load.is_empty() => {
                    round += 1.0;
                    self.show(self.readings.load.iter().map(|id| (id, Variant::Double(round))));
                }
            }
        }
    }

    fn step(&self) {
        let (alarms, line, machines) = {
            let mut line = self.line.lock();
            let mut alarms = std::mem::take(&mut *self.pending.lock());
            alarms.extend(line.step());
            let values: Vec<_> = self
                .readings
                .line
                .iter()
                .map(|reading| (reading.read)(&line))
                .collect();
            let machines: Vec<_> = self
                .readings
                .machines
                .iter()
                .map(|reading| (reading.read)(line.machine(reading.kind)))
                .collect();
            (alarms, values, machines)
        };
        let line = self.readings.line.iter().map(|reading| &reading.id).zip(line);
        let machines = self
            .readings
            .machines
            .iter()
            .map(|reading| &reading.id)
            .zip(machines);
        self.show(line.chain(machines));
        for alarm in &alarms {
            self.notify(alarm);
        }
    }

    fn show<'a>(&self, values: impl Iterator<Item = (&'a NodeId, Variant)>) {
        let now = DateTime::now();
        let status = if *self.bad_status.borrow() {
            StatusCode::BadSensorFailure
        } else {
            StatusCode::Good
        };
        let values = values.map(|(id, value)| {
            let value = DataValue {
                value: Some(value),
                status: Some(status),
                source_timestamp: Some(now),
                server_timestamp: Some(now),
                ..DataValue::default()
            };
            (id, None, value)
        });
        if let Err(status) = self.manager.set_values(self.handle.subscriptions(), values) {
            warn!(%status, "simulated values were not set");
        }
    }

    /// An event is seen at the machine, at the line and at the server (OPC 10000-3, 4.7).
    fn notify(&self, alarm: &Alarm) {
        info!(
            machine = alarm.source.name(),
            alarm = alarm.name,
            active = alarm.active,
            "simulated alarm"
        );
        let namespaces = self.handle.type_tree().read().namespaces().clone();
        let event = event::BottlingAlarm::new(alarm, &namespaces, self.namespace);
        let machine = nodes::node_id(self.namespace, alarm.source.name());
        let line = nodes::node_id(self.namespace, "Line");
        let server = NodeId::from(ObjectId::Server);
        let event: &dyn Event = &event;
        self.handle
            .subscriptions()
            .notify_events([(event, &machine), (event, &line), (event, &server)].into_iter());
    }
}
