//! From an OPC UA server to the cloud's disk: how many value changes a second, and how long each takes.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use foreshore_peers::free_port;
use serde_json::Value;

use crate::{
    Plan,
    metrics::Histogram,
    plant::{API_TOKEN, Plant},
    process,
    program::Program,
};

/// Offered value changes a second, rising.
const OFFERED: [u32; 7] = [1_000, 5_000, 10_000, 20_000, 40_000, 60_000, 80_000];
/// Every point changes so often in a second.
const CHANGES: u32 = 10;
/// Points of a dataset: one message holds what changed of these.
const POINTS: u32 = 100;
/// Datasets of an asset.
const DATASETS: u32 = 20;
/// Share of the offered rate that must be committed.
const KEPT_UP: f64 = 0.97;
/// A backlog that is worth more seconds than these is one that grows.
const BACKLOG: f64 = 2.0;

/// One step of the rising load.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) offered: u32,
    /// Changes a second that the simulated server made.
    pub(crate) made: f64,
    /// Values a second that the cloud endpoint committed.
    pub(crate) committed: f64,
    /// Share of one point's changes that is in the history.
    pub(crate) complete: f64,
    /// From source timestamp to commit, in seconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Processors that `up` used, and the simulated server beside it.
    pub(crate) load: f64,
    pub(crate) server_load: f64,
    pub(crate) resident: u64,
    pub(crate) waiting: u64,
}

impl Step {
    /// Whether everything that changed was committed, without a backlog that grows.
    pub(crate) fn kept_up(&self) -> bool {
        self.committed >= KEPT_UP * f64::from(self.offered) && self.complete > 0.999 && self.p99 < BACKLOG
    }

    /// Whether the simulated server made what was asked of it.
    pub(crate) fn offered_was_made(&self) -> bool {
        self.made >= KEPT_UP * f64::from(self.offered)
    }
}

/// Raises the load until it is no longer kept up with; the last step is that one. It is tried twice, since a machine that
/// others use has its moments.
pub(crate) fn measure(plan: &Plan) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for offered in OFFERED {
        let step = || {
            let step = step(plan, offered).with_context(|| format!("{offered} changes a second"))?;
            eprintln!(
                "    {offered}/s offered: {:.0}/s committed, p50 {:.0} ms, p99 {:.0} ms",
                step.committed,
                step.p50 * 1e3,
                step.p99 * 1e3
            );
            Ok::<_, anyhow::Error>(step)
        };
        let step = step().and_then(|first| if first.kept_up() { Ok(first) } else { step() })?;
        let enough = !step.kept_up();
        steps.push(step);
        if enough {
            break;
        }
    }
    Ok(steps)
}

fn step(plan: &Plan, offered: u32) -> Result<Step> {
    let folder = tempfile::tempdir_in(&plan.folder)?;
    let points = offered / CHANGES;
    let server_port = free_port();
    let mut server = Command::new(&plan.foreshore);
    server
        .args(["sim", "opcua", "--log", "error"])
        .args(["--listen", &format!("127.0.0.1:{server_port}")])
        .args(["--load", &points.to_string()])
        .args(["--load-interval", &(1_000 / CHANGES).to_string()])
        .stdout(Stdio::null());
    let mut server = Program::start(&mut server, &folder.path().join("server"))?;
    server.wait_for_port(server_port)?;

    let manifests = folder.path().join("manifests");
    fs::create_dir(&manifests)?;
    let http = free_port();
    fs::write(
        manifests.join("plant.yaml"),
        plant(server_port, http, free_port()),
    )?;
    let assets = assets(points);
    fs::write(manifests.join("assets.yaml"), assets)?;
    let mut plant = Plant::start(plan, &manifests, folder.path(), http)?;
    plant.wait_until_healthy()?;
    thread::sleep(plan.warmup_edge);

    let before = ages(&plant)?;
    let (began, from) = (Instant::now(), jiff::Timestamp::now());
    let ids = [plant.program.id(), server.id()];
    let [cpu, server_cpu] = ids.map(process::cpu_seconds);
    thread::sleep(plan.measured_edge);
    let added = ages(&plant)?.since(&before);
    let seconds = began.elapsed().as_secs_f64();
    let to = jiff::Timestamp::now();
    let [cpu, server_cpu] = [(ids[0], cpu?), (ids[1], server_cpu?)]
        .map(|(id, before)| process::cpu_seconds(id).map(|after| (after - before) / seconds));
    let resident = process::memory(ids[0])?.resident;
    let waiting = plant.waiting()?;
    let step = Step {
        offered,
        made: 0.0,
        committed: added.count() / seconds,
        complete: 0.0,
        p50: added.percentile(0.5),
        p99: added.percentile(0.99),
        load: cpu?,
        server_load: server_cpu?,
        resident,
        waiting,
    };
    // What was measured last is committed by then, unless a backlog keeps it.
    thread::sleep(std::time::Duration::from_secs(2));
    let rounds = rounds(&plant, from, to)?;
    let rounds = Rounds::of(&rounds)?;
    plant.program.end()?;
    Ok(Step {
        made: rounds.rate * f64::from(points),
        complete: rounds.complete,
        ..step
    })
}

