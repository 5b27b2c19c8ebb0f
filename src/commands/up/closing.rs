//! The closing ledger: what became of every record.

use std::io::Write as _;

use anyhow::Result;
use foreshore_record::PathLedger;
use serde::Serialize;

use crate::roles::Directory;

#[derive(Serialize)]
struct Closing {
    ledger: Vec<PathLedger>,
}

/// Prints the ledger, for people or as one line of JSON.
pub(super) async fn print(directory: &Directory, json: bool) -> Result<()> {
    let mut ledger = directory.ledger().await;
    ledger.sort_by(|a, b| a.path.cmp(&b.path));
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string(&Closing { ledger })?)?;
        return Ok(());
    }
    let width = ledger
        .iter()
        .map(|path| path.path.len())
        .max()
        .unwrap_or(0)
        .max(4);
    writeln!(
        out,
        "\n{:width$}  {:>10}  {:>10}  {:>8}  {:>6}  dropped",
        "path", "received", "delivered", "waiting", "dead"
    )?;
    for path in &ledger {
        let dropped: Vec<String> = path
            .dropped
            .iter()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
        let note = if path.balances() { "" } else { "  DOES NOT BALANCE" };
        writeln!(
            out,
            "{:width$}  {:>10}  {:>10}  {:>8}  {:>6}  {}{note}",
            path.path,
            path.received,
            path.delivered,
            path.waiting,
            path.dead_lettered,
            dropped.join(", ")
        )?;
    }
    Ok(())
}
