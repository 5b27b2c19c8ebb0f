//! A runner with queues in memory and a scripted sink.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use foreshore_control::{
    Change, Nack, PlanResource, Resource, ResourceKey, Role as _,
    plan::{ConnectionPlan, DataflowPlan, EndpointPlan, ObjectRef, PathPlan},
    queue::{Paths, testing::MemoryPaths},
};
use foreshore_crds::v1alpha1::dataflow_endpoint::EndpointType;
use foreshore_record::{Lane, PathLedger, Record, TopicName};
use foreshore_runtime::{Metrics, Shutdown};
use foreshore_tls::{AuthorityOptions, CertificateAuthority, Identity};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    Assets, Batch, Capabilities, DataflowRole, Delivery, EndpointSetup, Queues, Runner, RunnerOptions, Sink,
    SinkError, SinkFactory, SinkSetup, SourceSetup, Surroundings,
};

pub(super) const NAMESPACE: &str = "plant";

/// Deadline of everything that has to happen at some time.
pub(super) const GENEROUS: Duration = Duration::from_secs(60);

/// What a sink was given and acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) id: u64,
    pub(super) index: u32,
    pub(super) lane: Lane,
    pub(super) payload: String,
}

/// How a sink answers: from the front of the script, and as usual when it is at its end.
pub(super) type Answer = Box<dyn Fn(&Batch<'_>) -> Result<Vec<Delivery>, SinkError> + Send + Sync>;

/// A sink that does as it is told. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Script {
    pub(super) received: Arc<Mutex<Vec<Received>>>,
    pub(super) usual: Arc<Mutex<Option<Answer>>>,
    pub(super) next: Arc<Mutex<VecDeque<Answer>>>,
    pub(super) away: Arc<Mutex<Option<SinkError>>>,
    /// Deliveries that began.
    pub(super) begun: Arc<AtomicU64>,
    /// Held once more by each delivery that runs.
    running: Arc<Mutex<Arc<()>>>,
    pub(super) probes: Arc<AtomicU64>,
    pub(super) made: Arc<AtomicU64>,
    pub(super) closed: Arc<AtomicU64>,
    pub(super) slow: Arc<Mutex<Duration>>,
    /// Instead of four batches of any size side by side.
    pub(super) takes: Arc<Mutex<Option<Capabilities>>>,
}

pub(super) fn all_delivered(batch: &Batch<'_>) -> Result<Vec<Delivery>, SinkError> {
    Ok(vec![Delivery::Delivered; batch.outputs.len()])
}

impl Script {
    pub(super) fn set_away(&self, away: bool) {
        *self.away.lock() = away.then(|| SinkError::retryable("Unreachable", "nobody answers"));
    }

    pub(super) fn payloads(&self) -> Vec<String> {
        self.received
            .lock()
            .iter()
            .map(|received| received.payload.clone())
            .collect()
    }
}

#[async_trait]
impl Sink for Script {
    fn capabilities(&self) -> Capabilities {
        self.takes.lock().unwrap_or(Capabilities {
            max_inflight: 4,
            ..Capabilities::default()
        })
    }

    async fn deliver(&self, batch: Batch<'_>) -> Result<Vec<Delivery>, SinkError> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let running = Arc::clone(&*self.running.lock());
        // The script itself has one.
        assert!(Arc::strong_count(&running) - 1 <= self.capabilities().max_inflight);
        let slow = *self.slow.lock();
        if !slow.is_zero() {
            tokio::time::sleep(slow).await;
        }
        if let Some(error) = self.away.lock().clone() {
            return Err(error);
        }
        check_shape(&batch);
        let scripted = self.next.lock().pop_front();
        let deliveries = match (scripted, &*self.usual.lock()) {
            (Some(answer), _) => answer(&batch)?,
            (None, Some(answer)) => answer(&batch)?,
            (None, None) => all_delivered(&batch)?,
        };
        let mut received = self.received.lock();
        for (output, delivery) in batch.outputs.iter().zip(&deliveries) {
            if *delivery == Delivery::Delivered {
                let payload = String::from_utf8_lossy(&output.record.payload).into_owned();
                received.push(Received {
                    id: output.id,
                    index: output.index,
                    lane: batch.lane,
                    payload,
                });
            }
        }
        Ok(deliveries)
    }

