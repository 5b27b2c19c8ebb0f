//! The operator's end of all control sessions: authority, server, own certificate.

use std::{net::SocketAddr, sync::Arc};

use foreshore_control::{
    Authority, ControlHandle, ControlOptions, ControlServer, Observed, enroll::Authenticator,
};
use foreshore_runtime::Shutdown;
use foreshore_tls::{
    AuthorityView, CertificateAuthority, Identity, Role, RoleIdentity, ServerName, TrustBundle,
};
use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

use crate::role::RoleName;

/// Name in the operator's certificate.
pub const SERVER_NAME: &str = "operator.foreshore.internal";

/// Where and how to serve.
pub struct Options {
    /// Address to bind; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Issues the certificates of roles.
    pub authority: Arc<CertificateAuthority>,
    /// Judges bootstrap credentials.
    pub authenticator: Arc<dyn Authenticator>,
    /// Bounds of the server.
    pub server: ControlOptions,
    /// Tells this operator from others: the pod's UID, or one of the process.
    pub uid: String,
}

/// Why the control server can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The authority, or a certificate of it, can't be had.
    #[error("certificate authority: {0}")]
    Authority(#[from] foreshore_tls::Error),
    /// The address can't be bound.
    #[error("control server can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The server can't be set up.
    #[error("control server: {0}")]
    Serve(#[from] foreshore_control::transport::Error),
}

/// How roles reach the control server.
#[derive(Clone)]
pub struct ControlAccess {
    /// Addresses, `host:port`.
    pub addresses: Vec<String>,
    /// Whom to trust.
    pub trust: Trust,
}

#[cfg(test)]
impl ControlAccess {
    /// Of a server that does not exist.
    pub(crate) fn for_tests() -> Self {
        let authority =
            CertificateAuthority::create(foreshore_tls::AuthorityOptions::default(), Timestamp::now());
        let trust = Trust(Arc::new(authority.expect("random numbers")));
        Self {
            addresses: Vec::new(),
            trust,
        }
    }
}

/// The roots of the authority, as they are when they are asked for.
#[derive(Clone)]
pub struct Trust(Arc<CertificateAuthority>);

impl From<Arc<CertificateAuthority>> for Trust {
    fn from(authority: Arc<CertificateAuthority>) -> Self {
        Self(authority)
    }
}

impl Trust {
    /// The roots to trust now.
    #[must_use]
    pub fn bundle(&self) -> TrustBundle {
        self.0.bundle()
    }

    /// Follows them.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<AuthorityView> {
        self.0.subscribe()
    }
}

/// The control server, bound and not serving yet: roles that dial it wait.
pub struct ControlPlane {
    pub(crate) handle: ControlHandle,
    pub(crate) events: mpsc::Receiver<Observed>,
    pub(crate) authority: Arc<CertificateAuthority>,
    server: ControlServer,
    listener: TcpListener,
    address: SocketAddr,
    own: RoleIdentity,
    names: Vec<ServerName<'static>>,
    identity: Identity,
}

impl ControlPlane {
    /// Opens the authority and binds the address.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn bind(options: Options) -> Result<Self, Error> {
        let Options {
            listen,
            authority,
            authenticator,
            server,
            uid,
        } = options;
        let now = Timestamp::now();
        let own = RoleIdentity::new(Role::Operator, "foreshore", "operator", uid)?;
        let names: Vec<_> = names(SERVER_NAME);
        let credentials = authority.issue_credentials(&own, &names, now)?;
        let identity = Identity::new(&credentials, authority.bundle())?;
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|source| Error::Listen {
            address: listen,
            source,
        })?;
        let address = listener.local_addr().map_err(|source| Error::Listen {
            address: listen,
            source,
        })?;
        let issuing = Authority::new(Arc::clone(&authority), names_of);
        let (server, events) = ControlServer::new(server, issuing, authenticator);
        let handle = server.handle();
        Ok(Self {
            handle,
            events,
            authority,
            server,
            listener,
            address,
            own,
            names,
            identity,
        })
    }

    /// How roles of this machine reach the server.
    #[must_use]
    pub fn access(&self) -> ControlAccess {
        ControlAccess {
            addresses: vec![self.address.to_string()],
            trust: Trust(Arc::clone(&self.authority)),
        }
    }

    /// The authority that issues certificates of roles.
    #[must_use]
    pub fn authority(&self) -> &Arc<CertificateAuthority> {
        &self.authority
    }

    /// Splits off what serves; it runs until the shutdown begins.
    pub(crate) fn split(
        self,
        shutdown: Shutdown,
    ) -> (
        ControlHandle,
        mpsc::Receiver<Observed>,
        Arc<CertificateAuthority>,
        impl Future<Output = Result<(), Error>>,
    ) {
        let Self {
            handle,
            events,
            authority,
            server,
            listener,
            address: _,
            own,
            names,
            identity,
        } = self;
        let issuer = Arc::clone(&authority);
        let serving = async move {
            tokio::select! {
                served = server.serve(listener, &identity, &shutdown) => Ok(served?),
                () = identity.keep_fresh(&issuer, &own, &names) => Ok(()),
            }
        };
        (handle, events, authority, serving)
    }
}

/// The DNS name by which a role is dialled.
fn names_of(identity: &RoleIdentity) -> Vec<ServerName<'static>> {
    match identity.role() {
        Role::Broker | Role::Cloud | Role::Simulator => names(&RoleName::of(identity).server_name()),
        // They serve nobody.
        _ => Vec::new(),
    }
}

fn names(name: &str) -> Vec<ServerName<'static>> {
    // Kubernetes' names are DNS labels, so that this one is always a DNS name.
    ServerName::try_from(name.to_owned()).into_iter().collect()
}
