//! Listening.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use foreshore_runtime::Shutdown;
use foreshore_tls::{ClientAuth, Identity, Refusal, peer_identity};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{
    service::Routes,
    transport::{Server, server::Connected},
};
use tracing::{debug, warn};

use super::{ALPN_HTTP2, Error, Keepalive, Peer};

/// How to listen.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// What clients must show. Default: a certificate.
    pub client_auth: ClientAuth,
    /// Connections at a time, those in their handshake included; more wait in the listener's backlog. Default: 4,096.
    pub max_connections: usize,
    /// How long a handshake may take. Default: 10 s.
    pub handshake_timeout: Duration,
    /// Requests at a time on one connection (HTTP/2 streams). Default: 256.
    pub max_requests: u32,
    /// How a client that vanished is noticed.
    pub keepalive: Keepalive,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            client_auth: ClientAuth::Required,
            max_connections: 4096,
            handshake_timeout: Duration::from_secs(10),
            max_requests: 256,
            keepalive: Keepalive::default(),
        }
    }
}

/// Serves gRPC services over TLS until the shutdown begins; then lets requests finish until its deadline and cuts the
/// rest.
///
/// A handshake that fails or stalls costs its own connection and no other. Dropping the future cuts all connections.
///
/// # Errors
/// [`Error::Tls`] when the identity makes no TLS configuration, [`Error::Serve`].
pub async fn serve_tls(
    listener: TcpListener,
    identity: &Identity,
    options: &ServeOptions,
    services: Routes,
    shutdown: &Shutdown,
) -> Result<(), Error> {
    let mut config = identity.server_config(options.client_auth)?;
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    let cut = CancellationToken::new();
    let acceptor = Acceptor {
        tls: TlsAcceptor::from(Arc::new(config)),
        handshake_timeout: options.handshake_timeout,
        cut: cut.clone(),
    };
    let (sender, accepted) = mpsc::channel(16);
    let accepting = foreshore_runtime::spawn(
        "tls accept",
        accept(
            listener,
            acceptor,
            Arc::new(Semaphore::new(options.max_connections)),
            sender,
        ),
    );
    let serving = Server::builder()
        .http2_keepalive_interval(Some(options.keepalive.interval))
        .http2_keepalive_timeout(Some(options.keepalive.timeout))
        .max_concurrent_streams(options.max_requests)
        .add_routes(services)
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), shutdown.begun());
    // Also when this future is dropped.
    let _cut = cut.drop_guard();
    let finished = shutdown.or_deadline(serving).await;
    accepting.abort();
    finished.unwrap_or(Ok(())).map_err(Error::Serve)
}

/// What every handshake needs.
#[derive(Clone)]
struct Acceptor {
    tls: TlsAcceptor,
    handshake_timeout: Duration,
    cut: CancellationToken,
}

async fn accept(
    listener: TcpListener,
    acceptor: Acceptor,
    connections: Arc<Semaphore>,
    accepted: mpsc::Sender<io::Result<Connection>>,
) {
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, address)) => {
                let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
                let handshake = async move {
                    if let Some(connection) = acceptor.handshake(stream, address, permit).await {
                        // The receiver is gone only when the server has ended.
                        drop(accepted.send(Ok(connection)).await);
                    }
                };
                foreshore_runtime::spawn("tls handshake", handshake).detach();
            }
            Err(error) => {
                // Out of file descriptors, most likely: trying again at once would spin.
                warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

impl Acceptor {
    async fn handshake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> Option<Connection> {
        let shaking_hands = async {
            stream.set_nodelay(true)?;
            self.tls.accept(stream).await
        };
        match timeout(self.handshake_timeout, shaking_hands).await {
            Ok(Ok(stream)) => Some(Connection::new(stream, address, &self.cut, permit)),
            Ok(Err(error)) => {
                match Refusal::find(&error) {
                    Some(refusal) => warn!(%address, reason = refusal.code(), "peer refused: {refusal}"),
                    None => debug!(%address, %error, "handshake failed"),
                }
                None
            }
            Err(_) => {
                debug!(%address, "handshake took too long");
                None
            }
        }
    }
}

/// An accepted connection that can be cut, since tonic can't end the connections that it serves.
struct Connection {
    stream: TlsStream<TcpStream>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    peer: Peer,
    /// Counts the connection until it is dropped.
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn new(
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        cut: &CancellationToken,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = Peer {
            identity: peer_identity(chain),
            chain: chain.into(),
            address,
        };
        Self {
            stream,
            cut: Box::pin(cut.clone().cancelled_owned()),
            peer,
            _permit: permit,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
