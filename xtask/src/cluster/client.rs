//! Programs that talk to the cluster: kubectl, Helm, tests.

use std::{
    env,
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use super::{
    binary::Programs,
    layout::{DOMAIN, Layout, MACHINES, PODS, SERVICES, namespace_file},
};

/// Makes a command that reaches the API server, pods, Services and the name server.
pub(crate) fn command(layout: &Layout, programs: &Programs, program: &Path) -> Result<Command> {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", namespace_file(0).display()))
        .arg(program)
        .env("KUBECONFIG", layout.kubeconfig("admin"))
        .env("KUBECACHEDIR", layout.run().join("kubectl-cache"))
        .env("PATH", path(&programs.folder)?);
    // Where everybody else goes through a proxy, nobody gets out of here to one.
    let own = format!("127.0.0.1,localhost,{MACHINES},{PODS},{SERVICES},.{DOMAIN},.svc");
    for name in ["NO_PROXY", "no_proxy"] {
        let direct = match env::var(name) {
            Ok(others) if !others.is_empty() => format!("{own},{others}"),
            _ => own.clone(),
        };
        command.env(name, direct);
    }
    Ok(command)
}

/// Runs kubectl on our own behalf; says what it printed, or nothing when it failed.
pub(crate) fn kubectl(layout: &Layout, programs: &Programs, arguments: &[&str]) -> Option<String> {
    let output = command(layout, programs, &programs.folder.join("kubectl"))
        .ok()?
        .args(arguments)
        .arg("--request-timeout=5s")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Becomes a program, with its own arguments, input, output and end.
pub(crate) fn become_program(mut command: Command, arguments: &[OsString]) -> Result<()> {
    let error = command.args(arguments).exec();
    Err(error).with_context(|| format!("{command:?} did not start"))
}

/// The search path with our programs first.
fn path(programs: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let all = [programs.to_owned()].into_iter().chain(env::split_paths(&path));
    env::join_paths(all).context("PATH")
}
