//! `foreshore invoke`: a command to an asset.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use super::up::ask;
use crate::admin::{Invocation, Request};

/// What to do, and where.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    action: Action,
    /// Data directory of the `foreshore up` to ask.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// What to do.
#[derive(clap::Args)]
pub(crate) struct Action {
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
}

impl Action {
    /// The request for it; an asset without a namespace is in `namespace`.
    pub(crate) fn request(self, namespace: Option<&str>, user: Option<String>) -> Result<Invocation> {
        let Self {
            asset,
            action,
            input,
            timeout,
            idempotency_key,
        } = self;
        let (namespace, asset) = match (asset.split_once('/'), namespace) {
            (Some(both), _) => both,
            (None, Some(namespace)) => (namespace, asset.as_str()),
            (None, None) => anyhow::bail!("found asset {asset:?}, allowed is NAMESPACE/ASSET"),
        };
        let (group, action) = action
            .split_once('/')
            .with_context(|| format!("found action {action:?}, allowed is GROUP/ACTION"))?;
        let input = input.as_deref().map_or(Ok(Value::Null), serde_json::from_str);
        Ok(Invocation {
            namespace: namespace.to_owned(),
            asset: asset.to_owned(),
            group: group.to_owned(),
            action: action.to_owned(),
            input: input.context("the input is not JSON")?,
            timeout_seconds: timeout,
            idempotency_key,
            user,
        })
    }
}

/// Sends the command and prints its output.
pub(crate) async fn run(options: Options) -> Result<()> {
    let invocation = options.action.request(None, None)?;
    let data = options.data.map_or_else(super::default_data_directory, Ok)?;
    let answer = ask(&data, &Request::Invoke(Box::new(invocation))).await?;
    println!("{answer:#}");
    Ok(())
}
