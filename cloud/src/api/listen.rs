//! Serving HTTP, with TLS or without: a bounded number of connections, none of which may stall.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use foreshore_runtime::Shutdown;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

/// Connections at a time; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 1_024;

/// How long a handshake, and the head of a request, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves requests until the shutdown begins, and lets those that run finish until its deadline.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    shutdown: Shutdown,
) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accepting = async {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, address)) => {
                    let (tls, router, shutdown) = (tls.clone(), router.clone(), shutdown.clone());
                    let connection = connection(stream, address, tls, router, shutdown, permit);
                    foreshore_runtime::spawn("http connection", connection).detach();
                }
                Err(error) => {
                    // Out of file descriptors, most likely: trying again at once would spin.
                    warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    };
    shutdown.or_begun(accepting).await;
    // All permits are back when all connections have ended.
    let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
    drop(shutdown.or_deadline(connections.acquire_many(all)).await);
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    router: Router,
    shutdown: Shutdown,
    _permit: OwnedSemaphorePermit,
) {
    let Some(tls) = tls else {
        return requests(stream, address, router, shutdown).await;
    };
    match timeout(PATIENCE, tls.accept(stream)).await {
        Ok(Ok(stream)) => requests(stream, address, router, shutdown).await,
        Ok(Err(error)) => debug!(%address, %error, "handshake failed"),
        Err(_) => debug!(%address, "handshake took too long"),
    }
}

async fn requests<S>(stream: S, address: SocketAddr, router: Router, shutdown: Shutdown)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = std::pin::pin!(serving);
    let ended = match shutdown.or_begun(serving.as_mut()).await {
        Some(ended) => ended,
        None => {
            serving.as_mut().graceful_shutdown();
            shutdown.or_deadline(serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%address, %error, "http connection ended");
    }
}
