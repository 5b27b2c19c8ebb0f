//! Rates, of messages and connections, and subscriptions: what one client may have, and all together.

use std::time::{Duration, Instant};

use foreshore_broker::{Limits, Options, Protocol};
use foreshore_runtime::Metrics;
use rmqtt_codec::{
    types::QoS,
    v5::{Packet, SubscribeAckReason, UnsubscribeAckReason},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    TestBroker,
    client::{Client, GENEROUS, back, publish},
    options, options_in,
    probe::{listener, tls},
};

/// A client that publishes a row of messages at once, and has not looked at its acknowledgements.
async fn flood(broker: &TestBroker, client: &str, count: u16) -> Client {
    let mut client = Client::clean(broker.address, client).await;
    let row = (1..=count).map(|id| publish("t", "x", QoS::AtLeastOnce, id));
    client.send_publishes(row).await;
    client
}

/// The value of a counter without labels.
fn total(metrics: &Metrics, name: &str) -> u64 {
    let text = metrics.encode().unwrap();
    let start = format!("foreshore_broker_{name}_total ");
    let value = text.lines().find_map(|line| line.strip_prefix(&start));
    value.unwrap().parse().unwrap()
}

async fn acknowledged(client: &mut Client, count: u16) {
    for _ in 0..count {
        assert!(matches!(client.receive().await, Packet::PublishAck(_)));
    }
}

/// How long the broker takes its time at least over so many messages of one moment.
fn at_least(count: u16, per_second: u16) -> Duration {
    // The first second's worth at once; nobody waits behind the last one.
    Duration::from_secs(1) * u32::from(count - per_second - 1) / u32::from(per_second)
}

#[tokio::test]
async fn a_client_that_publishes_too_fast_waits_and_others_do_not() {
    let metrics = Metrics::new();
    let limits = Limits {
        max_publish_rate: Some(50),
        ..Limits::default()
    };
    let broker = TestBroker::start_with(Options {
        limits,
        metrics: metrics.clone(),
        ..options()
    })
    .await;
    let began = Instant::now();
    let mut fast = flood(&broker, "fast", 150).await;
    let mut other = Client::clean(broker.address, "other").await;
    for _ in 0..40 {
        other.publish("t", "y").await;
    }
    let of_others = total(&metrics, "messages_received");
    acknowledged(&mut fast, 150).await;
    assert!(began.elapsed() >= at_least(150, 50));
    assert!(of_others < 190, "the other waited for all of the flood");
    assert!(total(&metrics, "publish_rate_waits") > 0);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_clients_together_publish_no_faster_than_they_may() {
    let metrics = Metrics::new();
    let limits = Limits {
        max_total_publish_rate: Some(60),
        ..Limits::default()
    };
    let broker = TestBroker::start_with(Options {
        limits: limits.clone(),
        metrics: metrics.clone(),
        ..options()
    })
    .await;
    let began = Instant::now();
    let mut floods = [
        flood(&broker, "a", 90).await,
        flood(&broker, "b", 90).await,
        flood(&broker, "c", 90).await,
    ];
    // Whoever publishes now and then does not queue up behind them.
    let mut other = Client::clean(broker.address, "other").await;
    other.publish("t", "y").await;
    assert!(total(&metrics, "messages_received") < 271);
    for client in &mut floods {
        acknowledged(client, 90).await;
    }
    assert!(began.elapsed() >= at_least(270, 60));

    // What is lifted is lifted for those who wait, too.
    let mut late = flood(&broker, "late", 200).await;
    broker.handle.set_limits(Limits {
        max_total_publish_rate: None,
        ..limits
    });
    acknowledged(&mut late, 200).await;
    broker.stop().await;
}

#[tokio::test]
async fn a_storm_of_connections_is_taken_at_the_rate_that_is_allowed() {
    let limits = Limits {
        max_connection_rate: 20,
        max_tls_connection_rate: 1_000_000,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let began = Instant::now();
    let storm = (0..60).map(async |number| {
        let mut client = Client::clean(broker.address, &format!("client-{number}")).await;
        client.ping().await;
        client
    });
    let clients = futures::future::join_all(storm).await;
    assert!(began.elapsed() >= at_least(60, 20));
    drop(clients);
    broker.stop().await;
}

#[tokio::test]
async fn handshakes_of_tls_have_a_rate_of_their_own() {
    let limits = Limits {
        max_tls_connection_rate: 20,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let listener = listener("tls", Protocol::Tls(tls(2999, false)), Vec::new());
    let address = broker.handle.open_listener(listener).unwrap();
    let began = Instant::now();
    let storm = (0..60).map(async |_| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"no handshake").await.unwrap();
        // Ends when the broker has seen that it is none, with a reset or without.
        drop(stream.read_to_end(&mut Vec::new()).await);
    });
    futures::future::join_all(storm).await;
    assert!(began.elapsed() >= at_least(60, 20));
    broker.stop().await;
}

#[tokio::test]
async fn all_sessions_together_have_no_more_subscriptions_than_they_may() {
    let directory = tempfile::tempdir().unwrap();
    let start = async || {
        let limits = Limits {
            max_total_subscriptions: Some(3),
            ..Limits::default()
        };
        TestBroker::start_with(Options {
            limits,
            ..options_in(directory.path())
        })
        .await
    };
    let broker = start().await;
    let (mut away, _) = Client::connect(broker.address, back("away")).await;
    let mut here = Client::clean(broker.address, "here").await;
    let granted = SubscribeAckReason::GrantedQos1;
    let full = SubscribeAckReason::QuotaExceeded;
    let qos = QoS::AtLeastOnce;
    assert_eq!(away.subscribe("a", qos).await, granted);
    assert_eq!(away.subscribe("$share/g/b", qos).await, granted);
    away.disconnect().await;
    assert_eq!(here.subscribe("c", qos).await, granted);
    assert_eq!(here.subscribe("d", qos).await, full);
    // What it has it may change.
    assert_eq!(
        here.subscribe("c", QoS::AtMostOnce).await,
        SubscribeAckReason::GrantedQos0
    );
    assert_eq!(here.unsubscribe("c").await, UnsubscribeAckReason::Success);
    assert_eq!(here.subscribe("d", qos).await, granted);
    here.disconnect().await;
    broker.stop().await;

    // A restart knows those of who is away; a session that ends gives its own back.
    let broker = start().await;
    let mut here = Client::clean(broker.address, "here").await;
    assert_eq!(here.subscribe("d", qos).await, granted);
    assert_eq!(here.subscribe("e", qos).await, full);
    Client::clean(broker.address, "away").await.disconnect().await;
    let room = async {
        while here.subscribe("e", qos).await == full {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(GENEROUS, room).await.unwrap();
    assert_eq!(here.subscribe("f", qos).await, granted);
    assert_eq!(here.subscribe("g", qos).await, full);
    here.disconnect().await;
    broker.stop().await;
}
