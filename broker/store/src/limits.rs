//! What a durable queue may hold, and what happens when it holds more.

use std::time::Duration;

use crate::{codec::RowReader, error::StoreError};

/// What happens to a message that a full queue can't take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverflowPolicy {
    /// The publisher is refused (MQTT reason code 0x97), and no receiver gets the message.
    Reject,
    /// The oldest entries make room; each is counted as `overflow_oldest`.
    #[default]
    DropOldest,
    /// The message is not queued for this receiver and counted as `overflow_new`; others get it.
    DropNew,
}

/// Limits of one receiver's queue. `None` is without limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes that wait: payloads, topics and properties.
    pub max_bytes: Option<u64>,
    /// Most time that an entry waits on the broker's clock; older ones are counted as `age_limit`.
    pub max_age: Option<Duration>,
    /// What a full queue does.
    pub overflow: OverflowPolicy,
    /// Openings at which an entry that was handed out may be found unsettled; at the last it becomes a dead letter.
    /// `None` repeats for ever, as MQTT sessions must.
    pub max_attempts: Option<u8>,
    /// Most bytes of dead letters; the oldest make room. `None` means [`Limits::DEFAULT_DEAD_LETTER_BYTES`].
    pub max_dead_letter_bytes: Option<u64>,
    /// Whether no limits by topic filter hold besides: whoever reads the queue says by itself what it may hold.
    pub own_limits_only: bool,
}

impl OverflowPolicy {
    /// As it is stored.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Reject => 0,
            Self::DropOldest => 1,
            Self::DropNew => 2,
        }
    }

    pub(crate) fn read(row: &mut RowReader<'_>) -> Result<Self, StoreError> {
        match row.byte()? {
            0 => Ok(Self::Reject),
            1 => Ok(Self::DropOldest),
            2 => Ok(Self::DropNew),
            found => Err(row.damaged(format!("overflow policy {found} is not known"))),
        }
    }
}

impl Limits {
    /// Attempts after which an entry of a dataflow becomes a dead letter.
    pub const DEFAULT_MAX_ATTEMPTS: u8 = 5;
    /// Bytes of dead letters that a path keeps unless told otherwise.
    pub const DEFAULT_DEAD_LETTER_BYTES: u64 = 64 << 20;
    /// Most attempts that can be asked for.
    pub const MAX_ATTEMPTS: u8 = 16;

    /// Bytes of dead letters that the path keeps.
    #[must_use]
    pub fn dead_letter_bytes(&self) -> u64 {
        self.max_dead_letter_bytes
            .unwrap_or(Self::DEFAULT_DEAD_LETTER_BYTES)
    }
}
