use serde_json::json;

use super::*;

fn device(spec: Value) -> Value {
    json!({"apiVersion": API_VERSION, "kind": "Device", "metadata": {"name": "d"}, "spec": spec})
}

fn problems(document: &Value) -> Vec<String> {
    judge(document)
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn every_definition_and_rule_compiles() {
    let judge = Judge::new().unwrap();
    assert_eq!(judge.definitions.len(), KINDS.len());
    fn no_errors(kind: Kind, node: &kube_cel::CompiledSchema) {
        assert!(
            node.compilation_errors().is_empty(),
            "{kind}: {:?}",
            node.compilation_errors()
        );
        node.properties.values().for_each(|child| no_errors(kind, child));
        node.items
            .iter()
            .chain(&node.additional_properties)
            .for_each(|child| no_errors(kind, child));
    }
    for (kind, definition) in &judge.definitions {
        no_errors(*kind, &definition.rules);
    }
}

#[test]
fn a_right_document_comes_in_the_type_of_its_kind() {
    let document = device(json!({"address": "opc.tcp://plc:4840", "opcua": {"securityPolicy": null}}));
    let accepted = judge(&document).unwrap();
    let Resource::Device(device) = accepted.resource else {
        panic!("another kind")
    };
    assert_eq!(device.spec.address.as_deref(), Some("opc.tcp://plc:4840"));
    assert_eq!(device.spec.opcua.unwrap().security_policy, None);
}

#[test]
fn unknown_fields_are_told_with_the_nearest_name() {
    let document =
        device(json!({"adress": "opc.tcp://plc:4840", "address": "opc.tcp://plc:4840", "opcua": {}}));
    let found = problems(&document);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("spec.adress: found the unknown field adress, allowed address,"),
        "{found:?}"
    );
    assert!(found[0].ends_with("did you mean address?"), "{found:?}");
}

#[test]
fn unknown_kinds_and_versions_are_told_with_the_nearest_name() {
    let mut document = device(json!({}));
    document["kind"] = "Devise".into();
    assert!(problems(&document)[0].ends_with("did you mean Device?"));
    document["apiVersion"] = "foreshore.dev/v1".into();
    assert_eq!(
        problems(&document),
        ["apiVersion: found \"foreshore.dev/v1\", allowed foreshore.dev/v1alpha1"]
    );
    assert_eq!(
        problems(&Value::Null)[0],
        "apiVersion: found nothing, allowed foreshore.dev/v1alpha1"
    );
}

#[test]
fn a_status_in_a_manifest_is_no_matter() {
    let mut document = device(json!({"address": "opc.tcp://plc:4840", "opcua": {}}));
    document["status"] = json!({"anything": 1});
    assert!(judge(&document).is_ok());
}

#[test]
fn large_objects_are_refused() {
    let mut document = device(json!({"address": "opc.tcp://plc:4840", "opcua": {}}));
    document["metadata"]["annotations"] = json!({"a": "x".repeat(MAX_OBJECT)});
    assert_eq!(judge(&document).unwrap_err()[0].kind, ProblemKind::TooLarge);
}

#[test]
fn expressions_are_judged_at_their_place() {
    let document = json!({"apiVersion": API_VERSION, "kind": "Dataflow", "metadata": {"name": "d"}, "spec": {
        "source": {"topics": ["foreshore/data/#"]},
        "stages": [{"name": "hot", "filter": {"expression": "paylod.Temperature.Value > 80.0"}}],
        "sinks": [{"name": "s", "endpointRef": {"name": "e"}}],
    }});
    let found = judge(&document).unwrap_err();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].path.to_string(), "spec.stages[0].filter.expression");
    assert_eq!(found[0].kind, ProblemKind::Expression);
    assert!(found[0].to_string().contains("paylod"), "{}", found[0]);
}

#[test]
fn rules_about_changes_need_what_is_replaced() {
    let broker = |partitions: u32| {
        json!({"apiVersion": API_VERSION, "kind": "Broker", "metadata": {"name": "b"}, "spec": {"storage": {
            "backend": "JetStream",
            "jetStream": {"servers": ["tls://nats:4222"], "partitions": partitions},
        }}})
    };
    assert!(judge(&broker(4)).is_ok());
    assert!(judge_update(&broker(8), Some(&broker(4))).is_ok());
    let found = judge_update(&broker(4), Some(&broker(8))).unwrap_err();
    assert_eq!(
        found[0].to_string(),
        "spec.storage.jetStream: found fewer partitions than before, allowed as many or more"
    );
}
