//! `foreshore invoke`: a command to an asset.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use super::up::{Request, ask};

/// What to do.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The asset, as NAMESPACE/ASSET.
    asset: String,
    /// The action, as GROUP/ACTION.
    action: String,
    /// Input as JSON; none where it is left out.
    input: Option<String>,
    /// Seconds until the deadline, after which the command must not begin.
    #[arg(long, default_value_t = 30)]
    timeout: u64,
    /// Key under which a repeat is recognised: it is answered with the first one's outcome.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Data directory of the `foreshore up` to ask.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Sends the command and prints its output.
pub(crate) async fn run(options: Options) -> Result<()> {
    let (namespace, asset) = options
        .asset
        .split_once('/')
        .context("the asset is written NAMESPACE/ASSET")?;
    let (group, action) = options
        .action
        .split_once('/')
        .context("the action is written GROUP/ACTION")?;
    let input = options
        .input
        .as_deref()
        .map_or(Ok(Value::Null), serde_json::from_str);
    let request = Request::Invoke {
        namespace: namespace.to_owned(),
        asset: asset.to_owned(),
        group: group.to_owned(),
        action: action.to_owned(),
        input: input.context("the input is not JSON")?,
        timeout_seconds: options.timeout,
        idempotency_key: options.idempotency_key,
    };
    let data = options.data.map_or_else(super::default_data_directory, Ok)?;
    let answer = ask(&data, &request).await?;
    println!("{}", serde_json::to_string_pretty(&answer)?);
    Ok(())
}
