//! Version 3.1.1: messages, subscriptions, sessions and wills, byte by byte.

use foreshore_crds::v1alpha1::BrokerPolicySpec;
use rmqtt_codec::{
    types::{Publish, QoS},
    v5,
};

use super::raw::{
    PUBACK, PUBCOMP, PUBREC, PUBREL, Packet, Raw, SUBACK, UNSUBACK, connect3, join, packet, value,
};
use crate::{
    TestBroker,
    client::{Client, publish, retained},
};

/// A PUBLISH to topic `t`; the packet identifier is left out with quality of service 0.
fn message(first: u8, packet_id: &[u8], payload: &str) -> Packet {
    (first, join(&[&value("t"), packet_id, payload.as_bytes()]))
}

fn bytes((first, body): Packet) -> Vec<u8> {
    packet(first, &[&body])
}

async fn subscribe(client: &mut Raw, filter: &str, qos: u8) {
    let answer = client
        .ask(&packet(0x82, &[b"\0\x01", &value(filter), &[qos]]))
        .await;
    assert_eq!(answer, (SUBACK, vec![0, 1, qos]));
}

async fn resumed(broker: &TestBroker, id: &str) -> Raw {
    Raw::connect(broker.address, &connect3(0, &[&value(id)])).await
}

#[tokio::test]
async fn each_quality_of_service_has_its_answers() {
    let broker = TestBroker::start().await;
    let mut client = Raw::connect3(broker.address, "c").await;
    client.send(&bytes(message(0x30, b"", "x"))).await;
    client.ping().await;
    // The same identifier again after its acknowledgement: another message.
    for first in [0x32, 0x3a] {
        let answer = client.ask(&bytes(message(first, b"\x12\x34", "x"))).await;
        assert_eq!(answer, (PUBACK, vec![0x12, 0x34]));
    }
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("t", QoS::ExactlyOnce).await;
    for _ in 0..2 {
        for first in [0x34, 0x3c] {
            let answer = client.ask(&bytes(message(first, b"\x12\x34", "once"))).await;
            assert_eq!(answer, (PUBREC, vec![0x12, 0x34]));
        }
        for _ in 0..2 {
            let answer = client.ask(&packet(0x62, &[b"\x12\x34"])).await;
            assert_eq!(answer, (PUBCOMP, vec![0x12, 0x34]));
        }
        let received = reader.message().await;
        assert_eq!((&received.payload[..], received.dup), (&b"once"[..], false));
    }
    reader.ping().await;
}

#[tokio::test]
async fn what_arrives_has_the_lower_quality_of_service_no_properties_and_no_dup() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let all = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];
    for granted in 0..=2 {
        let mut reader = Raw::connect3(broker.address, "reader").await;
        subscribe(&mut reader, "t", granted).await;
        for (published, packet_id) in all.into_iter().zip([0, 4, 4]) {
            let properties = v5::PublishProperties {
                content_type: Some("text/plain".into()),
                user_properties: vec![("k".into(), "v".into())],
                ..v5::PublishProperties::default()
            };
            let sent = Publish {
                properties: Some(properties),
                ..publish("t", "x", published, packet_id)
            };
            publisher.publish_packet(sent).await;
            let qos = granted.min(u8::from(published));
            let (first, body) = reader.packet().await;
            assert_eq!(first, 0x30 | qos << 1);
            let start = if qos == 0 { 3 } else { 5 };
            assert_eq!((&body[..3], &body[start..]), (&b"\0\x01t"[..], &b"x"[..]));
            if qos > 0 {
                let id = &body[3..5];
                assert_ne!(id, [0, 0]);
                reader
                    .send(&packet(if qos == 1 { 0x40 } else { 0x50 }, &[id]))
                    .await;
                if qos == 2 {
                    assert_eq!(reader.packet().await, (PUBREL, id.to_vec()));
                    reader.send(&packet(0x70, &[id])).await;
                }
            }
        }
        reader.ping().await;
    }
}