    async fn probe(&self) -> Result<(), SinkError> {
        self.probes.fetch_add(1, Ordering::Relaxed);
        self.away.lock().clone().map_or(Ok(()), Err)
    }

    async fn close(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }
}

/// What every batch has to be like.
fn check_shape(batch: &Batch<'_>) {
    assert!(!batch.outputs.is_empty() && batch.path_epoch > 0);
    assert!(batch.outputs.is_sorted_by_key(|output| (output.id, output.index)));
    assert!(batch.settles.is_sorted_by_key(|interval| interval.first));
    for output in batch.outputs {
        assert!(
            batch
                .settles
                .iter()
                .any(|interval| interval.contains(output.store_epoch, output.id))
        );
    }
}

/// Makes one scripted sink for each sink's name.
pub(super) struct Scripts {
    sinks: Mutex<BTreeMap<String, Script>>,
    /// What endpoints are sources of.
    pub(super) elsewhere: MemoryPaths,
}

impl Scripts {
    pub(super) fn of(&self, sink: &str) -> Script {
        self.sinks.lock().entry(sink.to_owned()).or_default().clone()
    }
}

#[async_trait]
impl SinkFactory for Scripts {
    fn endpoint_type(&self) -> EndpointType {
        EndpointType::File
    }

    fn check_endpoint(&self, setup: &EndpointSetup) -> Result<(), Nack> {
        let file = setup.endpoint.spec.file.as_ref();
        let refused = file.is_some_and(|file| file.path.as_str() == "refused");
        if refused {
            Err(Nack::new("PathRefused", "path is refused"))
        } else {
            Ok(())
        }
    }

    fn check_sink(&self, _: &SinkSetup) -> Result<(), Nack> {
        Ok(())
    }

    fn source(&self, setup: &SourceSetup) -> Result<Arc<dyn Paths>, Nack> {
        self.elsewhere.create(&setup.path);
        // Another one each time, as a session would be.
        Ok(Arc::new(self.elsewhere.clone()))
    }

    async fn create(&self, setup: &SinkSetup) -> Result<std::sync::Arc<dyn Sink>, SinkError> {
        let script = self.of(&setup.sink.name);
        script.made.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(script))
    }
}

struct InMemory(Arc<MemoryPaths>);

impl Queues for InMemory {
    fn of(&self, _: &ConnectionPlan) -> Result<Arc<dyn Paths>, Nack> {
        Ok(Arc::clone(&self.0) as Arc<dyn Paths>)
    }
}

pub(super) struct Plant {
    pub(super) paths: MemoryPaths,
    pub(super) scripts: Arc<Scripts>,
    pub(super) role: DataflowRole,
    pub(super) runner: Runner,
    pub(super) shutdown: Shutdown,
    pub(super) metrics: Metrics,
}

impl Plant {
    /// A runner with a broker and an endpoint named `files`.
    pub(super) async fn new() -> Self {
        Self::over(MemoryPaths::new()).await
    }

