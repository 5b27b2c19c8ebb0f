//! Sessions that outlive their connection, take-over, and expiry.

use std::time::Duration;

use rmqtt_codec::{types::QoS, v5};

use crate::{
    TestBroker,
    client::{Client, Client3, GENEROUS, back, hello, publish},
};

#[tokio::test]
async fn what_was_missed_is_delivered_in_order_and_live_follows() {
    let broker = TestBroker::start().await;
    let (mut reader, ack) = Client::connect(broker.address, back("reader")).await;
    assert!(!ack.session_present);
    reader.subscribe("t/#", QoS::AtLeastOnce).await;
    reader.disconnect().await;
    let mut publisher = Client::clean(broker.address, "publisher").await;
    for index in 0..500 {
        publisher.publish("t/x", &format!("{index}")).await;
    }
    let (mut reader, ack) = Client::connect(broker.address, back("reader")).await;
    assert!(ack.session_present);
    let live = tokio::spawn(async move {
        for index in 500..1000 {
            publisher.publish("t/x", &format!("{index}")).await;
        }
    });
    for index in 0..1000 {
        assert_eq!(reader.take().await, index.to_string());
    }
    live.await.unwrap();
    // Nothing comes twice.
    let mut publisher = Client::clean(broker.address, "last").await;
    publisher.publish("t/x", "last").await;
    assert_eq!(reader.take().await, "last");
    let ledger = broker.handle.ledger().await.unwrap();
    let line = ledger.iter().find(|line| line.path == "session/reader").unwrap();
    assert!(line.balances() && line.received == 1001, "{line:?}");
}

