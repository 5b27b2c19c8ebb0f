//! What an operator sees: of a broker that runs, and of the store of one that does not.

use std::{ops::ControlFlow, time::Duration};

use foreshore_broker::{
    Limits,
    inspect::backlog::Keeping,
    offline,
    policy::explain::{Question, Request},
};
use foreshore_record::{TopicFilter, TopicName};
use foreshore_store::{
    BrokerTime, StoreError,
    offline::{ClosedStore, Contents},
};
use rmqtt_codec::{
    types::QoS,
    v5::{self, PublishAckReason},
};
use serde_json::Value;

use crate::{
    TestBroker,
    client::{Client, back, hello, publish, retained},
    options_in,
    protocol::will,
};

fn names<T>(items: &[T], name: impl Fn(&T) -> &str) -> Vec<String> {
    items.iter().map(|item| name(item).to_owned()).collect()
}

#[tokio::test]
async fn sessions_and_subscriptions_are_listed_in_order_and_as_many_as_are_wanted() {
    let broker = TestBroker::start().await;
    let handle = &broker.handle;
    let (mut away, _) = Client::connect(broker.address, back("away")).await;
    away.subscribe("a/#", QoS::AtLeastOnce).await;
    away.subscribe("$share/group/b/+", QoS::AtLeastOnce).await;
    away.disconnect().await;
    let mut here = Client::clean(broker.address, "here").await;
    here.subscribe("a/#", QoS::ExactlyOnce).await;
    let mut third = Client::clean(broker.address, "third").await;
    third.publish("a/x", "four").await;

    let all = handle.sessions(None, 10).await.unwrap();
    assert_eq!(
        names(&all.items, |session| &session.client_id),
        ["away", "here", "third"]
    );
    assert!(!all.more);
    let [away, here, _] = &all.items[..] else { panic!() };
    assert!(away.durable && away.connection.is_none() && here.connection.is_some());
    assert!(away.ends_in_seconds.is_some_and(|left| left <= 3600) && here.ends_in_seconds.is_none());
    assert_eq!(away.queue.map(|queue| queue.entries), Some(1));
    assert_eq!(here.queue, None);
    let two = handle.sessions(None, 2).await.unwrap();
    assert_eq!((two.items.len(), two.more), (2, true));
    let one = handle.sessions(Some("third"), 2).await.unwrap();
    assert_eq!(
        (names(&one.items, |session| &session.client_id), one.more),
        (vec!["third".to_owned()], false)
    );
    // To ask for somebody makes nobody.
    assert!(handle.sessions(Some("nobody"), 2).await.unwrap().items.is_empty());
    assert_eq!(handle.sessions(None, 10).await.unwrap().items.len(), 3);

    let told = |client, max| {
        let found = handle.subscriptions(client, max);
        let told = found
            .items
            .into_iter()
            .map(|info| (info.filter, info.subscriber, info.qos.map(u8::from)));
        (told.collect::<Vec<_>>(), found.more)
    };
    let of = |filter: &str, subscriber: &str, qos| (filter.to_owned(), subscriber.to_owned(), qos);
    let expected = [
        of("a/#", "away", Some(1)),
        of("a/#", "here", Some(2)),
        of("b/+", "shared/group/b/+", None),
    ];
    assert_eq!(told(None, 3), (expected.to_vec(), false));
    assert_eq!(told(None, 1), (expected[..1].to_vec(), true));
    assert_eq!(
        told(Some("away"), 9),
        (vec![expected[0].clone(), expected[2].clone()], false)
    );
}

#[tokio::test]
async fn retained_messages_are_listed_by_a_filter() {
    let broker = TestBroker::start().await;
    let mut client = Client::clean(broker.address, "c").await;
    for topic in ["b/2", "a/1", "a/3", "a/2"] {
        client
            .publish_packet(retained(topic, "kept", QoS::AtLeastOnce, 1))
            .await;
    }
    let list = |filter: &str, max| broker.handle.retained(&TopicFilter::new(filter).unwrap(), max);
    let found = list("a/+", 2);
    assert_eq!(names(&found.items, |message| &message.topic), ["a/1", "a/2"]);
    assert!(found.more && found.items[0].payload_bytes == 4);
    let all = list("#", 4);
    assert_eq!(
        (names(&all.items, |message| &message.topic), all.more),
        (["a/1", "a/2", "a/3", "b/2"].map(str::to_owned).to_vec(), false)
    );
}

