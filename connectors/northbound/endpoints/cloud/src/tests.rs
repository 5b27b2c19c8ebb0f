//! Both ends over TCP: the sink and a cloud endpoint.

mod commands;
mod delivery;
mod identity;
mod proxy;
mod registry;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use foreshore_cloud::{ApiToken, Cloud, Handle, JoinToken, Options, Secret};
use foreshore_control::plan::{
    AssetSummaryPlan, ConnectionPlan, EndpointPlan, ObjectRef, SecretPlan, SecretValue,
};
use foreshore_crds::v1alpha1::{AssetSpec, dataflow_endpoint::DataflowEndpointSpec};
use foreshore_northbound::{
    Assets, Batch, Delivery, EndpointSetup, Output, Secrets, Sink, SinkError, Surroundings,
};
use foreshore_record::{DataValue, Interval, Lane, Record, TopicName, value};
use foreshore_runtime::{HealthRegistry, Metrics, Shutdown, Task};
use foreshore_tls::Identity;
use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{CloudSinkFactory, link::Link, sink::CloudSink};

const TOKEN: &str = "join-token-of-the-plant";
const API_TOKEN: &str = "token-of-the-json-api";
const PATH: &str = "dataflow/bottling/telemetry->cloud";

/// How long anything may take: a deadline, not a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cloud endpoint that runs.
struct Running {
    handle: Handle,
    shutdown: Shutdown,
    task: Task<Result<(), foreshore_cloud::Error>>,
}

impl Running {
    async fn start(options: Options) -> Self {
        foreshore_tls::install_provider();
        let shutdown = Shutdown::new();
        let (health, metrics) = (HealthRegistry::new(), Metrics::new());
        let (handle, task) = Cloud::start(options, &health, &metrics, shutdown.clone())
            .await
            .unwrap();
        Self {
            handle,
            shutdown,
            task,
        }
    }

    async fn stop(self) {
        self.shutdown.begin(Duration::from_secs(1));
        self.task.await.unwrap().unwrap();
    }

    async fn get(&self, path: &str) -> Value {
        self.http("GET", path, "").await.1
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.http("POST", path, &body.to_string()).await
    }

    async fn http(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        http(self.handle.http_address(), API_TOKEN, method, path, body).await
    }

    /// Outputs that the cloud holds of the path, and those that came again.
    async fn counts(&self) -> (u64, u64) {
        let ledger = self.get("/api/ledger").await;
        let Some(path) = ledger["items"].as_array().and_then(|items| items.first()) else {
            return (0, 0);
        };
        (
            path["committed"].as_u64().unwrap(),
            path["repeated"].as_u64().unwrap(),
        )
    }
}

async fn http(address: SocketAddr, token: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    http_with(
        address,
        &format!("authorization: Bearer {token}"),
        method,
        path,
        body,
    )
    .await
}

/// With these headers, separated by line breaks.
async fn http_with(address: SocketAddr, headers: &str, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: cloud\r\n{headers}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_default())
}

/// A plant with its cloud endpoint's options, and the directories of both.
struct Plant {
    cloud: TempDir,
    edge: TempDir,
}

impl Plant {
    fn new() -> Self {
        Self {
            cloud: TempDir::new().unwrap(),
            edge: TempDir::new().unwrap(),
        }
    }

    fn options(&self) -> Options {
        let mut options = Options::new(self.cloud.path().join("data"), Secret::new(API_TOKEN));
        let token = Secret::new(TOKEN);
        options.join_tokens = vec![JoinToken {
            edge: "plant".to_owned(),
            token,
            expires_at: None,
        }];
        options
    }

    /// The edge's end, towards an address.
    fn link(&self, cloud: &Running, address: SocketAddr) -> CloudSink {
        self.link_with(cloud, address, |_, _| {})
    }

