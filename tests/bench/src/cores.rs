//! Which processors brokers and the load generator get.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Processors from which on the brokers get half of them for themselves. With fewer, one side alone would be the limit,
/// and whoever needs less of its processor would win nothing by it.
const ENOUGH: usize = 4;

/// Which processors brokers and the load generator get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cores {
    /// All share all, as the system has it.
    Shared(usize),
    /// Each side has its own; lists of them as `taskset` takes them.
    Apart { brokers: String, generator: String },
}

impl Cores {
    /// Divides the processors that this process may use.
    pub(crate) fn divide() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let list = list.context("no processors in /proc/self/status")?;
        Ok(Self::of(&processors(list.trim())?))
    }

    fn of(processors: &[usize]) -> Self {
        if processors.len() < ENOUGH {
            return Self::Shared(processors.len());
        }
        let (brokers, generator) = processors.split_at(processors.len() / 2);
        let list = |some: &[usize]| some.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        Self::Apart {
            brokers: list(brokers),
            generator: list(generator),
        }
    }

    /// A broker's program, to be started on the brokers' processors.
    pub(crate) fn broker(&self, program: &Path) -> Command {
        match self {
            Self::Shared(_) => Command::new(program),
            Self::Apart { brokers, .. } => on(brokers, program),
        }
    }

    /// A side of the generator, to be started on the generator's processors.
    pub(crate) fn generator(&self, program: &Path) -> Command {
        match self {
            Self::Shared(_) => Command::new(program),
            Self::Apart { generator, .. } => on(generator, program),
        }
    }

    /// For whoever reads the figures.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Shared(count) => format!(
                "broker and generator shared all {count} processors: below {ENOUGH} none is set apart, since one for each side would measure the generator"
            ),
            Self::Apart { brokers, generator } => {
                format!("brokers ran on processors {brokers}, the generator on {generator}")
            }
        }
    }
}

/// `taskset` becomes the program, so that the process is the same.
fn on(list: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", list]).arg(program);
    command
}

/// Reads the kernel's form of a set of processors, such as `0-3,8`.
fn processors(list: &str) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            text.parse::<usize>()
                .with_context(|| format!("processors {list:?}"))
        };
        found.extend(number(first)?..=number(last)?);
    }
    Ok(found)
}

/// Lets this process and those that it starts open so many files, as far as the system allows; returns how many it does.
pub(crate) fn raise_open_files(wanted: u64) -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let at_least = |limit: Option<u64>| limit.is_none_or(|limit| limit >= wanted);
    if at_least(current) {
        return current.unwrap_or(u64::MAX);
    }
    // Beyond what was the most only a privileged user may go.
    let beyond = Rlimit {
        current: Some(wanted),
        maximum: if at_least(maximum) { maximum } else { Some(wanted) },
    };
    let most = Rlimit {
        current: maximum,
        maximum,
    };
    let raised = setrlimit(Resource::Nofile, beyond).or_else(|_| setrlimit(Resource::Nofile, most));
    match raised {
        Ok(()) => getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        Err(_) => current.unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_set_apart_where_there_are_enough() {
        assert_eq!(Cores::of(&processors("0-1").unwrap()), Cores::Shared(2));
        let apart = |brokers: &str, generator: &str| Cores::Apart {
            brokers: brokers.to_owned(),
            generator: generator.to_owned(),
        };
        assert_eq!(Cores::of(&processors("0-3").unwrap()), apart("0,1", "2,3"));
        assert_eq!(Cores::of(&processors("1,4-6,9").unwrap()), apart("1,4", "5,6,9"));
        assert!(processors("").is_err() && processors("0-").is_err());
    }

    #[test]
    fn a_program_that_is_set_apart_runs_where_it_should() {
        let list = fs::read_to_string("/proc/self/status").unwrap();
        let list = list
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let first = processors(list.unwrap().trim()).unwrap()[0].to_string();
        let cores = Cores::Apart {
            brokers: first.clone(),
            generator: first.clone(),
        };
        for mut command in [
            cores.broker(Path::new("grep")),
            cores.generator(Path::new("grep")),
        ] {
            let output = command
                .args(["Cpus_allowed_list", "/proc/self/status"])
                .output()
                .unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(text.split_whitespace().last(), Some(first.as_str()));
        }
    }

    #[test]
    fn the_limit_of_open_files_is_never_lowered() {
        let before = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!(raise_open_files(before + 1) >= before);
        assert!(raise_open_files(1) >= before);
    }
}
