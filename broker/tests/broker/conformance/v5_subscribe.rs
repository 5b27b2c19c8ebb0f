//! SUBSCRIBE, UNSUBSCRIBE and shared subscriptions (sections 3.8 to 3.11, 4.7 and 4.8).

use std::num::NonZeroU32;

use rmqtt_codec::{
    types::QoS,
    v5::{self, PublishAckReason, SubscribeAckReason, SubscriptionOptions, UnsubscribeAckReason},
};

use super::raw::{PUBACK, Raw, SUBACK, UNSUBACK, join, packet, value};
use crate::{
    TestBroker,
    client::{Client, back, hello, id, publish, retained},
};

/// The answer to a packet whose body, from the packet identifier on, is given.
async fn answer(client: &mut Raw, first: u8, parts: &[&[u8]]) -> (u8, Vec<u8>) {
    client.ask(&packet(first, parts)).await
}

#[tokio::test]
async fn one_answer_holds_a_reason_for_each_filter_in_their_order() {
    let broker = TestBroker::start().await;
    let mut client = Raw::connect5(broker.address, "c").await;
    let filters = join(&[
        &value("a"),
        b"\x00",
        &value("a/#/b"),
        b"\x01",
        &value("b/+"),
        b"\x02",
        &value(""),
        b"\x00",
        &value("c"),
        b"\x01",
        &value("$share//c"),
        b"\x00",
    ]);
    let granted = answer(&mut client, 0x82, &[b"\xab\xcd\0", &filters]).await;
    assert_eq!(granted, (SUBACK, b"\xab\xcd\0\x00\x8f\x02\x8f\x01\x8f".to_vec()));
    // Each of them is in force as if it had come alone.
    for topic in ["a", "b/x", "c"] {
        client.send(&packet(0x30, &[&value(topic), b"\0"])).await;
        assert_eq!(client.packet().await, (0x30, join(&[&value(topic), b"\0"])));
    }
    let left = join(&[&value("c"), &value("never"), &value("a")]);
    let answer = answer(&mut client, 0xa2, &[b"\xab\xcd\0", &left]).await;
    assert_eq!(answer, (UNSUBACK, b"\xab\xcd\0\x00\x11\x00".to_vec()));
    for topic in ["a", "c", "b/x"] {
        client.send(&packet(0x30, &[&value(topic), b"\0"])).await;
    }
    assert_eq!(client.packet().await, (0x30, join(&[&value("b/x"), b"\0"])));
    client.ping().await;
}

