//! Data from the machines to the cloud, and the ledger that says what became of it.

use std::{path::PathBuf, process::Command, rc::Rc};

use foreshore_record::PathLedger;

use crate::{
    plant::{Plant, START, TELEMETRY},
    site::{Site, is_full},
};

/// It runs for a time, ends by itself with a ledger in which every path balances; and the cloud, asked when everything
/// has ended, has as much of each path as the ledger says that it acknowledged.
#[test]
fn it_runs_for_a_time_and_the_cloud_holds_what_the_closing_ledger_says() {
    let site = Rc::new(Site::new());
    let manifests = site.example("manifests");
    let time = if is_full() { "60s" } else { "12s" };
    let mut plant = Plant::at(&site, &manifests, "data", &["--for", time]);
    let ledger = plant.closing();
    for path in &ledger {
        assert!(path.balances(), "{path:?}");
    }
    let path = |name: &str| -> &PathLedger {
        let found = ledger.iter().find(|path| path.path.starts_with(name));
        found.unwrap_or_else(|| panic!("no {name} in {ledger:?}"))
    };
    assert!(path("connector/bottling/line-1->").delivered > 0, "{ledger:?}");
    assert!(path(TELEMETRY).delivered > 0, "{ledger:?}");

    // Nothing but the cloud endpoint, on what it has kept.
    manifests.keep(&["cloud.yaml", "secrets.yaml"]);
    let mut later = Plant::at(&site, &manifests, "data", &[]);
    let cloud = later.cloud();
    later.wait_until("the cloud answers", START, || cloud.edge().is_some());
    let to_cloud: Vec<_> = ledger
        .iter()
        .filter(|path| path.path.ends_with("->cloud"))
        .collect();
    assert_eq!(to_cloud.len(), 2, "{ledger:?}");
    for path in to_cloud {
        assert_eq!(
            cloud.committed(&path.path).unwrap_or_default(),
            path.emitted.unwrap(),
            "{path:?}"
        );
    }
    later.end();
}

/// The README's first command: no manifests, no folders, nothing said but how long.
#[test]
fn without_a_word_it_runs_the_built_in_line() {
    let site = Site::new();
    // The example has ports of its own, so it gets a network of its own.
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
    if !command.arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: a network namespace can't be made here");
        return;
    }
    let mut command = Command::new("unshare");
    let output = command
        .args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""])
        .arg(PathBuf::from(env!("CARGO_BIN_EXE_foreshore")))
        .args(["up", "--for", if is_full() { "60s" } else { "10s" }])
        .env("XDG_STATE_HOME", site.path("state"))
        .output()
        .unwrap();
    let (results, log) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{log}");
    assert!(log.contains("foreshore runs the built-in bottling line"), "{log}");
    assert!(log.contains("foreshore status"), "{log}");
    // A line without trouble starts and ends without a warning.
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    let delivered = results
        .lines()
        .find(|line| line.starts_with(TELEMETRY))
        .and_then(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    assert!(
        delivered.is_some_and(|delivered| delivered > 0),
        "{results}\n{log}"
    );
    assert!(!results.contains("DOES NOT BALANCE"), "{results}");
}
