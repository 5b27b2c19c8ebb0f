//! Packets after CONNECT that break version 5: the connection ends with the reason that the standard gives (section
//! 4.13), and nobody else notices.

use std::net::SocketAddr;

use super::raw::{Raw, connect5, join, packet, properties, value};
use crate::TestBroker;

const MALFORMED: u8 = 0x81;
const PROTOCOL_ERROR: u8 = 0x82;

/// What is not UTF-8: cut short, a surrogate, U+0000, an overlong `/`, beyond U+10FFFF, a lone continuation.
pub(super) const NOT_TEXT: [&[u8]; 6] = [
    b"a\xc3",
    b"\xed\xa0\x80",
    b"a\0b",
    b"\xc0\xaf",
    b"\xf4\x90\x80\x80",
    b"\x80",
];

const USER: u8 = 0x26;

/// Sends each packet on a connection of its own.
async fn expect(address: SocketAddr, cases: &[(&str, Vec<u8>, u8)]) {
    for (what, bytes, reason) in cases {
        let mut client = Raw::connect5(address, "c").await;
        let found = client.ended_by(bytes).await;
        assert_eq!(found, Some(*reason), "{what}: {bytes:02x?}");
    }
}

fn publish(flags: u8, body: &[&[u8]]) -> Vec<u8> {
    packet(0x30 | flags, body)
}

fn subscribe(block: &[&[u8]], payload: &[&[u8]]) -> Vec<u8> {
    packet(0x82, &[b"\0\x01", &properties(block), &payload.concat()])
}

fn unsubscribe(block: &[&[u8]], payload: &[&[u8]]) -> Vec<u8> {
    packet(0xa2, &[b"\0\x01", &properties(block), &payload.concat()])
}

#[tokio::test]
async fn reserved_types_and_flags_are_malformed() {
    let broker = TestBroker::start().await;
    let topic = value("t");
    let filter = join(&[b"\0\x01\0", &value("t")]);
    let cases = [
        ("type 0", b"\0\0".to_vec(), MALFORMED),
        (
            "both bits of QoS",
            publish(0x06, &[&topic, b"\0\x01\0"]),
            MALFORMED,
        ),
        ("DUP with QoS 0", publish(0x08, &[&topic, b"\0"]), MALFORMED),
        ("flags of PUBACK", packet(0x41, &[b"\0\x01"]), MALFORMED),
        ("flags of PUBREC", packet(0x52, &[b"\0\x01"]), MALFORMED),
        ("flags of PUBREL", packet(0x60, &[b"\0\x01"]), MALFORMED),
        ("flags of PUBCOMP", packet(0x78, &[b"\0\x01"]), MALFORMED),
        ("flags of SUBSCRIBE", packet(0x80, &[&filter, b"\0"]), MALFORMED),
        ("flags of UNSUBSCRIBE", packet(0xa0, &[&filter]), MALFORMED),
        ("flags of PINGREQ", packet(0xc1, &[]), MALFORMED),
        ("flags of DISCONNECT", packet(0xe1, &[]), MALFORMED),
        ("flags of AUTH", packet(0xf1, &[]), MALFORMED),
    ];
    expect(broker.address, &cases).await;
}

#[tokio::test]
async fn packets_out_of_place_are_protocol_errors() {
    let broker = TestBroker::start().await;
    let cases = [
        ("second CONNECT", connect5(2, &[], &[&value("c")]), PROTOCOL_ERROR),
        ("CONNACK", packet(0x20, &[b"\0\0\0"]), PROTOCOL_ERROR),
        ("SUBACK", packet(0x90, &[b"\0\x01\0\0"]), PROTOCOL_ERROR),
        ("UNSUBACK", packet(0xb0, &[b"\0\x01\0\0"]), PROTOCOL_ERROR),
        ("PINGRESP", packet(0xd0, &[]), PROTOCOL_ERROR),
        (
            "AUTH without a method",
            packet(0xf0, &[b"\x19\0"]),
            PROTOCOL_ERROR,
        ),
    ];
    expect(broker.address, &cases).await;
}

