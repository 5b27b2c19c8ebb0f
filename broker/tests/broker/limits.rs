//! Limits by topic filter: for each queue, through restarts, changed while the broker runs.

use std::time::Duration;

use foreshore_broker::{Handle, Limits, Options, OverflowPolicy, TopicLimit};
use foreshore_record::{PathLedger, TopicFilter};
use foreshore_runtime::Metrics;
use foreshore_store::TopicTotals;
use rmqtt_codec::{types::QoS, v5::PublishAckReason};

use crate::{
    TestBroker,
    client::{Client, GENEROUS, back},
    options, options_in,
};

fn limit(filter: &str, max_messages: u64, overflow: OverflowPolicy) -> TopicLimit {
    TopicLimit {
        filter: TopicFilter::new(filter).unwrap(),
        max_messages: Some(max_messages),
        max_bytes: None,
        max_age: None,
        overflow,
    }
}

fn limited(topic_limits: Vec<TopicLimit>) -> Limits {
    Limits {
        topic_limits,
        ..Limits::default()
    }
}

async fn ledger(handle: &Handle, client: &str) -> PathLedger {
    let ledger = handle.ledger().await.unwrap();
    let name = format!("session/{client}");
    ledger.into_iter().find(|line| line.path == name).unwrap()
}

async fn away(broker: &TestBroker, client: &str) {
    let (mut away, _) = Client::connect(broker.address, back(client)).await;
    away.subscribe("#", QoS::AtLeastOnce).await;
    away.disconnect().await;
}

