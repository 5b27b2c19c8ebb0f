use super::*;
use crate::reconcile::tests::{plant, told};

fn settings() -> Settings {
    Settings {
        image: "registry.example/foreshore@sha256:0".to_owned(),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        image_pull_secrets: vec!["registry".to_owned()],
        control: "foreshore-operator.foreshore-system.svc:7443".to_owned(),
        storage_class: None,
        network_policies: true,
        metrics_from:
            r#"[{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]"#
                .parse()
                .unwrap(),
        log_format: "json".to_owned(),
    }
}

fn built() -> BTreeMap<ChildKey, Child> {
    build(
        &plant(&told()).workloads,
        &settings(),
        "-----BEGIN CERTIFICATE-----\n",
    )
    .unwrap()
}

#[test]
fn a_plant_becomes_these_objects() {
    let built: BTreeMap<_, _> = built()
        .into_iter()
        .map(|(key, child)| (key.to_string(), child.manifest))
        .collect();
    insta::assert_yaml_snapshot!(built);
}

#[test]
fn the_same_workloads_become_the_same_objects() {
    assert_eq!(built(), built());
}

#[test]
fn names_fit_their_labels_and_stay_different() {
    let name = |name: &str| object_name(&RoleName::new(Role::Broker, "plant", name));
    assert_eq!(name("main"), "main-broker");
    let (long, other) = ("a".repeat(63), format!("{}b", "a".repeat(62)));
    let (long, other) = (name(&long), name(&other));
    assert!(long.len() <= LONGEST_NAME && other.len() <= LONGEST_NAME);
    assert_ne!(long, other);
}

#[test]
fn every_pod_is_restricted() {
    let mut pods = 0;
    for (key, child) in built() {
        let pod = &child.manifest["spec"]["template"]["spec"];
        if pod.is_null() {
            continue;
        }
        pods += 1;
        assert_eq!(pod["automountServiceAccountToken"], false, "{key}");
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{key}");
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
            "{key}"
        );
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["allowPrivilegeEscalation"], false, "{key}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{key}");
            assert_eq!(
                context["capabilities"]["drop"],
                serde_json::json!(["ALL"]),
                "{key}"
            );
        }
    }
    assert_eq!(pods, 5);
}
