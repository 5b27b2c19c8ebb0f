//! `cargo xtask bench`: figures of the release build.

use anyhow::Result;

use crate::{shell, tools};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Short and rough, to see whether it works; nothing is written.
    #[arg(long)]
    quick: bool,
    /// Measure only this part, and write nothing: edge, brokers or memory.
    #[arg(long)]
    only: Vec<String>,
}

/// Builds the release binary and the program that measures it, and runs that.
pub(crate) fn run(options: &Options) -> Result<()> {
    tools::debian(tools::TESTS)?;
    let packages = ["-p", "foreshore", "-p", "foreshore-bench"];
    let mut build = shell::cargo(&["build", "--release", "--locked", "--quiet"]);
    shell::run("release build", build.args(packages))?;
    let program = shell::built("release")?.join("foreshore-bench");
    let mut bench = shell::command(&program.to_string_lossy(), &[]);
    if options.quick {
        bench.arg("--quick");
    }
    for part in &options.only {
        bench.args(["--only", part]);
    }
    shell::run("bench", &mut bench)
}
