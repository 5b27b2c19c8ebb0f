//! How the broker treats its clients where the specification leaves it the choice.

use std::sync::Arc;

use foreshore_broker::{Conduct, Limits, Options, Redirect};
use rmqtt_codec::{
    types::QoS,
    v5::{self, ConnectAckReason, DisconnectReasonCode, PublishAckReason, SubscribeAckReason},
};

use crate::{
    TestBroker,
    client::{Client, Client3, back, hello, publish},
    options,
};

/// Lets everybody connect and do anything below `open/`.
fn guarded() -> foreshore_crds::v1alpha1::BrokerPolicySpec {
    let rules = serde_json::json!([
        { "name": "open", "effect": "Allow", "actions": ["Connect", "Publish", "Subscribe"], "topics": ["open/#"] },
        { "name": "banned", "effect": "Deny", "actions": ["Connect"], "principals": { "clients": ["banned"] } },
    ]);
    serde_json::from_value(serde_json::json!({ "rules": rules })).unwrap()
}

#[tokio::test]
async fn concealed_refusals_tell_no_more_than_that_something_failed() {
    let conduct = Conduct {
        conceal_refusals: true,
        ..Conduct::default()
    };
    let broker = TestBroker::start_with(Options { conduct, ..options() }).await;
    broker.handle.set_policies([("p", &guarded())]).unwrap();
    let mut client = Client::clean(broker.address, "c").await;
    assert_eq!(
        client.subscribe("guarded", QoS::AtLeastOnce).await,
        SubscribeAckReason::UnspecifiedError
    );
    assert_eq!(
        client.publish("guarded", "x").await,
        PublishAckReason::UnspecifiedError
    );
    let mut banned = Client::open(broker.address).await;
    banned.send(v5::Packet::Connect(Box::new(hello("banned")))).await;
    let ack = banned.connack().await;
    assert_eq!(ack.reason_code, ConnectAckReason::UnspecifiedError);
    assert_eq!(ack.reason_string, None);

    broker.handle.set_conduct(Conduct::default());
    assert_eq!(
        client.subscribe("guarded", QoS::AtLeastOnce).await,
        SubscribeAckReason::NotAuthorized
    );
    let mut banned = Client::open(broker.address).await;
    banned.send(v5::Packet::Connect(Box::new(hello("banned")))).await;
    let ack = banned.connack().await;
    assert_eq!(ack.reason_code, ConnectAckReason::NotAuthorized);
    assert!(ack.reason_string.unwrap().contains("p/banned"));
}

#[tokio::test]
async fn a_redirection_sends_those_who_are_there_and_those_who_come_elsewhere() {
    let broker = TestBroker::start().await;
    let mut client = Client::clean(broker.address, "c").await;
    let mut old = Client3::connect(broker.address, "old", true).await.0;
    let redirect = Redirect {
        server_reference: "other.example.com:8883".to_owned(),
        permanent: false,
    };
    let conduct = Conduct {
        redirect: Some(Arc::new(redirect)),
        ..Conduct::default()
    };
    broker.handle.set_conduct(conduct.clone());
    let v5::Packet::Disconnect(told) = client.receive().await else {
        panic!("DISCONNECT expected")
    };
    assert_eq!(told.reason_code, DisconnectReasonCode::UseAnotherServer);
    assert_eq!(told.server_reference.as_deref(), Some("other.example.com:8883"));
    assert!(client.next().await.is_none());
    assert!(old.next().await.is_none());

    let mut late = Client::open(broker.address).await;
    late.send(v5::Packet::Connect(Box::new(hello("late")))).await;
    let ack = late.connack().await;
    assert_eq!(ack.reason_code, ConnectAckReason::UseAnotherServer);
    assert_eq!(ack.server_reference.as_deref(), Some("other.example.com:8883"));

    broker.handle.set_conduct(Conduct::default());
    Client::clean(broker.address, "c").await;
}

fn queueing() -> Options {
    Options {
        limits: Limits {
            queue_qos0: true,
            ..Limits::default()
        },
        ..options()
    }
}

#[tokio::test]
async fn quality_of_service_zero_waits_for_a_session_where_that_is_wanted() {
    for (wanted, expected) in [(true, vec!["low", "one", "zero"]), (false, vec!["one"])] {
        let broker = TestBroker::start_with(if wanted { queueing() } else { options() }).await;
        let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
        reader.subscribe("t", QoS::AtLeastOnce).await;
        reader.subscribe("low", QoS::AtMostOnce).await;
        reader.disconnect().await;
        let mut publisher = Client::clean(broker.address, "publisher").await;
        publisher
            .send_publish(publish("t", "zero", QoS::AtMostOnce, 0))
            .await;
        publisher.publish("low", "low").await;
        publisher.publish("t", "one").await;

        let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
        let mut waited = Vec::new();
        while waited.len() < expected.len() {
            waited.push(reader.take().await);
        }
        // Of different qualities of service the order is not promised.
        waited.sort_unstable();
        assert_eq!(waited, expected);
        // Live ones come once as well.
        for index in 0..300 {
            let live = publish("t", &index.to_string(), QoS::AtMostOnce, 0);
            publisher.send_publish(live).await;
        }
        publisher.publish("t", "end").await;
        let mut live = Vec::new();
        while live.len() < 301 {
            live.push(reader.take().await);
        }
        live.retain(|payload| payload != "end");
        assert_eq!(live, (0..300).map(|index| index.to_string()).collect::<Vec<_>>());
        reader.disconnect().await;

        let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
        publisher.publish("t", "after").await;
        assert_eq!(reader.take().await, "after", "nothing was left in the queue");
        let ledger = broker.handle.ledger().await.unwrap();
        let line = ledger.iter().find(|line| line.path == "session/reader").unwrap();
        assert!(line.balances(), "{line:?}");
    }
}
