//! What became of every record of a path.
//!
//! A path is a source's records to one sink: a durable queue and its one receiver. Every record that enters it leaves
//! exactly once, with an [`Outcome`], or is still waiting. So at any time
//! `received = delivered + waiting + dead_lettered + dropped`.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Serialize};

/// Why a policy, and never an accident, dropped a record. Reasons are part of the API; new ones may appear.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DropReason(Cow<'static, str>);

impl DropReason {
    /// A filter stage rejected it.
    pub const FILTERED: Self = Self(Cow::Borrowed("filtered"));
    /// No route led it to this sink.
    pub const ROUTED_ELSEWHERE: Self = Self(Cow::Borrowed("routed_elsewhere"));
    /// Its message expiry interval passed.
    pub const EXPIRED: Self = Self(Cow::Borrowed("expired"));
    /// The queue's age limit passed.
    pub const AGE_LIMIT: Self = Self(Cow::Borrowed("age_limit"));
    /// The queue was full and its policy drops the oldest.
    pub const OVERFLOW_OLDEST: Self = Self(Cow::Borrowed("overflow_oldest"));
    /// The queue was full and its policy drops the newest.
    pub const OVERFLOW_NEW: Self = Self(Cow::Borrowed("overflow_new"));
    /// As many or as large messages of its topic filter waited as may, and the policy drops the oldest.
    pub const TOPIC_OVERFLOW_OLDEST: Self = Self(Cow::Borrowed("topic_overflow_oldest"));
    /// As many or as large messages of its topic filter waited as may, and the policy drops the newest.
    pub const TOPIC_OVERFLOW_NEW: Self = Self(Cow::Borrowed("topic_overflow_new"));
    /// The age limit of its topic filter passed.
    pub const TOPIC_AGE_LIMIT: Self = Self(Cow::Borrowed("topic_age_limit"));
    /// The session that it waited for ended.
    pub const SESSION_ENDED: Self = Self(Cow::Borrowed("session_ended"));
    /// The dataflow that it waited for was deleted.
    pub const RELEASED: Self = Self(Cow::Borrowed("released"));
    /// The broker refused it, finally.
    pub const REFUSED: Self = Self(Cow::Borrowed("refused"));
    /// It is larger than the receiver takes.
    pub const TOO_LARGE: Self = Self(Cow::Borrowed("too_large"));
    /// It has been where it would go.
    pub const LOOP: Self = Self(Cow::Borrowed("loop"));
    /// It was damaged on disk.
    pub const CORRUPT: Self = Self(Cow::Borrowed("corrupt"));

    /// Makes a reason that has no constant.
    #[must_use]
    pub fn other(reason: impl Into<String>) -> Self {
        Self(Cow::Owned(reason.into()))
    }

    /// The reason as it appears in the ledger.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for DropReason {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// How a record left its path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// The receiver acknowledged it.
    Delivered,
    /// It could not be processed and waits in the dead-letter stream.
    DeadLettered {
        /// The stage that failed, or `sink`.
        stage: String,
        /// Why it failed.
        reason: String,
    },
    /// A policy dropped it.
    Dropped {
        /// Which policy.
        reason: DropReason,
    },
}

/// The totals of one path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathLedger {
    /// Source and sink, such as `dataflow/bottling/telemetry->cloud`.
    pub path: String,
    /// Records that ever entered.
    pub received: u64,
    /// Records that the receiver acknowledged.
    pub delivered: u64,
    /// Records that are still in the queue.
    pub waiting: u64,
    /// Records that were set aside with a reason.
    pub dead_lettered: u64,
    /// Records that a policy dropped, by [`DropReason`].
    pub dropped: BTreeMap<String, u64>,
    /// Outputs that deliveries produced; equals `delivered` unless stages split or join records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emitted: Option<u64>,
    /// Deliveries that were repeated; counted apart, they do not enter the balance.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub redelivered: u64,
    /// Interruptions at the source during which an unknown number of values was not seen.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gaps: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature that serde asks for"
)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl PathLedger {
    /// Sum of all dropped records.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Whether `received = delivered + waiting + dead_lettered + dropped`.
    #[must_use]
    pub fn balances(&self) -> bool {
        let accounted = self.delivered + self.waiting + self.dead_lettered + self.dropped_total();
        self.received == accounted
    }
}
