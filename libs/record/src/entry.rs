//! Entries of a durable queue: what names them, how urgent they are, how they leave.

use std::fmt;

use crate::Outcome;

/// The order in which a broker took messages in. Starts at 1 and rises for the life of a store.
pub type EntryId = u64;

/// Drawn at random with each opening of a store. With its id it names an entry for ever, even when a store is set back
/// to an older copy and hands out the same ids again.
pub type StoreEpoch = u64;

/// Ids of entries of one epoch of a store, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interval {
    /// Epoch of the store in which these ids were given out.
    pub store_epoch: StoreEpoch,
    /// Smallest id.
    pub first: EntryId,
    /// Largest id.
    pub last: EntryId,
}

/// How one entry left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Which entry.
    pub id: EntryId,
    /// Outputs that its delivery produced; 0 unless delivered.
    pub emitted: u32,
    /// How it left.
    pub outcome: Outcome,
}

/// How urgent a batch is on a link that it shares with others.
///
/// A sink's manifest says `Alarm`, `Live` or `Bulk`; what piled up at a `Live` sink is `Backlog`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Events of assets: before everything else but commands.
    Alarm,
    /// What happens now: since the path was opened, or since the sink came back.
    Live,
    /// What waited before.
    Backlog,
    /// Pictures and other large payloads: when there is room.
    Bulk,
}

// === impl Interval ===

impl Interval {
    /// Whether the id of that epoch lies in the interval.
    #[must_use]
    pub fn contains(&self, store_epoch: StoreEpoch, id: EntryId) -> bool {
        self.store_epoch == store_epoch && (self.first..=self.last).contains(&id)
    }

    /// Whether all ids of `other` lie in this interval.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.store_epoch == other.store_epoch && self.first <= other.first && other.last <= self.last
    }
}

// === impl Settlement ===

impl Settlement {
    /// A delivery that produced one output.
    #[must_use]
    pub fn delivered(id: EntryId) -> Self {
        Self {
            id,
            emitted: 1,
            outcome: Outcome::Delivered,
        }
    }
}

// === impl Lane ===

impl Lane {
    /// Number of lanes.
    pub const COUNT: usize = 4;

    /// All lanes, the most urgent first.
    pub const ALL: [Self; Self::COUNT] = [Self::Alarm, Self::Live, Self::Backlog, Self::Bulk];

    /// Its place in [`Lane::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name in metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alarm => "alarm",
            Self::Live => "live",
            Self::Backlog => "backlog",
            Self::Bulk => "bulk",
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covering_needs_the_same_epoch() {
        let wide = Interval {
            store_epoch: 1,
            first: 2,
            last: 9,
        };
        assert!(wide.covers(&Interval {
            store_epoch: 1,
            first: 2,
            last: 9
        }));
        assert!(!wide.covers(&Interval {
            store_epoch: 1,
            first: 1,
            last: 9
        }));
        assert!(!wide.covers(&Interval {
            store_epoch: 2,
            first: 3,
            last: 4
        }));
        assert!(wide.contains(1, 9) && !wide.contains(1, 10) && !wide.contains(2, 5));
    }

    #[test]
    fn lanes_are_in_order_of_urgency() {
        for (place, lane) in Lane::ALL.into_iter().enumerate() {
            assert_eq!(lane.index(), place);
        }
        assert!(Lane::ALL.is_sorted());
    }
}
