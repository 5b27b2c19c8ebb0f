//! An operator and roles, as tests need them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use foreshore_crds::conditions::reasons;
use foreshore_runtime::Shutdown;
use foreshore_tls::{
    AuthorityOptions, CertificateAuthority, Identity, Role as Kind, RoleIdentity, ServerName, TrustBundle,
};
use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    Agent, AgentOptions, Authority, Change, ControlHandle, ControlOptions, ControlServer, Nack, Observation,
    Observed, Reporter, Resource, ResourceKey, Role,
    enroll::{CredentialSource, LocalTokens},
    plan::{SecretPlan, SecretValue},
    session::agent::{AgentStatus, KeyWrap, LinkState},
};

pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// Waits, but not for ever.
pub(super) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

pub(super) fn role(uid: &str) -> RoleIdentity {
    RoleIdentity::new(Kind::Connector, "plant", "opcua", uid).unwrap()
}

pub(super) fn key(name: &str) -> ResourceKey {
    ResourceKey::new("Secret", "plant", name)
}

/// A resource whose content is `value`; roles of the harness refuse the content "bad".
pub(super) fn resource(name: &str, value: &str) -> Resource {
    let data = BTreeMap::from([("value".to_owned(), SecretValue(value.as_bytes().to_vec()))]);
    Resource::of(&SecretPlan {
        namespace: "plant".into(),
        name: name.into(),
        data,
    })
    .unwrap()
}

pub(super) fn authority(leaf_lifetime: Duration) -> Arc<CertificateAuthority> {
    let options = AuthorityOptions {
        leaf_lifetime,
        ..AuthorityOptions::default()
    };
    Arc::new(CertificateAuthority::create(options, Timestamp::now()).unwrap())
}

/// One instance of the operator. Several can share an authority and tokens.
pub(super) struct Operator {
    pub(super) authority: Arc<CertificateAuthority>,
    pub(super) tokens: LocalTokens,
    pub(super) handle: ControlHandle,
    pub(super) events: mpsc::Receiver<Observed>,
    pub(super) address: SocketAddr,
    shutdown: Shutdown,
    serving: JoinHandle<()>,
}

impl Operator {
    pub(super) async fn start() -> Self {
        Self::with(
            authority(Duration::from_secs(3600)),
            LocalTokens::new(),
            None,
            Some(1),
        )
        .await
    }

    pub(super) async fn with(
        authority: Arc<CertificateAuthority>,
        tokens: LocalTokens,
        address: Option<SocketAddr>,
        epoch: Option<u64>,
    ) -> Self {
        let names = [ServerName::try_from("127.0.0.1").unwrap()];
        let own = RoleIdentity::new(Kind::Operator, "foreshore", "operator", "1").unwrap();
        // The operator's own certificate is not what these tests are about: it is of today's root and lives long.
        let credentials = authority
            .issue_credentials(&own, &names, Timestamp::now())
            .unwrap();
        let identity = Identity::new(&credentials, authority.bundle()).unwrap();
        let listener = TcpListener::bind(address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap()))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let issuing = Authority::new(Arc::clone(&authority), |_| Vec::new());
        let (server, events) =
            ControlServer::new(ControlOptions::default(), issuing, Arc::new(tokens.clone()));
        let handle = server.handle();
        if let Some(epoch) = epoch {
            handle.lead(epoch);
        }
        let shutdown = Shutdown::new();
        let (ended, fresh) = (shutdown.clone(), Arc::clone(&authority));
        let serving = tokio::spawn(async move {
            tokio::select! {
                served = server.serve(listener, &identity, &ended) => served.unwrap(),
                () = identity.keep_fresh(&fresh, &own, &names) => {}
            }
        });
        Self {
            authority,
            tokens,
            handle,
            events,
            address,
            shutdown,
            serving,
        }
    }

    /// Ends the instance: connections are cut, as when the process is killed.
    pub(super) async fn kill(self) -> (Arc<CertificateAuthority>, LocalTokens, SocketAddr) {
        self.serving.abort();
        drop(self.serving.await);
        drop(self.events);
        (self.authority, self.tokens, self.address)
    }

    /// Ends the instance in order.
    pub(super) async fn end(self) -> (Arc<CertificateAuthority>, LocalTokens, SocketAddr) {
        self.shutdown.begin(Duration::from_secs(5));
        within("the operator's end", self.serving).await.unwrap();
        (self.authority, self.tokens, self.address)
    }

    pub(super) async fn event(&mut self, what: &str) -> Observation {
        within(what, self.events.recv())
            .await
            .expect("the server has ended")
            .what
    }

    /// Takes events until one is what is looked for.
    pub(super) async fn until<T>(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Observation) -> Option<T>,
    ) -> T {
        loop {
            if let Some(found) = wanted(&self.event(what).await) {
                return found;
            }
        }
    }

    pub(super) async fn connected(&mut self) {
        self.until("a connection", |seen| {
            matches!(seen, Observation::Connected { .. }).then_some(())
        })
        .await;
    }

    pub(super) async fn acknowledged(&mut self, name: &str) {
        let is_it = |seen: &Observation| match seen {
            Observation::Ack { resource } => (resource.key.name == name).then_some(()),
            Observation::Nack { resource, nack } if resource.key.name == name => panic!("refused: {nack}"),
            _ => None,
        };
        self.until(&format!("acknowledgement of {name}"), is_it).await;
    }

    pub(super) async fn disconnected(&mut self) -> (String, bool) {
        self.until("a disconnection", |seen| match seen {
            Observation::Disconnected { reason, on_purpose } => Some((reason.clone(), *on_purpose)),
            _ => None,
        })
        .await
    }
}

