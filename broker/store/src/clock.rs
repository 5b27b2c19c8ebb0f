//! The broker's own clock: it only moves forward, and no jump of the wall clock reaches it.
//!
//! Message expiry and age limits are measured on it. It starts at the floor that the store persisted with its last
//! commit, and stands still while the store is closed: a message expires by the time it spent in a running broker.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A point on the broker's clock: milliseconds of operation since the store was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BrokerTime(pub u64);

impl BrokerTime {
    /// The point that lies so much later; the end of time when that can't be expressed.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(milliseconds))
    }

    /// Time passed since an earlier point; zero when that point lies in the future.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for BrokerTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}ms", self.0)
    }
}

/// A monotone clock that continues where the store's last commit left off. Clones read the same clock.
#[derive(Clone, Debug)]
pub struct BrokerClock {
    floor: BrokerTime,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Monotonic(Instant),
    Manual(Arc<AtomicU64>),
}

impl BrokerClock {
    /// Starts a clock at the floor that the store persisted ([`crate::Position::now`]).
    #[must_use]
    pub fn starting_at(floor: BrokerTime) -> Self {
        Self {
            floor,
            source: Source::Monotonic(Instant::now()),
        }
    }

    /// A clock that moves only by [`BrokerClock::advance`], for tests.
    #[must_use]
    pub fn manual(floor: BrokerTime) -> Self {
        Self {
            floor,
            source: Source::Manual(Arc::default()),
        }
    }

    /// Moves a manual clock on; does nothing to a running one.
    pub fn advance(&self, duration: Duration) {
        if let Source::Manual(elapsed) = &self.source {
            let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            elapsed.fetch_add(milliseconds, Ordering::SeqCst);
        }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> BrokerTime {
        let elapsed = match &self.source {
            Source::Monotonic(start) => start.elapsed(),
            Source::Manual(elapsed) => Duration::from_millis(elapsed.load(Ordering::SeqCst)),
        };
        self.floor.after(elapsed)
    }
}
