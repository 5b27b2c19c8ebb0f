use foreshore_mqtt::{RequestError, Requester};
use foreshore_record::{CommandError, CommandErrorCode, TopicName, property};
use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::*;
use crate::contract::{LinkError, LinkErrorClass};

fn command(action: &str, input: &Value) -> Record {
    let topic = TopicName::new(format!("foreshore/commands/plant/filler/{action}")).unwrap();
    let payload = if input.is_null() {
        Vec::new()
    } else {
        serde_json::to_vec(input).unwrap()
    };
    Record::new(topic, payload)
}

fn keyed(action: &str, input: &Value, key: &str) -> Record {
    let mut record = command(action, input);
    record.properties.push_user(property::IDEMPOTENCY_KEY, key);
    record
}

/// Commands can be sent: the connector listens.
async fn requester(harness: &Harness) -> (Requester, foreshore_runtime::Task<()>) {
    let filter = "foreshore/commands/plant/filler/+/+".to_owned();
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| broker.filters().contains(&filter))
            .await
    );
    let (client, task) = harness.client("tester").unwrap();
    let topic = TopicName::new("foreshore/responses/tester").unwrap();
    (Requester::new(&client, topic).await.unwrap(), task)
}

async fn ask(requester: &Requester, request: Record) -> Result<Value, CommandError> {
    let response = requester.request(request, SOON).await.unwrap();
    match response.user_property(property::COMMAND_STATUS) {
        Some("ok") => Ok(serde_json::from_slice(&response.payload).unwrap()),
        _ => Err(serde_json::from_slice(&response.payload).unwrap()),
    }
}

async fn code(requester: &Requester, request: Record) -> CommandErrorCode {
    ask(requester, request).await.unwrap_err().code
}

