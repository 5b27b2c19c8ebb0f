//! What an endpoint implements: [`Sink`], and what it is given: [`Batch`].
//!
//! The engine reads a path, runs the stages, makes batches and hands them to the sink; it settles what the sink says it
//! delivered. A sink therefore only has to answer one question truthfully: which outputs does the other side hold for
//! good? Waiting, repeating, splitting a refused batch, dead letters and the ledger are the engine's.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_record::{DropReason, EntryId, Interval, Lane, Record};

/// One record for the sink: what the stages made of an entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Epoch of the store when the entry was taken in. With `id` it names the entry for ever, whatever lane it takes
    /// and however often it is sent.
    pub store_epoch: u64,
    /// The entry that it was made from.
    pub id: EntryId,
    /// Which output of that entry, counted from 0.
    pub index: u32,
    /// How often the entry was tried before.
    pub attempt: u32,
    /// What is to be delivered.
    pub record: Arc<Record>,
}

impl Output {
    /// A key by which the other side can recognise a repeat: `{path}/{store epoch as hexadecimal}/{id}/{index}`.
    #[must_use]
    pub fn idempotency_key(&self, path: &str) -> String {
        format!("{path}/{:016x}/{}/{}", self.store_epoch, self.id, self.index)
    }
}

/// Outputs to be delivered together.
///
/// All outputs of an entry are in one batch, in order of index; entries are in order of id.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Name of the path, such as `dataflow/bottling/telemetry->cloud`.
    pub path: &'a str,
    /// Epoch of the path's opening; a sink that can refuses batches of an older one.
    pub path_epoch: u64,
    /// Its lane.
    pub lane: Lane,
    /// Entries that are done when this batch is delivered: those of `outputs`, and those that a filter or a route
    /// rejected. No other entry of the path lies in the intervals. They are in order and do not overlap.
    pub settles: &'a [Interval],
    /// What to deliver; never empty.
    pub outputs: &'a [Output],
}

/// What became of one output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The other side holds it for good, by its own documented acknowledgement.
    Delivered,
    /// It is not to go there.
    Dropped {
        /// By which policy.
        reason: DropReason,
    },
    /// The other side will never take it; it becomes a dead letter of the stage `sink`.
    DeadLetter {
        /// Why, in words for the user.
        reason: String,
    },
}

/// Why a batch was not delivered. Nothing of it is settled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// It may work later: the other side is away, busy or slow. Repeated with growing waits, for as long as it takes.
    #[error("{cause}")]
    Retryable {
        /// Reason code of the sink's health, such as `Unreachable`.
        reason: &'static str,
        /// What happened: the evidence.
        cause: String,
        /// When the other side asks to be tried again.
        after: Option<Duration>,
    },
    /// The other side refuses something in this very batch and will refuse it again, but the sink can't say which
    /// output. The batch is halved until the culprit is alone and becomes a dead letter.
    #[error("{cause}")]
    Rejected {
        /// What the other side said.
        cause: String,
    },
    /// Nothing can be delivered until someone changes the configuration: bad credentials, an untrusted certificate, a
    /// missing directory. Tried again at long intervals; nothing is dropped.
    #[error("{cause}")]
    Fatal {
        /// Reason code of the sink's health, such as `AuthenticationFailed`.
        reason: &'static str,
        /// What happened: the evidence.
        cause: String,
    },
}

impl SinkError {
    /// A retryable error without a wish for the time of the next try.
    #[must_use]
    pub fn retryable(reason: &'static str, cause: impl std::fmt::Display) -> Self {
        Self::Retryable {
            reason,
            cause: cause.to_string(),
            after: None,
        }
    }

    /// A fatal error.
    #[must_use]
    pub fn fatal(reason: &'static str, cause: impl std::fmt::Display) -> Self {
        Self::Fatal {
            reason,
            cause: cause.to_string(),
        }
    }
}

/// What a sink can do, and how large a batch may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Most outputs in a batch.
    pub max_outputs: usize,
    /// Most bytes of topics, properties and payloads in a batch; a single larger output is a batch of its own.
    pub max_bytes: usize,
    /// Whether the other side recognises repeats by [`Output::idempotency_key`] or its parts.
    pub deduplicates: bool,
    /// Most batches on the way at a time: how many calls of [`Sink::deliver`] may run side by side. The manifest may
    /// ask for fewer.
    pub max_inflight: usize,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_outputs: 100_000,
            max_bytes: 64 << 20,
            deduplicates: false,
            max_inflight: 1,
        }
    }
}

/// The way out of a dataflow.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// What this sink can do; asked once.
    fn capabilities(&self) -> Capabilities;

    /// Delivers a batch and returns one [`Delivery`] for each output, in their order.
    ///
    /// Returns only when the other side has acknowledged: an output that is reported as delivered is settled and never
    /// sent again. The engine may drop the future (it took too long, a plan changed, the role ends); the batch is then
    /// repeated. It may be called for the next batch before this one is done, see [`Capabilities::max_inflight`].
    ///
    /// # Errors
    /// When nothing of the batch may be settled. A batch of which a part was delivered may be reported as an error:
    /// repeats are allowed, losses are not.
    async fn deliver(&self, batch: Batch<'_>) -> Result<Vec<Delivery>, SinkError>;

    /// Tells whether the other side can be reached and would take records, without delivering any. Called while the
    /// sink has nothing to do, and before it is used for the first time.
    ///
    /// # Errors
    /// As [`Sink::deliver`] would.
    async fn probe(&self) -> Result<(), SinkError>;

    /// Ends the sink: nothing is delivered after it.
    async fn close(&self) {}
}
