//! Processes by what the kernel says of them, so that a number that was given to another is never taken for ours.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::PathBuf,
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
    let found = ours(machine)?.into_iter().find(|found| found.is_init);
    Ok(found.map(|found| found.process))
}

/// Directory of the cluster that a machine is part of, when the machine runs.
pub(crate) fn cluster(machine: u8) -> Result<Option<PathBuf>> {
    Ok(ours(machine)?.into_iter().next().map(|found| found.cluster))
}

/// Kills a machine, and with its first process all that runs there, and waits for the end of it.
pub(crate) fn kill(machine: u8) -> Result<()> {
    let start = Instant::now();
    loop {
        let found = ours(machine)?;
        let Some(last) = found.last() else {
            return Ok(());
        };
        if start.elapsed() > END {
            let pid = last.process.pid;
            bail!("process {pid} did not end within {} s", END.as_secs());
        }
        for Found { process, .. } in found {
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

/// A machine's first process, or one that waits for it.
struct Found {
    process: Process,
    is_init: bool,
    /// What its machine is part of, which it was told.
    cluster: PathBuf,
}

/// The first process of a machine and what waits for it: those in the machine's network whose command line names our
/// first process. The other processes of a machine end with these.
fn ours(machine: u8) -> Result<Vec<Found>> {
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
        if let Some((is_init, cluster)) = parse(&line)
            && process.is_alive()
        {
            found.push(Found {
                process,
                is_init,
                cluster,
            });
        }
    }
    Ok(found)
}

/// Whether a command line is that of a first process or of what waits for one, and of which cluster.
fn parse(line: &[u8]) -> Option<(bool, PathBuf)> {
    let words: Vec<_> = line.split(|byte| *byte == 0).collect();
    let position = words
        .iter()
        .position(|word| word.ends_with(format!("/{INIT}").as_bytes()))?;
    let cluster = OsStr::from_bytes(words.get(position + 1)?);
    Some((position == 0, PathBuf::from(cluster)))
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
    fn knows_first_processes_by_their_command_line() {
        let run = PathBuf::from("/cache/cluster/run");
        let init = b"/cache/cluster/bin-0/foreshore-init\0/cache/cluster/run\0";
        assert_eq!(parse(init), Some((true, run.clone())));
        let waits = b"unshare\0--pid\0/cache/cluster/bin-0/foreshore-init\0/cache/cluster/run\0";
        assert_eq!(parse(waits), Some((false, run)));
        assert_eq!(parse(b"grep\0foreshore-init\0"), None);
        assert_eq!(parse(b"/pause\0"), None);
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
