//! The broker's role in the control session: puts a plan in force.
//!
//! Besides the listeners of the manifest there are two of our own, for roles with our certificates: MQTT and queues.
//! Whatever changes, nobody is disconnected who could connect as well after the change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use foreshore_control::{
    Aspect, AspectKind, Change, Health, Nack, PlanResource, Report, ResourceKey, Role,
    plan::{
        BrokerPlan, BrokerPolicyPlan, ObjectRef, PathOverflow, PathPlan, SecretPlan, SecretValue,
        ServiceAccountIssuerPlan,
    },
    queue::server::{Purpose, service},
    transport::{ServeOptions, serve_tls},
};
use foreshore_crds::{
    conditions::reasons,
    v1alpha1::broker::{self as api, BrokerSpec, Listener, StorageBackend},
};
use foreshore_runtime::{Metrics, Shutdown};
use foreshore_store::{OverflowPolicy, Space, StoreOptions};
use foreshore_tls::{ClientAuth, Identity, Role as RoleKind, RoleIdentity};
use parking_lot::RwLock;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    audit::AuditDestination,
    auth::{Issuers, Method, ServiceAccountIssuer},
    broker::{Broker, Handle},
    listener::{
        Endpoint,
        manifest::{self, Surroundings},
    },
    options::{Conduct, Limits, ListenerOptions, Options, Protocol, Storage, counted_topics, probe_schedule},
    probe::ProbeReport,
};

/// Name of the MQTT listener for our own roles; a manifest's listeners can't have it, since it holds a dot.
const OWN_LISTENER: &str = "foreshore.internal";

/// How often the free space of the disk is looked at.
const SPACE_INTERVAL: Duration = Duration::from_secs(2);

/// How often it is looked at whether memory was short. Longer than a client waits before it comes back, so that what
/// lasts is told once.
const MEMORY_INTERVAL: Duration = Duration::from_secs(10);

/// What a broker's role is started with.
pub struct RoleOptions {
    /// Our certificate, for the listeners of our own roles.
    pub identity: Identity,
    /// Where reports go.
    pub report: Arc<dyn Fn(Report) + Send + Sync>,
    /// Directory of the store.
    pub directory: PathBuf,
    /// Folder with the keys that the store is encrypted with, if it is.
    pub encryption_keys: Option<PathBuf>,
    /// Whether a store that is there already and not encrypted may be, whatever its manifest says.
    pub encrypt_existing: bool,
    /// Where metrics are registered.
    pub metrics: Metrics,
    /// Address that listeners bind where their manifest names none.
    pub default_address: IpAddr,
    /// Where our own roles speak MQTT; port 0 takes any free one.
    pub mqtt_address: SocketAddr,
    /// Where dataflows read their queues; port 0 takes any free one.
    pub queue_address: SocketAddr,
    /// Ends the service of queues.
    pub shutdown: Shutdown,
}

/// What a broker's role serves at present.
#[derive(Clone, Debug, Default)]
pub struct Served {
    /// The broker; `None` until its plan has come.
    pub broker: Option<Handle>,
    /// Where our own roles speak MQTT.
    pub mqtt: Option<SocketAddr>,
    /// Where dataflows read their queues.
    pub queues: Option<SocketAddr>,
    /// The manifest's listeners that are open, by name.
    pub listeners: BTreeMap<String, Endpoint>,
}

/// Puts a plan in force.
pub struct BrokerRole {
    options: RoleOptions,
    secrets: BTreeMap<String, BTreeMap<String, SecretValue>>,
    policies: BTreeMap<String, BrokerPolicyPlan>,
    paths: BTreeMap<String, PathPlan>,
    plan: Option<BrokerPlan>,
    readers: Readers,
    issuers: Issuers,
    service_accounts: Option<Arc<ServiceAccountIssuer>>,
    served: watch::Sender<Served>,
}

