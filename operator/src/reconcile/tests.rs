use std::{path::PathBuf, sync::Arc};

use foreshore_control::{PlanResource, plan::ServiceAccountIssuerPlan};
use foreshore_crds::v1alpha1::Protocol;
use foreshore_tls::{AuthorityOptions, CertificateAuthority, Role};
use serde_json::{Value, json};

use super::*;
use crate::{
    facts::{self, RoleFacts},
    plan::Note,
    source::directory::{Directory, EmbeddedFile, Options},
};

/// A plant in one file: everything refers to something.
const PLANT: &str = include_str!("tests/plant.yaml");

/// Reads a text as the directory source does, with identities that do not change from run to run.
fn snapshot(text: &str) -> Snapshot {
    foreshore_tls::install_provider();
    let embedded = vec![EmbeddedFile {
        name: "plant.yaml".into(),
        text: text.to_owned().into(),
    }];
    let options = Options {
        embedded,
        default_namespace: "plant".to_owned(),
        ..Options::default()
    };
    let mut snapshot = Directory::open(options).unwrap().read().unwrap();
    for (key, sourced) in &mut snapshot.objects {
        sourced.meta = Meta {
            uid: format!("uid of {key}"),
            generation: 1,
            created: Timestamp::UNIX_EPOCH,
        };
    }
    snapshot
}

fn reconciler() -> Reconciler {
    Reconciler::new(Platform::standalone(), Accepted::default())
}

/// What roles of the plant told.
pub(crate) fn told() -> Facts {
    let fact = |role, name: &str, facts: RoleFacts| (RoleName::new(role, "plant", name), facts);
    let broker = RoleFacts::default()
        .with(facts::MQTT, "127.0.0.1:1")
        .with(facts::QUEUE, "127.0.0.1:2");
    let cloud = RoleFacts {
        authority: Some("PEM".to_owned()),
        ..RoleFacts::default()
    };
    Facts {
        roles: BTreeMap::from([
            fact(Role::Broker, "main", broker),
            fact(
                Role::Simulator,
                "line",
                RoleFacts::default().with(facts::DEVICE, "opc.tcp://127.0.0.1:3"),
            ),
            fact(Role::Cloud, "cloud", cloud.with(facts::EDGE_LINK, "127.0.0.1:4")),
        ]),
    }
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey::new(kind, "plant", name)
}

fn texts(outcome: &Outcome) -> Vec<String> {
    outcome.all_problems().map(ToString::to_string).collect()
}

/// Plans as people can read them.
fn shown(plans: &Plans) -> Value {
    let roles = plans.roles.iter().map(|(role, resources)| {
        let resources = resources.iter().map(|(key, resource)| {
            let body: Value = serde_json::from_slice(resource.body()).unwrap();
            (key.to_string(), body)
        });
        (role.to_string(), Value::Object(resources.collect()))
    });
    Value::Object(roles.collect())
}

/// The plant with one text in place of another.
fn edited(from: &str, to: &str) -> Snapshot {
    assert!(PLANT.contains(from), "{from}");
    let before = snapshot(PLANT);
    let mut edited = snapshot(&PLANT.replace(from, to));
    for (key, sourced) in &mut edited.objects {
        if before
            .objects
            .get(key)
            .and_then(|before| before.manifest.as_ref())
            != sourced.manifest.as_ref()
        {
            sourced.meta.generation = 2;
        }
    }
    edited
}

/// The plant, as one pass finds it.
pub(crate) fn plant(facts: &Facts) -> Outcome {
    reconciler().reconcile(&snapshot(PLANT), facts)
}

/// The plant in a cluster, with a broker whose store is encrypted with what a Secret holds.
pub(crate) fn encrypted(secret: &Value) -> Outcome {
    let encryption = "  storage: {encryption: {secretRef: {name: store-keys}}}";
    let plant = PLANT.replace("  replicas: 1 # of the broker", encryption);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "store-keys" }, "stringData": secret,
    });
    let cluster = Platform {
        pods: true,
        ..Platform::standalone()
    };
    let manifests = snapshot(&format!("{plant}\n---\n{secret}\n"));
    Reconciler::new(cluster, Accepted::default()).reconcile(&manifests, &told())
}

