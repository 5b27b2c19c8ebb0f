//! A device goes from one runner to another.

use foreshore_control::{GivePlan, HandOver, Stage, TakePlan, Turn};
use foreshore_record::DataValue;
use jiff::Timestamp;

use super::*;
use crate::{
    contract::{LinkError, LinkErrorClass},
    observation::{DatasetValues, Event, Observation},
};

fn take(number: u64, turn: Turn) -> TakePlan {
    TakePlan {
        namespace: "plant".into(),
        device: "line".into(),
        number,
        turn,
    }
}

fn give(number: u64, overlap: bool) -> GivePlan {
    GivePlan {
        namespace: "plant".into(),
        device: "line".into(),
        number,
        overlap,
    }
}

/// What a device says of itself is the same for all who ask.
fn reading(point: &str, number: i64) -> Observation {
    let value = DataValue::good(number, Timestamp::from_second(1_000 + number).unwrap());
    Observation::Dataset(DatasetValues {
        asset: "filler".into(),
        dataset: "fast".into(),
        values: vec![(point.into(), value)],
    })
}

async fn see(connector: &FakeConnector, numbers: std::ops::RangeInclusive<i64>) {
    let emitter = connector.emitter().unwrap();
    for number in numbers {
        emitter.emit(reading("a", number)).await.unwrap();
    }
}

async fn told(harness: &Harness, stage: Stage) -> HandOver {
    let is = |reports: &Recorder| reports.hand_over("line").is_some_and(|told| told.stage == stage);
    let found = harness.reports.wait_until(SOON, is).await;
    assert!(found, "{stage:?}, but {:?}", harness.reports.hand_over("line"));
    harness.reports.hand_over("line").unwrap()
}

async fn kept(harness: &Harness, count: usize) -> Vec<i64> {
    let enough = |broker: &foreshore_mqtt::testing::StandIn| data(broker.kept()).len() >= count;
    assert!(harness.broker.wait_until(SOON, enough).await);
    tokio::time::sleep(NOT_NOW).await;
    values_of_a(&data(harness.broker.kept()))
}

/// One that waits for its turn with the device.
async fn heir(directory: &Path) -> (Harness, FakeConnector) {
    let connector = FakeConnector::default();
    connector.overlap();
    let mut harness = harness(&connector, options(directory)).await;
    harness.set(&take(7, Turn::Wait)).await.unwrap();
    harness.set(&line()).await.unwrap();
    harness.set(&filler()).await.unwrap();
    assert_one_asset_is_observed(&connector).await;
    (harness, connector)
}

#[tokio::test]
async fn what_the_owner_has_handed_over_the_heir_leaves_out() {
    let directories = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut owner, owners) = linked(directories.0.path()).await;
    let serving = told(&owner, Stage::Serving).await;
    see(&owners, 1..=5).await;
    let (mut heir, heirs) = heir(directories.1.path()).await;
    assert_eq!(told(&heir, Stage::Ready).await.number, 7);
    // Both see the same from now on, the owner a little less.
    see(&heirs, 5..=9).await;
    see(&owners, 6..=8).await;
    owner.set(&give(7, true)).await.unwrap();
    // It goes on for a while.
    see(&owners, 9..=9).await;
    let given = told(&owner, Stage::Given).await;
    assert_eq!((given.number, given.epoch), (7, serving.epoch));
    assert_eq!(kept(&owner, 9).await, (1..=9).collect::<Vec<_>>());
    assert!(data(heir.broker.kept()).is_empty(), "before its turn");

    see(&heirs, 10..=11).await;
    let after = Turn::after(given.epoch, &given.watermark);
    heir.set(&take(7, after)).await.unwrap();
    assert!(told(&heir, Stage::Serving).await.epoch > given.epoch);
    see(&heirs, 12..=12).await;
    assert_eq!(kept(&heir, 3).await, [10, 11, 12]);
    let records = data(heir.broker.kept());
    assert_eq!(
        records[0].user_property(foreshore_record::property::FRAME),
        Some("delta"),
        "whoever listens has had all points"
    );
    let report = heir.reports.report("Device", "line", "Endpoint").unwrap();
    assert_eq!(report.counters.get("gaps"), None);
    // The owner has nothing more to do with it.
    let silent = |reports: &Recorder| reports.report("Device", "line", "Endpoint").is_none();
    assert!(owner.reports.wait_until(SOON, silent).await);
    owner.remove(&line()).await.unwrap();
    assert_eq!(owner.reports.hand_over("line"), None);
    assert_eq!(owners.closed(), 1);
}