/// Which runner, by namespace and name, may read which path.
type Readers = Arc<RwLock<BTreeMap<String, (String, String)>>>;

#[async_trait]
impl Role for BrokerRole {
    async fn apply(&mut self, change: Change) -> Result<(), Nack> {
        match change {
            Change::Set(resource) => match resource.key().kind.as_str() {
                BrokerPlan::KIND => self.set_broker(resource.decode()?).await,
                BrokerPolicyPlan::KIND => self.set_policy(resource.decode()?),
                PathPlan::KIND => self.set_path(resource.decode()?).await,
                SecretPlan::KIND => self.set_secret(resource.decode()?),
                ServiceAccountIssuerPlan::KIND => self.set_service_accounts(&resource.decode()?),
                kind => {
                    let message = format!("a broker has no use for a {kind}");
                    Err(Nack::new(reasons::UNSUPPORTED_BY_ROLE, message))
                }
            },
            Change::Remove(key) => self.remove(&key).await,
            Change::SnapshotComplete => self.release_unplanned().await,
        }
    }
}

fn failing(error: impl std::fmt::Display) -> Nack {
    Nack::new(reasons::FAILING, error.to_string())
}

fn storage_failed(error: impl std::fmt::Display) -> Nack {
    Nack::new(reasons::STORAGE_FAILED, error.to_string())
}

impl BrokerRole {
    /// A role without a plan, and what tells what it serves.
    #[must_use]
    pub fn new(options: RoleOptions) -> (Self, watch::Receiver<Served>) {
        let (served, watching) = watch::channel(Served::default());
        let role = Self {
            options,
            secrets: BTreeMap::new(),
            policies: BTreeMap::new(),
            paths: BTreeMap::new(),
            plan: None,
            readers: Readers::default(),
            issuers: Issuers::default(),
            service_accounts: None,
            served,
        };
        (role, watching)
    }

    fn broker(&self) -> Option<Handle> {
        self.served.borrow().broker.clone()
    }

    /// Starts the broker, or changes the one that runs.
    async fn set_broker(&mut self, plan: BrokerPlan) -> Result<(), Nack> {
        let Some(broker) = self.broker() else {
            let broker = self.start(&plan).await?;
            let (object, report) = (plan.object.clone(), Arc::clone(&self.options.report));
            let space = watch_space(broker.clone(), object.clone(), Arc::clone(&report));
            let memory = watch_memory(broker.clone(), object.clone(), Arc::clone(&report));
            let probes = watch_probes(broker.probed(), object, report);
            let watching = async {
                tokio::join!(space, memory, probes);
            };
            let ending = self.options.shutdown.clone();
            foreshore_runtime::spawn("broker watch", async move {
                ending.or_begun(watching).await;
            })
            .detach();
            self.served.send_modify(|served| served.broker = Some(broker));
            self.plan = Some(plan);
            return self.open_listeners();
        };
        if let Some(known) = self
            .plan
            .as_ref()
            .filter(|known| storage(&known.spec) != storage(&plan.spec))
        {
            let message = format!(
                "found storage backend {:?}, {:?} is allowed as long as the broker runs",
                storage(&plan.spec),
                storage(&known.spec)
            );
            return Err(Nack::new(reasons::UNSUPPORTED_HERE, message));
        }
        let audit = audit(&plan.spec, &self.options.directory);
        broker.set_audit(audit.as_ref()).map_err(storage_failed)?;
        broker.set_limits(Limits::from(&plan.spec));
        broker.set_conduct(Conduct::from(&plan.spec));
        broker.count_topics(&counted_topics(&plan.spec));
        broker.set_probe(probe_schedule(&plan.spec));
        self.plan = Some(plan);
        self.open_listeners()
    }