/// What the limits come to, as soon as it is what is expected.
async fn until(handle: &Handle, expected: impl Fn(&[TopicTotals]) -> bool) -> Vec<TopicTotals> {
    let seen = async {
        loop {
            let totals = handle.topic_limits().await.unwrap();
            if expected(&totals) {
                return totals;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(GENEROUS, seen).await.unwrap()
}

#[tokio::test]
async fn messages_of_a_topic_filter_take_no_more_of_a_queue_than_they_may() {
    let directory = tempfile::tempdir().unwrap();
    let limits = limited(vec![limit("video/#", 2, OverflowPolicy::DropOldest)]);
    let start = async || {
        TestBroker::start_with(Options {
            limits: limits.clone(),
            ..options_in(directory.path())
        })
        .await
    };
    let broker = start().await;
    away(&broker, "reader").await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("alarm", "a1").await;
    publisher.publish("video/1", "v1").await;
    publisher.publish("video/2", "v2").await;
    publisher.disconnect().await;
    broker.stop().await;

    // What waited before the restart counts from its first message on.
    let broker = start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("video/1", "v3").await;
    publisher.publish("alarm", "a2").await;
    let line = ledger(&broker.handle, "reader").await;
    assert!(line.balances() && line.waiting == 4, "{line:?}");
    assert_eq!(line.dropped["topic_overflow_oldest"], 1);
    let backlog = broker
        .handle
        .backlog(Some("reader"), Duration::from_millis(1), 1)
        .await
        .unwrap();
    let of_filter = &backlog.queues[0].topic_filters[0];
    assert_eq!(
        (
            of_filter.topic_filter.as_str(),
            of_filter.entries,
            of_filter.max_entries
        ),
        ("video/#", 2, Some(2))
    );
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    for expected in ["a1", "v2", "v3", "a2"] {
        assert_eq!(reader.take().await, expected);
    }
    until(&broker.handle, |totals| totals[0].waiting == 0).await;
    broker.stop().await;
}

#[tokio::test]
async fn who_stays_away_loses_of_its_own_and_keeps_nobody_from_publishing() {
    let small = |limits: Limits| Limits {
        max_queue_bytes: 20_000,
        ..limits
    };
    let metrics = Metrics::new();
    let broker = TestBroker::start_with(Options {
        limits: small(Limits::default()),
        metrics: metrics.clone(),
        ..options()
    })
    .await;
    away(&broker, "dashboard").await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    reader.subscribe("#", QoS::AtLeastOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let payload = |index: usize| format!("{index:01000}");
    for index in 0..50 {
        assert_eq!(
            publisher.publish("line", &payload(index)).await,
            PublishAckReason::Success
        );
        assert_eq!(reader.take().await, payload(index));
    }
    let line = ledger(&broker.handle, "dashboard").await;
    let dropped = line.dropped["overflow_oldest"];
    assert!(line.balances() && dropped > 30, "{line:?}");
    assert_eq!((line.received, line.waiting), (50, 50 - dropped));
    let counted = format!("foreshore_broker_queue_messages_dropped_total {dropped}\n");
    let seen = async {
        while !metrics.encode().unwrap().contains(&counted) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(GENEROUS, seen).await.unwrap();
    let (mut dashboard, _) = Client::connect(broker.address, back("dashboard")).await;
    for index in (0..50).skip(dropped as usize) {
        assert_eq!(dashboard.take().await, payload(index));
    }
    dashboard.disconnect().await;
    broker.stop().await;

    // Where that is wanted, publishers keep what somebody has no room for.
    let broker = TestBroker::start_limited(small(Limits {
        queue_overflow: OverflowPolicy::Reject,
        ..Limits::default()
    }))
    .await;
    away(&broker, "orders").await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let mut answers = Vec::new();
    for index in 0..50 {
        answers.push(publisher.publish("line", &payload(index)).await);
    }
    let taken = answers
        .iter()
        .filter(|answer| **answer == PublishAckReason::Success);
    let line = ledger(&broker.handle, "orders").await;
    assert_eq!(line.waiting, taken.count() as u64);
    assert!(line.waiting < 20 && answers.last() == Some(&PublishAckReason::QuotaExceeded));
}

#[tokio::test]
async fn limits_by_topic_filter_change_while_the_broker_runs() {
    let metrics = foreshore_runtime::Metrics::new();
    let broker = TestBroker::start_with(Options {
        metrics: metrics.clone(),
        ..options()
    })
    .await;
    away(&broker, "reader").await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("t", "before").await;
    broker
        .handle
        .set_limits(limited(vec![limit("t", 1, OverflowPolicy::Reject)]));
    until(&broker.handle, |totals| totals.len() == 1).await;
    assert_eq!(publisher.publish("t", "1").await, PublishAckReason::Success);
    assert_eq!(publisher.publish("t", "2").await, PublishAckReason::QuotaExceeded);
    assert_eq!(publisher.publish("u", "others").await, PublishAckReason::Success);
    broker
        .handle
        .set_limits(limited(vec![limit("t", 1, OverflowPolicy::DropNew)]));
    until(&broker.handle, |totals| {
        totals[0].limit.overflow == OverflowPolicy::DropNew
    })
    .await;
    assert_eq!(publisher.publish("t", "3").await, PublishAckReason::Success);
    let line = ledger(&broker.handle, "reader").await;
    assert_eq!((line.waiting, line.dropped["topic_overflow_new"]), (3, 1));
    let totals = until(&broker.handle, |_| true).await;
    assert_eq!(
        (totals[0].refused, totals[0].dropped_new, totals[0].waiting),
        (1, 1, 1)
    );

    // In the metrics, as long as there is the limit.
    let shown = async |text: &str, wanted: bool| {
        let seen = async {
            while metrics.encode().unwrap().contains(text) != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(GENEROUS, seen).await.unwrap();
    };
    shown(
        "foreshore_broker_topic_limit_dropped_messages{broker=\"default/broker\",topic_filter=\"t\",reason=\"refused\"} 1",
        true,
    )
    .await;
    broker.handle.set_limits(Limits::default());
    until(&broker.handle, <[_]>::is_empty).await;
    assert_eq!(publisher.publish("t", "4").await, PublishAckReason::Success);
    assert_eq!(ledger(&broker.handle, "reader").await.waiting, 4);
    shown("foreshore_broker_topic_limit_dropped_messages{", false).await;
    broker.stop().await;
}