#[tokio::test]
async fn an_heir_that_came_too_late_tells_the_gap() {
    let directories = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut owner, owners) = linked(directories.0.path()).await;
    see(&owners, 1..=3).await;
    owner.set(&give(7, false)).await.unwrap();
    let given = told(&owner, Stage::Given).await;
    let connector = FakeConnector::default();
    let mut heir = harness(&connector, options(directories.1.path())).await;
    let after = Turn::after(given.epoch, &given.watermark);
    heir.set(&take(7, after)).await.unwrap();
    heir.set(&line()).await.unwrap();
    heir.set(&filler()).await.unwrap();
    assert_one_asset_is_observed(&connector).await;
    see(&connector, 6..=7).await;
    assert_eq!(kept(&heir, 2).await, [6, 7]);
    let counted = |reports: &Recorder| {
        let report = reports.report("Asset", "filler", "Dataset fast");
        report.is_some_and(|report| report.counters.get("gaps") == Some(&1))
    };
    assert!(heir.reports.wait_until(SOON, counted).await);
}

#[tokio::test]
async fn what_nobody_knows_is_a_gap_of_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let (mut heir, heirs) = heir(directory.path()).await;
    see(&heirs, 1..=2).await;
    heir.set(&take(8, Turn::Lost { epoch: u64::MAX / 2 }))
        .await
        .unwrap();
    assert!(told(&heir, Stage::Serving).await.epoch > u64::MAX / 2);
    assert_eq!(kept(&heir, 2).await, [1, 2]);
    let counted = |reports: &Recorder| {
        let report = reports.report("Device", "line", "Endpoint");
        report.is_some_and(|report| report.counters.get("gaps") == Some(&1))
    };
    assert!(heir.reports.wait_until(SOON, counted).await);
}

#[tokio::test]
async fn who_can_not_overlap_says_so_and_dials_when_it_is_its_turn() {
    let directory = tempfile::tempdir().unwrap();
    let connector = FakeConnector::default();
    let mut heir = harness(&connector, options(directory.path())).await;
    heir.set(&take(7, Turn::Wait)).await.unwrap();
    heir.set(&line()).await.unwrap();
    heir.set(&filler()).await.unwrap();
    told(&heir, Stage::Refused).await;
    assert!(connector.dials().is_empty());
    heir.set(&take(7, Turn::Lost { epoch: 1 })).await.unwrap();
    assert_one_asset_is_observed(&connector).await;
    told(&heir, Stage::Serving).await;
}

#[tokio::test]
async fn a_server_with_room_for_one_session_refuses_the_second() {
    let directory = tempfile::tempdir().unwrap();
    let connector = FakeConnector::default();
    connector.overlap();
    let full = LinkError::new(LinkErrorClass::Configuration, "the session did not open");
    connector.refuse_dials(Some(full.with_evidence("BadTooManySessions")));
    let mut heir = harness(&connector, options(directory.path())).await;
    heir.set(&take(7, Turn::Wait)).await.unwrap();
    heir.set(&line()).await.unwrap();
    assert_eq!(told(&heir, Stage::Refused).await.number, 7);
    // The next hand-over is answered too.
    heir.set(&take(9, Turn::Wait)).await.unwrap();
    assert_eq!(told(&heir, Stage::Refused).await.number, 9);
}

#[tokio::test]
async fn what_was_given_can_be_kept_after_all() {
    let directory = tempfile::tempdir().unwrap();
    let (mut owner, owners) = linked(directory.path()).await;
    see(&owners, 1..=3).await;
    owner.set(&give(7, false)).await.unwrap();
    let given = told(&owner, Stage::Given).await;
    let links = owners.observed().len();
    owner.remove(&give(7, false)).await.unwrap();
    assert!(
        owners
            .wait_until(SOON, |fake| fake.observed().len() > links)
            .await
    );
    assert!(told(&owner, Stage::Serving).await.epoch > given.epoch);
    see(&owners, 3..=4).await;
    assert_eq!(kept(&owner, 4).await, [1, 2, 3, 4]);
}

