//! Clients that mean harm, or are broken: whatever they do is theirs, and costs the broker little.

use std::time::Duration;

use foreshore_broker::Limits;
use rmqtt_codec::{
    types::QoS,
    v5::{self, DisconnectReasonCode, SubscribeAckReason},
};

use super::raw::{
    CONNACK, PINGRESP, PUBCOMP, PUBREC, Raw, SUBACK, UNSUBACK, connect3, connect5, join, packet, properties,
    value,
};
use crate::{
    TestBroker,
    client::{Client, GENEROUS, hello, publish, retained},
};

/// One of each packet that a client may send, in order.
fn packets(v5: bool) -> Vec<Vec<u8>> {
    let block: &[u8] = if v5 {
        b"\x0d\x02\0\0\0\x09\x26\0\x01k\0\x02vv"
    } else {
        b""
    };
    let none: &[u8] = if v5 { b"\0" } else { b"" };
    let payload = [
        &value("c")[..],
        none,
        &value("w"),
        &value("x"),
        &value("user"),
        &value("secret"),
    ];
    let connect = if v5 {
        connect5(0xc6, &[b"\x11\0\0\0\x09"], &payload)
    } else {
        connect3(
            0xc6,
            &[
                &value("c"),
                &value("w"),
                &value("x"),
                &value("user"),
                &value("secret"),
            ],
        )
    };
    vec![
        connect,
        packet(0x82, &[b"\0\x01", none, &value("t"), b"\x02", &value("u"), b"\0"]),
        packet(0x34, &[&value("t"), b"\0\x02", block, b"payload"]),
        packet(0x62, &[b"\0\x02"]),
        packet(0xa2, &[b"\0\x03", none, &value("t")]),
        b"\xc0\0".to_vec(),
        b"\xe0\0".to_vec(),
    ]
}

#[tokio::test]
async fn a_stream_may_end_anywhere() {
    let broker = TestBroker::start().await;
    for v5 in [true, false] {
        let stream = packets(v5).concat();
        for end in 0..stream.len() {
            let mut client = Raw::open(broker.address).await;
            client.send(&stream[..end]).await;
            client.finish().await;
            let ended = tokio::time::timeout(GENEROUS, client.rest()).await;
            assert!(ended.is_ok(), "{:02x?}", &stream[..end]);
        }
    }
    Client::clean(broker.address, "witness").await.ping().await;
}

#[tokio::test]
async fn a_stream_may_arrive_byte_by_byte() {
    let broker = TestBroker::start().await;
    for v5 in [true, false] {
        let mut stream = packets(v5);
        // Good-bye would end what the answers wait for.
        stream.pop();
        let mut client = Raw::open(broker.address).await;
        for byte in stream.concat() {
            client.send(&[byte]).await;
            tokio::task::yield_now().await;
        }
        // The own message comes back as well.
        let mut expected = vec![CONNACK, SUBACK, PUBREC, PUBCOMP, UNSUBACK, PINGRESP, 0x34];
        while !expected.is_empty() {
            let (first, body) = client.packet().await;
            let known = expected.iter().position(|kind| *kind == first);
            let at = known.unwrap_or_else(|| panic!("{first:02x}: {body:02x?}"));
            expected.remove(at);
        }
    }
}

#[tokio::test]
async fn what_is_announced_too_large_is_refused_before_it_arrives() {
    let broker = TestBroker::start().await;
    let mut client = Raw::open(broker.address).await;
    client.send(b"\x10\xff\xff\xff\x7f").await;
    assert_eq!(client.rest().await, []);
    let mut client = Raw::connect5(broker.address, "c").await;
    client.send(b"\x30\xff\xff\xff\x7f").await;
    let all = client.rest().await;
    assert_eq!((all[0].0, all[0].1[0]), (0xe0, 0x95));
    let mut client = Raw::connect3(broker.address, "c").await;
    client.send(b"\x30\xff\xff\xff\x7f").await;
    assert_eq!(client.rest().await, []);
}

