//! `cargo xtask bench`: figures come from here, side by side with a peer in one run, as ratios.

use anyhow::Result;

use crate::{shell, tools};

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Benchmarks to run; all of them when none is named.
    names: Vec<String>,
}

/// Builds the release binary and runs the benchmarks of `tests/bench` against it.
pub(crate) fn run(options: &Options) -> Result<()> {
    tools::debian()?;
    let python = tools::python()?;
    shell::run(
        "release build",
        &mut shell::cargo(&["build", "--release", "--locked", "--quiet"]),
    )?;
    let mut bench = shell::cargo(&[
        "run",
        "--release",
        "--locked",
        "--quiet",
        "--package",
        "foreshore-bench",
        "--",
    ]);
    bench.args(&options.names).env("FORESHORE_TEST_PYTHON", &python);
    shell::run("benchmarks", &mut bench)
}
