//! What runs, written down for the next command.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{
    layout::{Layout, write},
    processes::Process,
};

/// How much of a log is shown when its component has failed.
const LAST_LINES: usize = 15;

/// A cluster that was started.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// How many nodes it has, running or not.
    pub(crate) nodes: u8,
    /// Directory of the programs that it runs.
    pub(crate) programs: PathBuf,
    /// What was started and should run.
    pub(crate) components: Vec<Component>,
}

/// A component of Kubernetes on a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Component {
    /// Where it runs.
    pub(crate) machine: u8,
    /// Name, and that of its log.
    pub(crate) name: String,
    /// The process that waits for it, outside of the machine's processes.
    pub(crate) process: Process,
}

impl State {
    /// Reads what was started; nothing when there is no cluster, or only remains of one.
    pub(crate) fn load(layout: &Layout) -> Option<Self> {
        let text = fs::read(layout.state()).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Reads what was started, and fails when there is nothing.
    pub(crate) fn of_running(layout: &Layout) -> Result<Self> {
        Self::load(layout).context("no cluster is up; `cargo xtask cluster up` starts one")
    }

    /// Writes it down.
    pub(crate) fn save(&self, layout: &Layout) -> Result<()> {
        write(&layout.state(), &serde_json::to_vec_pretty(self)?)
    }

    /// Fails unless the cluster has a node.
    pub(crate) fn check_node(&self, node: u8) -> Result<()> {
        if !(1..=self.nodes).contains(&node) {
            bail!("found node {node}; allowed: 1 to {}", self.nodes);
        }
        Ok(())
    }

    /// Fails when a component has ended by itself, with the end of its log.
    pub(crate) fn check_components(&self, layout: &Layout) -> Result<()> {
        match self
            .components
            .iter()
            .find(|component| !component.process.is_alive())
        {
            Some(dead) => bail!("{} has ended; {}", dead.name, last_lines(layout, &dead.name)),
            None => Ok(()),
        }
    }
}

/// Where a component's log is, and its last lines.
pub(crate) fn last_lines(layout: &Layout, component: &str) -> String {
    let path = layout.log(component);
    let log = fs::read(&path).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    let last = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or(&[]);
    format!("the last lines of {}:\n{}", path.display(), last.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            nodes: 2,
            programs: PathBuf::from("/cache/cluster/bin-0"),
            components: vec![Component {
                machine: 0,
                name: "etcd".to_owned(),
                process: Process {
                    pid: 4_000_000,
                    started: 1,
                },
            }],
        }
    }

    #[test]
    fn reads_back_what_was_written() {
        let text = serde_json::to_vec(&state()).unwrap();
        assert_eq!(serde_json::from_slice::<State>(&text).unwrap(), state());
    }

    #[test]
    fn says_which_nodes_there_are() {
        state().check_node(2).unwrap();
        for node in [0, 3] {
            let error = state().check_node(node).unwrap_err().to_string();
            assert_eq!(error, format!("found node {node}; allowed: 1 to 2"));
        }
    }
}
