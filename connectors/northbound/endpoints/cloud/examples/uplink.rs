//! How fast records reach the cloud endpoint's disk: one edge, one dataflow, TLS and EdgeLink and SQLite included.
//!
//! `cargo run --release -p foreshore-endpoint-cloud --example uplink -- [SECONDS] [POINTS]`: records of POINTS values each.

use std::{
    collections::BTreeMap,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use foreshore_cloud::{Cloud, JoinToken, Options, Secret};
use foreshore_control::plan::{EndpointPlan, ObjectRef, SecretPlan, SecretValue};
use foreshore_endpoint_cloud::CloudSinkFactory;
use foreshore_northbound::{
    Assets, Batch, EndpointSetup, Output, Secrets, Sink, SinkFactory, SinkSetup, Surroundings,
};
use foreshore_record::{DataValue, Interval, Lane, Record, TopicName, value};
use foreshore_runtime::{HealthRegistry, Metrics, Shutdown};
use foreshore_tls::Identity;
use jiff::Timestamp;
use serde_json::json;

const TOKEN: &str = "join-token-of-the-example";
const PATH: &str = "dataflow/bottling/telemetry->cloud";
const RECORDS: u64 = 500;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(Ok(5), |text| text.parse::<u64>())?;
    let points = arguments.next().map_or(Ok(1), |text| text.parse::<u64>())?;
    foreshore_tls::install_provider();
    let (cloud_directory, edge_directory) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let mut options = Options::new(cloud_directory.path(), Secret::new("token-of-the-json-api"));
    options.join_tokens = vec![JoinToken {
        edge: "plant".to_owned(),
        token: Secret::new(TOKEN),
        expires_at: None,
    }];
    let shutdown = Shutdown::new();
    let (handle, task) =
        Cloud::start(options, &HealthRegistry::new(), &Metrics::new(), shutdown.clone()).await?;

    let surroundings = Surroundings {
        identity: Identity::anonymous(handle.trust_bundle())?,
        data_directory: Some(edge_directory.path().to_owned()),
        metrics: Metrics::new(),
        assets: Assets::default(),
        reporter: None,
        shutdown: Shutdown::new(),
    };
    let factory = CloudSinkFactory::new(surroundings);
    let setup = setup(
        handle.edge_link_address().to_string(),
        &handle.trust_bundle().to_pem(),
    )?;
    let sink = factory.create(&setup).await?;
    sink.probe().await?;

    let (next, stop) = (
        Arc::new(AtomicU64::new(0)),
        Instant::now() + Duration::from_secs(seconds),
    );
    let begun = Instant::now();
    let senders: Vec<_> = (0..sink.capabilities().max_inflight)
        .map(|_| tokio::spawn(send(Arc::clone(&sink), Arc::clone(&next), stop, points)))
        .collect();
    let mut latencies = Vec::new();
    for sender in senders {
        latencies.extend(sender.await?);
    }
    let elapsed = begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let records = latencies.len() as u64 * RECORDS;
    let at = |part: f64| {
        latencies
            .get((latencies.len() as f64 * part) as usize)
            .copied()
            .unwrap_or_default()
    };
    println!(
        "{:.0} records/s, {:.0} values/s committed; batch of {RECORDS} records to its acknowledgement: p50 {:?}, p99 {:?}",
        records as f64 / elapsed,
        (records * points) as f64 / elapsed,
        at(0.5),
        at(0.99),
    );
    shutdown.begin(Duration::from_secs(5));
    task.await??;
    Ok(())
}

/// Delivers batches one after another, and returns how long each took.
async fn send(sink: Arc<dyn Sink>, next: Arc<AtomicU64>, stop: Instant, points: u64) -> Vec<Duration> {
    let mut latencies = Vec::new();
    while Instant::now() < stop {
        let first = next.fetch_add(RECORDS, Ordering::Relaxed) + 1;
        let outputs: Vec<Output> = (first..first + RECORDS)
            .filter_map(|id| output(id, points))
            .collect();
        let settles = [Interval {
            store_epoch: 1,
            first,
            last: first + RECORDS - 1,
        }];
        let batch = Batch {
            path: PATH,
            path_epoch: 1,
            lane: Lane::Live,
            settles: &settles,
            outputs: &outputs,
        };
        let begun = Instant::now();
        match sink.deliver(batch).await {
            Ok(_) => latencies.push(begun.elapsed()),
            Err(error) => eprintln!("not delivered: {error}"),
        }
    }
    latencies
}

fn output(id: u64, points: u64) -> Option<Output> {
    let asset = id % 20;
    let topic = TopicName::new(format!("foreshore/data/bottling/machine-{asset}/process")).ok()?;
    let value = |point| {
        (
            format!("point-{point}"),
            DataValue::good(id as f64 * 0.37, Timestamp::now()),
        )
    };
    let message = (0..points).map(value).collect();
    let record = Arc::new(Record::new(topic, value::encode(&message).ok()?));
    Some(Output {
        store_epoch: 1,
        id,
        index: 0,
        attempt: 0,
        record,
    })
}

fn setup(address: String, authority: &str) -> Result<SinkSetup, Box<dyn Error>> {
    let object = |name: &str| ObjectRef {
        namespace: "bottling".to_owned(),
        name: name.to_owned(),
        uid: "uid".to_owned(),
        generation: 1,
    };
    let spec = serde_json::from_value(json!({ "cloud": {
        "address": address,
        "edgeId": "plant",
        "joinTokenSecretRef": { "name": "join" },
        "caSecretRef": { "name": "authority" },
    }}))?;
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
    Ok(SinkSetup {
        dataflow: object("telemetry"),
        sink: serde_json::from_value(json!({ "name": "cloud", "endpointRef": { "name": "cloud" } }))?,
        delivery: Default::default(),
        path: PATH.to_owned(),
        endpoint: EndpointSetup {
            endpoint: EndpointPlan {
                object: object("cloud"),
                spec,
            },
            secrets: Secrets(Arc::new(secrets)),
            brokers: Arc::new(BTreeMap::new()),
        },
        origin: "uid-broker".to_owned(),
    })
}
