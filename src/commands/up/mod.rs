//! `foreshore up`: the whole system on one machine, from a directory of manifests.

use std::{
    fs::File,
    io::IsTerminal,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use foreshore_control::{ControlOptions, enroll::LocalTokens};
use foreshore_operator::{
    Begin, Operator, Platform,
    control::{ControlPlane, Options as ControlPlaneOptions},
    source::directory::{Directory as ManifestDirectory, Options as ManifestOptions},
    workloads::local::LocalWorkloads,
};
use foreshore_runtime::Shutdown;
use foreshore_tls::{AuthorityOptions, CertificateAuthority};
use jiff::Timestamp;
use serde_json::Value;
use tokio::net::UnixStream;
use tracing::info;

use super::{encryption::Encryption, parse_time};
use crate::{
    admin::{self, Answerer, Request},
    roles::{Directory, Roles, Site},
};

mod closing;
mod example;
mod live;

pub(crate) use example::files as example;

/// How long everything may take to end in order.
const DRAIN: Duration = Duration::from_secs(30);
/// Shortest life of a role's certificate: renewals have to find time in it.
const SHORTEST_CERTIFICATE: Duration = Duration::from_secs(10);

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Files or folders of manifests; the built-in bottling line where none is given.
    paths: Vec<PathBuf>,
    /// Directory of everything that is kept; `$XDG_STATE_HOME/foreshore` where it is left out.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Folder of secrets: files NAME/KEY of mode 0600.
    #[arg(long, value_name = "DIR")]
    secrets: Option<PathBuf>,
    #[command(flatten)]
    encryption: Encryption,
    /// End by itself after this time, such as 30s or 5m.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    duration: Option<Duration>,
    /// Life of the certificates that roles show to each other; each renews its own at two thirds of it.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_certificate_lifetime)]
    certificate_lifetime: Duration,
    /// Print the closing ledger as one line of JSON.
    #[arg(long)]
    json: bool,
}

/// Reads a life of certificates in which renewals find time.
pub(crate) fn parse_certificate_lifetime(text: &str) -> Result<Duration, String> {
    let duration = parse_time(text)?;
    if duration < SHORTEST_CERTIFICATE {
        return Err(format!("{} s is the least", SHORTEST_CERTIFICATE.as_secs()));
    }
    Ok(duration)
}

/// Runs until it is told to end, or the time is over.
pub(crate) async fn run(options: Options) -> Result<()> {
    foreshore_tls::install_provider();
    let data = options
        .data
        .clone()
        .map_or_else(super::default_data_directory, Ok)?;
    let _lock = lock(&data)?;
    let shutdown = Shutdown::new();
    shutdown.begin_on_signals(DRAIN).context("listen for signals")?;

    let manifests = ManifestOptions {
        paths: options.paths.clone(),
        embedded: if options.paths.is_empty() {
            example::files()
        } else {
            Vec::new()
        },
        secrets: options.secrets.clone(),
        state: Some(data.join("operator")),
        ..ManifestOptions::default()
    };
    let source = ManifestDirectory::open(manifests).context("manifests")?;
    let tokens = LocalTokens::new();
    let certificates = AuthorityOptions {
        leaf_lifetime: options.certificate_lifetime,
        ..AuthorityOptions::default()
    };
    let authority = CertificateAuthority::open(&data.join("authority"), certificates, Timestamp::now())
        .context("certificate authority")?;
    let control = ControlPlane::bind(ControlPlaneOptions {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        authority: Arc::new(authority),
        authenticator: Arc::new(tokens.clone()),
        server: ControlOptions::default(),
        uid: uuid::Uuid::new_v4().to_string(),
    })
    .await
    .context("control server")?;
    let directory = Arc::new(Directory::default());
    let roles = Roles::new(data.join("roles"), Site::loopback(), Arc::clone(&directory))
        .encrypting(options.encryption.clone());
    let workloads = LocalWorkloads::new(Arc::new(roles), control.access(), tokens);
    let operator = Operator::start(
        foreshore_operator::Options {
            source: Box::new(source),
            workloads: Arc::new(workloads),
            control,
            platform: Platform::standalone(),
            begin: Begin::From(data.join("operator")),
            status: None,
        },
        shutdown.clone(),
    )
    .await?;
    let answerer = Answerer {
        operator: Some(operator.clone()),
        directory: Arc::clone(&directory),
    };
    answerer.serve_socket(&data, &shutdown)?;
    announce(&options, &data);

    let live = live::show(
        operator.clone(),
        Arc::clone(&directory),
        std::io::stderr().is_terminal(),
    );
    tokio::select! {
        () = shutdown.begun() => {}
        ended = operator.ended() => {
            if let Err(error) = ended.as_ref() {
                bail!("the operator ended: {error}");
            }
        }
        () = after(options.duration) => info!("the time is over"),
        () = live => {}
    }
    operator.shutdown(DRAIN);
    let ended = operator.ended().await;
    closing::print(&directory, options.json).await?;
    if let Err(error) = ended.as_ref() {
        bail!("the operator ended: {error}");
    }
    Ok(())
}

async fn after(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// Takes the data directory for this process alone.
fn lock(data: &Path) -> Result<File> {
    foreshore_tls::create_private_directory(data)
        .with_context(|| format!("data directory {}", data.display()))?;
    let path = data.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = file.with_context(|| format!("data directory {} can't be written", data.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => bail!(
            "data directory {} is in use by another foreshore: end it, or choose another with --data",
            data.display()
        ),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}

/// Says what runs and where to look.
fn announce(options: &Options, data: &Path) {
    let what = if options.paths.is_empty() {
        "the built-in bottling line".to_owned()
    } else {
        let paths: Vec<String> = options
            .paths
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        paths.join(", ")
    };
    eprintln!("foreshore runs {what}");
    eprintln!("  data      {}", data.display());
    let at = options
        .data
        .as_ref()
        .map(|data| format!(" --data {}", data.display()))
        .unwrap_or_default();
    eprintln!("  status    foreshore status{at}");
    let command = if options.paths.is_empty() {
        r#"bottling/filler control/set-speed '{"BottlesPerMinute":300}'"#
    } else {
        "NAMESPACE/ASSET GROUP/ACTION [JSON]"
    };
    eprintln!("  command   foreshore invoke{at} {command}");
    eprintln!("  end       Ctrl-C");
}

/// Asks the `foreshore up` that holds a data directory.
pub(crate) async fn ask(data: &Path, request: &Request) -> Result<Value> {
    let stream = UnixStream::connect(data.join(admin::SOCKET)).await;
    let stream =
        stream.with_context(|| format!("no foreshore runs with the data directory {}", data.display()))?;
    admin::ask(stream, request).await
}
