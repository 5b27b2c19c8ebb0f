use std::{sync::Arc, time::Duration};

use foreshore_control::queue::{Error, OpenPath, Paths, ReadRange, Settlement};
use foreshore_mqtt::{
    codec::v5::ConnectAckReason,
    testing::{Behaviour, StandIn},
};
use foreshore_northbound::{SinkFactory as _, SinkSetup, SourceSetup};
use foreshore_record::{DropReason, Outcome, Qos, Record, TopicName};
use serde_json::json;

use crate::tests::{GENEROUS, Setup, setup_of, to};

const PATH: &str = "dataflow/plant/flow->out";

fn source(setup: &Setup, broker: &StandIn, topics: &[&str]) -> Arc<dyn Paths> {
    source_of(setup, to(broker, json!({})), topics)
}

fn source_of(setup: &Setup, sink: SinkSetup, topics: &[&str]) -> Arc<dyn Paths> {
    let source = SourceSetup {
        dataflow: sink.dataflow,
        sink: sink.sink.name,
        path: PATH.to_owned(),
        topics: topics.iter().map(|topic| (*topic).into()).collect(),
        endpoint: sink.endpoint,
    };
    setup.sinks.source(&source).unwrap()
}

fn message(topic: &str, payload: &str) -> Record {
    let mut record = Record::new(TopicName::new(topic).unwrap(), payload.to_owned());
    record.qos = Qos::AtLeastOnce;
    record
}

fn after(after: u64) -> ReadRange {
    ReadRange {
        after,
        before: None,
        max_entries: 100,
        max_bytes: 1 << 20,
        wait: GENEROUS,
    }
}

/// What is there when so many have been received.
async fn read(open: &dyn OpenPath, count: usize) -> Vec<(u64, String)> {
    let mut found = open.read(after(0)).await.unwrap().entries;
    while found.len() < count {
        let last = found.last().map_or(0, |entry| entry.id);
        found.extend(open.read(after(last)).await.unwrap().entries);
    }
    let text = |record: &Record| String::from_utf8(record.payload.to_vec()).unwrap();
    found
        .iter()
        .map(|entry| (entry.id, text(&entry.record)))
        .collect()
}

fn settled(id: u64, outcome: Outcome) -> Settlement {
    Settlement {
        id,
        emitted: u32::from(outcome == Outcome::Delivered),
        outcome,
    }
}

#[tokio::test]
async fn messages_stay_until_they_are_settled_and_are_acknowledged_in_their_order() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let setup = Setup::new();
    let paths = source(&setup, &broker, &["in/#"]);
    let open = paths.open(PATH).await.unwrap();
    let subscribed = |broker: &StandIn| broker.filters() == ["in/#"];
    assert!(broker.wait_until(GENEROUS, subscribed).await);
    assert_eq!(broker.clients(), ["foreshore-plant-flow-out-source"]);
    assert_eq!(broker.kept_sessions(), [7 * 24 * 3600]);
    for n in 1..=4 {
        assert_eq!(broker.publish(&message("in/a", &n.to_string())), 1);
    }
    let expected = [1, 2, 3, 4].map(|n| (n, n.to_string()));
    assert_eq!(read(&*open, 4).await, expected);
    assert_eq!(read(&*open, 4).await, expected, "as often as it is asked for");
    let backlog = ReadRange {
        before: Some(open.opening_tail()),
        wait: Duration::ZERO,
        ..after(0)
    };
    assert!(open.read(backlog).await.unwrap().entries.is_empty());
    let behind = ReadRange {
        before: Some(3),
        ..after(1)
    };
    assert_eq!(open.read(behind).await.unwrap().entries.len(), 1);

    let dropped = Outcome::Dropped {
        reason: DropReason::LOOP,
    };
    open.settle(vec![settled(2, dropped), settled(3, Outcome::Delivered)])
        .await
        .unwrap();
    assert_eq!(read(&*open, 2).await, [(1, "1".to_owned()), (4, "4".to_owned())]);
    let acknowledges = |broker: &StandIn| broker.acknowledged() > 0;
    assert!(!broker.wait_until(Duration::from_millis(200), acknowledges).await);
    open.settle(vec![settled(1, Outcome::Delivered)]).await.unwrap();
    assert!(
        broker
            .wait_until(GENEROUS, |broker| broker.acknowledged() == 3)
            .await
    );
    let totals = &paths.totals().await.unwrap()[0];
    let ledger = &totals.ledger;
    assert!(ledger.balances(), "{ledger:?}");
    assert_eq!((ledger.received, ledger.delivered, ledger.waiting), (4, 2, 1));
    assert_eq!((ledger.dropped["loop"], totals.waiting_bytes), (1, 1));

    // What was not settled is forgotten with the opening: it comes again.
    drop(open);
    assert!(
        broker
            .wait_until(GENEROUS, |broker| broker.clients().is_empty())
            .await
    );
    let _open = paths.open(PATH).await.unwrap();
    let ledger = paths.totals().await.unwrap().remove(0).ledger;
    assert!(ledger.balances() && ledger.received == 3, "{ledger:?}");
}

