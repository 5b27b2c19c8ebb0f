//! A peer that runs.

use std::{
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    ops::Range,
    process::{self, Child, Command, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Long enough for an interpreter on a loaded machine.
const START: Duration = Duration::from_secs(120);

/// A running program; it is killed when this is dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Program {
    /// Starts a program and waits until it prints a line that contains `ready`.
    ///
    /// # Panics
    /// When it can't be started, ends, or does not print that line in time.
    #[must_use]
    pub fn start(mut command: Command, ready: &str) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (sender, lines) = channel();
        forward(child.stdout.take(), sender.clone());
        forward(child.stderr.take(), sender);
        let mut program = Self {
            child,
            lines,
            seen: Vec::new(),
        };
        program.wait_for(ready, START);
        program
    }

    /// Waits for a line that contains `text` among those printed since the last wait, and returns it.
    ///
    /// # Panics
    /// When it does not come in time.
    pub fn wait_for(&mut self, text: &str, within: Duration) -> String {
        let end = Instant::now() + within;
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("peer printed no {text:?}: {}", self.seen.join("\n"));
                }
            }
        }
    }

    /// The lines that were printed since the last call and not waited for.
    pub fn lines(&mut self) -> Vec<String> {
        let mut lines = std::mem::take(&mut self.seen);
        lines.extend(self.lines.try_iter());
        lines
    }

    /// Kills it outright, as a machine that loses power.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }

    /// Its process id, for signals.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads on to the end, so that a talkative program never blocks on a full pipe.
fn forward(output: Option<impl Read + Send + 'static>, lines: Sender<String>) {
    if let Some(output) = output {
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Nobody listens any more: the pipe is still read.
                drop(lines.send(line));
            }
        });
    }
}

/// Ports that the system gives to nobody who does not ask for them: with one that it also gives to outgoing connections,
/// one of those might have it when a program comes to listen there.
const PORTS: Range<u32> = 10_000..32_768;

/// A TCP port of the loopback address that nothing listens on, another one at each call.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    // Tests that run at the same time in other processes begin elsewhere.
    let first = process::id().wrapping_mul(7_919);
    (0..PORTS.end - PORTS.start)
        .filter_map(|_| {
            let next = first.wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed));
            u16::try_from(PORTS.start + next % (PORTS.end - PORTS.start)).ok()
        })
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}