#[tokio::test]
async fn answers_to_subscriptions_hold_a_code_for_each_filter_in_their_order() {
    let broker = TestBroker::start().await;
    let mut client = Raw::connect3(broker.address, "c").await;
    let filters = join(&[
        &value("a"),
        b"\x02",
        &value("a/#/b"),
        b"\x01",
        &value("+"),
        b"\x00",
        &value("t"),
        b"\x01",
    ]);
    let answer = client.ask(&packet(0x82, &[b"\xab\xcd", &filters])).await;
    assert_eq!(answer, (SUBACK, b"\xab\xcd\x02\x80\x00\x01".to_vec()));
    // Overlapping filters: once, with the highest quality of service.
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("t", "once").await;
    assert_eq!(client.packet().await, message(0x32, b"\0\x01", "once"));
    client.send(&packet(0x40, &[b"\0\x01"])).await;
    client.ping().await;
    // Filters are compared as they were written, and the answer is the same if none is left.
    let left = join(&[&value("t"), &value("#"), &value("A")]);
    for _ in 0..2 {
        let answer = client.ask(&packet(0xa2, &[b"\xab\xcd", &left])).await;
        assert_eq!(answer, (UNSUBACK, vec![0xab, 0xcd]));
    }
    publisher.publish("t", "+ is left").await;
    assert_eq!(client.packet().await, message(0x30, b"", "+ is left"));
    let answer = client.ask(&packet(0xa2, &[b"\0\x02", &value("+")])).await;
    assert_eq!(answer, (UNSUBACK, vec![0, 2]));
    publisher.publish("t", "nothing is left").await;
    client.ping().await;
}

#[tokio::test]
async fn retained_messages_come_with_a_subscription_and_are_replaced_and_removed() {
    let broker = TestBroker::start().await;
    let mut publisher = Raw::connect3(broker.address, "p").await;
    let mut live = Raw::connect3(broker.address, "live").await;
    subscribe(&mut live, "t", 0).await;
    for (sent, kept) in [
        (
            message(0x33, b"\0\x01", "one"),
            Some(message(0x33, b"\0\x01", "one")),
        ),
        (message(0x31, b"", "two"), Some(message(0x31, b"", "two"))),
        (message(0x30, b"", "passing"), Some(message(0x31, b"", "two"))),
        (message(0x30, b"", ""), Some(message(0x31, b"", "two"))),
        (message(0x31, b"", ""), None),
        (message(0x30, b"", "passing"), None),
    ] {
        publisher.send(&bytes(sent.clone())).await;
        if sent.0 == 0x33 {
            assert_eq!(publisher.packet().await, (PUBACK, vec![0, 1]));
        }
        publisher.ping().await;
        // Whoever has subscribed before sees no RETAIN.
        let (first, body) = live.packet().await;
        assert_eq!((first, &body[..3]), (0x30, &b"\0\x01t"[..]));
        let mut reader = Raw::connect3(broker.address, "reader").await;
        subscribe(&mut reader, "+", 1).await;
        if let Some(kept) = kept.clone() {
            assert_eq!(reader.packet().await, kept);
        }
        reader.ping().await;
        // The same subscription again: again, and nothing twice afterwards.
        subscribe(&mut reader, "+", 0).await;
        if let Some((first, body)) = kept {
            let (again, _) = reader.packet().await;
            assert_eq!((again, first & 1), (0x31, 1), "{body:02x?}");
        }
        reader.ping().await;
    }
    // They are no part of a session.
    publisher.send(&bytes(message(0x31, b"", "kept"))).await;
    publisher.ping().await;
    drop(publisher);
    let mut client = Raw::connect3(broker.address, "p").await;
    subscribe(&mut client, "t", 0).await;
    assert_eq!(client.packet().await, message(0x31, b"", "kept"));
}

