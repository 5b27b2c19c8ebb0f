//! The broker's role: a plan in force, and changed while clients are connected.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use foreshore_broker::{BrokerRole, RoleOptions, Served};
use foreshore_control::{
    Change, Health, Nack, ObjectRef, PlanResource, Report, Resource, Role,
    plan::{BrokerPlan, BrokerPolicyPlan, PathOverflow, PathPlan, SecretPlan, SecretValue},
    queue::{Paths, client::RemotePaths},
    transport::ConnectOptions,
};
use foreshore_peers::free_port;
use foreshore_record::TopicFilter;
use foreshore_runtime::{Metrics, Shutdown};
use foreshore_tls::{
    AuthorityOptions, CertificateAuthority, Identity, Role as RoleKind, RoleIdentity, ServerName,
};
use jiff::Timestamp;
use parking_lot::Mutex;
use rmqtt_codec::{
    types::QoS,
    v5::{self, DisconnectReasonCode, SubscribeAckReason},
};
use tempfile::TempDir;
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::TlsConnector;

use crate::{
    auth::Issuer,
    client::{Client, GENEROUS, hello},
    probe::certificate,
};

pub(crate) struct Plant {
    role: BrokerRole,
    served: watch::Receiver<Served>,
    reports: Arc<Mutex<Vec<Report>>>,
    authority: CertificateAuthority,
    directory: TempDir,
}

fn identity(authority: &CertificateAuthority, role: RoleKind, name: &str) -> Identity {
    let names = [ServerName::try_from("localhost").unwrap()];
    let role = RoleIdentity::new(role, "plant", name, "u1").unwrap();
    let credentials = authority
        .issue_credentials(&role, &names, Timestamp::now())
        .unwrap();
    Identity::new(&credentials, authority.bundle()).unwrap()
}

pub(crate) fn object(name: &str) -> ObjectRef {
    ObjectRef {
        namespace: "plant".into(),
        name: name.into(),
        uid: "u".into(),
        generation: 1,
    }
}

pub(crate) fn broker(spec: serde_json::Value) -> BrokerPlan {
    BrokerPlan {
        object: object("main"),
        spec: serde_json::from_value(spec).unwrap(),
    }
}

pub(crate) fn policy(rules: serde_json::Value) -> BrokerPolicyPlan {
    BrokerPolicyPlan {
        object: object("policy"),
        spec: serde_json::from_value(serde_json::json!({ "rules": rules })).unwrap(),
    }
}

/// A Secret with users and their passwords.
pub(crate) fn users(users: &[(&str, &str)]) -> SecretPlan {
    let data = users
        .iter()
        .map(|(name, password)| ((*name).into(), SecretValue(password.as_bytes().to_vec())));
    SecretPlan {
        namespace: "plant".into(),
        name: "users".into(),
        data: data.collect(),
    }
}

impl Plant {
    pub(crate) fn new() -> Self {
        Self::keeping(tempfile::tempdir().unwrap(), None)
    }

    /// One whose store is below a folder, with keys for it or not.
    pub(crate) fn keeping(directory: TempDir, encryption_keys: Option<PathBuf>) -> Self {
        foreshore_tls::install_provider();
        let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
        let reports = Arc::<Mutex<Vec<Report>>>::default();
        let collected = Arc::clone(&reports);
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (role, served) = BrokerRole::new(RoleOptions {
            identity: identity(&authority, RoleKind::Broker, "main"),
            report: Arc::new(move |report| collected.lock().push(report)),
            directory: directory.path().join("store"),
            encryption_keys,
            encrypt_existing: false,
            metrics: Metrics::new(),
            default_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            mqtt_address: any_port,
            queue_address: any_port,
            shutdown: Shutdown::new(),
        });
        Self {
            role,
            served,
            reports,
            authority,
            directory,
        }
    }

    pub(crate) async fn set<T: PlanResource>(&mut self, plan: &T) -> Result<(), Nack> {
        self.role.apply(Change::Set(Resource::of(plan).unwrap())).await
    }

