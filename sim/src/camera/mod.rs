//! A camera that looks at the line: ONVIF device, media, PTZ and events, and a snapshot that is drawn from the model.
//!
//! It keeps to ONVIF Core 23.12 and Profile S where a client can tell the difference: services are listed by both
//! `GetServices` and `GetCapabilities`, `GetSystemDateAndTime` needs no password, HTTP Digest and WS-UsernameToken are
//! accepted as configured, pull points expire. There is no video stream: `GetStreamUri` answers `ActionNotSupported`.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    faults::{Fault, FaultKind, Gate, GateControl},
    line::Line,
};

mod authentication;
mod device;
mod events;
mod font;
mod media;
mod picture;
mod ptz;
mod soap;
#[cfg(test)]
mod tests;

pub use authentication::Accepted;

/// Largest SOAP request that is read, in bytes.
const MAX_REQUEST: usize = 256 * 1024;

/// How the simulated camera is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where clients connect; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Name by which clients reach it, in its own URLs; the address where there is none.
    pub host: Option<String>,
    /// What its motions are drawn from.
    pub seed: u64,
    /// The one user it knows; `None` lets everybody in.
    pub user: Option<(String, String)>,
    /// How the user may be proved.
    pub accepted: Accepted,
    /// How far its clock is ahead of ours, in milliseconds; negative when behind.
    pub clock_skew_millis: i64,
    /// Mean time between two motions.
    pub motion_interval: Duration,
    /// Picture size in pixels.
    pub size: (u16, u16),
}

/// Why the simulated camera did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can't be listened on.
    #[error("simulated camera cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// What all services of the camera share.
pub(crate) struct Camera {
    options: Options,
    address: SocketAddr,
    line: Arc<Mutex<Line>>,
    ptz: Mutex<ptz::Head>,
    events: events::Hub,
    authentication: authentication::Verifier,
}

impl Camera {
    /// The time by the camera's own clock.
    fn now(&self) -> Timestamp {
        let now = Timestamp::now()
            .as_millisecond()
            .saturating_add(self.options.clock_skew_millis);
        Timestamp::from_millisecond(now).unwrap_or_else(|_| Timestamp::now())
    }

    /// Base of every address that it tells.
    fn base(&self) -> String {
        let Some(host) = &self.options.host else {
            return format!("http://{}", self.address);
        };
        format!("http://{host}:{}", self.address.port())
    }
}

/// A simulated camera that is bound and not yet running.
pub struct Service {
    camera: Arc<Camera>,
    gate: GateControl,
}

/// Injects faults and looks into the camera from outside.
#[derive(Clone)]
pub struct Handle {
    camera: Arc<Camera>,
    gate: GateControl,
}

// === impl Handle ===

impl Handle {
    /// Address of the device service.
    #[must_use]
    pub fn device_service(&self) -> String {
        format!("{}/onvif/device_service", self.camera.base())
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.camera.address
    }

    /// Where the head looks: pan, tilt and zoom.
    #[must_use]
    pub fn position(&self) -> (f64, f64, f64) {
        self.camera.ptz.lock().position(Timestamp::now())
    }

    /// Lets something move before the camera.
    pub fn move_something(&self) {
        self.camera.events.motion(true, self.camera.now());
    }

    /// Lets something go wrong; returns when it is over. A camera has no bad status codes.
    pub async fn inject(&self, fault: Fault) {
        info!(?fault, "injecting a fault");
        let duration = Duration::from_secs(fault.seconds.into());
        match fault.kind {
            FaultKind::DropConnections | FaultKind::Restart => {
                if fault.kind == FaultKind::Restart {
                    self.camera.events.forget();
                }
                self.gate.refuse(true);
                self.gate.cut();
                tokio::time::sleep(duration).await;
                self.gate.refuse(false);
            }
            FaultKind::Refuse => {
                self.gate.refuse(true);
                tokio::time::sleep(duration).await;
                self.gate.refuse(false);
            }
            FaultKind::Slow => {
                self.gate.delay(Duration::from_millis(fault.delay_millis.into()));
                tokio::time::sleep(duration).await;
                self.gate.delay(Duration::ZERO);
            }
            FaultKind::BadStatus => {}
        }
    }
}

// === impl Service ===