/// A process that begins again after its device was to be given does not serve it, and does not know what the one before
/// has handed over.
#[tokio::test]
async fn a_process_that_begins_with_an_order_to_give_knows_no_watermark() {
    let directory = tempfile::tempdir().unwrap();
    let connector = FakeConnector::default();
    let mut owner = harness(&connector, options(directory.path())).await;
    owner.set(&give(7, true)).await.unwrap();
    owner.set(&line()).await.unwrap();
    owner.set(&filler()).await.unwrap();
    let given = told(&owner, Stage::Given).await;
    assert_eq!((given.number, given.watermark.len()), (7, 0));
    assert_eq!(
        Turn::after(given.epoch, &given.watermark),
        Turn::Lost { epoch: given.epoch }
    );
    tokio::time::sleep(NOT_NOW).await;
    assert!(data(owner.broker.kept()).is_empty());
}

/// An order of an earlier hand-over that is still there, as in a process that ended before it was gone.
#[tokio::test]
async fn an_old_order_to_give_does_not_open_the_gate() {
    let directory = tempfile::tempdir().unwrap();
    let connector = FakeConnector::default();
    connector.overlap();
    let mut heir = harness(&connector, options(directory.path())).await;
    heir.set(&give(6, true)).await.unwrap();
    heir.set(&take(7, Turn::Wait)).await.unwrap();
    heir.set(&line()).await.unwrap();
    heir.set(&filler()).await.unwrap();
    assert_eq!(told(&heir, Stage::Ready).await.number, 7);
    assert_one_asset_is_observed(&connector).await;
    heir.remove(&give(6, true)).await.unwrap();
    see(&connector, 1..=2).await;
    tokio::time::sleep(NOT_NOW).await;
    assert!(data(heir.broker.kept()).is_empty(), "before its turn");
    assert_eq!(told(&heir, Stage::Ready).await.number, 7);
}

#[tokio::test]
async fn an_event_that_both_saw_is_told_once() {
    let directories = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let camera = asset(
        "camera",
        "line",
        json!({ "eventGroups": [{ "name": "motion", "events": [{ "name": "alarm" }] }] }),
    )
    .unwrap();
    let event = |second: i64| {
        Observation::Event(Event {
            asset: "camera".into(),
            group: "motion".into(),
            event: "alarm".into(),
            time: Timestamp::from_second(second).unwrap(),
            source: "input".into(),
            body: json!({ "State": true }).as_object().unwrap().clone(),
        })
    };
    let events = |harness: &Harness| {
        let kept = harness.broker.kept();
        let events = kept
            .iter()
            .filter(|record| record.topic.as_str().starts_with("foreshore/events/"));
        events.count()
    };
    let (mut owner, owners) = linked(directories.0.path()).await;
    owner.set(&camera).await.unwrap();
    let two = |fake: &FakeConnector| fake.observed().last().is_some_and(|assets| assets.len() == 2);
    assert!(owners.wait_until(SOON, two).await);
    let (mut heir, heirs) = heir(directories.1.path()).await;
    heir.set(&camera).await.unwrap();
    assert!(heirs.wait_until(SOON, two).await);
    for second in [1, 2] {
        owners.emitter().unwrap().emit(event(second)).await.unwrap();
    }
    for second in [2, 3] {
        heirs.emitter().unwrap().emit(event(second)).await.unwrap();
    }
    owner.set(&give(7, true)).await.unwrap();
    let given = told(&owner, Stage::Given).await;
    heir.set(&take(7, Turn::after(given.epoch, &given.watermark)))
        .await
        .unwrap();
    assert!(heir.broker.wait_until(SOON, |_| events(&heir) == 1).await);
    tokio::time::sleep(NOT_NOW).await;
    assert_eq!((events(&owner), events(&heir)), (2, 1));
}

#[tokio::test]
async fn what_is_held_back_is_not_handed_over_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let (heir, heirs) = heir(directory.path()).await;
    see(&heirs, 1..=3).await;
    let broker = heir.stop(Duration::from_secs(10)).await;
    assert!(data(broker.kept()).is_empty());
}
