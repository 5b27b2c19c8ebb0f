use super::*;
use crate::{
    contract::{LinkError, LinkErrorClass, Refusal},
    endpoint::Credentials,
    testkit::secret,
};

fn with_password(mut device: DevicePlan) -> DevicePlan {
    device.spec.authentication =
        serde_json::from_value(json!({ "usernamePassword": { "secretRef": { "name": "plc" } } })).unwrap();
    device
}

fn password(connector: &FakeConnector) -> String {
    match connector.dials().last().unwrap().credentials.clone() {
        Credentials::UsernamePassword { password, .. } => password,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_changed_asset_is_observed_without_a_new_link() {
    let directory = tempfile::tempdir().unwrap();
    let (mut harness, connector) = linked(directory.path()).await;
    let calls = connector.observed().len();
    let mut changed = filler();
    changed.object.generation = 2;
    changed.spec.datasets.push(
        serde_json::from_value(json!({ "name": "slow", "dataPoints": [{ "name": "c", "address": "3" }] }))
            .unwrap(),
    );
    harness.set(&changed).await.unwrap();
    assert!(
        connector
            .wait_until(SOON, |fake| fake.observed().len() > calls)
            .await
    );
    assert!(
        harness
            .reports
            .wait_until(SOON, |reports| {
                reports
                    .report("Asset", "filler", "Dataset slow")
                    .is_some_and(|report| report.observed_generation == 2)
            })
            .await
    );
    harness.remove(&changed).await.unwrap();
    assert!(
        connector
            .wait_until(SOON, |fake| fake.observed().last().unwrap().is_empty())
            .await
    );
    assert!(
        harness
            .reports
            .wait_until(SOON, |reports| reports.len() == 1)
            .await
    );
    assert_eq!(connector.dials().len(), 1);
}

#[tokio::test]
async fn another_address_needs_another_link_and_a_disabled_device_none() {
    let directory = tempfile::tempdir().unwrap();
    let (mut harness, connector) = linked(directory.path()).await;
    let mut moved = line();
    moved.address = "fake://elsewhere".into();
    harness.set(&moved).await.unwrap();
    assert!(connector.wait_until(SOON, |fake| fake.dials().len() == 2).await);
    assert_eq!(connector.dials()[1].address, "fake://elsewhere");
    moved.spec.enabled = Some(false);
    harness.set(&moved).await.unwrap();
    assert!(connector.wait_until(SOON, |fake| fake.closed() == 2).await);
    assert_endpoint_becomes(&harness, "Disabled").await;
    moved.spec.enabled = None;
    harness.set(&moved).await.unwrap();
    assert!(connector.wait_until(SOON, |fake| fake.dials().len() == 3).await);
}

#[tokio::test]
async fn a_removed_device_ends_and_one_of_its_name_begins_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut harness, connector) = linked(directory.path()).await;
    harness.remove(&filler()).await.unwrap();
    harness.remove(&line()).await.unwrap();
    assert!(connector.wait_until(SOON, |fake| fake.closed() == 1).await);
    assert!(
        harness
            .reports
            .wait_until(SOON, crate::testkit::Recorder::is_empty)
            .await
    );
    harness.set(&line()).await.unwrap();
    harness.set(&filler()).await.unwrap();
    assert!(connector.wait_until(SOON, |fake| fake.dials().len() == 2).await);
}

#[tokio::test]
async fn a_wrong_password_is_not_tried_again_until_the_secret_changes() {
    let directory = tempfile::tempdir().unwrap();
    let connector = FakeConnector::default();
    let mut harness = harness(&connector, options(directory.path())).await;
    connector.refuse_dials(Some(
        LinkError::new(LinkErrorClass::AuthenticationRefused, "login refused")
            .with_evidence("BadUserAccessDenied"),
    ));
    harness
        .set(&secret("plc", &[("username", "op"), ("password", "wrong")]))
        .await
        .unwrap();
    harness.set(&with_password(line())).await.unwrap();
    let refused = |reports: &crate::testkit::Recorder| {
        reports.reason("Device", "line", "Endpoint") == "AuthenticationFailed"
    };
    assert!(harness.reports.wait_until(SOON, refused).await);
    let report = harness.reports.report("Device", "line", "Endpoint").unwrap();
    assert_eq!(report.evidence, "login refused: BadUserAccessDenied");
    // The short waits of an unreachable device (20 ms) would have shown by now.
    assert!(
        !connector
            .wait_until(Duration::from_millis(500), |fake| fake.dials().len() > 1)
            .await
    );
    // A change of an asset is no reason to try a password again.
    harness.set(&filler()).await.unwrap();
    assert!(!connector.wait_until(NOT_NOW, |fake| fake.dials().len() > 1).await);
    connector.refuse_dials(None);
    harness
        .set(&secret("plc", &[("username", "op"), ("password", "right")]))
        .await
        .unwrap();
    assert_one_asset_is_observed(&connector).await;
    assert_eq!(
        (connector.dials().len(), password(&connector).as_str()),
        (2, "right")
    );
}

