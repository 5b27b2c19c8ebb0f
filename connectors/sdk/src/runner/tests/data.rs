use foreshore_mqtt::ReasonCode;
use foreshore_record::property;
use jiff::Timestamp;

use super::*;
use crate::{
    contract::{LinkError, LinkErrorClass},
    emitter::TryEmitError,
    health::Member,
    observation::{Event, Gap, Observation, Picture},
};

async fn emit(connector: &FakeConnector, from: i64, to: i64) {
    let emitter = connector.emitter().unwrap();
    for number in from..=to {
        emitter
            .emit(FakeConnector::values("filler", "fast", &[("a", number)]))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn values_become_numbered_messages_with_their_identity() {
    let directory = tempfile::tempdir().unwrap();
    let (harness, connector) = linked(directory.path()).await;
    let emitter = connector.emitter().unwrap();
    emitter
        .emit(FakeConnector::values("filler", "fast", &[("a", 1), ("b", 10)]))
        .await
        .unwrap();
    emitter
        .emit(FakeConnector::values("filler", "fast", &[("a", 2)]))
        .await
        .unwrap();
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| data(broker.kept()).len() == 2)
            .await
    );
    let records = data(harness.broker.kept());
    assert_eq!(records[0].topic.as_str(), "foreshore/data/plant/filler/fast");
    let text = |name: &str| records[0].user_property(name).unwrap();
    assert_eq!(text(property::FRAME), "key");
    assert_eq!(text(property::CE_TYPE), property::TYPE_KEYFRAME);
    assert_eq!(text(property::CE_SOURCE), "fake://line");
    assert_eq!(text(property::CE_SUBJECT), "filler/fast");
    assert_eq!(
        (
            text(property::NAMESPACE),
            text(property::ASSET),
            text(property::MEMBER)
        ),
        ("plant", "filler", "fast")
    );
    assert_eq!(records[1].user_property(property::FRAME), Some("delta"));
    let number = records[0].number.as_ref().unwrap();
    assert_eq!(number.source, "connector/plant/line");
    assert_eq!(sequences(&records), [1, 2]);
    let counted = |reports: &crate::testkit::Recorder| {
        let report = reports.report("Asset", "filler", "Dataset fast");
        report.is_some_and(|report| report.counters.get("values") == Some(&3))
    };
    assert!(harness.reports.wait_until(SOON, counted).await);
    let metrics = harness.metrics.encode().unwrap();
    let labels = r#"{protocol="fake",namespace="plant",device="line"}"#;
    assert!(
        metrics.contains(&format!("foreshore_connector_values_total{labels} 3")),
        "{metrics}"
    );
}

#[tokio::test]
async fn events_and_pictures_have_messages_of_their_own_and_gaps_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let (mut harness, connector) = linked(directory.path()).await;
    let camera = asset(
        "camera",
        "line",
        json!({
            "eventGroups": [{ "name": "motion", "events": [{ "name": "alarm" }] }],
            "streams": [{ "name": "view", "snapshot": {} }],
        }),
    );
    harness.set(&camera.unwrap()).await.unwrap();
    assert!(
        connector
            .wait_until(SOON, |fake| fake.observed().last().unwrap().len() == 2)
            .await
    );
    let emitter = connector.emitter().unwrap();
    let now = Timestamp::now();
    let event = Event {
        asset: "camera".into(),
        group: "motion".into(),
        event: "alarm".into(),
        time: now,
        source: "VideoSource_1".into(),
        body: json!({ "State": true }).as_object().unwrap().clone(),
    };
    emitter.emit(Observation::Event(event)).await.unwrap();
    let picture = Picture {
        asset: "camera".into(),
        stream: "view".into(),
        image: vec![0xFF, 0xD8].into(),
        media_type: "image/jpeg".into(),
        captured_at: now,
        width: Some(640),
        height: Some(360),
    };
    emitter.emit(Observation::Picture(picture)).await.unwrap();
    let gap = Gap {
        member: Member::Device,
        since: now,
        until: now,
        cause: "session lost".into(),
    };
    emitter.emit(Observation::Gap(gap)).await.unwrap();

    let find = |topic: &str| {
        harness
            .broker
            .kept()
            .into_iter()
            .find(|record| record.topic.as_str() == topic)
    };
    let (event, picture) = (
        "foreshore/events/plant/camera/motion/alarm",
        "foreshore/streams/plant/camera/view",
    );
    assert!(
        harness
            .broker
            .wait_until(SOON, |_| find(event).is_some() && find(picture).is_some())
            .await
    );
    assert_eq!(find(event).unwrap().payload, r#"{"State":true}"#);
    let picture = find(picture).unwrap();
    assert_eq!(picture.properties.content_type.as_deref(), Some("image/jpeg"));
    assert_eq!(picture.user_property(property::WIDTH), Some("640"));
    assert_eq!(
        picture.user_property(property::CAPTURED_AT),
        Some(now.to_string().as_str())
    );
    let counted = |reports: &crate::testkit::Recorder| {
        let report = reports.report("Device", "line", "Endpoint");
        report.is_some_and(|report| report.counters.get("gaps") == Some(&1))
    };
    assert!(harness.reports.wait_until(SOON, counted).await);
}

