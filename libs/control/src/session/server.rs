//! The operator's end of the control session.

mod deltas;
mod registry;
mod service;
mod stream;

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use foreshore_runtime::Shutdown;
use foreshore_tls::{
    CertificateAuthority, CertificateChain, CertificateRequest, ClientAuth, Fingerprint, Identity,
    RoleIdentity, ServerName, Validity,
};
use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
};
use tonic::service::Routes;

use self::registry::Registry;
pub use self::registry::{PlanError, RoleStatus, SessionStatus};
use super::LARGEST_MESSAGE;
pub use super::wire::ResourceVersion;
use crate::{
    enroll::Authenticator,
    facts::RoleFacts,
    handover::HandOver,
    plan::ResourceKey,
    proto,
    report::{Aspect, Discovered, Nack, Report, Schema},
    resource::Resource,
    transport::{self, ServeOptions, serve_tls},
};

/// Names the role that a plan is for: one running instance of a role.
pub type RoleKey = RoleIdentity;

/// How to serve.
#[derive(Debug, Clone)]
pub struct ControlOptions {
    /// Name and version of this program, for the logs of roles.
    pub software: String,
    /// Events that wait for the operator; beyond it the sessions wait. Default: 1,024.
    pub events: usize,
    /// Most resources of one role. Default: 20,000.
    pub max_resources: usize,
    /// Most sessions at a time. Default: 4,096.
    pub max_sessions: usize,
    /// Most enrolments at a time. Default: 64.
    pub max_enrolments: usize,
    /// How long a role may take to say what it is and has. Default: 30 s.
    pub hello_timeout: Duration,
}

impl Default for ControlOptions {
    fn default() -> Self {
        Self {
            software: concat!("foreshore ", env!("CARGO_PKG_VERSION")).to_owned(),
            events: 1024,
            max_resources: 20_000,
            max_sessions: 4096,
            max_enrolments: 64,
            hello_timeout: Duration::from_secs(30),
        }
    }
}

/// Says by which DNS names and addresses a role is dialled; none for a role that serves nothing.
pub type ServerNames = dyn Fn(&RoleIdentity) -> Vec<ServerName<'static>> + Send + Sync;

/// What certificates are issued with.
#[derive(Clone)]
pub struct Authority {
    certificates: Arc<CertificateAuthority>,
    names: Arc<ServerNames>,
}

impl Authority {
    /// Issues with `certificates`, and gives each role the names that `names` says.
    pub fn new(
        certificates: Arc<CertificateAuthority>,
        names: impl Fn(&RoleIdentity) -> Vec<ServerName<'static>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            certificates,
            names: Arc::new(names),
        }
    }

    /// The authority that signs.
    #[must_use]
    pub fn certificates(&self) -> &Arc<CertificateAuthority> {
        &self.certificates
    }

    fn issue(
        &self,
        request: &CertificateRequest,
        role: &RoleIdentity,
    ) -> Result<CertificateChain, foreshore_tls::Error> {
        self.certificates
            .issue(request, role, &(self.names)(role), Timestamp::now())
    }
}

/// What happened in the session of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// Which role, from its certificate.
    pub role: RoleIdentity,
    /// What happened.
    pub what: Observation,
}

/// Kinds of [`Observed`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Observation {
    /// A session began. Whatever this role reported in an earlier session is void: it now reports all that is so.
    Connected {
        /// Name and version of its program.
        software: String,
        /// What it is capable of.
        capabilities: BTreeSet<String>,
        /// Where it dials from.
        address: SocketAddr,
    },
    /// Follows `Connected`: what the role has in force.
    Holds {
        /// Every resource in force, in no order.
        resources: Vec<ResourceVersion>,
    },
    /// A resource is in force.
    Ack {
        /// Which, and in which version.
        resource: ResourceVersion,
    },
    /// A resource is gone.
    Removed {
        /// Which.
        key: ResourceKey,
    },
    /// A resource, or its removal, was refused: what the role had stays in force.
    Nack {
        /// Which, and in which version.
        resource: ResourceVersion,
        /// Why.
        nack: Nack,
    },
    /// A resource was not sent, because the role is too old for it: what it had stays in force. The object that the
    /// resource was made from is not accepted there.
    Unsupported {
        /// Which, and in which version.
        resource: ResourceVersion,
        /// The capabilities that the role lacks.
        missing: Vec<String>,
    },
    /// How a part of an object is.
    Report(Report),
    /// A part of an object is no more.
    Retracted {
        /// The object.
        object: ResourceKey,
        /// The part.
        aspect: Aspect,
    },
    /// What a part of an object sends or takes.
    Schema(Schema),
    /// Something was found.
    Discovered(Discovered),
    /// Where the role stands with a device.
    HandOver(HandOver),
    /// Where the role answers, and whom to trust there: all of it.
    Facts(RoleFacts),
    /// The role trusts this bundle now ([`foreshore_tls::TrustBundle::fingerprint`]).
    Trusts {
        /// Its fingerprint.
        bundle: Fingerprint,
    },
    /// The role has a new certificate.
    Renewed {
        /// When it is valid.
        validity: Validity,
    },
    /// The session ended. What is in force at the role stays in force.
    Disconnected {
        /// Why, for people.
        reason: String,
        /// Whether the role said that it would end.
        on_purpose: bool,
    },
}