#[tokio::test]
async fn a_secret_that_changes_makes_a_new_link_and_one_that_is_missing_none() {
    let directory = tempfile::tempdir().unwrap();
    let connector = FakeConnector::default();
    let mut harness = harness(&connector, options(directory.path())).await;
    harness.set(&with_password(line())).await.unwrap();
    let missing =
        |reports: &crate::testkit::Recorder| reports.reason("Device", "line", "Endpoint") == "SecretNotFound";
    assert!(harness.reports.wait_until(SOON, missing).await);
    assert!(connector.dials().is_empty());
    let first = secret("plc", &[("username", "op"), ("password", "1")]);
    harness.set(&first).await.unwrap();
    assert!(
        connector
            .wait_until(SOON, |fake| !fake.observed().is_empty())
            .await
    );
    harness
        .set(&secret("plc", &[("username", "op"), ("password", "2")]))
        .await
        .unwrap();
    assert!(connector.wait_until(SOON, |fake| fake.dials().len() == 2).await);
    assert_eq!(password(&connector), "2");
    harness.remove(&first).await.unwrap();
    assert!(connector.wait_until(SOON, |fake| fake.closed() == 2).await);
    assert!(harness.reports.wait_until(SOON, missing).await);
}

#[tokio::test]
async fn an_unreachable_device_is_dialled_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let connector = FakeConnector::default();
    connector.refuse_dials(Some(LinkError::new(LinkErrorClass::Unreachable, "no route")));
    let mut harness = harness(&connector, options(directory.path())).await;
    harness.set(&line()).await.unwrap();
    harness.set(&filler()).await.unwrap();
    assert!(connector.wait_until(SOON, |fake| fake.dials().len() > 5).await);
    assert!(
        harness
            .reports
            .wait_until(SOON, |reports| reports.reason("Asset", "filler", "Dataset fast")
                == "Unreachable")
            .await
    );
    connector.refuse_dials(None);
    assert!(
        harness
            .reports
            .wait_until(SOON, |reports| reports.reason("Asset", "filler", "Dataset fast")
                == "Healthy")
            .await
    );
}

#[tokio::test]
async fn what_can_not_be_done_is_refused_and_the_rest_runs_on() {
    let directory = tempfile::tempdir().unwrap();
    let (mut harness, connector) = linked(directory.path()).await;
    let foreign = device("other", "opc.tcp://x", json!({ "opcua": {} })).unwrap();
    let nack = harness.set(&foreign).await.unwrap_err();
    assert!(
        nack.message
            .contains("found protocol opcua, this connector speaks fake"),
        "{nack}"
    );

    let mut bad = filler();
    bad.spec.destination = serde_json::from_value(json!({ "topic": "a/{nowhere}" })).unwrap();
    let nack = harness.set(&bad).await.unwrap_err();
    assert!(nack.message.starts_with("spec.destination.topic: "), "{nack}");

    connector.judge(|_, assets| {
        let slow = |asset: &&Arc<AssetPlan>| {
            asset
                .spec
                .datasets
                .iter()
                .any(|dataset| dataset.name.as_str() == "bad")
        };
        assets
            .iter()
            .filter(slow)
            .map(|asset| Refusal::asset(asset, "spec.datasets[0].name", "found bad"))
            .collect()
    });
    let mut refused = filler();
    refused.spec.datasets[0].name = "bad".into();
    let nack = harness.set(&refused).await.unwrap_err();
    assert_eq!(
        (nack.reason.as_ref(), nack.message.as_str()),
        ("Invalid", "spec.datasets[0].name: found bad")
    );

    // The last good version is in force.
    connector
        .emitter()
        .unwrap()
        .emit(FakeConnector::values("filler", "fast", &[("a", 1)]))
        .await
        .unwrap();
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| data(broker.kept()).len() == 1)
            .await
    );
    assert_eq!((connector.dials().len(), connector.closed()), (1, 0));
}
