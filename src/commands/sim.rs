//! `foreshore sim`: a simulated asset, with faults on demand.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use foreshore_runtime::Shutdown;
use foreshore_sim::{
    camera::{self, Accepted},
    faults::Fault,
    line::Line,
    opcua,
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::DRAIN;

/// What to simulate.
#[derive(clap::Subcommand)]
pub(crate) enum Device {
    /// An OPC UA server of a bottling line.
    Opcua(OpcUa),
    /// An ONVIF camera that looks at a bottling line.
    Onvif(Onvif),
}

/// What all simulated assets have.
#[derive(clap::Args)]
pub(crate) struct Common {
    /// What all of its randomness comes from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// User name and password that it knows.
    #[arg(
        long,
        value_name = "NAME:PASSWORD",
        env = "FORESHORE_SIM_USER",
        hide_env_values = true
    )]
    user: Option<String>,
    /// Address of `POST /faults`; the body is such as {"kind":"dropConnections","seconds":5}. Kinds:
    /// dropConnections, refuse, slow (with delayMillis), badStatus, restart.
    #[arg(long, value_name = "ADDRESS:PORT")]
    faults: Option<SocketAddr>,
    /// Name by which clients reach it, in its own URLs; the address where it is left out.
    #[arg(long)]
    host: Option<String>,
}

/// Settings of the simulated line.
#[derive(clap::Args)]
pub(crate) struct OpcUa {
    #[command(flatten)]
    common: Common,
    /// Address to listen on.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4840")]
    listen: SocketAddr,
    /// Directory of key and certificates.
    #[arg(long, value_name = "DIR")]
    pki: Option<PathBuf>,
    /// Additional variables, Load.0 and up, for measuring.
    #[arg(long, default_value_t = 0)]
    load: u32,
    /// How often all of them change, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    load_interval: u64,
}

/// Settings of the simulated camera.
#[derive(clap::Args)]
pub(crate) struct Onvif {
    #[command(flatten)]
    common: Common,
    /// Address to listen on.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
}

impl Common {
    fn user(&self) -> Result<Option<(String, String)>> {
        let Some(user) = &self.user else { return Ok(None) };
        let (name, password) = user.split_once(':').context("--user takes NAME:PASSWORD")?;
        Ok(Some((name.to_owned(), password.to_owned())))
    }
}

/// Runs until it is told to end.
pub(crate) async fn run(device: Device) -> Result<()> {
    let shutdown = Shutdown::new();
    shutdown.begin_on_signals(DRAIN).context("listen for signals")?;
    let token = CancellationToken::new();
    let ending = token.clone();
    let signals = shutdown.clone();
    let watch = foreshore_runtime::spawn("shutdown", async move {
        signals.begun().await;
        ending.cancel();
    });
    let ended = match device {
        Device::Opcua(options) => run_opcua(options, token, &shutdown).await,
        Device::Onvif(options) => run_onvif(options, token, &shutdown).await,
    };
    watch.abort();
    ended
}

async fn run_opcua(options: OpcUa, token: CancellationToken, shutdown: &Shutdown) -> Result<()> {
    let pki = tempfile::tempdir().context("temporary directory")?;
    let plant = opcua::Options {
        listen: options.listen,
        host: options.common.host.clone(),
        seed: options.common.seed,
        users: options.common.user()?.into_iter().collect(),
        anonymous: true,
        load_points: options.load,
        load_interval: Duration::from_millis(options.load_interval),
        pki_dir: options.pki.unwrap_or_else(|| pki.path().to_owned()),
    };
    let (plant, listener) = opcua::Plant::bind(plant).await?;
    let handle = plant.handle();
    println!("{}", handle.url());
    serve_faults(options.common.faults, shutdown, move |fault| {
        let handle = handle.clone();
        async move { handle.inject(fault).await }
    })
    .await?;
    plant.run(listener, token).await.context("simulated line")
}

async fn run_onvif(options: Onvif, token: CancellationToken, shutdown: &Shutdown) -> Result<()> {
    let line = Arc::new(Mutex::new(Line::new(options.common.seed)));
    let settings = camera::Options {
        listen: options.listen,
        host: options.common.host.clone(),
        seed: options.common.seed,
        user: options.common.user()?,
        accepted: Accepted::Both,
        clock_skew_millis: 0,
        motion_interval: Duration::from_secs(20),
        size: (640, 360),
    };
    let (service, listener) = camera::Service::bind(settings, Arc::clone(&line)).await?;
    let handle = service.handle();
    println!("{}", handle.device_service());
    serve_faults(options.common.faults, shutdown, move |fault| {
        let handle = handle.clone();
        async move { handle.inject(fault).await }
    })
    .await?;
    tokio::select! {
        ended = service.run(listener, token) => ended.context("simulated camera"),
        () = advance(line) => Ok(()),
    }
}

/// Lets the line run that a camera looks at.
async fn advance(line: Arc<Mutex<Line>>) {
    let mut steps = tokio::time::interval(foreshore_sim::line::STEP);
    loop {
        steps.tick().await;
        drop(line.lock().step());
    }
}

/// Takes faults over HTTP; each is injected in the background.
async fn serve_faults<F, I>(address: Option<SocketAddr>, shutdown: &Shutdown, inject: F) -> Result<()>
where
    F: Fn(Fault) -> I + Clone + Send + Sync + 'static,
    I: Future<Output = ()> + Send + 'static,
{
    let Some(address) = address else { return Ok(()) };
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}"))?;
    println!("http://{}/faults", listener.local_addr()?);
    let route = axum::routing::post(move |axum::Json(fault): axum::Json<Fault>| async move {
        foreshore_runtime::spawn("fault", inject(fault)).detach();
        axum::http::StatusCode::ACCEPTED
    });
    let router = axum::Router::new().route("/faults", route);
    let ending = shutdown.clone();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move { ending.begun().await });
    foreshore_runtime::spawn("faults", async move {
        if let Err(error) = server.await {
            tracing::warn!(%error, "faults are no longer taken");
        }
    })
    .detach();
    Ok(())
}