impl Service {
    /// Binds the address that clients connect to.
    ///
    /// # Errors
    /// [`Error::Listen`] when the address is in use or not ours.
    pub async fn bind(options: Options, line: Arc<Mutex<Line>>) -> Result<(Self, TcpListener), Error> {
        let listen = |source| Error::Listen {
            address: options.listen,
            source,
        };
        let listener = TcpListener::bind(options.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let authentication = authentication::Verifier::new(options.user.clone(), options.accepted);
        let camera = Arc::new(Camera {
            options,
            address,
            line,
            ptz: Mutex::new(ptz::Head::default()),
            events: events::Hub::default(),
            authentication,
        });
        Ok((
            Self {
                camera,
                gate: GateControl::default(),
            },
            listener,
        ))
    }

    /// Returns what injects faults.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            camera: Arc::clone(&self.camera),
            gate: self.gate.clone(),
        }
    }

    /// Serves until shutdown.
    ///
    /// # Errors
    /// When the loopback address behind the gate can't be listened on.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
        let internal = SocketAddr::from(([127, 0, 0, 1], 0));
        let listen = |source| Error::Listen {
            address: internal,
            source,
        };
        let behind = TcpListener::bind(internal).await.map_err(listen)?;
        let (_keep, device) = tokio::sync::watch::channel(behind.local_addr().map_err(listen)?);
        let gate = Gate::new(listener, device, self.gate.clone());
        let router = Router::new()
            .route("/onvif/{service}", post(soap_request))
            .route("/onvif/subscription/{id}", post(soap_request))
            .route("/snapshot.jpg", get(snapshot))
            .layer(DefaultBodyLimit::max(MAX_REQUEST))
            .with_state(Arc::clone(&self.camera));
        let stopped = shutdown.clone();
        let server =
            axum::serve(behind, router).with_graceful_shutdown(async move { stopped.cancelled().await });
        tokio::select! {
            served = server => served.map_err(listen),
            () = gate.run(shutdown.clone()) => Ok(()),
            () = motions(&self.camera) => Ok(()),
        }
    }
}

/// Lets something move before the camera now and then.
async fn motions(camera: &Camera) {
    let mut random = StdRng::seed_from_u64(camera.options.seed);
    loop {
        let wait = camera
            .options
            .motion_interval
            .mul_f64(random.random_range(0.5..1.5));
        tokio::time::sleep(wait.max(Duration::from_millis(10))).await;
        camera.events.motion(true, camera.now());
        tokio::time::sleep((wait / 4).max(Duration::from_millis(10))).await;
        camera.events.motion(false, camera.now());
    }
}

async fn soap_request(
    State(camera): State<Arc<Camera>>,
    uri: axum::http::Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request = match soap::Request::parse(&body) {
        Ok(request) => request,
        Err(reason) => return soap::Fault::sender("ter:WellFormed", reason).into_response(),
    };
    if !device::needs_no_password(&request.operation)
        && let Err(refusal) = camera.authentication.verify(
            "POST",
            uri.path(),
            &headers,
            request.username_token.as_ref(),
            camera.now(),
        )
    {
        return refusal.into_response();
    }
    let path = uri.path().to_owned();
    let answer = match request.namespace.as_str() {
        soap::MEDIA => media::answer(&camera, &request),
        soap::PTZ => ptz::answer(&camera, &request),
        soap::EVENTS | soap::NOTIFICATION => events::answer(&camera, &request, &path).await,
        soap::DEVICE => device::answer(&camera, &request),
        _ => Err(soap::Fault::not_supported(&request.operation)),
    };
    match answer {
        Ok(body) => soap::envelope(&body).into_response(),
        Err(fault) => fault.into_response(),
    }
}

async fn snapshot(State(camera): State<Arc<Camera>>, uri: axum::http::Uri, headers: HeaderMap) -> Response {
    if let Err(refusal) = camera
        .authentication
        .verify("GET", uri.path(), &headers, None, camera.now())
    {
        return refusal.into_response();
    }
    let drawn = tokio::task::spawn_blocking(move || {
        let position = camera.ptz.lock().position(Timestamp::now());
        picture::draw(&camera.line.lock(), position, camera.options.size, camera.now())
    });
    match drawn.await {
        Ok(Ok(jpeg)) => ([(header::CONTENT_TYPE, "image/jpeg")], jpeg).into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
