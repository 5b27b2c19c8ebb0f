//! How a person's tools reach what runs: one request a connection, one line of JSON each way.
//!
//! `foreshore up` and a broker alone answer on a socket of their data directory, to which only their owner can connect. A
//! pod answers on its own loopback, where whoever may forward a port to it arrives: the cluster's own rights decide.

mod broker;
mod invoke;
mod ledger;
mod server;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

pub(crate) use broker::{About, BrokerRequest};
pub(crate) use invoke::Invocation;
pub(crate) use ledger::LedgerText;
pub(crate) use server::Answerer;

/// Name of the socket in a data directory.
pub(crate) const SOCKET: &str = "admin.sock";
/// Largest request or answer, in bytes.
const MAX_LINE: u64 = 64 << 20;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "ask")]
pub(crate) enum Request {
    /// How everything stands; the answer is a status table.
    Status {
        /// As text for people rather than as JSON.
        text: bool,
    },
    /// What became of every record of the brokers that run here.
    Ledger,
    /// A command to an asset, through a cloud endpoint that runs here.
    Invoke(Box<Invocation>),
    /// What a broker that runs here holds, or what its policies say.
    Broker(Box<BrokerRequest>),
}

/// An answer, or why there is none.
type Answer = Result<Value, String>;

/// Asks over a connection.
///
/// # Errors
/// When nothing answers, or the answer is a refusal.
pub(crate) async fn ask(stream: impl AsyncRead + AsyncWrite, request: &Request) -> Result<Value> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await?;
    let mut answer = String::new();
    BufReader::new(reader.take(MAX_LINE))
        .read_line(&mut answer)
        .await?;
    if answer.is_empty() {
        bail!("the connection ended without an answer");
    }
    match serde_json::from_str::<Answer>(&answer).context("answer to an admin request")? {
        Ok(value) => Ok(value),
        Err(reason) => bail!(reason),
    }
}
