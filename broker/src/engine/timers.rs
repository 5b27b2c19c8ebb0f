//! What falls due later: wills with a delay, and sessions whose clients stay away.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use foreshore_store::BrokerTime;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What falls due.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// The will of a client is to be published.
    Will(Arc<str>),
    /// The session of a client ends.
    Session(Arc<str>),
}

/// What falls due, in the order in which it does. What is overtaken by events at the last moment is recognised by whoever
/// handles it.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: Mutex<BTreeSet<(BrokerTime, Due)>>,
    changed: Notify,
}

impl Timers {
    /// Remembers that something falls due.
    pub(crate) fn add(&self, at: BrokerTime, due: Due) {
        let mut all = self.due.lock();
        let first = all.first().is_none_or(|(first, _)| at < *first);
        all.insert((at, due));
        drop(all);
        if first {
            self.changed.notify_one();
        }
    }

    /// Forgets what does not fall due any more. Clients that come and go all day would else leave something for each time.
    pub(crate) fn remove(&self, at: BrokerTime, due: Due) {
        self.due.lock().remove(&(at, due));
    }

    /// How much is to fall due.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.due.lock().len()
    }

    /// Takes the next thing that is due, or tells how long it takes until something is.
    pub(crate) fn take(&self, now: BrokerTime) -> Result<Due, Option<Duration>> {
        let mut all = self.due.lock();
        match all.pop_first() {
            Some((at, due)) if at <= now => Ok(due),
            Some((at, due)) => {
                all.insert((at, due));
                Err(Some(at.since(now)))
            }
            None => Err(None),
        }
    }

    /// Waits until something falls due, or for what `take` told.
    pub(crate) async fn wait(&self, until: Option<Duration>) {
        let changed = self.changed.notified();
        match until {
            Some(until) => drop(tokio::time::timeout(until, changed).await),
            None => changed.await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn things_fall_due_in_order() {
        let timers = Timers::default();
        timers.add(BrokerTime(20), Due::Will("b".into()));
        timers.add(BrokerTime(10), Due::Session("a".into()));
        assert_eq!(timers.take(BrokerTime(5)), Err(Some(Duration::from_millis(5))));
        assert_eq!(timers.take(BrokerTime(30)), Ok(Due::Session("a".into())));
        assert_eq!(timers.take(BrokerTime(30)), Ok(Due::Will("b".into())));
        assert_eq!(timers.take(BrokerTime(30)), Err(None));
        timers.wait(Some(Duration::ZERO)).await;
    }
}
