//! Sessions and wills (sections 3.1.2.4, 3.1.2.5, 3.1.3.2 and 4.1).

use std::time::Duration;

use rmqtt_codec::{
    types::QoS,
    v5::{self, PublishAckReason},
};

use super::raw::{Raw, connect5, properties, value};
use crate::{
    TestBroker,
    client::{Client, back, hello, publish},
    protocol::will,
};

fn expiring(connect: v5::Connect, seconds: u32) -> v5::Connect {
    v5::Connect {
        session_expiry_interval_secs: seconds,
        ..connect
    }
}

fn with_will(connect: v5::Connect, last_will: v5::LastWill) -> v5::Connect {
    v5::Connect {
        last_will: Some(last_will),
        ..connect
    }
}

async fn reader(broker: &TestBroker) -> Client {
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("will/#", QoS::ExactlyOnce).await;
    reader
}

#[tokio::test]
async fn a_session_is_found_by_its_identifier_and_present_is_told() {
    let broker = TestBroker::start().await;
    for (connect, present) in [
        (back("c"), false),
        (back("c"), true),
        (back("C"), false),
        (expiring(hello("c"), 600), false),
        (back("c"), true),
        // It ends with its connection.
        (hello("c"), false),
        (back("c"), false),
    ] {
        let mut client = Client::open(broker.address).await;
        client.send(v5::Packet::Connect(Box::new(connect.clone()))).await;
        let ack = client.connack().await;
        assert_eq!(
            (ack.reason_code, ack.session_present),
            (v5::ConnectAckReason::Success, present),
            "{connect:?}"
        );
        client.disconnect().await;
    }
}

#[tokio::test]
async fn a_session_lasts_as_long_as_its_connection_whatever_its_expiry() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for seconds in [0, 1] {
        let (mut client, _) = Client::connect(broker.address, expiring(hello("c"), seconds)).await;
        client.subscribe("t", QoS::AtLeastOnce).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(publisher.publish("t", "there").await, PublishAckReason::Success);
        assert_eq!(client.take().await, "there");
        client.disconnect().await;
    }
}

#[tokio::test]
async fn retained_messages_outlive_the_session_that_published_them() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let kept = crate::client::retained("t", "kept", QoS::AtLeastOnce, 1);
    publisher.publish_packet(kept).await;
    publisher.disconnect().await;
    let mut client = Client::clean(broker.address, "p").await;
    client.subscribe("t", QoS::AtLeastOnce).await;
    assert_eq!(client.take().await, "kept");
}

#[tokio::test]
async fn a_will_is_published_for_every_end_but_a_normal_disconnection() {
    let broker = TestBroker::start().await;
    let mut reader = reader(&broker).await;
    // Each way to end without a good-bye, told by the topic of the will.
    let malformed = b"\0\0".to_vec();
    let second_connect = connect5(2, &[], &[&value("c")]);
    for (topic, last) in [
        ("will/lost", Vec::new()),
        ("will/malformed", malformed),
        ("will/protocol-error", second_connect),
        ("will/asked-for", b"\xe0\x01\x04".to_vec()),
        ("will/error-of-the-client", b"\xe0\x01\x80".to_vec()),
    ] {
        let (mut client, _) = Client::connect(broker.address, with_will(hello("c"), will(topic, None))).await;
        client.send_raw(&last).await;
        if !last.is_empty() {
            client.expect_end().await;
        }
        drop(client);
        assert_eq!(&*reader.message().await.topic, topic);
    }
    for last in [b"\xe0\0".to_vec(), b"\xe0\x01\0".to_vec()] {
        let connect = with_will(hello("c"), will("will/no", None));
        let (mut client, _) = Client::connect(broker.address, connect).await;
        client.send_raw(&last).await;
        client.expect_end().await;
    }
    // Without a will nothing is published.
    drop(Client::clean(broker.address, "without").await);
    // A will that was published, or forgotten, is not published again.
    Client::clean(broker.address, "c").await.disconnect().await;
    reader.ping().await;
    // Taken over without a delay.
    let connect = with_will(back("c"), will("will/taken-over", None));
    let (_old, _) = Client::connect(broker.address, connect).await;
    let (_new, _) = Client::connect(broker.address, back("c")).await;
    assert_eq!(&*reader.message().await.topic, "will/taken-over");
}

