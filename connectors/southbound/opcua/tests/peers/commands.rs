//! Writes, reads and methods, asked for over MQTT.

use foreshore_mqtt::Requester;
use foreshore_record::{CommandError, CommandErrorCode, Record, TopicName, property};
use serde_json::{Value, json};

use crate::{
    plant::{ASSET, Plant, Security, device_spec, node},
    server::{Kind, SOON, Server},
};

fn spec() -> Value {
    let object = format!("nsu={};s=Line", crate::plant::NAMESPACE);
    let call = |name: &str, method: &str| json!({ "name": name, "type": "Call", "target": node(method), "opcua": { "objectId": object } });
    let access =
        |name: &str, kind: &str, target: &str| json!({ "name": name, "type": kind, "target": node(target) });
    json!({ "actionGroups": [{ "name": "control", "actions": [
        call("add", "Add"),
        call("fail", "Fail"),
        access("set", "Write", "Setpoint"),
        access("get", "Read", "Setpoint"),
        access("set-recipe", "Write", "Recipe"),
        access("get-recipe", "Read", "Recipe"),
        access("set-counter", "Write", "Counter"),
        access("set-status", "Write", "Status"),
        access("get-status", "Read", "Status"),
        access("get-nothing", "Read", "Nowhere"),
    ] }] })
}

struct Operator {
    requester: Requester,
    _client: foreshore_runtime::Task<()>,
}

impl Operator {
    async fn of(plant: &Plant) -> Self {
        let filter = format!("foreshore/commands/plant/{ASSET}/+/+");
        let listens = |broker: &foreshore_mqtt::testing::StandIn| broker.filters().contains(&filter);
        assert!(plant.harness.broker.wait_until(SOON, listens).await);
        let (client, task) = plant.harness.client("operator").unwrap();
        let topic = TopicName::new("foreshore/responses/operator").unwrap();
        Self {
            requester: Requester::new(&client, topic).await.unwrap(),
            _client: task,
        }
    }

    async fn ask(&self, action: &str, input: Value) -> Result<Value, CommandError> {
        let topic = format!("foreshore/commands/plant/{ASSET}/control/{action}");
        let request = Record::new(
            TopicName::new(topic).unwrap(),
            serde_json::to_vec(&input).unwrap(),
        );
        let response = self.requester.request(request, SOON).await.unwrap();
        match response.user_property(property::COMMAND_STATUS) {
            Some("ok") => Ok(serde_json::from_slice(&response.payload).unwrap()),
            _ => Err(serde_json::from_slice(&response.payload).unwrap()),
        }
    }

    /// Kind, text and status of a failure.
    async fn fails(&self, action: &str, input: Value) -> (CommandErrorCode, String, String) {
        let error = self.ask(action, input).await.unwrap_err();
        (error.code, error.message, error.device_status.unwrap_or_default())
    }
}

async fn commands_are_carried_out(kind: Kind, security: Security) {
    let server = Server::start(kind, &[]);
    let plant = Plant::start(&server, &server.address(), device_spec(security), spec()).await;
    plant.wait_for_reason("Healthy").await;
    let operator = Operator::of(&plant).await;

    assert_eq!(operator.ask("set", json!(42.5)).await.unwrap(), Value::Null);
    assert_eq!(
        operator.ask("get", Value::Null).await.unwrap()["Value"],
        json!(42.5)
    );
    operator.ask("set-recipe", json!([9, 8])).await.unwrap();
    assert_eq!(
        operator.ask("get-recipe", Value::Null).await.unwrap()["Value"],
        json!([9, 8])
    );
    assert_eq!(
        operator.ask("get-status", Value::Null).await.unwrap()["Value"]["Position"],
        json!({ "X": 1.0, "Y": 2.0 })
    );
    let sum = operator.ask("add", json!({ "a": 40, "b": 2 })).await.unwrap();
    assert_eq!(sum, json!({ "sum": 42 }));

    refusals_are_named(&operator).await;
}

async fn refusals_are_named(operator: &Operator) {
    use CommandErrorCode::{DeviceFailed, InvalidInput};
    let (code, message, _) = operator.fails("set", json!("much")).await;
    assert_eq!(
        (code, message.as_str()),
        (
            InvalidInput,
            r#"found "much", a value of the type Double is allowed"#
        )
    );
    let (code, message, _) = operator.fails("add", json!({ "a": 1.5, "b": 2 })).await;
    assert!(code == InvalidInput && message.contains("1.5"), "{message}");
    let (code, message, _) = operator.fails("add", json!({ "a": 1 })).await;
    assert!(code == InvalidInput && message.contains('b'), "{message}");
    let (code, message, _) = operator.fails("add", json!({ "a": 1, "b": 2, "c": 3 })).await;
    assert!(code == InvalidInput && message.contains('c'), "{message}");
    let (code, message, _) = operator.fails("set-status", json!({})).await;
    assert!(code == InvalidInput && message.contains("structure"), "{message}");
    let (code, _, status) = operator.fails("fail", json!({})).await;
    assert_eq!((code, status.as_str()), (DeviceFailed, "BadOutOfRange"));
    let (code, _, status) = operator.fails("get-nothing", Value::Null).await;
    assert_eq!((code, status.as_str()), (DeviceFailed, "BadNodeIdUnknown"));
    let (code, _, status) = operator.fails("set-counter", json!(1)).await;
    assert_eq!(code, DeviceFailed);
    assert!(
        ["BadNotWritable", "BadUserAccessDenied"].contains(&status.as_str()),
        "{status}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_on_asyncua() {
    commands_are_carried_out(Kind::Asyncua, Security::SignAndEncrypt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_on_node_opcua() {
    commands_are_carried_out(Kind::Node, Security::None).await;
}
