//! The admin socket: how `foreshore status` and `foreshore invoke` reach a running `foreshore up`.
//!
//! One request a connection, one line of JSON each way. The socket is in the data directory, which only its owner can
//! enter.

use std::{io, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use foreshore_operator::Handle;
use foreshore_runtime::{Shutdown, spawn};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};
use tracing::{debug, warn};

use crate::roles::Directory;

/// Name of the socket.
const SOCKET: &str = "admin.sock";
/// Largest request or answer, in bytes.
const MAX_LINE: u64 = 64 << 20;
/// Longest wait for an answer beyond a command's own time.
const PATIENCE: Duration = Duration::from_secs(15);

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "ask")]
pub(crate) enum Request {
    /// How everything stands; the answer is a status table.
    Status {
        /// As text for people rather than as JSON.
        text: bool,
    },
    /// A command to an asset, through the cloud endpoint.
    #[serde(rename_all = "camelCase")]
    Invoke {
        /// Namespace of the asset.
        namespace: String,
        /// Name of the asset.
        asset: String,
        /// Action group.
        group: String,
        /// Action.
        action: String,
        /// Input.
        input: Value,
        /// Seconds until the deadline.
        timeout_seconds: u64,
    },
}

/// An answer, or why there is none.
type Answer = Result<Value, String>;

/// Answers requests until the shutdown begins.
pub(super) fn serve(
    data: &Path,
    operator: Handle,
    directory: Arc<Directory>,
    shutdown: &Shutdown,
) -> Result<()> {
    let path = data.join(SOCKET);
    // The lock of the data directory is ours, so whoever left the socket is gone.
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("remove {}", path.display()));
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("admin socket {}", path.display()))?;
    let ending = shutdown.clone();
    spawn("admin socket", async move {
        loop {
            let accepted = tokio::select! {
                () = ending.begun() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (operator, directory) = (operator.clone(), Arc::clone(&directory));
                    spawn("admin request", async move {
                        if let Err(error) = answer(stream, &operator, &directory).await {
                            debug!(%error, "admin request failed");
                        }
                    })
                    .detach();
                }
                Err(error) => {
                    warn!(%error, "admin socket");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    })
    .detach();
    Ok(())
}

async fn answer(stream: UnixStream, operator: &Handle, directory: &Directory) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(MAX_LINE)).read_line(&mut line).await?;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(Request::Status { text }) => status(operator, directory, text).await,
        Ok(request @ Request::Invoke { .. }) => invoke(directory, request).await,
        Err(error) => Err(format!("request is not understood: {error}")),
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    Ok(())
}

async fn status(operator: &Handle, directory: &Directory, text: bool) -> Answer {
    let table = operator.status().await.ok_or("the operator has ended")?;
    if text {
        return Ok(json!(table.to_string()));
    }
    let mut status = serde_json::to_value(&table).map_err(|error| error.to_string())?;
    if let Value::Object(members) = &mut status {
        let ledger = serde_json::to_value(directory.ledger().await).map_err(|error| error.to_string())?;
        members.insert("ledger".to_owned(), ledger);
        members.insert("observability".to_owned(), json!(directory.observability()));
    }
    Ok(status)
}

/// Passes a command to the JSON API of the cloud endpoint.
async fn invoke(directory: &Directory, request: Request) -> Answer {
    let Request::Invoke {
        namespace,
        asset,
        group,
        action,
        input,
        timeout_seconds,
    } = request
    else {
        return Err("not a command".to_owned());
    };
    let clouds = directory.clouds();
    let cloud = clouds
        .first()
        .ok_or("no cloud endpoint runs here: declare a Cloud, or publish the command over MQTT")?;
    let url = format!(
        "{}/api/assets/{namespace}/{asset}/commands/{group}/{action}",
        cloud.url
    );
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(timeout_seconds) + PATIENCE)
        .build()
        .map_err(|error| error.to_string())?;
    let body = json!({ "input": input, "timeout": timeout_seconds });
    let response = client
        .post(url)
        .bearer_auth(&cloud.token)
        .json(&body)
        .send()
        .await;
    let response = response.map_err(|error| format!("cloud endpoint: {error}"))?;
    let status = response.status();
    let body: Value = response
        .json()
        .await
        .map_err(|error| format!("cloud endpoint: {error}"))?;
    if status.is_success() {
        Ok(body)
    } else {
        Err(body.to_string())
    }
}

/// Asks a running `foreshore up`.
pub(crate) async fn ask(data: &Path, request: &Request) -> Result<Value> {
    let path = data.join(SOCKET);
    let stream = UnixStream::connect(&path).await;
    let stream =
        stream.with_context(|| format!("no foreshore runs with the data directory {}", data.display()))?;
    let (reader, mut writer) = stream.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    let mut answer = String::new();
    BufReader::new(reader.take(MAX_LINE))
        .read_line(&mut answer)
        .await?;
    match serde_json::from_str::<Answer>(&answer).context("answer of the admin socket")? {
        Ok(value) => Ok(value),
        Err(reason) => bail!(reason),
    }
}
