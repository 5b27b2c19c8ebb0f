//! Running other programs, and where their caches are.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// Returns the root of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Returns the directory outside the checkout that survives a fresh clone: `$FORESHORE_CACHE`, or
/// `~/.cache/foreshore`.
pub(crate) fn cache() -> Result<PathBuf> {
    if let Some(cache) = env::var_os("FORESHORE_CACHE") {
        return Ok(PathBuf::from(cache));
    }
    let home = env::var_os("HOME").context("neither FORESHORE_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/foreshore"))
}

/// Where cargo put what it built with a profile: beside this program, which it built too.
pub(crate) fn built(profile: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("path of this program")?;
    let profiles = own.parent().and_then(Path::parent);
    let profiles = profiles.with_context(|| format!("{} is not in a target directory", own.display()))?;
    Ok(profiles.join(profile))
}

/// Makes a command that runs in the checkout's root.
pub(crate) fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// Makes a cargo command with the toolchain that runs us.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    command(&cargo, arguments)
}

/// Runs a command, prints what it is and how long it took, and fails when it fails.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("==> {what}");
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("{what}: {command:?} did not start"))?;
    if !status.success() {
        bail!("{what}: {command:?} ended with {status}");
    }
    eprintln!("    {what}: {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a command and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{command:?} did not start"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} printed no UTF-8"))
}

/// Whether a program of that name is on the path.
pub(crate) fn is_installed(program: &str) -> bool {
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|directory| directory.join(program).is_file()))
}

/// Whether root runs us.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
