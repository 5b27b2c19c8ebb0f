//! Helm keeps a release, the chart's sources and what they render to, in one Secret of at most 1 MiB.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{DEFINITIONS, OPERATOR, render, texts};
use crate::shell;

/// Far enough below the limit for values of a plant and kinds to come.
const MOST_BYTES: usize = 700_000;

/// Fails when a release would hardly fit.
pub(super) fn check(helm: &Path) -> Result<()> {
    let all = ["--values", "charts/foreshore/tests/everything.yaml", "--set"];
    let observed = "observability.prometheusRule.enabled=true,observability.dashboards.enabled=true";
    for (chart, arguments) in [
        (DEFINITIONS, vec![]),
        (OPERATOR, [&all[..], &[observed]].concat()),
    ] {
        let bytes = release(chart, &render::template(helm, chart, &arguments)?)?;
        if bytes > MOST_BYTES {
            bail!("a release of {chart} takes {bytes} bytes, allowed are {MOST_BYTES}");
        }
        eprintln!("    a release of {chart} takes {} kB", bytes / 1000);
    }
    Ok(())
}

/// Bytes of the Secret, packed as Helm packs it: JSON with files in Base64, gzip, Base64.
fn release(chart: &str, manifest: &str) -> Result<usize> {
    let mut files = Vec::new();
    gather(&shell::root().join(chart), &mut files)?;
    let release = json!({ "chart": { "files": files }, "manifest": manifest });
    let packed = gzip(release.to_string().as_bytes())?;
    Ok(STANDARD.encode(packed).len())
}

/// Files of a chart but for its tests, which `.helmignore` leaves out.
fn gather(folder: &Path, files: &mut Vec<Value>) -> Result<()> {
    for (name, text) in texts(folder)? {
        files.push(json!({ "name": name, "data": STANDARD.encode(text) }));
    }
    for entry in folder.read_dir()? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "tests") {
            gather(&path, files)?;
        }
    }
    Ok(())
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut gzip = Command::new("gzip")
        .args(["-9", "--stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("gzip did not start")?;
    let mut input = gzip.stdin.take().context("gzip has no input")?;
    // Written from another thread: gzip would wait for its output to be read.
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let output = gzip.wait_with_output().context("gzip")?;
    match writer.join() {
        Ok(written) => written.context("write to gzip")?,
        Err(_) => bail!("the thread that writes to gzip panicked"),
    }
    if !output.status.success() {
        bail!("gzip ended with {}", output.status);
    }
    Ok(output.stdout)
}
