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
        /// Key under which a repeat is recognised.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        idempotency_key: Option<String>,
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
    let actor = actor(&stream)?;
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(MAX_LINE)).read_line(&mut line).await?;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(Request::Status { text }) => status(operator, directory, text).await,
        Ok(request @ Request::Invoke { .. }) => invoke(directory, &actor, request).await,
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

/// Who asks, as the operating system knows it: `cli:` and the name of the user.
fn actor(stream: &UnixStream) -> Result<String> {
    let user = stream.peer_cred()?.uid();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    Ok(match user_name(&users, user) {
        Some(name) => format!("cli:{name}"),
        None => format!("cli:uid-{user}"),
    })
}

/// Finds a user in the form of passwd(5).
fn user_name(users: &str, wanted: u32) -> Option<&str> {
    let mut users = users.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let user: u32 = fields.nth(1)?.parse().ok()?;
        Some((user, name))
    });
    let (_, name) = users.find(|(user, _)| *user == wanted)?;
    // It travels in a header of HTTP.
    (name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_graphic())).then_some(name)
}

/// Passes a command to the JSON API of the cloud endpoint.
async fn invoke(directory: &Directory, actor: &str, request: Request) -> Answer {
    let Request::Invoke {
        namespace,
        asset,
        group,
        action,
        input,
        timeout_seconds,
        idempotency_key,
    } = request
    else {
        return Err("not a command".to_owned());
    };
    let clouds = directory.clouds();
    let cloud = clouds
        .first()
        .ok_or("no cloud endpoint runs here: declare a Cloud, or publish the command over MQTT")?;
    let mut url = reqwest::Url::parse(&cloud.url).map_err(|error| error.to_string())?;
    let path = ["api", "assets", &namespace, &asset, "commands", &group, &action];
    url.path_segments_mut()
        .map_err(|()| format!("{} has no path", cloud.url))?
        .extend(path);
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(timeout_seconds) + PATIENCE)
        .build()
        .map_err(|error| error.to_string())?;
    let mut body = json!({ "input": input, "timeout": timeout_seconds });
    if let Some(key) = idempotency_key {
        body["idempotencyKey"] = key.into();
    }
    let response = client
        .post(url)
        .bearer_auth(&cloud.token)
        .header("foreshore-actor", actor)
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
        Err(failure(&body))
    }
}

/// Problem details (RFC 9457) as one line for people.
fn failure(problem: &Value) -> String {
    let text = |member: &str| problem.get(member).and_then(Value::as_str);
    let mut line = format!(
        "{}: {}",
        text("code").unwrap_or("Failed"),
        text("detail").unwrap_or("the cloud endpoint does not say why")
    );
    for (member, words) in [("deviceStatus", "device status"), ("id", "command")] {
        if let Some(value) = text(member) {
            line.push_str(&format!("; {words} {value}"));
        }
    }
    line
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_number() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nanna:x:1000:1000::/home/anna:/bin/sh\nö:x:7:7:::\n";
        assert_eq!(user_name(users, 1000), Some("anna"));
        assert_eq!(user_name(users, 0), Some("root"));
        assert_eq!(user_name(users, 7), None);
        assert_eq!(user_name(users, 1), None);
    }

    #[test]
    fn a_failure_is_told_in_one_line() {
        let problem =
            json!({ "code": "DeviceFailed", "detail": "no", "deviceStatus": "BadOutOfRange", "id": "7" });
        assert_eq!(
            failure(&problem),
            "DeviceFailed: no; device status BadOutOfRange; command 7"
        );
    }
}
