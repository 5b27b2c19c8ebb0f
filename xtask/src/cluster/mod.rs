//! `cargo xtask cluster`: a real Kubernetes of one to three nodes on this machine, for tests.

use std::{ffi::OsString, fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::{shell, tools};

mod binary;
mod cgroups;
mod clean;
mod client;
mod control_plane;
mod foreign;
mod images;
mod layout;
mod machine;
mod network;
mod node;
mod pki;
mod processes;
mod state;
mod status;
mod up;
mod wait;

use binary::Programs;
use layout::{API_PORT, Layout, MOST_NODES};
use machine::Machine;
use state::State;

/// What to do with the cluster.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start a cluster, unless one of as many nodes runs; what it needs and this machine lacks is installed first.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = MOST_NODES, value_parser = clap::value_parser!(u8).range(1..=i64::from(MOST_NODES)))]
        nodes: u8,
    },
    /// Remove the cluster, or what is left of one.
    Down,
    /// Say what runs, where, and where its logs are.
    Status,
    /// Give images to every node, from archives such as `cargo xtask image` writes.
    LoadImage {
        /// Archives in the layout of OCI or Docker.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// End a node at once with all that runs there, as a power cut would; its disk stays.
    KillNode {
        /// Which one, from 1.
        node: u8,
    },
    /// Start a node again that was killed.
    StartNode {
        /// Which one, from 1.
        node: u8,
    },
    /// Let the API server answer nobody, as when its machine hangs; all that runs runs on.
    StopApi,
    /// Let the API server answer again.
    StartApi,
    /// Run kubectl.
    #[command(disable_help_flag = true)]
    Kubectl {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run Helm.
    #[command(disable_help_flag = true)]
    Helm {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run a program in the control plane's network, with KUBECONFIG set: it reaches pods, Services and the name server.
    #[command(disable_help_flag = true)]
    Run {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// Does it.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(kubeconfig) = foreign::kubeconfig()? {
        return foreign::run(&options.task, &kubeconfig);
    }
    if !shell::is_root() {
        bail!("found a user other than root; allowed: root, who may make namespaces and mounts");
    }
    let layout = Layout::new()?;
    match &options.task {
        Task::Up { nodes } => {
            tools::debian(tools::CLUSTER)?;
            let _lock = lock(&layout)?;
            up::run(&layout, *nodes)
        }
        Task::Down => {
            let _lock = lock(&layout)?;
            clean::all(&layout)?;
            println!("down: no cluster is left");
            Ok(())
        }
        Task::Status => status::print(&layout),
        Task::LoadImage { files } => {
            let _lock = lock(&layout)?;
            load_images(&layout, files)
        }
        Task::KillNode { node } => {
            let _lock = lock(&layout)?;
            kill_node(&layout, *node)
        }
        Task::StartNode { node } => {
            let _lock = lock(&layout)?;
            up::start_node(&layout, *node)
        }
        Task::StopApi | Task::StartApi => {
            let _lock = lock(&layout)?;
            State::of_running(&layout)?;
            network::silence(API_PORT, matches!(options.task, Task::StopApi))
        }
        Task::Kubectl { arguments } => enter(&layout, Ours::Named("kubectl"), arguments),
        Task::Helm { arguments } => enter(&layout, Ours::Named("helm"), arguments),
        Task::Run { program, arguments } => enter(&layout, Ours::Other(program), arguments),
    }
}

/// Whether a cluster of the user's own is used instead.
pub(crate) fn is_foreign() -> Result<bool> {
    Ok(foreign::kubeconfig()?.is_some())
}

/// Starts a cluster, unless one of as many nodes runs.
pub(crate) fn up(nodes: u8) -> Result<()> {
    run(&Options {
        task: Task::Up { nodes },
    })
}

/// Gives images to every node.
pub(crate) fn load(files: &[PathBuf]) -> Result<()> {
    run(&Options {
        task: Task::LoadImage {
            files: files.to_vec(),
        },
    })
}

/// Removes the cluster.
pub(crate) fn down() -> Result<()> {
    run(&Options { task: Task::Down })
}

/// The directory of the cluster's programs, with kubectl and Helm, which are built when they are missing.
pub(crate) fn programs_folder() -> Result<PathBuf> {
    let layout = Layout::new()?;
    let _lock = lock(&layout)?;
    Ok(binary::build(&layout)?.folder)
}

/// A program to run beside the cluster.
enum Ours<'a> {
    /// One of the cluster's own.
    Named(&'a str),
    /// Any other.
    Other(&'a PathBuf),
}

fn enter(layout: &Layout, program: Ours<'_>, arguments: &[OsString]) -> Result<()> {
    let programs = programs(&State::of_running(layout)?);
    let program = match program {
        Ours::Named(name) => programs.folder.join(name),
        Ours::Other(path) => path.clone(),
    };
    let command = client::command(layout, &programs, &program)?;
    client::become_program(command, arguments)
}

fn load_images(layout: &Layout, files: &[PathBuf]) -> Result<()> {
    let state = State::of_running(layout)?;
    let programs = programs(&state);
    for node in 1..=state.nodes {
        if processes::init(node)?.is_none() {
            eprintln!("    node {node} does not run, and is left out");
            continue;
        }
        let machine = Machine::running(layout, &programs, node)?;
        for file in files {
            images::load(&machine, file).with_context(|| format!("node {node}"))?;
        }
    }
    Ok(())
}

fn kill_node(layout: &Layout, node: u8) -> Result<()> {
    let mut state = State::of_running(layout)?;
    state.check_node(node)?;
    // Noted first, so that whoever looks meanwhile does not take it for a failure.
    state.components.retain(|component| component.machine != node);
    state.save(layout)?;
    clean::power_off(node)
}

fn programs(state: &State) -> Programs {
    Programs {
        folder: state.programs.clone(),
    }
}

/// Keeps others from changing the cluster at the same time, until it is dropped.
fn lock(layout: &Layout) -> Result<fs::File> {
    fs::create_dir_all(layout.folder()).with_context(|| format!("create {}", layout.folder().display()))?;
    let path = layout.lock();
    let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("    waiting for another `cargo xtask cluster`");
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}