#[tokio::test]
async fn a_session_goes_on_where_it_was_left() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let mut reader = resumed(&broker, "reader").await;
    subscribe(&mut reader, "t", 2).await;
    for (payload, qos) in [
        ("one", QoS::AtLeastOnce),
        ("two", QoS::ExactlyOnce),
        ("three", QoS::ExactlyOnce),
    ] {
        publisher.publish_packet(publish("t", payload, qos, 1)).await;
    }
    let mut ids = Vec::new();
    for first in [0x32, 0x34, 0x34] {
        let (found, body) = reader.packet().await;
        assert_eq!(found, first);
        ids.push(body[3..5].to_vec());
    }
    assert_eq!(
        reader.ask(&packet(0x50, &[&ids[1]])).await,
        (PUBREL, ids[1].clone())
    );
    drop(reader);
    // What is published meanwhile belongs to the session as well.
    publisher.publish("t", "four").await;
    let mut reader = resumed(&broker, "reader").await;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(reader.packet().await);
    }
    assert!(all.contains(&(PUBREL, ids[1].clone())));
    all.retain(|(first, _)| *first != PUBREL);
    assert_eq!(all[0], message(0x3a, &ids[0], "one"));
    assert_eq!(all[1], message(0x3c, &ids[2], "three"));
    // It may have been sent to the first connection before that was seen to be gone: then it is a repeat.
    assert_eq!((all[2].0 & !0x08, &all[2].1[5..]), (0x32, &b"four"[..]));
    reader.ping().await;
    drop(reader);
    // A clean session discards it, and leaves none.
    Raw::connect3(broker.address, "reader").await.ping().await;
    assert_eq!(
        publisher.publish("t", "for nobody").await,
        v5::PublishAckReason::NoMatchingSubscribers
    );
    resumed(&broker, "reader").await.ping().await;
}

#[tokio::test]
async fn what_was_sent_before_unsubscribing_is_completed() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let mut reader = resumed(&broker, "reader").await;
    subscribe(&mut reader, "t", 1).await;
    publisher.publish("t", "before").await;
    let (_, body) = reader.packet().await;
    let id = body[3..5].to_vec();
    let answer = reader.ask(&packet(0xa2, &[b"\0\x02", &value("t")])).await;
    assert_eq!(answer, (UNSUBACK, vec![0, 2]));
    publisher.publish("t", "after").await;
    reader.ping().await;
    drop(reader);
    let mut reader = resumed(&broker, "reader").await;
    assert_eq!(reader.packet().await, message(0x3a, &id, "before"));
    reader.ping().await;
}

#[tokio::test]
async fn wills_are_published_as_given_unless_the_client_disconnects() {
    let broker = TestBroker::start().await;
    for qos in 0..=2u8 {
        for retain in [0, 0x20] {
            let mut reader = Raw::connect3(broker.address, "reader").await;
            subscribe(&mut reader, "t", 2).await;
            let flags = 0x06 | qos << 3 | retain;
            let connect = connect3(flags, &[&value("c"), &value("t"), &value("gone")]);
            // Said good-bye to, broken, and ended for a fault.
            let mut polite = Raw::connect(broker.address, &connect).await;
            polite.send(b"\xe0\0").await;
            assert_eq!(polite.rest().await, []);
            reader.ping().await;
            drop(Raw::connect(broker.address, &connect).await);
            let id: &[u8] = if qos == 0 { b"" } else { b"\0\x01" };
            assert_eq!(reader.packet().await, message(0x30 | qos << 1, id, "gone"));
            let mut faulty = Raw::connect(broker.address, &connect).await;
            assert_eq!(faulty.ended_by(b"\0\0").await, None);
            let id: &[u8] = if qos == 0 { b"" } else { b"\0\x02" };
            assert_eq!(reader.packet().await, message(0x30 | qos << 1, id, "gone"));
            // Without a will there is none.
            drop(Raw::connect3(broker.address, "c").await);
            reader.ping().await;
            let mut late = Raw::connect3(broker.address, "late").await;
            subscribe(&mut late, "t", 0).await;
            if retain != 0 {
                assert_eq!(late.packet().await, message(0x31, b"", "gone"));
                let mut remover = Client::clean(broker.address, "remover").await;
                remover
                    .publish_packet(retained("t", "", QoS::AtLeastOnce, 1))
                    .await;
            } else {
                late.ping().await;
            }
        }
    }
}

