//! Our own roles: mutual TLS, numbered records, and the ledger of their paths.

use std::{net::SocketAddr, sync::Arc};

use foreshore_broker::{ListenerOptions, Method, Options, Protocol};
use foreshore_record::{PathLedger, SourceNumber, property, record::Properties};
use foreshore_tls::{
    AuthorityOptions, CertificateAuthority, ClientAuth, Identity, Role, RoleIdentity, ServerName,
};
use jiff::Timestamp;
use rmqtt_codec::{
    types::QoS,
    v5::{self, PublishAckReason},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{
    TestBroker,
    client::{Client, hello, publish},
    options,
};

const SOURCE: &str = "connector/plant/line";

struct Plant {
    broker: TestBroker,
    own: SocketAddr,
    authority: CertificateAuthority,
}

impl Plant {
    async fn start() -> Self {
        foreshore_tls::install_provider();
        let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
        let config = identity(&authority, Role::Broker)
            .server_config(ClientAuth::Required)
            .unwrap();
        let listener = ListenerOptions {
            protocol: Protocol::Tls(Arc::new(config)),
            ..ListenerOptions::tcp("own", SocketAddr::from(([127, 0, 0, 1], 0)), vec![Method::Role])
        };
        let mut listeners = options().listeners;
        listeners.push(listener);
        let options = Options {
            listeners,
            namespace: "plant".to_owned(),
            name: "main".to_owned(),
            ..options()
        };
        let broker = TestBroker::start_with(options).await;
        let own = broker
            .handle
            .addresses()
            .into_iter()
            .find(|(name, _)| name == "own")
            .unwrap()
            .1;
        Self {
            broker,
            own,
            authority,
        }
    }

    async fn client(&self, role: Role, client_id: &str) -> Client {
        let config = identity(&self.authority, role).client_config().unwrap();
        let stream = TcpStream::connect(self.own).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .unwrap();
        let mut client = Client::over(stream);
        client.send(v5::Packet::Connect(Box::new(hello(client_id)))).await;
        assert_eq!(client.connack().await.reason_code, v5::ConnectAckReason::Success);
        client
    }

    async fn line(&self) -> PathLedger {
        let ledger = self.broker.handle.ledger().await.unwrap();
        let path = format!("{SOURCE}->broker/plant/main");
        ledger.into_iter().find(|line| line.path == path).unwrap()
    }
}

fn identity(authority: &CertificateAuthority, role: Role) -> Identity {
    let names = [ServerName::try_from("localhost").unwrap()];
    let role = RoleIdentity::new(role, "plant", "main", "u1").unwrap();
    let credentials = authority
        .issue_credentials(&role, &names, Timestamp::now())
        .unwrap();
    Identity::new(&credentials, authority.bundle()).unwrap()
}

fn numbered(epoch: u64, sequence: u64, payload: &str) -> rmqtt_codec::types::Publish {
    let mut properties = Properties::default();
    SourceNumber {
        source: SOURCE.to_owned(),
        epoch,
        sequence,
    }
    .write_to(&mut properties);
    let user = properties.user.iter();
    let properties = v5::PublishProperties {
        user_properties: user
            .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
            .collect(),
        ..v5::PublishProperties::default()
    };
    rmqtt_codec::types::Publish {
        properties: Some(properties),
        ..publish("foreshore/data/plant/line/d", payload, QoS::AtLeastOnce, 3)
    }
}

#[tokio::test]
async fn repeats_of_our_own_publishers_are_discarded_and_counted() {
    let plant = Plant::start().await;
    let mut reader = Client::clean(plant.broker.address, "reader").await;
    reader.subscribe("foreshore/data/#", QoS::AtLeastOnce).await;
    let mut connector = plant.client(Role::Connector, "line").await;
    for (epoch, sequence, payload) in [
        (1, 1, "one"),
        (1, 2, "two"),
        (1, 2, "two again"),
        (1, 1, "one again"),
    ] {
        let reason = connector.publish_packet(numbered(epoch, sequence, payload)).await;
        assert_eq!(reason, PublishAckReason::Success, "{payload}");
    }
    assert_eq!(
        connector.publish_packet(numbered(2, 1, "new life")).await,
        PublishAckReason::Success
    );
    let fenced = connector.publish_packet(numbered(1, 3, "old life")).await;
    assert_eq!(fenced, PublishAckReason::NotAuthorized);
    for expected in ["one", "two", "new life"] {
        assert_eq!(reader.take().await, expected);
    }
    // The broker's own topics are refused to everybody, which is final for the number.
    let refused = rmqtt_codec::types::Publish {
        topic: "$SYS/x".into(),
        ..numbered(2, 2, "refused")
    };
    assert_eq!(
        connector.publish_packet(refused.clone()).await,
        PublishAckReason::NotAuthorized
    );
    assert_eq!(
        connector.publish_packet(numbered(2, 2, "same number")).await,
        PublishAckReason::Success
    );
    let line = plant.line().await;
    assert!(line.balances(), "{line:?}");
    assert_eq!((line.received, line.delivered, line.waiting), (4, 3, 0));
    assert_eq!(line.dropped.get("refused"), Some(&1));
    reader.ping().await;
}

fn command(action: &str, actor: Option<&str>, packet_id: u16) -> rmqtt_codec::types::Publish {
    let mut packet = publish(
        &format!("foreshore/commands/plant/line/control/{action}"),
        "1",
        QoS::AtLeastOnce,
        packet_id,
    );
    packet.properties = actor.map(|actor| v5::PublishProperties {
        user_properties: vec![(property::ACTOR.into(), actor.to_owned().into())],
        ..v5::PublishProperties::default()
    });
    packet
}

fn actor_of(publish: &rmqtt_codec::types::Publish) -> Option<&str> {
    let properties = publish.properties.as_ref()?;
    let mut actors = properties
        .user_properties
        .iter()
        .filter(|(name, _)| *name == property::ACTOR);
    let actor = actors.next().map(|(_, value)| &**value);
    assert_eq!(actors.next(), None, "{publish:?}");
    actor
}

async fn puback(client: &mut Client, packet: rmqtt_codec::types::Publish) -> v5::PublishAck {
    client.send_publish(packet).await;
    match client.receive().await {
        v5::Packet::PublishAck(ack) => ack,
        other => panic!("PUBACK expected, {other:?} came"),
    }
}

#[tokio::test]
async fn commands_are_relayed_for_whom_no_rule_denies_them() {
    let plant = Plant::start().await;
    let rules = serde_json::json!({ "rules": [
        { "name": "looking", "effect": "Allow", "actions": ["Connect", "Subscribe"], "topics": ["foreshore/#"] },
        { "name": "anna-looks", "effect": "Deny", "actions": ["Publish"], "topics": ["foreshore/commands/#"],
          "principals": { "users": ["cloud/anna"] } },
    ]});
    let mut connector = Client::clean(plant.broker.address, "connector").await;
    connector
        .subscribe("foreshore/commands/#", QoS::AtLeastOnce)
        .await;
    plant
        .broker
        .handle
        .set_policies([("p", &serde_json::from_value(rules).unwrap())])
        .unwrap();
    let mut relay = plant.client(Role::Dataflow, "relay").await;
    let refused = puback(&mut relay, command("stop", Some("cloud/anna"), 3)).await;
    assert_eq!(refused.reason_code, PublishAckReason::NotAuthorized);
    assert_eq!(refused.reason_string.as_deref(), Some("p/anna-looks"));
    let reason = relay
        .publish_packet(command("start", Some("cloud/otto"), 4))
        .await;
    assert_eq!(reason, PublishAckReason::Success);
    let taken = connector.message().await;
    assert!(taken.topic.ends_with("/start"), "{taken:?}");
    assert_eq!(actor_of(&taken), Some("cloud/otto"));
    // Who is not ours needs a rule that allows it, whatever it says of itself.
    let mut stranger = Client::clean(plant.broker.address, "stranger").await;
    for actor in [None, Some("cloud/otto")] {
        let refused = puback(&mut stranger, command("stop", actor, 5)).await;
        assert_eq!(refused.reason_code, PublishAckReason::NotAuthorized);
        assert_eq!(refused.reason_string, None);
    }
    connector.ping().await;
}

#[tokio::test]
async fn a_command_tells_who_asks_and_happens_once() {
    let plant = Plant::start().await;
    let mut connector = Client::clean(plant.broker.address, "connector").await;
    connector
        .subscribe("foreshore/commands/#", QoS::AtLeastOnce)
        .await;
    let mut client = Client::clean(plant.broker.address, "c1").await;
    assert_eq!(
        client.publish_packet(command("start", None, 1)).await,
        PublishAckReason::Success
    );
    assert_eq!(actor_of(&connector.message().await), Some("anonymous:c1"));
    let forged = client.publish_packet(command("start", Some("operator"), 2)).await;
    assert_eq!(forged, PublishAckReason::NotAuthorized);
    let mut relay = plant.client(Role::Dataflow, "relay").await;
    let retained = rmqtt_codec::types::Publish {
        retain: true,
        ..command("start", None, 3)
    };
    for publisher in [&mut client, &mut relay] {
        let reason = publisher.publish_packet(retained.clone()).await;
        assert_eq!(reason, PublishAckReason::NotAuthorized);
    }
    let mut will = hello("c2");
    will.last_will = Some(crate::protocol::will(
        "foreshore/commands/plant/line/control/start",
        None,
    ));
    let mut dying = Client::open(plant.broker.address).await;
    dying.send(v5::Packet::Connect(Box::new(will))).await;
    assert_eq!(
        dying.connack().await.reason_code,
        v5::ConnectAckReason::NotAuthorized
    );
    connector.ping().await;
}

#[tokio::test]
async fn numbers_of_others_are_not_believed() {
    let plant = Plant::start().await;
    let mut reader = Client::clean(plant.broker.address, "reader").await;
    reader.subscribe("foreshore/data/#", QoS::AtLeastOnce).await;
    let mut stranger = Client::clean(plant.broker.address, "stranger").await;
    let mut simulator = plant.client(Role::Simulator, "simulator").await;
    for payload in ["first", "second"] {
        stranger.publish_packet(numbered(9, 9, payload)).await;
        assert_eq!(reader.take().await, payload);
        simulator.publish_packet(numbered(9, 9, payload)).await;
        assert_eq!(reader.take().await, payload);
    }
    let ledger = plant.broker.handle.ledger().await.unwrap();
    assert!(
        !ledger.iter().any(|line| line.path.starts_with(SOURCE)),
        "{ledger:?}"
    );
}
