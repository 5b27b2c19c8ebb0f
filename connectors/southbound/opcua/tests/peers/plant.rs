//! A connector with one device and one asset, and what it published.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use foreshore_connector_opcua::OpcUaConnector;
use foreshore_connector_sdk::{
    RunnerOptions,
    testkit::{Harness, asset, device, secret},
};
use foreshore_record::{Record, property, value};
use serde_json::{Value, json};
use tempfile::TempDir;
use tracing_subscriber::EnvFilter;

use crate::server::{SOON, Server};

/// Name of the device.
pub(crate) const DEVICE: &str = "line-server";
/// Name of the asset.
pub(crate) const ASSET: &str = "line";
/// The nodes' namespace.
pub(crate) const NAMESPACE: &str = "urn:foreshore:peer:plant";

/// A security of the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    None,
    Sign,
    SignAndEncrypt,
}

/// A connector at work.
pub(crate) struct Plant {
    pub(crate) harness: Harness,
    _state: TempDir,
}

/// A device's spec that trusts the certificates of the Secret `trust`.
pub(crate) fn device_spec(security: Security) -> Value {
    let (policy, mode) = match security {
        Security::None => ("None", "None"),
        Security::Sign => ("Basic256Sha256", "Sign"),
        Security::SignAndEncrypt => ("Basic256Sha256", "SignAndEncrypt"),
    };
    json!({
        "opcua": {
            "securityPolicy": policy,
            "securityMode": mode,
            "keepAliveInterval": "1s",
            "requestTimeout": "3s",
            "retryUnknownAddresses": "1s",
        },
        "trust": { "certificatesSecretRef": { "name": "trust" } },
        "reconnect": { "initial": "100ms", "maximum": "1s" },
    })
}

/// An asset's spec with the counter: every change of it, and room for fifty seconds at the server.
pub(crate) fn counter_spec() -> Value {
    json!({ "datasets": [{
        "name": "fast",
        "samplingInterval": "0s",
        "publishingInterval": "100ms",
        "queueSize": 1000,
        "dataPoints": [{ "name": "counter", "address": node("Counter") }],
    }] })
}

/// Address of a node of the line.
pub(crate) fn node(name: &str) -> String {
    format!("nsu={NAMESPACE};s=Line.{name}")
}

/// A certificate as PEM.
pub(crate) fn pem(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    // Lines of 64 characters (RFC 7468, section 2).
    let lines: Vec<&str> = body
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    let lines = lines.join("\n");
    format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
}

impl Plant {
    /// Starts a connector for a server, dialled at `address`.
    pub(crate) async fn start(server: &Server, address: &str, device_spec: Value, asset_spec: Value) -> Self {
        let mut plant = Self::empty().await;
        plant.trust(&server.certificate()).await;
        plant.put(address, device_spec, asset_spec).await;
        plant
    }

    /// A connector without a plan.
    pub(crate) async fn empty() -> Self {
        // Shown of tests that fail, as RUST_LOG asks.
        let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env());
        drop(log.with_test_writer().try_init());
        let state = tempfile::tempdir().unwrap();
        let mut options = RunnerOptions::new(state.path().to_owned());
        options.report_interval = Duration::from_millis(50);
        let harness = Harness::with(Arc::new(OpcUaConnector), options, Default::default())
            .await
            .unwrap();
        Self {
            harness,
            _state: state,
        }
    }

    /// Puts a device and its asset in force.
    pub(crate) async fn put(&mut self, address: &str, device_spec: Value, asset_spec: Value) {
        self.harness
            .set(&device(DEVICE, address, device_spec).unwrap())
            .await
            .unwrap();
        self.harness
            .set(&asset(ASSET, DEVICE, asset_spec).unwrap())
            .await
            .unwrap();
    }

    /// Trusts a certificate, and no other.
    pub(crate) async fn trust(&mut self, der: &[u8]) {
        self.harness
            .set(&secret("trust", &[("server.crt", &pem(der))]))
            .await
            .unwrap();
    }

    /// Data messages of a dataset, as a broker would keep them.
    pub(crate) fn frames(&self, dataset: &str) -> Vec<Record> {
        let topic = format!("foreshore/data/plant/{ASSET}/{dataset}");
        let mut kept = self.harness.broker.kept();
        kept.retain(|record| record.topic.as_str() == topic);
        kept
    }

    /// Every value of a data point that was published, in order.
    pub(crate) fn values(&self, dataset: &str, point: &str) -> Vec<Value> {
        let value_of = |record: Record| {
            let mut values = value::decode(&record.payload).unwrap();
            values.remove(point).map(|value| value.value)
        };
        self.frames(dataset).into_iter().filter_map(value_of).collect()
    }

    /// The counter's values.
    pub(crate) fn counter(&self) -> Vec<u64> {
        let values = self.values("fast", "counter");
        values.into_iter().map(|value| value.as_u64().unwrap()).collect()
    }

    /// Waits until so many values of the counter came after the first `after`.
    pub(crate) async fn wait_for_counter(&self, after: usize, count: usize) -> Vec<u64> {
        self.wait(
            |plant| plant.counter().len() >= after + count,
            "the counter stands",
        )
        .await;
        self.counter()
    }

    /// Waits until something holds; checked whenever the broker gets something.
    pub(crate) async fn wait(&self, mut holds: impl FnMut(&Self) -> bool, otherwise: &str) {
        let holds = self.harness.broker.wait_until(SOON, |_| holds(self)).await;
        assert!(
            holds,
            "{otherwise}; the device is {:?}",
            self.harness.reports.report("Device", DEVICE, "Endpoint")
        );
    }

    /// Waits until the device has the reason, and gives back its evidence.
    pub(crate) async fn wait_for_reason(&self, reason: &str) -> String {
        let reports = &self.harness.reports;
        let came = reports
            .wait_until(SOON, |reports| {
                reports.reason("Device", DEVICE, "Endpoint") == reason
            })
            .await;
        let report = reports.report("Device", DEVICE, "Endpoint");
        assert!(came, "wanted {reason}; the device is {report:?}");
        report.map(|report| report.evidence).unwrap_or_default()
    }

    /// Interruptions that were told, each before the values that came after it.
    pub(crate) fn gaps(&self) -> usize {
        let metrics = self.harness.metrics.encode().unwrap();
        let mut lines = metrics.lines();
        let line = lines.find(|line| line.contains("connector_gaps_total{"));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

/// Neighbours in a series that are not consecutive.
pub(crate) fn interruptions(counter: &[u64]) -> Vec<(u64, u64)> {
    let pairs = counter.windows(2).map(|pair| (pair[0], pair[1]));
    pairs.filter(|(one, next)| *next != one + 1).collect()
}

/// Whether a frame says that it holds every point.
pub(crate) fn is_key(record: &Record) -> bool {
    record.user_property(property::FRAME) == Some("key")
}
