//! Dialling.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use foreshore_tls::{Identity, Refusal, Role, RoleIdentity, ServerName, peer_identity};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{Service, service_fn};

use super::{ALPN_HTTP2, Error, Keepalive};

/// How to dial.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// For name resolution, TCP, TLS and the first word of the server together. Default: 10 s.
    pub timeout: Duration,
    /// The role that the server must be by its certificate, besides the name: on one machine all roles are reached
    /// under the same name. Default: any.
    pub expected_role: Option<Role>,
    /// How a server that vanished is noticed.
    pub keepalive: Keepalive,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(10),
            expected_role: None,
            keepalive: Keepalive::default(),
        }
    }
}

/// A connection as HTTP/2 uses it. The reader holds the bytes that [`dial`] waited for.
type Connection = BufReader<TlsStream<TcpStream>>;

/// Connects to `address` (`host:port`) and returns a channel once both ends have accepted each other.
///
/// The server's certificate must be for `server_name`, and ours is the one that `identity` holds at the moment of the
/// connection. When the connection breaks, the channel dials anew with the next request.
///
/// # Errors
/// [`Error::Refused`] when either end refused the other's certificate, [`Error::Connect`], [`Error::Address`].
pub async fn channel(
    address: &str,
    identity: &Identity,
    server_name: ServerName<'static>,
    options: &ConnectOptions,
) -> Result<Channel, Error> {
    let (endpoint, connector) = prepare(address, identity, server_name, options)?;
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| explain(address, &error))
}

/// As [`channel`], but connects with the first request; its error then comes as that request's status.
///
/// # Errors
/// [`Error::Address`], [`Error::Tls`].
pub fn lazy_channel(
    address: &str,
    identity: &Identity,
    server_name: ServerName<'static>,
    options: &ConnectOptions,
) -> Result<Channel, Error> {
    let (endpoint, connector) = prepare(address, identity, server_name, options)?;
    Ok(endpoint.connect_with_connector_lazy(connector))
}

type Dialling = Pin<Box<dyn Future<Output = io::Result<TokioIo<Connection>>> + Send>>;

fn prepare(
    address: &str,
    identity: &Identity,
    server_name: ServerName<'static>,
    options: &ConnectOptions,
) -> Result<
    (
        Endpoint,
        impl Service<Uri, Response = TokioIo<Connection>, Error = io::Error, Future = Dialling> + use<>,
    ),
    Error,
> {
    // The URI names the host in requests; where to dial is the connector's affair.
    let endpoint = Endpoint::from_shared(format!("https://{address}")).map_err(|_| Error::Address {
        found: address.to_owned(),
    })?;
    if endpoint.uri().port_u16().is_none() {
        return Err(Error::Address {
            found: address.to_owned(),
        });
    }
    let endpoint = endpoint
        .http2_keep_alive_interval(options.keepalive.interval)
        .keep_alive_timeout(options.keepalive.timeout)
        .keep_alive_while_idle(true);

    let mut config = identity.client_config()?;
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let (address, limit, role) = (address.to_owned(), options.timeout, options.expected_role);
    let connector = service_fn(move |_: Uri| -> Dialling {
        let (address, connector, server_name) = (address.clone(), connector.clone(), server_name.clone());
        Box::pin(async move {
            match timeout(limit, dial(&address, &connector, server_name, role)).await {
                Ok(connection) => connection.map(TokioIo::new),
                Err(_) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {limit:?}"),
                )),
            }
        })
    });
    Ok((endpoint, connector))
}

/// Waits for the first byte of the server (its HTTP/2 settings): in TLS 1.3 a client learns only with it whether its
/// certificate was accepted (RFC 8446, section 4.4.2.4). Without this, a refusal would show up later as a broken
/// connection without a reason.
async fn dial(
    address: &str,
    connector: &TlsConnector,
    server_name: ServerName<'static>,
    expected_role: Option<Role>,
) -> io::Result<Connection> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let stream = connector.connect(server_name, stream).await?;
    if let Some(expected) = expected_role {
        let presented = peer_identity(stream.get_ref().1.peer_certificates().unwrap_or_default());
        if presented.as_ref().map(RoleIdentity::role) != Some(expected) {
            return Err(io::Error::other(Refusal::WrongRole { expected, presented }));
        }
    }
    let mut connection = BufReader::new(stream);
    if connection.fill_buf().await?.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "closed by the peer after the handshake",
        ));
    }
    Ok(connection)
}

fn explain(address: &str, error: &tonic::transport::Error) -> Error {
    let address = address.to_owned();
    match Refusal::find(error) {
        Some(refusal) => Error::Refused { address, refusal },
        None => Error::Connect {
            address,
            reason: innermost(error),
        },
    }
}

/// The last error of a chain says what happened; those above it say where.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
