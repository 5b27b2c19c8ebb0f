//! What many objects cost an operator: a process of its own, since all of its memory is counted.
//!
//! The API server is played by this test: what is measured is the operator alone. `cargo xtask bench cluster` measures the
//! same with a real one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    alloc::System,
    collections::BTreeMap,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use cap::Cap;
use foreshore_control::{ControlOptions, enroll::LocalTokens};
use foreshore_operator::{
    Begin, Operator, Options, Platform, RoleName,
    control::{self, ControlPlane},
    kubernetes::{KubernetesSource, KubernetesStatus, OperatorMetrics, Revisions, Scope},
    workloads::{Running, Workload, Workloads},
};
use foreshore_runtime::{Metrics, Shutdown};
use foreshore_tls::{AuthorityOptions, CertificateAuthority};
use http::{Request, Response};
use jiff::Timestamp;
use kube_client::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::watch;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const DEADLINE: Duration = Duration::from_secs(600);
const DEVICES: usize = 200;
const ASSETS: usize = 10_000;
const POINTS: usize = 20;

/// Workloads that never run.
struct Nothing {
    running: watch::Sender<Arc<Running>>,
}

#[async_trait]
impl Workloads for Nothing {
    async fn apply(&self, _desired: BTreeMap<RoleName, Workload>) {}

    fn running(&self) -> watch::Receiver<Arc<Running>> {
        self.running.subscribe()
    }

    async fn end(&self) {}
}

/// An object as the API server tells it, with what it adds by itself.
fn object(kind: &str, name: &str, number: usize, spec: &Value) -> Value {
    let fields = json!({"f:spec": {"f:deviceRef": {".": {}, "f:name": {}}, "f:datasets": {}}});
    json!({
        "apiVersion": "foreshore.dev/v1alpha1",
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": "plant",
            "uid": format!("0d9cbd25-6f0a-4c0e-a0f7-{number:012}"),
            "resourceVersion": "1000",
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{
                "manager": "kubectl", "operation": "Apply", "apiVersion": "foreshore.dev/v1alpha1",
                "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields,
            }],
        },
        "spec": spec,
    })
}

fn asset(number: usize) -> Value {
    let point =
        |point| json!({"name": format!("point-{point}"), "address": format!("ns=2;s=Machine.Point{point}")});
    let spec = json!({
        "deviceRef": {"name": format!("device-{}", number % DEVICES)},
        "datasets": [{"name": "values", "dataPoints": (0..POINTS).map(point).collect::<Vec<_>>()}],
    });
    object("Asset", &format!("asset-{number}"), number, &spec)
}

fn device(number: usize) -> Value {
    let spec = json!({"address": format!("opc.tcp://machine-{number}.example.com:4840"), "opcua": {}});
    object("Device", &format!("device-{number}"), 20_000 + number, &spec)
}

/// A page of a list: the objects `from..to` of `all`.
fn list(all: usize, from: usize, limit: usize, make: impl Fn(usize) -> Value) -> Value {
    let to = all.min(from + limit);
    let next = if to < all { to.to_string() } else { String::new() };
    json!({
        "apiVersion": "foreshore.dev/v1alpha1", "kind": "List",
        "metadata": {"resourceVersion": "1000", "continue": next},
        "items": (from..to).map(make).collect::<Vec<_>>(),
    })
}

/// Plays the API server.
async fn answer(request: Request<Body>, written: Arc<AtomicUsize>) -> Result<Response<Body>, Infallible> {
    let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
    let parameter = |name: &str| {
        let mut parameters = query.split('&').filter_map(|pair| pair.split_once('='));
        let (_, value) = parameters.find(|(found, _)| *found == name)?;
        value.parse::<usize>().ok()
    };
    if path.ends_with("/status") {
        written.fetch_add(1, Ordering::Relaxed);
        return Ok(Response::new(Body::from(asset(0).to_string().into_bytes())));
    }
    if query.contains("watch=true") {
        // Nothing happens.
        std::future::pending::<()>().await;
    }
    let (from, limit) = (
        parameter("continue").unwrap_or(0),
        parameter("limit").unwrap_or(usize::MAX),
    );
    let one = |kind: &str, name: &str, spec: Value| list(1, 0, 1, |_| object(kind, name, 90_000, &spec));
    let found = match path.rsplit('/').next().unwrap() {
        "assets" => list(ASSETS, from, limit, asset),
        "devices" => list(DEVICES, from, limit, device),
        "connectors" => one("Connector", "opcua", json!({"protocol": "opcua"})),
        "brokers" => one(
            "Broker",
            "broker",
            json!({"listeners": [], "storage": {"backend": "Memory"}}),
        ),
        _ => list(0, 0, 0, |_| Value::Null),
    };
    Ok(Response::new(Body::from(found.to_string().into_bytes())))
}

fn megabytes(bytes: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let bytes = bytes as f64;
    bytes / 1e6
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_assets_cost_an_operator_little() {
    foreshore_tls::install_provider();
    let shutdown = Shutdown::new();
    let metrics = OperatorMetrics::new(&Metrics::new());
    let written = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&written);
    let client = Client::new(
        tower::service_fn(move |request| answer(request, Arc::clone(&counted))),
        "plant",
    );
    let before = megabytes(ALLOCATOR.allocated());
    let mut source = KubernetesSource::start(
        client.clone(),
        Scope::default(),
        Duration::from_secs(3600),
        metrics.clone(),
        shutdown.clone(),
    );
    tokio::time::timeout(DEADLINE, source.read())
        .await
        .expect("everything is read");
    let read = megabytes(ALLOCATOR.allocated()) - before;

    let authority =
        Arc::new(CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap());
    let control = ControlPlane::bind(control::Options {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        authority,
        authenticator: Arc::new(LocalTokens::new()),
        server: ControlOptions::default(),
        uid: "operator".to_owned(),
    });
    let status = KubernetesStatus::new(client, &source, "operator", metrics);
    let options = Options {
        source: Box::new(source),
        workloads: Arc::new(Nothing {
            running: watch::Sender::new(Arc::default()),
        }),
        control: control.await.unwrap(),
        platform: Platform::cluster(),
        begin: Begin::Lead {
            epoch: 1,
            earlier: Revisions::default(),
        },
        status: Some(Arc::new(status)),
    };
    let operator = Operator::start(options, shutdown.clone()).await.unwrap();
    let all_written = async {
        while written.load(Ordering::Relaxed) < ASSETS + DEVICES + 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(DEADLINE, all_written)
        .await
        .expect("every status is written");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let led = megabytes(ALLOCATOR.allocated()) - before;
    let most = megabytes(ALLOCATOR.max_allocated()) - before;
    println!("read: {read:.1} MB, led: {led:.1} MB, at most: {most:.1} MB");
    operator.shutdown(Duration::from_secs(1));
    operator.ended().await;
    // Measured: 90 MB (docs/adr/0009-many-objects.md); each further megabyte is 100 bytes of each Asset.
    assert!(
        led < 95.0,
        "{led:.1} MB are used, of which {read:.1} MB by what is declared"
    );
}
