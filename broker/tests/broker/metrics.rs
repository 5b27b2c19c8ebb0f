//! What is counted, and how often, for `/metrics`.

use std::net::SocketAddr;

use foreshore_broker::{Limits, ListenerOptions, Method, Options};
use foreshore_record::TopicFilter;
use foreshore_runtime::Metrics;
use rmqtt_codec::types::QoS;

use crate::{
    TestBroker,
    client::{Client, GENEROUS, back, publish, retained},
    options,
};

/// The value of a metric with these labels; `None` when it is not shown.
fn value(metrics: &Metrics, name: &str, labels: &str) -> Option<u64> {
    let text = metrics.encode().unwrap();
    let start = format!("foreshore_broker_{name}{{broker=\"default/broker\",{labels}}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start))?;
    Some(line.parse().unwrap())
}

fn filters(texts: &[&str]) -> Vec<TopicFilter> {
    texts
        .iter()
        .map(|text| TopicFilter::new(*text).unwrap())
        .collect()
}

#[tokio::test]
async fn messages_are_counted_by_listener_and_class_of_client() {
    let metrics = Metrics::new();
    let broker = TestBroker::start_with(Options {
        metrics: metrics.clone(),
        ..options()
    })
    .await;
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let second = ListenerOptions::tcp("second", any_port, vec![Method::Anonymous]);
    let second = broker.handle.open_listener(second).unwrap();
    let mut reader = Client::clean(second, "reader").await;
    reader.subscribe("t", QoS::AtLeastOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for _ in 0..3 {
        publisher.publish("t", "four").await;
        reader.take().await;
    }
    reader.ping().await;
    let of = |listener: &str, name: &str| {
        value(
            &metrics,
            name,
            &format!("listener=\"{listener}\",class=\"anonymous\""),
        )
    };
    for (listener, received, sent) in [("test", 3, 0), ("second", 0, 3)] {
        assert_eq!(of(listener, "client_messages_received_total"), Some(received));
        assert_eq!(
            of(listener, "client_payload_received_bytes_total"),
            Some(4 * received)
        );
        assert_eq!(of(listener, "client_messages_sent_total"), Some(sent));
        assert_eq!(of(listener, "client_payload_sent_bytes_total"), Some(4 * sent));
        assert_eq!(of(listener, "client_connections"), Some(1));
    }
    let rules = serde_json::json!({ "rules": [{ "name": "in", "effect": "Allow", "actions": ["Connect"] }] });
    let policy = serde_json::from_value(rules).unwrap();
    broker.handle.set_policies([("p", &policy)]).unwrap();
    let mut refused = Client::clean(broker.address, "refused").await;
    refused.publish("t", "four").await;
    assert_eq!(of("test", "client_publishes_refused_total"), Some(1));
    // A listener that is closed is shown no more.
    broker.handle.close_listener("second");
    assert_eq!(of("second", "client_messages_sent_total"), None);
    assert_eq!(of("test", "client_messages_received_total"), Some(4));
    publisher.disconnect().await;
    refused.disconnect().await;
    // A client may see the end of its connection a moment before it is counted.
    let all_gone = async {
        while of("test", "client_connections") != Some(0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(GENEROUS, all_gone).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_counted_by_topic_filters_that_may_change() {
    let metrics = Metrics::new();
    let broker = TestBroker::start_with(Options {
        metrics: metrics.clone(),
        limits: Limits {
            max_live_bytes: 64 << 10,
            ..Limits::default()
        },
        ..options()
    })
    .await;
    let of = |filter: &str, name: &str| value(&metrics, name, &format!("topic_filter=\"{filter}\""));
    let (mut away, _) = Client::connect(broker.address, back("away")).await;
    away.subscribe("line/#", QoS::AtLeastOnce).await;
    away.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("line/a", "four").await;
    assert_eq!(of("line/a", "topic_messages_received_total"), None);

    broker.handle.count_topics(&filters(&["line/a", "line/#"]));
    for topic in ["line/a", "line/b", "line/c", "elsewhere"] {
        publisher
            .publish_packet(retained(topic, "four", QoS::AtLeastOnce, 5))
            .await;
    }
    for (filter, count) in [("line/a", 1), ("line/#", 2), ("other", 1)] {
        assert_eq!(
            of(filter, "topic_messages_received_total"),
            Some(count),
            "{filter}"
        );
        assert_eq!(
            of(filter, "topic_payload_received_bytes_total"),
            Some(4 * count),
            "{filter}"
        );
        assert_eq!(of(filter, "topic_messages_sent_total"), Some(0), "{filter}");
    }
    // From a queue, and retained ones.
    let (mut away, _) = Client::connect(broker.address, back("away")).await;
    for _ in 0..4 {
        away.take().await;
    }
    assert_eq!(of("line/a", "topic_messages_sent_total"), Some(2));
    assert_eq!(of("line/#", "topic_payload_sent_bytes_total"), Some(8));
    let mut late = Client::clean(broker.address, "late").await;
    late.subscribe("elsewhere", QoS::AtMostOnce).await;
    late.take().await;
    assert_eq!(of("other", "topic_messages_sent_total"), Some(1));

    // What a reader that does not read misses.
    let mut stalled = Client::clean(broker.address, "stalled").await;
    stalled.subscribe("line/b", QoS::AtMostOnce).await;
    stalled.message().await;
    let payload = "x".repeat(30_000);
    for _ in 0..4000 {
        publisher
            .send_publish(publish("line/b", &payload, QoS::AtMostOnce, 0))
            .await;
        if of("line/#", "topic_messages_dropped_total") > Some(0) {
            break;
        }
    }
    assert!(of("line/#", "topic_messages_dropped_total") > Some(0));
    assert_eq!(of("line/a", "topic_messages_dropped_total"), Some(0));
    let dropped = "listener=\"test\",class=\"anonymous\"";
    assert!(value(&metrics, "client_messages_dropped_total", dropped) > Some(0));

    // Nothing is on its way any more that would count for another filter.
    publisher.ping().await;
    broker.handle.count_topics(&filters(&["line/a"]));
    assert_eq!(of("line/#", "topic_messages_received_total"), None);
    publisher.publish("line/b", "four").await;
    assert_eq!(of("other", "topic_messages_received_total"), Some(2));
}
