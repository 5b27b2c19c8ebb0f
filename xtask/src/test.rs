//! `cargo xtask test`: every check, cheapest first.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{
    arm64, arrows, charts, e2e, generate,
    results::{self, Part},
    shell, soak, tools,
};

/// Which checks to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Also run what takes long: more kill -9 cycles, longer outages, larger backlogs, upgrades, GitOps, a build for
    /// arm64; writes docs/results/DATE.md.
    #[arg(long)]
    full: bool,
    /// Only this part of the full tests, or several; the results tell what the others came to today.
    #[arg(long, value_name = "PART", requires = "full")]
    only: Vec<Part>,
    /// Leave out cargo-deny, which is built from source the first time.
    #[arg(long)]
    no_deny: bool,
}

/// Runs the checks; stops at the first that fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    arrows::check()?;
    shell::run("format", &mut shell::cargo(&["fmt", "--all", "--check"]))?;
    shell::run(
        "lints",
        &mut shell::cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    if !options.no_deny {
        deny(&tools::cargo_deny()?)?;
    }

    tools::debian(tools::TESTS)?;
    tools::fuse()?;
    let oracle = tools::oracle()?;
    drop((
        foreshore_peers::python(),
        foreshore_peers::node(),
        foreshore_peers::oxvif_camera(),
        foreshore_peers::aio_client(),
    ));

    // The process tests start the binary; building it first shows a broken build before any test runs.
    shell::run(
        "build",
        &mut shell::cargo(&["test", "--workspace", "--locked", "--no-run", "--quiet"]),
    )?;
    e2e::build()?;
    // The binary of that build: without the features of tests half of its dependencies would be built again.
    let foreshore = shell::built("debug")?.join("foreshore");
    generate::check(&mut shell::command(&foreshore.to_string_lossy(), &[]))?;
    // What fails is seen at once, not one failure a run.
    let mut tests = shell::cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    tests.env("FORESHORE_ORACLE", &oracle);
    if options.full {
        tests.env("FORESHORE_TEST_FULL", "1");
    } else {
        tests.arg("--quiet").env("FORESHORE_TEST_FULL", "");
    }
    // What they print is needed only where it is written down.
    let run = |what: &str, command: &mut Command| {
        if options.full {
            results::watch(what, command)
        } else {
            shell::run(what, command).map(|()| Vec::new())
        }
    };
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let passed = |part, lines: &[String]| {
        if !options.full {
            return Ok(());
        }
        let file = results::keep(part, lines)?;
        eprintln!("wrote {}", file.display());
        anyhow::Ok(())
    };
    if wanted(Part::Tests) {
        passed(Part::Tests, &run("tests", &mut tests)?)?;
    }
    if wanted(Part::Soak) {
        soak::of_tests(options.full)?;
        passed(Part::Soak, &[])?;
    }
    charts::check(&charts::Programs::of_cluster()?)?;
    if options.full && wanted(Part::Arm64) {
        arm64::run()?;
        passed(Part::Arm64, &[])?;
    }
    if wanted(Part::Scenarios) {
        let scenarios = e2e::test(&e2e::Options::of_tests(options.full), |scenarios| {
            run(e2e::WHAT, scenarios)
        })?;
        passed(Part::Scenarios, &scenarios)?;
    }
    Ok(())
}

/// Licences, sources, duplicate versions; advisories where their database can be had.
fn deny(program: &Path) -> Result<()> {
    let program = program.to_string_lossy();
    shell::run(
        "licences, sources, duplicates",
        &mut shell::command(&program, &["check", "bans", "licenses", "sources"]),
    )?;
    if shell::run(
        "advisories",
        &mut shell::command(&program, &["check", "advisories"]),
    )
    .is_err()
    {
        let database = shell::command(&program, &["fetch", "db"]).status();
        if database.is_ok_and(|status| status.success()) {
            anyhow::bail!("cargo-deny found advisories");
        }
        eprintln!("    advisories: NOT CHECKED, their database can't be fetched from here");
    }
    Ok(())
}
