//! Answers requests.

use std::{
    fs::Permissions, io, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration,
};

use anyhow::{Context, Result};
use foreshore_operator::Handle;
use foreshore_runtime::{Shutdown, spawn};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpListener, UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use super::{Answer, LedgerText, MAX_LINE, Request, SOCKET};
use crate::roles::Directory;

/// Most requests at a time.
const MOST: usize = 16;
/// Longest that a request may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// What of a process can answer.
#[derive(Clone)]
pub(crate) struct Answerer {
    /// The operator, where it runs here and leads.
    pub(crate) operator: Option<Handle>,
    /// Roles that run here.
    pub(crate) directory: Arc<Directory>,
}

/// Where requests arrive.
enum Listener {
    Socket(UnixListener),
    Port(TcpListener),
}

/// Either kind of connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Listener {
    /// The next connection, and who is there as far as the operating system knows it.
    async fn accept(&self) -> io::Result<(Box<dyn Stream>, Option<String>)> {
        Ok(match self {
            Self::Socket(listener) => {
                let (stream, _) = listener.accept().await?;
                let user = user(&stream)?;
                (Box::new(stream), Some(user))
            }
            Self::Port(listener) => (Box::new(listener.accept().await?.0), None),
        })
    }
}

impl Answerer {
    /// Answers on the socket of a data directory, which this process has locked, until the shutdown begins. Only its owner
    /// can connect.
    pub(crate) fn serve_socket(self, data: &Path, shutdown: &Shutdown) -> Result<()> {
        let path = data.join(SOCKET);
        // The lock of the data directory is ours, so whoever left the socket is gone.
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        let listener = UnixListener::bind(&path);
        let listener = listener.with_context(|| format!("admin socket {}", path.display()))?;
        // Until then the umask keeps others out: to connect takes the right to write.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))
            .with_context(|| format!("admin socket {}", path.display()))?;
        self.serve(Listener::Socket(listener), shutdown.clone());
        Ok(())
    }

    /// Answers on a port until the shutdown begins.
    pub(crate) async fn serve_port(self, address: SocketAddr, shutdown: &Shutdown) -> Result<()> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("can't listen on {address} for admin requests"))?;
        self.serve(Listener::Port(listener), shutdown.clone());
        Ok(())
    }

    fn serve(self, listener: Listener, shutdown: Shutdown) {
        let places = Arc::new(Semaphore::new(MOST));
        let accept = async move {
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                    return;
                };
                match listener.accept().await {
                    Ok((stream, user)) => {
                        let answerer = self.clone();
                        spawn("admin request", async move {
                            if let Err(error) = answerer.converse(stream, user).await {
                                debug!(%error, "admin request failed");
                            }
                            drop(place);
                        })
                        .detach();
                    }
                    Err(error) => {
                        warn!(%error, "admin connection");
                        sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        };
        spawn("admin", async move { shutdown.or_begun(accept).await }).detach();
    }

    async fn converse(&self, stream: Box<dyn Stream>, user: Option<String>) -> Result<()> {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut line = String::new();
        let mut reader = BufReader::new(reader.take(MAX_LINE));
        timeout(PATIENCE, reader.read_line(&mut line)).await??;
        let answer = match serde_json::from_str(&line) {
            Ok(Request::Broker(request)) if request.is_for_a_listener() => tokio::select! {
                answer = request.run(&self.directory, user) => answer,
                // Whoever asked has gone, or breaks the rule of one request a connection.
                _ = reader.read_u8() => return Ok(()),
            },
            Ok(request) => self.answer(request, user).await,
            Err(error) => Err(format!("request is not understood: {error}")),
        };
        let mut line = serde_json::to_vec(&answer)?;
        if line.len() as u64 >= MAX_LINE {
            let most = MAX_LINE >> 20;
            line = serde_json::to_vec(&Answer::Err(format!(
                "the answer is larger than {most} MB: ask for less"
            )))?;
        }
        line.push(b'\n');
        writer.write_all(&line).await?;
        writer.shutdown().await?;
        Ok(())
    }

    async fn answer(&self, request: Request, user: Option<String>) -> Answer {
        match request {
            Request::Status { text } => self.status(text).await,
            Request::Ledger => {
                serde_json::to_value(self.directory.ledger().await).map_err(|error| error.to_string())
            }
            Request::Invoke(invocation) => invocation.run(&self.directory, user).await,
            Request::Broker(request) => request.run(&self.directory, user).await,
        }
    }

    async fn status(&self, text: bool) -> Answer {
        let operator = self.operator.as_ref().ok_or("no operator runs here")?;
        let table = operator.status().await.ok_or("the operator has ended")?;
        let ledger = self.directory.ledger().await;
        if text {
            return Ok(json!(format!("{table}{}", LedgerText(&ledger))));
        }
        let mut status = serde_json::to_value(&table).map_err(|error| error.to_string())?;
        if let Value::Object(members) = &mut status {
            let ledger = serde_json::to_value(ledger).map_err(|error| error.to_string())?;
            members.insert("ledger".to_owned(), ledger);
            members.insert("observability".to_owned(), json!(self.directory.observability()));
        }
        Ok(status)
    }
}

/// Who asks, as the operating system knows it: `cli:` and the name of the user.
fn user(stream: &UnixStream) -> io::Result<String> {
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
}