/// 32 bytes.
const KEY: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn keys_of_a_store_are_in_no_plan() {
    let outcome = encrypted(&json!({ "spring": KEY, "autumn": KEY, "active": "autumn" }));
    assert_eq!(texts(&outcome), [""; 0]);
    let broker = RoleName::new(Role::Broker, "plant", "main");
    let shape = &outcome.workloads[&broker].shape;
    assert_eq!(shape.encryption_keys.as_deref(), Some("store-keys"));
    // The role keeps its plan beside the store that the keys protect.
    let plans = &outcome.plans.roles[&broker];
    let secrets = plans.keys().filter(|key| key.kind == "Secret");
    assert_eq!(
        secrets.map(|key| key.name.as_str()).collect::<Vec<_>>(),
        ["users"]
    );
}

#[test]
fn keys_of_a_store_that_can_not_be_used_are_told() {
    for (secret, expected) in [
        (
            json!({ "spring": KEY.get(1..) }),
            "key spring has not the 32 bytes of an encryption key: found 31 bytes",
        ),
        (
            json!({ "spring": KEY, "autumn": KEY }),
            "key active does not say which of several keys is in use",
        ),
        (
            json!({ "spring": KEY, "active": "winter" }),
            "key active names \"winter\", which is not there: found spring",
        ),
        (
            json!({ "active": "winter" }),
            "key active names \"winter\", which is not there",
        ),
    ] {
        let told = texts(&encrypted(&secret));
        // What belongs to the broker waits for it.
        let (waiting, told): (Vec<_>, Vec<_>) = told
            .iter()
            .partition(|text| text.contains(" is not accepted itself"));
        let [problem] = &told[..] else { panic!("{told:?}") };
        assert!(
            waiting.len() > 3
                && problem.contains(expected)
                && problem.contains("spec.storage.encryption.secretRef"),
            "{problem}"
        );
    }
    // There is nothing to mount without a cluster.
    let encryption = "  storage: {encryption: {secretRef: {name: users}}}";
    let told = texts(&reconciler().reconcile(&edited("  replicas: 1 # of the broker", encryption), &told()));
    assert!(
        told.iter().any(|problem| problem.contains("needs a cluster")),
        "{told:?}"
    );
}

#[test]
fn every_role_is_told_what_concerns_it() {
    let outcome = reconciler().reconcile(&snapshot(PLANT), &told());
    assert_eq!(texts(&outcome), [""; 0]);
    insta::assert_yaml_snapshot!("plans", shown(&outcome.plans));
    let workloads: Vec<_> = outcome.workloads.keys().map(ToString::to_string).collect();
    assert_eq!(
        workloads,
        [
            "broker/plant/main",
            "connector/plant/opcua",
            "dataflow/plant/dataflows",
            "cloud/plant/cloud",
            "simulator/plant/line"
        ]
    );
    assert_eq!(
        outcome.device_paths,
        [
            "connector/plant/plc->broker/plant/main",
            "connector/plant/sim->broker/plant/main"
        ]
    );
}

#[test]
fn secrets_go_only_where_they_are_needed() {
    let outcome = reconciler().reconcile(&snapshot(PLANT), &told());
    let secrets = |role: &str| -> Vec<String> {
        let plan = outcome
            .plans
            .roles
            .iter()
            .find(|(name, _)| name.to_string() == role)
            .unwrap()
            .1;
        plan.keys()
            .filter(|key| key.kind == "Secret")
            .map(|key| key.name.clone())
            .collect()
    };
    assert_eq!(secrets("broker/plant/main"), ["users"]);
    assert_eq!(secrets("connector/plant/opcua"), ["plc-login"]);
    assert_eq!(
        secrets("dataflow/plant/dataflows"),
        ["cloud.cloud.foreshore.dev", "join"]
    );
    assert_eq!(secrets("cloud/plant/cloud"), ["join", "tokens"]);
    assert!(secrets("simulator/plant/line").is_empty());
}

