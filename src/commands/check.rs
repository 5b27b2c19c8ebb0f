//! `foreshore check`: judges manifests without running anything.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use foreshore_operator::{Platform, check, source::directory::Options as ManifestOptions};

/// What to judge.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Files or folders of manifests.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Folder of secrets: files NAME/KEY of mode 0600.
    #[arg(long, value_name = "DIR")]
    secrets: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Judges and prints; fails when something is wrong.
pub(crate) fn run(options: Options) -> Result<()> {
    let manifests = ManifestOptions {
        paths: options.paths,
        secrets: options.secrets,
        ..ManifestOptions::default()
    };
    let report = check::check(manifests, Platform::standalone()).context("manifests")?;
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    if !report.is_right() {
        bail!("{} problems", report.problems.len());
    }
    Ok(())
}
