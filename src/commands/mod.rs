//! The sub-commands, one file each.

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use foreshore_operator::workloads::ports;

pub(crate) mod broker;
pub(crate) mod check;
pub(crate) mod crds;
pub(crate) mod encryption;
pub(crate) mod invoke;
pub(crate) mod kubectl;
pub(crate) mod operator;
pub(crate) mod role;
pub(crate) mod sim;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod table;
pub(crate) mod trace;
pub(crate) mod up;

/// How long a role may take to end in order.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);

/// How long a thread that blocks may take beyond the end of a command.
const LEFT_OVER: Duration = Duration::from_secs(1);

/// Where a pod answers people's tools: whoever may forward a port to it arrives there.
pub(crate) const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ports::ADMIN);

/// What a command ends with whose answer, which it has printed, is no: so that a script can tell it from yes, and from a
/// failure.
#[derive(Debug)]
pub(crate) struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("refused")
    }
}

impl std::error::Error for Refused {}

/// Runs a command to its end on a runtime of its own.
pub(crate) fn block_on(command: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let ended = runtime.block_on(command);
    // A command waits for whatever has to end in order. A name that is being looked up is not worth a pod's grace period.
    runtime.shutdown_timeout(LEFT_OVER);
    ended
}

/// Reads a time as manifests have it, such as `30s`.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let duration = text.parse::<foreshore_crds::types::Duration>();
    duration
        .map(foreshore_crds::types::Duration::get)
        .map_err(|error| error.to_string())
}

/// Where state is kept unless the user says otherwise: `$XDG_STATE_HOME/foreshore`, or `~/.local/state/foreshore`.
pub(crate) fn default_data_directory() -> Result<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let state = variable("XDG_STATE_HOME").or_else(|| variable("HOME").map(|home| home.join(".local/state")));
    let state = state.context("neither XDG_STATE_HOME nor HOME is set: name a directory with --data")?;
    Ok(state.join("foreshore"))
}