#[tokio::test]
async fn a_subscription_is_replaced_and_nothing_is_lost_meanwhile() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher
        .publish_packet(retained("t", "kept", QoS::AtLeastOnce, 1))
        .await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    let options = |qos, retain_as_published| SubscriptionOptions {
        qos,
        retain_as_published,
        ..SubscriptionOptions::default()
    };
    for (options, identifier) in [
        (options(QoS::AtLeastOnce, true), Some(3)),
        (options(QoS::AtMostOnce, false), None),
        (options(QoS::AtLeastOnce, false), Some(4)),
    ] {
        let subscribe = v5::Subscribe {
            packet_id: id(1),
            id: identifier.and_then(NonZeroU32::new),
            user_properties: Vec::new(),
            topic_filters: vec![("t".into(), options)],
        };
        reader.send(v5::Packet::Subscribe(subscribe)).await;
        // With retain handling 0 it comes each time, before the answer or after it; new messages come once.
        let (mut retained, mut granted) = (None, false);
        while retained.is_none() || !granted {
            match reader.receive().await {
                v5::Packet::SubscribeAck(_) => granted = true,
                v5::Packet::Publish(message) => retained = Some(message),
                other => panic!("{other:?}"),
            }
        }
        let retained = retained.unwrap();
        assert!(retained.retain && retained.qos == options.qos);
        publisher.publish("t", "new").await;
        let new = reader.message().await;
        assert_eq!((&new.payload[..], new.qos), (&b"new"[..], options.qos));
        let identifiers = new.properties.unwrap().subscription_ids;
        assert_eq!(
            identifiers.iter().map(|id| id.get()).collect::<Vec<_>>(),
            Vec::from_iter(identifier)
        );
        for message in [retained.packet_id, new.packet_id].into_iter().flatten() {
            reader.acknowledge(message.get()).await;
        }
        reader.ping().await;
    }
    // While messages arrive.
    let live = tokio::spawn(async move {
        for index in 0..300 {
            publisher.publish("t", &index.to_string()).await;
        }
    });
    let subscribe = packet(0x82, &[b"\0\x01\0", &value("t"), b"\x21"]);
    let mut seen = 0;
    while seen < 300 {
        if seen % 10 == 0 {
            reader.send_raw(&subscribe).await;
        }
        loop {
            match reader.receive().await {
                v5::Packet::SubscribeAck(_) => {}
                v5::Packet::Publish(message) => {
                    assert_eq!(message.payload, seen.to_string());
                    reader.acknowledge(message.packet_id.unwrap().get()).await;
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        seen += 1;
    }
    live.await.unwrap();
}

#[tokio::test]
async fn filters_are_left_as_they_were_written() {
    let broker = TestBroker::start().await;
    let mut client = Client::clean(broker.address, "c").await;
    for filter in ["a/+", "$share/g/a/+"] {
        client.subscribe(filter, QoS::AtMostOnce).await;
        for other in ["a/#", "a/b", "A/+", "a/+/", "$share/h/a/+"] {
            let left = client.unsubscribe(other).await;
            assert_eq!(left, UnsubscribeAckReason::NoSubscriptionExisted, "{other}");
        }
        client.send_publish(publish("a/b", "x", QoS::AtMostOnce, 0)).await;
        assert_eq!(client.take().await, "x");
        assert_eq!(client.unsubscribe(filter).await, UnsubscribeAckReason::Success);
        client.send_publish(publish("a/b", "x", QoS::AtMostOnce, 0)).await;
        client.ping().await;
    }
}

#[tokio::test]
async fn what_was_sent_before_unsubscribing_is_completed() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
        reader.subscribe("t", qos).await;
        publisher.publish_packet(publish("t", "before", qos, 1)).await;
        let sent = reader.message().await;
        assert_eq!(reader.unsubscribe("t").await, UnsubscribeAckReason::Success);
        publisher.publish_packet(publish("t", "after", qos, 1)).await;
        reader.ping().await;
        drop(reader);
        let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
        let again = reader.message().await;
        assert_eq!((again.packet_id, again.dup), (sent.packet_id, true));
        let packet_id = again.packet_id.unwrap().get();
        if qos == QoS::AtLeastOnce {
            reader.acknowledge(packet_id).await;
        } else {
            reader.received(packet_id).await;
            reader.expect_release(packet_id).await;
            reader.complete(packet_id).await;
        }
        reader.ping().await;
        drop(reader);
        Client::clean(broker.address, "reader").await;
    }
}

#[tokio::test]
async fn wildcards_fill_their_level_and_a_share_has_a_name_and_a_filter() {
    let broker = TestBroker::start().await;
    let mut client = Client::clean(broker.address, "c").await;
    for filter in [
        "#",
        "+",
        "/",
        "a/#",
        "+/a/#",
        "/+/",
        "$share/g/#",
        "$share/g//",
        "$share/a b/+/c",
        "$SHARE/g",
    ] {
        let granted = client.subscribe(filter, QoS::AtMostOnce).await;
        assert_eq!(granted, SubscribeAckReason::GrantedQos0, "{filter}");
    }
    for filter in [
        "",
        "#/a",
        "a#",
        "a/#b",
        "a/#/b",
        "a+",
        "+a",
        "a/b+/c",
        "##",
        "++",
        "$share/",
        "$share/g",
        "$share/g/",
        "$share//t",
        "$share/+/t",
        "$share/g#/t",
        "$share/g/a#",
    ] {
        let granted = client.subscribe(filter, QoS::AtMostOnce).await;
        assert_eq!(granted, SubscribeAckReason::TopicFilterInvalid, "{filter}");
    }
}

#[tokio::test]
async fn no_local_looks_at_the_client_identifier() {
    let broker = TestBroker::start().await;
    let (mut client, _) = Client::connect(broker.address, back("c")).await;
    let no_local = SubscriptionOptions {
        qos: QoS::AtLeastOnce,
        no_local: true,
        ..SubscriptionOptions::default()
    };
    client.subscribe_with("t", no_local, None).await;
    client.publish("t", "own").await;
    client.ping().await;
    // On another connection of the same client as well.
    drop(client);
    let (mut client, ack) = Client::connect(broker.address, back("c")).await;
    assert!(ack.session_present);
    client.publish("t", "own").await;
    client.ping().await;
    let mut other = Client::clean(broker.address, "other").await;
    other.publish("t", "another's").await;
    assert_eq!(client.take().await, "another's");
}

