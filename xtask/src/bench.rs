//! `cargo xtask bench`: figures of the release build.

use anyhow::Result;

use crate::{e2e, shell, tools};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Short and rough, to see whether it works; nothing is written.
    #[arg(long)]
    quick: bool,
    /// Measure only these parts: edge, brokers or memory, which then write nothing; or cluster, which is measured only
    /// where it is named.
    parts: Vec<String>,
}

/// The part that needs a cluster.
const CLUSTER: &str = "cluster";

/// Builds the release binary and the program that measures it, and runs that.
pub(crate) fn run(options: &Options) -> Result<()> {
    tools::debian(tools::TESTS)?;
    // One set of features, so that nothing is built twice for another part.
    let packages = ["-p", "foreshore", "-p", "foreshore-bench", "-p", "foreshore-e2e"];
    let mut build = shell::cargo(&["build", "--release", "--locked", "--quiet"]);
    shell::run("release build", build.args(packages))?;
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
    for part in others {
        bench.args(["--only", part]);
    }
    shell::run("bench", &mut bench)
}