#[test]
fn what_others_have_not_told_yet_is_waited_for() {
    let outcome = reconciler().reconcile(&snapshot(PLANT), &Facts::default());
    let notes = |kind, name| &outcome.plans.carried[&key(kind, name)].notes;
    let waits = |text: &str| vec![Note::Waits(text.to_owned())];
    assert_eq!(
        *notes(Kind::Device, "sim"),
        waits("Simulator line has not told its address yet")
    );
    assert_eq!(*notes(Kind::Asset, "filler"), waits("Device sim waits itself"));
    assert_eq!(
        *notes(Kind::Connector, "opcua"),
        waits("Broker plant/main does not answer yet")
    );
    assert!(
        notes(Kind::Dataflow, "telemetry").contains(&waits("Cloud cloud has not told its address yet")[0])
    );
    // The queues do not wait: nothing that arrives meanwhile may be missed.
    let broker = &outcome.plans.roles[&RoleName::new(Role::Broker, "plant", "main")];
    assert!(
        broker
            .keys()
            .any(|key| key.name == "dataflow/plant/telemetry->cloud")
    );
    // Nor does the broker, or nobody would ever hear where it answers.
    let waiting: Vec<_> = outcome.plans.waiting.iter().map(ToString::to_string).collect();
    assert_eq!(waiting, ["connector/plant/opcua", "dataflow/plant/dataflows"]);
}

#[test]
fn a_wrong_edit_leaves_what_runs() {
    let mut reconciler = reconciler();
    let before = reconciler.reconcile(&snapshot(PLANT), &told());
    for (from, to, expected) in [
        (
            "address: opc.tcp://plc:4840",
            "adress: opc.tcp://plc:4840",
            "did you mean address?",
        ),
        (
            "secretRef: {name: plc-login}",
            "secretRef: {name: plc-logim}",
            "did you mean plc-login?",
        ),
        ("expression: payload.", "expression: paylod.", "paylod"),
        (
            "deviceRef: {name: sim}",
            "deviceRef: {name: sin}",
            "did you mean sim?",
        ),
        (
            "endpointRef: {name: cloud}",
            "endpointRef: {name: clout}",
            "did you mean cloud?",
        ),
        (
            "  replicas: 1 # of the broker",
            "  replicas: 3 # of the broker",
            "found several replicas without replication",
        ),
        (
            "topics: [foreshore/data/#]",
            "topics: [foreshore/#/data]",
            "spec.source.topics[0]",
        ),
        (
            "topic: uns/{asset}/{dataset}",
            "topic: uns/{asset}/{attributes.hall}",
            "spec.datasets[0].destination.topic: a topic that can't be filled in",
        ),
    ] {
        let outcome = reconciler.reconcile(&edited(from, to), &told());
        let problems = texts(&outcome);
        // A misspelt field may be missing under its right name as well.
        assert!(
            problems.iter().any(|problem| problem.contains(expected)),
            "{to}: {problems:?}"
        );
        assert!(
            problems
                .iter()
                .all(|problem| problem.starts_with("embedded/plant.yaml:")),
            "{problems:?}"
        );
        let wrong = outcome
            .verdicts
            .values()
            .find(|verdict| !verdict.problems.is_empty())
            .unwrap();
        assert_eq!(
            wrong.running.as_ref().map(|meta| meta.generation),
            Some(1),
            "{to}"
        );
        assert_eq!(
            outcome
                .plans
                .roles
                .values()
                .map(BTreeMap::len)
                .collect::<Vec<_>>(),
            before.plans.roles.values().map(BTreeMap::len).collect::<Vec<_>>(),
            "{to}"
        );
    }
    // Mended, the new version runs.
    let outcome = reconciler.reconcile(&edited("opc.tcp://plc:4840", "opc.tcp://plc:4841"), &told());
    assert_eq!(texts(&outcome), [""; 0]);
    assert_eq!(
        outcome.verdicts[&key(Kind::Device, "plc")]
            .running
            .as_ref()
            .unwrap()
            .generation,
        2
    );
}

