//! Packets that nobody should send. Whatever they are, the broker goes on, and another client notices nothing.

use std::sync::Arc;

use bytes::BytesMut;
use foreshore_broker::{Method, PasswordTable};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use rmqtt_codec::{
    types::QoS,
    v5::{self, Codec},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::codec::Encoder;

use crate::{
    TestBroker,
    client::{Client, GENEROUS, hello, id, publish},
};

/// Connections with faulty packets.
const ROUNDS: u32 = 400;

fn encoded(packet: v5::Packet) -> Vec<u8> {
    let mut out = BytesMut::new();
    Codec::new(0, 0).encode(packet, &mut out).unwrap();
    out.to_vec()
}

/// Packets that are in order.
fn good_packets() -> Vec<Vec<u8>> {
    let properties = v5::PublishProperties {
        topic_alias: std::num::NonZeroU16::new(3),
        message_expiry_interval: std::num::NonZeroU32::new(60),
        content_type: Some("text/plain".into()),
        response_topic: Some("answers".into()),
        user_properties: vec![("key".into(), "value".into())],
        ..v5::PublishProperties::default()
    };
    let rich = rmqtt_codec::types::Publish {
        properties: Some(properties),
        ..publish("fuzz/rich", "payload", QoS::ExactlyOnce, 3)
    };
    vec![
        encoded(v5::Packet::Publish(Box::new(publish(
            "fuzz/a",
            "payload",
            QoS::AtLeastOnce,
            2,
        )))),
        encoded(v5::Packet::Publish(Box::new(rich))),
        encoded(v5::Packet::PublishRelease(v5::PublishAck2 {
            packet_id: id(3),
            ..Default::default()
        })),
        encoded(v5::Packet::PublishReceived(v5::PublishAck {
            packet_id: id(9),
            ..Default::default()
        })),
        encoded(v5::Packet::PublishAck(v5::PublishAck {
            packet_id: id(9),
            ..Default::default()
        })),
        encoded(v5::Packet::Subscribe(v5::Subscribe {
            packet_id: id(4),
            id: std::num::NonZeroU32::new(200),
            user_properties: vec![("k".into(), "v".into())],
            topic_filters: vec![
                ("fuzz/#".into(), v5::SubscriptionOptions::default()),
                ("$share/g/fuzz".into(), Default::default()),
            ],
        })),
        encoded(v5::Packet::Unsubscribe(v5::Unsubscribe {
            packet_id: id(5),
            user_properties: Vec::new(),
            topic_filters: vec!["fuzz/#".into()],
        })),
        encoded(v5::Packet::PingRequest),
        encoded(v5::Packet::Auth(v5::Auth::default())),
        encoded(v5::Packet::Auth(scram(
            v5::AuthReasonCode::ContinueAuth,
            "c=biws,r=x,p=AAAA",
        ))),
        encoded(v5::Packet::Auth(scram(v5::AuthReasonCode::ReAuth, "n,,n=s,r=x"))),
    ]
}

fn scram(reason_code: v5::AuthReasonCode, message: &'static str) -> v5::Auth {
    v5::Auth {
        reason_code,
        auth_method: Some("SCRAM-SHA-256".into()),
        auth_data: Some(message.into()),
        ..v5::Auth::default()
    }
}

fn connects() -> Vec<Vec<u8>> {
    let five = v5::Connect {
        session_expiry_interval_secs: 1,
        user_properties: vec![("k".into(), "v".into())],
        username: Some("u".into()),
        ..hello("fuzz")
    };
    let stepwise = v5::Connect {
        auth_method: Some("SCRAM-SHA-256".into()),
        auth_data: Some("n,,n=s,r=x".into()),
        ..hello("fuzz")
    };
    vec![
        encoded(v5::Packet::Connect(Box::new(five))),
        encoded(v5::Packet::Connect(Box::new(stepwise))),
        b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04fuzz".to_vec(),
        b"\x10\x12\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x04fuzz".to_vec(),
    ]
}

/// Breaks a packet in one of several ways.
fn mutate(packet: &mut Vec<u8>, random: &mut impl RngCore) {
    match random.random_range(0..6) {
        0 => {
            let at = random.random_range(0..packet.len());
            packet[at] ^= 1 << random.random_range(0..8);
        }
        1 => packet.truncate(random.random_range(0..packet.len())),
        2 => {
            let at = random.random_range(0..=packet.len());
            packet.insert(at, random.random());
        }
        3 => {
            let at = random.random_range(0..packet.len());
            packet.remove(at);
        }
        4 => {
            let more: [u8; 8] = random.random();
            packet.extend(more);
        }
        _ => packet.iter_mut().skip(2).for_each(|byte| {
            if random.random_range(0..4) == 0 {
                *byte = random.random();
            }
        }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faulty_packets_harm_nobody_else() {
    let mut random = StdRng::seed_from_u64(7);
    let mut options = crate::options();
    let users = PasswordTable::new([("s".to_owned(), b"password".to_vec())], &[]).unwrap();
    let ways = [Method::Passwords(Arc::new(users)), Method::Anonymous];
    options.listeners[0].authentication = ways.into();
    let metrics = options.metrics.clone();
    let broker = TestBroker::start_with(options).await;
    let mut witness = Client::clean(broker.address, "witness").await;
    witness.subscribe("witness", QoS::AtLeastOnce).await;
    let (good, connects) = (good_packets(), connects());
    for round in 0..ROUNDS {
        let mut input = connects[random.random_range(0..connects.len())].clone();
        if round % 4 == 0 {
            mutate(&mut input, &mut random);
        }
        for _ in 0..random.random_range(0..6) {
            let mut packet = good[random.random_range(0..good.len())].clone();
            if random.random_range(0..3) == 0 {
                mutate(&mut packet, &mut random);
            }
            input.extend(packet);
        }
        let mut stream = tokio::net::TcpStream::connect(broker.address).await.unwrap();
        // The broker may close before everything is written, and reset what it did not read.
        let _closed_early = stream.write_all(&input).await;
        let _closed_early = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(GENEROUS, stream.read_to_end(&mut answer)).await;
        assert!(
            read.is_ok(),
            "round {round}: the connection does not end: {input:02x?}"
        );
        if round % 20 == 0 {
            witness
                .publish_packet(publish("witness", "alive", QoS::AtMostOnce, 0))
                .await;
            assert_eq!(witness.take().await, "alive");
        }
    }
    let metrics = metrics.encode().unwrap();
    assert!(
        metrics.contains("foreshore_broker_connection_panics_total 0\n"),
        "{metrics}"
    );
    broker.stop().await;
}
