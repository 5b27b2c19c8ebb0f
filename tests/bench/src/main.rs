//! `cargo xtask bench`: figures of the release binary, side by side with a peer in the same run where there is one.
//!
//! | module | what |
//! |---|---|
//! | `edge` | OPC UA value changes to the cloud endpoint's commit: rate and latency |
//! | `brokers` | fan-in and fan-out of our broker and of mosquitto, in turns |
//! | `memory` | memory of an idle `foreshore up` |
//! | `mqtt` | the load generator |
//! | `report` | the table, and the generated part of `docs/bench.md` |

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

mod brokers;
mod edge;
mod host;
mod memory;
mod metrics;
mod mqtt;
mod plant;
mod process;
mod program;
mod report;

/// Measures the release binary that was built beside this program.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Generator>,
    #[command(flatten)]
    options: Options,
}

#[derive(clap::Args)]
struct Options {
    /// Short and rough, to see whether it works; nothing is written.
    #[arg(long)]
    quick: bool,
    /// Measure only these, and write nothing.
    #[arg(long, value_enum)]
    only: Vec<Part>,
}

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Edge,
    Brokers,
    Memory,
}

/// The load generator's sides, which are processes of their own.
#[derive(Subcommand)]
enum Generator {
    /// Publish over MQTT.
    Publish(mqtt::publish::Options),
    /// Take what is published over MQTT.
    Subscribe(mqtt::subscribe::Options),
}

/// How long and how often to measure, and what with.
pub(crate) struct Plan {
    pub(crate) checkout: PathBuf,
    /// Folder of what brokers and plants keep: beside the binaries, on a disk.
    pub(crate) folder: PathBuf,
    pub(crate) foreshore: PathBuf,
    pub(crate) generator: PathBuf,
    pub(crate) mosquitto: PathBuf,
    pub(crate) rounds: usize,
    pub(crate) warmup: Duration,
    pub(crate) measured: Duration,
    pub(crate) warmup_edge: Duration,
    pub(crate) measured_edge: Duration,
    pub(crate) idle: Duration,
}

impl Plan {
    fn new(quick: bool) -> Result<Self> {
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
            rounds: if quick { 1 } else { 3 },
            warmup: seconds(1, 1),
            measured: seconds(3, 1),
            warmup_edge: seconds(4, 2),
            measured_edge: seconds(10, 4),
            idle: seconds(150, 15),
        })
    }
}

/// Everything that was measured.
pub(crate) struct Figures {
    pub(crate) edge: Option<Vec<edge::Step>>,
    pub(crate) brokers: Option<Vec<brokers::Compared>>,
    pub(crate) memory: Option<[memory::Idle; 2]>,
    pub(crate) load_before: f64,
    pub(crate) took: Duration,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        None => measure(&arguments.options),
        Some(Generator::Publish(options)) => generate(mqtt::publish::run(options)),
        Some(Generator::Subscribe(options)) => generate(mqtt::subscribe::run(options)),
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
    let plan = Plan::new(options.quick)?;
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let (began, load_before) = (Instant::now(), host::load());
    let mut figures = Figures {
        edge: None,
        brokers: None,
        memory: None,
        load_before,
        took: Duration::ZERO,
    };
    if wanted(Part::Memory) {
        eprintln!("==> memory of an idle plant");
        figures.memory = Some(memory::measure(&plan)?);
    }
    if wanted(Part::Edge) {
        eprintln!("==> OPC UA to the cloud endpoint");
        figures.edge = Some(edge::measure(&plan)?);
    }
    if wanted(Part::Brokers) {
        eprintln!("==> brokers");
        figures.brokers = Some(brokers::measure(&plan)?);
    }
    figures.took = began.elapsed();
    let text = report::text(&plan, &figures);
    println!("{text}");
    if options.quick || !options.only.is_empty() {
        return Ok(());
    }
    report::write(&plan.checkout.join("docs/bench.md"), &text)
}