#[tokio::test]
async fn lengths_that_are_wrong_are_malformed() {
    let broker = TestBroker::start().await;
    let cases = [
        (
            "five bytes of length",
            b"\x30\x80\x80\x80\x80\x01".to_vec(),
            MALFORMED,
        ),
        ("length longer than needed", b"\xc0\x80\x00".to_vec(), MALFORMED),
        ("PINGREQ with a body", packet(0xc0, &[b"x"]), MALFORMED),
        ("topic beyond the end", publish(0, &[b"\0\x09t"]), MALFORMED),
        ("no packet identifier", publish(2, &[&value("t")]), MALFORMED),
        ("no properties", publish(0, &[&value("t")]), MALFORMED),
        (
            "properties beyond the end",
            publish(0, &[&value("t"), b"\x09"]),
            MALFORMED,
        ),
        (
            "properties' length too long",
            publish(0, &[&value("t"), b"\x80\0"]),
            MALFORMED,
        ),
        ("PUBACK of one byte", packet(0x40, &[b"\0"]), MALFORMED),
        ("PUBACK goes on", packet(0x40, &[b"\0\x01\0\0\0"]), MALFORMED),
        (
            "SUBSCRIBE without options",
            subscribe(&[], &[&value("t")]),
            MALFORMED,
        ),
        (
            "SUBSCRIBE without properties",
            packet(0x82, &[b"\0\x01"]),
            MALFORMED,
        ),
        (
            "filter beyond the end",
            unsubscribe(&[], &[b"\0\x09t"]),
            MALFORMED,
        ),
        ("DISCONNECT goes on", packet(0xe0, &[b"\0\0\0"]), MALFORMED),
        ("DISCONNECT cut short", packet(0xe0, &[b"\0\x05\x11"]), MALFORMED),
        (
            "properties' length of SUBSCRIBE too long",
            packet(0x82, &[b"\0\x01\x80\0", &value("t"), b"\0"]),
            MALFORMED,
        ),
    ];
    expect(broker.address, &cases).await;
}

#[tokio::test]
async fn packet_identifiers_are_not_zero() {
    let broker = TestBroker::start().await;
    let filter = join(&[b"\0\0\0", &value("t")]);
    let cases = [
        ("PUBLISH, QoS 1", publish(2, &[&value("t"), b"\0\0\0"]), MALFORMED),
        ("PUBLISH, QoS 2", publish(4, &[&value("t"), b"\0\0\0"]), MALFORMED),
        ("SUBSCRIBE", packet(0x82, &[&filter, b"\0"]), MALFORMED),
        ("UNSUBSCRIBE", packet(0xa2, &[&filter]), MALFORMED),
        ("PUBACK", packet(0x40, &[b"\0\0"]), MALFORMED),
        ("PUBREL", packet(0x62, &[b"\0\0"]), MALFORMED),
    ];
    expect(broker.address, &cases).await;
}

#[tokio::test]
async fn text_that_is_not_utf_8_is_malformed_wherever_it_stands() {
    let broker = TestBroker::start().await;
    let topic = value("t");
    for bad in NOT_TEXT {
        let text = value(bad);
        let user = join(&[&[USER], &value("k"), &text]);
        let user_name = join(&[&[USER], &text, &value("v")]);
        let of_publish = |block: &[&[u8]]| publish(0, &[&topic, &properties(block)]);
        let reason_string = join(&[b"\x1f", &text]);
        let cases = [
            ("topic", publish(0, &[&text, b"\0"]), MALFORMED),
            ("content type", of_publish(&[b"\x03", &text]), MALFORMED),
            ("response topic", of_publish(&[b"\x08", &text]), MALFORMED),
            ("user property of PUBLISH", of_publish(&[&user]), MALFORMED),
            ("its name", of_publish(&[&user_name]), MALFORMED),
            ("filter", subscribe(&[], &[&text, b"\0"]), MALFORMED),
            (
                "user property of SUBSCRIBE",
                subscribe(&[&user], &[&topic, b"\0"]),
                MALFORMED,
            ),
            ("filter of UNSUBSCRIBE", unsubscribe(&[], &[&text]), MALFORMED),
            (
                "user property of UNSUBSCRIBE",
                unsubscribe(&[&user], &[&topic]),
                MALFORMED,
            ),
            (
                "reason string of PUBACK",
                packet(0x40, &[b"\0\x01\0", &properties(&[&reason_string])]),
                MALFORMED,
            ),
            (
                "reason string of DISCONNECT",
                packet(0xe0, &[b"\0", &properties(&[&reason_string])]),
                MALFORMED,
            ),
        ];
        expect(broker.address, &cases).await;
    }
}

