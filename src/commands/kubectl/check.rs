//! `kubectl foreshore check`: proves an installation, data path included, or that a cluster is ready for one.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use foreshore_operator::{
    Platform, Problem, check,
    kubernetes::access::{
        Access,
        survey::{Finding, Verdict},
    },
    source::directory::Options as ManifestOptions,
    status::remedy,
};
use serde_json::{Value, json};

use super::{flow, status};
use crate::commands::{parse_time, up};

/// Namespace that the manifests of the built-in plant name.
const WRITTEN_FOR: &str = "bottling";
/// The way of its values to its cloud endpoint, as the end of the path's name.
const WAY: &str = "/telemetry->cloud";

/// What to prove.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Files or folders of manifests to judge as well, without applying them.
    paths: Vec<PathBuf>,
    /// Run the built-in plant in a namespace of its own until its values have arrived, and remove it.
    #[arg(long)]
    trial: bool,
    /// How long data may take to show.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_time)]
    patience: Duration,
    /// How long the built-in plant may take until its values have arrived.
    #[arg(long, value_name = "TIME", default_value = "3m", value_parser = parse_time)]
    trial_patience: Duration,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

/// Looks at everything, prints what was found and fails when something is wrong.
pub(super) async fn run(access: &Access, options: Options, namespace: Option<&str>) -> Result<()> {
    let mut report = Report {
        json: options.json,
        findings: Vec::new(),
    };
    if !options.paths.is_empty() {
        report.add(manifests(options.paths)?);
    }
    let survey = access.survey().await.context("cluster")?;
    report.add(survey.findings);
    if survey.installed {
        report.add(objects(access, namespace).await);
        let flows = flow::watch(access, namespace, options.patience).await;
        report.add(flows.unwrap_or_else(|error| {
            vec![Finding::unclear(
                "data",
                format!("{error:#}"),
                "the right to forward ports to the pods of brokers is needed",
            )]
        }));
    }
    if options.trial {
        if !survey.installed {
            bail!("--trial needs an operator in namespace {}", access.operator());
        }
        report.add(vec![trial(access, options.trial_patience).await?]);
    }
    report.end()
}

/// What was found so far, told as it is found.
struct Report {
    json: bool,
    findings: Vec<Finding>,
}

impl Report {
    fn add(&mut self, findings: Vec<Finding>) {
        if !self.json {
            for finding in &findings {
                println!("{finding}");
            }
        }
        self.findings.extend(findings);
    }

    fn end(self) -> Result<()> {
        let count = |verdict| {
            self.findings
                .iter()
                .filter(|finding| finding.verdict == verdict)
                .count()
        };
        let (wrong, unclear) = (count(Verdict::Wrong), count(Verdict::Unclear));
        if self.json {
            println!("{:#}", json!({ "findings": self.findings }));
        }
        if wrong > 0 {
            bail!("{wrong} of {} findings are wrong", self.findings.len());
        }
        if !self.json {
            println!(
                "\nnothing is wrong; {unclear} of {} findings are unclear",
                self.findings.len()
            );
        }
        Ok(())
    }
}

fn manifests(paths: Vec<PathBuf>) -> Result<Vec<Finding>> {
    let options = ManifestOptions {
        paths,
        ..ManifestOptions::default()
    };
    let report = check::check(options, Platform::cluster()).context("manifests")?;
    if report.is_right() {
        return Ok(vec![Finding::ok(
            "manifests",
            format!("{} objects are right", report.objects),
        )]);
    }
    let wrong = |problem: &Problem| {
        let next = remedy::explain(problem.reason).map(|remedy| remedy.next);
        let next = next
            .filter(|next| !next.is_empty())
            .unwrap_or("correct the manifest");
        Finding::wrong("manifests", problem.to_string(), next)
    };
    Ok(report.problems.iter().map(wrong).collect())
}

/// What the leader says of declared objects and of roles, of a namespace or of all.
async fn objects(access: &Access, namespace: Option<&str>) -> Vec<Finding> {
    let status = match status(access, false).await {
        Ok(status) => status,
        Err(error) => {
            return vec![Finding::unclear(
                "objects",
                format!("{error:#}"),
                format!(
                    "the right to forward ports to pods in namespace {} is needed; `kubectl get foreshore -A` tells too",
                    access.operator()
                ),
            )];
        }
    };
    judge_status(&status, namespace)
}

