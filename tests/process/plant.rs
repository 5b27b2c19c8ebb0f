//! A bottling line that runs: the example's manifests on free ports, in a directory of its own.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use foreshore_record::PathLedger;
use serde::Deserialize;
use serde_json::Value;

/// Token of the example's JSON API.
const API_TOKEN: &str = "example-api-token-0123456789abcdef";

/// One plant at a time: each is a whole system, and a small machine starts several very slowly.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A running `foreshore up`.
pub(crate) struct Plant {
    folder: tempfile::TempDir,
    child: Option<Child>,
    http: u16,
    /// Given back last.
    _turn: MutexGuard<'static, ()>,
}

#[derive(Deserialize)]
struct Closing {
    ledger: Vec<PathLedger>,
}

/// Waits until something holds; `false` when it does not in time.
pub(crate) fn wait_until(within: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + within;
    while Instant::now() < end {
        if holds() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    false
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn foreshore() -> Command {
    Command::new(env!("CARGO_BIN_EXE_foreshore"))
}

impl Plant {
    /// Starts the example on free ports.
    pub(crate) fn start() -> Self {
        // A test that failed has left nothing that this one uses.
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let manifests = folder.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        let ports = [
            ("port: 1883", free_port()),
            ("port: 7443", free_port()),
            ("port: 7080", free_port()),
        ];
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples/bottling-line");
        for entry in fs::read_dir(example).unwrap() {
            let entry = entry.unwrap();
            let mut text = fs::read_to_string(entry.path()).unwrap();
            for (port, free) in &ports {
                text = text.replace(port, &format!("port: {free}"));
            }
            fs::write(manifests.join(entry.file_name()), text).unwrap();
        }
        let mut plant = Self {
            folder,
            child: None,
            http: ports[2].1,
            _turn: turn,
        };
        plant.run();
        plant
    }

    fn run(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))
            .unwrap();
        let child = foreshore()
            .arg("up")
            .arg(self.manifests())
            .args(["--json", "--data"])
            .arg(self.data())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        log.lines()
            .rev()
            .take(40)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Everything that `foreshore status -o json` tells; null before it answers.
    pub(crate) fn status(&self) -> Value {
        let output = foreshore()
            .args(["status", "-o", "json", "--data"])
            .arg(self.data())
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// The ledger's line of a path.
    pub(crate) fn path(&self, name: &str) -> Option<PathLedger> {
        let ledger: Vec<PathLedger> = serde_json::from_value(self.status()["ledger"].clone()).ok()?;
        ledger.into_iter().find(|path| path.path == name)
    }

    /// Waits until a path has delivered so much.
    pub(crate) fn wait_until_delivered(&self, name: &str, count: u64, within: Duration) {
        let reached = wait_until(within, || {
            self.path(name).is_some_and(|path| path.delivered >= count)
        });
        assert!(
            reached,
            "{:?} of {count}\n{}\n{}",
            self.path(name),
            self.status()["objects"],
            self.log()
        );
    }

    /// What the cloud itself counts for a path.
    pub(crate) fn cloud_count(&self, name: &str) -> Option<u64> {
        let request = format!(
            "GET /api/ledger HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {API_TOKEN}\r\nconnection: close\r\n\r\n"
        );
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.http)).ok()?;
        std::io::Write::write_all(&mut stream, request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        find_count(&body, name)
    }

    pub(crate) fn invoke(&self, asset: &str, action: &str, input: &str) -> Output {
        foreshore()
            .args(["invoke", asset, action, input, "--data"])
            .arg(self.data())
            .output()
            .unwrap()
    }

    /// What a second process says that is given the same data directory.
    pub(crate) fn second(&self) -> Output {
        foreshore()
            .arg("up")
            .arg(self.manifests())
            .arg("--data")
            .arg(self.data())
            .output()
            .unwrap()
    }

    /// Kills the process with everything in it, and starts it again.
    pub(crate) fn kill_and_restart(mut self) -> Self {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        self.run();
        self
    }

    /// Ends in order and returns the closing ledger.
    pub(crate) fn end(mut self) -> Vec<PathLedger> {
        let mut child = self.child.take().unwrap();
        let interrupted = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap();
        assert!(interrupted.success());
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
        serde_json::from_str::<Closing>(&line).unwrap().ledger
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

/// Finds the count of a path wherever the answer lists it.
fn find_count(value: &Value, name: &str) -> Option<u64> {
    match value {
        Value::Array(items) => items.iter().find_map(|item| find_count(item, name)),
        Value::Object(members) if members.get("path").and_then(Value::as_str) == Some(name) => {
            ["committed", "received", "count"]
                .iter()
                .find_map(|key| members.get(*key).and_then(Value::as_u64))
        }
        Value::Object(members) => members.values().find_map(|member| find_count(member, name)),
        _ => None,
    }
}