#[tokio::test]
async fn commands_are_judged_carried_out_and_answered() {
    let directory = tempfile::tempdir().unwrap();
    let (harness, connector) = linked(directory.path()).await;
    let (requester, _task) = requester(&harness).await;
    connector.on_invoke(|invocation| {
        async move { Ok(json!({ "did": invocation.action, "with": invocation.input })) }.boxed()
    });
    let mut request = command("ops/start", &json!({ "program": 3 }));
    request.properties.push_user(property::ACTOR, "anna");
    let done = ask(&requester, request).await.unwrap();
    assert_eq!(done, json!({ "did": "start", "with": { "program": 3 } }));
    assert_eq!(connector.invocations()[0].actor, "anna");

    let absent = ask(&requester, command("ops/stop", &Value::Null))
        .await
        .unwrap_err();
    assert_eq!(absent.code, CommandErrorCode::NotFound);
    assert!(
        absent.message.contains("it has ops/start, ops/speed, ops/state"),
        "{absent}"
    );
    assert_eq!(
        code(&requester, command("ops/start", &json!(7))).await,
        CommandErrorCode::InvalidInput
    );
    assert_eq!(
        code(&requester, command("ops/state", &json!({ "x": 1 }))).await,
        CommandErrorCode::InvalidInput
    );
    let mut late = command("ops/start", &Value::Null);
    let past = Timestamp::now()
        .checked_sub(SignedDuration::from_secs(1))
        .unwrap();
    late.properties.push_user(property::DEADLINE, past.to_string());
    assert_eq!(code(&requester, late).await, CommandErrorCode::DeadlineExceeded);
    assert_eq!(
        connector.invocations().len(),
        1,
        "something that must not begin began"
    );
    let metrics = harness.metrics.encode().unwrap();
    assert!(
        metrics.contains(r#"asset="filler",status="DeadlineExceeded"} 1"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_repeat_is_answered_with_the_first_outcome() {
    let directory = tempfile::tempdir().unwrap();
    let (harness, connector) = linked(directory.path()).await;
    let (requester, _task) = requester(&harness).await;
    connector.on_invoke(|_| {
        async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(json!(Timestamp::now().to_string()))
        }
        .boxed()
    });
    let request = || keyed("ops/start", &json!({}), "k1");
    let (first, meanwhile) = tokio::join!(ask(&requester, request()), ask(&requester, request()));
    let first = first.unwrap();
    assert_eq!(
        (meanwhile.unwrap(), ask(&requester, request()).await.unwrap()),
        (first.clone(), first)
    );
    assert_eq!(connector.invocations().len(), 1);
    let other = keyed("ops/start", &json!({ "other": 1 }), "k1");
    assert_eq!(code(&requester, other).await, CommandErrorCode::InvalidInput);
    ask(&requester, keyed("ops/start", &json!({}), "k2"))
        .await
        .unwrap();
    assert_eq!(connector.invocations().len(), 2);
}

#[tokio::test]
async fn what_was_begun_before_a_crash_is_unknown_unless_it_may_be_repeated() {
    let directory = tempfile::tempdir().unwrap();
    {
        let (harness, connector) = linked(directory.path()).await;
        let (requester, _task) = requester(&harness).await;
        connector.on_invoke(|_| std::future::pending().boxed());
        for action in ["ops/start", "ops/speed"] {
            let lost = requester.request(keyed(action, &json!({}), "k"), NOT_NOW).await;
            assert!(matches!(lost, Err(RequestError::Timeout { .. })));
        }
        assert!(
            connector
                .wait_until(SOON, |fake| fake.invocations().len() == 2)
                .await
        );
        // As a crash would: nothing is finished.
        harness.stop(Duration::ZERO).await;
    }
    let (harness, connector) = linked(directory.path()).await;
    let (requester, _task) = requester(&harness).await;
    assert_eq!(
        code(&requester, keyed("ops/start", &json!({}), "k")).await,
        CommandErrorCode::Unknown
    );
    assert!(connector.invocations().is_empty());
    ask(&requester, keyed("ops/speed", &json!({}), "k"))
        .await
        .unwrap();
    assert_eq!(connector.invocations().len(), 1);
}

#[tokio::test]
async fn a_device_without_a_link_is_unavailable_at_once_and_the_key_stays_free() {
    let directory = tempfile::tempdir().unwrap();
    let (harness, connector) = linked(directory.path()).await;
    let (requester, _task) = requester(&harness).await;
    connector.refuse_dials(Some(LinkError::new(LinkErrorClass::Unreachable, "switched off")));
    connector.lose(LinkError::new(LinkErrorClass::Unreachable, "cut"));
    assert_endpoint_becomes(&harness, "Unreachable").await;
    let error = ask(&requester, keyed("ops/start", &json!({}), "k"))
        .await
        .unwrap_err();
    assert_eq!(error.code, CommandErrorCode::Unavailable);
    assert!(
        error
            .message
            .starts_with("the device is not connected: Unreachable"),
        "{error}"
    );
    connector.refuse_dials(None);
    assert_endpoint_becomes(&harness, "Healthy").await;
    ask(&requester, keyed("ops/start", &json!({}), "k"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_protocol_that_fails_or_hangs_is_answered_for() {
    let directory = tempfile::tempdir().unwrap();
    let (mut harness, connector) = linked(directory.path()).await;
    let (requester, _task) = requester(&harness).await;
    connector.on_invoke(|_| async { panic!("a fault of the protocol") }.boxed());
    let error = ask(&requester, command("ops/start", &Value::Null))
        .await
        .unwrap_err();
    assert!(
        error.code == CommandErrorCode::Unknown && error.message.contains("a fault of the protocol"),
        "{error}"
    );
    let mut quick = filler();
    quick.spec.action_groups[0].timeout = Some("50ms".parse().unwrap());
    harness.set(&quick).await.unwrap();
    connector.on_invoke(|_| std::future::pending().boxed());
    let error = ask(&requester, command("ops/start", &Value::Null))
        .await
        .unwrap_err();
    assert!(
        error.code == CommandErrorCode::Unknown && error.message.contains("no answer within 0.05 s"),
        "{error}"
    );
}

#[tokio::test]
async fn request_schemas_are_retained_and_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let (mut harness, _connector) = linked(directory.path()).await;
    let schemas = |records: Vec<Record>| {
        let of_schemas = |record: &Record| {
            record
                .topic
                .as_str()
                .starts_with("foreshore/schemas/plant/filler/ops/")
        };
        records.into_iter().filter(of_schemas).collect::<Vec<_>>()
    };
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| schemas(broker.kept()).len() == 3)
            .await
    );
    let published = schemas(harness.broker.kept());
    assert!(
        published
            .iter()
            .all(|record| record.retain && record.number.is_none())
    );
    let document: Value = serde_json::from_slice(&published[0].payload).unwrap();
    assert_eq!(document["$schema"], crate::schema::DIALECT);
    assert!(
        harness
            .reports
            .wait_until(SOON, |reports| reports.schemas() == 3)
            .await
    );
    // Also when the broker is away at that moment.
    harness.broker.down(true);
    harness.remove(&filler()).await.unwrap();
    harness.broker.down(false);
    assert!(
        harness
            .broker
            .wait_until(SOON, |broker| {
                schemas(broker.kept())
                    .iter()
                    .filter(|record| record.payload.is_empty())
                    .count()
                    == 3
            })
            .await
    );
}