    async fn start(&self, plan: &BrokerPlan) -> Result<Handle, Nack> {
        let spec = plan.spec.storage.clone().unwrap_or_default();
        let encryption = spec.encryption.as_ref();
        if encryption.is_some() && self.options.encryption_keys.is_none() {
            let message =
                "spec.storage.encryption: found no folder of keys here, and nothing is written without";
            return Err(Nack::new(reasons::UNSUPPORTED_HERE, message));
        }
        let storage = match storage(&plan.spec) {
            StorageBackend::Memory => Storage::Memory,
            StorageBackend::Fjall => Storage::Directory {
                path: self.options.directory.clone(),
                options: StoreOptions {
                    free_space_watermark: spec.effective_min_free_bytes(),
                    cache_bytes: spec.effective_cache_bytes(),
                    encryption_keys: self.options.encryption_keys.clone(),
                    encrypt_existing: self.options.encrypt_existing
                        || encryption.is_some_and(|encryption| encryption.encrypt_existing == Some(true)),
                    ..StoreOptions::default()
                },
            },
            StorageBackend::JetStream => {
                let message = "storage backend JetStream is not built in yet, Fjall and Memory are";
                return Err(Nack::new(reasons::UNSUPPORTED_HERE, message));
            }
        };
        let options = Options {
            namespace: plan.object.namespace.clone(),
            name: plan.object.name.clone(),
            storage,
            limits: Limits::from(&plan.spec),
            conduct: Conduct::from(&plan.spec),
            audit: audit(&plan.spec, &self.options.directory),
            sys_interval: plan.spec.sys_interval.map(Into::into),
            metrics: self.options.metrics.clone(),
            ..Options::default()
        };
        let broker = Broker::start(options).await.map_err(storage_failed)?;
        broker.count_topics(&counted_topics(&plan.spec));
        broker.set_probe(probe_schedule(&plan.spec));
        if let Err(nack) = self.prepare(&broker).await {
            // The store is to be free for the next try.
            if let Err(error) = broker.stop(Duration::ZERO).await {
                tracing::warn!(%error, "a broker that did not start was not ended in order");
            }
            return Err(nack);
        }
        Ok(broker)
    }

    /// Puts in force what came before the broker's own plan, and opens the listeners of our own roles: policies and
    /// queues stand before anybody can connect.
    async fn prepare(&self, broker: &Handle) -> Result<(), Nack> {
        self.put_policies(broker)?;
        for path in self.paths.values() {
            put_path(broker, path).await?;
        }
        let queues = self.serve_queues(broker).await?;
        let config = self
            .options
            .identity
            .server_config(ClientAuth::Required)
            .map_err(failing)?;
        let own = ListenerOptions {
            protocol: Protocol::Tls(Arc::new(config)),
            ..ListenerOptions::tcp(OWN_LISTENER, self.options.mqtt_address, vec![Method::Role])
        };
        let mqtt = broker
            .open_listener(own)
            .map_err(|error| Nack::new(reasons::PORT_IN_USE, error.to_string()))?;
        self.served
            .send_modify(|served| (served.queues, served.mqtt) = (Some(queues), Some(mqtt)));
        Ok(())
    }

    /// Serves the queues of dataflows to runners with our certificates.
    async fn serve_queues(&self, broker: &Handle) -> Result<SocketAddr, Nack> {
        let in_use = |error: std::io::Error| Nack::new(reasons::PORT_IN_USE, format!("queues: {error}"));
        let listener = TcpListener::bind(self.options.queue_address)
            .await
            .map_err(in_use)?;
        let address = listener.local_addr().map_err(in_use)?;
        let readers = Arc::clone(&self.readers);
        let access = move |role: &RoleIdentity, path: &str, purpose: Purpose| match role.role() {
            RoleKind::Dataflow => readers
                .read()
                .get(path)
                .is_some_and(|(namespace, name)| namespace == role.namespace() && name == role.name()),
            RoleKind::Operator => purpose == Purpose::Inspect,
            _ => false,
        };
        let routes = service(Arc::new(broker.paths()), Arc::new(access));
        let (identity, shutdown) = (self.options.identity.clone(), self.options.shutdown.clone());
        foreshore_runtime::spawn("broker queues", async move {
            if let Err(error) =
                serve_tls(listener, &identity, &ServeOptions::default(), routes, &shutdown).await
            {
                tracing::error!(%error, "queues are no longer served");
            }
        })
        .detach();
        Ok(address)
    }

