//! Who may come in, and what it may do; changed while clients are connected.

use std::sync::Arc;

use foreshore_broker::{ListenerOptions, Method, PasswordTable};
use foreshore_crds::v1alpha1::BrokerPolicySpec;
use rmqtt_codec::{
    types::QoS,
    v5::{self, ConnectAckReason, DisconnectReasonCode, PublishAckReason, SubscribeAckReason},
};

use crate::{
    TestBroker,
    client::{Client, back, hello, publish},
    options,
};

fn policy(rules: serde_json::Value) -> BrokerPolicySpec {
    serde_json::from_value(serde_json::json!({ "rules": rules })).unwrap()
}

fn own_topics_and(more: serde_json::Value) -> BrokerPolicySpec {
    let mut rules = vec![serde_json::json!({
        "name": "own", "effect": "Allow", "actions": ["Connect", "Publish", "Subscribe"],
        "topics": ["own/${clientid}/#"],
    })];
    rules.extend(more.as_array().unwrap().iter().cloned());
    policy(serde_json::Value::Array(rules))
}

fn users(users: &[(&str, &str)]) -> Method {
    let users = users
        .iter()
        .map(|(name, password)| ((*name).to_owned(), password.as_bytes().to_vec()));
    Method::Passwords(Arc::new(PasswordTable::new(users, &[]).unwrap()))
}

fn login(client_id: &str, username: &str, password: &str) -> v5::Connect {
    v5::Connect {
        username: Some(username.into()),
        password: Some(bytes::Bytes::copy_from_slice(password.as_bytes())),
        ..hello(client_id)
    }
}

#[tokio::test]
async fn rules_are_kept_and_names_can_not_inject() {
    let broker = TestBroker::start().await;
    broker
        .handle
        .set_policies([("p", &own_topics_and(serde_json::json!([])))])
        .unwrap();
    let mut client = Client::clean(broker.address, "c1").await;
    assert_eq!(
        client.subscribe("own/c1/#", QoS::AtLeastOnce).await,
        SubscribeAckReason::GrantedQos1
    );
    assert_eq!(
        client.subscribe("own/#", QoS::AtLeastOnce).await,
        SubscribeAckReason::NotAuthorized
    );
    assert_eq!(
        client.publish("own/c2/x", "no").await,
        PublishAckReason::NotAuthorized
    );
    let refused = publish("own/c2/x", "no", QoS::ExactlyOnce, 4);
    assert_eq!(
        client.publish_packet(refused).await,
        PublishAckReason::NotAuthorized
    );
    assert_eq!(client.publish("own/c1/x", "yes").await, PublishAckReason::Success);
    assert_eq!(client.take().await, "yes");
    for name in ["+", "#", "c1/#"] {
        let mut sly = Client::clean(broker.address, name).await;
        for filter in ["own/+/#", "own/#", "own/c1/#"] {
            assert_eq!(
                sly.subscribe(filter, QoS::AtMostOnce).await,
                SubscribeAckReason::NotAuthorized
            );
        }
        assert_eq!(
            sly.publish("own/c1/x", "no").await,
            PublishAckReason::NotAuthorized
        );
    }
    let unknown = policy(serde_json::json!([{
        "name": "r", "effect": "Allow", "actions": ["Publish"], "topics": ["a/${ip}"],
    }]));
    let error = broker
        .handle
        .set_policies([("q", &unknown)])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rule \"r\" of policy \"q\"") && error.contains("${clientid}"),
        "{error}"
    );
}

#[tokio::test]
async fn a_change_touches_only_those_who_lose_a_right() {
    let broker = TestBroker::start().await;
    let open = policy(serde_json::json!([
        { "name": "all", "effect": "Allow", "actions": ["Connect", "Publish", "Subscribe"] },
    ]));
    broker.handle.set_policies([("p", &open)]).unwrap();
    let (mut untouched, _) = Client::connect(broker.address, hello("untouched")).await;
    untouched.subscribe("own/untouched/x", QoS::AtLeastOnce).await;
    let (mut affected, _) = Client::connect(broker.address, back("affected")).await;
    affected.subscribe("secret", QoS::AtLeastOnce).await;
    let (mut away, _) = Client::connect(broker.address, back("away")).await;
    away.subscribe("secret", QoS::AtLeastOnce).await;
    away.subscribe("own/away/#", QoS::AtLeastOnce).await;
    away.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("secret", "queued before").await;
    publisher.publish("own/away/x", "still allowed").await;
    assert_eq!(affected.take().await, "queued before");

    let publisher_may = serde_json::json!([{
        "name": "p", "effect": "Allow", "actions": ["Publish"], "principals": { "clients": ["p"] },
    }]);
    broker
        .handle
        .set_policies([("p", &own_topics_and(publisher_may))])
        .unwrap();
    assert_eq!(
        affected.expect_disconnect().await,
        DisconnectReasonCode::NotAuthorized
    );
    publisher.publish("own/untouched/x", "goes on").await;
    assert_eq!(untouched.take().await, "goes on");
    // What was queued under the old policy is judged by the new one.
    let (mut away, ack) = Client::connect(broker.address, back("away")).await;
    assert!(ack.session_present);
    assert_eq!(away.take().await, "still allowed");
    away.ping().await;
    let ledger = broker.handle.ledger().await.unwrap();
    let line = ledger.iter().find(|line| line.path == "session/away").unwrap();
    assert!(line.balances(), "{line:?}");
    assert_eq!(line.dropped.get("not_authorized"), Some(&1));
}

#[tokio::test]
async fn users_are_let_in_and_changed_live() {
    let mut options = options();
    options.listeners[0].authentication = vec![users(&[("alice", "one"), ("bob", "two")])];
    let broker = TestBroker::start_with(options).await;
    let (mut alice, _) = Client::connect(broker.address, login("a", "alice", "one")).await;
    let (mut bob, _) = Client::connect(broker.address, login("b", "bob", "two")).await;
    for (username, password, expected) in [
        ("alice", "two", ConnectAckReason::BadUserNameOrPassword),
        ("mallory", "one", ConnectAckReason::BadUserNameOrPassword),
    ] {
        let mut client = Client::open(broker.address).await;
        client
            .send(v5::Packet::Connect(Box::new(login("x", username, password))))
            .await;
        assert_eq!(client.connack().await.reason_code, expected);
    }
    let mut nobody = Client::open(broker.address).await;
    nobody.send(v5::Packet::Connect(Box::new(hello("n")))).await;
    assert_eq!(
        nobody.connack().await.reason_code,
        ConnectAckReason::NotAuthorized
    );

    let port_zero = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let changed = vec![users(&[("alice", "one"), ("bob", "new"), ("carol", "three")])];
    let address = broker
        .handle
        .open_listener(ListenerOptions::tcp("test", port_zero, changed))
        .unwrap();
    assert_eq!(address, broker.address);
    assert_eq!(bob.expect_disconnect().await, DisconnectReasonCode::NotAuthorized);
    alice.ping().await;
    Client::connect(broker.address, login("c", "carol", "three")).await;
    // A listener that is closed ends its own connections.
    let other = ListenerOptions::tcp("other", port_zero, vec![Method::Anonymous]);
    let other = broker.handle.open_listener(other).unwrap();
    let mut guest = Client::clean(other, "guest").await;
    broker.handle.close_listener("test");
    assert_eq!(
        alice.expect_disconnect().await,
        DisconnectReasonCode::AdministrativeAction
    );
    guest.ping().await;
}
