//! Roles: each enrolls, dials the operator and does what its plan says, as a task of `foreshore up` or in a pod.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use foreshore_control::{Agent, AgentOptions, KeyWrap, Nack, enroll::CredentialSource, handover};
use foreshore_crds::{conditions::reasons, types::Host, v1alpha1::Protocol};
use foreshore_operator::{
    control::SERVER_NAME,
    role::RoleName,
    workloads::{
        Task,
        local::{RoleError, RoleRunner, Start},
        ports,
    },
};
use foreshore_record::PathLedger;
use foreshore_runtime::{HealthRegistry, Metrics, Shutdown, serve_http};
use foreshore_store::KeyWrapper;
use foreshore_tls::{Role, RoleIdentity, ServerName, TrustBundle};
use parking_lot::Mutex;

use self::key_wrap::FolderKeys;
use crate::commands::encryption::Encryption;

mod broker;
mod cloud;
mod connector;
mod dataflow;
mod key_wrap;
mod simulator;

/// How long a role may take to end in order.
const DRAIN: Duration = Duration::from_secs(8);

/// What a role does.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    Broker,
    Connector(Protocol),
    Dataflow,
    Simulator,
    Cloud,
}

/// What a role needs to start.
pub(crate) struct Assignment {
    /// What it is called.
    pub(crate) name: RoleName,
    /// Which of its instances on this machine it is, from 0.
    pub(crate) ordinal: u32,
    /// What it does.
    pub(crate) work: Work,
    /// Who it is, where that is known before it has enrolled.
    pub(crate) expected: Option<RoleIdentity>,
    /// Gives a bootstrap credential each time that it has to enroll.
    pub(crate) credentials: Arc<dyn CredentialSource>,
    /// Addresses of operators, `host:port`.
    pub(crate) control: Vec<String>,
    /// Roots to trust at the first start.
    pub(crate) trust: TrustBundle,
    /// Tells it to end.
    pub(crate) shutdown: Shutdown,
}

/// Where roles serve, and by which name others reach them.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// Address to listen on, where a manifest names none.
    bind: IpAddr,
    /// Name that others dial; the address where there is none.
    host: Option<String>,
    /// Whether all ports are this role's own, so that it can take the usual ones.
    own_ports: bool,
}

impl Site {
    /// On this machine only, among other roles.
    pub(crate) fn loopback() -> Self {
        Self {
            bind: Ipv4Addr::LOCALHOST.into(),
            host: None,
            own_ports: false,
        }
    }

    /// In a pod, which others reach by a name.
    pub(crate) fn pod(host: Option<String>) -> Self {
        Self {
            bind: Ipv4Addr::UNSPECIFIED.into(),
            host,
            own_ports: true,
        }
    }

    /// Where to listen on a port that a manifest names; with 0 on the usual one in a pod, on a free one elsewhere.
    fn listen(&self, port: u16, usual: u16) -> SocketAddr {
        let usual = if self.own_ports { usual } else { 0 };
        SocketAddr::new(self.bind, if port == 0 { usual } else { port })
    }

    /// What others dial to reach an address that is bound here.
    fn dialled(&self, bound: SocketAddr) -> String {
        match &self.host {
            Some(host) if !bound.ip().is_loopback() => format!("{host}:{}", bound.port()),
            _ => bound.to_string(),
        }
    }
}

/// Where to listen: on the address that a manifest names in a field, or else as a site does by itself.
fn bind(field: &str, address: Option<&Host>, default: SocketAddr) -> Result<SocketAddr, Nack> {
    let ip: IpAddr = match address.map(Host::as_str) {
        None => default.ip(),
        Some("localhost") => Ipv4Addr::LOCALHOST.into(),
        Some(host) => host.parse().map_err(|_| {
            let message = format!("{field}: found {host:?}, an IP address is allowed");
            Nack::new(reasons::INVALID, message)
        })?,
    };
    Ok(SocketAddr::new(ip, default.port()))
}

/// Runs roles.
pub(crate) struct Roles {
    /// Folder below which each role keeps its state.
    data: PathBuf,
    /// Where they serve.
    site: Site,
    /// What can be asked about roles that run.
    directory: Arc<Directory>,
    /// What brokers encrypt their stores with, and all roles plan and certificate, if they do.
    encryption: Encryption,
}

/// Roles that run, for who asks about all of them. Each registers itself and is forgotten when it ends.
#[derive(Default)]
pub(crate) struct Directory {
    brokers: Mutex<BTreeMap<RoleName, foreshore_broker::Handle>>,
    clouds: Mutex<BTreeMap<RoleName, CloudAccess>>,
    closing: Mutex<BTreeMap<RoleName, Vec<PathLedger>>>,
    observability: Mutex<BTreeMap<(RoleName, u32), SocketAddr>>,
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

    /// A broker that runs, by `NAMESPACE/NAME`; the only one where none is named.
    ///
    /// # Errors
    /// Which ones there are, when that does not tell one.
    pub(crate) fn broker(&self, wanted: Option<&str>) -> Result<foreshore_broker::Handle, String> {
        let brokers = self.brokers.lock();
        let name = |role: &RoleName| format!("{}/{}", role.namespace, role.name);
        let mut found = brokers
            .iter()
            .filter(|(role, _)| wanted.is_none_or(|wanted| name(role) == wanted));
        match (found.next(), found.next()) {
            (Some((_, broker)), None) => return Ok(broker.clone()),
            (None, _) if brokers.is_empty() => return Err("no broker runs here".to_owned()),
            _ => {}
        }
        let names: Vec<_> = brokers.keys().map(name).collect();
        let wanted = wanted.map_or_else(|| "none".to_owned(), |wanted| format!("{wanted:?}"));
        Err(format!(
            "found broker {wanted}, allowed is one of {}",
            names.join(", ")
        ))
    }

