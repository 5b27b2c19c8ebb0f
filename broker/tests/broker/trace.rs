//! Where a message is: its hops, and what the store holds of it.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use foreshore_broker::{
    Error, Handle, Limits,
    inspect::trace::{Hop, MessageId, MessageTrace, Standing, Tracing},
};
use foreshore_control::queue::{OpenPath, Paths, ReadRange};
use foreshore_record::{Outcome, Settlement, TopicFilter};
use foreshore_store::OverflowPolicy;
use rmqtt_codec::{
    types::{Publish, QoS},
    v5::{self, PublishAckReason, PublishProperties},
};

use crate::{
    TestBroker,
    client::{Client, GENEROUS, back, publish},
};

/// A W3C trace context.
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

type Running = Pin<Box<dyn Future<Output = Result<Tracing, Error>> + Send>>;

/// Begins a trace, which runs from here on.
async fn start(handle: &Handle, filter: &str, messages: usize, within: Duration) -> Running {
    let (handle, filter) = (handle.clone(), TopicFilter::new(filter).unwrap());
    let mut running: Running = Box::pin(async move { handle.trace(filter, messages, within).await });
    let pending = poll_fn(|context| Poll::Ready(running.as_mut().poll(context).is_pending())).await;
    assert!(pending, "a trace waits for messages");
    running
}

/// The one message of a trace.
async fn one(running: Running) -> MessageTrace {
    let mut tracing = running.await.unwrap();
    assert_eq!(tracing.messages.len(), 1, "{tracing}");
    tracing.messages.remove(0)
}

/// What happened, one word each, with the receiver.
fn told(message: &MessageTrace) -> Vec<String> {
    let told = message.hops.iter().map(|timed| {
        let hop = serde_json::to_value(timed).unwrap();
        let text = |member: &str| hop[member].as_str().unwrap_or_default().to_owned();
        let words = [text("hop"), text("receiver"), text("client"), text("packet")];
        words.join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
    });
    told.collect()
}

/// Whether these hops happened in this order, whatever else happened in between.
fn happened(message: &MessageTrace, expected: &[&str]) {
    let told = told(message);
    let mut rest = told.iter();
    for hop in expected {
        assert!(
            rest.any(|told| told == hop),
            "no {hop:?} in its place of {told:#?}"
        );
    }
}

/// A message with the user properties that a connector's record has.
fn record(topic: &str, event_id: &str, qos: QoS) -> Publish {
    let user_properties = [("id", event_id), ("traceparent", TRACEPARENT)];
    let properties = PublishProperties {
        user_properties: user_properties
            .map(|(name, value)| (name.into(), value.into()))
            .to_vec(),
        ..PublishProperties::default()
    };
    Publish {
        properties: Some(properties),
        ..publish(topic, "text", qos, 9)
    }
}

async fn put_path(handle: &Handle, name: &str, topic: &str) -> Box<dyn OpenPath> {
    let topics = vec![TopicFilter::new(topic).unwrap()];
    handle
        .put_path(name, topics, foreshore_store::Limits::default())
        .await
        .unwrap();
    handle.paths().open(name).await.unwrap()
}

async fn read(path: &dyn OpenPath) -> u64 {
    let range = ReadRange {
        after: 0,
        before: None,
        max_entries: 10,
        max_bytes: 1 << 20,
        wait: GENEROUS,
    };
    path.read(range).await.unwrap().entries[0].id
}

