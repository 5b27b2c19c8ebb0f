use super::*;
use crate::reconcile::tests::{encrypted, plant, told};

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

#[test]
fn keys_of_a_store_are_mounted_from_their_secret_and_into_the_broker_only() {
    let secret = serde_json::json!({ "spring": "0123456789abcdef0123456789abcdef" });
    let workloads = encrypted(&secret).workloads;
    let built = build(&workloads, &settings(), "-----BEGIN CERTIFICATE-----\n").unwrap();
    let mut mounted = Vec::new();
    for (key, child) in &built {
        let pod = &child.manifest["spec"]["template"]["spec"];
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        for volume in volumes.filter(|volume| volume["name"] == "encryption-keys") {
            // Readable by the group of the pod, which no other pod is in.
            let expected = serde_json::json!({ "secretName": "store-keys", "defaultMode": 0o440 });
            assert_eq!(volume["secret"], expected);
            let container = &pod["containers"][0];
            let mounts = container["volumeMounts"].as_array().unwrap();
            let path = "/var/run/foreshore-encryption";
            let mount = serde_json::json!({ "name": "encryption-keys", "mountPath": path, "readOnly": true });
            assert!(mounts.contains(&mount), "{mounts:?}");
            let variable = serde_json::json!({ "name": "FORESHORE_ENCRYPTION_KEYS", "value": path });
            assert!(container["env"].as_array().unwrap().contains(&variable));
            mounted.push(key.to_string());
        }
    }
    assert_eq!(mounted.len(), 1, "{mounted:?}");
    assert!(mounted[0].ends_with("main-broker"), "{mounted:?}");
}