    /// Opens the listeners of the manifest and closes others; one that can't be opened does not keep others from it.
    fn open_listeners(&self) -> Result<(), Nack> {
        let (Some(plan), Some(broker)) = (&self.plan, self.broker()) else {
            return Ok(());
        };
        let mut first = Ok(());
        for listener in &plan.spec.listeners {
            let opened = self.open_listener(&broker, listener);
            self.report(plan, listener, &opened);
            if let Err(nack) = opened {
                first = first.and(Err(nack));
            }
        }
        let planned = |name: &String| {
            plan.spec
                .listeners
                .iter()
                .any(|listener| listener.name.as_str() == name.as_str())
        };
        let mut open: BTreeMap<_, _> = broker.endpoints().into_iter().collect();
        open.remove(OWN_LISTENER);
        for name in open.keys().filter(|name| !planned(name)) {
            broker.close_listener(name);
        }
        open.retain(|name, _| planned(name));
        self.served.send_modify(|served| served.listeners = open);
        first
    }

    fn open_listener(&self, broker: &Handle, listener: &Listener) -> Result<SocketAddr, Nack> {
        let around = Surroundings {
            secrets: &self.secrets,
            identity: &self.options.identity,
            default_address: self.options.default_address,
            issuers: &self.issuers,
            service_accounts: self.service_accounts.as_ref(),
        };
        let options = manifest::options(listener, &around)?;
        broker
            .open_listener(options)
            .map_err(|error| Nack::new(reasons::PORT_IN_USE, error.to_string()))
    }

    fn report(&self, plan: &BrokerPlan, listener: &Listener, opened: &Result<SocketAddr, Nack>) {
        let aspect = Aspect::new(AspectKind::Listener, listener.name.as_str());
        let report =
            |health, reason| Report::new(BrokerPlan::KIND, &plan.object, aspect.clone(), health, reason);
        (self.options.report)(match opened {
            Ok(address) => {
                report(Health::Available, reasons::HEALTHY.into()).message(format!("listens on {address}"))
            }
            Err(nack) => report(Health::Unavailable, nack.reason.clone()).message(nack.message.clone()),
        });
    }

    /// Takes a Secret's values; listeners that can't be made of them stay as they are.
    fn set_secret(&mut self, secret: SecretPlan) -> Result<(), Nack> {
        let before = self.secrets.insert(secret.name.clone(), secret.data);
        let opened = self.open_listeners();
        if let Some(broker) = self.broker().filter(|_| opened.is_ok()) {
            broker.tell_secret(&secret.name);
        }
        if let (Err(_), Some(before)) = (&opened, before) {
            self.secrets.insert(secret.name, before);
        }
        opened
    }

    /// Takes who signs the tokens of service accounts. Keys that rotate disconnect nobody.
    fn set_service_accounts(&mut self, told: &ServiceAccountIssuerPlan) -> Result<(), Nack> {
        let invalid = |error: crate::auth::InvalidIssuer| Nack::new(reasons::INVALID, error.to_string());
        let ServiceAccountIssuerPlan { issuer, keys } = told;
        if let Some(known) = self
            .service_accounts
            .as_ref()
            .filter(|known| known.name() == issuer)
        {
            return known.rotate(keys).map_err(invalid);
        }
        let issuer = ServiceAccountIssuer::new(issuer, keys).map_err(invalid)?;
        self.service_accounts = Some(Arc::new(issuer));
        self.open_listeners()
    }

