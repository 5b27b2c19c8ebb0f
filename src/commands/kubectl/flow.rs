//! Whether data flows: the ledger, looked at until every path has delivered something of what came in.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use foreshore_operator::kubernetes::access::{Access, survey::Finding};
use foreshore_record::PathLedger;
use tokio::time::{Instant, sleep};

use super::ledger_of;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Watches the dataflows of a namespace, or of all, until each has delivered something more, or the time is over.
pub(super) async fn watch(
    access: &Access,
    namespace: Option<&str>,
    patience: Duration,
) -> Result<Vec<Finding>> {
    let end = Instant::now() + patience;
    let first = by_path(ledger_of(access, namespace).await?);
    loop {
        sleep(INTERVAL).await;
        let now = by_path(ledger_of(access, namespace).await?);
        let flows = |(path, before): (&String, &PathLedger)| {
            now.get(path).is_some_and(|now| now.delivered > before.delivered)
        };
        if first.iter().filter(|(path, _)| is_dataflow(path)).all(flows) || Instant::now() >= end {
            return Ok(judge(&first, &now));
        }
    }
}

/// Waits until the path whose name ends with `way` has delivered something at all.
pub(super) async fn first_delivery(
    access: &Access,
    namespace: &str,
    way: &str,
    patience: Duration,
) -> Result<Option<PathLedger>> {
    let end = Instant::now() + patience;
    loop {
        // Brokers come and go until all is set up.
        if let Ok(ledger) = ledger_of(access, Some(namespace)).await {
            let mut flows = ledger.into_iter().filter(|path| path.path.ends_with(way));
            if let Some(path) = flows.find(|path| path.delivered > 0) {
                return Ok(Some(path));
            }
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        sleep(INTERVAL).await;
    }
}

fn by_path(ledger: Vec<PathLedger>) -> BTreeMap<String, PathLedger> {
    ledger.into_iter().map(|path| (path.path.clone(), path)).collect()
}

/// Paths from a broker to an endpoint; others are from a connector to its broker.
fn is_dataflow(path: &str) -> bool {
    path.starts_with("dataflow/")
}

fn judge(before: &BTreeMap<String, PathLedger>, now: &BTreeMap<String, PathLedger>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut flowing = 0;
    for (path, ledger) in now {
        let what = format!("path {path}");
        if !ledger.balances() {
            let next = "report it with a support bundle: records were lost or counted twice";
            findings.push(Finding::wrong(
                what.clone(),
                format!("does not balance: {ledger:?}"),
                next,
            ));
        }
        if !is_dataflow(path) {
            continue;
        }
        let earlier = before.get(path).cloned().unwrap_or_default();
        let (came, went) = (
            ledger.received.saturating_sub(earlier.received),
            ledger.delivered.saturating_sub(earlier.delivered),
        );
        if went > 0 {
            flowing += 1;
        } else if came > 0 || ledger.waiting > 0 {
            let found = format!("{came} came in, none was delivered, {} wait", ledger.waiting);
            let next = "look at `kubectl describe` of its Dataflow and DataflowEndpoint";
            findings.push(Finding::wrong(what, found, next));
        } else {
            let found = "nothing came in and nothing waits";
            let next = "look at the Devices and Assets that it takes from, if there should be values";
            findings.push(Finding::unclear(what, found, next));
        }
    }
    let dataflows = now.keys().filter(|path| is_dataflow(path)).count();
    if dataflows == 0 {
        findings.push(Finding::unclear(
            "data",
            "no dataflow is declared",
            "declare one, or let --trial prove the way with a plant of its own",
        ));
    } else if flowing == dataflows {
        findings.push(Finding::ok(
            "data",
            format!("flows on all {flowing} dataflow paths, and the ledger balances"),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use foreshore_operator::kubernetes::access::survey::Verdict;

    use super::*;

    fn path(received: u64, delivered: u64) -> BTreeMap<String, PathLedger> {
        by_path(vec![PathLedger {
            path: "dataflow/plant/all->cloud".to_owned(),
            received,
            delivered,
            waiting: received - delivered,
            ..PathLedger::default()
        }])
    }

    fn verdict(before: &BTreeMap<String, PathLedger>, now: &BTreeMap<String, PathLedger>) -> Verdict {
        judge(before, now)
            .into_iter()
            .map(|finding| finding.verdict)
            .max()
            .unwrap()
    }

    #[test]
    fn data_flows_when_something_was_delivered_meanwhile() {
        assert_eq!(verdict(&path(5, 5), &path(7, 6)), Verdict::Ok);
        assert_eq!(verdict(&path(5, 5), &path(7, 5)), Verdict::Wrong);
        assert_eq!(verdict(&path(7, 5), &path(7, 5)), Verdict::Wrong);
        assert_eq!(verdict(&path(5, 5), &path(5, 5)), Verdict::Unclear);
        assert_eq!(verdict(&BTreeMap::new(), &BTreeMap::new()), Verdict::Unclear);
    }

    #[test]
    fn a_ledger_that_does_not_balance_is_wrong() {
        let mut now = path(7, 7);
        now.values_mut().for_each(|path| path.received += 1);
        assert_eq!(verdict(&path(5, 5), &now), Verdict::Wrong);
    }
}
