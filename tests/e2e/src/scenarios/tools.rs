//! What people have on their own machine: `kubectl foreshore status`, `invoke`, `check` and `support-bundle`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use serde_json::Value;
use tokio::process::Command;

use super::{install, scale};
use crate::cluster::{Cluster, DEADLINE, OPERATOR, PLANT, eventually};

/// Secrets shorter than this occur in texts by chance.
const TELLING: usize = 8;

/// Each tool tells the truth of a plant that is well, and of one that is not; a command moves a machine.
pub(super) async fn tell(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    let status = cluster.foreshore(&["status"]).await?;
    for part in ["bottling/filler", "problems in manifests", "it balances"] {
        ensure!(status.contains(part), "no {part:?} in: {status}");
    }
    scale::balanced(cluster).await?;
    commands(cluster).await?;
    // Pods that were replaced a moment ago may still be on their way out.
    eventually("the check finds nothing wrong", DEADLINE, || async {
        let found = cluster
            .foreshore(&["check", "-n", PLANT, "deploy/examples/bottling-line"])
            .await?;
        for part in ["leader: foreshore-", "manifests: ", "flows on all"] {
            ensure!(found.contains(part), "no {part:?} in: {found}");
        }
        Ok(Some(()))
    })
    .await?;
    wrong_is_told(cluster).await?;
    bundle(cluster).await?;
    if cluster.full {
        trial(cluster).await?;
    }
    Ok(())
}

/// A plant on trial proves the way of the data, and leaves nothing behind.
async fn trial(cluster: &Cluster) -> Result<()> {
    let found = cluster.foreshore(&["check", "-n", PLANT, "--trial"]).await?;
    ensure!(found.contains("committed at a cloud endpoint"), "{found}");
    let left = cluster
        .kubectl(&[
            "get",
            "namespaces",
            "-l",
            "app.kubernetes.io/managed-by=foreshore-check",
            "-o",
            "name",
        ])
        .await?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

/// A command moves a machine, in the user's name; one that is not allowed is refused with the reason.
async fn commands(cluster: &Cluster) -> Result<()> {
    let set = async |speed: u32| {
        let input = format!(r#"{{"BottlesPerMinute":{speed}}}"#);
        let answer = cluster
            .foreshore(&["invoke", "-n", PLANT, "filler", "control/set-speed", &input])
            .await?;
        let answer: Value = serde_json::from_str(&answer).context("answer")?;
        answer["output"]["Previous"]
            .as_f64()
            .with_context(|| answer.to_string())
    };
    // A connector that has just come takes its assets one by one.
    eventually("the filler takes commands", DEADLINE, || async {
        set(250).await.map(Some)
    })
    .await?;
    let before = set(240).await?;
    ensure!((before - 250.0).abs() < 0.5, "the speed before was {before}");
    let refused = cluster
        .foreshore(&["invoke", "bottling/line", "control/stop"])
        .await;
    let refused = refused
        .err()
        .context("the line was stopped from afar")?
        .to_string();
    ensure!(refused.contains("nobody-stops-the-line-from-afar"), "{refused}");
    Ok(())
}

/// An object that names nothing is told, with what to do, and makes the check fail.
async fn wrong_is_told(cluster: &Cluster) -> Result<()> {
    let manifest = "apiVersion: foreshore.dev/v1alpha1\nkind: Asset\nmetadata: {name: stray}\n\
                    spec: {deviceRef: {name: nowhere}}\n";
    cluster
        .kubectl_with(&["apply", "-n", PLANT, "-f", "-"], manifest)
        .await?;
    eventually("the check tells of it", DEADLINE, || async {
        let found = cluster
            .output(&["check", "-n", PLANT, "--patience", "5s"])
            .await?;
        Ok((found.contains("WRONG   Asset bottling/stray") && found.contains("next: ")).then_some(()))
    })
    .await?;
    cluster
        .kubectl_with(&["delete", "-n", PLANT, "-f", "-"], manifest)
        .await?;
    install::well(cluster).await
}

/// The bundle holds what a support case needs, and nothing that any Secret holds.
async fn bundle(cluster: &Cluster) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("foreshore-e2e-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let archive = folder.join("bundle.tar.gz");
    let path = archive.to_string_lossy().into_owned();
    let made = cluster.foreshore(&["support-bundle", "-o", &path]).await;
    let text = match made {
        Ok(_) => unpack(&path).await,
        Err(error) => Err(error),
    };
    std::fs::remove_dir_all(&folder)?;
    let text = text?;
    for part in [
        "ledger.json",
        "objects/assets.json",
        "manifest is not accepted",
        "operator leads",
    ] {
        ensure!(text.contains(part), "the bundle has no {part:?}");
    }
    let mut values = 0;
    for namespace in [PLANT, OPERATOR] {
        for secret in cluster.items(&["secrets", "-n", namespace]).await? {
            for (key, encoded) in secret["data"].as_object().into_iter().flatten() {
                // What a user is called is no secret, and stands in policies too.
                if key == "username" {
                    continue;
                }
                let encoded = encoded.as_str().context("value of a Secret")?;
                let decoded = decode(encoded)?;
                // Certificates are public.
                let lines = decoded
                    .lines()
                    .filter(|line| line.len() >= TELLING && !line.starts_with("-----"));
                if decoded.contains("BEGIN CERTIFICATE") && !decoded.contains("PRIVATE KEY") {
                    continue;
                }
                for line in lines.chain([encoded]) {
                    values += 1;
                    ensure!(
                        !text.contains(line),
                        "the bundle tells {key} of Secret {}",
                        secret["metadata"]["name"]
                    );
                }
            }
        }
    }
    ensure!(values > 10, "only {values} values of Secrets were looked for");
    Ok(())
}

/// Everything in the archive, names included.
async fn unpack(path: &str) -> Result<String> {
    let mut text = tar(&["-tzf", path]).await?;
    text.push_str(&tar(&["-xzOf", path]).await?);
    Ok(text)
}

async fn tar(arguments: &[&str]) -> Result<String> {
    let run = Command::new("tar").args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(30), run).await??;
    ensure!(output.status.success(), "tar {arguments:?}: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn decode(encoded: &str) -> Result<String> {
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded)?;
    Ok(String::from_utf8_lossy(&decoded).into_owned())
}
