//! Memory of an idle `foreshore up` with the example: with its simulated machines, and with these as other processes.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Result, bail};
use foreshore_peers::free_port;
use serde::Serialize;

use crate::{
    Plan,
    plant::{Plant, example},
    process::{self, Memory},
    program::Program,
};

/// An idle plant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    pub(crate) memory: Memory,
    pub(crate) threads: usize,
    /// Share of a processor that it used.
    pub(crate) load: f64,
}

/// Bounds that are promised, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Floors;

impl Floors {
    pub(crate) const WITH_SIMULATORS: u64 = 120 << 20;
    pub(crate) const WITHOUT: u64 = 60 << 20;
}

/// Both plants run at the same time: memory does not depend on who has the processor.
pub(crate) fn measure(plan: &Plan) -> Result<[Idle; 2]> {
    let folder = tempfile::tempdir_in(&plan.folder)?;
    let (with, without) = (folder.path().join("with"), folder.path().join("without"));
    let mut whole = start(plan, &with, &[], &[])?;

    let (line, camera) = (free_port(), free_port());
    let _machines = [
        machine(
            plan,
            folder.path(),
            "opcua",
            line,
            "foreshore:example-line-password",
        )?,
        machine(
            plan,
            folder.path(),
            "onvif",
            camera,
            "admin:example-camera-password",
        )?,
    ];
    let address = |name: &str, address: String| {
        let from = format!("  simulatorRef:\n    name: {name}\n");
        (from, format!("  address: {address}\n"))
    };
    let replace = [
        address("line-1", format!("opc.tcp://127.0.0.1:{line}/")),
        address(
            "camera-1",
            format!("http://127.0.0.1:{camera}/onvif/device_service"),
        ),
    ];
    let mut edge = start(plan, &without, &replace, &["simulators.yaml"])?;
    whole.wait_until_healthy()?;
    edge.wait_until_healthy()?;
    let before = [&whole, &edge].map(|plant| process::cpu_seconds(plant.program.id()));
    thread::sleep(plan.idle);
    let mut found = Vec::new();
    for (plant, before) in [whole, edge].into_iter().zip(before) {
        let id = plant.program.id();
        found.push(Idle {
            memory: process::memory(id)?,
            threads: process::threads(id)?,
            load: (process::cpu_seconds(id)? - before?) / plan.idle.as_secs_f64(),
        });
        plant.program.end()?;
    }
    match found[..] {
        [with, without] => Ok([with, without]),
        _ => bail!("two plants were measured"),
    }
}

fn start(plan: &Plan, folder: &Path, replace: &[(String, String)], without: &[&str]) -> Result<Plant> {
    let http = free_port();
    let ports = [("1883", free_port()), ("7443", free_port()), ("7080", http)];
    let mut replace = replace.to_vec();
    replace.extend(ports.map(|(port, free)| (format!("port: {port}"), format!("port: {free}"))));
    let manifests = folder.join("manifests");
    example(&plan.checkout, &manifests, &replace, without)?;
    Plant::start(plan, &manifests, folder, http)
}

fn machine(plan: &Plan, folder: &Path, protocol: &str, port: u16, user: &str) -> Result<Program> {
    let mut command = Command::new(&plan.foreshore);
    command
        .args(["sim", protocol, "--log", "error", "--user", user])
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .stdout(Stdio::null());
    let mut program = Program::start(&mut command, &folder.join(protocol))?;
    program.wait_for_port(port)?;
    Ok(program)
}
