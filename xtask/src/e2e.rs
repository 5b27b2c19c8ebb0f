//! `cargo xtask e2e`: an installation in a real Kubernetes, tested from its first command to its last.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::{argocd, cluster, image, shell};

/// Nodes of the test cluster: one of them can be lost.
const NODES: u8 = 3;
/// What runs.
pub(crate) const WHAT: &str = "end-to-end tests";
/// What the scenario is named by that needs a GitOps tool.
const GITOPS: &str = "gitops";

/// What to test, and on what.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Everything at its full count.
    #[arg(long)]
    full: bool,
    /// Leave the cluster and what is installed there as they are at the end.
    #[arg(long)]
    keep: bool,
    /// Only scenarios whose name contains one of these.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

/// Builds what is tested, and tests it.
pub(crate) fn run(options: &Options) -> Result<()> {
    build()?;
    test(options, |scenarios| shell::run(WHAT, scenarios))
}

/// Builds the product, its scenarios and what soaks it.
///
/// `cargo test` alone builds no program of a package that has no test which starts it.
pub(crate) fn build() -> Result<()> {
    // With the features of all tests, or half of the dependencies would be built again for them.
    let mut build = shell::cargo(&["build", "--workspace", "--locked", "--quiet"]);
    let what = [
        "--bin",
        "foreshore",
        "--bin",
        "foreshore-bench",
        "--bin",
        "foreshore-e2e",
        "--test",
        "process",
    ];
    shell::run("build for tests of the whole", build.args(what))
}

/// Tests what was built, by a command that `run` runs.
pub(crate) fn test<T>(options: &Options, run: impl FnOnce(&mut Command) -> Result<T>) -> Result<T> {
    let argocd = options.wants_argocd().then(argocd::build).transpose()?;
    let archive = image::of_program(&shell::built("debug")?.join("foreshore"))?;
    if cluster::is_foreign()? {
        // Its nodes have to be given the image with its own tool.
        return run(&mut scenarios(options, false, argocd.as_deref())?);
    }
    cluster::up(NODES)?;
    cluster::load(&[archive])?;
    let tested = scenarios(options, true, argocd.as_deref()).and_then(|mut scenarios| run(&mut scenarios));
    if !options.keep {
        cluster::down()?;
    }
    tested
}

fn scenarios(options: &Options, machines: bool, argocd: Option<&Path>) -> Result<Command> {
    let xtask = std::env::current_exe().context("path of this program")?;
    let program = shell::built("debug")?.join("foreshore-e2e");
    let mut command = shell::command(&xtask.to_string_lossy(), &["cluster", "run"]);
    command.arg(&program).arg("--root").arg(shell::root());
    command
        .arg("--foreshore")
        .arg(shell::built("debug")?.join("foreshore"));
    if machines {
        command.arg("--machines").arg(&xtask);
    }
    if options.full {
        command.arg("--full");
    }
    if let Some(argocd) = argocd {
        command.arg("--argocd").arg(argocd);
    }
    for name in &options.only {
        command.arg("--only").arg(name);
    }
    Ok(command)
}

/// Measures the release build in a cluster of one node, and writes the figures unless they are rough.
pub(crate) fn figures(quick: bool) -> Result<()> {
    if cluster::is_foreign()? {
        bail!("FORESHORE_KUBECONFIG is set: memory is measured on nodes of this machine only");
    }
    let programs = shell::built("release")?;
    let foreshore = programs.join("foreshore");
    let archive = image::of_program(&foreshore)?;
    let size = std::fs::metadata(&archive).context("size of the image")?.len();
    cluster::up(1)?;
    cluster::load(&[archive])?;
    let xtask = std::env::current_exe().context("path of this program")?;
    let mut command = shell::command(&xtask.to_string_lossy(), &["cluster", "run"]);
    let root = shell::root();
    command.arg(programs.join("foreshore-e2e")).arg("--figures");
    command
        .arg("--root")
        .arg(&root)
        .arg("--foreshore")
        .arg(&foreshore);
    command.arg("--about").arg(format!(
        "one node; image of {} MB, floor {} MB",
        size.div_ceil(1_000_000),
        image::LARGEST / 1_000_000
    ));
    if quick {
        command.arg("--quick");
    } else {
        command.arg("--figures-file").arg(root.join("docs/bench.md"));
    }
    let measured = shell::run("figures of the cluster", &mut command);
    cluster::down()?;
    measured
}

impl Options {
    /// What runs with all other tests.
    pub(crate) fn of_tests(full: bool) -> Self {
        Self {
            full,
            keep: false,
            only: Vec::new(),
        }
    }

    /// Whether Argo CD is used, whose build takes minutes.
    fn wants_argocd(&self) -> bool {
        if self.only.is_empty() {
            self.full
        } else {
            self.only.iter().any(|name| name.contains(GITOPS))
        }
    }
}
