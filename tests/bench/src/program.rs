//! Programs that are measured.

use std::{
    fs::File,
    io::{BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Longest wait for a program to answer.
const START: Duration = Duration::from_secs(60);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A running program; it is killed when this is dropped.
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a program whose messages go to a file.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self> {
        Self::start_with(command, Stdio::null(), log)
    }

    /// Starts a program that reads what it is told.
    pub(crate) fn start_with(command: &mut Command, input: Stdio, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        command.stdin(input).stderr(file);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until something holds.
    pub(crate) fn wait_until(&mut self, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
        let end = Instant::now() + START;
        while !holds() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{what}: the program ended with {status}:\n{}", self.messages());
            }
            if Instant::now() > end {
                bail!("{what}: not in time:\n{}", self.messages());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until it accepts connections.
    pub(crate) fn wait_for_port(&mut self, port: u16) -> Result<()> {
        self.wait_until("connect", || TcpStream::connect(("127.0.0.1", port)).is_ok())
    }

    /// Where it reads what it is told.
    pub(crate) fn input(&mut self) -> Result<ChildStdin> {
        self.child.stdin.take().context("the input is not piped")
    }

    /// What it prints, line by line.
    pub(crate) fn output(&mut self) -> Result<BufReader<ChildStdout>> {
        let output = self.child.stdout.take();
        Ok(BufReader::new(output.context("the output is not piped")?))
    }

    /// Waits until it ends.
    pub(crate) fn wait(mut self) -> Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the program ended with {status}:\n{}", self.messages());
        }
        Ok(())
    }

    /// Ends it in order.
    pub(crate) fn end(self) -> Result<()> {
        let signal = Command::new("kill")
            .args(["-INT", &self.id().to_string()])
            .status()?;
        if !signal.success() {
            bail!("kill: {signal}");
        }
        self.wait()
    }

    /// The last of its messages.
    pub(crate) fn messages(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The body of an answer over HTTP.
pub(crate) fn get(address: &str, path: &str, token: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.set_read_timeout(Some(START))?;
    let request = format!(
        "GET {path} HTTP/1.0\r\nhost: {address}\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer over HTTP")?;
    if !head.lines().next().is_some_and(|line| line.contains(" 200 ")) {
        bail!("{path}: {answer}");
    }
    Ok(body.to_owned())
}
