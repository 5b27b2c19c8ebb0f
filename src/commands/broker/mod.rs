//! `foreshore broker`: the MQTT broker alone; with an operator, which tells it what to do, or without one. Its
//! sub-commands look at a broker that runs.

mod alone;
mod explain;
pub(super) mod inspect;
mod settings;

use std::{net::SocketAddr, path::PathBuf};

use anyhow::{Result, bail};
use foreshore_broker::{AuditDestination, ListenerOptions, Method, Protocol, Storage};
use foreshore_crds::v1alpha1::broker::Listener;
use foreshore_tls::Role;

use self::{alone::Alone, settings::Settings};
use super::encryption::Encryption;
use crate::roles::Work;

/// What to do: run a broker, where no sub-command says otherwise.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    broker: Setup,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Say whether a client may do something, and by which rule of which BrokerPolicy.
    Explain(explain::Options),
    /// List sessions of a broker that runs.
    Sessions(inspect::OfClient),
    /// List subscriptions of a broker that runs.
    Subscriptions(inspect::OfClient),
    /// List retained messages of a broker that runs.
    Retained(inspect::Retained),
    /// Show what waits in a broker that runs, for whom, and whether it becomes less.
    Backlog(inspect::Backlog),
    /// Have a broker that runs connect to each of its listeners as a client does, and fail if one can't be used.
    Probe(inspect::Probe),
}

/// How the broker is set up.
#[derive(clap::Args)]
struct Setup {
    /// Address to listen on, for MQTT 3.1, 3.1.1 and 5.0.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:1883")]
    listen: Vec<SocketAddr>,
    /// Address to listen on for MQTT over WebSocket, at the path /mqtt.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen_websocket: Vec<SocketAddr>,
    /// Directory that messages and sessions are kept in.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where messages are kept: in the data directory (fjall), or in memory, gone with the process.
    #[arg(long, value_enum, default_value = "fjall")]
    store: Store,
    #[command(flatten)]
    encryption: Encryption,
    /// Let in clients without a user name. The only method that needs no manifests.
    #[arg(long)]
    anonymous: bool,
    /// Where to write the audit log, one JSON object a line: a file, or stdout; nowhere where it is left out.
    #[arg(long, value_name = "FILE|stdout")]
    audit: Option<PathBuf>,
    /// Address of /metrics and /healthz.
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
    #[command(flatten)]
    settings: settings::Options,
    #[command(flatten)]
    role: super::role::Options,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Store {
    Fjall,
    Memory,
}

/// Size in bytes beyond which the file of an audit log is set aside: that of a `Broker` that says nothing else.
const MAX_AUDIT_FILE: u64 = 64 << 20;

fn audit(path: PathBuf) -> AuditDestination {
    if path.as_os_str() == "stdout" {
        return AuditDestination::Stdout;
    }
    AuditDestination::File {
        path,
        max_bytes: MAX_AUDIT_FILE,
    }
}

/// Runs the broker until it is told to end, or looks at one.
pub(crate) async fn run(options: Options) -> Result<()> {
    match options.command {
        None => serve(options.broker).await,
        Some(Command::Explain(options)) => explain::run(options).await,
        Some(Command::Sessions(options)) => inspect::sessions(options).await,
        Some(Command::Subscriptions(options)) => inspect::subscriptions(options).await,
        Some(Command::Retained(options)) => inspect::retained(options).await,
        Some(Command::Backlog(options)) => inspect::backlog(options).await,
        Some(Command::Probe(options)) => inspect::probe(options).await,
    }
}

async fn serve(options: Setup) -> Result<()> {
    if options.role.has_operator() {
        let encryption = options.encryption;
        return options
            .role
            .run_encrypting(Role::Broker, Work::Broker, encryption)
            .await;
    }
    if !options.anonymous {
        bail!(
            "nobody could connect: without manifests only --anonymous is there; `foreshore up DIR` has the others"
        );
    }
    let storage = match (options.store, options.data) {
        (Store::Memory, _) if options.encryption.keys.is_some() => {
            bail!("--encryption-keys: --store memory keeps nothing that could be encrypted")
        }
        (Store::Memory, _) => Storage::Memory,
        (Store::Fjall, Some(path)) => Storage::Directory {
            path,
            options: options.encryption.store_options(),
        },
        (Store::Fjall, None) => bail!("--data DIR is missing; --store memory needs none"),
    };
    let Settings { spec, policies } = options.settings.read()?;
    let tcp = options.listen.iter().enumerate().map(|(index, address)| {
        ListenerOptions::tcp(format!("listener-{index}"), *address, vec![Method::Anonymous])
    });
    let websocket = options.listen_websocket.iter().enumerate();
    let websocket = websocket.map(|(index, address)| ListenerOptions {
        protocol: Protocol::WebSocket {
            path: Listener::DEFAULT_PATH.into(),
        },
        ..ListenerOptions::tcp(format!("websocket-{index}"), *address, vec![Method::Anonymous])
    });
    let alone = Alone {
        storage,
        listeners: tcp.chain(websocket).collect(),
        spec,
        policies,
        audit: options.audit.map(audit),
    };
    alone.run(options.http).await
}
