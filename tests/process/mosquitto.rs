//! Debian's mosquitto as another broker, and who listens to a broker.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use foreshore_peers::{Program, free_port, python, script};

use crate::{
    plant::{SOON, signal},
    site::{Site, wait_until},
};

/// A mosquitto that keeps sessions and messages on disk, written when it ends in order.
pub(crate) struct Mosquitto {
    pub(crate) port: u16,
    configuration: PathBuf,
    child: Child,
}

impl Mosquitto {
    pub(crate) fn start(site: &Site) -> Self {
        let port = free_port();
        let folder = site.path("mosquitto");
        fs::create_dir(&folder).unwrap();
        let configuration = folder.join("mosquitto.conf");
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\npersistence true\n\
             persistence_location {}/\nmax_queued_messages 0\nmax_queued_bytes 0\n",
            folder.display()
        );
        fs::write(&configuration, text).unwrap();
        let child = run(&configuration, port);
        Self {
            port,
            configuration,
            child,
        }
    }

    /// Ends in order and starts again.
    pub(crate) fn restart(&mut self) {
        signal(self.child.id(), "TERM");
        self.child.wait().unwrap();
        self.start_again();
    }

    /// Kills it outright: what it wrote last is all that it finds again.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts again what has ended.
    pub(crate) fn start_again(&mut self) {
        self.child = run(&self.configuration, self.port);
    }

    /// Publishes with its client, at QoS 1.
    pub(crate) fn publish(port: u16, arguments: &[&str]) {
        let output = client("mosquitto_pub", port, arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    /// The retained message of a topic as its client prints it in JSON, if there is one within a second.
    pub(crate) fn retained(port: u16, topic: &str) -> Option<String> {
        let read = ["-t", topic, "--retained-only", "-C", "1", "-W", "1", "-F", "%j"];
        let output = client("mosquitto_sub", port, &read);
        // 27 is its timeout, which some versions tell as success.
        assert!(matches!(output.status.code(), Some(0 | 27)), "{output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        Some(printed).filter(|printed| !printed.trim().is_empty())
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn client(program: &str, port: u16, arguments: &[&str]) -> Output {
    Command::new(program)
        .args([
            "-V",
            "mqttv5",
            "-h",
            "127.0.0.1",
            "-q",
            "1",
            "-p",
            &port.to_string(),
        ])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn run(configuration: &Path, port: u16) -> Child {
    let child = Command::new("/usr/sbin/mosquitto")
        .arg("-c")
        .arg(configuration)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    assert!(wait_until(SOON, listens), "mosquitto listens");
    child
}

/// Receives messages in a session that outlives its connections.
pub(crate) struct Collector {
    program: Program,
    /// Each message, by topic, as often as it came.
    pub(crate) messages: BTreeMap<String, Vec<String>>,
}

impl Collector {
    pub(crate) fn start(port: u16, topic: &str) -> Self {
        let name = format!("collector-{}", topic.trim_end_matches("/#"));
        let mut command = Command::new(python());
        command
            .arg(script("mqtt_collect.py"))
            .args([&port.to_string(), &name, topic]);
        Self {
            program: Program::start(command, "collecting"),
            messages: BTreeMap::new(),
        }
    }

    /// Takes what has come by now.
    pub(crate) fn hear(&mut self) {
        for line in self.program.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["message", topic, payload] = words[..] else {
                panic!("{line}")
            };
            self.messages
                .entry(topic.to_owned())
                .or_default()
                .push(payload.to_owned());
        }
    }

    /// How often a message has come by now.
    pub(crate) fn count(&mut self, topic: &str, payload: &str) -> usize {
        self.hear();
        let messages = self.messages.get(topic);
        messages.map_or(0, |all| all.iter().filter(|one| *one == payload).count())
    }

    /// The numbers of a topic as they came, of payloads `{"n":…`.
    pub(crate) fn numbers(&mut self, topic: &str) -> Vec<u64> {
        self.hear();
        let messages = self.messages.get(topic).into_iter().flatten();
        messages
            .map(|payload| payload.trim_start_matches("{\"n\":").parse().unwrap())
            .collect()
    }

    /// Waits until a message has come.
    pub(crate) fn wait_for(&mut self, topic: &str, payload: &str, within: Duration) {
        let came = wait_until(within, || self.count(topic, payload) > 0);
        assert!(came, "no {payload} at {topic}: {:?}", self.messages);
    }
}