fn judge_status(status: &Value, namespace: Option<&str>) -> Vec<Finding> {
    // An object names its namespace, a role has it in its name.
    let counts = |row: &Value| {
        let of = row["namespace"].as_str();
        let of = of.or_else(|| row["role"].as_str()?.split('/').nth(1));
        namespace.is_none() || of == namespace
    };
    let rows = |member: &str| {
        let rows = status[member].as_array().into_iter().flatten();
        rows.filter(|row| counts(row)).cloned().collect::<Vec<_>>()
    };
    let text = |row: &Value, member: &str| row[member].as_str().unwrap_or_default().to_owned();
    let mut findings = Vec::new();
    let objects = rows("objects");
    for row in &objects {
        let well = row["ready"] == "True" && row["healthy"] != "False";
        if well {
            continue;
        }
        let what = format!(
            "{} {}/{}",
            text(row, "kind"),
            text(row, "namespace"),
            text(row, "name")
        );
        let mut found = format!("{}: {}", text(row, "reason"), text(row, "message"));
        if let Some(evidence) = row["evidence"].as_str()
            && !found.contains(evidence)
        {
            found.push_str(&format!(" ({evidence})"));
        }
        let next = row["next"].as_str().unwrap_or("look at `kubectl describe` of it");
        findings.push(Finding::wrong(what, found, next));
    }
    let roles = rows("roles");
    for row in &roles {
        let role = format!("role {}", text(row, "role"));
        if row["connected"] != true {
            let found = row["error"]
                .as_str()
                .unwrap_or("has no session with the operator");
            findings.push(Finding::wrong(
                role,
                found,
                "look at its pod: `kubectl describe pod`, `kubectl logs`",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "objects",
            format!("all {} are in force and none is unhealthy", objects.len()),
        ));
        findings.push(Finding::ok(
            "roles",
            format!("all {} instances are connected", roles.len()),
        ));
    }
    findings
}

/// Runs the built-in plant until its values have arrived.
async fn trial(access: &Access, patience: Duration) -> Result<Finding> {
    let what = "trial";
    let plant = access
        .try_out(&up::example(), WRITTEN_FOR)
        .await
        .context("plant on trial")?;
    eprintln!("a plant on trial runs in namespace {}", plant.namespace());
    let began = std::time::Instant::now();
    let arrived = tokio::select! {
        arrived = flow::first_delivery(access, plant.namespace(), WAY, patience) => arrived,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    let namespace = plant.namespace().to_owned();
    let finding = match arrived {
        Ok(Some(path)) => Finding::ok(
            what,
            format!(
                "simulated values were committed at a cloud endpoint after {} s, by path {}",
                began.elapsed().as_secs(),
                path.path
            ),
        ),
        Ok(None) => {
            // Told before it goes.
            let of_trial: Vec<_> = objects(access, Some(&namespace))
                .await
                .iter()
                .map(Finding::to_string)
                .collect();
            Finding::wrong(
                what,
                format!(
                    "no value arrived within {} s\n{}",
                    patience.as_secs(),
                    of_trial.join("\n")
                ),
                "mend what is told above; images, storage and network between pods are what it needs",
            )
        }
        Err(error) => Finding::unclear(what, format!("{error:#}"), "run it again"),
    };
    plant
        .remove()
        .await
        .with_context(|| format!("remove namespace {namespace}"))?;
    Ok(finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unhealthy_object_is_told_with_evidence_and_next_step() {
        let status = json!({
            "objects": [
                { "kind": "Broker", "namespace": "other", "name": "broker", "ready": "False" },
                { "kind": "Broker", "namespace": "plant", "name": "broker", "ready": "True", "healthy": "True" },
                {
                    "kind": "Device", "namespace": "plant", "name": "filler", "ready": "True", "healthy": "False",
                    "reason": "Unreachable", "message": "no answer", "evidence": "timed out", "next": "look at the cable",
                },
            ],
            "roles": [{ "role": "broker/plant/broker", "connected": true }],
        });
        let findings: Vec<_> = judge_status(&status, Some("plant"))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            findings,
            [
                "WRONG   Device plant/filler: Unreachable: no answer (timed out)\n        next: look at the cable"
            ]
        );
    }

    #[test]
    fn a_role_without_a_session_is_wrong() {
        let status =
            json!({ "objects": [], "roles": [{ "role": "broker/plant/broker", "connected": false }] });
        assert_eq!(judge_status(&status, None)[0].verdict, Verdict::Wrong);
        let status = json!({ "objects": [], "roles": [] });
        assert!(
            judge_status(&status, None)
                .iter()
                .all(|finding| finding.verdict == Verdict::Ok)
        );
    }
}
