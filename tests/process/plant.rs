//! A `foreshore up` that runs, as its user sees it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    rc::Rc,
    time::Duration,
};

use foreshore_record::PathLedger;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    cloud::Cloud,
    site::{Manifests, Site, wait_until},
};

/// Long enough for a loaded machine to start everything.
pub(crate) const START: Duration = Duration::from_secs(180);

/// Long enough for a loaded machine to do anything that it does at once.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// The path of the example's machine data.
pub(crate) const TELEMETRY: &str = "dataflow/bottling/telemetry->cloud";

/// A running `foreshore up`.
pub(crate) struct Plant {
    pub(crate) site: Rc<Site>,
    pub(crate) manifests: Manifests,
    data: PathBuf,
    log_file: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
}

#[derive(Deserialize)]
struct Closing {
    ledger: Vec<PathLedger>,
}

pub(crate) fn foreshore() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foreshore"));
    command.stdin(Stdio::null());
    command
}

impl Plant {
    /// Starts the example on free ports.
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    /// Starts the example with other manifests.
    pub(crate) fn with(change: impl FnOnce(&Manifests)) -> Self {
        let site = Rc::new(Site::new());
        let manifests = site.example("manifests");
        change(&manifests);
        Self::at(&site, &manifests, "data", &[])
    }

    /// Starts these manifests with the data folder of that name.
    pub(crate) fn at(site: &Rc<Site>, manifests: &Manifests, data: &str, arguments: &[&str]) -> Self {
        let mut plant = Self {
            site: Rc::clone(site),
            manifests: manifests.clone(),
            data: site.path(data),
            log_file: site.path(data).with_extension("log"),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            child: None,
        };
        plant.run(foreshore());
        plant
    }

    /// Starts these manifests in a mount namespace of their own, after a shell script that finds the data folder in `$0`.
    /// Nothing when this machine does not let us.
    pub(crate) fn mounted(site: &Rc<Site>, manifests: &Manifests, data: &str, script: &str) -> Option<Self> {
        let allowed = Command::new("unshare").args(["--mount", "true"]).status();
        if !allowed.is_ok_and(|status| status.success()) {
            eprintln!("skipped: this needs the right to mount file systems");
            return None;
        }
        let mut plant = Self {
            site: Rc::clone(site),
            manifests: manifests.clone(),
            data: site.path(data),
            log_file: site.path(data).with_extension("log"),
            arguments: Vec::new(),
            child: None,
        };
        fs::create_dir_all(&plant.data).unwrap();
        let mut command = Command::new("unshare");
        command
            .stdin(Stdio::null())
            .args(["--mount", "sh", "-c"])
            .arg(format!("{script} && exec \"$@\""))
            .arg(&plant.data)
            .arg(env!("CARGO_BIN_EXE_foreshore"));
        plant.run(command);
        // Mounts of that namespace are seen through its process only.
        let seen = format!("/proc/{}/root{}", plant.process(), plant.data.display());
        plant.data = PathBuf::from(seen);
        Some(plant)
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Starts it by a command that runs what it is given.
    fn run(&mut self, mut command: Command) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log_file)
            .unwrap();
        let child = command
            .arg("up")
            .arg(&self.manifests.0)
            .args(["--json", "--data"])
            .arg(&self.data)
            .args(&self.arguments)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Everything that it logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log_file).unwrap_or_default()
    }

    fn end_of_log(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// The cloud endpoint that it runs.
    pub(crate) fn cloud(&self) -> Cloud {
        Cloud::at(self.site.ports.http)
    }

    /// Everything that `foreshore status -o json` tells; null before it answers.
    pub(crate) fn status(&self) -> Value {
        let output = foreshore()
            .args(["status", "-o", "json", "--data"])
            .arg(&self.data)
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// What `foreshore status` prints for people.
    pub(crate) fn status_text(&self) -> String {
        let output = foreshore()
            .args(["status", "--data"])
            .arg(&self.data)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The row of an object in the status.
    pub(crate) fn object(&self, kind: &str, name: &str) -> Value {
        let status = self.status();
        let objects = status["objects"].as_array().cloned().unwrap_or_default();
        let row = objects
            .into_iter()
            .find(|row| row["kind"] == kind && row["name"] == name);
        row.unwrap_or_default()
    }

    /// The ledger's line of a path.
    pub(crate) fn path(&self, name: &str) -> Option<PathLedger> {
        let ledger: Vec<PathLedger> = serde_json::from_value(self.status()["ledger"].clone()).ok()?;
        ledger.into_iter().find(|path| path.path == name)
    }

    /// Waits until something holds, and fails with the status and the end of the log when it does not in time.
    pub(crate) fn wait_until(&self, what: &str, within: Duration, holds: impl FnMut() -> bool) {
        if !wait_until(within, holds) {
            panic!(
                "not in time: {what}\n{}\n{}\n{}",
                self.status_text(),
                self.status()["ledger"],
                self.end_of_log()
            );
        }
    }

    /// Waits until a path has delivered so much.
    pub(crate) fn wait_until_delivered(&self, name: &str, count: u64, within: Duration) {
        self.wait_until(&format!("{count} delivered by {name}"), within, || {
            self.path(name).is_some_and(|path| path.delivered >= count)
        });
    }

    /// Waits until a path delivers more than it has by now.
    pub(crate) fn wait_until_flowing(&self, name: &str) {
        let delivered = self.path(name).map_or(0, |path| path.delivered);
        self.wait_until_delivered(name, delivered + 10, START);
    }

    /// Waits until nothing waits, and the cloud counts what the ledger says that it acknowledged.
    pub(crate) fn wait_until_same_in(&self, cloud: &Cloud, name: &str) {
        self.wait_until(&format!("{name} counted alike"), START, || {
            self.path(name)
                .is_some_and(|path| path.emitted.is_some() && path.emitted == cloud.committed(name))
        });
    }

    pub(crate) fn invoke(&self, asset: &str, action: &str, input: &str) -> Output {
        foreshore()
            .args(["invoke", asset, action, input, "--data"])
            .arg(&self.data)
            .output()
            .unwrap()
    }

    /// Kills the process outright, with everything in it.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts again what was killed.
    pub(crate) fn restart(&mut self) {
        self.run(foreshore());
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.child.take().unwrap().wait().unwrap()
    }

    /// Ends in order and returns the closing ledger.
    pub(crate) fn end(&mut self) -> Vec<PathLedger> {
        signal(self.process(), "INT");
        self.closing()
    }

    /// Waits for the end and returns the closing ledger.
    pub(crate) fn closing(&mut self) -> Vec<PathLedger> {
        let mut child = self.child.take().unwrap();
        let line = first_line(child.stdout.take().unwrap());
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.end_of_log());
        serde_json::from_str::<Closing>(&line).unwrap().ledger
    }

    /// Ends in order; every path has to balance.
    pub(crate) fn end_balanced(&mut self) -> Vec<PathLedger> {
        let ledger = self.end();
        assert!(!ledger.is_empty());
        for path in &ledger {
            assert!(path.balances(), "{path:?}");
        }
        ledger
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn first_line(output: ChildStdout) -> String {
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).unwrap();
    line
}

/// Sends a signal to a process.
pub(crate) fn signal(process: u32, name: &str) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), process.to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}