#[tokio::test]
async fn oversized_content_is_refused_by_its_bound() {
    let broker = TestBroker::start().await;
    let topic = value("t");
    let user = join(&[b"\x26", &value("k"), &value("v")]).repeat(300);
    let mut client = Raw::connect5(broker.address, "c").await;
    let many = packet(0x30, &[&topic, &properties(&[&user])]);
    assert_eq!(client.ended_by(&many).await, Some(0x97));
    // The longest topic that there is: few levels, many bytes.
    let longest = "l".repeat(65_535);
    let mut client = Client::clean(broker.address, "c").await;
    assert_eq!(
        client.subscribe(&longest, QoS::AtMostOnce).await,
        SubscribeAckReason::TopicFilterInvalid
    );
    client.subscribe("+", QoS::AtMostOnce).await;
    client
        .send_publish(publish(&longest, "x", QoS::AtMostOnce, 0))
        .await;
    assert_eq!(&*client.message().await.topic, longest);
}

#[tokio::test]
async fn topics_of_a_thousand_levels_are_refused() {
    let broker = TestBroker::start().await;
    for topic in [
        "a/".repeat(1000),
        "/".repeat(65_535),
        "+/".repeat(1000),
        format!("{}#", "/".repeat(1000)),
    ] {
        let mut client = Client::clean(broker.address, "c").await;
        for filter in [topic.clone(), format!("$share/g/{topic}")] {
            let filter: String = filter.chars().take(65_535).collect();
            assert_eq!(
                client.subscribe(&filter, QoS::AtLeastOnce).await,
                SubscribeAckReason::TopicFilterInvalid
            );
        }
        client.unsubscribe(&topic).await;
        client
            .send_publish(publish(&topic, "x", QoS::AtMostOnce, 0))
            .await;
        assert_eq!(
            client.expect_disconnect().await,
            DisconnectReasonCode::TopicNameInvalid
        );
    }
}