/// Waits until nothing is left in a queue: what was acknowledged leaves it with a commit of its own.
async fn settled(handle: &Handle, path: &str) {
    let emptied = async {
        loop {
            let ledger = handle.ledger().await.unwrap();
            if ledger.iter().any(|line| line.path == path && line.waiting == 0) {
                break;
            }
        }
    };
    tokio::time::timeout(GENEROUS, emptied).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_hop_of_a_message_is_told_with_its_receiver() {
    let broker = TestBroker::start().await;
    let path = put_path(&broker.handle, "dataflow/n/d->s", "line/+").await;
    let (mut session, _) = Client::connect(broker.address, back("session")).await;
    session.subscribe("line/#", QoS::AtLeastOnce).await;
    let mut member = Client::clean(broker.address, "member").await;
    member.subscribe("$share/g/line/a", QoS::AtLeastOnce).await;
    let mut zero = Client::clean(broker.address, "zero").await;
    zero.subscribe("line/a", QoS::AtMostOnce).await;
    let mut publisher = Client::clean(broker.address, "publisher").await;

    let running = start(&broker.handle, "line/a", 1, GENEROUS).await;
    publisher.publish("elsewhere", "x").await;
    publisher
        .publish_packet(record("line/a", "event-1", QoS::AtLeastOnce))
        .await;
    for client in [&mut session, &mut member, &mut zero] {
        assert_eq!(client.take().await, "text");
    }
    let id = read(&*path).await;
    path.settle(vec![Settlement::delivered(id)]).await.unwrap();
    let message = one(running).await;

    assert!(
        message.done && message.held.is_empty() && message.hops_left_out == 0,
        "{message}"
    );
    assert_eq!((message.topic.as_str(), message.entry), ("line/a", Some(id)));
    assert_eq!(message.event_id.as_deref(), Some("event-1"));
    assert_eq!(message.traceparent.as_deref(), Some(TRACEPARENT));
    let Hop::Received {
        listener,
        qos,
        packet_id,
        bytes,
        ..
    } = &message.hops[0].hop
    else {
        panic!("{message}")
    };
    assert_eq!(
        (listener.as_deref(), u8::from(*qos), *packet_id, *bytes),
        (Some("test"), 1, 9, 4)
    );
    assert!(
        message
            .hops
            .iter()
            .any(|timed| matches!(timed.hop, Hop::Stored { entry, .. } if entry == id))
    );
    happened(
        &message,
        &["received publisher", "allowed", "stored", "answered PUBACK"],
    );
    let session = "session/session";
    happened(
        &message,
        &[
            "allowed",
            &format!("routed {session}"),
            &format!("sent {session}"),
            &format!("acknowledged {session} PUBACK"),
        ],
    );
    happened(&message, &["routed session/zero", "sent session/zero"]);
    let group = "shared/g/line/a";
    happened(
        &message,
        &[
            &format!("routed {group}"),
            &format!("assigned {group} member"),
            &format!("sent {group} member"),
            &format!("acknowledged {group} member PUBACK"),
        ],
    );
    let path = "dataflow/n/d->s";
    happened(
        &message,
        &[
            &format!("routed {path}"),
            &format!("handedOut {path}"),
            &format!("settled {path}"),
        ],
    );
    assert!(
        message
            .to_string()
            .contains("assigned       to member member of shared/g/line/a")
    );
}

#[tokio::test]
async fn both_phases_of_quality_of_service_2_are_told_on_both_sides() {
    let broker = TestBroker::start().await;
    let (mut reader, _) = Client::connect(broker.address, back("reader")).await;
    reader.subscribe("t", QoS::ExactlyOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let running = start(&broker.handle, "t", 1, GENEROUS).await;
    publisher
        .publish_packet(publish("t", "x", QoS::ExactlyOnce, 5))
        .await;
    reader.take().await;
    let message = one(running).await;
    happened(
        &message,
        &["received p", "stored", "answered PUBREC", "releasedByPublisher"],
    );
    happened(
        &message,
        &[
            "routed session/reader",
            "sent session/reader",
            "acknowledged session/reader PUBREC",
            "released session/reader",
            "acknowledged session/reader PUBCOMP",
        ],
    );

    // A repeat is told as one, and nobody gets it.
    let running = start(&broker.handle, "t", 2, GENEROUS).await;
    for _ in 0..2 {
        publisher
            .send_publish(publish("t", "y", QoS::ExactlyOnce, 6))
            .await;
        assert!(matches!(
            publisher.receive().await,
            v5::Packet::PublishReceived(_)
        ));
    }
    publisher.release(6).await;
    reader.take().await;
    let tracing = running.await.unwrap();
    assert_eq!(
        told(&tracing.messages[1])[..3],
        ["received p", "repeated", "answered PUBREC"],
        "{tracing}"
    );
}

#[tokio::test]
async fn a_refused_message_is_told_with_the_rule_that_refuses_it() {
    let broker = TestBroker::start().await;
    let rules = serde_json::json!({ "rules": [
        { "name": "in", "effect": "Allow", "actions": ["Connect", "Publish"], "topics": ["#"] },
        { "name": "not-here", "effect": "Deny", "actions": ["Publish"], "topics": ["secret/#"] },
    ] });
    let policy = serde_json::from_value(rules).unwrap();
    broker.handle.set_policies([("p", &policy)]).unwrap();
    let mut publisher = Client::clean(broker.address, "p").await;
    let running = start(&broker.handle, "#", 2, GENEROUS).await;
    assert_eq!(
        publisher.publish("secret/a", "x").await,
        PublishAckReason::NotAuthorized
    );
    publisher.publish("nobody", "x").await;
    let tracing = running.await.unwrap();
    let [refused, unrouted] = &tracing.messages[..] else {
        panic!("{tracing}")
    };
    assert_eq!(
        told(refused),
        ["received p", "denied", "refused", "answered PUBACK"]
    );
    assert!(
        refused.done && refused.to_string().contains("p/not-here"),
        "{refused}"
    );
    assert_eq!(
        told(unrouted),
        ["received p", "allowed", "unrouted", "answered PUBACK"]
    );
}

#[tokio::test]
async fn a_message_that_waits_is_found_by_entry_and_by_event_until_everybody_has_settled_it() {
    let broker = TestBroker::start().await;
    let path = put_path(&broker.handle, "dataflow/n/d->s", "t").await;
    for name in ["first", "second"] {
        let (mut away, _) = Client::connect(broker.address, back(name)).await;
        away.subscribe("t", QoS::AtLeastOnce).await;
        away.disconnect().await;
    }
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("t", "another").await;
    let retained = Publish {
        retain: true,
        ..record("t", "event-7", QoS::AtLeastOnce)
    };
    publisher.publish_packet(retained).await;

    let held = async |id: &str| {
        let found = broker.handle.find_message(id.parse().unwrap()).await.unwrap();
        assert!(found.complete, "{found}");
        let held = found.messages.iter().flat_map(|message| &message.held);
        let held: Vec<_> = held
            .map(|held| (held.receiver.clone(), held.standing.clone()))
            .collect();
        (held, found)
    };
    let names = |held: &[(String, Standing)]| held.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let (by_event, found) = held("event-7").await;
    assert_eq!(
        names(&by_event),
        ["dataflow/n/d->s", "session/first", "session/second", "retained/t"]
    );
    let entry = found.messages[0].entry.unwrap();
    assert_eq!(found.messages[0].traceparent.as_deref(), Some(TRACEPARENT));
    let (by_entry, _) = held(&entry.to_string()).await;
    assert_eq!(names(&by_entry), names(&by_event));
    assert!(
        matches!(by_entry[0].1, Standing::Waiting { attempts: 0, .. }),
        "{by_entry:?}"
    );

    // One has read it, one will not, and for one it could not be processed.
    let (mut first, _) = Client::connect(broker.address, back("first")).await;
    for _ in 0..2 {
        first.take().await;
    }
    settled(&broker.handle, "session/first").await;
    let before = read(&*path).await;
    let outcome = Outcome::DeadLettered {
        stage: "map".to_owned(),
        reason: "no such field".to_owned(),
    };
    let dead = Settlement {
        id: entry,
        emitted: 0,
        outcome,
    };
    path.settle(vec![Settlement::delivered(before), dead])
        .await
        .unwrap();
    let (by_entry, found) = held(&entry.to_string()).await;
    assert_eq!(
        names(&by_entry),
        ["dataflow/n/d->s", "session/second", "retained/t"]
    );
    let Standing::DeadLettered {
        stage,
        reason,
        attempts,
    } = &by_entry[0].1
    else {
        panic!("{found}")
    };
    assert_eq!(
        (stage.as_str(), reason.as_str(), *attempts),
        ("map", "no such field", 1)
    );
    let (by_event, _) = held("event-7").await;
    assert_eq!(by_event, by_entry);

    let (settled, found) = held(&before.to_string()).await;
    assert_eq!(names(&settled), ["session/second"], "{found}");
    let (nothing, found) = held("999999").await;
    assert!(
        nothing.is_empty() && found.to_string().contains("there was no entry 999999 yet"),
        "{found}"
    );
    let (nothing, found) = held("no-such-event").await;
    assert!(
        nothing.is_empty() && found.to_string().contains("nothing holds a message"),
        "{found}"
    );
}

#[tokio::test]
async fn hops_of_a_message_are_remembered_after_its_trace() {
    let broker = TestBroker::start().await;
    let (mut away, _) = Client::connect(broker.address, back("away")).await;
    away.subscribe("t", QoS::AtLeastOnce).await;
    away.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let running = start(&broker.handle, "t", 1, Duration::from_millis(1)).await;
    publisher
        .publish_packet(record("t", "event-8", QoS::AtLeastOnce))
        .await;
    let message = one(running).await;
    assert!(!message.done, "{message}");
    assert_eq!(message.held[0].receiver, "session/away");
    assert!(
        matches!(message.held[0].standing, Standing::Waiting { .. }),
        "{message}"
    );

    // Without an acknowledgement it comes again, and that is told as well.
    let (mut away, _) = Client::connect(broker.address, back("away")).await;
    away.message().await;
    drop(away);
    let (mut away, _) = Client::connect(broker.address, back("away")).await;
    assert_eq!(away.take().await, "text");
    settled(&broker.handle, "session/away").await;
    for id in [
        MessageId::Event("event-8".to_owned()),
        MessageId::Entry(message.entry.unwrap()),
    ] {
        let found = broker.handle.find_message(id).await.unwrap();
        let message = &found.messages[0];
        happened(
            message,
            &[
                "received p",
                "routed session/away",
                "sent session/away",
                "sent session/away",
                "acknowledged session/away PUBACK",
            ],
        );
        let again = |hop: &Hop| matches!(hop, Hop::Sent { dup: true, .. });
        assert_eq!(
            message.hops.iter().filter(|timed| again(&timed.hop)).count(),
            1,
            "{found}"
        );
        assert!(message.done && message.held.is_empty(), "{found}");
        assert!(
            found.to_string().contains("no queue holds it any more"),
            "{found}"
        );
    }
}

#[tokio::test]
async fn a_message_that_reaches_somebody_else_or_nobody_is_told_with_the_reason() {
    let limits = Limits {
        max_queue_bytes: 64,
        queue_overflow: OverflowPolicy::DropNew,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let (mut away, _) = Client::connect(broker.address, back("away")).await;
    away.subscribe("t", QoS::AtLeastOnce).await;
    away.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let reasons = async |running: Running| {
        let message = one(running).await;
        let reasons = message.hops.iter().filter_map(|timed| match &timed.hop {
            Hop::Dropped { receiver, reason } => Some((receiver.clone(), reason.clone())),
            _ => None,
        });
        reasons.collect::<Vec<_>>()
    };
    let dropped = |receiver: &str, reason: &str| vec![(receiver.to_owned(), reason.to_owned())];

    let running = start(&broker.handle, "t", 1, GENEROUS).await;
    publisher.publish("t", &"x".repeat(100)).await;
    assert_eq!(reasons(running).await, dropped("session/away", "too_large"));
    publisher.publish("t", &"x".repeat(40)).await;
    let running = start(&broker.handle, "t", 1, GENEROUS).await;
    publisher.publish("t", &"x".repeat(40)).await;
    assert_eq!(reasons(running).await, dropped("session/away", "overflow_new"));
    let running = start(&broker.handle, "t", 1, GENEROUS).await;
    publisher
        .send_publish(publish("t", "x", QoS::AtMostOnce, 0))
        .await;
    assert_eq!(reasons(running).await, dropped("session/away", "not_connected"));

    // What a member leaves behind goes to another.
    let mut members = Vec::new();
    for name in ["first", "second"] {
        let mut member = Client::clean(broker.address, name).await;
        member.subscribe("$share/g/s", QoS::AtLeastOnce).await;
        members.push(member);
    }
    let running = start(&broker.handle, "s", 1, GENEROUS).await;
    publisher.publish("s", "x").await;
    let mut first = members.remove(0);
    first.message().await;
    drop(first);
    members[0].take().await;
    let message = one(running).await;
    happened(
        &message,
        &[
            "assigned shared/g/s first",
            "sent shared/g/s first",
            "returned shared/g/s",
            "assigned shared/g/s second",
            "acknowledged shared/g/s second PUBACK",
        ],
    );

    // What is sent and not acknowledged ends with a session that does not last.
    let mut brief = Client::clean(broker.address, "brief").await;
    brief.subscribe("b", QoS::AtLeastOnce).await;
    let running = start(&broker.handle, "b", 1, GENEROUS).await;
    publisher.publish("b", "x").await;
    brief.message().await;
    brief.disconnect().await;
    assert_eq!(reasons(running).await, dropped("session/brief", "session_ended"));
}

#[tokio::test]
async fn traces_are_bounded_and_end_with_those_who_asked() {
    let broker = TestBroker::start().await;
    let mut running = Vec::new();
    for _ in 0..4 {
        running.push(start(&broker.handle, "#", 2, GENEROUS).await);
    }
    let all = || TopicFilter::new("#").unwrap();
    let refused = broker.handle.trace(all(), 1, GENEROUS).await.unwrap_err();
    assert!(matches!(refused, Error::TooManyTraces { max: 4 }), "{refused}");
    // Nobody waits for this one any more.
    running.pop();
    running.push(start(&broker.handle, "#", 2, GENEROUS).await);
    let mut publisher = Client::clean(broker.address, "p").await;
    for _ in 0..5 {
        publisher.publish("t", "x").await;
    }
    for running in running {
        let tracing = running.await.unwrap();
        assert_eq!(
            (tracing.messages.len(), tracing.more_messages),
            (2, 3),
            "{tracing}"
        );
        assert!(tracing.to_string().contains("3 more were not traced"));
    }
}
