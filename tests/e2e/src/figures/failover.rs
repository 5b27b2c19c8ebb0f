//! The time without a leader, after one stops answering and gives nothing back.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{change, footprint, percentile};
use crate::{
    api::Api,
    cluster::{Cluster, DEADLINE, OPERATOR, eventually, is_ready, restarts},
    scenarios::kill,
};

const ROUNDS: usize = 5;
const ROUNDS_QUICK: usize = 1;

/// Stops leaders, as a node does that hangs: their processes get no processor time, and their connections stay open.
pub(super) async fn times(cluster: &Cluster, quick: bool) -> Result<String> {
    let api = Api::reach().await?;
    let (mut leading, mut taking) = (Vec::new(), Vec::new());
    for round in 0..if quick { ROUNDS_QUICK } else { ROUNDS } {
        let leader = kill::leader(cluster).await?.context("nobody leads")?;
        let pod = cluster.json(&["get", "pod", &leader, "-n", OPERATOR]).await?;
        let processes = footprint::processes_of(&pod)?;
        let began = Instant::now();
        signal("STOP", &processes).await?;
        let led = eventually("another one leads", DEADLINE, || async {
            let now = kill::leader(cluster).await?.filter(|now| *now != leader);
            Ok(now.map(|_| began.elapsed()))
        })
        .await;
        let taken = change::time(&api, "filler", round).await;
        let taken = taken.map(|_| began.elapsed());
        signal("CONT", &processes).await?;
        leading.push(led?.as_secs_f64());
        taking.push(taken?.as_secs_f64());
        let before = restarts(&pod);
        eventually("the former leader is a standby", DEADLINE, || async {
            let pods = cluster.items(&["pods", "-n", OPERATOR]).await?;
            let former = pods.iter().find(|pod| pod["metadata"]["name"] == *leader);
            // It notices that it leads no more, ends, and is started again.
            let ended = former.is_some_and(|pod| restarts(pod) > before);
            Ok((ended && pods.iter().all(is_ready)).then_some(()))
        })
        .await?;
    }
    leading.sort_by(f64::total_cmp);
    taking.sort_by(f64::total_cmp);
    Ok(format!(
        "### After a leader hangs\n\n\
         | leaders | another one leads: p50 | slowest | a change is taken: p50 | slowest |\n|---|---|---|---|---|\n\
         | {} | {:.1} s | {:.1} s | {:.1} s | {:.1} s |\n\n\
         Its process is stopped (SIGSTOP), so that it gives nothing back. Floor: 15 s. Data flows meanwhile.\n",
        leading.len(),
        percentile(&leading, 50),
        percentile(&leading, 100),
        percentile(&taking, 50),
        percentile(&taking, 100),
    ))
}

async fn signal(name: &str, processes: &[u32]) -> Result<()> {
    ensure!(!processes.is_empty(), "no process of the leader on this machine");
    let mut kill = tokio::process::Command::new("kill");
    kill.arg(format!("-{name}"));
    kill.args(processes.iter().map(u32::to_string));
    ensure!(kill.status().await?.success(), "kill -{name} {processes:?}");
    Ok(())
}
