use foreshore_tls::Role;
use serde_json::{Value, json};

use super::*;
use crate::workloads::{Shape, Task};

fn pod(name: &str, status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": name, "namespace": "plant", "uid": format!("uid-{name}"),
            "labels": {COMPONENT: "broker", INSTANCE: "main"},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "serviceAccountName": "main-broker", "nodeName": "node-1", "containers": [],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-main-broker-0"}}],
        },
        "status": status,
    }))
    .unwrap()
}

fn desired(volume: bool) -> BTreeMap<RoleName, Workload> {
    let role = RoleName::new(Role::Broker, "plant", "main");
    let shape = Shape {
        volume: volume.then(Default::default),
        ..Shape::default()
    };
    let workload = Workload {
        role: role.clone(),
        uid: "1".to_owned(),
        task: Task::Broker,
        shape,
    };
    BTreeMap::from([(role, workload)])
}

fn only(known: &Known, desired: &BTreeMap<RoleName, Workload>) -> Option<Instance> {
    known.instances(desired).into_values().flatten().next()
}

fn observed(status: &Value) -> InstanceState {
    let mut known = Known::default();
    known.take(0, Event::Apply(pod("a", status)));
    only(&known, &desired(true)).unwrap().state
}

fn failing(state: &InstanceState) -> (&'static str, &str) {
    match state {
        InstanceState::Failing { reason, error, .. } => (reason, error),
        InstanceState::Running { .. } => panic!("it runs"),
    }
}

fn container(state: &Value) -> Value {
    json!({"containerStatuses": [{
        "name": "foreshore", "image": "", "imageID": "", "ready": false, "restartCount": 3,
        "state": state, "lastState": {"terminated": {"exitCode": 1, "message": "log line\nerror: port 1883 is taken\n"}},
    }]})
}

#[test]
fn a_pod_that_runs_is_an_instance_with_its_own_identity() {
    let mut known = Known::default();
    let running = container(&json!({"running": {"startedAt": "2026-01-01T00:00:05Z"}}));
    known.take(0, Event::Apply(pod("a", &running)));
    let instance = only(&known, &desired(true)).unwrap();
    assert_eq!((instance.identity.uid(), instance.restarts), ("uid-a", 3));
    assert!(matches!(instance.state, InstanceState::Running { since } if since.as_second() % 60 == 5));
}

#[test]
fn why_a_pod_does_not_run_is_told_in_its_own_words() {
    let back_off = container(&json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}));
    assert_eq!(
        failing(&observed(&back_off)),
        (reasons::FAILING, "error: port 1883 is taken")
    );
    let image = container(&json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}));
    assert_eq!(
        failing(&observed(&image)),
        (reasons::FAILING, "ImagePullBackOff: no such image")
    );
    let creating = container(&json!({"waiting": {"reason": "ContainerCreating"}}));
    assert!(matches!(observed(&creating), InstanceState::Running { .. }));
    let unscheduled =
        |why: &str| json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": why}]});
    let (reason, error) = (
        reasons::FAILING,
        "no node takes the pod: 0/1 nodes are available: 1 Insufficient memory.",
    );
    assert_eq!(
        failing(&observed(&unscheduled(
            "0/1 nodes are available: 1 Insufficient memory."
        ))),
        (reason, error)
    );
    let affinity = unscheduled("0/2 nodes are available: 2 node(s) had volume node affinity conflict.");
    assert_eq!(failing(&observed(&affinity)).0, reasons::WAITING_FOR_NODE);
}

#[test]
fn a_lost_node_is_named_with_the_volume() {
    let mut known = Known::default();
    known.take(0, Event::Apply(pod("a", &container(&json!({"running": {}})))));
    known.lost.insert(
        "node-1".to_owned(),
        "it is not ready: Kubelet stopped posting node status".to_owned(),
    );
    let state = only(&known, &desired(true)).unwrap().state;
    let (reason, error) = failing(&state);
    assert_eq!(reason, reasons::WAITING_FOR_NODE);
    assert!(
        error.contains("node-1") && error.contains("data-main-broker-0"),
        "{error}"
    );
}

#[test]
fn a_pod_that_ends_counts_only_while_its_volume_holds_its_place() {
    let mut ending = pod("a", &container(&json!({"running": {}})));
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now());
    ending.metadata.deletion_timestamp = Some(now);
    let mut known = Known::default();
    known.take(0, Event::Apply(ending));
    assert!(only(&known, &desired(true)).is_some());
    assert!(only(&known, &desired(false)).is_none());
}

#[test]
fn a_pod_with_our_labels_and_another_account_is_nobody() {
    let mut forged = pod("a", &container(&json!({"running": {}})));
    forged.spec.as_mut().unwrap().service_account_name = Some("default".to_owned());
    let mut known = Known::default();
    known.take(0, Event::Apply(forged));
    assert!(only(&known, &desired(true)).is_none());
}

#[test]
fn a_new_list_forgets_what_it_does_not_show() {
    let mut known = Known::default();
    let status = container(&json!({"running": {}}));
    known.take(0, Event::Apply(pod("a", &status)));
    known.take(0, Event::Init);
    known.take(0, Event::InitApply(pod("b", &status)));
    known.take(0, Event::InitDone);
    let instance = only(&known, &desired(true)).unwrap();
    assert_eq!(instance.identity.uid(), "uid-b");
}

#[test]
fn each_watch_answers_for_its_own_namespace() {
    let status = container(&json!({"running": {}}));
    let mut known = Known::default();
    known.take(1, Event::Apply(pod("a", &status)));
    // Another namespace is empty, and then this one.
    known.take(0, Event::Init);
    known.take(0, Event::InitDone);
    assert!(only(&known, &desired(true)).is_some());
    known.take(1, Event::Init);
    known.take(1, Event::InitDone);
    assert!(only(&known, &desired(true)).is_none());
}
