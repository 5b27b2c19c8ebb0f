//! The end of a connection (sections 3.14 and 4.13).

use rmqtt_codec::types::QoS;

use super::raw::{DISCONNECT, Raw, connect5, join, packet, value};
use crate::{
    TestBroker,
    client::{Client, GENEROUS},
};

#[tokio::test]
async fn after_a_farewell_the_server_sends_nothing_and_closes() {
    let broker = TestBroker::start().await;
    let mut client = Raw::connect5(broker.address, "c").await;
    client
        .ask(&packet(0x82, &[b"\0\x01\0", &value("t"), b"\0"]))
        .await;
    // What follows the mistake is not looked at, and what arrives meanwhile is not sent.
    let message = packet(0x30, &[&value("t"), b"\0x"]);
    client
        .send(&join(&[&message, b"\0\0", &message, b"\xc0\0"]))
        .await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("t", "x").await;
    let all = client.rest().await;
    let (first, body) = all.last().unwrap();
    assert_eq!((*first, body[0]), (DISCONNECT, 0x81));
    let farewells = all.iter().filter(|(first, _)| *first == DISCONNECT).count();
    assert_eq!(farewells, 1, "{all:02x?}");
    // Nothing but a reason string is in it, least of all a session expiry interval.
    assert_eq!(
        (usize::from(body[1]), body[2]),
        (body.len() - 2, 0x1f),
        "{body:02x?}"
    );
    let text = usize::from(u16::from_be_bytes([body[3], body[4]]));
    assert_eq!(text, body.len() - 5);
}

#[tokio::test]
async fn after_the_clients_farewell_nothing_more_is_taken() {
    let broker = TestBroker::start().await;
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("t", QoS::AtMostOnce).await;
    let mut client = Raw::connect5(broker.address, "c").await;
    let message = |text: &str| packet(0x30, &[&value("t"), b"\0", text.as_bytes()]);
    let all = join(&[&message("before"), b"\xe0\0", &message("after"), b"\xc0\0"]);
    client.send(&all).await;
    assert_eq!(client.rest().await, []);
    assert_eq!(reader.take().await, "before");
    reader.ping().await;
}

#[tokio::test]
async fn before_connack_the_server_says_no_farewell() {
    let broker = TestBroker::start().await;
    for bytes in [
        &b"\xe0\x00"[..],
        b"\x30\x04\0\x01t\0",
        b"\0\0",
        b"\x10\xff\xff\xff\xff",
        &connect5(0x03, &[], &[&value("c")]),
    ] {
        let mut client = Raw::open(broker.address).await;
        client.send(bytes).await;
        client.finish().await;
        let all = client.rest().await;
        assert!(all.iter().all(|(first, _)| *first != DISCONNECT), "{bytes:02x?}");
    }
}

#[tokio::test]
async fn the_fault_of_one_is_no_fault_of_others() {
    let broker = TestBroker::start().await;
    let (mut reader, _) = Client::connect(broker.address, crate::client::back("reader")).await;
    reader.subscribe("t", QoS::AtLeastOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("t", "one").await;
    let mut faulty = Raw::connect5(broker.address, "faulty").await;
    assert_eq!(faulty.ended_by(b"\0\0").await, Some(0x81));
    publisher.publish("t", "two").await;
    for expected in ["one", "two"] {
        let taken = tokio::time::timeout(GENEROUS, reader.take()).await;
        assert_eq!(taken.unwrap(), expected);
    }
}
