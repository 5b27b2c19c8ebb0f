//! The hybrid logical clock of the state store: what versions and fencing tokens are.
//!
//! A point on such a clock is `{wall clock in milliseconds}:{counter}:{node}`. The clock follows the wall clock where
//! that is ahead, else it counts; it never runs backwards, whatever the wall clock does, and it is ahead of everything
//! that it has seen (Kulkarni et al., "Logical Physical Clocks", 2014).

use std::{fmt, str::FromStr, sync::Arc, time::SystemTime};

use super::command::CommandError;

/// What the store calls itself in its versions.
const NODE: &str = "StateStore";

/// How far a client's clock may be ahead, in milliseconds: one minute, as published.
const MAX_AHEAD: u64 = 60_000;

/// Highest counter: what every client can read.
const MAX_COUNTER: u32 = i32::MAX as u32;

/// Longest name of a node, in bytes; fencing tokens are kept with it.
const MAX_NODE: usize = 128;

/// A point on the store's own clock: the version of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    /// Milliseconds since 1970.
    wall: u64,
    /// Distinguishes what happens in the same millisecond.
    counter: u32,
}

/// A point on somebody's clock: what requests carry as `__ts` and `__ft`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Timestamp {
    version: Version,
    node: Arc<str>,
}

/// The store's clock.
#[derive(Debug, Default)]
pub(super) struct Clock {
    last: Version,
}

/// The wall clock, in milliseconds since 1970.
pub(super) fn wall_clock() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

impl Clock {
    /// The next version: later than every earlier one, and than what a client says.
    pub(super) fn tick(&mut self, wall: u64, seen: Option<&Timestamp>) -> Version {
        let floor = seen.map_or(self.last, |seen| self.last.max(seen.version));
        self.last = if wall > floor.wall {
            Version { wall, counter: 0 }
        } else {
            floor.next()
        };
        self.last
    }

    /// The last version that was given out.
    pub(super) fn last(&self) -> Version {
        self.last
    }

    /// Never falls behind a version that was given out before.
    pub(super) fn restore(&mut self, version: Version) {
        self.last = self.last.max(version);
    }
}

impl Version {
    fn next(self) -> Self {
        if self.counter < MAX_COUNTER {
            Self {
                counter: self.counter + 1,
                ..self
            }
        } else {
            Self {
                wall: self.wall.saturating_add(1),
                counter: 0,
            }
        }
    }
}

impl Timestamp {
    /// Whether it is further ahead of the wall clock than a clock may be.
    pub(super) fn is_too_far_ahead(&self, wall: u64) -> bool {
        self.version.wall > wall.saturating_add(MAX_AHEAD)
    }

    /// Its place on the store's clock.
    pub(super) fn version(&self) -> Version {
        self.version
    }
}

impl FromStr for Timestamp {
    type Err = CommandError;

    fn from_str(text: &str) -> Result<Self, CommandError> {
        let malformed = CommandError::TimestampMalformed;
        let mut parts = text.split(':');
        let (Some(wall), Some(counter), Some(node), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed);
        };
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<u64>().ok().filter(|_| plain)
        };
        let wall = number(wall).ok_or(malformed)?;
        let counter = number(counter).and_then(|counter| u32::try_from(counter).ok());
        let counter = counter
            .filter(|counter| *counter <= MAX_COUNTER)
            .ok_or(malformed)?;
        if node.len() > MAX_NODE {
            return Err(malformed);
        }
        Ok(Self {
            version: Version { wall, counter },
            node: node.into(),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:015}:{:05}:{NODE}", self.wall, self.counter)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version { wall, counter } = self.version;
        write!(formatter, "{wall:015}:{counter:05}:{}", self.node)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timestamp(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_published_example() {
        let mut clock = Clock::default();
        let client = timestamp("1696374425000:0:Client1");
        let version = clock.tick(1_696_374_425_000, Some(&client));
        assert_eq!(version.to_string(), "001696374425000:00001:StateStore");
        // A client that is behind gets the store's time.
        let version = clock.tick(1_696_374_425_700, Some(&client));
        assert_eq!(version.to_string(), "001696374425700:00000:StateStore");
    }

    #[test]
    fn a_wall_clock_that_jumps_back_is_counted_over() {
        let mut clock = Clock::default();
        let versions = [500, 500, 400, 0, 501].map(|wall| clock.tick(wall, None).to_string());
        let expected = [
            "000000000000500:00000:StateStore",
            "000000000000500:00001:StateStore",
            "000000000000500:00002:StateStore",
            "000000000000500:00003:StateStore",
            "000000000000501:00000:StateStore",
        ];
        assert_eq!(versions, expected);
        let mut restored = Clock::default();
        restored.restore(clock.last());
        assert!(restored.tick(7, None) > clock.last());
    }

    #[test]
    fn a_counter_that_is_used_up_moves_the_time_on() {
        let mut clock = Clock::default();
        let client = timestamp("1000:2147483647:c");
        assert_eq!(
            clock.tick(1000, Some(&client)).to_string(),
            "000000000001001:00000:StateStore"
        );
    }

    #[test]
    fn a_minute_ahead_is_allowed_and_no_more() {
        assert!(!timestamp("60100:0:c").is_too_far_ahead(100));
        assert!(timestamp("60101:0:c").is_too_far_ahead(100));
        assert!(!timestamp("0:0:c").is_too_far_ahead(u64::MAX));
    }

    #[test]
    fn malformed_timestamps_are_refused() {
        let long = format!("1:0:{}", "n".repeat(MAX_NODE + 1));
        for text in [
            "",
            "1",
            "1:0",
            "1:0:n:x",
            ":0:n",
            "1::n",
            "+1:0:n",
            "1:-1:n",
            "x:0:n",
            "1:0x1:n",
            " 1:0:n",
            "99999999999999999999:0:n",
            "1:2147483648:n",
            &long,
        ] {
            let found = text.parse::<Timestamp>();
            assert_eq!(found, Err(CommandError::TimestampMalformed), "{text:?}");
        }
        // Clients pad with zeros, or do not.
        assert_eq!(timestamp("000000000000001:00000:n"), timestamp("1:0:n"));
    }

    #[test]
    fn timestamps_are_ordered_by_time_then_counter_then_node() {
        let sorted = ["1:9:z", "2:0:a", "2:1:a", "2:1:b", "10:0:a"].map(timestamp);
        assert!(sorted.is_sorted());
    }

    proptest! {
        #[test]
        fn every_version_is_later_than_all_before(
            steps in prop::collection::vec((0_u64..50, prop::option::of((0_u64..60, 0_u32..4))), 1..60),
        ) {
            let mut clock = Clock::default();
            let mut last = None;
            for (wall, seen) in steps {
                let seen = seen.map(|(wall, counter)| timestamp(&format!("{wall}:{counter}:c")));
                let version = clock.tick(wall, seen.as_ref());
                prop_assert!(last.is_none_or(|last| version > last));
                prop_assert!(seen.is_none_or(|seen| version > seen.version()));
                let now = Version { wall, counter: 0 };
                prop_assert!(version >= now);
                prop_assert_eq!(timestamp(&version.to_string()).version(), version);
                last = Some(version);
            }
        }
    }
}
