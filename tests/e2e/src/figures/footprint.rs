//! Memory and processor time of pods, as the kernel of this machine knows them: for nodes that run on it.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, OPERATOR, PLANT};

/// What is used, of one process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Use {
    /// Resident memory in KiB.
    pub(super) resident: u64,
    /// Resident memory in KiB, with shared pages divided among who shares them.
    proportional: u64,
    /// Processor time in clock ticks.
    ticks: u64,
}

/// Clock ticks of a second: Linux tells programs this many, whatever it counts itself.
const TICKS: u64 = 100;

/// Leaves the example alone, and tells what each pod uses.
pub(super) async fn of_idle(cluster: &Cluster, quick: bool) -> Result<String> {
    let seconds = |usual, short| Duration::from_secs(if quick { short } else { usual });
    tokio::time::sleep(seconds(120, 10)).await;
    let watched = seconds(60, 5);
    let mut pods = Vec::new();
    for namespace in [OPERATOR, PLANT] {
        pods.extend(cluster.items(&["pods", "-n", namespace]).await?);
    }
    let before = pods.iter().map(of_pod).collect::<Result<Vec<_>>>()?;
    tokio::time::sleep(watched).await;
    let mut text =
        "### Pods of the idle example\n\n| pod | RSS | PSS | processors |\n|---|---|---|---|\n".to_owned();
    let mut sum = Use::default();
    for (pod, before) in pods.iter().zip(before) {
        let now = of_pod(pod)?;
        let ticks = now.ticks.saturating_sub(before.ticks);
        let name = pod["metadata"]["generateName"].as_str();
        let name = name
            .or_else(|| pod["metadata"]["name"].as_str())
            .unwrap_or_default();
        text += &row(name.trim_end_matches('-'), Use { ticks, ..now }, watched);
        sum.resident += now.resident;
        sum.proportional += now.proportional;
        sum.ticks += ticks;
    }
    text += &row(&format!("all {}", pods.len()), sum, watched);
    text += "\nFloor: 300 MB of all. The reference publishes 55 pods with 1.3 GB of its own.\n";
    Ok(text)
}

fn row(name: &str, used: Use, watched: Duration) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let processors = used.ticks as f64 / (TICKS as f64 * watched.as_secs_f64());
    format!(
        "| {name} | {} MiB | {} MiB | {processors:.3} |\n",
        used.resident.div_ceil(1024),
        used.proportional.div_ceil(1024)
    )
}

/// What the processes of a pod use.
pub(super) fn of_pod(pod: &Value) -> Result<Use> {
    let mut sum = Use::default();
    for process in processes_of(pod)? {
        let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}")).unwrap_or_default();
        let memory = read("smaps_rollup");
        let kilobytes = |name: &str| {
            let line = memory.lines().find(|line| line.starts_with(name));
            let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
            number.unwrap_or(0)
        };
        sum.resident += kilobytes("Rss:");
        sum.proportional += kilobytes("Pss:");
        // The program's name in brackets may hold spaces; user and system time are the 12th and 13th field behind it.
        let stat = read("stat");
        let fields = stat
            .rsplit_once(')')
            .map(|(_, fields)| fields)
            .unwrap_or_default();
        let fields = fields.split_whitespace().skip(11).take(2);
        sum.ticks += fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(sum)
}

/// The processes of a pod, but for the one that holds its namespaces.
pub(super) fn processes_of(pod: &Value) -> Result<Vec<u32>> {
    let uid = pod["metadata"]["uid"].as_str().context("identity of a pod")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        if read("comm").trim() == "foreshore" && read("cgroup").contains(uid) {
            let process = folder
                .file_name()
                .and_then(|name| name.to_str()?.parse::<u32>().ok());
            found.extend(process);
        }
    }
    ensure!(!found.is_empty(), "no process of pod {uid} on this machine");
    Ok(found)
}