    fn set_policy(&mut self, policy: BrokerPolicyPlan) -> Result<(), Nack> {
        let name = policy.object.name.clone();
        let before = self.policies.insert(name.clone(), policy);
        let put = self.broker().map_or(Ok(()), |broker| self.put_policies(&broker));
        if put.is_err() {
            // What was in force stays in force.
            match before {
                Some(before) => self.policies.insert(name, before),
                None => self.policies.remove(&name),
            };
        }
        put
    }

    fn put_policies(&self, broker: &Handle) -> Result<(), Nack> {
        let policies = self
            .policies
            .iter()
            .map(|(name, policy)| (name.as_str(), &policy.spec));
        broker
            .set_policies(policies)
            .map_err(|error| Nack::new(reasons::INVALID, error.to_string()))
    }

    async fn set_path(&mut self, path: PathPlan) -> Result<(), Nack> {
        if let Some(broker) = self.broker() {
            put_path(&broker, &path).await?;
        }
        self.readers
            .write()
            .insert(path.path.clone(), (path.namespace.clone(), path.reader.clone()));
        self.paths.insert(path.path.clone(), path);
        Ok(())
    }

    async fn remove(&mut self, key: &ResourceKey) -> Result<(), Nack> {
        match key.kind.as_str() {
            SecretPlan::KIND => {
                self.secrets.remove(&key.name);
            }
            ServiceAccountIssuerPlan::KIND => self.service_accounts = None,
            BrokerPolicyPlan::KIND => {
                self.policies.remove(&key.name);
                if let Some(broker) = self.broker() {
                    self.put_policies(&broker)?;
                }
            }
            PathPlan::KIND => {
                if let Some(broker) = self.broker() {
                    broker.remove_path(&key.name).await.map_err(storage_failed)?;
                }
                self.paths.remove(&key.name);
                self.readers.write().remove(&key.name);
            }
            _ => {}
        }
        Ok(())
    }

    /// Releases queues of dataflows that were deleted while this role was away.
    async fn release_unplanned(&self) -> Result<(), Nack> {
        let Some(broker) = self.broker() else {
            return Ok(());
        };
        for name in broker
            .path_names()
            .into_iter()
            .filter(|name| !self.paths.contains_key(name))
        {
            broker.remove_path(&name).await.map_err(storage_failed)?;
        }
        Ok(())
    }
}

/// Reports whether the disk has room for what is published, each time that changes.
async fn watch_space(broker: Handle, object: ObjectRef, report: Arc<dyn Fn(Report) + Send + Sync>) {
    let mut ticks = tokio::time::interval(SPACE_INTERVAL);
    let mut was_low = None;
    loop {
        ticks.tick().await;
        let Some(space) = broker.space().await else {
            continue;
        };
        let before = was_low.replace(space.is_low());
        if before == was_low {
            continue;
        }
        let about = |health, reason: &'static str| {
            let aspect = Aspect::new(AspectKind::Role, "storage");
            Report::new(BrokerPlan::KIND, &object, aspect, health, reason)
        };
        report(if space.is_low() {
            let Space { free, watermark } = space;
            let evidence = format!(
                "{} MiB are free where messages are kept, minFreeBytes is {} MiB",
                free >> 20,
                watermark >> 20
            );
            tracing::warn!(
                free,
                watermark,
                "the disk is full: publishes are refused, deliveries go on"
            );
            about(Health::Unavailable, reasons::STORAGE_FAILED)
                .message("publishes are refused until there is space, deliveries go on")
                .evidence(evidence)
        } else {
            if before.is_some() {
                tracing::info!(free = space.free, "the disk has room for messages");
            }
            about(Health::Available, reasons::HEALTHY)
        });
    }
}

