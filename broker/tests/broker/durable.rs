//! What survives the end of the process: the broker is stopped and started on the same directory.

use std::time::Duration;

use foreshore_broker::Error;
use rmqtt_codec::{types::QoS, v5};

use crate::{
    TestBroker,
    client::{Client, back, hello, publish, retained},
    options_in, options_of_full_disk,
    protocol::will,
};

async fn start(directory: &tempfile::TempDir) -> TestBroker {
    TestBroker::start_with(options_in(directory.path())).await
}

#[tokio::test]
async fn sessions_messages_and_retained_messages_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let broker = start(&directory).await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    reader.subscribe("t/#", QoS::AtLeastOnce).await;
    reader.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for index in 0..20 {
        publisher.publish("t/x", &index.to_string()).await;
    }
    publisher
        .publish_packet(retained("r/a", "kept", QoS::AtLeastOnce, 1))
        .await;
    broker.stop().await;

    let broker = start(&directory).await;
    let (mut reader, ack) = Client::connect(broker.address, back("reader")).await;
    assert!(ack.session_present);
    for index in 0..20 {
        assert_eq!(reader.take().await, index.to_string());
    }
    // Its subscription is there as well.
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("t/y", "after").await;
    assert_eq!(reader.take().await, "after");
    publisher.subscribe("r/+", QoS::AtMostOnce).await;
    assert_eq!(publisher.take().await, "kept");
    let ledger = broker.handle.ledger().await.unwrap();
    assert!(
        ledger.iter().all(foreshore_record::PathLedger::balances),
        "{ledger:?}"
    );
    broker.stop().await;
}

#[tokio::test]
async fn quality_of_service_two_is_exactly_once_across_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let broker = start(&directory).await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    reader.subscribe("t", QoS::ExactlyOnce).await;
    let (mut publisher, _) = Client::connect(broker.address, back("publisher")).await;
    publisher
        .send_publish(publish("t", "once", QoS::ExactlyOnce, 5))
        .await;
    assert!(matches!(
        publisher.receive().await,
        v5::Packet::PublishReceived(_)
    ));
    let first = reader.message().await;
    let packet_id = first.packet_id.unwrap().get();
    broker.stop().await;

    let broker = start(&directory).await;
    let (mut publisher, _) = Client::connect(broker.address, back("publisher")).await;
    // The publisher repeats what it has no complete acknowledgement of.
    let again = rmqtt_codec::types::Publish {
        dup: true,
        ..publish("t", "once", QoS::ExactlyOnce, 5)
    };
    assert_eq!(
        publisher.publish_packet(again).await,
        v5::PublishAckReason::Success
    );
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    let repeated = reader.message().await;
    assert_eq!(
        (repeated.packet_id.map(|id| id.get()), repeated.dup),
        (Some(packet_id), true)
    );
    reader.received(packet_id).await;
    reader.expect_release(packet_id).await;
    broker.stop().await;

    let broker = start(&directory).await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    reader.expect_release(packet_id).await;
    reader.complete(packet_id).await;
    let mut last = Client::clean(broker.address, "last").await;
    last.publish("t", "next").await;
    assert_eq!(reader.take().await, "next");
}

#[tokio::test]
async fn a_will_is_published_though_the_broker_died_with_its_connection() {
    let directory = tempfile::tempdir().unwrap();
    let broker = start(&directory).await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    reader.subscribe("will", QoS::AtLeastOnce).await;
    reader.disconnect().await;
    let will = will("will", None);
    let connect = v5::Connect {
        last_will: Some(will),
        ..hello("mortal")
    };
    let _mortal = Client::connect(broker.address, connect).await;
    broker.stop().await;
    let broker = start(&directory).await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    assert_eq!(reader.take().await, "gone");
}

#[tokio::test]
async fn one_directory_is_opened_once_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let broker = start(&directory).await;
    let error = foreshore_broker::Broker::start(options_in(directory.path()))
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Store(foreshore_store::StoreError::InUse { .. })),
        "{error}"
    );
    broker.handle.stop(Duration::from_secs(30)).await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let broker = TestBroker::start().await;
    let mut options = crate::options();
    options.listeners[0].address = broker.address;
    let error = foreshore_broker::Broker::start(options).await.unwrap_err();
    let Error::Listen(error) = error else {
        panic!("{error}")
    };
    assert_eq!(error.source.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&broker.address.to_string()), "{error}");
}

#[tokio::test]
async fn below_the_watermark_publishes_are_refused_and_settlements_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let broker = start(&directory).await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    reader.subscribe("t", QoS::AtLeastOnce).await;
    reader.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("t", "before").await;
    broker.stop().await;

    let broker = TestBroker::start_with(options_of_full_disk(directory.path())).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    assert_eq!(
        publisher.publish("t", "refused").await,
        v5::PublishAckReason::QuotaExceeded
    );
    let twice = publish("t", "refused", QoS::ExactlyOnce, 4);
    assert_eq!(
        publisher.publish_packet(twice).await,
        v5::PublishAckReason::QuotaExceeded
    );
    let (mut reader, ack) = Client::connect(broker.address, back("reader")).await;
    assert!(ack.session_present);
    assert_eq!(reader.take().await, "before");
    reader.disconnect().await;
    // The end of the connection does not wait for the acknowledgement before it to be settled.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let ledger = broker.handle.ledger().await.unwrap();
        let line = ledger.iter().find(|line| line.path == "session/reader").unwrap();
        assert!(line.balances(), "{line:?}");
        if (line.delivered, line.waiting) == (1, 0) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{line:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