#[tokio::test]
async fn a_broken_connection_to_the_broker_loses_and_doubles_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (harness, connector) = linked(directory.path()).await;
    emit(&connector, 1, 10).await;
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| data(broker.kept()).len() == 10)
            .await
    );
    harness.broker.hold(true);
    emit(&connector, 11, 60).await;
    harness.broker.cut();
    emit(&connector, 61, 80).await;
    harness.broker.hold(false);
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| data(broker.kept()).len() == 80)
            .await
    );
    let records = data(harness.broker.kept());
    assert_eq!(sequences(&records), (1..=80).collect::<Vec<_>>());
    assert_eq!(values_of_a(&records), (1..=80).collect::<Vec<_>>());
    assert_eq!(connector.dials().len(), 1, "the device felt it");
}

#[tokio::test]
async fn a_broker_that_acknowledges_nothing_holds_the_device_back() {
    let directory = tempfile::tempdir().unwrap();
    let (harness, connector) = linked_with(RunnerOptions {
        device_budget: 16 * 1024,
        ..options(directory.path())
    })
    .await;
    harness.broker.hold(true);
    let emitter = connector.emitter().unwrap();
    let mut taken = 0;
    let refused = loop {
        match emitter.try_emit(FakeConnector::values("filler", "fast", &[("a", taken)])) {
            Ok(()) => taken += 1,
            Err(refused) => break refused,
        }
        assert!(taken < 1000, "memory is not bounded");
    };
    assert!(matches!(refused, TryEmitError::Full(_)));
    assert!(taken > 0);
    // Handed to the broker is not acknowledged: the budget stays used.
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| data(broker.kept()).len() as i64 == taken)
            .await
    );
    assert!(tokio::time::timeout(NOT_NOW, emitter.ready()).await.is_err());
    harness.broker.hold(false);
    tokio::time::timeout(SOON, emitter.ready())
        .await
        .unwrap()
        .unwrap();
    emitter
        .emit(FakeConnector::values("filler", "fast", &[("a", taken)]))
        .await
        .unwrap();
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| data(broker.kept()).len() as i64 == taken + 1)
            .await
    );
    assert_eq!(
        values_of_a(&data(harness.broker.kept())),
        (0..=taken).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_refusal_is_final_counted_and_told() {
    let directory = tempfile::tempdir().unwrap();
    let (harness, connector) = linked(directory.path()).await;
    harness.broker.judge(|record| {
        let second = record.number.as_ref().is_some_and(|number| number.sequence == 2);
        if second {
            ReasonCode::NOT_AUTHORIZED
        } else {
            ReasonCode::SUCCESS
        }
    });
    emit(&connector, 1, 2).await;
    let reason = |reports: &crate::testkit::Recorder| reports.reason("Asset", "filler", "Dataset fast");
    assert!(
        harness
            .reports
            .wait_until(SOON, |reports| reason(reports) == "PublishRefused")
            .await
    );
    let report = harness.reports.report("Asset", "filler", "Dataset fast").unwrap();
    assert!(
        report.evidence.contains("foreshore/data/plant/filler/fast: ") && report.evidence.contains("(0x87)")
    );
    assert_eq!(report.counters.get("refused"), Some(&1));
    emit(&connector, 3, 3).await;
    assert!(
        harness
            .reports
            .wait_until(SOON, |reports| reason(reports) == "Healthy")
            .await
    );
    assert_eq!(sequences(&data(harness.broker.kept())), [1, 3]);
    assert_eq!(
        data(
            harness
                .broker
                .received()
                .into_iter()
                .map(|received| received.record)
                .collect()
        )
        .len(),
        3
    );
}

#[tokio::test]
async fn a_full_broker_gets_everything_later_under_new_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let (harness, connector) = linked(directory.path()).await;
    harness.broker.judge(|record| {
        if record.number.is_some() {
            ReasonCode::QUOTA_EXCEEDED
        } else {
            ReasonCode::SUCCESS
        }
    });
    emit(&connector, 1, 5).await;
    let full = |reports: &crate::testkit::Recorder| reports.reason("Device", "line", "Endpoint") == "Backlog";
    assert!(harness.reports.wait_until(SOON, full).await);
    harness.broker.judge(|_| ReasonCode::SUCCESS);
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| data(broker.kept()).len() == 5)
            .await
    );
    let records = data(harness.broker.kept());
    assert_eq!(values_of_a(&records), [1, 2, 3, 4, 5]);
    assert!(sequences(&records)[0] > 5, "a refused number was used again");
    let healthy =
        |reports: &crate::testkit::Recorder| reports.reason("Device", "line", "Endpoint") == "Healthy";
    assert!(harness.reports.wait_until(SOON, healthy).await);
}