/// Reports which listeners can't be used, and when they can again. It says nothing of those that never failed: that they are
/// open was said when they were opened.
async fn watch_probes(
    mut probed: watch::Receiver<BTreeMap<String, ProbeReport>>,
    object: ObjectRef,
    report: Arc<dyn Fn(Report) + Send + Sync>,
) {
    let mut failed = BTreeSet::new();
    while probed.changed().await.is_ok() {
        let now = probed.borrow_and_update().clone();
        failed.retain(|listener| now.contains_key(listener));
        for (listener, found) in now {
            // A failure is told as long as it lasts: whatever opens the listener anew says that it is open.
            let recovers = failed.remove(&listener);
            if found.failure.is_some() {
                failed.insert(listener.clone());
            } else if !recovers {
                continue;
            }
            let about = |health, reason: &'static str| {
                let aspect = Aspect::new(AspectKind::Listener, listener.as_str());
                Report::new(BrokerPlan::KIND, &object, aspect, health, reason)
            };
            report(match found.failure {
                Some(failure) => about(Health::Unavailable, reasons::PROBE_FAILED)
                    .message(format!("{} can't be used: {failure}", found.url)),
                None => about(Health::Available, reasons::HEALTHY)
                    .message(format!("{} can be used again", found.url)),
            });
        }
    }
}

/// Reports whether clients are kept out or disconnected for want of memory, each time that changes.
async fn watch_memory(broker: Handle, object: ObjectRef, report: Arc<dyn Fn(Report) + Send + Sync>) {
    let mut ticks = tokio::time::interval(MEMORY_INTERVAL);
    let mut before = broker.memory();
    let mut was_short = None;
    loop {
        ticks.tick().await;
        let now = broker.memory();
        let (ended, refused) = (now.ended - before.ended, now.refused - before.refused);
        before = now;
        let is_short = ended + refused > 0;
        if was_short.replace(is_short) == Some(is_short) {
            continue;
        }
        let about = |health, reason: &'static str| {
            let aspect = Aspect::new(AspectKind::Role, "memory");
            Report::new(BrokerPlan::KIND, &object, aspect, health, reason)
        };
        report(if is_short {
            about(Health::Degraded, reasons::MEMORY_EXHAUSTED)
                .message("clients that hold most are disconnected, new ones are refused, others go on")
                .evidence(format!(
                    "{ended} were disconnected and {refused} refused within {} s; {} MiB are held for clients, maxMemory is {} MiB",
                    MEMORY_INTERVAL.as_secs(),
                    now.bytes >> 20,
                    now.max_bytes.unwrap_or_default() >> 20,
                ))
        } else {
            about(Health::Available, reasons::HEALTHY)
        });
    }
}

async fn put_path(broker: &Handle, path: &PathPlan) -> Result<(), Nack> {
    let limits = foreshore_store::Limits {
        max_bytes: path.max_bytes,
        max_age: path.max_age_seconds.map(Duration::from_secs),
        overflow: match path.overflow {
            PathOverflow::Reject => OverflowPolicy::Reject,
            PathOverflow::DropOldest => OverflowPolicy::DropOldest,
            PathOverflow::DropNew => OverflowPolicy::DropNew,
        },
        max_attempts: Some(foreshore_store::Limits::DEFAULT_MAX_ATTEMPTS),
        own_limits_only: true,
        ..foreshore_store::Limits::default()
    };
    broker
        .put_path(&path.path, path.topics.clone(), limits)
        .await
        .map_err(storage_failed)
}

/// Where the audit log goes: its file is beside the store, which has its directory for itself.
fn audit(spec: &BrokerSpec, store: &Path) -> Option<AuditDestination> {
    let audit = spec.audit.as_ref()?;
    Some(match audit.effective_destination() {
        api::AuditDestination::Stdout => AuditDestination::Stdout,
        api::AuditDestination::File => AuditDestination::File {
            path: store.with_file_name("audit.jsonl"),
            max_bytes: audit.effective_max_file_bytes(),
        },
    })
}

fn storage(spec: &BrokerSpec) -> StorageBackend {
    spec.storage
        .as_ref()
        .map_or(StorageBackend::Fjall, |storage| storage.effective_backend())
}