    /// Another runner over the same queues.
    pub(super) async fn over(paths: MemoryPaths) -> Self {
        foreshore_tls::install_provider();
        let authority =
            CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).expect("authority");
        let scripts = Arc::new(Scripts {
            sinks: Mutex::default(),
            elsewhere: MemoryPaths::new(),
        });
        let (shutdown, metrics) = (Shutdown::new(), Metrics::new());
        let options = RunnerOptions {
            queues: Arc::new(InMemory(Arc::new(paths.clone()))),
            factories: vec![Arc::clone(&scripts) as Arc<dyn SinkFactory>],
            surroundings: Surroundings {
                identity: Identity::anonymous(authority.bundle()).expect("identity"),
                data_directory: None,
                metrics: metrics.clone(),
                assets: Assets::default(),
                reporter: None,
                shutdown: shutdown.clone(),
            },
        };
        let (role, runner) = DataflowRole::new(options);
        let mut plant = Self {
            paths,
            scripts,
            role,
            runner,
            shutdown,
            metrics,
        };
        plant.set(&connection("main")).await.expect("connection");
        plant.set(&endpoint("files", "out")).await.expect("endpoint");
        plant
    }

    pub(super) async fn set<T: PlanResource>(&mut self, resource: &T) -> Result<(), Nack> {
        self.role
            .apply(Change::Set(Resource::of(resource).expect("resource")))
            .await
    }

    pub(super) async fn remove(&mut self, kind: &str, name: &str) -> Result<(), Nack> {
        self.role
            .apply(Change::Remove(ResourceKey::new(kind, NAMESPACE, name)))
            .await
    }

    /// Puts a dataflow named `flow` in force, with queues for its sinks.
    pub(super) async fn flow(&mut self, spec: Value) -> Result<(), Nack> {
        let plan = dataflow("flow", spec);
        for path in plan.paths.values() {
            self.paths.create(path);
        }
        self.set(&plan).await
    }

    pub(super) fn publish(&self, sink: &str, payload: impl ToString) -> u64 {
        let record = Record::new(TopicName::new("line/value").expect("topic"), payload.to_string());
        self.paths.publish(&path(sink), record)
    }

    pub(super) fn ledger(&self, sink: &str) -> PathLedger {
        self.paths.ledger(&path(sink))
    }

    pub(super) async fn end(self) {
        self.shutdown.begin(Duration::from_secs(5));
        tokio::time::timeout(GENEROUS, self.runner.ended())
            .await
            .expect("runner ends");
    }
}

pub(super) fn path(sink: &str) -> String {
    PathPlan::name(NAMESPACE, "flow", sink)
}

fn object(name: &str) -> ObjectRef {
    let (namespace, name) = (NAMESPACE.to_owned(), name.to_owned());
    ObjectRef {
        namespace,
        uid: format!("uid-{name}"),
        name,
        generation: 1,
    }
}

pub(super) fn connection(broker: &str) -> ConnectionPlan {
    ConnectionPlan {
        namespace: NAMESPACE.to_owned(),
        broker: broker.to_owned(),
        uid: format!("uid-{broker}"),
        mqtt_addresses: vec!["127.0.0.1:1".to_owned()],
        queue_addresses: vec!["127.0.0.1:2".to_owned()],
        server_name: "localhost".to_owned(),
    }
}

pub(super) fn endpoint(name: &str, folder: &str) -> EndpointPlan {
    let spec = serde_json::from_value(json!({ "file": { "path": folder } })).expect("endpoint");
    EndpointPlan {
        object: object(name),
        spec,
    }
}

pub(super) fn dataflow(name: &str, spec: Value) -> DataflowPlan {
    let spec: foreshore_crds::v1alpha1::DataflowSpec = serde_json::from_value(spec).expect("dataflow");
    let paths = spec
        .sinks
        .iter()
        .map(|sink| (sink.name.to_string(), PathPlan::name(NAMESPACE, name, &sink.name)));
    DataflowPlan {
        object: object(name),
        paths: paths.collect(),
        spec,
    }
}

/// A dataflow with these stages and one sink named `out`, quick in everything.
pub(super) fn line(stages: Value) -> Value {
    json!({
        "source": { "topics": ["#"] },
        "stages": stages,
        "sinks": [{ "name": "out", "endpointRef": { "name": "files" } }],
        "delivery": quick(),
    })
}

pub(super) fn quick() -> Value {
    json!({
        "batch": { "maxRecords": 10, "maxDelay": "5ms" },
        "backoff": { "initial": "5ms", "maximum": "40ms" },
        "timeout": "5s",
    })
}

/// Waits until something holds.
#[track_caller]
pub(super) fn until(what: &'static str, mut holds: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let deadline = tokio::time::Instant::now() + GENEROUS;
        while !holds() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{what} did not happen ({place})"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