    /// Folder in which the role keeps what it keeps.
    pub(crate) fn folder(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn address(&self, listener: &str) -> SocketAddr {
        self.served.borrow().listeners[listener].address
    }

    pub(crate) fn url(&self, listener: &str) -> String {
        let served = self.served.borrow();
        let endpoint = &served.listeners[listener];
        endpoint.protocol.url(&endpoint.address.to_string())
    }

    pub(crate) fn health(&self, listener: &str) -> (Health, String) {
        let reports = self.reports.lock();
        let report = reports
            .iter()
            .rev()
            .find(|report| report.aspect.name == listener)
            .unwrap();
        (report.health, report.reason.to_string())
    }
}

fn login(client_id: &str, user: &'static str, password: &'static str) -> v5::Connect {
    let password = Some(bytes::Bytes::from_static(password.as_bytes()));
    v5::Connect {
        username: Some(user.into()),
        password,
        ..hello(client_id)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_comes_into_force_and_changes_without_disconnecting_others() {
    let mut plant = Plant::new();
    let listeners = |more: &[serde_json::Value]| {
        let password = serde_json::json!([{ "usernamePassword": { "secretRef": { "name": "users" } } }]);
        let mut all = vec![
            serde_json::json!({ "name": "mqtt", "port": free_port(), "protocol": "Tcp", "authentication": password }),
        ];
        all.extend(more.iter().cloned());
        all
    };
    let first = listeners(&[]);
    // Without its Secret the listener can't be opened, which is told; everything else stands.
    let nack = plant
        .set(&broker(serde_json::json!({ "listeners": first })))
        .await
        .unwrap_err();
    assert_eq!(nack.reason, "SecretNotFound");
    assert_eq!(
        plant.health("mqtt"),
        (Health::Unavailable, "SecretNotFound".to_owned())
    );
    plant
        .set(&users(&[("alice", "one"), ("bob", "two")]))
        .await
        .unwrap();
    assert_eq!(plant.health("mqtt").0, Health::Available);
    let address = plant.address("mqtt");
    let (mut alice, _) = Client::connect(address, login("a", "alice", "one")).await;
    let (mut bob, _) = Client::connect(address, login("b", "bob", "two")).await;

    plant.set(&users(&[("alice", "one")])).await.unwrap();
    assert_eq!(bob.expect_disconnect().await, DisconnectReasonCode::NotAuthorized);
    let wrong = users(&[("alice", "$argon2id$wrong")]);
    assert_eq!(plant.set(&wrong).await.unwrap_err().reason, "SecretInvalid");

    let mut both = first.clone();
    both.push(serde_json::json!({
        "name": "open", "port": free_port(), "protocol": "Tcp", "authentication": [{ "anonymous": {} }],
    }));
    plant
        .set(&broker(serde_json::json!({ "listeners": both })))
        .await
        .unwrap();
    let mut guest = Client::clean(plant.address("open"), "guest").await;
    let policy = serde_json::json!({ "rules": [
        { "name": "users", "effect": "Allow", "actions": ["Connect", "Publish", "Subscribe"],
          "principals": { "users": ["*"] } },
    ]});
    let policy = BrokerPolicyPlan {
        object: object("policy"),
        spec: serde_json::from_value(policy).unwrap(),
    };
    plant.set(&policy).await.unwrap();
    assert_eq!(
        guest.expect_disconnect().await,
        DisconnectReasonCode::NotAuthorized
    );
    assert_eq!(
        alice.subscribe("a", QoS::AtLeastOnce).await,
        SubscribeAckReason::GrantedQos1
    );

    // Other storage needs another broker; a listener that goes takes its own clients along only.
    let memory = broker(serde_json::json!({ "listeners": first, "storage": { "backend": "Memory" } }));
    assert_eq!(plant.set(&memory).await.unwrap_err().reason, "UnsupportedHere");
    plant
        .set(&broker(serde_json::json!({ "listeners": first })))
        .await
        .unwrap();
    assert!(!plant.served.borrow().listeners.contains_key("open"));
    alice.ping().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_clients_can_not_use_is_told_until_they_can() {
    let mut plant = Plant::new();
    let secret = |until| {
        let (certificate, key) = certificate(until);
        let values = [("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem())];
        SecretPlan {
            namespace: "plant".into(),
            name: "server".into(),
            data: values
                .into_iter()
                .map(|(name, text)| (name.into(), SecretValue(text.into_bytes())))
                .collect(),
        }
    };
    plant.set(&secret(2001)).await.unwrap();
    let spec = serde_json::json!({
        "probe": { "interval": "100ms" },
        "listeners": [{
            "name": "mqtt", "port": free_port(), "protocol": "Tls", "authentication": [{ "anonymous": {} }],
            "tls": { "secretRef": { "name": "server" } },
        }],
    });
    plant.set(&broker(spec)).await.unwrap();
    let until = async |plant: &Plant, health, reason: &str| {
        let told = async {
            while plant.health("mqtt") != (health, reason.to_owned()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(GENEROUS, told).await.unwrap();
    };
    until(&plant, Health::Unavailable, "ProbeFailed").await;
    plant.set(&secret(2999)).await.unwrap();
    until(&plant, Health::Available, "Healthy").await;
    // The listener of our own roles asks for certificates of theirs, and is well.
    let own = plant.served.borrow().broker.clone().unwrap();
    let reports = own.probe(GENEROUS).await;
    assert!(
        reports.iter().all(|report| report.failure.is_none()),
        "{reports:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dataflows_read_their_queues_and_no_others() {
    let mut plant = Plant::new();
    let path = |name: &str, reader: &str| PathPlan {
        namespace: "plant".into(),
        path: name.into(),
        topics: vec![TopicFilter::new("foreshore/data/#").unwrap()],
        max_bytes: None,
        max_age_seconds: None,
        overflow: PathOverflow::Reject,
        reader: reader.into(),
    };
    // Before and after the broker's own plan.
    plant.set(&path("dataflow/plant/a->s", "runner")).await.unwrap();
    plant.set(&broker(serde_json::json!({}))).await.unwrap();
    plant.set(&path("dataflow/plant/b->s", "other")).await.unwrap();
    plant.role.apply(Change::SnapshotComplete).await.unwrap();
    let queues = plant.served.borrow().queues.unwrap().to_string();
    let runner = identity(&plant.authority, RoleKind::Dataflow, "runner");
    let name = ServerName::try_from("localhost").unwrap();
    let remote = RemotePaths::new(&[queues], &runner, &name, &ConnectOptions::default()).unwrap();
    assert!(remote.open("dataflow/plant/a->s").await.is_ok());
    let error = remote.open("dataflow/plant/b->s").await.err().unwrap();
    assert!(
        matches!(error, foreshore_control::queue::Error::Forbidden { .. }),
        "{error}"
    );
    let key = path("dataflow/plant/a->s", "runner").key();
    plant.role.apply(Change::Remove(key)).await.unwrap();
    assert!(remote.open("dataflow/plant/a->s").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_come_in_with_their_own_certificates() {
    let mut plant = Plant::new();
    let outside = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
    let issue = |name: &str| {
        let identity = RoleIdentity::new(RoleKind::Edge, "outside", name, "u").unwrap();
        let names = [ServerName::try_from("localhost").unwrap()];
        outside
            .issue_credentials(&identity, &names, Timestamp::now())
            .unwrap()
    };
    let server = issue("server");
    let secret = |name: &str, data: Vec<(&str, Vec<u8>)>| SecretPlan {
        namespace: "plant".into(),
        name: name.into(),
        data: data
            .into_iter()
            .map(|(key, value)| (key.to_owned(), SecretValue(value)))
            .collect(),
    };
    // One text with both sections; each key reads its own.
    let pem = server.to_pem().into_bytes();
    let tls = vec![("tls.crt", pem.clone()), ("tls.key", pem)];
    plant.set(&secret("server", tls)).await.unwrap();
    plant
        .set(&secret(
            "clients",
            vec![("ca.crt", outside.bundle().to_pem().into_bytes())],
        ))
        .await
        .unwrap();
    let listener = serde_json::json!({
        "name": "tls", "port": free_port(), "protocol": "Tls",
        "tls": { "secretRef": { "name": "server" } },
        "authentication": [{ "x509": { "caSecretRef": { "name": "clients" }, "usernameFrom": "Uri" } }],
    });
    plant
        .set(&broker(serde_json::json!({ "listeners": [listener] })))
        .await
        .unwrap();
    let connect = async |authority: &CertificateAuthority, credentials: &foreshore_tls::Credentials| {
        let config = Identity::new(credentials, authority.bundle())
            .unwrap()
            .client_config()
            .unwrap();
        let stream = TcpStream::connect(plant.address("tls")).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    };
    let device = issue("device");
    let mut client = Client::over(connect(&outside, &device).await.unwrap());
    client.send(v5::Packet::Connect(Box::new(hello("device")))).await;
    assert_eq!(client.connack().await.reason_code, v5::ConnectAckReason::Success);
    let served = plant.served.borrow().broker.clone().unwrap();
    let username = served.sessions(None, 10).await.unwrap().items[0]
        .connection
        .clone()
        .unwrap()
        .username
        .unwrap();
    assert_eq!(username, "spiffe://foreshore/edge/outside/device/u");
    // A certificate of our own roles is a stranger's here.
    let own = RoleIdentity::new(RoleKind::Connector, "plant", "c", "u").unwrap();
    let own = plant
        .authority
        .issue_credentials(&own, &[], Timestamp::now())
        .unwrap();
    if let Ok(stream) = connect(&outside, &own).await {
        Client::over(stream).expect_end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_believed_as_the_manifest_says() {
    let (mut plant, issuer) = (Plant::new(), Issuer::start().await);
    let port = free_port();
    let listener = |audience: &str| {
        let jwt = serde_json::json!({
            "issuer": issuer.url, "audiences": [audience], "usernameClaim": "name", "caSecretRef": { "name": "issuer" },
        });
        broker(serde_json::json!({ "listeners": [{
            "name": "mqtt", "port": port, "protocol": "Tcp", "authentication": [{ "jwt": jwt }],
        }]}))
    };
    assert_eq!(
        plant.set(&listener("plant")).await.unwrap_err().reason,
        "SecretNotFound"
    );
    let authority = SecretPlan {
        namespace: "plant".into(),
        name: "issuer".into(),
        data: [(
            "ca.crt".to_owned(),
            SecretValue(issuer.authority.bundle().to_pem().into_bytes()),
        )]
        .into(),
    };
    plant.set(&authority).await.unwrap();
    let token = issuer.token("subject", 600, &serde_json::json!({ "name": "alice" }));
    let connect = |client_id| v5::Connect {
        auth_method: Some("JWT".into()),
        auth_data: Some(token.clone()),
        ..hello(client_id)
    };
    let (mut alice, _) = Client::connect(plant.address("mqtt"), connect("c")).await;
    let served = plant.served.borrow().broker.clone().unwrap();
    let sessions = served.sessions(None, 10).await.unwrap().items;
    let username = sessions[0].connection.clone().unwrap().username;
    assert_eq!(username.as_deref(), Some("alice"));
    // Something else changes: the issuer is not asked anew, and nobody leaves.
    plant.set(&users(&[("bob", "two")])).await.unwrap();
    plant.set(&listener("plant")).await.unwrap();
    alice.ping().await;
    Client::connect(plant.address("mqtt"), connect("d")).await;
    assert_eq!(issuer.asked(), 1);
    plant.set(&listener("other")).await.unwrap();
    assert_eq!(
        alice.expect_disconnect().await,
        DisconnectReasonCode::NotAuthorized
    );

    // A webhook needs its Secrets, and nobody to answer yet.
    let webhook = |secret: &str| {
        let way = serde_json::json!({ "webhook": { "url": issuer.url, "caSecretRef": { "name": secret } } });
        broker(serde_json::json!({ "listeners": [{
            "name": "mqtt", "port": port, "protocol": "Tcp", "authentication": [way],
        }]}))
    };
    assert_eq!(
        plant.set(&webhook("other")).await.unwrap_err().reason,
        "SecretNotFound"
    );
    plant.set(&webhook("issuer")).await.unwrap();
}
