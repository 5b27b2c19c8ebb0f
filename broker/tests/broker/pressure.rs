//! Slow receivers: what they cost is theirs.

use foreshore_broker::Limits;
use rmqtt_codec::{
    types::QoS,
    v5::{self, DisconnectReasonCode},
};

use crate::{
    TestBroker,
    client::{Client, back, hello, publish},
};

fn small() -> Limits {
    Limits {
        max_live_bytes: 64 << 10,
        ..Limits::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_reads_nothing_does_not_stop_others() {
    let broker = TestBroker::start_limited(small()).await;
    let mut stalled = Client::clean(broker.address, "stalled").await;
    stalled.subscribe("t", QoS::AtLeastOnce).await;
    let mut lively = Client::clean(broker.address, "lively").await;
    lively.subscribe("t", QoS::AtLeastOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let payload = "x".repeat(1000);
    for _ in 0..500 {
        publisher.publish("t", &payload).await;
        assert_eq!(lively.take().await, payload);
    }
    // What could not be kept for it ends its connection, and nothing is lost in silence.
    assert_eq!(
        stalled.expect_disconnect().await,
        DisconnectReasonCode::QuotaExceeded
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_does_not_end_the_connection_of_a_receiver_that_reads() {
    let limits = Limits {
        max_live_bytes: 8 << 10,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let mut receiver = Client::clean(broker.address, "receiver").await;
    receiver.subscribe("t", QoS::AtLeastOnce).await;
    let payload = |index: u16| format!("{index:01000}");
    let mut publisher = Client::clean(broker.address, "p").await;
    let burst = (1..=250).map(|id| publish("t", &payload(id), QoS::AtLeastOnce, id));
    publisher.send_publishes(burst).await;
    for index in 1..=250 {
        assert_eq!(receiver.take().await, payload(index));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_persistent_session_that_is_slow_reads_its_queue() {
    let broker = TestBroker::start_limited(small()).await;
    let connect = v5::Connect {
        receive_max: std::num::NonZeroU16::new(3),
        ..back("slow")
    };
    let (mut slow, _) = Client::connect(broker.address, connect).await;
    slow.subscribe("t", QoS::AtLeastOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let payload = |index: usize| format!("{index:01000}");
    for index in 0..500 {
        publisher.publish("t", &payload(index)).await;
    }
    for index in 0..500 {
        assert_eq!(slow.take().await, payload(index));
    }
    // Live again.
    for index in 500..600 {
        publisher.publish("t", &payload(index)).await;
        assert_eq!(slow.take().await, payload(index));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn quality_of_service_zero_is_dropped_and_counted() {
    let options = foreshore_broker::Options {
        limits: small(),
        ..crate::options()
    };
    let metrics = options.metrics.clone();
    let broker = TestBroker::start_with(options).await;
    let mut stalled = Client::connect(broker.address, hello("stalled")).await.0;
    stalled.subscribe("t", QoS::AtMostOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let payload = "x".repeat(60_000);
    let dropped = || {
        let text = metrics.encode().unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("foreshore_broker_messages_dropped_total"))
            .unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    // As much as the buffers of two sockets hold, and then some.
    for _ in 0..2000 {
        publisher
            .send_publish(publish("t", &payload, QoS::AtMostOnce, 0))
            .await;
        if dropped() > 0 {
            break;
        }
    }
    publisher.ping().await;
    assert!(dropped() > 0);
    assert_eq!(stalled.take().await, payload);
}
