//! The brokers that are measured, and how each is started.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Result;

use crate::{Plan, plant::Plant, program::Program};

/// Name of the Secret and the files that hold the certificate of encrypted listeners.
pub(super) const CERTIFICATE: &str = "certificate.pem";
pub(super) const KEY: &str = "key.pem";

/// A broker that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Debian's, an independent program: the unit of all ratios.
    Mosquitto,
    /// Embedded by `peers`, as its authors' example has it.
    Rumqttd,
    /// Embedded by `peers`.
    Rmqtt,
    /// Ours, in memory.
    Memory,
    /// Ours as it is by default: on its disk.
    Ours,
    /// Ours with an encrypted store.
    Sealed,
}

impl Contender {
    /// Brokers under loads that none of them has to keep: ours is the same with both stores.
    pub(super) const ALIKE: [Self; 4] = [Self::Mosquitto, Self::Rumqttd, Self::Rmqtt, Self::Ours];
    /// Brokers under loads that have to be kept for sessions that outlive their connections.
    pub(super) const DURABLE: [Self; 4] = [Self::Mosquitto, Self::Memory, Self::Ours, Self::Sealed];
    /// Brokers with encrypted listeners.
    pub(super) const ENCRYPTED: [Self; 2] = [Self::Mosquitto, Self::Ours];

    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Mosquitto => "mosquitto",
            Self::Rumqttd => "rumqttd",
            Self::Rmqtt => "rmqtt",
            Self::Memory => "ours, memory",
            Self::Ours => "ours",
            Self::Sealed => "ours, encrypted store",
        }
    }

    /// Whether it may fail without an end of all measurements: figures of a broker that can't bear a load are told as
    /// missing.
    pub(super) fn may_fail(self) -> bool {
        matches!(self, Self::Rumqttd | Self::Rmqtt)
    }

    /// Whether it can be started here.
    pub(super) fn is_there(self, plan: &Plan) -> bool {
        !self.may_fail() || plan.peers.is_some()
    }

    /// Starts it, and waits until it takes connections.
    pub(super) fn start(self, plan: &Plan, folder: &Path, port: u16) -> Result<Program> {
        let mut command = match self {
            Self::Mosquitto => {
                let configuration = folder.join("mosquitto.conf");
                fs::write(&configuration, mosquitto(folder, port, ""))?;
                let mut command = plan.cores.broker(&plan.mosquitto);
                command.arg("-c").arg(configuration);
                command
            }
            Self::Rumqttd | Self::Rmqtt => {
                let program = format!("bench-{}", self.name());
                let programs = plan.peers.clone().unwrap_or_default();
                let mut command = plan.cores.broker(&programs.join(program));
                command.arg(format!("127.0.0.1:{port}"));
                command
            }
            Self::Memory | Self::Ours | Self::Sealed => {
                let store = if self == Self::Memory { "memory" } else { "fjall" };
                let mut command = plan.cores.broker(&plan.foreshore);
                command
                    .args(["broker", "--anonymous", "--log", "warn", "--store", store])
                    .args(["--listen", &format!("127.0.0.1:{port}"), "--data"])
                    .arg(folder.join("data"));
                if self == Self::Sealed {
                    command.arg("--encryption-keys").arg(encryption_keys(folder)?);
                }
                command
            }
        };
        let mut broker = Program::start(command.stdout(Stdio::null()), &folder.join("broker"))?;
        broker.wait_for_port(port)?;
        Ok(broker)
    }

    /// Starts it with a listener that is encrypted; returns the file of its certificate too.
    pub(super) fn start_encrypted(self, plan: &Plan, folder: &Path, port: u16) -> Result<(Program, PathBuf)> {
        let made = rcgen::generate_simple_self_signed([crate::mqtt::hold::SERVER.to_owned()])?;
        let (certificate, key) = (folder.join(CERTIFICATE), folder.join(KEY));
        fs::write(&certificate, made.cert.pem())?;
        fs::write(&key, made.signing_key.serialize_pem())?;
        let mut broker = if self == Self::Mosquitto {
            let configuration = folder.join("mosquitto.conf");
            let files = format!("certfile {}\nkeyfile {}\n", certificate.display(), key.display());
            fs::write(&configuration, mosquitto(folder, port, &files))?;
            let mut command = plan.cores.broker(&plan.mosquitto);
            command.arg("-c").arg(configuration).stdout(Stdio::null());
            Program::start(&mut command, &folder.join("broker"))?
        } else {
            let manifests = folder.join("manifests");
            fs::create_dir(&manifests)?;
            let text = manifest(port, &made.cert.pem(), &made.signing_key.serialize_pem());
            fs::write(manifests.join("broker.yaml"), text)?;
            let mut plant = Plant::start(plan, &manifests, folder, 0)?;
            plant.wait_until_healthy()?;
            plant.program
        };
        broker.wait_for_port(port)?;
        Ok((broker, certificate))
    }
}

/// A folder with a key for a store.
fn encryption_keys(folder: &Path) -> Result<PathBuf> {
    let keys = folder.join("keys");
    fs::create_dir_all(&keys)?;
    let key = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(keys.join("bench"));
    key?.write_all(&[7; 32])?;
    Ok(keys)
}

/// mosquitto's configuration: queues without bound, so that nothing is dropped; its file is written as Debian's own
/// configuration has it, every half hour and at the end.
fn mosquitto(folder: &Path, port: u16, listener: &str) -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    format!(
        "listener {port} 127.0.0.1\n{listener}allow_anonymous true\nset_tcp_nodelay true\nuser {user}\n\
         persistence true\npersistence_location {}/\nmax_queued_messages 0\nmax_inflight_messages 1000\n\
         log_type error\nlog_type warning\n",
        folder.display()
    )
}

/// Our broker with one encrypted listener: that needs manifests.
fn manifest(port: u16, certificate: &str, key: &str) -> String {
    let indented = |text: &str| text.trim_end().replace('\n', "\n    ");
    format!(
        "apiVersion: foreshore.dev/v1alpha1
kind: Broker
metadata:
  name: broker
  namespace: bench
spec:
  listeners:
  - name: tls
    port: {port}
    protocol: Tls
    tls:
      secretRef:
        name: certificate
    authentication:
    - anonymous: {{}}
  storage:
    backend: Fjall
  limits:
    maxConnections: 20000
---
apiVersion: v1
kind: Secret
metadata:
  name: certificate
  namespace: bench
type: kubernetes.io/tls
stringData:
  tls.crt: |
    {}
  tls.key: |
    {}
",
        indented(certificate),
        indented(key)
    )
}
