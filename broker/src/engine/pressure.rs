//! Backpressure: who has too much to do says so, and publishers wait before they read on.
//!
//! A publisher looks at the pressure of those whom its message concerned, and reads no further packet while one of them
//! is congested. So every publisher overshoots by what it had read in one go at most. Nobody is waited for beyond a
//! grace period: whoever stays congested is then *slow*, and what that costs is the receiver's own (its durable queue,
//! its dropped messages at quality of service 0, or its connection).

use std::sync::{
    Arc,
    atomic::{AtomicU8, AtomicUsize, Ordering},
};

use tokio::sync::{Notify, futures::OwnedNotified};

const CLEAR: u8 = 0;
const CONGESTED: u8 = 1;
const SLOW: u8 = 2;

/// How a receiver keeps up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Keeping {
    /// With what comes.
    Up,
    /// Publishers wait for it.
    Congested,
    /// It stayed congested for too long: nobody waits for it any more.
    Slow,
}

/// How many are congested in the whole broker: one load tells a publisher that it need not look at each.
#[derive(Debug, Default)]
pub(crate) struct Congestion(AtomicUsize);

/// Whether one receiver has too much to do.
#[derive(Debug)]
pub(crate) struct Pressure {
    state: AtomicU8,
    relief: Arc<Notify>,
    total: Arc<Congestion>,
}

impl Congestion {
    /// Whether anybody is congested.
    pub(crate) fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Pressure {
    pub(crate) fn new(total: Arc<Congestion>) -> Self {
        Self {
            state: AtomicU8::new(CLEAR),
            relief: Arc::default(),
            total,
        }
    }

    /// Whether publishers are to wait.
    pub(crate) fn is_congested(&self) -> bool {
        self.state.load(Ordering::Acquire) == CONGESTED
    }

    /// How it keeps up.
    pub(crate) fn keeping(&self) -> Keeping {
        match self.state.load(Ordering::Acquire) {
            CLEAR => Keeping::Up,
            CONGESTED => Keeping::Congested,
            _ => Keeping::Slow,
        }
    }

    /// Too much to do. Says nothing new once it counts as slow.
    pub(crate) fn raise(&self) {
        if self
            .state
            .compare_exchange(CLEAR, CONGESTED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            self.total.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The work is done: publishers go on, and it counts as quick again.
    pub(crate) fn clear(&self) {
        if self.state.load(Ordering::Relaxed) != CLEAR {
            self.leave(CLEAR);
        }
    }

    /// Publishers have waited long enough: nobody waits for it until it is clear again.
    pub(crate) fn give_up(&self) {
        if self.is_congested() {
            self.leave(SLOW);
        }
    }

    fn leave(&self, state: u8) {
        if self.state.swap(state, Ordering::AcqRel) == CONGESTED {
            self.total.0.fetch_sub(1, Ordering::Relaxed);
        }
        self.relief.notify_waiters();
    }

    /// Resolves when publishers may go on; `None` when they may now.
    pub(crate) fn relieved(&self) -> Option<OwnedNotified> {
        let notified = Arc::clone(&self.relief).notified_owned();
        // The state is read after the future is made, which is notified from then on.
        self.is_congested().then_some(notified)
    }
}

impl Drop for Pressure {
    fn drop(&mut self) {
        self.leave(CLEAR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn publishers_wait_until_it_is_clear_or_counts_as_slow() {
        let total = Arc::new(Congestion::default());
        let pressure = Pressure::new(Arc::clone(&total));
        assert!(pressure.relieved().is_none() && !total.any());

        pressure.raise();
        pressure.raise();
        let relieved = pressure.relieved().unwrap();
        assert!(total.any());
        pressure.clear();
        relieved.await;
        assert!(!total.any());

        pressure.raise();
        let relieved = pressure.relieved().unwrap();
        pressure.give_up();
        relieved.await;
        pressure.raise();
        assert!(pressure.relieved().is_none() && !total.any());

        pressure.clear();
        pressure.raise();
        assert!(total.any());
        drop(pressure);
        assert!(!total.any());
    }
}
