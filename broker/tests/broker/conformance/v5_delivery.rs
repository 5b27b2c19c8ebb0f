//! PUBLISH from the broker: identifiers, windows, what is sent again, order (sections 3.1.2.11, 4.3 to 4.7 and 4.9).

use std::{
    collections::BTreeSet,
    num::{NonZeroU16, NonZeroU32},
};

use rmqtt_codec::{
    types::{Publish, QoS},
    v5::{self, PublishAckReason},
};

use super::raw::{PUBREL, Raw, packet, value};
use crate::{
    TestBroker,
    client::{Client, back, hello, id, publish},
    options_in,
};

/// A CONNECT that takes so many messages at once.
fn window(connect: v5::Connect, receive_maximum: u16) -> v5::Connect {
    v5::Connect {
        receive_max: NonZeroU16::new(receive_maximum),
        ..connect
    }
}

async fn publish_all(broker: &TestBroker, qos: QoS, count: usize) {
    let mut publisher = Client::clean(broker.address, "p").await;
    for index in 0..count {
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { 9 };
        let message = publish("t", &index.to_string(), qos, packet_id);
        publisher.publish_packet(message).await;
    }
    publisher.ping().await;
}

fn number(message: &Publish) -> usize {
    std::str::from_utf8(&message.payload).unwrap().parse().unwrap()
}

fn packet_id(message: &Publish) -> u16 {
    message.packet_id.unwrap().get()
}

async fn refuse(client: &mut Client, message: &Publish) {
    let ack = v5::PublishAck {
        packet_id: message.packet_id.unwrap(),
        reason_code: PublishAckReason::UnspecifiedError,
        ..v5::PublishAck::default()
    };
    client
        .send(match message.qos {
            QoS::AtLeastOnce => v5::Packet::PublishAck(ack),
            _ => v5::Packet::PublishReceived(ack),
        })
        .await;
}

#[tokio::test]
async fn quality_of_service_zero_has_neither_identifier_nor_dup() {
    let broker = TestBroker::start().await;
    let mut reader = Raw::connect5(broker.address, "reader").await;
    reader
        .ask(&packet(0x82, &[b"\0\x01\0", &value("t"), b"\x02"]))
        .await;
    publish_all(&broker, QoS::AtMostOnce, 1).await;
    assert_eq!(reader.packet().await, (0x30, b"\0\x01t\x000".to_vec()));
}

#[tokio::test]
async fn each_message_in_flight_has_an_identifier_of_its_own() {
    let broker = TestBroker::start().await;
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut reader = Client::clean(broker.address, "reader").await;
        reader.subscribe("t", qos).await;
        publish_all(&broker, qos, 30).await;
        let mut in_use = BTreeSet::new();
        for index in 0..30 {
            let message = reader.message().await;
            assert_eq!((number(&message), message.qos, message.dup), (index, qos, false));
            assert!(in_use.insert(packet_id(&message)) && packet_id(&message) != 0);
        }
        // Nothing is sent again on this connection, however long it takes.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        reader.ping().await;
    }
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_again_in_order_under_its_identifiers() {
    let broker = TestBroker::start().await;
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
        reader.subscribe("t", qos).await;
        publish_all(&broker, qos, 20).await;
        let mut sent = Vec::new();
        for _ in 0..20 {
            sent.push(packet_id(&reader.message().await));
        }
        for _ in 0..2 {
            drop(reader);
            let (again, ack) = Client::connect(broker.address, back("reader")).await;
            assert!(ack.session_present);
            reader = again;
            for (index, expected) in sent.iter().enumerate() {
                let message = reader.message().await;
                assert_eq!((number(&message), packet_id(&message)), (index, *expected));
                assert_eq!((message.qos, message.dup), (qos, true));
            }
            reader.ping().await;
        }
        let connect = v5::Connect {
            clean_start: true,
            ..hello("reader")
        };
        Client::connect(broker.address, connect).await;
    }
}