#[test]
fn what_was_accepted_runs_on_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let start = || Reconciler::new(Platform::standalone(), Accepted::open(folder.path()).unwrap());
    let mut first = start();
    assert!(first.accepted().is_empty());
    first.reconcile(&snapshot(PLANT), &told());
    first.accepted().save().unwrap();

    let mut second = start();
    assert!(!second.accepted().is_empty());
    let outcome = second.reconcile(&edited("address: opc.tcp://plc:4840", "adress: x"), &told());
    let verdict = &outcome.verdicts[&key(Kind::Device, "plc")];
    assert_eq!(verdict.running.as_ref().unwrap().generation, 1);
    assert!(!verdict.problems.is_empty());

    // An object that can't be read at all runs on as well.
    let mut unreadable = snapshot(PLANT);
    for sourced in unreadable.objects.values_mut() {
        sourced.manifest = None;
    }
    let outcome = start().reconcile(&unreadable, &told());
    assert!(
        outcome
            .verdicts
            .values()
            .all(|verdict| verdict.running.is_some() && verdict.problems.len() == 1)
    );

    // What is not declared any more is forgotten.
    let mut third = start();
    third.reconcile(&Snapshot::default(), &told());
    third.accepted().save().unwrap();
    assert!(start().accepted().is_empty());
}

#[test]
fn what_is_removed_ends_and_what_refers_to_it_is_told() {
    let mut reconciler = reconciler();
    reconciler.reconcile(&snapshot(PLANT), &told());
    let mut without = snapshot(PLANT);
    without.objects.remove(&key(Kind::Device, "sim"));
    let outcome = reconciler.reconcile(&without, &told());
    let verdict = &outcome.verdicts[&key(Kind::Asset, "filler")];
    assert_eq!(verdict.running, None);
    assert_eq!(verdict.problems[0].reason, reasons::NOT_FOUND);
    let connector = &outcome.plans.roles[&RoleName::new(Role::Connector, "plant", "opcua")];
    assert!(
        !connector
            .keys()
            .any(|key| key.name == "sim" || key.name == "filler")
    );
}

#[test]
fn a_broker_that_takes_tokens_of_service_accounts_is_told_who_signs_them() {
    let text = PLANT.replace(
        "- usernamePassword: {secretRef: {name: users}}",
        "- serviceAccount: {audiences: [mqtt]}",
    );
    assert_ne!(text, PLANT);
    // On one machine there is nobody who signs.
    let outcome = reconciler().reconcile(&snapshot(&text), &told());
    let problem = &outcome.verdicts[&key(Kind::Broker, "main")].problems[0];
    assert_eq!(problem.reason, reasons::UNSUPPORTED_HERE);
    let field = "spec.listeners[0].authentication[0].serviceAccount";
    assert_eq!(problem.field.as_deref(), Some(field));

    let pass = |text: &str, service_accounts| {
        let mut snapshot = snapshot(text);
        snapshot.service_accounts = service_accounts;
        Reconciler::new(Platform::cluster(), Accepted::default()).reconcile(&snapshot, &told())
    };
    let issuer = ServiceAccountIssuerPlan {
        issuer: "https://kubernetes.default.svc".to_owned(),
        keys: r#"{"keys":[]}"#.to_owned(),
    };
    let role = RoleName::new(Role::Broker, "plant", "main");
    let told_to = |outcome: &Outcome| -> Vec<String> {
        let roles = outcome.plans.roles.iter();
        let told = roles.filter(|(_, plan)| plan.contains_key(&issuer.key()));
        told.map(|(role, _)| role.to_string()).collect()
    };
    let known = || Some(Ok(Arc::new(issuer.clone())));
    let outcome = pass(&text, known());
    assert_eq!(told_to(&outcome), ["broker/plant/main"]);
    let carried = |outcome: &Outcome| outcome.plans.carried[&key(Kind::Broker, "main")].clone();
    assert!(carried(&outcome).parts.contains(&(role.clone(), issuer.key())));
    assert_eq!(carried(&outcome).notes, []);
    assert_eq!(told_to(&pass(PLANT, known())), [""; 0], "nobody takes them");

    // Until it is known the cause is told, and the broker does everything else.
    let outcome = pass(&text, Some(Err("forbidden (HTTP 403)".to_owned())));
    assert_eq!(told_to(&outcome), [""; 0]);
    let expected =
        "the keys of the cluster's service accounts are not known yet: forbidden (HTTP 403)".to_owned();
    assert_eq!(carried(&outcome).notes, [Note::Waits(expected)]);
    assert!(outcome.plans.roles[&role].keys().any(|key| key.kind == "Broker"));
}