#[tokio::test]
async fn a_lost_link_is_made_anew_and_begins_with_all_points() {
    let directory = tempfile::tempdir().unwrap();
    let (harness, connector) = linked(directory.path()).await;
    let before = connector.emitter().unwrap();
    before
        .emit(FakeConnector::values("filler", "fast", &[("a", 1), ("b", 10)]))
        .await
        .unwrap();
    emit(&connector, 2, 2).await;
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| data(broker.kept()).len() == 2)
            .await
    );
    connector.lose(LinkError::new(LinkErrorClass::Unreachable, "cut"));
    assert!(
        connector
            .wait_until(SOON, |fake| fake.observed().len() >= 3
                || fake.dials().len() == 2 && fake.observed().last().is_some())
            .await
    );
    assert!(
        connector
            .wait_until(SOON, |fake| fake
                .emitter()
                .is_some_and(|emitter| !emitter.is_closed()))
            .await
    );
    assert!(
        harness
            .reports
            .wait_until(SOON, |reports| {
                let report = reports.report("Device", "line", "Endpoint");
                report.is_some_and(|report| {
                    report.reason == "Healthy" && report.counters.get("reconnects") == Some(&1)
                })
            })
            .await
    );
    assert!(
        before
            .emit(FakeConnector::values("filler", "fast", &[("a", 99)]))
            .await
            .is_err(),
        "the old link still speaks"
    );
    emit(&connector, 3, 3).await;
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| data(broker.kept()).len() == 3)
            .await
    );
    let last = data(harness.broker.kept()).pop().unwrap();
    assert_eq!(last.user_property(property::FRAME), Some("key"));
    assert_eq!(value::decode(&last.payload).unwrap().len(), 2);
}

#[tokio::test]
async fn an_orderly_end_hands_everything_over_and_a_new_life_has_a_larger_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let mut epochs = Vec::new();
    for _ in 0..2 {
        let (harness, connector) = linked(directory.path()).await;
        harness.broker.hold(true);
        emit(&connector, 1, 100).await;
        harness.broker.hold(false);
        let broker = harness.stop(SOON).await;
        let records = data(broker.kept());
        assert_eq!(values_of_a(&records), (1..=100).collect::<Vec<_>>());
        assert_eq!(connector.closed(), 1);
        epochs.push(records[0].number.as_ref().unwrap().epoch);
    }
    assert!(epochs[1] > epochs[0], "{epochs:?}");
}