#[tokio::test]
async fn members_of_a_group_get_no_more_than_they_were_granted() {
    let broker = TestBroker::start().await;
    let mut members = Vec::new();
    for (name, granted) in [
        ("zero", QoS::AtMostOnce),
        ("one", QoS::AtLeastOnce),
        ("two", QoS::ExactlyOnce),
    ] {
        let mut member = Client::clean(broker.address, name).await;
        member.subscribe("$share/g/t", granted).await;
        members.push((member, granted));
    }
    let mut publisher = Client::clean(broker.address, "p").await;
    for published in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        for _ in 0..3 {
            publisher.publish_packet(publish("t", "x", published, 1)).await;
        }
        for (member, granted) in &mut members {
            let message = member.message().await;
            assert_eq!(message.qos, published.min(*granted));
        }
    }
}

#[tokio::test]
async fn a_copy_for_a_group_has_the_identifier_of_its_subscription() {
    let broker = TestBroker::start().await;
    let mut client = Client::clean(broker.address, "c").await;
    for (filter, identifier) in [("t", 1), ("+", 2), ("$share/g/t", 3), ("$share/g/+", 4)] {
        let options = SubscriptionOptions::default();
        client.subscribe_with(filter, options, Some(identifier)).await;
    }
    client.send_publish(publish("t", "x", QoS::AtMostOnce, 0)).await;
    let mut copies = Vec::new();
    for _ in 0..3 {
        let found = client.message().await.properties.unwrap().subscription_ids;
        copies.push(found.iter().map(|id| id.get()).collect::<Vec<_>>());
    }
    copies.sort();
    assert_eq!(copies, [vec![1, 2], vec![3], vec![4]]);
}

#[tokio::test]
async fn a_message_in_flight_to_a_member_is_completed_with_it() {
    let broker = TestBroker::start().await;
    let (mut first, _) = Client::connect(broker.address, back("first")).await;
    first.subscribe("$share/g/t", QoS::ExactlyOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher
        .publish_packet(publish("t", "one", QoS::ExactlyOnce, 1))
        .await;
    let sent = first.message().await;
    let mut second = Client::clean(broker.address, "second").await;
    second.subscribe("$share/g/t", QoS::ExactlyOnce).await;
    drop(first);
    let (mut first, ack) = Client::connect(broker.address, back("first")).await;
    assert!(ack.session_present);
    let again = first.message().await;
    assert_eq!((again.packet_id, again.dup), (sent.packet_id, true));
    // And if it never returns, nobody gets what it may have got.
    drop(first);
    Client::clean(broker.address, "first").await.ping().await;
    publisher
        .publish_packet(publish("t", "two", QoS::ExactlyOnce, 1))
        .await;
    assert_eq!(second.take().await, "two");
    second.ping().await;
}

#[tokio::test]
async fn what_a_member_refuses_is_offered_to_nobody_else() {
    let broker = TestBroker::start().await;
    for (qos, durable) in [
        (QoS::AtLeastOnce, false),
        (QoS::AtLeastOnce, true),
        (QoS::ExactlyOnce, false),
        (QoS::ExactlyOnce, true),
    ] {
        let connect = if durable { back("first") } else { hello("first") };
        let (mut first, _) = Client::connect(broker.address, connect).await;
        first.subscribe("$share/g/t", qos).await;
        let mut publisher = Client::clean(broker.address, "p").await;
        publisher.publish_packet(publish("t", "refused", qos, 1)).await;
        let message = first.message().await;
        let mut second = Client::clean(broker.address, "second").await;
        second.subscribe("$share/g/t", qos).await;
        let ack = v5::PublishAck {
            packet_id: message.packet_id.unwrap(),
            reason_code: PublishAckReason::NotAuthorized,
            ..v5::PublishAck::default()
        };
        first
            .send(match qos {
                QoS::AtLeastOnce => v5::Packet::PublishAck(ack),
                _ => v5::Packet::PublishReceived(ack),
            })
            .await;
        first.ping().await;
        drop(first);
        Client::clean(broker.address, "first").await;
        publisher.publish_packet(publish("t", "next", qos, 1)).await;
        assert_eq!(second.take().await, "next");
        second.ping().await;
    }
}

#[tokio::test]
async fn a_ping_is_answered_between_all_the_rest() {
    let broker = TestBroker::start().await;
    let mut client = Raw::connect5(broker.address, "c").await;
    client.ping().await;
    let all = join(&[
        b"\xc0\0",
        &packet(0x32, &[&value("t"), b"\0\x01\0"]),
        b"\xc0\0",
        &packet(0x82, &[b"\0\x02\0", &value("t"), b"\0"]),
    ]);
    client.send(&all).await;
    let mut kinds = Vec::new();
    for _ in 0..4 {
        kinds.push(client.packet().await.0);
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [PUBACK, SUBACK, 0xd0, 0xd0]);
}
