//! Our broker beside mosquitto: fan-in and fan-out, under the same load in turns.

use std::{
    fs,
    io::BufRead,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use foreshore_peers::free_port;
use serde::de::DeserializeOwned;

use crate::{
    Plan,
    mqtt::{Delivered, Published, READY},
    program::Program,
};

/// A broker that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    Mosquitto,
    Memory,
    Fjall,
}

impl Contender {
    pub(crate) const ALL: [Self; 3] = [Self::Mosquitto, Self::Memory, Self::Fjall];
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    publishers: usize,
    subscribers: usize,
    qos: u8,
    /// Whether the subscribers' sessions outlive their connections.
    persistent: bool,
    /// Messages a second of each publisher; as many as go through where it is left out.
    pub(crate) rate: Option<u32>,
}

/// Clients on the side that has many.
const MANY: usize = 100;
/// Bytes of a message.
pub(crate) const PAYLOAD: usize = 256;

const fn scenario(
    name: &'static str,
    clients: (usize, usize),
    qos: u8,
    persistent: bool,
    rate: Option<u32>,
) -> Scenario {
    Scenario {
        name,
        publishers: clients.0,
        subscribers: clients.1,
        qos,
        persistent,
        rate,
    }
}

/// What is measured.
pub(crate) const SCENARIOS: [Scenario; 7] = [
    scenario("fan-in 100 → 1, QoS 0", (MANY, 1), 0, false, None),
    scenario("fan-in 100 → 1, QoS 1", (MANY, 1), 1, false, None),
    scenario(
        "fan-in 100 → 1, QoS 1, persistent session",
        (MANY, 1),
        1,
        true,
        None,
    ),
    scenario("fan-out 1 → 100, QoS 0", (1, MANY), 0, false, None),
    scenario("fan-out 1 → 100, QoS 1", (1, MANY), 1, false, None),
    scenario(
        "fan-out 1 → 100, QoS 1, persistent sessions",
        (1, MANY),
        1,
        true,
        None,
    ),
    scenario(
        "paced 5,000/s, 100 → 1, QoS 1, persistent session",
        (MANY, 1),
        1,
        true,
        Some(50),
    ),
];

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) published: Published,
    pub(crate) delivered: Delivered,
}

/// All runs of one scenario: for each contender its rounds.
#[derive(Clone, Debug)]
pub(crate) struct Compared {
    pub(crate) scenario: Scenario,
    pub(crate) rounds: Vec<[Run; Contender::ALL.len()]>,
}

/// Runs all scenarios; the contenders take turns.
pub(crate) fn measure(plan: &Plan) -> Result<Vec<Compared>> {
    let mut all: Vec<Compared> = SCENARIOS
        .into_iter()
        .map(|scenario| Compared {
            scenario,
            rounds: Vec::new(),
        })
        .collect();
    for round in 0..plan.rounds {
        for compared in &mut all {
            let run = |contender| {
                let name = compared.scenario.name;
                // On a machine that others use, a subscriber may starve until its broker gives it up.
                let again = |error| {
                    eprintln!("    again: {name}: {contender:?}: {error:#}");
                    run(plan, contender, &compared.scenario)
                };
                run(plan, contender, &compared.scenario)
                    .or_else(again)
                    .with_context(|| format!("{name}: {contender:?}"))
            };
            let [mosquitto, memory, fjall] = Contender::ALL;
            let runs = [run(mosquitto)?, run(memory)?, run(fjall)?];
            let rates: Vec<String> = runs
                .iter()
                .map(|run| format!("{:.0}", run.delivered.rate))
                .collect();
            eprintln!(
                "    round {} {}: {}/s",
                round + 1,
                compared.scenario.name,
                rates.join(", ")
            );
            compared.rounds.push(runs);
        }
    }
    Ok(all)
}

fn run(plan: &Plan, contender: Contender, scenario: &Scenario) -> Result<Run> {
    let folder = tempfile::tempdir_in(&plan.folder)?;
    let port = free_port();
    let mut broker = start(plan, contender, folder.path(), port)?;
    broker.wait_for_port(port)?;
    let address = format!("127.0.0.1:{port}");
    let generator = |side: &str, clients: usize, more: &[String]| -> Result<Program> {
        let mut command = Command::new(&plan.generator);
        command
            .arg(side)
            .args(["--address", &address])
            .args(["--clients", &clients.to_string()])
            .args(["--qos", &scenario.qos.to_string()])
            .args(["--warmup", &plan.warmup.as_secs_f64().to_string()])
            .args(["--seconds", &plan.measured.as_secs_f64().to_string()])
            .args(more)
            .stdout(Stdio::piped());
        Program::start(&mut command, &folder.path().join(side))
    };
    let mut more = vec!["--broker".to_owned(), broker.id().to_string()];
    if scenario.persistent {
        more.push("--persistent".to_owned());
    }
    let mut subscribe = generator("subscribe", scenario.subscribers, &more)?;
    let mut arriving = subscribe.output()?;
    ready(&mut arriving, &subscribe, &broker)?;
    let mut more = vec!["--payload".to_owned(), PAYLOAD.to_string()];
    if let Some(rate) = scenario.rate {
        more.extend(["--rate".to_owned(), rate.to_string()]);
    }
    let mut publish = generator("publish", scenario.publishers, &more)?;
    let mut sending = publish.output()?;
    ready(&mut sending, &publish, &broker)?;
    let delivered = result(&mut arriving, subscribe, &broker)?;
    let published = result(&mut sending, publish, &broker)?;
    Ok(Run { published, delivered })
}

fn start(plan: &Plan, contender: Contender, folder: &Path, port: u16) -> Result<Program> {
    let mut command = match contender {
        Contender::Mosquitto => {
            let configuration = folder.join("mosquitto.conf");
            let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
            // Queues without bound, so that nothing is dropped; the file is written as Debian's own configuration has it:
            // every half hour and at the end.
            let text = format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nuser {user}\n\
                 persistence true\npersistence_location {}/\nmax_queued_messages 0\nmax_inflight_messages 1000\n\
                 log_type error\nlog_type warning\n",
                folder.display()
            );
            fs::write(&configuration, text)?;
            let mut command = Command::new(&plan.mosquitto);
            command.arg("-c").arg(configuration);
            command
        }
        Contender::Memory | Contender::Fjall => {
            let store = if contender == Contender::Memory {
                "memory"
            } else {
                "fjall"
            };
            let mut command = Command::new(&plan.foreshore);
            command
                .args(["broker", "--anonymous", "--log", "warn", "--store", store])
                .args(["--listen", &format!("127.0.0.1:{port}"), "--data"])
                .arg(folder.join("data"));
            command
        }
    };
    Program::start(command.stdout(Stdio::null()), &folder.join("broker"))
}

fn ready(output: &mut impl BufRead, side: &Program, broker: &Program) -> Result<()> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    if line.trim() != READY {
        // What it says of its failure follows.
        std::thread::sleep(Duration::from_millis(200));
        bail!("{}\nbroker: {}", side.messages(), broker.messages());
    }
    Ok(())
}

fn result<T: DeserializeOwned>(output: &mut impl BufRead, side: Program, broker: &Program) -> Result<T> {
    let mut line = String::new();
    output.read_line(&mut line)?;
    let result = serde_json::from_str(&line);
    result.with_context(|| format!("{line}{}\nbroker: {}", side.messages(), broker.messages()))
}

/// The middle of values.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        Some(value) if values.len() % 2 == 1 => *value,
        Some(value) => (value + values[middle - 1]) / 2.0,
        None => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
