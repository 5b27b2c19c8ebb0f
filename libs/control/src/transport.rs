//! gRPC over mutual TLS, with identities that are exchanged while connections live.
//!
//! Used by the control session, the queue protocol and EdgeLink. HTTP/2 pings run on both sides, so that a peer that
//! vanished without closing is noticed within half a minute.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use foreshore_tls::{CertificateDer, Refusal, RoleIdentity};

pub use client::{ConnectOptions, channel, lazy_channel};
pub use server::{ServeOptions, serve_tls};

/// How a peer that vanished is noticed (RFC 9113, section 6.7).
#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    /// How often a ping is sent, also while nothing else is. Default: 15 s.
    pub interval: Duration,
    /// How long its answer may take. Default: 10 s.
    pub timeout: Duration,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(15),
            timeout: Duration::from_secs(10),
        }
    }
}

/// The protocol name of HTTP/2 over TLS (RFC 9113, section 3.2).
const ALPN_HTTP2: &[u8] = b"h2";

/// The other end of a connection that [`serve_tls`] accepted; found in the extensions of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The role that its certificate names, verified against the bundle of the server's identity. `None` for a peer
    /// without certificate, where the server allows that, or with one that names no role.
    pub identity: Option<RoleIdentity>,
    /// Its certificates, leaf first.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// Its address.
    pub address: SocketAddr,
}

impl Peer {
    /// The peer of a request.
    #[must_use]
    pub fn of<T>(request: &tonic::Request<T>) -> Option<&Self> {
        request.extensions().get()
    }
}

/// Why a connection could not be made or served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An address is not of the form `host:port`.
    #[error("address {found:?} is not of the form host:port")]
    Address {
        /// What was found.
        found: String,
    },
    /// No connection within the time allowed, or none at all.
    #[error("no connection to {address}: {reason}")]
    Connect {
        /// Where to.
        address: String,
        /// What the operating system or the peer says.
        reason: String,
    },
    /// One end refused the other's certificate.
    #[error("no connection to {address}: {refusal}")]
    Refused {
        /// Where to.
        address: String,
        /// Who refused whom, and why.
        #[source]
        refusal: Refusal,
    },
    /// The TLS configuration can't be made.
    #[error(transparent)]
    Tls(#[from] foreshore_tls::Error),
    /// The server ended with an error.
    #[error("grpc server: {0}")]
    Serve(#[source] tonic::transport::Error),
}