/// What a role of the harness did, in words: `set NAME=VALUE`, `remove NAME`, `complete`.
struct Recorder {
    /// Accepts what others refuse.
    tolerant: bool,
    /// Refused a value because of the surroundings, and will not a second time.
    was_hindered: bool,
    did: mpsc::UnboundedSender<String>,
}

#[async_trait]
impl Role for Recorder {
    async fn apply(&mut self, change: Change) -> Result<(), Nack> {
        let text = match change {
            Change::Set(resource) => {
                let secret: SecretPlan = resource.decode()?;
                let value = secret.data["value"].as_text().unwrap().to_owned();
                if value == "bad" && !self.tolerant {
                    return Err(Nack::new("BadValue", format!("{}: found bad", secret.name)));
                }
                if value == "hindered" && !std::mem::replace(&mut self.was_hindered, true) {
                    return Err(Nack::new(reasons::PORT_IN_USE, "the port is in use"));
                }
                format!("set {}={value}", secret.name)
            }
            Change::Remove(key) => format!("remove {}", key.name),
            Change::SnapshotComplete => "complete".to_owned(),
        };
        self.did.send(text).unwrap();
        Ok(())
    }
}

/// Where a role keeps its things, and how it finds the operator.
pub(super) struct Site {
    pub(super) directory: tempfile::TempDir,
    pub(super) addresses: Vec<String>,
    pub(super) trust: Option<TrustBundle>,
    pub(super) credential: Arc<dyn CredentialSource>,
    pub(super) capabilities: Vec<&'static str>,
    pub(super) tolerant: bool,
    pub(super) key_wrap: Option<Arc<dyn KeyWrap>>,
}

impl Site {
    pub(super) fn of(operator: &Operator, uid: &str) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            addresses: vec![operator.address.to_string()],
            trust: Some(operator.authority.bundle()),
            credential: operator.tokens.source(role(uid), Duration::from_secs(600)),
            capabilities: Vec::new(),
            tolerant: false,
            key_wrap: None,
        }
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn options(&self) -> AgentOptions {
        let directory: PathBuf = self.path().to_owned();
        let credential = Arc::clone(&self.credential);
        AgentOptions {
            trust: self.trust.clone(),
            key_wrap: self.key_wrap.clone(),
            capabilities: self.capabilities.iter().map(ToString::to_string).collect(),
            retry: (Duration::from_millis(20), Duration::from_millis(200)),
            report_interval: Duration::from_millis(10),
            ..AgentOptions::new(self.addresses.clone(), credential, directory)
        }
    }

    pub(super) fn start(&self) -> Running {
        let agent = Agent::new(self.options()).unwrap();
        let (did, done) = mpsc::unbounded_channel();
        let (reporter, identity, status) = (agent.reporter(), agent.identity(), agent.status());
        let shutdown = Shutdown::new();
        let task = tokio::spawn(agent.run(
            Recorder {
                did,
                tolerant: self.tolerant,
                was_hindered: false,
            },
            shutdown.clone(),
        ));
        Running {
            done,
            reporter,
            identity,
            status,
            shutdown,
            task,
        }
    }
}

/// A role that runs.
pub(super) struct Running {
    done: mpsc::UnboundedReceiver<String>,
    pub(super) reporter: Reporter,
    pub(super) identity: Identity,
    pub(super) status: watch::Receiver<AgentStatus>,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), crate::session::agent::Error>>,
}

impl Running {
    pub(super) async fn did(&mut self) -> String {
        within("a change", self.done.recv())
            .await
            .expect("the role has ended")
    }

    /// What it did up to the next end of a snapshot.
    pub(super) async fn did_until_complete(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            match self.did().await.as_str() {
                "complete" => return all,
                other => all.push(other.to_owned()),
            }
        }
    }

    /// What it did since it was last asked.
    pub(super) fn did_meanwhile(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.done.try_recv().ok()).collect()
    }

    pub(super) async fn wait(
        &mut self,
        what: &str,
        condition: impl FnMut(&AgentStatus) -> bool,
    ) -> AgentStatus {
        within(what, self.status.wait_for(condition))
            .await
            .unwrap()
            .clone()
    }

    /// Waits until it is not connected for a reason, and returns what it says of it.
    pub(super) async fn disconnected(&mut self, reason: &str) -> String {
        let is_it = |status: &AgentStatus| matches!(&status.link, LinkState::Disconnected { reason: found, .. } if *found == reason);
        match self.wait(&format!("disconnection: {reason}"), is_it).await.link {
            LinkState::Disconnected { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn end(self) {
        self.shutdown.begin(Duration::from_secs(5));
        within("the role's end", self.task).await.unwrap().unwrap();
    }
}
