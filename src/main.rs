//! `foreshore`: one binary, many roles.
//!
//! `foreshore up` runs them all as tasks of one process; in a cluster the operator runs each in pods of its own.

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{Parser, Subcommand};
use foreshore_runtime::logging;

mod admin;
mod commands;
mod roles;

use commands::{
    Refused, broker, check, crds, invoke, kubectl, operator, role, sim, status, store, trace, up,
};
use foreshore_tls::Role;
use roles::Work;

/// What is logged unless somebody asks otherwise: the OPC UA library tells every session and certificate at `info` and
/// every lost connection, which the connector tells itself, as an error; of sessions between operator and roles the
/// operator tells what matters.
const DEFAULT_LOG: &str = "info,foreshore_control=warn,opcua_server=off,opcua_client=off,opcua_core=off,opcua_crypto=off,opcua_types=off,lsm_tree=warn,fjall=warn";

/// Exit code of a question that was answered with no: neither 1, something failed, nor 2, it was asked wrongly.
const REFUSED: u8 = 3;

/// An operator, an MQTT broker, connectors and a cloud endpoint for industrial assets.
#[derive(Parser)]
#[command(name = "foreshore", version, propagate_version = true)]
struct Arguments {
    /// What is logged to standard error: a level, or target=level pairs separated by commas.
    #[arg(long, global = true, env = "FORESHORE_LOG", default_value = DEFAULT_LOG)]
    log: String,
    /// Form of log lines: human or json.
    #[arg(long, global = true, env = "FORESHORE_LOG_FORMAT", default_value = "human")]
    log_format: logging::Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole system on one machine, from manifests.
    Up(up::Options),
    /// Show how everything stands: what is wrong, why, and what to do.
    Status(status::Options),
    /// Judge manifests without running anything.
    Check(check::Options),
    /// Send a command to an asset.
    Invoke(invoke::Options),
    /// Show where messages are: every hop of them through a broker that runs, with times and outcome.
    Trace(trace::Options),
    /// Run the operator in a cluster.
    Operator(operator::Options),
    /// Run the MQTT broker alone, or look at one that runs.
    Broker(Box<broker::Options>),
    /// Look at the store of a broker that does not run, prove it, or make it smaller.
    #[command(subcommand)]
    Store(store::Command),
    /// Run a southbound connector for an operator.
    Connector(role::Connector),
    /// Run the dataflows of a namespace for an operator.
    Dataflow(role::Options),
    /// Run the cloud endpoint for an operator.
    Cloud(role::Options),
    /// Run a declared Simulator for an operator.
    Simulator(role::Options),
    /// Run a simulated asset, with faults on demand.
    #[command(subcommand)]
    Sim(sim::Device),
    /// Look at an installation in a cluster, prove it and command its assets; as `kubectl foreshore` too.
    Kubectl(kubectl::Options),
    /// Print the custom resource definitions.
    Crds(crds::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(arguments());
    if let Err(error) = logging::init(arguments.log_format, &arguments.log) {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    let result = match arguments.command {
        Command::Up(options) => commands::block_on(up::run(options)),
        Command::Status(options) => commands::block_on(status::run(options)),
        Command::Check(options) => check::run(options),
        Command::Invoke(options) => commands::block_on(invoke::run(options)),
        Command::Trace(options) => commands::block_on(trace::run(options)),
        Command::Operator(options) => commands::block_on(operator::run(options)),
        Command::Connector(connector) => commands::block_on(connector.run()),
        Command::Dataflow(options) => commands::block_on(options.run(Role::Dataflow, Work::Dataflow)),
        Command::Cloud(options) => commands::block_on(options.run(Role::Cloud, Work::Cloud)),
        Command::Simulator(options) => commands::block_on(options.run(Role::Simulator, Work::Simulator)),
        Command::Broker(options) => commands::block_on(broker::run(*options)),
        Command::Store(command) => store::run(command),
        Command::Sim(device) => commands::block_on(sim::run(device)),
        Command::Kubectl(options) => commands::block_on(kubectl::run(options)),
        Command::Crds(options) => crds::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The answer was printed; it is none of an error.
        Err(error) if error.is::<Refused>() => ExitCode::from(REFUSED),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The arguments of this program; kubectl finds its plugins by their own names.
fn arguments() -> Vec<OsString> {
    let mut arguments: Vec<_> = std::env::args_os().collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_stem);
    if name.is_some_and(|name| name == kubectl::PLUGIN) {
        arguments.insert(1, "kubectl".into());
    }
    arguments
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The library finds contradictions between arguments only when a command is run.
    #[test]
    fn arguments_fit_together() {
        Arguments::command().debug_assert();
    }
}