#[tokio::test]
async fn clean_start_with_an_expiry_keeps_the_session_too() {
    let broker = TestBroker::start().await;
    let connect = v5::Connect {
        session_expiry_interval_secs: 600,
        ..hello("c")
    };
    let (mut client, _) = Client::connect(broker.address, connect.clone()).await;
    client.subscribe("a", QoS::AtLeastOnce).await;
    client.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    assert_eq!(
        publisher.publish("a", "kept").await,
        v5::PublishAckReason::Success
    );
    let (mut client, ack) = Client::connect(broker.address, back("c")).await;
    assert!(ack.session_present);
    assert_eq!(client.take().await, "kept");
    // With Clean Start it is discarded.
    client.disconnect().await;
    publisher.publish("a", "discarded").await;
    let (_, ack) = Client::connect(broker.address, connect).await;
    assert!(!ack.session_present);
    assert_eq!(
        publisher.publish("a", "x").await,
        v5::PublishAckReason::NoMatchingSubscribers
    );
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_under_its_packet_identifier() {
    let broker = TestBroker::start().await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    reader.subscribe("t", QoS::AtLeastOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for payload in ["one", "two"] {
        publisher.publish("t", payload).await;
    }
    let first = reader.message().await;
    let second = reader.message().await;
    assert!(!first.dup && !second.dup);
    reader.acknowledge(first.packet_id.unwrap().get()).await;
    reader.ping().await;
    drop(reader);
    let (mut reader, ack) = Client::connect(broker.address, back("reader")).await;
    assert!(ack.session_present);
    let again = reader.message().await;
    assert!(again.dup);
    assert_eq!(
        (again.packet_id, &again.payload[..]),
        (second.packet_id, &b"two"[..])
    );
}

#[tokio::test]
async fn a_second_connection_takes_over_and_the_first_is_told() {
    let broker = TestBroker::start().await;
    let (mut first, _) = Client::connect(broker.address, back("c")).await;
    first.subscribe("t", QoS::AtLeastOnce).await;
    let (mut second, ack) = Client::connect(broker.address, back("c")).await;
    assert!(ack.session_present);
    assert_eq!(
        first.expect_disconnect().await,
        v5::DisconnectReasonCode::SessionTakenOver
    );
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("t", "for the second").await;
    assert_eq!(second.take().await, "for the second");
    // Many at once: all but one are told, and nobody hangs.
    let address = broker.address;
    let clients: Vec<_> = (0..10)
        .map(|_| tokio::spawn(async move { Client::connect(address, back("c")).await }))
        .collect();
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn sessions_of_version_three_persist() {
    let broker = TestBroker::start().await;
    let (mut client, present) = Client3::connect(broker.address, "old", false).await;
    assert!(!present);
    client.subscribe("a", QoS::AtLeastOnce).await;
    drop(client);
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("a", "kept").await;
    let (mut client, present) = Client3::connect(broker.address, "old", false).await;
    assert!(present);
    assert_eq!(client.take().await, "kept");
}

#[tokio::test]
async fn sessions_expire() {
    let broker = TestBroker::start().await;
    let connect = v5::Connect {
        session_expiry_interval_secs: 1,
        ..hello("c")
    };
    let (mut client, _) = Client::connect(broker.address, connect).await;
    client.subscribe("a", QoS::AtLeastOnce).await;
    client.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    assert_eq!(publisher.publish("a", "x").await, v5::PublishAckReason::Success);
    let deadline = tokio::time::Instant::now() + GENEROUS;
    while publisher.publish("a", "x").await != v5::PublishAckReason::NoMatchingSubscribers {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the session does not expire"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_, ack) = Client::connect(broker.address, back("c")).await;
    assert!(!ack.session_present);
}

#[tokio::test]
async fn the_end_may_change_the_expiry_but_not_invent_one() {
    let broker = TestBroker::start().await;
    let (mut client, _) = Client::connect(broker.address, back("c")).await;
    client.subscribe("a", QoS::AtLeastOnce).await;
    let goodbye = v5::Disconnect {
        session_expiry_interval_secs: Some(0),
        ..v5::Disconnect::default()
    };
    client.send(v5::Packet::Disconnect(goodbye)).await;
    client.expect_end().await;
    let (client, ack) = Client::connect(broker.address, back("c")).await;
    assert!(!ack.session_present);
    client.disconnect().await;

    let mut client = Client::clean(broker.address, "d").await;
    let goodbye = v5::Disconnect {
        session_expiry_interval_secs: Some(5),
        ..v5::Disconnect::default()
    };
    client.send(v5::Packet::Disconnect(goodbye)).await;
    assert_eq!(
        client.expect_disconnect().await,
        v5::DisconnectReasonCode::ProtocolError
    );
}

#[tokio::test]
async fn an_unsubscribed_filter_gives_nothing_more() {
    let broker = TestBroker::start().await;
    let (mut client, _) = Client::connect(broker.address, back("c")).await;
    client.subscribe("a", QoS::AtLeastOnce).await;
    client.subscribe("b", QoS::AtLeastOnce).await;
    assert_eq!(client.unsubscribe("a").await, v5::UnsubscribeAckReason::Success);
    assert_eq!(
        client.unsubscribe("never").await,
        v5::UnsubscribeAckReason::NoSubscriptionExisted
    );
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("a", "not wanted").await;
    publisher.publish("b", "wanted").await;
    assert_eq!(client.take().await, "wanted");
}

#[tokio::test]
async fn message_expiry_counts_down_while_a_message_waits() {
    let broker = TestBroker::start().await;
    let (mut client, _) = Client::connect(broker.address, back("c")).await;
    client.subscribe("a", QoS::AtLeastOnce).await;
    client.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let expiring = |payload: &str, seconds: u32| {
        let properties = v5::PublishProperties {
            message_expiry_interval: std::num::NonZeroU32::new(seconds),
            ..v5::PublishProperties::default()
        };
        let publish = publish("a", payload, QoS::AtLeastOnce, 3);
        rmqtt_codec::types::Publish {
            properties: Some(properties),
            ..publish
        }
    };
    publisher.publish_packet(expiring("short", 1)).await;
    publisher.publish_packet(expiring("long", 600)).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let (mut client, _) = Client::connect(broker.address, back("c")).await;
    let message = client.message().await;
    assert_eq!(&message.payload[..], b"long");
    let left = message.properties.unwrap().message_expiry_interval.unwrap().get();
    assert!((500..600).contains(&left), "{left}");
    client.acknowledge(message.packet_id.unwrap().get()).await;
    client.ping().await;
    let line = || async {
        let ledger = broker.handle.ledger().await.unwrap();
        ledger.into_iter().find(|line| line.path == "session/c").unwrap()
    };
    let deadline = tokio::time::Instant::now() + GENEROUS;
    while line().await.waiting > 0 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let line = line().await;
    assert!(line.balances() && line.delivered == 1, "{line:?}");
    assert_eq!(line.dropped.get("expired"), Some(&1));
}

#[tokio::test]
async fn a_session_that_returns_without_an_expiry_still_has_its_subscriptions() {
    let broker = TestBroker::start().await;
    let connect = v5::Connect {
        session_expiry_interval_secs: 99_999,
        ..hello("c")
    };
    let (mut client, _) = Client::connect(broker.address, connect).await;
    client.subscribe("a", QoS::ExactlyOnce).await;
    client.disconnect().await;
    let connect = v5::Connect {
        clean_start: false,
        ..hello("c")
    };
    let (mut client, ack) = Client::connect(broker.address, connect).await;
    assert!(ack.session_present);
    client
        .send_publish(publish("a", "to itself", QoS::AtLeastOnce, 3))
        .await;
    let (mut message, mut acknowledged) = (None, false);
    while message.is_none() || !acknowledged {
        match client.receive().await {
            v5::Packet::Publish(publish) => message = Some(publish),
            v5::Packet::PublishAck(_) => acknowledged = true,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(&message.unwrap().payload[..], b"to itself");
    // It ends with this connection.
    client.disconnect().await;
    let (_, ack) = Client::connect(broker.address, back("c")).await;
    assert!(!ack.session_present);
}
