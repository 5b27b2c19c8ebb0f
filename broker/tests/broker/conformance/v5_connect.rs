//! CONNECT and CONNACK of version 5 (sections 3.1 and 3.2).

use std::sync::Arc;

use foreshore_broker::{Limits, Method, PasswordTable};
use rmqtt_codec::{types::QoS, v5};

use super::{
    STANDARD_CLIENT_IDS,
    raw::{CONNACK, DISCONNECT, PING, Raw, connect5, join, packet, properties, value},
    v5_malformed::NOT_TEXT,
};
use crate::{
    TestBroker,
    client::{Client, back, hello, publish},
    protocol::will,
};

const CLEAN: u8 = 0x02;
const WILL: u8 = 0x04;
const PASSWORD: u8 = 0x40;
const USERNAME: u8 = 0x80;

const MALFORMED: u8 = 0x81;
const PROTOCOL_ERROR: u8 = 0x82;

/// How the broker answers a CONNECT that it must refuse.
async fn expect(broker: &TestBroker, cases: &[(&str, Vec<u8>, Option<u8>)]) {
    for (what, bytes, reason) in cases {
        let found = Raw::open(broker.address).await.ended_by(bytes).await;
        assert_eq!(found, *reason, "{what}: {bytes:02x?}");
    }
}

#[tokio::test]
async fn a_connect_that_does_not_match_the_format_is_refused() {
    let broker = TestBroker::start().await;
    let id = value("c");
    let text = value("x");
    let with = |flags, payload: &[&[u8]]| connect5(CLEAN | flags, &[], payload);
    let malformed = Some(MALFORMED);
    let cases = [
        ("reserved flag", with(0x01, &[&id]), malformed),
        ("will QoS without a will", with(0x08, &[&id]), malformed),
        ("will retain without a will", with(0x20, &[&id]), malformed),
        (
            "will QoS 3",
            with(WILL | 0x18, &[&id, b"\0", &text, &text]),
            malformed,
        ),
        ("no client identifier", with(0, &[]), malformed),
        ("no will", with(WILL, &[&id]), malformed),
        ("no will topic", with(WILL, &[&id, b"\0"]), malformed),
        ("no will payload", with(WILL, &[&id, b"\0", &text]), malformed),
        (
            "a will without the flag",
            with(0, &[&id, b"\0", &text, &text]),
            malformed,
        ),
        ("no user name", with(USERNAME, &[&id]), malformed),
        ("a user name without the flag", with(0, &[&id, &text]), malformed),
        ("no password", with(PASSWORD, &[&id]), malformed),
        (
            "a password without the flag",
            with(USERNAME, &[&id, &text, &text]),
            malformed,
        ),
        (
            "nothing behind the flags",
            packet(0x10, &[b"\0\x04MQTT\x05\x02"]),
            malformed,
        ),
        (
            "properties' length too long",
            packet(0x10, &[b"\0\x04MQTT\x05\x02\0\x3c\x80\0", &id]),
            malformed,
        ),
        (
            "flags of the packet",
            packet(0x11, &[b"\0\x04MQTT\x05\x02\0\x3c\0", &id]),
            None,
        ),
        (
            "another protocol",
            packet(0x10, &[b"\0\x04MQTX\x05\x02\0\x3c\0", &id]),
            None,
        ),
        (
            "version 6",
            packet(0x10, &[b"\0\x04MQTT\x06\x02\0\x3c\0", &id]),
            Some(0x84),
        ),
        ("PINGREQ instead", PING.to_vec(), None),
    ];
    expect(&broker, &cases).await;
}

#[tokio::test]
async fn properties_of_connect_and_will_are_checked() {
    let broker = TestBroker::start().await;
    let with = |block: &[&[u8]]| connect5(CLEAN, block, &[&value("c")]);
    let of_will = |block: &[&[u8]]| {
        let block = properties(block);
        connect5(
            CLEAN | WILL,
            &[],
            &[&value("c"), &block, &value("w"), &value("x")],
        )
    };
    let (malformed, error) = (Some(MALFORMED), Some(PROTOCOL_ERROR));
    let session = b"\x11\0\0\0\x01";
    let delay = b"\x18\0\0\0\x01";
    let cases = [
        ("unknown", with(&[b"\x7e\0"]), malformed),
        ("of another packet", with(&[b"\x23\0\x01"]), malformed),
        ("cut short", with(&[b"\x11\0\0"]), malformed),
        ("session expiry twice", with(&[session, session]), error),
        ("receive maximum twice", with(&[b"\x21\0\x01\x21\0\x01"]), error),
        ("receive maximum 0", with(&[b"\x21\0\0"]), error),
        ("maximum packet size 0", with(&[b"\x27\0\0\0\0"]), error),
        ("request problem information 2", with(&[b"\x17\x02"]), error),
        ("request response information 2", with(&[b"\x19\x02"]), error),
        (
            "authentication data without a method",
            with(&[b"\x16\0\x01x"]),
            error,
        ),
        ("unknown, will", of_will(&[b"\x7e\0"]), malformed),
        ("of another packet, will", of_will(&[session]), malformed),
        ("will delay twice", of_will(&[delay, delay]), error),
        ("payload format 2, will", of_will(&[b"\x01\x02"]), error),
        (
            "response topic with +, will",
            of_will(&[b"\x08", &value("a/+")]),
            error,
        ),
    ];
    expect(&broker, &cases).await;
}

