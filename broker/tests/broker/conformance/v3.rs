//! Version 3.1.1: CONNECT and CONNACK, and packets that break the protocol. There is no farewell of the server in it: it
//! closes without a word.

use std::sync::Arc;

use foreshore_broker::{Limits, Method, PasswordTable};

use super::{
    STANDARD_CLIENT_IDS,
    raw::{CONNACK, PING, PINGRESP, Raw, connect3, join, packet, value},
    v5_malformed::NOT_TEXT,
};
use crate::{TestBroker, client::Client3};

const CLEAN: u8 = 0x02;
const WILL: u8 = 0x04;
const PASSWORD: u8 = 0x40;
const USERNAME: u8 = 0x80;

/// Sends each packet on a connection of its own, and expects that it is closed without a word.
async fn expect_closed(broker: &TestBroker, cases: &[(&str, Vec<u8>)]) {
    for (what, bytes) in cases {
        let mut client = Raw::connect3(broker.address, "c").await;
        assert_eq!(client.ended_by(bytes).await, None, "{what}: {bytes:02x?}");
    }
}

#[tokio::test]
async fn packets_that_break_the_protocol_close_the_connection() {
    let broker = TestBroker::start().await;
    let topic = value("t");
    let cases = [
        ("type 0", b"\0\0".to_vec()),
        ("type 15", b"\xf0\0".to_vec()),
        ("both bits of QoS", packet(0x36, &[&topic, b"\0\x01"])),
        ("DUP with QoS 0", packet(0x38, &[&topic])),
        ("flags of PUBACK", packet(0x41, &[b"\0\x01"])),
        ("flags of PUBREL", packet(0x60, &[b"\0\x01"])),
        ("flags of SUBSCRIBE", packet(0x80, &[b"\0\x01", &topic, b"\0"])),
        ("flags of UNSUBSCRIBE", packet(0xa0, &[b"\0\x01", &topic])),
        ("flags of PINGREQ", packet(0xc1, &[])),
        ("flags of DISCONNECT", packet(0xe1, &[])),
        ("second CONNECT", connect3(CLEAN, &[&value("c")])),
        ("CONNACK", packet(0x20, &[b"\0\0"])),
        ("SUBACK", packet(0x90, &[b"\0\x01\0"])),
        ("UNSUBACK", packet(0xb0, &[b"\0\x01"])),
        ("PINGRESP", packet(0xd0, &[])),
        ("length of five bytes", b"\x30\x80\x80\x80\x80\x01".to_vec()),
        ("PINGREQ with a body", packet(0xc0, &[b"x"])),
        ("DISCONNECT with a body", packet(0xe0, &[b"\0"])),
        ("PUBACK with a reason", packet(0x40, &[b"\0\x01\0"])),
        ("identifier 0 in PUBLISH", packet(0x32, &[&topic, b"\0\0"])),
        (
            "identifier 0 in SUBSCRIBE",
            packet(0x82, &[b"\0\0", &topic, b"\0"]),
        ),
        ("identifier 0 in UNSUBSCRIBE", packet(0xa2, &[b"\0\0", &topic])),
        ("no identifier", packet(0x32, &[&topic])),
        ("no topic", packet(0x30, &[])),
        ("empty topic", packet(0x30, &[b"\0\0"])),
        ("+ in a topic", packet(0x30, &[&value("a/+")])),
        ("# in a topic", packet(0x30, &[&value("#")])),
        ("no filter", packet(0x82, &[b"\0\x01"])),
        ("no filter to leave", packet(0xa2, &[b"\0\x01"])),
        ("no quality of service", packet(0x82, &[b"\0\x01", &topic])),
        (
            "quality of service 3",
            packet(0x82, &[b"\0\x01", &topic, b"\x03"]),
        ),
        ("reserved bits", packet(0x82, &[b"\0\x01", &topic, b"\x04"])),
        ("filter beyond the end", packet(0xa2, &[b"\0\x01\0\x09t"])),
    ];
    expect_closed(&broker, &cases).await;
    for bad in NOT_TEXT {
        let text = value(bad);
        let cases = [
            ("topic", packet(0x30, &[&text])),
            ("filter", packet(0x82, &[b"\0\x01", &text, b"\0"])),
            ("filter to leave", packet(0xa2, &[b"\0\x01", &text])),
        ];
        expect_closed(&broker, &cases).await;
    }
}

#[tokio::test]
async fn a_connect_that_does_not_conform_gets_no_connack() {
    let broker = TestBroker::start().await;
    let (id, text) = (value("c"), value("x"));
    let with = |flags, payload: &[&[u8]]| connect3(CLEAN | flags, payload);
    let mut cases = vec![
        ("reserved flag", with(0x01, &[&id])),
        ("will QoS without a will", with(0x08, &[&id])),
        ("will retain without a will", with(0x20, &[&id])),
        ("will QoS 3", with(WILL | 0x18, &[&id, &text, &text])),
        ("password without a user name", with(PASSWORD, &[&id, &text])),
        ("no client identifier", with(0, &[])),
        ("no will topic", with(WILL, &[&id])),
        ("no will message", with(WILL, &[&id, &text])),
        ("a will without the flag", with(0, &[&id, &text, &text])),
        ("no user name", with(USERNAME, &[&id])),
        ("a user name without the flag", with(0, &[&id, &text])),
        ("no password", with(USERNAME | PASSWORD, &[&id, &text])),
        (
            "a password without the flag",
            with(USERNAME, &[&id, &text, &text]),
        ),
        (
            "another protocol",
            packet(0x10, &[b"\0\x04MQTX\x04\x02\0\x3c", &id]),
        ),
        (
            "flags of the packet",
            packet(0x12, &[b"\0\x04MQTT\x04\x02\0\x3c", &id]),
        ),
        ("PINGREQ instead", PING.to_vec()),
    ];
    for bad in NOT_TEXT {
        let bad = value(bad);
        cases.extend([
            ("client identifier", with(0, &[&bad])),
            ("will topic", with(WILL, &[&id, &bad, &text])),
            ("user name", with(USERNAME, &[&id, &bad])),
        ]);
    }
    for (what, bytes) in cases {
        let mut client = Raw::open(broker.address).await;
        assert_eq!(client.ended_by(&bytes).await, None, "{what}: {bytes:02x?}");
    }
}