#[tokio::test]
async fn properties_are_known_belong_to_their_packet_and_stand_once() {
    let broker = TestBroker::start().await;
    let topic = value("t");
    let of_publish = |block: &[&[u8]]| publish(0, &[&topic, &properties(block)]);
    let of_subscribe = |block: &[&[u8]]| subscribe(block, &[&topic, b"\0"]);
    let of_disconnect = |block: &[&[u8]]| packet(0xe0, &[b"\0", &properties(block)]);
    let expiry = b"\x02\0\0\0\x09";
    let session = b"\x11\0\0\0\0";
    let content = join(&[b"\x03", &value("c")]);
    let response = join(&[b"\x08", &value("r")]);
    let cases = [
        ("unknown, PUBLISH", of_publish(&[b"\x7e\0"]), MALFORMED),
        ("unknown, SUBSCRIBE", of_subscribe(&[b"\x7e\0"]), MALFORMED),
        ("session expiry in PUBLISH", of_publish(&[session]), MALFORMED),
        ("message expiry in SUBSCRIBE", of_subscribe(&[expiry]), MALFORMED),
        (
            "subscription identifier in UNSUBSCRIBE",
            unsubscribe(&[b"\x0b\x01"], &[&topic]),
            MALFORMED,
        ),
        (
            "receive maximum in DISCONNECT",
            of_disconnect(&[b"\x21\0\x01"]),
            MALFORMED,
        ),
        (
            "payload format twice",
            of_publish(&[b"\x01\0", b"\x01\0"]),
            PROTOCOL_ERROR,
        ),
        (
            "message expiry twice",
            of_publish(&[expiry, expiry]),
            PROTOCOL_ERROR,
        ),
        (
            "content type twice",
            of_publish(&[&content, &content]),
            PROTOCOL_ERROR,
        ),
        (
            "response topic twice",
            of_publish(&[&response, &response]),
            PROTOCOL_ERROR,
        ),
        (
            "correlation data twice",
            of_publish(&[b"\x09\0\0", b"\x09\0\0"]),
            PROTOCOL_ERROR,
        ),
        (
            "topic alias twice",
            of_publish(&[b"\x23\0\x01", b"\x23\0\x01"]),
            PROTOCOL_ERROR,
        ),
        (
            "subscription identifier twice",
            of_subscribe(&[b"\x0b\x01", b"\x0b\x01"]),
            PROTOCOL_ERROR,
        ),
        (
            "session expiry twice",
            of_disconnect(&[session, session]),
            PROTOCOL_ERROR,
        ),
        ("payload format 2", of_publish(&[b"\x01\x02"]), PROTOCOL_ERROR),
        (
            "subscription identifier 0",
            of_subscribe(&[b"\x0b\0"]),
            PROTOCOL_ERROR,
        ),
        (
            "subscription identifier from a client",
            of_publish(&[b"\x0b\x01"]),
            PROTOCOL_ERROR,
        ),
        (
            "response topic with +",
            of_publish(&[b"\x08", &value("a/+")]),
            PROTOCOL_ERROR,
        ),
        (
            "response topic with #",
            of_publish(&[b"\x08", &value("#")]),
            PROTOCOL_ERROR,
        ),
    ];
    expect(broker.address, &cases).await;
}

#[tokio::test]
async fn reason_codes_are_those_of_the_packet() {
    let broker = TestBroker::start().await;
    let cases = [
        ("PUBACK", packet(0x40, &[b"\0\x01\x05"]), MALFORMED),
        (
            "PUBREC with a code of PUBCOMP",
            packet(0x50, &[b"\0\x01\x92"]),
            MALFORMED,
        ),
        ("PUBREL", packet(0x62, &[b"\0\x01\x10"]), MALFORMED),
        ("PUBCOMP", packet(0x70, &[b"\0\x01\x80\0"]), MALFORMED),
        ("DISCONNECT", packet(0xe0, &[b"\x01"]), MALFORMED),
    ];
    expect(broker.address, &cases).await;
}

#[tokio::test]
async fn subscriptions_ask_for_what_there_is() {
    let broker = TestBroker::start().await;
    let topic = value("t");
    let cases = [
        ("no filter", subscribe(&[], &[]), PROTOCOL_ERROR),
        ("no filter to leave", unsubscribe(&[], &[]), PROTOCOL_ERROR),
        ("QoS 3", subscribe(&[], &[&topic, b"\x03"]), PROTOCOL_ERROR),
        (
            "retain handling 3",
            subscribe(&[], &[&topic, b"\x30"]),
            PROTOCOL_ERROR,
        ),
        ("reserved bit 6", subscribe(&[], &[&topic, b"\x40"]), MALFORMED),
        ("reserved bit 7", subscribe(&[], &[&topic, b"\x80"]), MALFORMED),
        (
            "no local on a shared subscription",
            subscribe(&[], &[&value("$share/g/t"), b"\x04"]),
            PROTOCOL_ERROR,
        ),
    ];
    expect(broker.address, &cases).await;
}

#[tokio::test]
async fn topics_to_publish_to_are_named() {
    let broker = TestBroker::start().await;
    let aliased = |topic: &str, alias: u16| {
        let alias = join(&[b"\x23", &alias.to_be_bytes()]);
        publish(0, &[&value(topic), &properties(&[&alias])])
    };
    let cases = [
        (
            "neither name nor alias",
            publish(0, &[&value(""), b"\0"]),
            PROTOCOL_ERROR,
        ),
        ("alias 0", aliased("t", 0), 0x94),
        ("alias larger than announced", aliased("t", u16::MAX), 0x94),
        ("alias that was not given", aliased("", 1), 0x94),
        ("+", publish(0, &[&value("a/+"), b"\0"]), 0x90),
        ("#", publish(0, &[&value("#"), b"\0"]), 0x90),
    ];
    expect(broker.address, &cases).await;
}
