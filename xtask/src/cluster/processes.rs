//! Processes by what the kernel says of them, so that a number that was given to another is never taken for ours.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

use super::{binary::INIT, layout::namespace_file};

/// How long a machine's processes have to end once they are killed.
const END: Duration = Duration::from_secs(20);

/// A process: its number, and when it was started, which tells it from a later one of that number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// The number.
    pub(crate) pid: u32,
    /// Clock ticks from the start of the machine to that of the process.
    pub(crate) started: u64,
}

impl Process {
    /// Returns the process that has a number now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        started(&stat).map(|started| Self { pid, started })
    }

    /// Whether it runs: it is there, and not only its remains.
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }
}

/// Start time of a process that has not ended, from its `stat`.
fn started(stat: &str) -> Option<u64> {
    // The second field is the program's name in brackets, and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The first process of a machine, when the machine runs.
pub(crate) fn init(machine: u8) -> Result<Option<Process>> {
    let ours = ours(machine)?;
    Ok(ours
        .into_iter()
        .find(|(_, program)| program.ends_with(INIT))
        .map(|(process, _)| process))
}

/// Kills a machine, and with its first process all that runs there, and waits for the end of it.
pub(crate) fn kill(machine: u8) -> Result<()> {
    let start = Instant::now();
    loop {
        let found = ours(machine)?;
        let Some(&(last, _)) = found.last() else {
            return Ok(());
        };
        if start.elapsed() > END {
            bail!("process {} did not end within {} s", last.pid, END.as_secs());
        }
        for (process, _) in found {
            let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else {
                continue;
            };
            // Once it is open, the number can't be given to another; so it is ours if it still is the same.
            let Ok(open) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            if process.is_alive()
                && let Err(error) = pidfd_send_signal(&open, Signal::KILL)
                && error != Errno::SRCH
            {
                return Err(error).with_context(|| format!("kill process {}", process.pid));
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The first process of a machine and what waits for it, each with its program: those in the machine's network whose
/// command line names our first process. The other processes of a machine end with these.
fn ours(machine: u8) -> Result<Vec<(Process, String)>> {
    let Ok(namespace) = fs::metadata(namespace_file(machine)) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let name = entry.context("read /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Before anything else about it is read, so that what is read is of this process or of none.
        let Some(process) = Process::of(pid) else { continue };
        let Ok(network) = fs::metadata(format!("/proc/{pid}/ns/net")) else {
            continue;
        };
        if (network.dev(), network.ino()) != (namespace.dev(), namespace.ino()) {
            continue;
        }
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy)
            .collect();
        if words.iter().any(|word| word.ends_with(INIT)) && process.is_alive() {
            let program = words.first().map(|word| word.to_string()).unwrap_or_default();
            found.push((process, program));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_when_a_process_was_started() {
        let stat = "4242 (a) b (c)) S 1 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 10";
        assert_eq!(started(stat), Some(987_654));
        assert_eq!(started(&stat.replace(") S", ") Z")), None);
        assert_eq!(started("nonsense"), None);
    }

    #[test]
    fn a_number_with_another_start_is_another_process() {
        let this = Process::of(std::process::id()).unwrap();
        assert!(this.is_alive());
        let another = Process {
            started: this.started + 1,
            ..this
        };
        assert!(!another.is_alive());
    }
}