#[test]
fn an_audit_log_goes_to_standard_output_in_pods_only() {
    let with = |destination: &str| {
        let audit = format!("  audit: {{destination: {destination}}}\n");
        snapshot(&PLANT.replace("  replicas: 1 # of the broker\n", &audit))
    };
    let problems = |platform: Platform, destination: &str| {
        let outcome = Reconciler::new(platform, Accepted::default()).reconcile(&with(destination), &told());
        let problems = &outcome.verdicts[&key(Kind::Broker, "main")].problems;
        let field = |problem: &Problem| problem.field.clone().unwrap_or_default();
        problems.iter().map(field).collect::<Vec<_>>()
    };
    assert_eq!(
        problems(Platform::standalone(), "Stdout"),
        ["spec.audit.destination"]
    );
    assert_eq!(problems(Platform::standalone(), "File"), [""; 0]);
    assert_eq!(problems(Platform::cluster(), "Stdout"), [""; 0]);
}

#[test]
fn queues_outlive_the_endpoint_of_their_sink() {
    let mut reconciler = reconciler();
    reconciler.reconcile(&snapshot(PLANT), &told());
    let mut without = snapshot(PLANT);
    without.objects.remove(&key(Kind::DataflowEndpoint, "cloud"));
    let outcome = reconciler.reconcile(&without, &told());
    assert_eq!(outcome.verdicts[&key(Kind::Dataflow, "telemetry")].running, None);
    let broker = &outcome.plans.roles[&RoleName::new(Role::Broker, "plant", "main")];
    assert!(
        broker
            .keys()
            .any(|key| key.name == "dataflow/plant/telemetry->cloud")
    );
    // Only removing the Dataflow itself releases them.
    without.objects.remove(&key(Kind::Dataflow, "telemetry"));
    let outcome = reconciler.reconcile(&without, &told());
    let broker = &outcome.plans.roles[&RoleName::new(Role::Broker, "plant", "main")];
    assert!(!broker.keys().any(|key| key.kind == "Path"));
}

#[test]
fn a_reference_left_out_must_have_one_meaning() {
    let second = "---\napiVersion: foreshore.dev/v1alpha1\nkind: Broker\nmetadata: {name: other}\nspec: {}\n";
    let outcome = reconciler().reconcile(&snapshot(&format!("{PLANT}{second}")), &told());
    let problem = &outcome.verdicts[&key(Kind::Connector, "opcua")].problems[0];
    assert_eq!(problem.reason, reasons::AMBIGUOUS);
    assert_eq!(problem.allowed.as_deref(), Some("main, other"));
    // What refers to it says so, and does not repeat the cause.
    let device = &outcome.verdicts[&key(Kind::Device, "plc")].problems[0];
    assert_eq!(device.reason, reasons::REF_NOT_ACCEPTED);
}

#[test]
fn protocols_have_to_match() {
    let camera = "connectorRef: {name: opcua}\n  address: http://camera/onvif/device_service\n  onvif: {}";
    let plant = PLANT.replace("address: opc.tcp://plc:4840\n  opcua: {}", camera);
    assert_ne!(plant, PLANT);
    let outcome = reconciler().reconcile(&snapshot(&plant), &told());
    let problem = &outcome.verdicts[&key(Kind::Device, "plc")].problems[0];
    assert_eq!(
        (problem.reason, problem.allowed.as_deref()),
        (reasons::PROTOCOL_MISMATCH, Some("onvif"))
    );
}

