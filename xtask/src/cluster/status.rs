//! Says what runs.

use std::fs;

use anyhow::Result;
use jiff::Timestamp;

use super::{
    layout::{Layout, node},
    processes,
    state::{Component, State},
    wait,
};

/// Prints nodes and components, with their memory and their logs.
pub(crate) fn print(layout: &Layout) -> Result<()> {
    let Some(state) = State::load(layout) else {
        println!("down: no cluster is up");
        return Ok(());
    };
    let ready = wait::ready_nodes(layout, &super::programs(&state), Timestamp::MIN);
    for machine in 0..=state.nodes {
        let name = if machine == 0 {
            "control plane".to_owned()
        } else {
            node(machine)
        };
        let condition = match processes::init(machine)? {
            None => "off",
            Some(_) if machine == 0 => "on",
            Some(_) if ready.contains(&name) => "on, ready",
            Some(_) => "on, not ready",
        };
        println!("{name}: {condition}");
        for component in state
            .components
            .iter()
            .filter(|component| component.machine == machine)
        {
            println!("  {}", describe(layout, component));
        }
    }
    println!("kubeconfig: {}", layout.kubeconfig("admin").display());
    Ok(())
}

fn describe(layout: &Layout, component: &Component) -> String {
    let log = layout.log(&component.name);
    let name = &component.name;
    if !component.process.is_alive() {
        return format!("{name:<24} ended   {}", log.display());
    }
    let pid = program(component.process.pid);
    let memory = memory(pid).unwrap_or_default() / 1024;
    format!("{name:<24} {memory:>4} MB {}", log.display())
}

/// The component itself, which the process that we started waits for.
fn program(waits: u32) -> u32 {
    fs::read_to_string(format!("/proc/{waits}/task/{waits}/children"))
        .ok()
        .and_then(|children| children.split_whitespace().next()?.parse().ok())
        .unwrap_or(waits)
}

/// Memory of a process, in KiB; of what it shares with others, its share. All components are one program, so that what
/// each holds would count the same code many times.
fn memory(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
