//! Waiting for parts of the cluster.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    binary::Programs,
    client,
    layout::{CONTROL_PLANE, DOMAIN, Layout, node},
    state::{State, last_lines},
};

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How long between two questions.
const PAUSE: Duration = Duration::from_millis(250);

/// Waits for parts of a cluster, all of them within one limit.
pub(crate) struct Wait<'a> {
    layout: &'a Layout,
    programs: &'a Programs,
    start: Instant,
    /// The same time, for what Kubernetes dates to the second.
    date: Timestamp,
}

impl<'a> Wait<'a> {
    /// Starts the clock.
    pub(crate) fn new(layout: &'a Layout, programs: &'a Programs) -> Self {
        Self {
            layout,
            programs,
            start: Instant::now(),
            date: Timestamp::now() - Duration::from_secs(1),
        }
    }

    /// How long it has been.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Waits until the API server answers.
    pub(crate) fn api(&self, state: &State) -> Result<()> {
        self.until(state, "an answer of the API server", "kube-apiserver", || {
            is_ready(self.layout, self.programs)
        })
    }

    /// Waits until the cluster knows what it starts with.
    pub(crate) fn bootstrap(&self, state: &State, manifest: &str) -> Result<()> {
        self.until(state, "rights and volumes", "kube-apiserver", || {
            self.kubectl(&["apply", "--filename", manifest]).is_some()
        })
    }

    /// Waits until all these nodes take pods, and have said so since the clock was started: what a node said before it
    /// was killed stands for a while.
    pub(crate) fn nodes(&self, state: &State, nodes: &[u8]) -> Result<()> {
        let mut missing = Vec::new();
        for &number in nodes {
            let log = format!("kubelet-{number}");
            self.until(state, &format!("node {number}"), &log, || {
                let ready = ready_nodes(self.layout, self.programs, self.date);
                missing = nodes
                    .iter()
                    .filter(|number| !ready.contains(&node(**number)))
                    .copied()
                    .collect();
                !missing.contains(&number)
            })?;
            if missing.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Waits until pods may be made in the default namespace.
    pub(crate) fn accounts(&self, state: &State) -> Result<()> {
        let what = "the default ServiceAccount";
        self.until(state, what, "kube-controller-manager", || {
            self.kubectl(&["get", "serviceaccount", "default"]).is_some()
        })
    }

    /// Waits until the name server knows the API server's Service.
    pub(crate) fn names(&self, state: &State) -> Result<()> {
        let name = format!("kubernetes.default.svc.{DOMAIN}");
        self.until(state, "an answer of the name server", "coredns", || {
            client::command(self.layout, self.programs, &self.programs.kubernetes())
                .and_then(|mut lookup| Ok(lookup.args(["lookup", CONTROL_PLANE, &name]).output()?))
                .is_ok_and(|output| output.status.success())
        })
    }

    /// Waits until something is done; names the log that says why it is not.
    pub(crate) fn until(
        &self,
        state: &State,
        what: &str,
        component: &str,
        mut done: impl FnMut() -> bool,
    ) -> Result<()> {
        while !done() {
            state.check_components(self.layout)?;
            if self.elapsed() > LIMIT {
                bail!(
                    "waited {} s for {what}; {}",
                    LIMIT.as_secs(),
                    last_lines(self.layout, component)
                );
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn kubectl(&self, arguments: &[&str]) -> Option<String> {
        client::kubectl(self.layout, self.programs, arguments)
    }
}

/// Whether the API server answers.
pub(crate) fn is_ready(layout: &Layout, programs: &Programs) -> bool {
    client::kubectl(layout, programs, &["get", "--raw", "/readyz"]).is_some()
}

/// Names of the nodes that take pods, and have said so since then.
pub(crate) fn ready_nodes(layout: &Layout, programs: &Programs, since: Timestamp) -> Vec<String> {
    let json = client::kubectl(layout, programs, &["get", "nodes", "--output", "json"]).unwrap_or_default();
    ready(&json, since)
}

#[derive(Deserialize)]
struct Nodes {
    items: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    metadata: Metadata,
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    last_heartbeat_time: Timestamp,
}

fn ready(json: &str, since: Timestamp) -> Vec<String> {
    let nodes = serde_json::from_str(json).unwrap_or(Nodes { items: Vec::new() });
    nodes
        .items
        .into_iter()
        .filter(|node| {
            let mut conditions = node.status.conditions.iter();
            conditions.any(|condition| {
                condition.kind == "Ready"
                    && condition.status == "True"
                    && condition.last_heartbeat_time >= since
            })
        })
        .map(|node| node.metadata.name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_which_nodes_are_ready() {
        let node = |name: &str, status: &str, second: u8| {
            serde_json::json!({
                "metadata": { "name": name },
                "status": { "conditions": [
                    { "type": "Ready", "status": status, "lastHeartbeatTime": format!("2026-01-01T00:00:{second:02}Z") },
                ] },
            })
        };
        let young = serde_json::json!({ "metadata": { "name": "young" }, "status": {} });
        let nodes = [
            node("ready", "True", 10),
            node("stale", "True", 9),
            node("lost", "Unknown", 11),
            young,
        ];
        let json = serde_json::json!({ "items": nodes }).to_string();
        let since = "2026-01-01T00:00:10Z".parse().unwrap();
        assert_eq!(ready(&json, since), ["ready"]);
        assert_eq!(ready(&json, Timestamp::MIN), ["ready", "stale"]);
        assert!(ready("", since).is_empty());
    }
}
