//! The role's end of the control session.

mod apply;
mod credentials;
mod link;
mod outbox;
pub(super) mod seal;
mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use foreshore_runtime::Shutdown;
use foreshore_tls::{Fingerprint, Identity, RoleIdentity, ServerName, TrustBundle};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tracing::info;

use self::{
    credentials::RoleCredentials,
    link::Link,
    outbox::{Limits, Outbox},
    seal::Seal,
    store::PlanStore,
};
pub use self::{outbox::Reporter, seal::KeyWrap};
use crate::{
    enroll::{CredentialError, CredentialSource},
    plan::ResourceKey,
    report::Nack,
    resource::Resource,
};

/// Changes that wait for the role, each of at most one mebibyte.
const CHANGES: usize = 8;

/// How a role reaches the operator, and where it keeps what it needs without it.
#[derive(Clone)]
pub struct AgentOptions {
    /// Addresses of operators, as `host:port`; a name with several addresses counts as each of them. The first that
    /// leads is used.
    pub addresses: Vec<String>,
    /// The name that the operator's certificate is for, where it is not the host of the address.
    pub server_name: Option<ServerName<'static>>,
    /// Gives the bootstrap credential.
    pub credential: Arc<dyn CredentialSource>,
    /// The roots to trust at the first start; later those of the operator count. `None` when a bundle is stored.
    pub trust: Option<TrustBundle>,
    /// Who this role is, where it was told: certificates that are stored for someone else are not used then. It is
    /// never shown to the operator.
    pub expected: Option<RoleIdentity>,
    /// Directory for certificate, key and last good plan. Made with mode 0700 when it does not exist.
    pub directory: PathBuf,
    /// Wraps the key that all in the directory is sealed with; without it, that key is in the directory too.
    pub key_wrap: Option<Arc<dyn KeyWrap>>,
    /// Name and version of this program.
    pub software: String,
    /// What this role is capable of, beyond what its protocol version says.
    pub capabilities: BTreeSet<String>,
    /// Shortest and longest wait between two rounds of the addresses. Default: 200 ms and 15 s.
    pub retry: (Duration, Duration),
    /// How long reports are gathered before they are sent; answers to resources are sent at once. Default: 100 ms.
    pub report_interval: Duration,
    /// Most resources in force. Default: 20,000.
    pub max_resources: usize,
    /// Most reports, schemas and finds that are current at a time. Default: 50,000.
    pub max_reports: usize,
    /// About how many bytes all of them may have. Default: 32 MiB.
    pub max_report_bytes: usize,
}

impl AgentOptions {
    /// Options with the defaults, for an operator at `addresses`.
    #[must_use]
    pub fn new(addresses: Vec<String>, credential: Arc<dyn CredentialSource>, directory: PathBuf) -> Self {
        Self {
            addresses,
            server_name: None,
            credential,
            trust: None,
            expected: None,
            directory,
            key_wrap: None,
            software: concat!("foreshore ", env!("CARGO_PKG_VERSION")).to_owned(),
            capabilities: BTreeSet::new(),
            retry: (Duration::from_millis(200), Duration::from_secs(15)),
            report_interval: Duration::from_millis(100),
            max_resources: 20_000,
            max_reports: 50_000,
            max_report_bytes: 32 * 1024 * 1024,
        }
    }
}

/// One step from what is in force to what shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A resource shall be in force, in place of an earlier version.
    Set(Resource),
    /// A resource shall be gone.
    Remove(ResourceKey),
    /// All that is desired has been given: from the last good plan, or by the operator.
    SnapshotComplete,
}

/// What puts a plan in force.
#[async_trait]
pub trait Role: Send {
    /// Takes one step. What others refer to comes before them and goes after them.
    ///
    /// Returning `Ok` says that the change is in force as far as it depends on this role: a machine that is switched
    /// off is a matter of reports, not of refusal. It should return soon, since nothing else is applied meanwhile.
    ///
    /// # Errors
    /// The refusal of this change alone, which must leave everything as it was: the earlier version of the resource
    /// stays in force.
    async fn apply(&mut self, change: Change) -> Result<(), Nack>;
}

/// How the session stands, for `/healthz` and for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// It was not tried yet.
    Starting,
    /// A session runs.
    Connected {
        /// With which operator.
        address: String,
        /// Since when.
        since: Timestamp,
    },
    /// No session runs; it is tried again.
    Disconnected {
        /// A constant ([`Error::code`]): `Unreachable`, `Unavailable` for a standby or an operator that is full,
        /// `SessionLost`, `CertificateUntrusted`, `CredentialRefused`, …
        reason: &'static str,
        /// What happened, for people.
        message: String,
    },
}

/// How the agent of a role stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentStatus {
    /// The session.
    pub link: LinkState,
    /// Resources in force.
    pub in_force: usize,
    /// Resources of the present plan that the role refused.
    pub refused: usize,
}