#[tokio::test]
async fn text_of_connect_is_utf_8() {
    let broker = TestBroker::start().await;
    let (id, topic) = (value("c"), value("w"));
    for bad in NOT_TEXT {
        let text = value(bad);
        let user = join(&[b"\x26", &value("k"), &text]);
        let of_will = |block: &[&[u8]], topic: &[u8]| {
            connect5(CLEAN | WILL, &[], &[&id, &properties(block), topic, &value("x")])
        };
        let malformed = Some(MALFORMED);
        let cases = [
            ("client identifier", connect5(CLEAN, &[], &[&text]), malformed),
            (
                "user name",
                connect5(CLEAN | USERNAME, &[], &[&id, &text]),
                malformed,
            ),
            ("user property", connect5(CLEAN, &[&user], &[&id]), malformed),
            ("will topic", of_will(&[], &text), malformed),
            (
                "content type of the will",
                of_will(&[b"\x03", &text], &topic),
                malformed,
            ),
            (
                "response topic of the will",
                of_will(&[b"\x08", &text], &topic),
                malformed,
            ),
            ("user property of the will", of_will(&[&user], &topic), malformed),
        ];
        expect(&broker, &cases).await;
    }
}

#[tokio::test]
async fn a_will_has_a_topic_name() {
    let broker = TestBroker::start().await;
    let with = |topic: &str| {
        let payload = [&value("c")[..], b"\0", &value(topic), &value("x")];
        connect5(CLEAN | WILL, &[], &payload)
    };
    let invalid = Some(0x90);
    let cases = [
        ("+", with("a/+"), invalid),
        ("#", with("#"), invalid),
        ("empty", with(""), invalid),
        ("too many levels", with(&"/".repeat(1000)), invalid),
    ];
    expect(&broker, &cases).await;
}

#[tokio::test]
async fn after_a_refusal_nothing_more_is_looked_at() {
    let broker = TestBroker::start().await;
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("t", QoS::AtMostOnce).await;
    let refused = connect5(CLEAN | 0x01, &[], &[&value("c")]);
    let publish = packet(0x30, &[&value("t"), b"\0not taken"]);
    let mut client = Raw::open(broker.address).await;
    client.send(&join(&[&refused, &publish])).await;
    let all = client.rest().await;
    // CONNACK with Session Present 0, and the end.
    let [(CONNACK, body)] = &all[..] else {
        panic!("{all:02x?}")
    };
    assert_eq!(body[..2], [0, MALFORMED]);
    reader.ping().await;
}

#[tokio::test]
async fn the_first_packet_of_the_server_is_one_connack() {
    let broker = TestBroker::start().await;
    let mut client = Raw::open(broker.address).await;
    // Everything at once, as a client may that does not wait for CONNACK.
    let subscribe = packet(0x82, &[b"\0\x01\0", &value("t"), b"\0"]);
    let publish = packet(0x30, &[&value("t"), b"\0x"]);
    let connect = connect5(CLEAN, &[], &[&value("c")]);
    client
        .send(&join(&[&connect, &subscribe, &publish, b"\xe0\0"]))
        .await;
    let all = client.rest().await;
    let (first, body) = &all[0];
    // Bits 7 to 1 of the flags are 0.
    assert_eq!((*first, &body[..2]), (CONNACK, &[0, 0][..]));
    assert_eq!(all.iter().filter(|(first, _)| *first == CONNACK).count(), 1);
}

#[tokio::test]
async fn client_identifiers_of_the_standards_form_are_taken() {
    let broker = TestBroker::start().await;
    for id in STANDARD_CLIENT_IDS {
        Client::clean(broker.address, id).await.ping().await;
    }
    let too_long = connect5(CLEAN, &[], &[&value("i".repeat(5000))]);
    let found = Raw::open(broker.address).await.ended_by(&too_long).await;
    assert_eq!(found, Some(0x85));
}

#[tokio::test]
async fn each_assigned_identifier_is_a_new_one_and_names_the_session() {
    let broker = TestBroker::start().await;
    let nameless = v5::Connect { ..back("") };
    let (first, one) = Client::connect(broker.address, nameless.clone()).await;
    let (_second, two) = Client::connect(broker.address, nameless).await;
    let (one, two) = (one.assigned_client_id.unwrap(), two.assigned_client_id.unwrap());
    assert_ne!(one, two);
    first.disconnect().await;
    let (_, ack) = Client::connect(broker.address, back(&one)).await;
    assert!(ack.session_present && ack.assigned_client_id.is_none());
}

