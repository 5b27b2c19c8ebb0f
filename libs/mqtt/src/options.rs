//! Where and how to connect.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use foreshore_record::Record;
use foreshore_tls::{Identity, ServerName};
use tokio_rustls::rustls::ClientConfig;

/// How a client connects and what it keeps on its way.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names the session at the server.
    pub client_id: String,
    /// Where the server is.
    pub target: Target,
    /// Which versions of MQTT are spoken.
    pub versions: Versions,
    /// User name and password, where the server asks for them.
    pub credentials: Option<Credentials>,
    /// Begins each connection without what the server remembers of earlier ones (MQTT 5.0, 3.1.2.4).
    pub clean_start: bool,
    /// How long the server remembers the session after a connection ends, in whole seconds.
    pub session_expiry: Duration,
    /// Longest silence on a connection; the server may ask for less. Zero for no bound.
    pub keep_alive: Duration,
    /// Longest wait for a connection, from the first packet to the server's acceptance.
    pub connect_timeout: Duration,
    /// Shortest wait between tries to connect.
    pub backoff_min: Duration,
    /// Longest wait between tries to connect.
    pub backoff_max: Duration,
    /// Largest packet that we take, in bytes.
    pub max_packet_size: u32,
    /// Messages that the server may send before we acknowledge the first.
    pub receive_maximum: u16,
    /// Messages that we send before the server acknowledges the first; the server may ask for less.
    pub window: u16,
    /// Published by the server when the connection ends without our saying so.
    pub will: Option<Record>,
    /// The server has spoken 5.0 to a client of these options, or of a clone of them.
    pub(crate) v5_was_spoken: Arc<AtomicBool>,
}

impl Options {
    /// A client without a memory at the server, of the given name.
    #[must_use]
    pub fn new(client_id: impl Into<String>, target: Target) -> Self {
        Self {
            client_id: client_id.into(),
            target,
            versions: Versions::V5,
            credentials: None,
            clean_start: true,
            session_expiry: Duration::ZERO,
            keep_alive: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
            max_packet_size: 16 << 20,
            receive_maximum: 256,
            window: 4096,
            will: None,
            v5_was_spoken: Arc::default(),
        }
    }
}

/// Which versions of MQTT are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// 5.0 only.
    V5,
    /// 3.1.1 only. Properties of messages do not travel, and the server remembers a session for as long as it likes.
    V311,
    /// 5.0, and 3.1.1 with a server that refuses that, or hangs up on it and never spoke it. Tried anew with each
    /// connection.
    V5OrV311,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Addresses (`host:port`) of the same server or cluster, tried in turn.
    pub addresses: Vec<String>,
    /// How the connection is secured.
    pub security: Security,
}

/// How a connection is secured.
#[derive(Clone)]
pub enum Security {
    /// Not at all.
    Plain,
    /// With TLS.
    Tls {
        /// Whom to trust, and which certificate to show. Read anew at each handshake.
        config: Arc<ClientConfig>,
        /// Name that the server's certificate must carry.
        server_name: ServerName<'static>,
    },
}

impl Security {
    /// Mutual TLS between roles of ours.
    ///
    /// # Errors
    /// When the cryptography provider lacks what TLS needs.
    pub fn mutual(
        identity: &Identity,
        server_name: ServerName<'static>,
    ) -> Result<Self, foreshore_tls::Error> {
        Ok(Self::Tls {
            config: Arc::new(identity.client_config()?),
            server_name,
        })
    }
}

impl PartialEq for Security {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain, Self::Plain) => true,
            (
                Self::Tls { config, server_name },
                Self::Tls {
                    config: other,
                    server_name: other_name,
                },
            ) => Arc::ptr_eq(config, other) && server_name == other_name,
            _ => false,
        }
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("Plain"),
            Self::Tls { server_name, .. } => f
                .debug_struct("Tls")
                .field("server_name", server_name)
                .finish_non_exhaustive(),
        }
    }
}

/// User name and password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password.
    pub password: Vec<u8>,
}

impl fmt::Debug for Credentials {
    /// Never shows the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}