#[tokio::test]
async fn return_codes_tell_why_a_client_is_refused() {
    let users = [("alice".to_owned(), b"secret".to_vec())];
    let mut options = crate::options();
    options.listeners[0].authentication = vec![Method::Passwords(Arc::new(
        PasswordTable::new(users, &[]).unwrap(),
    ))];
    let guarded = TestBroker::start_with(options).await;
    let broker = TestBroker::start().await;
    let wrong = connect3(
        CLEAN | USERNAME | PASSWORD,
        &[&value("c"), &value("alice"), &value("guess")],
    );
    let level = |level: &[u8]| packet(0x10, &[b"\0\x04MQTT", level, b"\x02\0\x3c", &value("c")]);
    for (what, broker, connect, code) in [
        ("level 3", &broker, level(b"\x03"), 1),
        ("level 0", &broker, level(b"\0"), 1),
        (
            "no identifier, no clean session",
            &broker,
            connect3(0, &[&value("")]),
            2,
        ),
        (
            "identifier too long",
            &broker,
            connect3(CLEAN, &[&value("i".repeat(5000))]),
            2,
        ),
        ("wrong password", &guarded, wrong, 4),
        ("nobody", &guarded, connect3(CLEAN, &[&value("c")]), 5),
    ] {
        let mut client = Raw::open(broker.address).await;
        // What follows is not looked at.
        client.send(&join(&[&connect, PING])).await;
        assert_eq!(client.rest().await, [(CONNACK, vec![0, code])], "{what}");
    }
}

#[tokio::test]
async fn connack_comes_first_and_tells_whether_the_session_is_present() {
    let broker = TestBroker::start().await;
    for (flags, id, present) in [
        (0, "c", 0),
        (0, "c", 1),
        (CLEAN, "c", 0),
        (0, "c", 0),
        (0, "C", 0),
        (CLEAN, "", 0),
    ] {
        let mut client = Raw::open(broker.address).await;
        let all = join(&[&connect3(flags, &[&value(id)]), PING, b"\xe0\0"]);
        client.send(&all).await;
        let expected = [(CONNACK, vec![present, 0]), (PINGRESP, Vec::new())];
        assert_eq!(client.rest().await, expected, "{id} {flags}");
    }
}

#[tokio::test]
async fn client_identifiers_of_the_standards_form_are_taken_and_missing_ones_assigned() {
    let broker = TestBroker::start().await;
    for id in STANDARD_CLIENT_IDS {
        Raw::connect3(broker.address, id).await.ping().await;
    }
    // Two without a name are two clients.
    let mut first = Raw::connect3(broker.address, "").await;
    let mut second = Raw::connect3(broker.address, "").await;
    first.ping().await;
    second.ping().await;
}

#[tokio::test]
async fn a_second_connection_closes_the_first() {
    let broker = TestBroker::start().await;
    let mut first = Raw::connect3(broker.address, "c").await;
    let mut second = Raw::connect3(broker.address, "c").await;
    assert_eq!(first.rest().await, []);
    second.ping().await;
}

#[tokio::test]
async fn silence_beyond_the_keep_alive_closes_the_connection_and_publishes_the_will() {
    let limits = Limits {
        max_keep_alive: 1,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    // Without a keep alive nobody minds, whatever the limit is: this version has no way to tell of one.
    let connect = packet(0x10, &[b"\0\x04MQTT\x04\x02\0\0", &value("reader")]);
    let mut reader = Raw::connect(broker.address, &connect).await;
    reader.ask(&packet(0x82, &[b"\0\x01", &value("w"), b"\0"])).await;
    let payload = [&value("c")[..], &value("w"), &value("gone")];
    let connect = packet(0x10, &[b"\0\x04MQTT\x04\x06\0\x01", &payload.concat()]);
    let mut silent = Raw::connect(broker.address, &connect).await;
    assert_eq!(silent.rest().await, []);
    assert_eq!(reader.packet().await, (0x30, b"\0\x01wgone".to_vec()));
}

#[tokio::test]
async fn version_3_1_is_understood_and_has_no_session_present() {
    let broker = TestBroker::start().await;
    for _ in 0..2 {
        let connect = packet(0x10, &[b"\0\x06MQIsdp\x03\0\0\x3c", &value("c")]);
        let mut client = Raw::open(broker.address).await;
        client.send(&join(&[&connect, b"\xe0\0"])).await;
        assert_eq!(client.rest().await, [(CONNACK, vec![0, 0])]);
    }
    let (mut client, present) = Client3::connect(broker.address, "c", false).await;
    assert!(present);
    client.publish("t", "x").await;
}