/// Serves enrolment and sessions.
pub struct ControlServer {
    shared: Arc<Shared>,
}

/// What the operator does with sessions. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct ControlHandle {
    shared: Arc<Shared>,
}

struct Shared {
    options: ControlOptions,
    authority: Authority,
    authenticator: Arc<dyn Authenticator>,
    registry: Registry,
    /// The epoch of this leader, or none on a standby.
    leadership: watch::Sender<Option<u64>>,
    events: mpsc::Sender<Observed>,
    enrolments: Semaphore,
    sessions: Arc<Semaphore>,
}

impl ControlServer {
    /// A server that stands by until [`ControlHandle::lead`], and the events of its sessions.
    ///
    /// Whoever takes the events must go on taking them: when they pile up, sessions wait.
    #[must_use]
    pub fn new(
        options: ControlOptions,
        authority: Authority,
        authenticator: Arc<dyn Authenticator>,
    ) -> (Self, mpsc::Receiver<Observed>) {
        let (events, observed) = mpsc::channel(options.events.max(1));
        let shared = Shared {
            registry: Registry::new(options.max_resources),
            enrolments: Semaphore::new(options.max_enrolments),
            sessions: Arc::new(Semaphore::new(options.max_sessions)),
            leadership: watch::Sender::new(None),
            options,
            authority,
            authenticator,
            events,
        };
        (
            Self {
                shared: Arc::new(shared),
            },
            observed,
        )
    }

    /// What the operator does with sessions.
    #[must_use]
    pub fn handle(&self) -> ControlHandle {
        ControlHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Serves until the shutdown begins; then says goodbye to every role.
    ///
    /// `identity` must trust the authority's bundle and nothing else: who a role is comes from its certificate.
    ///
    /// # Errors
    /// [`transport::Error`] when the server can't be set up.
    pub async fn serve(
        &self,
        listener: TcpListener,
        identity: &Identity,
        shutdown: &Shutdown,
    ) -> Result<(), transport::Error> {
        let service = service::Service {
            shared: Arc::clone(&self.shared),
            shutdown: shutdown.clone(),
        };
        let service = proto::control_server::ControlServer::new(service)
            .max_decoding_message_size(LARGEST_MESSAGE)
            .max_encoding_message_size(LARGEST_MESSAGE);
        // A role that enrolls has no certificate yet; a session without one is refused by the service.
        let options = ServeOptions {
            client_auth: ClientAuth::Optional,
            max_connections: self.shared.options.max_sessions + self.shared.options.max_enrolments,
            max_requests: 16,
            ..ServeOptions::default()
        };
        serve_tls(listener, identity, &options, Routes::new(service), shutdown).await
    }
}

impl ControlHandle {
    /// Says what a role shall have in force: all of it. The session sends what changed, now or when the role connects.
    ///
    /// Until this was called for a role, it is sent nothing and keeps what it has.
    ///
    /// # Errors
    /// [`PlanError`]; the earlier plan stays.
    pub fn set_plan(&self, role: &RoleKey, resources: Vec<Resource>) -> Result<(), PlanError> {
        self.shared.registry.set_plan(role, resources)
    }

    /// Forgets a role that is no longer wanted, and ends its session.
    pub fn remove_role(&self, role: &RoleKey) {
        self.shared.registry.remove_role(role);
    }

    /// Begins to serve, as the leader of an epoch. Epochs grow from leader to leader: a role that has seen a larger
    /// one does not listen to this server.
    pub fn lead(&self, epoch: u64) {
        self.shared.leadership.send_replace(Some(epoch));
    }

    /// Ends all sessions and serves no more: roles try the next address.
    pub fn stand_by(&self) {
        self.shared.leadership.send_replace(None);
    }

    /// Every role that has a plan or a session.
    #[must_use]
    pub fn roles(&self) -> Vec<RoleStatus> {
        self.shared.registry.roles()
    }
}
