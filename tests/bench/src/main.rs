//! `cargo xtask bench`: figures of the release binary, side by side with a peer in the same run where there is one.
//!
//! | module | what |
//! |---|---|
//! | `edge` | OPC UA value changes to the cloud endpoint's commit: rate and latency |
//! | `broker` | our broker and those of others, in turns |
//! | `memory` | memory of an idle `foreshore up` |
//! | `soak` | `cargo xtask soak`: our broker under everything at once, for a long time |
//! | `mqtt` | the load generator |
//! | `cores` | which processors brokers and generator get |
//! | `report` | tables, and the generated parts of `docs/bench.md` |

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use cores::Cores;

mod broker;
mod cores;
mod edge;
mod host;
mod memory;
mod metrics;
mod mqtt;
mod plant;
mod process;
mod program;
mod report;
mod soak;

/// Measures the release binary that was built beside this program.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
}

#[derive(clap::Args)]
struct Options {
    /// Short and rough, to see whether it works; nothing is written.
    #[arg(long)]
    quick: bool,
    /// Measure only these; without it, all but the brokers.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Folder of the programs that embed brokers of others; without it, these are left out, and said.
    #[arg(long, value_name = "FOLDER")]
    peers: Option<PathBuf>,
}

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Edge,
    Broker,
    Memory,
}

/// What else this program does: the load generator's sides are processes of their own.
#[derive(Subcommand)]
enum Command {
    /// Publish over MQTT.
    Publish(mqtt::publish::Options),
    /// Take what is published over MQTT.
    Subscribe(mqtt::subscribe::Options),
    /// Subscribe over MQTT, and leave.
    Leave(mqtt::away::Leave),
    /// Come back, and take what waits.
    Take(mqtt::away::Return),
    /// Connect many clients that say nothing.
    Hold(mqtt::hold::Options),
    /// Publish everything that a soak publishes.
    SoakPublish(soak::publish::Options),
    /// Load our broker for a long time, and judge it.
    Soak(soak::Options),
}

/// Files that brokers and generator may have open, where the system allows it: twice the idle connections.
const OPEN_FILES: u64 = 20_000;

/// How long and how often to measure, and what with.
pub(crate) struct Plan {
    pub(crate) checkout: PathBuf,
    /// Folder of what brokers and plants keep: beside the binaries, on a disk.
    pub(crate) folder: PathBuf,
    pub(crate) foreshore: PathBuf,
    pub(crate) generator: PathBuf,
    pub(crate) mosquitto: PathBuf,
    /// Folder of the programs that embed brokers of others.
    pub(crate) peers: Option<PathBuf>,
    pub(crate) cores: Cores,
    /// Files that a broker and the generator may have open.
    pub(crate) open_files: u64,
    pub(crate) idle_connections: usize,
    pub(crate) rounds: usize,
    pub(crate) warmup: Duration,
    pub(crate) measured: Duration,
    pub(crate) warmup_edge: Duration,
    pub(crate) measured_edge: Duration,
    pub(crate) idle: Duration,
}

impl Plan {
    fn new(options: &Options) -> Result<Self> {
        let quick = options.quick;
        let generator = env::current_exe()?;
        let folder = generator.with_file_name("bench");
        fs::create_dir_all(&folder)?;
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mosquitto = [
            "/usr/sbin/mosquitto",
            "/usr/local/sbin/mosquitto",
            "/usr/bin/mosquitto",
        ];
        let mosquitto = mosquitto.iter().map(PathBuf::from).find(|path| path.is_file());
        let seconds = |usual, short| Duration::from_secs(if quick { short } else { usual });
        Ok(Self {
            checkout: checkout.canonicalize()?,
            foreshore: generator.with_file_name("foreshore"),
            folder,
            generator,
            mosquitto: mosquitto.context("mosquitto is not installed")?,
            peers: options.peers.clone(),
            cores: Cores::divide()?,
            open_files: cores::raise_open_files(OPEN_FILES),
            idle_connections: if quick { 1_000 } else { 10_000 },
            rounds: if quick { 1 } else { 3 },
            warmup: seconds(1, 1),
            measured: seconds(3, 1),
            warmup_edge: seconds(4, 2),
            measured_edge: seconds(10, 4),
            idle: seconds(150, 15),
        })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        None => measure(&arguments.options),
        Some(Command::Publish(options)) => generate(mqtt::publish::run(options)),
        Some(Command::Subscribe(options)) => generate(mqtt::subscribe::run(options)),
        Some(Command::Leave(options)) => generate(mqtt::away::leave(options)),
        Some(Command::Take(options)) => generate(mqtt::away::take(options)),
        Some(Command::Hold(options)) => generate(mqtt::hold::run(options)),
        Some(Command::SoakPublish(options)) => generate(soak::publish::run(options)),
        Some(Command::Soak(options)) => soak::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one side of the load generator on this thread, and prints what it measured.
fn generate<T: serde::Serialize>(side: impl Future<Output = Result<T>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let measured = runtime.block_on(side)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&measured)?)?;
    Ok(())
}

fn measure(options: &Options) -> Result<()> {
    let plan = Plan::new(options)?;
    let named = |part| options.only.contains(&part);
    let wanted = |part| options.only.is_empty() || named(part);
    let file = plan.checkout.join("docs/bench.md");
    let (began, load_before) = (Instant::now(), host::load());
    let mut tables = Vec::new();
    if wanted(Part::Memory) {
        eprintln!("==> memory of an idle plant");
        tables.push(report::idle(&plan, &memory::measure(&plan)?));
    }
    if wanted(Part::Edge) {
        eprintln!("==> OPC UA to the cloud endpoint");
        tables.push(report::edge(&edge::measure(&plan)?));
    }
    if !tables.is_empty() {
        let head = report::head(load_before, began.elapsed());
        let text = format!("{head}\n{}", tables.join("\n"));
        println!("{text}");
        // One of the two alone would leave the other's table without the head that it was measured under.
        if !options.quick && tables.len() == 2 {
            report::write(&file, report::Part::Edge, &text)?;
        }
    }
    if named(Part::Broker) {
        eprintln!("==> brokers");
        let (began, load_before) = (Instant::now(), host::load());
        let figures = broker::measure(&plan)?;
        let head = report::head(load_before, began.elapsed());
        let text = format!("{head}\n{}", broker::text(&plan, &figures));
        println!("{text}");
        if !options.quick {
            report::write(&file, report::Part::Broker, &text)?;
        }
    }
    Ok(())
}
