//! The broker: listeners, policies and queues as its plan says, all of it changeable while it runs.
//!
//! Besides the listeners of the manifest it opens two of its own, for roles with our certificates: MQTT and queues.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use foreshore_broker::{
    Broker, Handle, Limits, ListenerOptions, Method, Options, PasswordTable, Protocol, Storage,
};
use foreshore_control::{
    Aspect, AspectKind, Change, Health, Nack, PlanResource, Report, Reporter, ResourceKey,
    plan::{BrokerPlan, BrokerPolicyPlan, PathOverflow, PathPlan, SecretPlan},
    queue::server::{Purpose, service},
    session::agent::Role,
    transport::{ServeOptions, serve_tls},
};
use foreshore_crds::{
    conditions::reasons,
    v1alpha1::broker::{Listener, ListenerAuthentication, ListenerProtocol, StorageBackend},
};
use foreshore_operator::{
    facts::{self, RoleFacts},
    workloads::local::{FactsHandle, RoleError, Start},
};
use foreshore_runtime::{Metrics, Shutdown, spawn};
use foreshore_store::{OverflowPolicy, StoreOptions};
use foreshore_tls::{ClientAuth, Identity, Role as RoleKind, RoleIdentity};
use parking_lot::RwLock;
use tokio::{net::TcpListener, sync::mpsc};
use tracing::info;

use super::{DRAIN, Directory, Observability, Roles};

/// Name of the MQTT listener for roles of ours; users' listeners can't have it, since it holds a dot.
const OWN_LISTENER: &str = "foreshore.internal";

/// Runs a broker until its shutdown begins.
pub(super) async fn run(roles: &Roles, start: Start, observability: Observability) -> Result<(), RoleError> {
    let agent = roles.agent(&start)?;
    let (failures, mut failed) = mpsc::channel(1);
    let running = Arc::new(RwLock::new(None));
    let role = BrokerRole {
        reporter: agent.reporter(),
        identity: agent.identity(),
        facts: start.facts.clone(),
        data: roles.directory(&start).join("store"),
        metrics: observability.metrics,
        directory: Arc::clone(&roles.directory),
        name: start.workload.role.clone(),
        shutdown: start.shutdown.clone(),
        failures,
        secrets: BTreeMap::new(),
        policies: BTreeMap::new(),
        paths: BTreeMap::new(),
        plan: None,
        queue_address: None,
        readers: Arc::default(),
        running: Arc::clone(&running),
    };
    let ended = tokio::select! {
        ended = agent.run(role, start.shutdown.clone()) => ended.map_err(RoleError::new),
        Some(cause) = failed.recv() => Err(RoleError { reason: reasons::STORAGE_FAILED, message: cause }),
    };
    let broker = running.write().take();
    if let Some(broker) = broker {
        // Roles that read and write have ended before; what is counted now is what remains.
        match broker.ledger().await {
            Ok(ledger) => drop(
                roles
                    .directory
                    .closing
                    .lock()
                    .insert(start.workload.role.clone(), ledger),
            ),
            Err(error) => tracing::warn!(%error, "no closing ledger"),
        }
        roles.directory.brokers.lock().remove(&start.workload.role);
        let stopped = broker.stop(DRAIN).await;
        ended.and(stopped.map_err(|error| RoleError {
            reason: reasons::STORAGE_FAILED,
            message: error.to_string(),
        }))
    } else {
        ended
    }
}

struct BrokerRole {
    reporter: Reporter,
    identity: Identity,
    facts: FactsHandle,
    data: PathBuf,
    metrics: Metrics,
    directory: Arc<Directory>,
    name: foreshore_operator::role::RoleName,
    shutdown: Shutdown,
    failures: mpsc::Sender<String>,
    secrets: BTreeMap<String, SecretPlan>,
    policies: BTreeMap<String, BrokerPolicyPlan>,
    paths: BTreeMap<String, PathPlan>,
    plan: Option<BrokerPlan>,
    queue_address: Option<SocketAddr>,
    /// Which runner may read which path.
    readers: Arc<RwLock<BTreeMap<String, (String, String)>>>,
    running: Arc<RwLock<Option<Handle>>>,
}