    /// Adds a broker that runs without an operator.
    pub(crate) fn add_broker(&self, name: RoleName, broker: foreshore_broker::Handle) {
        self.brokers.lock().insert(name, broker);
    }

    /// Forgets that broker, which ends.
    pub(crate) fn remove_broker(&self, name: &RoleName) {
        self.brokers.lock().remove(name);
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
            .map(|((role, ordinal), address)| {
                let name = match ordinal {
                    0 => role.to_string(),
                    ordinal => format!("{role}/{ordinal}"),
                };
                (name, *address)
            })
            .collect()
    }

    fn forget(&self, role: &RoleName, ordinal: u32) {
        self.brokers.lock().remove(role);
        self.clouds.lock().remove(role);
        self.observability.lock().remove(&(role.clone(), ordinal));
    }
}

impl Roles {
    /// Roles that keep their state below `data`, serve at `site` and can be found in `directory`.
    pub(crate) fn new(data: PathBuf, site: Site, directory: Arc<Directory>) -> Self {
        Self {
            data,
            site,
            directory,
            encryption: Encryption::default(),
        }
    }

    /// As before, with roles that encrypt.
    pub(crate) fn encrypting(self, encryption: Encryption) -> Self {
        Self { encryption, ..self }
    }

    /// Runs a role until its shutdown begins.
    pub(crate) async fn work(&self, assignment: Assignment) -> Result<(), RoleError> {
        let (name, ordinal) = (assignment.name.clone(), assignment.ordinal);
        let observability = self.observe(&assignment).await?;
        let component = observability.health.component(name.to_string());
        component.ok();
        let ended = match assignment.work {
            Work::Broker => broker::run(self, assignment, observability).await,
            Work::Connector(protocol) => connector::run(self, assignment, observability, protocol).await,
            Work::Dataflow => dataflow::run(self, assignment, observability).await,
            Work::Simulator => simulator::run(self, assignment).await,
            Work::Cloud => cloud::run(self, assignment, observability).await,
        };
        self.directory.forget(&name, ordinal);
        ended
    }

    /// Serves `/metrics` and `/healthz` of one role.
    async fn observe(&self, assignment: &Assignment) -> Result<Observability, RoleError> {
        let (health, metrics) = (HealthRegistry::new(), Metrics::new());
        let address = self.site.listen(0, ports::HTTP);
        let shutdown = assignment.shutdown.clone();
        let server = serve_http(address, health.clone(), metrics.clone(), shutdown).await;
        let server = server.map_err(RoleError::new)?;
        self.directory
            .observability
            .lock()
            .insert((assignment.name.clone(), assignment.ordinal), server.address);
        server.task.detach();
        Ok(Observability { health, metrics })
    }

    /// The folder of one role.
    fn folder(&self, assignment: &Assignment) -> PathBuf {
        let role = &assignment.name;
        let folder = self.data.join(role.role.to_string());
        let folder = folder.join(&role.namespace).join(&role.name);
        match assignment.ordinal {
            0 => folder,
            ordinal => folder.join("instances").join(ordinal.to_string()),
        }
    }

    /// A role's end of the control session.
    fn agent(&self, assignment: &Assignment) -> Result<Agent, RoleError> {
        let directory = self.folder(assignment).join("session");
        let server_name = ServerName::try_from(SERVER_NAME).map_err(RoleError::new)?;
        let credential = Arc::clone(&assignment.credentials);
        let mut capabilities = BTreeSet::new();
        if assignment.name.role == Role::Connector {
            capabilities.insert(handover::CAPABILITY.to_owned());
        }
        let keys = self.encryption.keys.clone().map(KeyWrapper::new);
        let options = AgentOptions {
            key_wrap: keys.map(|keys| Arc::new(FolderKeys(keys)) as Arc<dyn KeyWrap>),
            capabilities,
            server_name: Some(server_name),
            trust: Some(assignment.trust.clone()),
            expected: assignment.expected.clone(),
            ..AgentOptions::new(assignment.control.clone(), credential, directory)
        };
        Agent::new(options).map_err(RoleError::new)
    }
}

#[async_trait]
impl RoleRunner for Roles {
    async fn run(&self, start: Start) -> Result<(), RoleError> {
        let Start {
            workload,
            ordinal,
            identity,
            credentials,
            control,
            trust,
            shutdown,
        } = start;
        let work = match workload.task {
            Task::Broker => Work::Broker,
            Task::Connector(task) => Work::Connector(task.protocol),
            Task::Dataflow => Work::Dataflow,
            Task::Simulator => Work::Simulator,
            Task::Cloud => Work::Cloud,
        };
        let assignment = Assignment {
            name: workload.role,
            ordinal,
            work,
            expected: Some(identity),
            credentials,
            control,
            trust,
            shutdown,
        };
        self.work(assignment).await
    }
}
