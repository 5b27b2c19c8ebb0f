//! `cargo xtask bench`: figures of the release build.

use std::path::PathBuf;

use anyhow::Result;

use crate::{e2e, shell, tools};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Short and rough, to see whether it works; nothing is written.
    #[arg(long)]
    quick: bool,
    /// Measure only these parts: edge or memory, of which one alone writes nothing; broker or cluster, which are measured
    /// only where they are named.
    parts: Vec<String>,
}

/// The part that needs a cluster.
const CLUSTER: &str = "cluster";

/// The part that needs brokers of others.
const BROKER: &str = "broker";

/// Builds the release binary and the program that measures it, and runs that.
pub(crate) fn run(options: &Options) -> Result<()> {
    tools::debian(tools::TESTS)?;
    build()?;
    let (of_cluster, others): (Vec<_>, Vec<_>) = options.parts.iter().partition(|part| *part == CLUSTER);
    if !of_cluster.is_empty() {
        e2e::figures(options.quick)?;
        if others.is_empty() {
            return Ok(());
        }
    }
    let program = shell::built("release")?.join("foreshore-bench");
    let mut bench = shell::command(&program.to_string_lossy(), &[]);
    if options.quick {
        bench.arg("--quick");
    }
    if others.iter().any(|part| *part == BROKER) {
        bench.arg("--peers").arg(peers()?);
    }
    for part in others {
        bench.args(["--only", part]);
    }
    shell::run("bench", &mut bench)
}

/// Builds the release binary and the programs that measure it.
pub(crate) fn build() -> Result<()> {
    // One set of features, so that nothing is built twice for another part.
    let packages = ["-p", "foreshore", "-p", "foreshore-bench", "-p", "foreshore-e2e"];
    let mut build = shell::cargo(&["build", "--release", "--locked", "--quiet"]);
    shell::run("release build", build.args(packages))
}

/// Builds the brokers of others into the cache, and returns the folder of their programs.
fn peers() -> Result<PathBuf> {
    let folder = shell::cache()?.join("bench-peers");
    let root = folder.to_string_lossy().into_owned();
    let arguments = [
        "install",
        "--path",
        "tests/bench/peers",
        "--locked",
        "--root",
        &root,
        "--quiet",
    ];
    let mut build = shell::cargo(&arguments);
    let target = shell::cache()?.join("target-bench-peers");
    shell::run("build brokers of others", build.env("CARGO_TARGET_DIR", target))?;
    Ok(folder.join("bin"))
}