#[tokio::test]
async fn what_was_sent_with_quality_of_service_two_does_not_expire() {
    let directory = tempfile::tempdir().unwrap();
    let broker = TestBroker::start_with(options_in(directory.path())).await;
    let (mut reader, _) = Client::connect(broker.address, window(back("reader"), 1)).await;
    reader.subscribe("t", QoS::ExactlyOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for payload in ["sent", "not sent"] {
        let properties = v5::PublishProperties {
            message_expiry_interval: NonZeroU32::new(1),
            ..v5::PublishProperties::default()
        };
        let message = Publish {
            properties: Some(properties),
            ..publish("t", payload, QoS::ExactlyOnce, 9)
        };
        publisher.publish_packet(message).await;
    }
    publisher.publish("t", "last").await;
    let first = reader.message().await;
    assert_eq!(&first.payload[..], b"sent");
    drop(reader);
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    // To the broker that sent it, and to one that only has its store.
    let (mut reader, _) = Client::connect(broker.address, window(back("reader"), 1)).await;
    let again = reader.message().await;
    assert_eq!(
        (&again.payload, again.packet_id, again.dup),
        (&first.payload, first.packet_id, true)
    );
    drop(reader);
    broker.stop().await;
    let broker = TestBroker::start_with(options_in(directory.path())).await;
    let (mut reader, _) = Client::connect(broker.address, window(back("reader"), 1)).await;
    let again = reader.message().await;
    assert_eq!(
        (&again.payload, again.packet_id, again.dup),
        (&first.payload, first.packet_id, true)
    );
    reader.received(packet_id(&again)).await;
    reader.expect_release(packet_id(&again)).await;
    reader.complete(packet_id(&again)).await;
    assert_eq!(reader.take().await, "last");
}

#[tokio::test]
async fn a_release_is_sent_again_and_its_message_is_not() {
    let broker = TestBroker::start().await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    reader.subscribe("t", QoS::ExactlyOnce).await;
    publish_all(&broker, QoS::ExactlyOnce, 2).await;
    let (first, second) = (reader.message().await, reader.message().await);
    reader.received(packet_id(&first)).await;
    reader.expect_release(packet_id(&first)).await;
    drop(reader);
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    let (mut released, mut repeated) = (None, None);
    for _ in 0..2 {
        match reader.receive().await {
            v5::Packet::PublishRelease(release) => released = Some(release.packet_id),
            v5::Packet::Publish(message) => repeated = Some((message.packet_id, message.dup)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(released, first.packet_id);
    assert_eq!(repeated, Some((second.packet_id, true)));
    // A reception that is told again is released again, until it is complete.
    for _ in 0..2 {
        reader.received(packet_id(&first)).await;
        reader.expect_release(packet_id(&first)).await;
    }
    reader.complete(packet_id(&first)).await;
    reader.received(packet_id(&first)).await;
    match reader.receive().await {
        v5::Packet::PublishRelease(release) => {
            assert_eq!(release.reason_code, v5::PublishAck2Reason::PacketIdNotFound);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn quality_of_service_two_is_exactly_once_however_often_the_connection_breaks() {
    const COUNT: usize = 200;
    let directory = tempfile::tempdir().unwrap();
    let broker = TestBroker::start_with(options_in(directory.path())).await;
    let (mut reader, _) = Client::connect(broker.address, window(back("reader"), 20)).await;
    reader.subscribe("t", QoS::ExactlyOnce).await;
    publish_all(&broker, QoS::ExactlyOnce, COUNT).await;
    // What the client keeps of its session: messages that it has, and identifiers that are not released.
    let (mut seen, mut unreleased) = (BTreeSet::new(), BTreeSet::new());
    let mut round = 0;
    while seen.len() < COUNT || !unreleased.is_empty() {
        round += 1;
        assert!(round < 2000, "it does not get on: {} of {COUNT}", seen.len());
        for _ in 0..round % 9 {
            match reader.receive().await {
                v5::Packet::Publish(message) => {
                    let id = packet_id(&message);
                    if unreleased.insert(id) {
                        assert!(seen.insert(number(&message)), "{} came twice", number(&message));
                    }
                    reader.received(id).await;
                }
                v5::Packet::PublishRelease(release) => {
                    unreleased.remove(&release.packet_id.get());
                    reader.complete(release.packet_id.get()).await;
                }
                other => panic!("{other:?}"),
            }
            if seen.len() == COUNT && unreleased.is_empty() {
                break;
            }
        }
        drop(reader);
        let (again, ack) = Client::connect(broker.address, window(back("reader"), 20)).await;
        assert!(ack.session_present);
        reader = again;
    }
}

#[tokio::test]
async fn a_refused_message_is_done_with() {
    let broker = TestBroker::start().await;
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let (mut reader, _) = Client::connect(broker.address, window(back("reader"), 1)).await;
        reader.subscribe("t", qos).await;
        publish_all(&broker, qos, 3).await;
        for index in 0..2 {
            let message = reader.message().await;
            assert_eq!(number(&message), index);
            // The window opens for the next, and nothing is released.
            refuse(&mut reader, &message).await;
        }
        assert_eq!(number(&reader.message().await), 2);
        drop(reader);
        let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
        let message = reader.message().await;
        assert_eq!((number(&message), message.dup), (2, true));
        reader.ping().await;
        drop(reader);
        Client::clean(broker.address, "reader").await;
    }
}

#[tokio::test]
async fn a_full_window_holds_back_publish_and_nothing_else() {
    let broker = TestBroker::start().await;
    let (mut reader, _) = Client::connect(broker.address, window(hello("reader"), 2)).await;
    reader.subscribe("t", QoS::ExactlyOnce).await;
    publish_all(&broker, QoS::ExactlyOnce, 4).await;
    let (first, second) = (reader.message().await, reader.message().await);
    reader.ping().await;
    // Quality of service 0 is not held back, nor is any answer.
    publish_all(&broker, QoS::AtMostOnce, 1).await;
    assert_eq!(reader.message().await.qos, QoS::AtMostOnce);
    reader.subscribe("other", QoS::AtMostOnce).await;
    reader.unsubscribe("other").await;
    reader.publish("nobody", "x").await;
    // PUBREC does not open it, PUBCOMP does.
    for message in [&first, &second] {
        reader.received(packet_id(message)).await;
        reader.expect_release(packet_id(message)).await;
    }
    reader.ping().await;
    reader.complete(packet_id(&first)).await;
    assert_eq!(number(&reader.message().await), 2);
    reader.ping().await;
    reader.complete(packet_id(&second)).await;
    assert_eq!(number(&reader.message().await), 3);
}

#[tokio::test]
async fn a_window_that_became_smaller_is_kept_to() {
    let broker = TestBroker::start().await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    reader.subscribe("t", QoS::AtLeastOnce).await;
    publish_all(&broker, QoS::AtLeastOnce, 10).await;
    for _ in 0..10 {
        reader.message().await;
    }
    drop(reader);
    let (mut reader, _) = Client::connect(broker.address, window(back("reader"), 3)).await;
    let mut waiting = Vec::new();
    for index in 0..10 {
        if waiting.len() == 3 {
            reader.ping().await;
            reader.acknowledge(waiting.remove(0)).await;
        }
        let message = reader.message().await;
        assert_eq!((number(&message), message.dup), (index, true));
        waiting.push(packet_id(&message));
    }
    // And new ones follow.
    for packet_id in waiting {
        reader.acknowledge(packet_id).await;
    }
    publish_all(&broker, QoS::AtLeastOnce, 1).await;
    assert_eq!(reader.take().await, "0");
}

#[tokio::test]
async fn messages_of_a_topic_arrive_in_the_order_in_which_they_were_sent() {
    let broker = TestBroker::start().await;
    let (mut durable, _) = Client::connect(broker.address, window(back("durable"), 3)).await;
    let (mut live, _) = Client::connect(broker.address, window(hello("live"), 3)).await;
    durable.subscribe("t", QoS::ExactlyOnce).await;
    live.subscribe("+", QoS::ExactlyOnce).await;
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut publisher = Client::clean(broker.address, "p").await;
        let all = (0..50).map(|index: u16| publish("t", &index.to_string(), qos, index + 1));
        publisher.send_publishes(all).await;
        for reader in [&mut durable, &mut live] {
            let (mut next, mut open) = (0, 0);
            while next < 50 || open > 0 {
                match reader.receive().await {
                    v5::Packet::Publish(message) => {
                        assert_eq!(number(&message), next);
                        next += 1;
                        if qos == QoS::AtLeastOnce {
                            reader.acknowledge(packet_id(&message)).await;
                        } else {
                            open += 1;
                            reader.received(packet_id(&message)).await;
                        }
                    }
                    v5::Packet::PublishRelease(release) => {
                        open -= 1;
                        reader.complete(release.packet_id.get()).await;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn releases_follow_the_order_of_the_receptions() {
    let broker = TestBroker::start().await;
    let mut reader = Raw::connect5(broker.address, "reader").await;
    reader
        .ask(&packet(0x82, &[b"\0\x01\0", &value("t"), b"\x02"]))
        .await;
    publish_all(&broker, QoS::ExactlyOnce, 5).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        let (first, body) = reader.packet().await;
        assert_eq!(first, 0x34);
        ids.push([body[3], body[4]]);
    }
    ids.rotate_left(2);
    let receptions: Vec<u8> = ids.iter().flat_map(|id| packet(0x50, &[id])).collect();
    reader.send(&receptions).await;
    for id in ids {
        assert_eq!(reader.packet().await, (PUBREL, id.to_vec()));
    }
}

#[tokio::test]
async fn the_quality_of_service_is_the_lower_of_both() {
    let broker = TestBroker::start().await;
    let all = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
    for granted in all {
        let mut reader = Client::clean(broker.address, "reader").await;
        reader.subscribe("t", granted).await;
        for published in all {
            publish_all(&broker, published, 1).await;
            let message = reader.message().await;
            assert_eq!(message.qos, granted.min(published));
        }
    }
}

#[tokio::test]
async fn filters_match_as_section_4_7_says() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for (filter, matching, others) in [
        (
            "sport/#",
            &["sport", "sport/a", "sport/a/b", "sport/"][..],
            &["sports", "Sport/a"][..],
        ),
        ("#", &["a", "/", "a//b"], &["$other", "$other/a"]),
        ("+", &["a", " "], &["/a", "a/", "$other"]),
        ("+/+", &["/", "a/", "/a"], &["a", "a/b/c", "$other/a"]),
        ("/+", &["/a", "/"], &["a", "a/b"]),
        ("a/+/c", &["a/b/c", "a//c"], &["a/c", "a/b/b/c"]),
        ("$other/#", &["$other", "$other/a"], &["other", "a/$other"]),
        ("$other/+", &["$other/a"], &["$other"]),
        ("a/$b", &["a/$b"], &["a/b"]),
    ] {
        let mut reader = Client::clean(broker.address, "reader").await;
        reader.subscribe(filter, QoS::AtMostOnce).await;
        for topic in others.iter().chain(matching) {
            publisher
                .send_publish(publish(topic, "x", QoS::AtMostOnce, 0))
                .await;
        }
        publisher.ping().await;
        for topic in matching {
            assert_eq!(&*reader.message().await.topic, *topic, "{filter}");
        }
        reader.ping().await;
    }
}

#[tokio::test]
async fn a_message_too_large_for_one_receiver_counts_as_sent_to_it() {
    let broker = TestBroker::start().await;
    let small = v5::Connect {
        max_packet_size: NonZeroU32::new(60),
        ..window(back("small"), 1)
    };
    let (mut small, _) = Client::connect(broker.address, small).await;
    let mut large = Client::clean(broker.address, "large").await;
    for reader in [&mut small, &mut large] {
        reader.subscribe("t", QoS::ExactlyOnce).await;
    }
    let mut publisher = Client::clean(broker.address, "p").await;
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        for payload in [&"x".repeat(100), "small"] {
            let message = Publish {
                packet_id: (qos != QoS::AtMostOnce).then(|| id(4)),
                ..publish("t", payload, qos, 0)
            };
            publisher.publish_packet(message).await;
            assert_eq!(large.take().await, payload);
        }
        assert_eq!(small.take().await, "small");
    }
    small.ping().await;
}