/// Why an agent can't work at all. Everything that may pass by itself is a [`LinkState`] instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no address to dial.
    #[error("no address of an operator is given")]
    NoAddress,
    /// There is no root to trust.
    #[error("no trust bundle is given, and none is stored")]
    NoTrust,
    /// Certificates, keys or their files can't be used.
    #[error(transparent)]
    Tls(#[from] foreshore_tls::Error),
    /// No connection.
    #[error(transparent)]
    Transport(#[from] crate::transport::Error),
    /// There is no bootstrap credential.
    #[error("no bootstrap credential: {0}")]
    Credential(#[from] CredentialError),
    /// The operator gave no certificate.
    #[error("enrolment failed: {reason}")]
    Enroll {
        /// What kind of failure.
        code: tonic::Code,
        /// What the operator says.
        reason: String,
    },
    /// The session ended with an error.
    #[error("session failed: {reason}")]
    Session {
        /// What kind of failure.
        code: tonic::Code,
        /// What the operator says.
        reason: String,
    },
    /// The operator ended the session.
    #[error("the operator ended the session: {reason}: {message}")]
    Goodbye {
        /// A constant.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// The operator said something that makes no sense.
    #[error("the operator's message makes no sense: {reason}")]
    Protocol {
        /// What.
        reason: String,
    },
}

impl Error {
    fn protocol(reason: impl ToString) -> Self {
        Self::Protocol {
            reason: reason.to_string(),
        }
    }

    /// A constant for [`LinkState::Disconnected`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        use tonic::Code;
        match self {
            Self::NoAddress => "NoAddress",
            Self::NoTrust => "NoTrust",
            Self::Tls(_) => "CertificateUnusable",
            Self::Transport(crate::transport::Error::Refused { refusal, .. }) => refusal.code(),
            Self::Transport(_) => "Unreachable",
            Self::Credential(_) => "NoCredential",
            Self::Enroll {
                code: Code::Unavailable,
                ..
            }
            | Self::Session {
                code: Code::Unavailable,
                ..
            } => "Unavailable",
            Self::Enroll { .. } => "CredentialRefused",
            Self::Session {
                code: Code::FailedPrecondition,
                ..
            } => "ProtocolUnsupported",
            Self::Session { .. } => "SessionLost",
            Self::Goodbye { reason, .. } => reason,
            Self::Protocol { .. } => "ProtocolError",
        }
    }
}

/// What is in force; shared by the part that applies and the part that talks.
type InForce = Arc<Mutex<BTreeMap<ResourceKey, (u64, Fingerprint)>>>;

/// Keeps a role in step with its plan: starts it from the last good one, follows the operator when it is there.
pub struct Agent {
    options: AgentOptions,
    credentials: RoleCredentials,
    seal: Arc<Seal>,
    store: PlanStore,
    outbox: Arc<Outbox>,
    status: watch::Sender<AgentStatus>,
}

impl Agent {
    /// Takes up what is stored in the directory. Reads files: small ones, at the start of a process.
    ///
    /// # Errors
    /// [`Error::NoAddress`], [`Error::NoTrust`], [`Error::Tls`] when the directory can't be used, a file with a key may be
    /// read by others, or the key that wraps the one in the directory is not there.
    pub fn new(options: AgentOptions) -> Result<Self, Error> {
        if options.addresses.is_empty() {
            return Err(Error::NoAddress);
        }
        foreshore_tls::create_private_directory(&options.directory)?;
        let seal = Arc::new(Seal::open(&options.directory, options.key_wrap.clone())?);
        let credentials = RoleCredentials::open(
            &options.directory,
            options.trust.clone(),
            options.expected.as_ref(),
            Arc::clone(&options.credential),
            Arc::clone(&seal),
        )?;
        let store = PlanStore::open(&options.directory, Arc::clone(&seal))?;
        let limits = Limits {
            entries: options.max_reports,
            bytes: options.max_report_bytes,
        };
        let status = watch::Sender::new(AgentStatus {
            link: LinkState::Starting,
            in_force: 0,
            refused: 0,
        });
        Ok(Self {
            options,
            credentials,
            seal,
            store,
            outbox: Arc::new(Outbox::new(limits)),
            status,
        })
    }

    /// Tells the operator how things are.
    #[must_use]
    pub fn reporter(&self) -> Reporter {
        Reporter::new(Arc::clone(&self.outbox))
    }

    /// The identity of the role, which others build mutual TLS from. It has no certificate until the role has
    /// enrolled: wait for that with [`Identity::subscribe`].
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.credentials.identity().clone()
    }

    /// How the agent stands.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<AgentStatus> {
        self.status.subscribe()
    }

    /// Runs a role until the shutdown begins: first from the last good plan, then with the operator, again and again.
    ///
    /// # Errors
    /// [`Error::Tls`] when the stored plan can't be read.
    pub async fn run<R: Role>(self, role: R, shutdown: Shutdown) -> Result<(), Error> {
        let Self {
            options,
            credentials,
            seal,
            store,
            outbox,
            status,
        } = self;
        let _wrapping = foreshore_runtime::spawn("key of the plan", seal.keep_wrapped(shutdown.clone()));
        let in_force = InForce::default();
        let (changes, incoming) = mpsc::channel(CHANGES);
        let mut applier = apply::Applier {
            role,
            store: Arc::new(store),
            in_force: Arc::clone(&in_force),
            refused: BTreeMap::new(),
            passing: BTreeMap::new(),
            doubtful: BTreeSet::new(),
            outbox: Arc::clone(&outbox),
            status: status.clone(),
        };
        let replayed = applier.replay(options.max_resources, &shutdown).await?;
        if replayed > 0 {
            info!(resources = replayed, "last good plan is in force");
        }
        let link = Link {
            options,
            credentials,
            in_force,
            changes,
            outbox,
            status,
            seen: None,
            last: None,
        };
        let talking = foreshore_runtime::spawn("control link", link.run(shutdown.clone()));
        applier.run(incoming, &shutdown).await;
        // The link takes its leave, within the time that the shutdown gives.
        drop(shutdown.or_deadline(talking).await);
        Ok(())
    }
}
