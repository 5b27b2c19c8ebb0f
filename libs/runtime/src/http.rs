//! `/metrics`, `/healthz` and what Kubernetes probes.

use std::net::SocketAddr;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{HealthRegistry, Metrics, Shutdown, Task, metrics::CONTENT_TYPE, spawn};

/// Why the endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {address} for /metrics and /healthz: {source}")]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// The operating system's answer.
    pub source: std::io::Error,
}

/// An endpoint that answers.
#[derive(Debug)]
pub struct HttpServer {
    /// Where it listens; the port that was taken when port 0 was asked for.
    pub address: SocketAddr,
    /// Ends with the shutdown.
    pub task: Task<()>,
}

#[derive(Clone)]
struct App {
    health: HealthRegistry,
    metrics: Metrics,
}

/// Serves `/metrics` (OpenMetrics), `/healthz` and `/readyz` (200 or 503, body [`crate::health::Health`]) and `/livez`
/// (200 as long as anything is answered) until the shutdown begins.
///
/// # Errors
/// When the address can't be listened on.
pub async fn serve_http(
    address: SocketAddr,
    health: HealthRegistry,
    metrics: Metrics,
    shutdown: Shutdown,
) -> Result<HttpServer, BindError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| BindError { address, source })?;
    let address = listener
        .local_addr()
        .map_err(|source| BindError { address, source })?;
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
        .route("/readyz", get(healthz))
        .route("/livez", get(|| async { "ok\n" }))
        .with_state(App { health, metrics });
    let task = spawn("http", async move {
        // Scrapes are short: what is still open when the end begins is not worth waiting for.
        let serve = std::future::IntoFuture::into_future(axum::serve(listener, router));
        if let Some(Err(error)) = shutdown.or_begun(serve).await {
            tracing::error!(%error, "metrics endpoint ended");
        }
    });
    Ok(HttpServer { address, task })
}

async fn metrics_text(State(app): State<App>) -> Response {
    match app.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "a metric could not be encoded\n",
        )
            .into_response(),
    }
}

async fn healthz(State(app): State<App>) -> Response {
    let health = app.health.health();
    let status = if health.ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(health)).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }

    #[tokio::test]
    async fn serves_health_and_metrics_until_the_end_begins() {
        let (health, shutdown) = (HealthRegistry::new(), Shutdown::new());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = serve_http(any, health.clone(), Metrics::new(), shutdown.clone())
            .await
            .unwrap();

        let store = health.component("store");
        let (status, body) = get(server.address, "/healthz").await;
        assert_eq!(status, 503);
        assert!(
            body.contains(r#""store":{"ok":false,"reason":"starting"}"#),
            "{body}"
        );
        store.ok();
        assert_eq!(get(server.address, "/healthz").await.0, 200);
        let (status, body) = get(server.address, "/metrics").await;
        assert!(
            status == 200 && body.contains("foreshore_task_panics_total"),
            "{body}"
        );
        assert_eq!(get(server.address, "/other").await.0, 404);

        shutdown.begin(Duration::from_secs(10));
        server.task.await.unwrap();
    }

    #[tokio::test]
    async fn a_port_in_use_is_told() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = serve_http(address, HealthRegistry::new(), Metrics::new(), Shutdown::new())
            .await
            .unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
