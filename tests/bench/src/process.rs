//! What the kernel tells about processes.

use std::fs;

use anyhow::{Context, Result};

/// Clock ticks of a second in `/proc`: the kernel's interface fixes it at 100, whatever the kernel's own clock is.
const TICKS: f64 = 100.0;

/// Memory of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Resident bytes, shared pages of files included.
    pub(crate) resident: u64,
    /// The process's share of them, where shared pages count in parts.
    pub(crate) proportional: u64,
    /// Of the resident bytes, those that belong to no file: heap and stacks.
    pub(crate) anonymous: u64,
}

/// Processor seconds that a process has used.
pub(crate) fn cpu_seconds(process: u32) -> Result<f64> {
    cpu(&process.to_string())
}

/// Processor seconds that this process has used.
pub(crate) fn own_cpu_seconds() -> Result<f64> {
    cpu("self")
}

fn cpu(process: &str) -> Result<f64> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name of the program may hold anything; what follows its closing parenthesis is numbered from 3 on.
    let fields = text.rsplit_once(')').context("no name in /proc")?.1;
    let field = |number: usize| -> Result<f64> {
        let field = fields.split_whitespace().nth(number - 3);
        Ok(field.context("a field is missing in /proc")?.parse()?)
    };
    Ok((field(14)? + field(15)?) / TICKS)
}

/// Memory that a process uses.
pub(crate) fn memory(process: u32) -> Result<Memory> {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let field = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kilobytes
            .with_context(|| format!("no {name} in {path}"))?
            .parse::<u64>()?
            << 10)
    };
    Ok(Memory {
        resident: field("Rss:")?,
        proportional: field("Pss:")?,
        anonymous: field("Anonymous:")?,
    })
}

/// Threads of a process.
pub(crate) fn threads(process: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{process}/task"))?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let before = own_cpu_seconds().unwrap();
        let began = std::time::Instant::now();
        while own_cpu_seconds().unwrap() < before + 0.05 {
            assert!(began.elapsed().as_secs() < 60);
        }
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.resident >= memory.anonymous && memory.anonymous > 0);
        assert!(memory.proportional <= memory.resident);
        assert!(threads(std::process::id()).unwrap() >= 1);
    }
}