#[tokio::test]
async fn a_bomb_of_subscriptions_stops_at_the_bound_and_burdens_nobody() {
    let limits = Limits {
        max_subscriptions: 100,
        max_topic_levels: 100,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let mut witness = Client::clean(broker.address, "witness").await;
    witness.subscribe("w", QoS::AtLeastOnce).await;
    let mut client = Raw::connect5(broker.address, "c").await;
    // Filters with as many wildcards as there may be levels.
    let deep = "+/".repeat(60);
    let filters: Vec<u8> = (0..5_000)
        .flat_map(|index| join(&[&value(format!("{deep}{index}/#")), b"\x01"]))
        .collect();
    let (first, body) = client.ask(&packet(0x82, &[b"\0\x01\0", &filters])).await;
    assert_eq!((first, body.len()), (SUBACK, 3 + 5_000));
    assert!(body[3..103].iter().all(|reason| *reason == 1));
    assert!(body[103..].iter().all(|reason| *reason == 0x97));
    // A message that all of them look at.
    witness
        .publish_packet(publish(&"x/".repeat(60), "x", QoS::AtLeastOnce, 1))
        .await;
    witness.publish("w", "alive").await;
    assert_eq!(witness.take().await, "alive");
    let left: Vec<u8> = (0..5_000)
        .flat_map(|index| value(format!("{deep}{index}/#")))
        .collect();
    let (_, body) = client.ask(&packet(0xa2, &[b"\0\x02\0", &left])).await;
    let removed = body[3..].iter().filter(|reason| **reason == 0).count();
    assert_eq!((body.len(), removed), (3 + 5_000, 100));
}

#[tokio::test]
async fn who_asks_for_all_that_is_retained_again_and_again_gets_it_bit_by_bit() {
    // All deliveries at once would take some megabytes, and what they carry more than the system keeps for a connection.
    let limits = Limits {
        max_subscriptions: 300,
        max_client_memory: Some(1 << 20),
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let mut witness = Client::clean(broker.address, "witness").await;
    let payload = "x".repeat(1000);
    for index in 0..200 {
        let topic = format!("retained/{index}");
        witness
            .publish_packet(retained(&topic, &payload, QoS::AtLeastOnce, 1))
            .await;
    }
    let mut client = Raw::connect5(broker.address, "c").await;
    let filters = join(&[&value("#"), b"\0"]).repeat(400);
    client.send(&packet(0x82, &[b"\0\x01\0", &filters])).await;
    witness.ping().await;
    let mut published = 0;
    while published < 300 * 200 {
        let (first, body) = client.next().await.expect("the client stays connected");
        if first == SUBACK {
            assert!(body[3..303].iter().all(|reason| *reason == 0));
            assert_eq!(&body[303..], [0x97; 100]);
        } else {
            assert_eq!(first, 0x31);
            published += 1;
        }
    }
    // Whoever has all of it may ask again.
    let again = join(&[&value("retained/7"), b"\0"]);
    client.send(&packet(0x82, &[b"\0\x02\0", &again])).await;
    let mut answers = [client.next().await.unwrap().0, client.next().await.unwrap().0];
    answers.sort_unstable();
    assert_eq!(answers, [0x31, SUBACK]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_connections_ends_at_the_bound_and_calms_down() {
    let limits = Limits {
        max_connections: 20,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let mut witness = Client::clean(broker.address, "witness").await;
    let address = broker.address;
    let storm: Vec<_> = (0..300)
        .map(|index| {
            tokio::spawn(async move {
                let mut client = Raw::open(address).await;
                client
                    .send(&connect5(2, &[], &[&value(format!("c{index}"))]))
                    .await;
                let let_in = client.next().await.is_some();
                (client, let_in)
            })
        })
        .collect();
    let mut inside = Vec::new();
    for client in storm {
        let (client, let_in) = client.await.unwrap();
        inside.extend(let_in.then_some(client));
    }
    assert_eq!(inside.len(), 19);
    witness.ping().await;
    drop(inside);
    // The places are free again.
    let deadline = tokio::time::Instant::now() + GENEROUS;
    loop {
        let mut client = Raw::open(address).await;
        client.send(&connect5(2, &[], &[&value("later")])).await;
        if client.next().await.is_some() {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "no place becomes free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn half_open_peers_are_shown_out_at_every_stage() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    // No byte, half a header, half a CONNECT.
    let connect = connect5(2, &[], &[&value("c")]);
    for part in [0, 1, 2, connect.len() - 1] {
        let mut client = Raw::open(broker.address).await;
        client.send(&connect[..part]).await;
        assert_eq!(client.rest().await, [], "{part}");
    }
    // A CONNECT byte by byte that takes longer than it may.
    let mut slow = Raw::open(broker.address).await;
    let slowly = async {
        for byte in connect[..connect.len() - 1].iter().cycle() {
            slow.send(&[*byte]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_millis(700), slowly)
            .await
            .is_err()
    );
    assert_eq!(slow.rest().await, []);
    // Connected, and silent in the middle of a packet.
    let broker = TestBroker::start().await;
    let connect = v5::Connect {
        keep_alive: 1,
        ..hello("half")
    };
    let (mut client, _) = Client::connect(broker.address, connect).await;
    client.send_raw(b"\x30\x7f\0\x01t\0").await;
    assert_eq!(
        client.expect_disconnect().await,
        DisconnectReasonCode::KeepAliveTimeout
    );
}

#[tokio::test]
async fn control_characters_and_noncharacters_do_no_harm() {
    let broker = TestBroker::start().await;
    let mut client = Client::clean(broker.address, "\u{1}\u{1b}[2J\u{7f}\u{fffe}").await;
    for topic in [
        "\u{1}",
        "\u{1b}[31m",
        "a\r\nb",
        "\u{202e}x",
        "\u{fdd0}/\u{1ffff}",
        "%s%n",
        "../../x",
        "a\\b",
    ] {
        client.subscribe(topic, QoS::AtLeastOnce).await;
        client
            .send_publish(publish(topic, topic, QoS::AtMostOnce, 0))
            .await;
        let message = client.message().await;
        assert_eq!((&*message.topic, &message.payload[..]), (topic, topic.as_bytes()));
    }
}
