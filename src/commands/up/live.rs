//! A calm live line: rates, backlog, health.

use std::{sync::Arc, time::Duration};

use foreshore_operator::Handle;
use foreshore_record::PathLedger;

use crate::roles::Directory;

/// Time between two lines on a terminal, where each replaces the one before.
const ON_TERMINAL: Duration = Duration::from_secs(1);
/// Time between two lines in a file.
const IN_FILE: Duration = Duration::from_secs(10);

/// Shows how it goes, until dropped.
pub(super) async fn show(operator: Handle, directory: Arc<Directory>, terminal: bool) {
    let interval = if terminal { ON_TERMINAL } else { IN_FILE };
    let mut ticks = tokio::time::interval(interval);
    ticks.tick().await;
    let mut before = Flow::default();
    loop {
        ticks.tick().await;
        let Some(status) = operator.status().await else {
            return;
        };
        let now = Flow::of(&directory.ledger().await);
        let seconds = interval.as_secs();
        let line = format!(
            "{} in/s  {} out/s  {} waiting  {} dead  {}/{} ready  {} unhealthy  {} problems",
            now.taken_in.saturating_sub(before.taken_in) / seconds,
            now.delivered.saturating_sub(before.delivered) / seconds,
            now.waiting,
            now.dead,
            status.summary.ready,
            status.summary.objects,
            status.summary.unhealthy,
            status.summary.problems,
        );
        if terminal {
            eprint!("\r\x1b[2K{line}");
        } else {
            eprintln!("{line}");
        }
        before = now;
    }
}

/// Sums over the ledger.
#[derive(Default)]
struct Flow {
    /// Records that connectors handed to brokers.
    taken_in: u64,
    /// Records that dataflows delivered.
    delivered: u64,
    waiting: u64,
    dead: u64,
}

impl Flow {
    fn of(ledger: &[PathLedger]) -> Self {
        let mut flow = Self::default();
        for path in ledger {
            if path.path.starts_with("connector/") {
                flow.taken_in += path.received;
            } else {
                flow.delivered += path.delivered;
                flow.waiting += path.waiting;
                flow.dead += path.dead_lettered;
            }
        }
        flow
    }
}