#[test]
fn what_can_not_be_done_here_is_refused() {
    let plant = PLANT.replace("  replicas: 1 # of the broker", "  pod: {image: other}");
    let outcome = reconciler().reconcile(&snapshot(&plant), &told());
    let problem = &outcome.verdicts[&key(Kind::Broker, "main")].problems[0];
    assert_eq!(
        (problem.reason, problem.field.as_deref()),
        (reasons::UNSUPPORTED_HERE, Some("spec.pod"))
    );
    let plant = PLANT.replace("  replicas: 1 # of the broker", "  storage: {maxBytes: 1Gi}");
    assert_ne!(plant, PLANT);
    let outcome = reconciler().reconcile(&snapshot(&plant), &told());
    let problem = &outcome.verdicts[&key(Kind::Broker, "main")].problems[0];
    assert_eq!(
        (problem.reason, problem.field.as_deref()),
        (reasons::UNSUPPORTED_HERE, Some("spec.storage.maxBytes"))
    );
    let plant = PLANT.replace("  replicas: 1 # of the broker", "  pod: {image: other}");
    let cluster = Platform {
        pods: true,
        ..Platform::standalone()
    };
    let outcome = Reconciler::new(cluster, Accepted::default()).reconcile(&snapshot(&plant), &told());
    assert_eq!(texts(&outcome), [""; 0]);
    let few = Platform {
        protocols: vec![Protocol::Onvif],
        ..Platform::standalone()
    };
    let outcome = Reconciler::new(few, Accepted::default()).reconcile(&snapshot(PLANT), &told());
    assert!(
        texts(&outcome)[0].contains("spec.protocol: no connector for the protocol is built in: found opcua")
    );
}

#[test]
fn a_list_of_revoked_certificates_that_can_not_be_read_is_told() {
    let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
    let problems = |list: Option<&str>| {
        let mut data = json!({ "ca.crt": authority.bundle().to_pem() });
        if let Some(list) = list {
            data["ca.crl"] = list.into();
        }
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "clients" }, "stringData": data,
        });
        let way = json!({ "x509": { "caSecretRef": { "name": "clients" } } });
        let listener = json!({ "name": "tls", "port": 8883, "protocol": "Tls", "authentication": [way] });
        let broker = json!({
            "apiVersion": "foreshore.dev/v1alpha1", "kind": "Broker", "metadata": { "name": "main" },
            "spec": { "listeners": [listener] },
        });
        let manifests = snapshot(&format!("{secret}\n---\n{broker}\n"));
        texts(&reconciler().reconcile(&manifests, &Facts::default()))
    };
    assert_eq!(problems(None), [""; 0]);
    let told = problems(Some("no list"));
    let [problem] = &told[..] else { panic!("{told:?}") };
    for expected in [
        "spec.listeners[0].authentication[0].x509.caSecretRef",
        "Secret clients: key ca.crl",
        "found no X509 CRL section",
    ] {
        assert!(problem.contains(expected), "{problem} lacks {expected}");
    }
}

#[test]
fn one_machine_has_each_port_once() {
    let mut reconciler = reconciler();
    reconciler.reconcile(&snapshot(PLANT), &told());
    let outcome = reconciler.reconcile(&edited("  http: {port: 8080}", "  http: {port: 1883}"), &told());
    let problems = texts(&outcome);
    assert!(
        problems.len() == 1 && problems[0].contains("Broker plant/main listens on that port already"),
        "{problems:?}"
    );
}

#[test]
fn what_is_switched_off_is_not_planned_and_keeps_its_queues() {
    let plant = PLANT
        .replace("  source:", "  enabled: false\n  source:")
        .replace("  deviceRef:", "  enabled: false\n  deviceRef:");
    let outcome = reconciler().reconcile(&snapshot(&plant), &told());
    assert_eq!(texts(&outcome), [""; 0]);
    assert!(!outcome.workloads.keys().any(|role| role.role == Role::Dataflow));
    let broker = &outcome.plans.roles[&RoleName::new(Role::Broker, "plant", "main")];
    assert!(broker.keys().any(|key| key.kind == "Path"));
    let connector = &outcome.plans.roles[&RoleName::new(Role::Connector, "plant", "opcua")];
    assert!(!connector.keys().any(|key| key.kind == "Asset"));
}

#[test]
fn a_pass_over_the_same_changes_nothing() {
    let mut reconciler = reconciler();
    let snapshot = snapshot(PLANT);
    let first = reconciler.reconcile(&snapshot, &told());
    assert_eq!(first, reconciler.reconcile(&snapshot, &told()));
}

#[test]
fn the_examples_are_right() {
    for (name, objects) in [("bottling-line", 20), ("bridge", 6)] {
        let examples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
        let options = Options {
            paths: vec![examples.join(name)],
            default_namespace: "plant".to_owned(),
            ..Options::default()
        };
        let report = crate::check::check(options, Platform::standalone()).unwrap();
        assert!(report.is_right() && report.objects >= objects, "{report}");
    }
}

