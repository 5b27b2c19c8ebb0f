//! The load generator's processes, and the broker that they load.

use std::{
    io::{BufRead, BufReader},
    process::{ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use foreshore_peers::free_port;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use super::Contender;
use crate::{Plan, mqtt::READY, program::Program};

/// Bytes of a message's payload.
pub(super) const PAYLOAD: usize = 256;

/// A broker that was started for one run.
pub(super) struct Broker<'a> {
    plan: &'a Plan,
    pub(super) program: Program,
    address: String,
    folder: TempDir,
}

/// A process of the generator.
pub(super) struct Side {
    program: Program,
    output: BufReader<ChildStdout>,
}

impl<'a> Broker<'a> {
    pub(super) fn start(plan: &'a Plan, contender: Contender) -> Result<Self> {
        Self::with(plan, |folder, port| contender.start(plan, folder.path(), port))
    }

    /// Starts a broker by what is given a folder and a port.
    pub(super) fn with(plan: &'a Plan, start: impl FnOnce(&TempDir, u16) -> Result<Program>) -> Result<Self> {
        let folder = tempfile::tempdir_in(&plan.folder)?;
        let port = free_port();
        Ok(Self {
            plan,
            program: start(&folder, port)?,
            address: format!("127.0.0.1:{port}"),
            folder,
        })
    }

    /// Starts a side of the generator.
    pub(super) fn side(&self, side: &str, arguments: &[String]) -> Result<Side> {
        let mut command = self.plan.cores.generator(&self.plan.generator);
        command
            .arg(side)
            .args(["--address", &self.address])
            .args(arguments)
            .stdout(Stdio::piped());
        let mut program = Program::start(&mut command, &self.folder.path().join(side))?;
        let output = program.output()?;
        Ok(Side { program, output })
    }

    /// Starts publishers or subscribers for as long as is measured, and waits until they are ready.
    pub(super) fn measuring(&self, side: &str, clients: usize, qos: u8, more: &[String]) -> Result<Side> {
        let mut arguments = vec![
            format!("--clients={clients}"),
            format!("--qos={qos}"),
            format!("--warmup={}", self.plan.warmup.as_secs_f64()),
            format!("--seconds={}", self.plan.measured.as_secs_f64()),
            format!("--broker={}", self.program.id()),
        ];
        arguments.extend_from_slice(more);
        let mut side = self.side(side, &arguments)?;
        self.ready(&mut side)?;
        Ok(side)
    }

    /// Waits until all clients of a side are connected and subscribed.
    pub(super) fn ready(&self, side: &mut Side) -> Result<()> {
        let mut line = String::new();
        side.output.read_line(&mut line)?;
        if line.trim() != READY {
            // What it says of its failure follows.
            std::thread::sleep(Duration::from_millis(200));
            bail!("{}\nbroker: {}", side.program.messages(), self.program.messages());
        }
        Ok(())
    }

    /// Waits for the end of a side, and returns what it measured.
    pub(super) fn result<T: DeserializeOwned>(&self, mut side: Side) -> Result<T> {
        let mut line = String::new();
        side.output.read_line(&mut line)?;
        let result = serde_json::from_str(&line);
        result.with_context(|| {
            let (side, broker) = (side.program.messages(), self.program.messages());
            format!("{line}{side}\nbroker: {broker}")
        })
    }
}
