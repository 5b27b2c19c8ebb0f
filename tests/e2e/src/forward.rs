//! Programs of kubectl that listen on a port of this machine for as long as somebody holds them.

use std::{process::Stdio, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdout, Command},
};

/// A kubectl that listens; it ends when this is dropped.
pub(crate) struct Forward {
    address: String,
    _kubectl: Child,
    /// It ends when nobody reads what it says.
    _said: BufReader<ChildStdout>,
}

impl Forward {
    /// Starts kubectl and waits until it says where it listens.
    pub(crate) async fn start(arguments: &[&str]) -> Result<Self> {
        let what = format!("kubectl {}", arguments.join(" "));
        let mut kubectl = Command::new("kubectl")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| what.clone())?;
        let stdout = kubectl.stdout.take().context("output of kubectl")?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let reading = stdout.read_line(&mut line);
        tokio::time::timeout(Duration::from_secs(20), reading)
            .await
            .with_context(|| format!("{what} says nothing"))??;
        // Forwarding from 127.0.0.1:40251 -> 7080; Starting to serve on 127.0.0.1:40251
        let address = line
            .split_whitespace()
            .find(|word| word.starts_with("127.0.0.1:"))
            .with_context(|| format!("{what} says {line:?}"))?
            .to_owned();
        Ok(Self {
            address,
            _kubectl: kubectl,
            _said: stdout,
        })
    }

    /// Where it listens: `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }
}
