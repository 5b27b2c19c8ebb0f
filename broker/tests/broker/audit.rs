//! The audit log: what is told, and what is not.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use foreshore_broker::{AuditDestination, Options};
use foreshore_crds::v1alpha1::BrokerPolicySpec;
use foreshore_peers::free_port;
use rmqtt_codec::{
    types::QoS,
    v5::{self, AuthReasonCode, ConnectAckReason, DisconnectReasonCode, Packet, PublishAckReason},
};
use serde_json::{Value, json};

use crate::{
    TestBroker,
    auth::{Issuer, auth, connect, users},
    client::{Client, hello},
    options,
    role::{Plant, broker, users as secret},
};

fn to(path: &Path) -> AuditDestination {
    AuditDestination::File {
        path: path.to_owned(),
        max_bytes: 1 << 20,
    }
}

fn read(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of<'a>(lines: &'a [Value], event: &'a str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

/// Waits until a file has lines of an event.
async fn told(path: &Path, event: &str, count: usize) -> Vec<Value> {
    for _ in 0..600 {
        let lines = if path.exists() { read(path) } else { Vec::new() };
        if of(&lines, event).len() >= count {
            return lines;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{event} was not told {count} times: {:?}", read(path));
}

fn rules(rules: Value) -> BrokerPolicySpec {
    serde_json::from_value(json!({ "rules": rules })).unwrap()
}

fn login(client_id: &str, user: &'static str, password: &'static str) -> v5::Connect {
    v5::Connect {
        username: Some(user.into()),
        password: Some(password.into()),
        ..hello(client_id)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_came_who_was_refused_and_what_was_changed_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let issuer = Issuer::start().await;
    let mut with_audit = Options {
        audit: Some(to(&path)),
        ..options()
    };
    let known = users(&[("alice", "hunter-of-alice"), ("bob", "hunter-of-bob")]);
    with_audit.listeners[0].authentication = vec![known, issuer.method()];
    let broker = TestBroker::start_with(with_audit).await;
    let policy = rules(json!([
        { "name": "in", "effect": "Allow", "actions": ["Connect", "Publish", "Subscribe"], "topics": ["#"] },
        { "name": "no-bob", "effect": "Deny", "actions": ["Connect"], "principals": { "users": ["bob"] } },
        { "name": "secret", "effect": "Deny", "actions": ["Publish", "Subscribe"], "topics": ["secret/#"] },
    ]));
    broker.handle.set_policies([("plant", &policy)]).unwrap();

    let (mut alice, _) = Client::connect(broker.address, login("a\n1", "alice", "hunter-of-alice")).await;
    assert_eq!(
        alice.publish("secret/a", "payload").await,
        PublishAckReason::NotAuthorized
    );
    alice.subscribe("secret/+", QoS::AtLeastOnce).await;
    // She comes again, and is sent away by herself.
    let (again, _) = Client::connect(broker.address, login("a\n1", "alice", "hunter-of-alice")).await;
    assert_eq!(
        alice.expect_disconnect().await,
        DisconnectReasonCode::SessionTakenOver
    );
    again.disconnect().await;
    for (user, password) in [("alice", "hunter-of-mallory"), ("bob", "hunter-of-bob")] {
        let mut client = Client::open(broker.address).await;
        client
            .send(Packet::Connect(Box::new(login("b", user, password))))
            .await;
        assert_ne!(client.refused().await.0, ConnectAckReason::Success);
    }
    let mut stranger = Client::open(broker.address).await;
    stranger.send_raw(b"GET / HTTP/1.1\r\n\r\n").await;
    stranger.expect_end().await;
    let token = issuer.token("carol", 600, &json!({}));
    let (mut carol, _) = Client::connect(broker.address, connect("c", "JWT", Some(token.clone()))).await;
    carol
        .send(auth(AuthReasonCode::ReAuth, "JWT", Some(token.clone())))
        .await;
    assert_eq!(carol.auth().await.reason_code, AuthReasonCode::Success);
    broker.handle.tell_command("sessions", Some("cli:anna"));
    told(&path, "disconnected", 2).await;
    broker.stop().await;

    let text = std::fs::read_to_string(&path).unwrap();
    let token = std::str::from_utf8(&token).unwrap();
    for secret in ["hunter", "payload", token] {
        assert!(!text.contains(secret), "{secret} is in the log");
    }
    let lines = read(&path);
    let events: BTreeSet<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
    let expected = BTreeSet::from([
        "listenerOpened",
        "policiesChanged",
        "connected",
        "denied",
        "refused",
        "reauthenticated",
        "command",
        "disconnected",
    ]);
    assert_eq!(events, expected);
    for line in &lines {
        assert_eq!(
            (&line["target"], &line["broker"]),
            (&"audit".into(), &"default/broker".into())
        );
        line["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    }
    assert_eq!(of(&lines, "policiesChanged")[0]["name"], "plant");
    let connected = of(&lines, "connected");
    let who = |line: &Value| {
        ["client", "user", "way", "method", "listener"].map(|member| line[member].as_str().map(str::to_owned))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        who(connected[0]),
        [some("a\n1"), some("alice"), some("password"), None, some("test")]
    );
    assert_eq!(
        who(connected[2]),
        [some("c"), some("carol"), some("token"), some("JWT"), some("test")]
    );
    assert!(connected[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    let denied: Vec<_> = of(&lines, "denied")
        .iter()
        .map(|line| json!([line["client"], line["action"], line["topic"], line["rule"]]))
        .collect();
    assert_eq!(
        denied,
        [
            json!(["a\n1", "publish", "secret/a", "plant/secret"]),
            json!(["a\n1", "subscribe", "secret/+", "plant/secret"]),
        ]
    );
    let refused: Vec<_> = of(&lines, "refused")
        .iter()
        .map(|line| {
            json!([
                line["client"],
                line["claimedUser"],
                line["reasonCode"],
                line["detail"]
            ])
        })
        .collect();
    assert_eq!(
        refused,
        [
            json!(["b", "alice", 0x86, "the client could not prove who it is"]),
            json!(["b", "bob", 0x87, "policy refuses it: plant/no-bob"]),
            json!([null, null, null, "first packet is not CONNECT"]),
        ]
    );
    let ended: Vec<_> = of(&lines, "disconnected")
        .iter()
        .map(|line| json!([line["client"], line["user"], line["reasonCode"], line["detail"]]))
        .collect();
    assert_eq!(
        ended,
        [
            json!(["a\n1", "alice", 0x8e, "the client has connected again"]),
            json!(["a\n1", "alice", null, "the client disconnected"]),
            json!(["c", "carol", 0x8b, "the broker ends"]),
        ]
    );
    assert_eq!(
        of(&lines, "disconnected")[0]["peer"],
        connected[0]["peer"],
        "it is told which connection ended"
    );
    let command = of(&lines, "command")[0];
    assert_eq!(
        (&command["command"], &command["actor"]),
        (&"sessions".into(), &"cli:anna".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_fills_no_disk_and_hides_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let broker = TestBroker::start_with(Options {
        audit: Some(to(&path)),
        ..options()
    })
    .await;
    let policy = rules(json!([{ "name": "in", "effect": "Allow", "actions": ["Connect"] }]));
    broker.handle.set_policies([("p", &policy)]).unwrap();
    let mut flood = Client::clean(broker.address, "flood").await;
    for number in 0..200 {
        let reason = flood.publish(&format!("a/{number}"), "x").await;
        assert_eq!(reason, PublishAckReason::NotAuthorized);
    }
    let mut other = Client::clean(broker.address, "other").await;
    other.publish("b", "x").await;
    for _ in 0..100 {
        let mut stranger = Client::open(broker.address).await;
        stranger.send_raw(b"\xf0\x00").await;
        stranger.expect_end().await;
    }
    broker.stop().await;
    let lines = read(&path);
    let denied = of(&lines, "denied");
    let of_client = |client: &str| denied.iter().filter(|line| line["client"] == client).count();
    // Thirty in a minute; the minute may have ended meanwhile.
    let told = of_client("flood");
    assert!((30..=60).contains(&told), "{told}");
    assert_eq!(of_client("other"), 1);
    let refused = of(&lines, "refused").len();
    assert!((30..=60).contains(&refused), "{refused}");
    // Who came and went is told of each.
    assert_eq!(of(&lines, "connected").len(), 2);
    assert_eq!(of(&lines, "disconnected").len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_begins_and_ends_its_audit_log_while_it_runs() {
    let mut plant = Plant::new();
    let path: PathBuf = plant.folder().join("audit.jsonl");
    let listener = json!({
        "name": "mqtt", "port": free_port(), "protocol": "Tcp",
        "authentication": [{ "usernamePassword": { "secretRef": { "name": "users" } } }],
    });
    let plan = |audit: Value| {
        let mut spec = json!({ "listeners": [listener], "storage": { "backend": "Memory" } });
        if !audit.is_null() {
            spec["audit"] = audit;
        }
        broker(spec)
    };
    plant.set(&secret(&[("alice", "one")])).await.unwrap();
    plant.set(&plan(Value::Null)).await.unwrap();
    let address = plant.address("mqtt");
    let (_before, _) = Client::connect(address, login("before", "alice", "one")).await;
    assert!(!path.exists());
    plant.set(&plan(json!({}))).await.unwrap();
    let (_alice, _) = Client::connect(address, login("with", "alice", "one")).await;
    plant.set(&secret(&[("alice", "two")])).await.unwrap();
    // Whose password is another now has to leave, and that is told with what led to it.
    // Connections end on threads of their own: any of these lines may be the last one.
    for event in ["secretChanged", "listenerChanged"] {
        told(&path, event, 1).await;
    }
    let lines = told(&path, "disconnected", 2).await;
    let connected: Vec<_> = of(&lines, "connected")
        .iter()
        .map(|line| line["client"].clone())
        .collect();
    assert_eq!(connected, ["with"]);
    assert_eq!(of(&lines, "secretChanged")[0]["name"], "users");
    let changed = of(&lines, "listenerChanged");
    assert!(changed.iter().any(|line| line["listener"] == "mqtt"));
    plant.set(&plan(Value::Null)).await.unwrap();
    Client::connect(address, login("after", "alice", "two")).await;
    // A file that can't be opened is told, and all else goes on.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let nack = plant.set(&plan(json!({}))).await.unwrap_err();
    assert_eq!(nack.reason, "StorageFailed");
    assert!(nack.message.contains("audit.jsonl"), "{}", nack.message);
    Client::connect(address, login("on", "alice", "two")).await;
}
