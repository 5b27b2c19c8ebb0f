use bytes::Bytes;

use super::harness::*;
use crate::{
    Aspect, AspectKind, Discovered, Health, ObjectRef, Observation, Report, ResourceKey, Schema,
    session::agent::LinkState,
};

fn line(namespace: &str) -> ObjectRef {
    ObjectRef {
        namespace: namespace.into(),
        name: "line".into(),
        uid: "u".into(),
        generation: 7,
    }
}

fn dataset(name: &str) -> Aspect {
    Aspect::new(AspectKind::Dataset, name)
}

fn report(name: &str, health: Health, message: &str) -> Report {
    Report::new("Asset", &line("plant"), dataset(name), health, "BadNodeIdUnknown").message(message)
}

async fn next_report(operator: &mut Operator) -> Report {
    operator
        .until("a report", |seen| match seen {
            Observation::Report(report) => Some(report.clone()),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn what_a_role_reports_arrives_whole() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    let running = site.start();
    let sent = report("fast", Health::Degraded, "3 of 10 points are bad")
        .evidence("BadNodeIdUnknown (0x80340000) for ns=2;s=Temp")
        .counter("samples", 12)
        .counter("gaps", 1);
    running.reporter.report(sent.clone());
    let seen = next_report(&mut operator).await;
    assert!(seen.since.as_second() > 0);
    assert_eq!(
        Report {
            since: sent.since,
            ..seen
        },
        sent
    );
    assert_eq!((sent.observed_generation, &*sent.uid), (7, "u"));

    let object = ResourceKey::new("Asset", "plant", "line");
    let schema = Schema {
        object: object.clone(),
        aspect: dataset("fast"),
        document: Bytes::from_static(b"{}"),
    };
    running.reporter.schema(schema.clone());
    operator
        .until("schema", |seen| {
            (*seen == Observation::Schema(schema.clone())).then_some(())
        })
        .await;
    let scan = ResourceKey::new("DiscoveryScan", "plant", "all");
    let discovered = Discovered {
        scan,
        id: "opc.tcp://plc".into(),
        document: Bytes::from_static(b"{\"a\":1}"),
    };
    running.reporter.discovered(discovered.clone());
    operator
        .until("discovery", |seen| {
            (*seen == Observation::Discovered(discovered.clone())).then_some(())
        })
        .await;
    running.reporter.retract(&object, &dataset("fast"));
    let retracted = Observation::Retracted {
        object,
        aspect: dataset("fast"),
    };
    operator
        .until("retraction", |seen| (*seen == retracted).then_some(()))
        .await;
    running.end().await;
}

/// The operator takes no events for a while: the role is not held up, and its latest word arrives.
#[tokio::test]
async fn a_slow_operator_gets_the_latest_word() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    let mut running = site.start();
    running
        .wait("a session", |status| {
            matches!(status.link, LinkState::Connected { .. })
        })
        .await;
    for number in 0..50_000_u32 {
        let name = format!("set-{}", number % 1500);
        running
            .reporter
            .report(report(&name, Health::Available, &number.to_string()));
        if number % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(running.reporter.dropped(), 0);
    let mut last = std::collections::BTreeMap::new();
    while last.get("set-1499").map(String::as_str) != Some("49499") || last.len() < 1500 {
        let report = next_report(&mut operator).await;
        last.insert(report.aspect.name, report.message);
    }
    running.end().await;
}

#[tokio::test]
async fn each_session_is_told_what_is_so() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    let running = site.start();
    running.reporter.report(report("a", Health::Available, "one"));
    running.reporter.report(report("b", Health::Available, "two"));
    for _ in 0..2 {
        next_report(&mut operator).await;
    }
    let (authority, tokens, address) = operator.end().await;
    running.reporter.report(report("a", Health::Unavailable, "three"));
    let gone = ResourceKey::new("Asset", "plant", "line");
    running.reporter.retract(&gone, &dataset("b"));
    let mut operator = Operator::with(authority, tokens, Some(address), Some(2)).await;
    let seen = next_report(&mut operator).await;
    assert_eq!(
        (&*seen.aspect.name, &*seen.message, seen.health),
        ("a", "three", Health::Unavailable)
    );
    running.end().await;
    loop {
        match operator.event("the end").await {
            Observation::Report(other) => panic!("{other:?}"),
            Observation::Disconnected { on_purpose, .. } => break assert!(on_purpose),
            _ => {}
        }
    }
}

#[tokio::test]
async fn the_last_word_is_said_before_leaving() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    let mut running = site.start();
    running
        .wait("a session", |status| {
            matches!(status.link, LinkState::Connected { .. })
        })
        .await;
    running
        .reporter
        .report(report("a", Health::Unavailable, "stopped"));
    running.end().await;
    assert_eq!(next_report(&mut operator).await.message, "stopped");
    assert_eq!(operator.disconnected().await, ("the role ended".to_owned(), true));
}

#[tokio::test]
async fn a_role_can_not_speak_of_other_namespaces() {
    let mut operator = Operator::start().await;
    let site = Site::of(&operator, "1");
    let running = site.start();
    running.reporter.report(Report::new(
        "Asset",
        &line("office"),
        dataset("a"),
        Health::Available,
        "Ok",
    ));
    running.reporter.report(Report::new(
        "Asset",
        &line("plant"),
        dataset("z"),
        Health::Available,
        "Ok",
    ));
    assert_eq!(next_report(&mut operator).await.object.namespace, "plant");
    running.end().await;
}