#[tokio::test]
async fn a_queue_that_nobody_reads_does_not_become_less() {
    let broker = TestBroker::start().await;
    for (name, messages) in [("little", 1), ("much", 5)] {
        let (mut away, _) = Client::connect(broker.address, back(name)).await;
        away.subscribe(name, QoS::AtLeastOnce).await;
        away.disconnect().await;
        let mut publisher = Client::clean(broker.address, "p").await;
        for _ in 0..messages {
            publisher.publish(name, "payload").await;
        }
    }
    let backlog = broker
        .handle
        .backlog(None, Duration::from_millis(1), 10)
        .await
        .unwrap();
    assert_eq!(
        names(&backlog.queues, |queue| &queue.name),
        ["session/much", "session/little"]
    );
    let much = &backlog.queues[0];
    assert_eq!(
        (much.entries, much.connected, much.drained_in_seconds),
        (5, Some(false), None)
    );
    assert!(much.bytes > backlog.queues[1].bytes && much.in_per_second == 0.0);
    assert!(backlog.slow.is_empty() && backlog.shards.len() == 2);
    assert!(
        backlog
            .shards
            .iter()
            .all(|shard| shard.answers && shard.keeping == Keeping::Up)
    );
    let little = broker
        .handle
        .backlog(Some("little"), Duration::ZERO, 10)
        .await
        .unwrap();
    assert_eq!(names(&little.queues, |queue| &queue.name), ["session/little"]);
    let one = broker.handle.backlog(None, Duration::ZERO, 1).await.unwrap();
    assert_eq!((one.queues.len(), one.more_queues), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_reads_nothing_is_told_of_as_slow() {
    let limits = Limits {
        max_live_bytes: 64 << 10,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let mut stalled = Client::connect(broker.address, hello("stalled")).await.0;
    stalled.subscribe("t", QoS::AtMostOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let payload = "x".repeat(30_000);
    // As much as the buffers of two sockets hold, and then some.
    let mut slow = Vec::new();
    for _ in 0..4000 {
        publisher
            .send_publish(publish("t", &payload, QoS::AtMostOnce, 0))
            .await;
        slow = broker
            .handle
            .backlog(None, Duration::ZERO, 10)
            .await
            .unwrap()
            .slow;
        // One message on its way into the socket may be told of as well, and is soon over.
        if slow.iter().any(|slow| slow.keeping == Keeping::Slow) {
            break;
        }
    }
    assert_eq!(names(&slow, |slow| &slow.client_id), ["stalled"]);
    assert!(
        slow[0].live_bytes > 16 << 10 && slow[0].max_live_bytes == 64 << 10,
        "{slow:?}"
    );
    assert_eq!(slow[0].keeping, Keeping::Slow);
}

#[tokio::test]
async fn an_explanation_is_of_the_policies_that_are_in_force() {
    let broker = TestBroker::start().await;
    let question = || Question {
        client_id: "c1".to_owned(),
        username: None,
        groups: Vec::new(),
        certificate: Default::default(),
        attributes: Default::default(),
        request: Request::Publish {
            topic: TopicName::new("own/c1/x").unwrap(),
            qos: foreshore_record::Qos::AtLeastOnce,
            retain: false,
        },
    };
    assert!(broker.handle.explain(question()).without_policy);
    let rules = serde_json::json!({ "rules": [
        { "name": "in", "effect": "Allow", "actions": ["Connect"] },
        { "name": "own", "effect": "Allow", "actions": ["Publish"], "topics": ["own/${clientid}/#"] },
    ] });
    let policy = serde_json::from_value(rules).unwrap();
    broker.handle.set_policies([("p", &policy)]).unwrap();
    let answer = broker.handle.explain(question());
    assert!(answer.allowed && answer.deciding[0].rule == "p/own", "{answer}");
    let mut client = Client::clean(broker.address, "c1").await;
    assert_ne!(
        client.publish("own/c1/x", "m").await,
        PublishAckReason::NotAuthorized
    );
}

#[tokio::test]
async fn the_store_of_a_broker_that_ended_is_proved_and_told_row_by_row() {
    let directory = tempfile::tempdir().unwrap();
    let broker = TestBroker::start_with(options_in(directory.path())).await;
    let will = will("will", None);
    let connect = v5::Connect {
        last_will: Some(will),
        ..back("reader")
    };
    let (mut reader, _) = Client::connect(broker.address, connect).await;
    reader.subscribe("t/#", QoS::AtLeastOnce).await;
    let (mut other, _) = Client::connect(broker.address, back("other")).await;
    other.subscribe("t/+", QoS::ExactlyOnce).await;
    other.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("t/x", "text").await;
    publisher
        .publish_packet(retained("r/a", "kept", QoS::AtLeastOnce, 1))
        .await;
    // Nobody looks at it while it runs.
    let scratch = tempfile::tempdir().unwrap();
    let error = ClosedStore::open(
        directory.path(),
        scratch.path(),
        &foreshore_store::StoreOptions::default(),
    )
    .err()
    .unwrap();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    broker.stop().await;

    let store = ClosedStore::open(
        directory.path(),
        scratch.path(),
        &foreshore_store::StoreOptions::default(),
    )
    .unwrap();
    let found = offline::verify(&store).unwrap();
    assert!(
        found.is_sound() && found.minor == 0 && found.closed_in_order,
        "{found:?}"
    );
    let lines = |contents, payload| {
        let mut lines: Vec<Value> = Vec::new();
        let mut visit = |row| {
            lines.push(offline::describe(&row, BrokerTime(0), payload));
            ControlFlow::Continue(())
        };
        store.each(contents, &mut visit).unwrap();
        lines
    };
    let sessions = lines(Contents::Sessions, false);
    let kinds: Vec<_> = sessions
        .iter()
        .map(|line| (line["kind"].as_str().unwrap(), line["client"].as_str().unwrap()))
        .collect();
    assert_eq!(
        kinds,
        [
            ("session", "other"),
            ("subscription", "other"),
            ("session", "reader"),
            ("subscription", "reader")
        ]
    );
    assert_eq!(
        (
            &sessions[1]["filter"],
            &sessions[1]["subscription"]["options"]["qos"]
        ),
        (&"t/+".into(), &2.into())
    );
    assert_eq!(lines(Contents::Retained, false)[0]["topic"], "r/a");
    let receivers = lines(Contents::Receivers, false);
    let waiting = receivers
        .iter()
        .find(|line| line["name"] == "session/other")
        .unwrap();
    assert_eq!(waiting["ledger"]["waiting"], 1, "{waiting}");
    let queue = store.find_receiver("session/other").unwrap().unwrap();
    let [quiet] = &lines(Contents::Queue(queue), false)[..] else {
        panic!()
    };
    assert_eq!(
        (&quiet["topic"], &quiet["qos"], &quiet["payloadBytes"]),
        (&"t/x".into(), &1.into(), &4.into())
    );
    assert_eq!(quiet.get("payload"), None);
    assert_eq!(lines(Contents::Queue(queue), true)[0]["payload"], "text");
}