#[async_trait]
impl Role for BrokerRole {
    async fn apply(&mut self, change: Change) -> Result<(), Nack> {
        match change {
            Change::Set(resource) => match resource.key().kind.as_str() {
                SecretPlan::KIND => {
                    let secret: SecretPlan = resource.decode().map_err(undecodable)?;
                    self.secrets.insert(secret.name.clone(), secret);
                    self.open_listeners()
                }
                BrokerPolicyPlan::KIND => {
                    let policy: BrokerPolicyPlan = resource.decode().map_err(undecodable)?;
                    let before = self.policies.insert(policy.object.name.clone(), policy.clone());
                    let put = self.set_policies();
                    if put.is_err() {
                        // What was in force stays in force.
                        match before {
                            Some(before) => drop(self.policies.insert(policy.object.name, before)),
                            None => drop(self.policies.remove(&policy.object.name)),
                        }
                    }
                    put
                }
                PathPlan::KIND => {
                    let path: PathPlan = resource.decode().map_err(undecodable)?;
                    self.put_path(&path).await?;
                    self.paths.insert(path.path.clone(), path);
                    Ok(())
                }
                BrokerPlan::KIND => {
                    self.plan = Some(resource.decode().map_err(undecodable)?);
                    self.start().await
                }
                kind => Err(Nack::new(
                    reasons::UNSUPPORTED_BY_ROLE,
                    format!("a broker has no use for a {kind}"),
                )),
            },
            Change::Remove(ResourceKey { kind, name, .. }) => self.remove(&kind, &name).await,
            Change::SnapshotComplete => self.release_unplanned().await,
        }
    }
}

fn undecodable(error: impl std::fmt::Display) -> Nack {
    Nack::new(reasons::INVALID, error.to_string())
}

fn failing(error: impl std::fmt::Display) -> Nack {
    Nack::new(reasons::FAILING, error.to_string())
}

impl BrokerRole {
    fn broker(&self) -> Option<Handle> {
        self.running.read().clone()
    }

    /// Starts the broker, or changes the one that runs.
    async fn start(&mut self) -> Result<(), Nack> {
        let Some(plan) = self.plan.clone() else {
            return Ok(());
        };
        let limits = Limits::from(&plan.spec.limits.clone().unwrap_or_default());
        if let Some(broker) = self.broker() {
            broker.set_limits(limits);
            return self.open_listeners();
        }
        let storage = plan.spec.storage.clone().unwrap_or_default();
        let storage = match storage.effective_backend() {
            StorageBackend::Memory => Storage::Memory,
            _ => Storage::Directory {
                path: self.data.clone(),
                options: StoreOptions {
                    free_space_watermark: storage.effective_min_free_bytes(),
                    cache_bytes: storage.effective_cache_bytes(),
                    ..StoreOptions::default()
                },
            },
        };
        let broker = Broker::start(Options {
            namespace: plan.object.namespace.clone(),
            name: plan.object.name.clone(),
            storage,
            limits,
            metrics: self.metrics.clone(),
            sys_interval: Some(Duration::from_secs(10)),
            ..Options::default()
        })
        .await
        .map_err(|error| Nack::new(reasons::STORAGE_FAILED, error.to_string()))?;
        *self.running.write() = Some(broker.clone());
        self.directory
            .brokers
            .lock()
            .insert(self.name.clone(), broker.clone());
        self.set_policies()?;
        for path in self.paths.values().cloned().collect::<Vec<_>>() {
            self.put_path(&path).await?;
        }
        self.serve_queues(&broker).await?;
        let failures = self.failures.clone();
        let watched = broker.clone();
        spawn("broker failure", async move {
            let cause = watched.failed().await.to_string();
            // The role may have ended meanwhile.
            drop(failures.send(cause).await);
        })
        .detach();
        self.open_listeners()
    }

