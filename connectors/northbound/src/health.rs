//! How sinks are.

use foreshore_control::Health;

/// Reason codes of sinks. Each is documented with cause and remedy.
pub mod reason {
    /// Records flow, or would.
    pub const DELIVERING: &str = "Delivering";
    /// The sink was not tried yet.
    pub const STARTING: &str = "Starting";
    /// The manifest says that the dataflow does not run.
    pub const DISABLED: &str = "Disabled";
    /// The queue at the broker can't be read.
    pub const QUEUE_UNAVAILABLE: &str = "QueueUnavailable";
    /// The broker has not made the queue (yet).
    pub const QUEUE_MISSING: &str = "QueueMissing";
    /// The broker does not let us read the queue.
    pub const QUEUE_FORBIDDEN: &str = "QueueForbidden";
    /// Another runner has opened the queue; this one has stopped.
    pub const FENCED: &str = "Fenced";
    /// The sink took longer than the dataflow allows.
    pub const TIMEOUT: &str = "Timeout";
    /// The sink broke its contract, a fault of ours.
    pub const SINK_FAULT: &str = "SinkFault";
    /// The other side can't be reached.
    pub const UNREACHABLE: &str = "Unreachable";
    /// Records become dead letters.
    pub const DEAD_LETTERS: &str = "DeadLetters";
}

/// How a sink is, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkHealth {
    /// How it is.
    pub health: Health,
    /// Why: one of [`reason`]'s, or the sink's own.
    pub reason: &'static str,
    /// What was seen, word for word.
    pub evidence: String,
}

impl SinkHealth {
    /// It was not tried yet.
    #[must_use]
    pub const fn starting() -> Self {
        Self {
            health: Health::Unknown,
            reason: reason::STARTING,
            evidence: String::new(),
        }
    }

    /// It works.
    #[must_use]
    pub const fn delivering() -> Self {
        Self {
            health: Health::Available,
            reason: reason::DELIVERING,
            evidence: String::new(),
        }
    }

    /// It works, but records become dead letters.
    #[must_use]
    pub fn dead_letters(evidence: impl Into<String>) -> Self {
        Self {
            health: Health::Degraded,
            reason: reason::DEAD_LETTERS,
            evidence: evidence.into(),
        }
    }

    /// It does not work.
    #[must_use]
    pub fn unavailable(reason: &'static str, evidence: impl Into<String>) -> Self {
        Self {
            health: Health::Unavailable,
            reason,
            evidence: evidence.into(),
        }
    }
}