    fn link_with(
        &self,
        cloud: &Running,
        address: SocketAddr,
        change: impl FnOnce(&mut EndpointSetup, &mut Surroundings),
    ) -> CloudSink {
        let trust = cloud.handle.trust_bundle();
        let mut setup = setup(address, &trust.to_pem());
        let mut surroundings = Surroundings {
            identity: Identity::anonymous(trust).unwrap(),
            data_directory: Some(self.edge.path().to_owned()),
            metrics: Metrics::new(),
            assets: Assets::default(),
            reporter: None,
            shutdown: Shutdown::new(),
        };
        change(&mut setup, &mut surroundings);
        let settings = CloudSinkFactory::new(surroundings.clone())
            .settings(&setup)
            .unwrap();
        CloudSink::new(Arc::new(Link::start(settings, &surroundings)))
    }
}

fn setup(address: SocketAddr, authority: &str) -> EndpointSetup {
    let spec: DataflowEndpointSpec = serde_json::from_value(json!({ "cloud": {
        "address": address.to_string(),
        "edgeId": "plant",
        "joinTokenSecretRef": { "name": "join" },
        "caSecretRef": { "name": "authority" },
        "keepAlive": "5s",
    }}))
    .unwrap();
    let object = ObjectRef {
        namespace: "bottling".to_owned(),
        name: "cloud".to_owned(),
        uid: "uid".to_owned(),
        generation: 1,
    };
    let secret = |name: &str, key: &str, value: &str| {
        let data = BTreeMap::from([(key.to_owned(), SecretValue(value.as_bytes().to_vec()))]);
        (
            name.to_owned(),
            SecretPlan {
                namespace: "bottling".to_owned(),
                name: name.to_owned(),
                data,
            },
        )
    };
    let secrets = BTreeMap::from([
        secret("join", "token", TOKEN),
        secret("authority", "ca.crt", authority),
    ]);
    EndpointSetup {
        endpoint: EndpointPlan { object, spec },
        secrets: Secrets(Arc::new(secrets)),
        brokers: Arc::new(BTreeMap::<String, ConnectionPlan>::new()),
    }
}

/// An asset with one action, whose commands go to the broker `broker`.
fn asset(name: &str) -> AssetSummaryPlan {
    let spec: AssetSpec = serde_json::from_value(json!({
        "deviceRef": { "name": "line-1" },
        "displayName": format!("the {name}"),
        "actionGroups": [{ "name": "control", "actions": [{ "name": "start", "type": "Call" }] }],
    }))
    .unwrap();
    let object = ObjectRef {
        namespace: "bottling".to_owned(),
        name: name.to_owned(),
        uid: "uid".to_owned(),
        generation: 1,
    };
    AssetSummaryPlan::new(object, "broker", &spec)
}

/// A plan that holds these assets and no others.
fn assets(names: &[&str]) -> Assets {
    let assets = Assets::default();
    names.iter().for_each(|name| assets.set(asset(name)));
    assets.complete();
    assets
}

/// Outputs of the entries `first..=last`, one dataset message each.
fn outputs(first: u64, last: u64) -> Vec<Output> {
    let output = |id: u64| {
        let topic = TopicName::new("foreshore/data/bottling/filler/process").unwrap();
        let time = Timestamp::from_second(1_700_000_000 + id.cast_signed()).unwrap();
        let message = [("speed".to_owned(), DataValue::good(id, time))].into();
        let record = Arc::new(Record::new(topic, value::encode(&message).unwrap()));
        Output {
            store_epoch: 7,
            id,
            index: 0,
            attempt: 0,
            record,
        }
    };
    (first..=last).map(output).collect()
}

async fn deliver(sink: &CloudSink, lane: Lane, outputs: &[Output]) -> Result<Vec<Delivery>, SinkError> {
    let (first, last) = (outputs.first().unwrap().id, outputs.last().unwrap().id);
    let settles = [Interval {
        store_epoch: 7,
        first,
        last,
    }];
    sink.deliver(Batch {
        path: PATH,
        path_epoch: 1,
        lane,
        settles: &settles,
        outputs,
    })
    .await
}

/// Delivers as the engine does: again until it is acknowledged.
async fn deliver_surely(sink: &CloudSink, lane: Lane, outputs: &[Output]) -> Vec<Delivery> {
    let trying = async {
        loop {
            match deliver(sink, lane, outputs).await {
                Ok(deliveries) => return deliveries,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, trying).await.unwrap()
}

/// Waits until something holds.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}