    /// Serves the queues of dataflows to runners with our certificates.
    async fn serve_queues(&mut self, broker: &Handle) -> Result<(), Nack> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(failing)?;
        self.queue_address = Some(listener.local_addr().map_err(failing)?);
        let readers = Arc::clone(&self.readers);
        let access = move |role: &RoleIdentity, path: &str, _: Purpose| {
            let readers = readers.read();
            role.role() == RoleKind::Dataflow
                && readers
                    .get(path)
                    .is_some_and(|(namespace, name)| namespace == role.namespace() && name == role.name())
        };
        let routes = service(Arc::new(broker.paths()), Arc::new(access));
        let (identity, shutdown) = (self.identity.clone(), self.shutdown.clone());
        spawn("queues", async move {
            if let Err(error) =
                serve_tls(listener, &identity, &ServeOptions::default(), routes, &shutdown).await
            {
                tracing::error!(%error, "queues are no longer served");
            }
        })
        .detach();
        Ok(())
    }

    /// Opens the listeners of the manifest and our own, closes others, and tells where they are.
    fn open_listeners(&mut self) -> Result<(), Nack> {
        let (Some(plan), Some(broker)) = (self.plan.clone(), self.broker()) else {
            return Ok(());
        };
        let own = self
            .identity
            .server_config(ClientAuth::Required)
            .map_err(failing)?;
        let known: BTreeMap<String, SocketAddr> = broker.addresses().into_iter().collect();
        if !known.contains_key(OWN_LISTENER) {
            let own = ListenerOptions {
                protocol: Protocol::Tls(Arc::new(own)),
                ..ListenerOptions::tcp(
                    OWN_LISTENER,
                    SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                    vec![Method::Role],
                )
            };
            broker.open_listener(own).map_err(failing)?;
        }
        let mut wanted = BTreeSet::from([OWN_LISTENER.to_owned()]);
        let mut trouble = None;
        for listener in &plan.spec.listeners {
            wanted.insert(listener.name.as_str().to_owned());
            let opened = self.listener(listener).and_then(|options| {
                broker
                    .open_listener(options)
                    .map_err(|error| Nack::new(reasons::PORT_IN_USE, error.to_string()))
            });
            self.report(&plan, listener, &opened);
            if let Err(nack) = opened {
                trouble.get_or_insert(nack);
            }
        }
        for (name, _) in broker
            .addresses()
            .into_iter()
            .filter(|(name, _)| !wanted.contains(name))
        {
            broker.close_listener(&name);
        }
        self.tell(&broker);
        trouble.map_or(Ok(()), Err)
    }

    fn report(&self, plan: &BrokerPlan, listener: &Listener, opened: &Result<SocketAddr, Nack>) {
        let aspect = Aspect::new(AspectKind::Listener, listener.name.as_str());
        let report =
            |health, reason| Report::new(BrokerPlan::KIND, &plan.object, aspect.clone(), health, reason);
        self.reporter.report(match opened {
            Ok(address) => {
                report(Health::Available, reasons::HEALTHY.into()).message(format!("listens on {address}"))
            }
            Err(nack) => report(Health::Unavailable, nack.reason.clone()).message(nack.message.clone()),
        });
    }

    fn tell(&self, broker: &Handle) {
        let mut told = RoleFacts::default();
        for (name, address) in broker.addresses() {
            told = if name == OWN_LISTENER {
                told.with(facts::MQTT, address.to_string())
            } else {
                info!(listener = name, %address, "broker listens");
                told.with(facts::listener(&name), format!("mqtt://{address}"))
            };
        }
        if let Some(address) = self.queue_address {
            told = told.with(facts::QUEUE, address.to_string());
        }
        self.facts.tell(told);
    }

    fn listener(&self, listener: &Listener) -> Result<ListenerOptions, Nack> {
        if listener.protocol != ListenerProtocol::Tcp {
            let message = format!(
                "listener {}: protocol {:?} is not built in yet, Tcp is",
                listener.name, listener.protocol
            );
            return Err(Nack::new(reasons::UNSUPPORTED_HERE, message));
        }
        let host = listener.bind_address.as_deref().unwrap_or("127.0.0.1");
        let ip: IpAddr = host.parse().map_err(|_| {
            let message = format!(
                "listener {}: found address {host:?}, an IP address is allowed",
                listener.name
            );
            Nack::new(reasons::INVALID, message)
        })?;
        let port = u16::try_from(listener.port).unwrap_or_default();
        let methods = listener
            .authentication
            .iter()
            .map(|method| self.method(listener, method));
        let methods = methods.collect::<Result<Vec<_>, _>>()?;
        let mut options = ListenerOptions::tcp(listener.name.as_str(), SocketAddr::new(ip, port), methods);
        options.max_connections = listener.max_connections;
        Ok(options)
    }

    fn method(&self, listener: &Listener, method: &ListenerAuthentication) -> Result<Method, Nack> {
        if method.anonymous.is_some() {
            return Ok(Method::Anonymous);
        }
        let Some(passwords) = &method.username_password else {
            let message = format!(
                "listener {}: only anonymous and usernamePassword are built in yet",
                listener.name
            );
            return Err(Nack::new(reasons::UNSUPPORTED_HERE, message));
        };
        let name = passwords.secret_ref.name.as_str();
        let missing = || {
            Nack::new(
                reasons::SECRET_NOT_FOUND,
                format!("secret {name:?} was not received"),
            )
        };
        let secret = self.secrets.get(name).ok_or_else(missing)?;
        let users = secret
            .data
            .iter()
            .map(|(user, value)| (user.clone(), value.0.clone()));
        let table = PasswordTable::new(users, &passwords.groups);
        let table = table.map_err(|error| Nack::new(reasons::SECRET_INVALID, error.to_string()))?;
        Ok(Method::Passwords(Arc::new(table)))
    }

    fn set_policies(&self) -> Result<(), Nack> {
        let Some(broker) = self.broker() else {
            return Ok(());
        };
        let policies = self
            .policies
            .iter()
            .map(|(name, policy)| (name.as_str(), &policy.spec));
        broker
            .set_policies(policies)
            .map_err(|error| Nack::new(reasons::INVALID, error.to_string()))
    }

    async fn put_path(&self, path: &PathPlan) -> Result<(), Nack> {
        let reader = (path.namespace.clone(), path.reader.clone());
        self.readers.write().insert(path.path.clone(), reader);
        let Some(broker) = self.broker() else {
            return Ok(());
        };
        let limits = foreshore_store::Limits {
            max_bytes: path.max_bytes,
            max_age: path.max_age_seconds.map(Duration::from_secs),
            overflow: match path.overflow {
                PathOverflow::Reject => OverflowPolicy::Reject,
                PathOverflow::DropOldest => OverflowPolicy::DropOldest,
                PathOverflow::DropNew => OverflowPolicy::DropNew,
            },
            max_attempts: Some(foreshore_store::Limits::DEFAULT_MAX_ATTEMPTS),
            ..foreshore_store::Limits::default()
        };
        broker
            .put_path(&path.path, path.topics.clone(), limits)
            .await
            .map_err(failing)
    }

    async fn remove(&mut self, kind: &str, name: &str) -> Result<(), Nack> {
        match kind {
            SecretPlan::KIND => drop(self.secrets.remove(name)),
            BrokerPolicyPlan::KIND => {
                self.policies.remove(name);
                self.set_policies()?;
            }
            PathPlan::KIND => {
                self.paths.remove(name);
                self.readers.write().remove(name);
                if let Some(broker) = self.broker() {
                    broker.remove_path(name).await.map_err(failing)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Releases queues of dataflows that were deleted while the broker was away.
    async fn release_unplanned(&self) -> Result<(), Nack> {
        let Some(broker) = self.broker() else {
            return Ok(());
        };
        for name in broker
            .path_names()
            .into_iter()
            .filter(|name| !self.paths.contains_key(name))
        {
            broker.remove_path(&name).await.map_err(failing)?;
        }
        Ok(())
    }
}