#[tokio::test]
async fn no_more_is_on_its_way_than_the_endpoint_says() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let setup = Setup::new();
    let address = format!("mqtt://{}", broker.address());
    let seven = setup_of(json!({ "address": address, "maxInflight": 7 }), json!({}), &[]);
    let _open = source_of(&setup, seven, &["in/#"]).open(PATH).await.unwrap();
    let told = |broker: &StandIn| broker.receive_maxima() == [7];
    assert!(
        broker.wait_until(GENEROUS, told).await,
        "{:?}",
        broker.receive_maxima()
    );
}

#[tokio::test]
async fn a_broker_that_is_away_is_told_with_evidence() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let setup = Setup::new();
    let paths = source(&setup, &broker, &["in/#"]);
    let open = paths.open(PATH).await.unwrap();
    broker.down(true);
    let error = open.read(after(0)).await.unwrap_err().to_string();
    assert!(error.contains(broker.address()), "{error}");
    drop(open);
    let open = paths.open(PATH).await.unwrap();
    let error = open.read(after(0)).await.unwrap_err().to_string();
    assert!(
        error.starts_with("broker is unavailable: ") && error.contains(broker.address()),
        "{error}"
    );
    broker.down(false);
    assert!(
        broker
            .wait_until(GENEROUS, |broker| !broker.filters().is_empty())
            .await
    );
    broker.publish(&message("in/a", "again"));
    assert_eq!(read(&*open, 1).await, [(1, "again".to_owned())]);
}

#[tokio::test]
async fn what_no_topic_of_the_dataflow_names_is_acknowledged_and_not_handed_on() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let setup = Setup::new();
    let open = source(&setup, &broker, &["in/#"]).open(PATH).await.unwrap();
    let subscribed = |broker: &StandIn| broker.filters() == ["in/#"];
    assert!(broker.wait_until(GENEROUS, subscribed).await);
    broker.publish_to_all(&message("former/a", "old"));
    broker.publish(&message("in/a", "new"));
    let texts: Vec<_> = read(&*open, 1).await.into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["new"]);
    let acknowledged = |broker: &StandIn| broker.acknowledged() == 1;
    assert!(broker.wait_until(GENEROUS, acknowledged).await);
}

#[tokio::test]
async fn a_broker_that_does_not_let_us_in_is_told_apart_from_one_that_is_away() {
    let broker = StandIn::start(Behaviour {
        refuse_connections: Some(ConnectAckReason::BadUserNameOrPassword),
        ..Behaviour::default()
    })
    .await
    .unwrap();
    let setup = Setup::new();
    let open = source(&setup, &broker, &["in/#"]).open(PATH).await.unwrap();
    let refused = open.read(after(0)).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { .. }), "{refused:?}");
    assert!(
        refused.to_string().contains("bad user name or password"),
        "{refused}"
    );
}

#[tokio::test]
async fn topics_that_a_dataflow_names_no_longer_are_taken_back() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let setup = Setup::new();
    let open = source(&setup, &broker, &["kept/#", "former/#"]).open(PATH).await;
    let both = |broker: &StandIn| broker.filters() == ["former/#", "kept/#"];
    assert!(broker.wait_until(GENEROUS, both).await, "{:?}", broker.filters());
    drop(open);
    let _open = source(&setup, &broker, &["kept/#"]).open(PATH).await;
    let taken_back = |broker: &StandIn| broker.unsubscribed() == ["former/#"];
    assert!(broker.wait_until(GENEROUS, taken_back).await);
}

#[test]
fn a_broker_of_ours_is_no_such_source() {
    let setup = Setup::new();
    let mut own = crate::tests::setup_of(json!({ "brokerRef": { "name": "main" } }), json!({}), &[]);
    own.endpoint.endpoint.object.uid = "2".to_owned();
    let source = SourceSetup {
        dataflow: own.dataflow,
        sink: own.sink.name,
        path: PATH.to_owned(),
        topics: vec!["in/#".into()],
        endpoint: own.endpoint,
    };
    let refused = setup.sinks.source(&source).err().unwrap();
    assert_eq!(
        refused.to_string(),
        "UnsupportedHere: a broker of ours keeps queues itself, source.brokerRef names it"
    );
}