#[tokio::test]
async fn after_the_clients_disconnect_nothing_more_is_taken() {
    let broker = TestBroker::start().await;
    let mut reader = Raw::connect3(broker.address, "reader").await;
    subscribe(&mut reader, "t", 0).await;
    let mut client = Raw::connect3(broker.address, "c").await;
    let (before, after) = (message(0x30, b"", "before"), message(0x30, b"", "after"));
    client
        .send(&join(&[&bytes(before.clone()), b"\xe0\0", &bytes(after)]))
        .await;
    assert_eq!(client.rest().await, []);
    assert_eq!(reader.packet().await, before);
    reader.ping().await;
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_as_this_version_can() {
    let rules = serde_json::json!({ "rules": [{
        "name": "some", "effect": "Allow", "actions": ["Connect", "Publish", "Subscribe"], "topics": ["t"],
    }] });
    let policy: BrokerPolicySpec = serde_json::from_value(rules).unwrap();
    let broker = TestBroker::start().await;
    broker.handle.set_policies([("p", &policy)]).unwrap();
    let mut client = Raw::connect3(broker.address, "c").await;
    let answer = client
        .ask(&packet(
            0x82,
            &[b"\0\x01", &value("secret"), b"\x01", &value("t"), b"\x01"],
        ))
        .await;
    assert_eq!(answer, (SUBACK, vec![0, 1, 0x80, 1]));
    // With quality of service 0 it is dropped; otherwise no acknowledgement can say no.
    client.send(&packet(0x30, &[&value("secret"), b"x"])).await;
    client.ping().await;
    let mut client = Raw::connect3(broker.address, "c").await;
    let refused = packet(0x32, &[&value("secret"), b"\0\x01x"]);
    assert_eq!(client.ended_by(&refused).await, None);
}

#[tokio::test]
async fn a_message_that_can_not_be_kept_closes_the_connection() {
    let directory = tempfile::tempdir().unwrap();
    // No disk has so much room.
    let full = foreshore_store::StoreOptions {
        free_space_watermark: u64::MAX,
        ..Default::default()
    };
    let options = foreshore_broker::Options {
        storage: foreshore_broker::Storage::Directory {
            path: directory.path().to_owned(),
            options: full,
        },
        ..crate::options()
    };
    let broker = TestBroker::start_with(options).await;
    let mut witness = Raw::connect3(broker.address, "witness").await;
    let mut client = Raw::connect3(broker.address, "c").await;
    // Retained messages are written to the disk.
    assert_eq!(client.ended_by(&bytes(message(0x33, b"\0\x01", "x"))).await, None);
    witness.ping().await;
}

#[tokio::test]
async fn messages_keep_their_order_and_so_do_answers() {
    let broker = TestBroker::start().await;
    let mut reader = Raw::connect3(broker.address, "reader").await;
    subscribe(&mut reader, "#", 1).await;
    let mut publisher = Raw::connect3(broker.address, "p").await;
    let burst: Vec<u8> = (1..=50u8)
        .flat_map(|id| bytes(message(0x32, &[0, id], &id.to_string())))
        .collect();
    publisher.send(&burst).await;
    for id in 1..=50u8 {
        assert_eq!(publisher.packet().await, (PUBACK, vec![0, id]));
        let (first, body) = reader.packet().await;
        assert_eq!((first, &body[5..]), (0x32, id.to_string().as_bytes()));
        reader.send(&packet(0x40, &[&body[3..5]])).await;
    }
    // A topic that begins with $ is none of those that a wildcard in front matches.
    publisher.send(&packet(0x30, &[&value("$other"), b"x"])).await;
    publisher.ping().await;
    reader.ping().await;
}
