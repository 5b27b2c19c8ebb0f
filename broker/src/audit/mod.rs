//! The audit log: who connected and as whom, who was refused and why, what policies denied, and what was changed.
//!
//! One JSON object a line (docs/guide/audit.md), in a stream of its own. Whoever has something to tell never waits: a line
//! for which there is no room is left out and counted ([`stream`]), and so is what one client or address repeats too often
//! ([`limit`]). No secret is among what it is told, and texts of others are cut and escaped.

mod event;
mod limit;
mod stream;

use std::{io, path::PathBuf, sync::Arc, time::Instant};

use arc_swap::ArcSwapOption;
use foreshore_runtime::metrics::prometheus_client::metrics::counter::Counter;
use parking_lot::Mutex;

pub(crate) use self::{
    event::{Action, Event, What, peer},
    limit::Key,
};
use self::{
    limit::{Limit, Verdict},
    stream::Stream,
};

/// Where the lines of an audit log go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditDestination {
    /// Standard output of the process.
    Stdout,
    /// A file that only its owner can read, to which lines are added.
    File {
        /// The file.
        path: PathBuf,
        /// Size in bytes beyond which it is set aside as `PATH.1`, in the place of the one before.
        max_bytes: u64,
    },
}

/// An audit log that can't begin.
#[derive(Debug, thiserror::Error)]
#[error("audit log {path:?} can't be written: {source}")]
pub struct AuditError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// The audit log of a broker, whether it is written or not.
#[derive(Debug)]
pub(crate) struct Audit {
    /// Namespace and name of the broker.
    broker: String,
    stream: ArcSwapOption<Stream>,
    limit: Mutex<Limit>,
    left_out: Counter,
}

impl Audit {
    /// The audit log of a broker of that name, which is not written yet. What is left out for want of room is counted.
    pub(crate) fn new(broker: &str, left_out: Counter) -> Self {
        Self {
            broker: broker.to_owned(),
            stream: ArcSwapOption::empty(),
            limit: Mutex::default(),
            left_out,
        }
    }

    /// Writes it there from now on, or nowhere.
    ///
    /// # Errors
    /// When the file can't be opened; then everything stays as it was.
    pub(crate) fn set(&self, destination: Option<&AuditDestination>) -> Result<(), AuditError> {
        let known = self.stream.load();
        if known.as_ref().map(|stream| stream.destination()) == destination {
            return Ok(());
        }
        let stream = destination
            .map(|destination| Stream::open(&self.broker, destination.clone(), self.left_out.clone()))
            .transpose()?;
        self.stream.store(stream.map(Arc::new));
        Ok(())
    }

    /// Whether it is written: nothing has to be put together for nobody.
    pub(crate) fn is_on(&self) -> bool {
        self.stream.load().is_some()
    }

    /// Tells something.
    pub(crate) fn tell(&self, event: &Event<'_>) {
        if let Some(stream) = &*self.stream.load() {
            stream.tell(event);
        }
    }

    /// Tells something that a client or an address can bring about as often as it likes.
    pub(crate) fn tell_of(&self, key: Key, event: Event<'_>) {
        if !self.is_on() {
            return;
        }
        let verdict = self.limit.lock().judge(key, Instant::now());
        if let Verdict::Tell { left_out } = verdict {
            self.tell(&Event { left_out, ..event });
        }
    }

    /// Tells what was left out of those that have stopped.
    pub(crate) fn sweep(&self) {
        let over = self.limit.lock().sweep(Instant::now());
        for (key, left_out) in over {
            self.tell(&Event::left_out(&key, left_out));
        }
    }

    /// Ends it, and waits until what was told is written.
    pub(crate) async fn close(&self) {
        if let Some(stream) = self.stream.swap(None) {
            stream.close().await;
        }
    }
}

#[cfg(test)]
mod tests;
