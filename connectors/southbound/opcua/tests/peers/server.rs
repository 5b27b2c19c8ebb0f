//! Servers that others wrote, as programs of their own.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use foreshore_peers::{Program, free_port, node, python, script};
use tempfile::TempDir;

/// Generous: a deadline, never a measurement.
pub(crate) const SOON: Duration = Duration::from_secs(120);

/// Whether everything is to be run, however long it takes.
pub(crate) fn full() -> bool {
    std::env::var("FORESHORE_TEST_FULL").is_ok_and(|full| !full.is_empty())
}

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// asyncua.
    Asyncua,
    /// node-opcua.
    Node,
}

/// A running server. It blocks: tests use a runtime of several threads.
pub(crate) struct Server {
    kind: Kind,
    port: u16,
    directory: TempDir,
    program: Program,
}

/// What a server says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) sessions: usize,
    pub(crate) subscriptions: usize,
}

impl Server {
    pub(crate) fn start(kind: Kind, options: &[&str]) -> Self {
        Self::start_prepared(kind, options, |_| {})
    }

    /// As [`start`](Self::start), with files put into its directory first.
    pub(crate) fn start_prepared(kind: Kind, options: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path());
        let port = free_port();
        let program = run(kind, port, directory.path().to_owned(), options);
        Self {
            kind,
            port,
            directory,
            program,
        }
    }

    /// Kills it as a power cut would; it comes back only with [`start_again`](Self::start_again).
    pub(crate) fn kill(&mut self) {
        self.program.kill();
    }

    /// Starts it again on the same port, with the same certificate.
    pub(crate) fn start_again(&mut self, options: &[&str]) {
        self.program = run(self.kind, self.port, self.directory.path().to_owned(), options);
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> String {
        format!("opc.tcp://127.0.0.1:{}", self.port)
    }

    /// Its certificate, DER.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("certificate.der")).unwrap()
    }

    /// The certificate of the authority that signed its own, DER; asyncua's only.
    pub(crate) fn authority(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("authority.der")).unwrap()
    }

    /// Its key, PEM; asyncua's only.
    pub(crate) fn key(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("key.pem")).unwrap()
    }

    /// The address of the type of its events.
    pub(crate) fn event_type(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("event-type")).unwrap()
    }

    /// Sends it a signal, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.program.id());
        assert!(
            Command::new("sh")
                .args(["-c", &command])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits until it has so many sessions and subscriptions.
    pub(crate) fn wait_for_counts(&mut self, wanted: Counts) {
        let end = Instant::now() + SOON;
        loop {
            let found = self.counts();
            if found == wanted {
                return;
            }
            assert!(Instant::now() < end, "the server has {found:?}, not {wanted:?}");
        }
    }

    /// The next count that it prints.
    pub(crate) fn counts(&mut self) -> Counts {
        drop(self.program.lines());
        let line = self.program.wait_for("sessions=", SOON);
        let number = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=")).unwrap();
            rest.split(' ').next().unwrap().parse().unwrap()
        };
        Counts {
            sessions: number("sessions"),
            subscriptions: number("subscriptions"),
        }
    }

    /// What it printed since the last look.
    pub(crate) fn printed(&mut self) -> Vec<String> {
        self.program.lines()
    }
}

fn run(kind: Kind, port: u16, directory: PathBuf, options: &[&str]) -> Program {
    let mut command = match kind {
        Kind::Asyncua => {
            let mut command = Command::new(python());
            command.arg(script("opcua_asyncua.py"));
            command
        }
        Kind::Node => {
            let mut command = Command::new("node");
            command.arg(script("opcua_node.js")).current_dir(node());
            command
        }
    };
    command.arg(port.to_string()).arg(directory).args(options);
    Program::start(command, "ready")
}