#[tokio::test]
async fn nothing_is_returned_that_was_not_asked_for() {
    let broker = TestBroker::start().await;
    for request in [None, Some(false), Some(true)] {
        let connect = v5::Connect {
            request_response_info: request.unwrap_or_default(),
            ..hello("c")
        };
        let (_client, ack) = Client::connect(broker.address, connect).await;
        assert_eq!((ack.response_info, ack.auth_method), (None, None));
    }
}

#[tokio::test]
async fn everything_is_offered_and_so_nothing_is_said_of_it() {
    let broker = TestBroker::start().await;
    let (_client, ack) = Client::connect(broker.address, hello("c")).await;
    assert_eq!(ack.max_qos, QoS::ExactlyOnce);
    assert!(ack.retain_available && ack.wildcard_subscription_available);
    assert!(ack.subscription_identifiers_available && ack.shared_subscription_available);
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let connect = v5::Connect {
            last_will: Some(v5::LastWill {
                qos,
                retain: true,
                ..will("w", None)
            }),
            ..hello("w")
        };
        Client::connect(broker.address, connect).await;
    }
}

#[tokio::test]
async fn without_problem_information_only_the_farewell_gives_a_reason_string() {
    let broker = TestBroker::start().await;
    for told in [false, true] {
        let connect = v5::Connect {
            request_problem_info: told,
            ..hello("c")
        };
        let (mut client, _) = Client::connect(broker.address, connect).await;
        client
            .send_publish(publish("$SYS/no", "x", QoS::AtLeastOnce, 1))
            .await;
        match client.receive().await {
            v5::Packet::PublishAck(ack) => {
                assert_eq!(ack.reason_code, v5::PublishAckReason::NotAuthorized);
                assert_eq!((ack.reason_string, ack.properties), (None, Vec::new()));
            }
            other => panic!("{other:?}"),
        }
        client.send(v5::Packet::Auth(v5::Auth::default())).await;
        match client.receive().await {
            v5::Packet::Disconnect(farewell) => assert!(farewell.reason_string.is_some()),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn no_packet_is_larger_than_the_client_takes() {
    let broker = TestBroker::start().await;
    let limited = |size: u32, id: &str| connect5(CLEAN, &[b"\x27", &size.to_be_bytes()], &[&value(id)]);
    // Too small for any CONNACK that accepts, and for one that refuses.
    assert_eq!(
        Raw::open(broker.address).await.ended_by(&limited(6, "c")).await,
        Some(0x95)
    );
    assert_eq!(
        Raw::open(broker.address).await.ended_by(&limited(4, "c")).await,
        None
    );

    // A farewell without its reason string.
    let mut client = Raw::connect(broker.address, &limited(25, "c")).await;
    client.send(&packet(0x10, &[])).await;
    assert_eq!(client.rest().await, [(DISCONNECT, vec![PROTOCOL_ERROR, 0])]);

    // An answer that can't be made smaller.
    let filters = join(&[b"\0\x01\0", &[&value("t")[..], b"\0"].concat().repeat(40)]);
    let mut client = Raw::connect(broker.address, &limited(25, "c")).await;
    assert_eq!(client.ended_by(&packet(0x82, &[&filters])).await, Some(0x95));
    let filters = join(&[b"\0\x01\0", &value("t").repeat(40)]);
    let mut client = Raw::connect(broker.address, &limited(25, "c")).await;
    assert_eq!(client.ended_by(&packet(0xa2, &[&filters])).await, Some(0x95));
}

#[tokio::test]
async fn whoever_fails_a_check_is_shown_out() {
    let mut options = crate::options();
    options.listeners[0].authentication = vec![Method::Passwords(Arc::new(PasswordTable::default()))];
    let broker = TestBroker::start_with(options).await;
    let anonymous = connect5(CLEAN, &[], &[&value("c")]);
    let mut client = Raw::open(broker.address).await;
    assert_eq!(client.ended_by(&anonymous).await, Some(0x87));
}

#[tokio::test]
async fn the_keep_alive_is_the_clients_unless_the_server_says_otherwise() {
    let limits = Limits {
        max_keep_alive: 100,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    for (asked, told) in [(100, None), (101, Some(100)), (0, Some(100))] {
        let connect = v5::Connect {
            keep_alive: asked,
            ..hello("c")
        };
        let (_client, ack) = Client::connect(broker.address, connect).await;
        assert_eq!(ack.server_keepalive_sec, told, "{asked}");
    }
    // One second of the client's own; half a packet does not count as one.
    let connect = v5::Connect {
        keep_alive: 1,
        ..hello("half-open")
    };
    let (mut client, _) = Client::connect(broker.address, connect).await;
    client.send_raw(b"\x30\x7f\0\x01t").await;
    assert_eq!(
        client.expect_disconnect().await,
        v5::DisconnectReasonCode::KeepAliveTimeout
    );
}
