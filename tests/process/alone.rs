//! A broker alone: `foreshore broker` as a process, and the load of everything that it has to keep.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use foreshore_peers::{Program, free_port, python, script};
use foreshore_record::PathLedger;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    plant::{SOON, START, foreshore, signal},
    site::wait_until,
};

/// Longer than the load waits for what was acknowledged.
const END: Duration = Duration::from_secs(300);

/// The seed of a test that is random: told, and given again to repeat it.
pub(crate) fn seed() -> u64 {
    let seed =
        std::env::var("FORESHORE_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    eprintln!("FORESHORE_TEST_SEED={seed}");
    seed
}

/// What a test chooses by chance; other tests, and disks, choose by other generators of the same seed.
pub(crate) fn random(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// A broker that lets everybody in; killed when this is dropped.
pub(crate) struct Alone {
    data: PathBuf,
    log: PathBuf,
    pub(crate) port: u16,
    /// Port of its metrics.
    http: u16,
    /// What its store is encrypted with, if it is, and what else is said of that.
    encryption: Vec<OsString>,
    child: Option<Child>,
}

impl Alone {
    /// A broker that does not run yet, with its data in one folder and its log in a file of another.
    pub(crate) fn new(data: &Path, log: &Path) -> Self {
        Self {
            data: data.to_owned(),
            log: log.to_owned(),
            port: free_port(),
            http: free_port(),
            encryption: Vec::new(),
            child: None,
        }
    }

    /// Encrypts its store with the keys of a folder, from its next start on.
    pub(crate) fn encrypt(&mut self, keys: &Path) {
        self.encryption = vec!["--encryption-keys".into(), keys.into()];
    }

    /// Encrypts a store that is there too.
    pub(crate) fn encrypt_existing(&mut self) {
        self.encryption.push("--encrypt-existing".into());
    }

    /// Names no keys.
    pub(crate) fn encrypt_no_more(&mut self) {
        self.encryption.clear();
    }

    /// Starts it.
    pub(crate) fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(&self.log);
        let child = foreshore()
            .args(["broker", "--anonymous", "--listen"])
            .arg(format!("127.0.0.1:{}", self.port))
            .args(["--http", &format!("127.0.0.1:{}", self.http)])
            .arg("--data")
            .arg(&self.data)
            .args(&self.encryption)
            .stderr(log.unwrap())
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// Waits until it lets clients in.
    pub(crate) fn wait_until_open(&self) {
        // It listens for clients before it tells its metrics.
        let open = wait_until(START, || self.metrics().is_some());
        assert!(open, "the broker does not start: {}", self.log());
    }

    /// Kills it outright.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// How it ended by itself, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap();
        if status.is_some() {
            self.child = None;
        }
        status
    }

    /// Waits until it ends by itself.
    pub(crate) fn wait_for_end(&mut self) -> ExitStatus {
        let mut status = None;
        let ended = wait_until(SOON, || {
            status = self.ended();
            status.is_some()
        });
        assert!(ended, "the broker goes on: {}", self.log());
        status.unwrap()
    }

    /// Ends it in order.
    pub(crate) fn stop(&mut self) {
        signal(self.child.as_ref().unwrap().id(), "TERM");
        let status = self.wait_for_end();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Everything that it logged, from its first life on.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it logged since there were so many bytes.
    pub(crate) fn log_since(&self, length: usize) -> String {
        self.log().split_off(length)
    }

    /// What became of every message of a durable queue; nothing when it does not answer.
    pub(crate) fn ledger(&self) -> Option<Vec<PathLedger>> {
        let mut stream = UnixStream::connect(self.data.join("admin.sock")).ok()?;
        stream.write_all(b"{\"ask\":\"ledger\"}\n").ok()?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).ok()?;
        let mut answer: Value = serde_json::from_str(&answer).ok()?;
        serde_json::from_value(answer["Ok"].take()).ok()
    }

    /// What it counts; nothing when it does not answer.
    pub(crate) fn metrics(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).ok()?;
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Proves that nothing is wrong in the store of a broker that does not run.
    pub(crate) fn verify(&self) {
        let found = foreshore()
            .args(["store", "verify"])
            .arg(&self.data)
            .args(&self.encryption)
            .output()
            .unwrap();
        assert!(
            found.status.success(),
            "{}{}",
            String::from_utf8_lossy(&found.stdout),
            String::from_utf8_lossy(&found.stderr)
        );
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

/// Persistent sessions that stay and that come and go, a shared subscription and retained messages, with QoS 1 and 2.
pub(crate) struct Mixed {
    load: Program,
    acknowledged: u64,
    refused: u64,
}

impl Mixed {
    /// Loads the broker at a port.
    pub(crate) fn start(port: u16) -> Self {
        let mut load = Command::new(python());
        load.arg(script("mqtt_mixed.py")).arg(port.to_string());
        Self {
            load: Program::start(load, "loading"),
            acknowledged: 0,
            refused: 0,
        }
    }

    /// Publishes that were acknowledged, and that were refused, by now.
    pub(crate) fn counts(&mut self) -> (u64, u64) {
        for line in self.load.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["acknowledged", acknowledged, "refused", refused] = words[..] {
                self.acknowledged = acknowledged.parse().unwrap();
                self.refused = refused.parse().unwrap();
            }
        }
        (self.acknowledged, self.refused)
    }

    /// Waits until so many more publishes have been acknowledged.
    pub(crate) fn wait_for(&mut self, more: u64) {
        let wanted = self.counts().0 + more;
        let enough = wait_until(SOON, || self.counts().0 >= wanted);
        assert!(enough, "{} of {wanted} acknowledged", self.acknowledged);
    }

    /// Ends the load. Everybody has what was acknowledged, nobody has a message of QoS 2 twice, no session is gone; and it
    /// was more than a little.
    pub(crate) fn assert_nothing_lost(mut self) {
        signal(self.load.id(), "TERM");
        let told: Value = serde_json::from_str(&self.load.wait_for("missing", END)).unwrap();
        eprintln!("acknowledged: {}", told["acknowledged"]);
        for kind in ["one", "two", "retained"] {
            assert!(
                told["acknowledged"][kind]
                    .as_u64()
                    .is_some_and(|count| count > 100),
                "{told:#}"
            );
        }
        for (wrong, nothing) in [
            ("missing", json!({})),
            ("twice", json!({})),
            ("unanswered", json!({})),
            ("stale", json!([])),
            ("sessions", json!([])),
        ] {
            assert_eq!(told[wrong], nothing, "{wrong}: {told:#}");
        }
    }
}