/// The plant with a dataflow from another broker.
const FROM_ELSEWHERE: &str = "
---
apiVersion: foreshore.dev/v1alpha1
kind: DataflowEndpoint
metadata: {name: elsewhere}
spec:
  mqtt: {address: 'mqtt://elsewhere:1883'}
---
apiVersion: foreshore.dev/v1alpha1
kind: DataflowEndpoint
metadata: {name: own}
spec:
  mqtt: {brokerRef: {name: main}}
---
apiVersion: foreshore.dev/v1alpha1
kind: Dataflow
metadata: {name: in}
spec:
  source:
    endpointRef: {name: elsewhere}
    topics: [in/#]
  sinks:
  - name: own
    endpointRef: {name: own}
";

#[test]
fn another_broker_keeps_the_queues_of_what_comes_from_it() {
    let plant = format!("{PLANT}{FROM_ELSEWHERE}");
    let outcome = reconciler().reconcile(&snapshot(&plant), &told());
    assert_eq!(texts(&outcome), [""; 0]);
    let names = |role, name: &str| -> Vec<String> {
        let plan = &outcome.plans.roles[&RoleName::new(role, "plant", name)];
        plan.keys().map(ToString::to_string).collect()
    };
    let broker = names(Role::Broker, "main");
    assert!(!broker.iter().any(|key| key.contains("plant/in->")), "{broker:?}");
    let runner = names(Role::Dataflow, "dataflows");
    for wanted in [
        "Dataflow/plant/in",
        "DataflowEndpoint/plant/elsewhere",
        "DataflowEndpoint/plant/own",
    ] {
        assert!(runner.iter().any(|key| key == wanted), "{wanted}: {runner:?}");
    }

    for (from, to, expected) in [
        (
            "endpointRef: {name: elsewhere}",
            "endpointRef: {name: elsewere}",
            "did you mean elsewhere?",
        ),
        (
            "endpointRef: {name: elsewhere}",
            "endpointRef: {name: own}",
            "source.brokerRef",
        ),
        (
            "endpointRef: {name: elsewhere}",
            "endpointRef: {name: cloud}",
            "allowed mqtt",
        ),
        ("topics: [in/#]", "topics: ['in/#/x']", "spec.source.topics[0]"),
        (
            "topics: [in/#]",
            "topics: [$share/group/in/#]",
            "without $share/group/",
        ),
    ] {
        let outcome = reconciler().reconcile(&snapshot(&plant.replace(from, to)), &told());
        let problems = texts(&outcome);
        assert!(
            problems.iter().any(|problem| problem.contains(expected)),
            "{to}: {problems:?}"
        );
    }

    // Nor does ours keep queues for it while it can't run.
    for (from, to) in [
        ("    endpointRef: {name: own}", "    endpointRef: {name: nobody}"),
        (
            "  source:\n    endpointRef",
            "  enabled: false\n  source:\n    endpointRef",
        ),
    ] {
        let changed = plant.replace(from, to);
        assert_ne!(changed, plant);
        let outcome = reconciler().reconcile(&snapshot(&changed), &told());
        let broker = &outcome.plans.roles[&RoleName::new(Role::Broker, "plant", "main")];
        let keys: Vec<_> = broker.keys().map(ToString::to_string).collect();
        assert!(
            !keys.iter().any(|key| key.contains("plant/in->")),
            "{to}: {keys:?}"
        );
        assert!(keys.iter().any(|key| key.contains("->")), "{keys:?}");
    }
}

#[test]
fn check_tells_every_problem() {
    let plant = PLANT.replace("deviceRef: {name: sim}", "deviceRef: {name: none-such}")
        + "---\nkind: Devise\napiVersion: x\n";
    let embedded = vec![EmbeddedFile {
        name: "plant.yaml".into(),
        text: plant.into(),
    }];
    let options = Options {
        embedded,
        ..Options::default()
    };
    let report = crate::check::check(options, Platform::standalone()).unwrap();
    assert_eq!(report.problems.len(), 2, "{report}");
    let shown = serde_json::to_value(&report).unwrap();
    assert_eq!(shown["problems"][1]["found"], json!("none-such"));
}
