//! `cargo xtask soak`: our broker, on its disk, under everything at once and for a long time, as quickly as it takes it.
//!
//! Publishers are a process of their own; readers, of every kind, run in this one, which also watches the broker, ends it
//! in order, and reads its store afterwards. What has to hold is in `verdict`.
//!
//! | module | what |
//! |---|---|
//! | `publish` | QoS 0, 1 and 2, retained messages, messages that expire |
//! | `read` | a reader that misses nothing, slow ones, and those that come and go |
//! | `watch` | the broker's memory and disk |
//! | `ledger` | the store after the end |
//! | `verdict` | what has to hold |

use std::{
    env, fs,
    io::{BufRead, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use foreshore_peers::free_port;
use tokio::task::LocalSet;

use crate::program::{Program, get};

mod ledger;
pub(crate) mod publish;
mod read;
mod verdict;
mod watch;

use ledger::Ledger;
use publish::Published;
use read::{Found, Readers};
use verdict::{Check, Evidence};
use watch::Sample;

/// Shortest load: readers are away every ten seconds, and thirds of the time need some samples.
const SHORTEST: Duration = Duration::from_secs(30);

/// How long to load the broker.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Time under load, such as 2m or 20m.
    #[arg(long = "for", value_name = "TIME", value_parser = time, default_value = "20m")]
    duration: Duration,
    /// The program; what was built beside this one where it is left out.
    #[arg(long, value_name = "PROGRAM")]
    foreshore: Option<PathBuf>,
}

fn time(text: &str) -> Result<Duration> {
    let time: jiff::SignedDuration = text.parse()?;
    let time = Duration::try_from(time)?;
    if time < SHORTEST {
        bail!(
            "{text} is too short: at least {} s are needed",
            SHORTEST.as_secs()
        );
    }
    Ok(time)
}

/// Loads a broker and judges it.
///
/// # Errors
/// When something does not hold.
pub(crate) fn run(options: &Options) -> Result<()> {
    let own = env::current_exe()?;
    let foreshore = match &options.foreshore {
        Some(program) => program.clone(),
        None => own.with_file_name("foreshore"),
    };
    let folder = own.with_file_name("bench");
    fs::create_dir_all(&folder)?;
    let folder = tempfile::tempdir_in(&folder)?;
    let data = folder.path().join("data");
    let (port, http) = (free_port(), free_port());
    let mut command = Command::new(foreshore);
    command
        .args(["broker", "--anonymous", "--log", "warn"])
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(["--http", &format!("127.0.0.1:{http}"), "--data"])
        .arg(&data)
        .stdout(Stdio::null());
    let mut broker = Program::start(&mut command, &folder.path().join("broker"))?;
    let (address, http) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{http}"));
    // A connection only to see whether it listens would be counted as one that was refused.
    broker.wait_until("health", || get(&http, "/healthz", "").is_ok())?;
    let mut command = Command::new(own);
    command
        .args(["soak-publish", "--address", &address])
        .args(["--seconds", &options.duration.as_secs_f64().to_string()])
        .stdout(Stdio::piped());
    let publisher = folder.path().join("publisher");
    let loaded = load(&broker, &address, &data, || {
        Program::start_with(&mut command, Stdio::piped(), &publisher)
    });
    let (published, found, samples) = loaded.with_context(|| format!("broker: {}", broker.messages()))?;
    let metrics = get(&http, "/metrics", "")?;
    let log = broker.messages();
    broker.end().context("the end of the broker")?;
    let evidence = Evidence {
        published,
        found,
        samples,
        metrics,
        ledger: Ledger::read(&data)?,
    };
    let checks = verdict::checks(&evidence)?;
    tell(options, &evidence, &checks)?;
    let failed: Vec<&str> = checks
        .iter()
        .filter(|check| !check.holds)
        .map(|check| check.what.as_str())
        .collect();
    if !failed.is_empty() {
        bail!("does not hold: {}\nbroker: {log}", failed.join("; "));
    }
    Ok(())
}

/// Starts readers and publishers, waits until all is published and read, and returns what was seen meanwhile.
fn load(
    broker: &Program,
    address: &str,
    data: &Path,
    publish: impl FnOnce() -> Result<Program>,
) -> Result<(Published, Found, Vec<Sample>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = LocalSet::new();
    let mut samples = Vec::new();
    let loaded = local.run_until(async {
        let mut readers = Readers::start(&local, address).await?;
        let mut publisher = publish()?;
        let telling = readers.tell(publisher.input()?);
        let published = tokio::task::spawn_blocking(published(publisher));
        let published = tokio::select! {
            published = published => published??,
            failure = readers.failed() => return Err(failure),
            () = telling => bail!("nobody tells the publishers how far the reader is"),
            watched = watch::watch(broker.id(), data, &mut samples) => {
                return Err(watched.err().context("nobody watches the broker")?);
            }
        };
        let found = readers.finish(published.clone()).await?;
        Ok((published, found))
    });
    let loaded = runtime.block_on(loaded);
    // After a failure nobody waits for the publishers: they end with the broker.
    runtime.shutdown_background();
    let (published, found) = loaded?;
    Ok((published, found, samples))
}

/// Waits for the end of the publishers.
fn published(mut publisher: Program) -> impl FnOnce() -> Result<Published> + Send + 'static {
    move || {
        let mut line = String::new();
        publisher.output()?.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("publishers: {line}{}", publisher.messages()))
    }
}

fn tell(options: &Options, evidence: &Evidence, checks: &[Check]) -> Result<()> {
    let Evidence {
        published,
        found,
        samples,
        ..
    } = evidence;
    let seconds = options.duration.as_secs_f64();
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} messages published in {seconds:.0} s ({:.0}/s); {} repeated at QoS 1; slow ones disconnected {} times; memory {}",
        published.sum(),
        published.sum() as f64 / seconds,
        found.one.repeated,
        found.too_slow,
        // Ten of them tell how it went.
        samples
            .iter()
            .step_by(samples.len().div_ceil(10).max(1))
            .map(|sample| (sample.memory >> 20).to_string())
            .collect::<Vec<_>>()
            .join(", ")
    )?;
    for check in checks {
        let verdict = if check.holds { "ok" } else { "FAILED" };
        writeln!(out, "{verdict}: {}", check.what)?;
        writeln!(out, "    {}; found {}", check.promised, check.found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_those_that_show_nothing_refused() {
        assert_eq!(time("2m").unwrap(), Duration::from_secs(120));
        assert_eq!(time("90s").unwrap(), Duration::from_secs(90));
        assert!(time("10s").unwrap_err().to_string().contains("at least 30 s"));
        assert!(time("-2m").is_err() && time("soon").is_err());
    }
}