#[tokio::test]
async fn a_delayed_will_waits_for_its_delay_or_the_end_of_the_session() {
    let broker = TestBroker::start().await;
    let mut reader = reader(&broker).await;
    // Back in time: nothing is published.
    let connect = with_will(back("c"), will("will/cancelled", Some(3600)));
    drop(Client::connect(broker.address, connect).await);
    let (client, ack) = Client::connect(broker.address, back("c")).await;
    assert!(ack.session_present);
    client.disconnect().await;
    reader.ping().await;
    // The delay passes; the session lives on.
    let connect = with_will(back("c"), will("will/delayed", Some(1)));
    drop(Client::connect(broker.address, connect).await);
    assert_eq!(&*reader.message().await.topic, "will/delayed");
    let (client, ack) = Client::connect(broker.address, back("c")).await;
    assert!(ack.session_present);
    client.disconnect().await;
    // The session expires before the delay has passed.
    let connect = with_will(expiring(hello("d"), 1), will("will/expired", Some(3600)));
    drop(Client::connect(broker.address, connect).await);
    assert_eq!(&*reader.message().await.topic, "will/expired");
    // The session is discarded before the delay has passed.
    let connect = with_will(back("e"), will("will/discarded", Some(3600)));
    drop(Client::connect(broker.address, connect).await);
    Client::clean(broker.address, "e").await.disconnect().await;
    assert_eq!(&*reader.message().await.topic, "will/discarded");
}

#[tokio::test]
async fn a_will_is_published_as_it_was_given() {
    let broker = TestBroker::start().await;
    let mut reader = reader(&broker).await;
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        for retain in [false, true] {
            let topic: &'static str = if retain { "will/retained" } else { "will/passing" };
            let user = [("b", "1"), ("a", "2"), ("b", "1")];
            let last_will = v5::LastWill {
                qos,
                retain,
                content_type: Some("text/plain".into()),
                response_topic: Some("answers".into()),
                correlation_data: Some(bytes::Bytes::from_static(b"\0\xff")),
                is_utf8_payload: Some(true),
                user_properties: user.map(|(name, value)| (name.into(), value.into())).to_vec(),
                ..will(topic, None)
            };
            drop(Client::connect(broker.address, with_will(hello("c"), last_will.clone())).await);
            let message = reader.message().await;
            assert_eq!(
                (&*message.topic, message.qos, message.retain),
                (topic, qos, false)
            );
            let found = message.properties.unwrap();
            assert_eq!(found.user_properties, last_will.user_properties);
            assert_eq!(found.content_type, last_will.content_type);
            assert_eq!(found.response_topic, last_will.response_topic);
            assert_eq!(found.correlation_data, last_will.correlation_data);
            assert!(found.is_utf8_payload);
            let mut late = Client::clean(broker.address, "late").await;
            late.subscribe(topic, QoS::ExactlyOnce).await;
            if retain {
                let kept = late.message().await;
                assert_eq!(
                    (kept.qos, kept.retain, &kept.payload[..]),
                    (qos, true, &b"gone"[..])
                );
            }
            late.ping().await;
        }
    }
}

#[tokio::test]
async fn the_payload_of_connect_is_read_in_its_order() {
    let broker = TestBroker::start().await;
    let mut reader = reader(&broker).await;
    // A will without delay, a user name and a password; the will's payload is no text.
    let payload = [
        &value("c")[..],
        &properties(&[b"\x03", &value("x/y")]),
        &value("will/order"),
        &value(b"\xff\0"),
        &value("user"),
        &value("secret"),
    ];
    drop(Raw::connect(broker.address, &connect5(0xc6, &[], &payload)).await);
    let message = reader.message().await;
    assert_eq!(
        (&*message.topic, &message.payload[..]),
        ("will/order", &b"\xff\0"[..])
    );
    // Version 5 allows a password without a user name.
    let alone = connect5(0x42, &[], &[&value("c"), &value("secret")]);
    Raw::connect(broker.address, &alone).await.ping().await;
}

#[tokio::test]
async fn a_session_expires_after_the_interval_that_the_end_named() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let (mut client, _) = Client::connect(broker.address, back("c")).await;
    client.subscribe("t", QoS::AtLeastOnce).await;
    let goodbye = v5::Disconnect {
        session_expiry_interval_secs: Some(1),
        ..v5::Disconnect::default()
    };
    client.send(v5::Packet::Disconnect(goodbye)).await;
    client.expect_end().await;
    let message = publish("t", "x", QoS::AtLeastOnce, 1);
    let deadline = tokio::time::Instant::now() + crate::client::GENEROUS;
    while publisher.publish_packet(message.clone()).await == PublishAckReason::Success {
        assert!(tokio::time::Instant::now() < deadline, "the session does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (_, ack) = Client::connect(broker.address, back("c")).await;
    assert!(!ack.session_present);
}
