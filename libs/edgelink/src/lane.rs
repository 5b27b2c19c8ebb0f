//! Lanes of batches.

use std::fmt;

use crate::proto;

/// Which batches go first. Every lane has its own queue and its own credit on both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Events of assets.
    Alarm,
    /// What happens now.
    Live,
    /// What waited.
    Backlog,
    /// Pictures and other large payloads.
    Bulk,
}

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

    /// The lane as a message's field.
    #[must_use]
    pub const fn to_proto(self) -> i32 {
        match self {
            Self::Alarm => proto::Lane::Alarm as i32,
            Self::Live => proto::Lane::Live as i32,
            Self::Backlog => proto::Lane::Backlog as i32,
            Self::Bulk => proto::Lane::Bulk as i32,
        }
    }

    /// The lane of a message's field; `None` when there is no such lane.
    #[must_use]
    pub fn from_proto(lane: i32) -> Option<Self> {
        match proto::Lane::try_from(lane).ok()? {
            proto::Lane::Unspecified => None,
            proto::Lane::Alarm => Some(Self::Alarm),
            proto::Lane::Live => Some(Self::Live),
            proto::Lane::Backlog => Some(Self::Backlog),
            proto::Lane::Bulk => Some(Self::Bulk),
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
    fn lanes_survive_the_wire_in_order_of_urgency() {
        for (place, lane) in Lane::ALL.into_iter().enumerate() {
            assert_eq!(lane.index(), place);
            assert_eq!(Lane::from_proto(lane.to_proto()), Some(lane));
        }
        assert!(Lane::ALL.is_sorted());
        assert_eq!((Lane::from_proto(0), Lane::from_proto(99)), (None, None));
    }
}