fn ages(plant: &Plant) -> Result<Histogram> {
    Histogram::read(&plant.metrics("cloud/")?, "foreshore_cloud_commit_age_seconds")
}

/// The history of the first point: its value counts the rounds of changes.
fn rounds(plant: &Plant, from: jiff::Timestamp, to: jiff::Timestamp) -> Result<Value> {
    plant.api(&format!(
        "/api/assets/bench/load-0/values?member=load-0&point=P0&from={from}&to={to}&limit=10000"
    ))
}

/// What the history of one point tells of the simulated server, and of what is missing.
struct Rounds {
    /// Rounds a second.
    rate: f64,
    complete: f64,
}

impl Rounds {
    fn of(history: &Value) -> Result<Self> {
        let values = history["items"].as_array().context("no values in the history")?;
        let read = |value: &Value| -> Result<(f64, f64)> {
            let time: jiff::Timestamp = value["time"].as_str().context("no time")?.parse()?;
            let round = value["value"].as_f64().context("no number")?;
            Ok((time.as_nanosecond() as f64 / 1e9, round))
        };
        let (Some(first), Some(last)) = (values.first(), values.last()) else {
            bail!("the history of the first point is empty");
        };
        let ((began, first), (ended, last)) = (read(first)?, read(last)?);
        Ok(Self {
            rate: (last - first) / (ended - began),
            complete: values.len() as f64 / (last - first + 1.0),
        })
    }
}

/// Broker on its disk, connector, cloud endpoint and the dataflow between, as the example has them.
fn plant(server: u16, http: u16, edge_link: u16) -> String {
    let header = |kind: &str, name: &str| {
        format!(
            "---\napiVersion: foreshore.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: bench}}\nspec:\n"
        )
    };
    let secret = |name: &str, key: &str, value: &str| {
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: bench}}\nstringData: {{{key}: {value}}}\n"
        )
    };
    let token = "bench-join-token-0123456789abcdef";
    [
        header("Broker", "broker"),
        "  storage: {backend: Fjall}\n".to_owned(),
        header("Connector", "opcua"),
        "  protocol: opcua\n".to_owned(),
        header("Device", "server"),
        format!("  address: opc.tcp://127.0.0.1:{server}/\n  trust: {{acceptUntrusted: true}}\n"),
        "  opcua: {securityPolicy: Basic256Sha256, securityMode: SignAndEncrypt}\n".to_owned(),
        header("Cloud", "cloud"),
        format!("  edgeLink: {{port: {edge_link}}}\n  http: {{port: {http}}}\n"),
        "  joinTokensSecretRef: {name: joins}\n  apiTokenSecretRef: {name: api}\n".to_owned(),
        header("DataflowEndpoint", "cloud"),
        "  cloud: {cloudRef: {name: cloud}, edgeId: bench, joinTokenSecretRef: {name: join}}\n".to_owned(),
        header("Dataflow", "telemetry"),
        "  source: {topics: [foreshore/data/bench/#]}\n".to_owned(),
        "  sinks: [{name: cloud, endpointRef: {name: cloud}}]\n".to_owned(),
        "  delivery: {batch: {maxDelay: 100ms}}\n".to_owned(),
        secret("joins", "bench", token),
        secret("join", "token", token),
        secret("api", "token", API_TOKEN),
    ]
    .concat()
}

/// Assets that hold all points.
fn assets(points: u32) -> String {
    let mut text = String::new();
    let datasets = points.div_ceil(POINTS);
    for dataset in 0..datasets {
        if dataset % DATASETS == 0 {
            let asset = dataset / DATASETS;
            text.push_str("---\napiVersion: foreshore.dev/v1alpha1\nkind: Asset\n");
            text += &format!("metadata: {{name: load-{asset}, namespace: bench}}\n");
            text.push_str("spec:\n  deviceRef: {name: server}\n  datasets:\n");
        }
        let interval = 1_000 / CHANGES;
        text += &format!("  - name: load-{dataset}\n    samplingInterval: {interval}ms\n");
        text += &format!("    publishingInterval: {interval}ms\n    dataPoints:\n");
        for point in dataset * POINTS..((dataset + 1) * POINTS).min(points) {
            let address = format!("nsu=urn:foreshore:sim:bottling-line;s=Load.{point}");
            text += &format!("    - {{name: P{point}, address: \"{address}\"}}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_in_the_history_is_seen() {
        let value = |second: u32, round: u32| serde_json::json!({"time": format!("2026-01-01T00:00:{second:02}Z"), "value": round});
        let history = |rounds: &[u32]| {
            let values = rounds.iter().map(|round| value(*round, *round));
            serde_json::json!({ "items": values.collect::<Vec<_>>() })
        };
        let whole = Rounds::of(&history(&[1, 2, 3, 4, 5])).unwrap();
        assert_eq!((whole.rate, whole.complete), (1.0, 1.0));
        let gap = Rounds::of(&history(&[1, 2, 4, 5])).unwrap();
        assert_eq!((gap.rate, gap.complete), (1.0, 0.8));
        assert!(Rounds::of(&history(&[])).is_err());
    }
}
