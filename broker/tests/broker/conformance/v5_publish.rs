//! PUBLISH to the broker, and what becomes of its content (sections 3.3, 3.4 to 3.7 and 4.3).

use std::num::{NonZeroU16, NonZeroU32};

use rmqtt_codec::{
    types::{Publish, QoS},
    v5::{self, PublishAckReason, PublishProperties, RetainHandling, SubscriptionOptions},
};

use super::raw::{PUBACK, PUBCOMP, PUBREC, Raw, join, packet, value};
use crate::{
    TestBroker,
    client::{Client, back, hello, publish, retained},
};

fn with(properties: PublishProperties, publish: Publish) -> Publish {
    Publish {
        properties: Some(properties),
        ..publish
    }
}

fn aliased(topic: &str, alias: u16) -> Publish {
    let properties = PublishProperties {
        topic_alias: NonZeroU16::new(alias),
        ..PublishProperties::default()
    };
    with(properties, publish(topic, topic, QoS::AtMostOnce, 0))
}

#[tokio::test]
async fn each_quality_of_service_has_its_answers_under_the_packets_identifier() {
    let broker = TestBroker::start().await;
    let mut client = Raw::connect5(broker.address, "c").await;
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("t", QoS::AtMostOnce).await;
    let message = |first: u8, id: &[u8]| packet(first, &[&value("t"), id, b"\0x"]);
    client.send(&message(0x30, b"")).await;
    client.ping().await;
    assert_eq!(
        client.ask(&message(0x32, b"\x12\x34")).await,
        (PUBACK, vec![0x12, 0x34])
    );
    assert_eq!(
        client.ask(&message(0x34, b"\xff\xff")).await,
        (PUBREC, vec![0xff, 0xff])
    );
    let released = client.ask(&packet(0x62, &[b"\xff\xff"])).await;
    assert_eq!(released, (PUBCOMP, vec![0xff, 0xff]));
    // In the order of arrival, all at once.
    let burst: Vec<u8> = (1..=9u8)
        .flat_map(|id| message(if id % 2 == 0 { 0x32 } else { 0x34 }, &[0, id]))
        .collect();
    client.send(&burst).await;
    for id in 1..=9 {
        let first = if id % 2 == 0 { PUBACK } else { PUBREC };
        assert_eq!(client.packet().await, (first, vec![0, id]));
    }
}

#[tokio::test]
async fn an_identifier_is_free_again_after_its_last_acknowledgement() {
    let broker = TestBroker::start().await;
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("t", QoS::ExactlyOnce).await;
    let mut client = Client::clean(broker.address, "c").await;
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        for dup in [false, true] {
            let message = Publish {
                dup,
                ..publish("t", "new", qos, 7)
            };
            assert_eq!(client.publish_packet(message).await, PublishAckReason::Success);
            // DUP is not sent on: for the receiver it is new.
            let received = reader.message().await;
            assert_eq!((received.dup, received.qos), (false, qos));
            let id = received.packet_id.unwrap().get();
            if qos == QoS::AtLeastOnce {
                reader.acknowledge(id).await;
            } else {
                reader.received(id).await;
                reader.expect_release(id).await;
                reader.complete(id).await;
            }
        }
    }
    // A refused one is free at once.
    let refused = publish("$SYS/x", "no", QoS::ExactlyOnce, 7);
    assert_eq!(
        client.publish_packet(refused).await,
        PublishAckReason::NotAuthorized
    );
    let accepted = publish("t", "yes", QoS::ExactlyOnce, 7);
    assert_eq!(client.publish_packet(accepted).await, PublishAckReason::Success);
    assert_eq!(reader.take().await, "yes");
}

#[tokio::test]
async fn content_is_sent_on_unaltered_and_in_order() {
    let broker = TestBroker::start().await;
    let properties = PublishProperties {
        is_utf8_payload: true,
        content_type: Some("\u{feff}text/plain".into()),
        response_topic: Some("answers/\u{1}".into()),
        correlation_data: Some(bytes::Bytes::from_static(b"\0\xff")),
        user_properties: [("b", "1"), ("a", "2"), ("b", "1"), ("", "")]
            .map(|(name, value)| (name.into(), value.into()))
            .to_vec(),
        ..PublishProperties::default()
    };
    // A receiver that is there, one that comes later, and one that comes even later.
    let mut live = Client::clean(broker.address, "live").await;
    live.subscribe("t", QoS::AtLeastOnce).await;
    let (mut late, _) = Client::connect(broker.address, back("late")).await;
    late.subscribe("t", QoS::AtLeastOnce).await;
    late.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let message = with(properties.clone(), retained("t", "x", QoS::AtLeastOnce, 1));
    publisher.publish_packet(message).await;
    let (late, _) = Client::connect(broker.address, back("late")).await;
    let mut latest = Client::clean(broker.address, "latest").await;
    latest.subscribe("t", QoS::AtLeastOnce).await;
    for mut receiver in [live, late, latest] {
        assert_eq!(receiver.message().await.properties.unwrap(), properties);
    }
}

