//! End-to-end tests of an installation in a real Kubernetes.
//!
//! They do what a user would, with kubectl and Helm, in the order of this file, on one installation; each begins when the
//! plant is well and leaves it well. The first failure ends the run, with what a user would look at.

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

mod api;
mod cloud;
mod cluster;
mod figures;
mod forward;
mod gitops;
mod many;
mod metrics;
mod scenarios;

use cluster::Cluster;

/// Runs the end-to-end tests; `kubectl` and `helm` have to be on the path.
#[derive(Parser)]
struct Arguments {
    /// Root of the checkout.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// Program that switches nodes off and on; without it, what needs that is left out, and said.
    #[arg(long, value_name = "XTASK")]
    machines: Option<PathBuf>,
    /// The program, as a user has it on the path.
    #[arg(long, value_name = "PROGRAM", default_value = "foreshore")]
    foreshore: PathBuf,
    /// Folder of Argo CD's programs; without it, what needs them is left out, and said.
    #[arg(long, value_name = "FOLDER")]
    argocd: Option<PathBuf>,
    /// Everything at its full count.
    #[arg(long)]
    full: bool,
    /// Measure instead of testing: install, measure, uninstall.
    #[arg(long)]
    figures: bool,
    /// Short and rough figures.
    #[arg(long)]
    quick: bool,
    /// What the figures are of, for whoever reads them.
    #[arg(long, value_name = "TEXT", default_value = "")]
    about: String,
    /// File whose table of figures is replaced.
    #[arg(long, value_name = "FILE")]
    figures_file: Option<PathBuf>,
    /// Only scenarios whose name contains one of these.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    // The error is that another provider was installed before, which nothing here does.
    drop(rustls::crypto::ring::default_provider().install_default());
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    let Arguments {
        root,
        machines,
        foreshore,
        argocd,
        full,
        figures,
        quick,
        about,
        figures_file,
        only,
    } = arguments;
    let root = root.canonicalize().context("root of the checkout")?;
    let cluster = Cluster {
        root,
        machines,
        foreshore,
        argocd,
        full,
    };
    if figures {
        return figures::measure(&cluster, quick, &about, figures_file.as_deref()).await;
    }
    let (mut ran, began) = (0, Instant::now());
    for scenario in scenarios::ALL {
        let name = scenario.name;
        if !only.is_empty() && !only.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        if let Some(reason) = scenario.left_out(&cluster, !only.is_empty()) {
            eprintln!("test {name} ... LEFT OUT: {reason}");
            continue;
        }
        let start = Instant::now();
        let ended = scenario.run(&cluster).await;
        let seconds = start.elapsed().as_secs_f64();
        match ended {
            Ok(()) => eprintln!("test {name} ... ok ({seconds:.0} s)"),
            Err(error) => {
                eprintln!("test {name} ... FAILED ({seconds:.0} s)\n{error:#}\n");
                cluster.explain().await;
                bail!("{name}: {error:#}");
            }
        }
        ran += 1;
    }
    if ran == 0 {
        bail!("no scenario ran; there are: {}", scenarios::names());
    }
    eprintln!(
        "{ran} end-to-end tests passed in {:.0} s",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}
