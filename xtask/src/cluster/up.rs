//! Starts a cluster, and nodes of it.

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::{
    binary::{self, Programs},
    clean, control_plane, images,
    layout::{API_PORT, CONTROL_PLANE, Layout},
    machine::Machine,
    network, node, pki, processes,
    state::State,
    wait::{self, Wait},
};
use crate::shell;

/// Starts a cluster, unless one as wanted runs.
pub(crate) fn run(layout: &Layout, nodes: u8) -> Result<()> {
    let programs = binary::build(layout)?;
    if let Some(state) = State::load(layout)
        && state.nodes == nodes
        && state.programs == programs.folder
        && is_healthy(layout, &programs, &state)
    {
        println!("already up: {}", summary(layout, nodes));
        return Ok(());
    }
    clean::all(layout)?;
    start(layout, &programs, nodes)
        .context("the cluster is not up; `cargo xtask cluster down` removes what there is of it")
}

/// Starts a node that was killed.
pub(crate) fn start_node(layout: &Layout, number: u8) -> Result<()> {
    let mut state = State::of_running(layout)?;
    state.check_node(number)?;
    if processes::init(number)?.is_some() {
        println!("node {number} runs already");
        return Ok(());
    }
    let programs = super::programs(&state);
    let wait = Wait::new(layout, &programs);
    // What an interrupted start has left.
    clean::power_off(number)?;
    network::connect(number, state.nodes)?;
    let machine = node::boot(layout, &programs, &mut state, number)?;
    wait_for_containerd(layout, &programs, &wait, &state, &machine, number)?;
    node::join(layout, &machine, &mut state, number)?;
    wait.nodes(&state, &[number])?;
    println!(
        "node {number} is back after {:.0} s",
        wait.elapsed().as_secs_f64()
    );
    Ok(())
}

fn start(layout: &Layout, programs: &Programs, nodes: u8) -> Result<()> {
    let wait = Wait::new(layout, programs);
    let numbers: Vec<u8> = (1..=nodes).collect();
    let mut state = State {
        nodes,
        programs: programs.folder.clone(),
        components: Vec::new(),
    };
    state.save(layout)?;
    pki::make(layout, nodes)?;

    network::make_control_plane(nodes)?;
    let control_plane = Machine::boot(layout, programs, 0)?;
    control_plane::start_api(layout, &control_plane, &mut state)?;
    let mut machines = Vec::new();
    for &number in &numbers {
        network::connect(number, nodes)?;
        machines.push((number, node::boot(layout, programs, &mut state, number)?));
    }
    for (number, machine) in &machines {
        wait_for_containerd(layout, programs, &wait, &state, machine, *number)?;
    }

    wait.api(&state)?;
    let manifest = shell::root().join("tests/cluster/bootstrap.yaml");
    wait.bootstrap(&state, &manifest.to_string_lossy())?;
    control_plane::start_rest(layout, &control_plane, &mut state)?;
    for (number, machine) in &machines {
        node::join(layout, machine, &mut state, *number)?;
    }
    wait.nodes(&state, &numbers)?;
    wait.accounts(&state)?;
    wait.names(&state)?;
    println!(
        "up after {:.0} s: {}",
        wait.elapsed().as_secs_f64(),
        summary(layout, nodes)
    );
    Ok(())
}

/// Waits until containerd takes images, and gives it the first.
fn wait_for_containerd(
    layout: &Layout,
    programs: &Programs,
    wait: &Wait<'_>,
    state: &State,
    machine: &Machine<'_>,
    number: u8,
) -> Result<()> {
    let pause = images::write_pause(layout, programs)?;
    let component = format!("containerd-{number}");
    wait.until(state, &format!("containerd of node {number}"), &component, || {
        images::load(machine, &pause).is_ok()
    })
}

fn is_healthy(layout: &Layout, programs: &Programs, state: &State) -> bool {
    let all_nodes_run = (1..=state.nodes).all(|node| processes::init(node).is_ok_and(|init| init.is_some()));
    all_nodes_run
        && state.check_components(layout).is_ok()
        && wait::is_ready(layout, programs)
        && wait::ready_nodes(layout, programs, Timestamp::MIN).len() == usize::from(state.nodes)
}

fn summary(layout: &Layout, nodes: u8) -> String {
    let nodes = if nodes == 1 {
        "1 node".to_owned()
    } else {
        format!("{nodes} nodes")
    };
    format!(
        "{nodes}, API server {CONTROL_PLANE}:{API_PORT}, logs in {}",
        layout.logs().display()
    )
}