#[tokio::test]
async fn topics_are_compared_as_they_are() {
    let broker = TestBroker::start().await;
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("#", QoS::AtMostOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    // A byte order mark, control characters, a noncharacter, one letter in two forms, spaces, case, empty levels.
    let topics = [
        "\u{feff}t",
        "t",
        "\u{1}\u{1f}\u{7f}\u{9f}",
        "\u{ffff}",
        "\u{e9}",
        "e\u{301}",
        " ",
        "T",
        "/",
        "//t/",
    ];
    for topic in topics {
        let mut exact = Client::clean(broker.address, "exact").await;
        exact.subscribe(topic, QoS::AtMostOnce).await;
        for other in topics {
            publisher
                .send_publish(publish(other, other, QoS::AtMostOnce, 0))
                .await;
            assert_eq!(&*reader.message().await.topic, other);
        }
        let message = exact.message().await;
        assert_eq!((&*message.topic, &message.payload[..]), (topic, topic.as_bytes()));
        exact.ping().await;
    }
}

#[tokio::test]
async fn a_retained_message_is_replaced_kept_and_removed() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let mut live = Client::clean(broker.address, "live").await;
    live.subscribe("t", QoS::ExactlyOnce).await;
    let kept = async || {
        let mut reader = Client::clean(broker.address, "reader").await;
        reader.subscribe("end", QoS::AtMostOnce).await;
        reader.subscribe("t", QoS::ExactlyOnce).await;
        let mut other = Client::clean(broker.address, "other").await;
        other
            .send_publish(publish("end", "end", QoS::AtMostOnce, 0))
            .await;
        let message = reader.message().await;
        (message.retain, message.qos, message.payload)
    };
    let nothing = (false, QoS::AtMostOnce, "end".into());
    for (message, expected) in [
        (
            retained("t", "one", QoS::AtMostOnce, 0),
            (true, QoS::AtMostOnce, "one".into()),
        ),
        (
            retained("t", "two", QoS::ExactlyOnce, 1),
            (true, QoS::ExactlyOnce, "two".into()),
        ),
        (
            publish("t", "passing", QoS::AtLeastOnce, 1),
            (true, QoS::ExactlyOnce, "two".into()),
        ),
        (
            publish("t", "", QoS::AtLeastOnce, 1),
            (true, QoS::ExactlyOnce, "two".into()),
        ),
        (retained("t", "", QoS::AtLeastOnce, 1), nothing.clone()),
        (retained("t", "", QoS::AtLeastOnce, 1), nothing.clone()),
        (publish("t", "passing", QoS::AtLeastOnce, 1), nothing.clone()),
        (
            retained("t", "last", QoS::AtLeastOnce, 1),
            (true, QoS::AtLeastOnce, "last".into()),
        ),
        (retained("t", "", QoS::AtMostOnce, 0), nothing),
    ] {
        let payload = String::from_utf8(message.payload.to_vec()).unwrap();
        publisher.publish_packet(message).await;
        publisher.ping().await;
        // Whoever was there gets it as any other, without RETAIN.
        assert_eq!(live.take().await, payload);
        assert_eq!(kept().await, expected, "after {payload:?}");
    }
}

#[tokio::test]
async fn retain_handling_and_retain_as_published_are_kept_to() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher
        .publish_packet(retained("t", "kept", QoS::AtLeastOnce, 1))
        .await;
    for (retain_handling, first, again) in [
        (RetainHandling::AtSubscribe, true, true),
        (RetainHandling::AtSubscribeNew, true, false),
        (RetainHandling::NoAtSubscribe, false, false),
    ] {
        for retain_as_published in [false, true] {
            let options = SubscriptionOptions {
                qos: QoS::AtLeastOnce,
                retain_handling,
                retain_as_published,
                ..SubscriptionOptions::default()
            };
            let mut reader = Client::clean(broker.address, "reader").await;
            for expected in [first, again] {
                reader.subscribe_with("t", options, None).await;
                if expected {
                    let message = reader.message().await;
                    assert!(message.retain);
                    reader.acknowledge(message.packet_id.unwrap().get()).await;
                }
                reader.ping().await;
            }
            for retain in [false, true] {
                let message = Publish {
                    retain,
                    ..publish("t", "kept", QoS::AtLeastOnce, 1)
                };
                publisher.publish_packet(message).await;
                let received = reader.message().await;
                assert_eq!(received.retain, retain && retain_as_published);
                reader.acknowledge(received.packet_id.unwrap().get()).await;
            }
        }
    }
}

