//! `cargo xtask`: everything that a contributor or the continuous integration runs, so that both run the same.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod argocd;
mod arm64;
mod arrows;
mod bench;
mod bundle;
mod cached;
mod charts;
mod cluster;
mod e2e;
mod generate;
mod gitops;
mod graph;
mod image;
mod monitoring;
mod results;
mod shell;
mod soak;
mod test;
mod tools;

/// Tests, generates, draws, measures and packs Foreshore.
#[derive(Parser)]
#[command(name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every check and test; what it needs and this machine lacks is installed first.
    Test(test::Options),
    /// Write generated files: CRD manifests, the table of rules, the README's crate graph, what the charts render to.
    Generate(generate::Options),
    /// Check the charts, without a build of the product.
    Charts(charts::Options),
    /// Pack the image, the charts and what goes with them for an installation without internet.
    Bundle(bundle::Options),
    /// Measure the release build, beside a peer where there is one, and write the figures into docs/bench.md.
    Bench(bench::Options),
    /// Load the broker with everything at once for a long time, and judge what it made of it.
    Soak(soak::Options),
    /// Build the container image, as an archive.
    Image(image::Options),
    /// Test an installation in a real Kubernetes, from its first command to its last.
    E2e(e2e::Options),
    /// Start, use and remove a real Kubernetes on this machine.
    Cluster(cluster::Options),
    /// Build the program for 64-bit ARM machines, and start it under emulation.
    Arm64,
    /// Draw the crate arrows as a Mermaid diagram.
    Graph,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Test(options) => test::run(&options),
        Task::Generate(options) => generate::run(&options),
        Task::Charts(options) => charts::run(&options),
        Task::Bundle(options) => bundle::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Image(options) => image::run(&options),
        Task::E2e(options) => e2e::run(&options),
        Task::Cluster(options) => cluster::run(&options),
        Task::Arm64 => arm64::run(),
        Task::Graph => graph::print(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