#[tokio::test]
async fn every_alias_that_was_announced_is_taken_and_none_outlives_its_connection() {
    let broker = TestBroker::start().await;
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("a/#", QoS::AtMostOnce).await;
    let (mut publisher, ack) = Client::connect(broker.address, back("p")).await;
    let most = ack.topic_alias_max;
    assert!(most > 0);
    for alias in 1..=most {
        publisher
            .send_publish(aliased(&format!("a/{alias}"), alias))
            .await;
    }
    for alias in 1..=most {
        assert_eq!(&*reader.message().await.topic, format!("a/{alias}"));
    }
    // An alias may be given anew.
    publisher.send_publish(aliased("a/again", 1)).await;
    assert_eq!(&*reader.message().await.topic, "a/again");
    publisher.send_publish(aliased("", 1)).await;
    assert_eq!(&*reader.message().await.topic, "a/again");
    publisher.disconnect().await;
    let (mut publisher, ack) = Client::connect(broker.address, back("p")).await;
    assert!(ack.session_present);
    publisher.send_publish(aliased("", 1)).await;
    assert_eq!(
        publisher.expect_disconnect().await,
        v5::DisconnectReasonCode::TopicAliasInvalid
    );
}

#[tokio::test]
async fn no_alias_is_sent_that_the_client_does_not_take() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for most in [0, 3] {
        let connect = v5::Connect {
            topic_alias_max: most,
            ..hello("reader")
        };
        let (mut reader, _) = Client::connect(broker.address, connect).await;
        reader.subscribe("a/+", QoS::AtMostOnce).await;
        let mut seen = std::collections::BTreeSet::new();
        for index in (0..10).chain(0..10) {
            publisher.publish(&format!("a/{index}"), "x").await;
            let message = reader.message().await;
            let alias = message.properties.unwrap().topic_alias;
            assert!(alias.is_some() || *message.topic == *format!("a/{index}"));
            seen.extend(alias.map(NonZeroU16::get));
        }
        assert_eq!(seen, (1..=most).collect());
    }
}

#[tokio::test]
async fn a_message_that_expired_meanwhile_is_acknowledged_to_its_end() {
    let broker = TestBroker::start().await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    reader.subscribe("t", QoS::ExactlyOnce).await;
    reader.disconnect().await;
    let properties = PublishProperties {
        message_expiry_interval: NonZeroU32::new(1),
        ..PublishProperties::default()
    };
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher
        .send_publish(with(properties, publish("t", "short", QoS::ExactlyOnce, 5)))
        .await;
    assert!(matches!(
        publisher.receive().await,
        v5::Packet::PublishReceived(_)
    ));
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    publisher.release(5).await;
    match publisher.receive().await {
        v5::Packet::PublishComplete(ack) => assert_eq!(ack.reason_code, v5::PublishAck2Reason::Success),
        other => panic!("{other:?}"),
    }
    publisher.publish("t", "next").await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    assert_eq!(reader.take().await, "next");
}

#[tokio::test]
async fn acknowledgements_hold_a_reason_only_where_there_is_one() {
    let broker = TestBroker::start().await;
    let mut client = Raw::connect5(broker.address, "c").await;
    let message = |first: u8, topic: &str| packet(first, &[&value(topic), b"\0\x05\0x"]);
    for (topic, reason) in [("nobody", 0x10), ("$SYS/x", 0x87)] {
        assert_eq!(
            client.ask(&message(0x32, topic)).await,
            (PUBACK, vec![0, 5, reason])
        );
        assert_eq!(
            client.ask(&message(0x34, topic)).await,
            (PUBREC, vec![0, 5, reason])
        );
        let released = client.ask(&packet(0x62, &[b"\0\x05"])).await;
        let expected = if reason < 0x80 {
            vec![0, 5]
        } else {
            vec![0, 5, 0x92]
        };
        assert_eq!(released, (PUBCOMP, expected));
    }
    let unknown = client.ask(&join(&[&packet(0x50, &[b"\0\x09"])])).await;
    assert_eq!(unknown, (0x62, vec![0, 9, 0x92]));
}
