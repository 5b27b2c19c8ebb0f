//! Who is notified of which key.
//!
//! A registration belongs to a session and lasts as long as the session does, across its connections and across restarts
//! of the broker: a session that is away finds what it missed in its queue. All of them are in memory, and bounded.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use crate::{message::SessionUid, session::Session};

/// Sessions that may watch one key: each of its changes is a message to each of them.
pub(super) const MAX_WATCHERS: usize = 100;

/// What a registration weighs beside its key, in bytes.
const OVERHEAD: usize = 256;

/// Registrations by key.
#[derive(Debug, Default)]
pub(super) struct Watches {
    by_key: HashMap<Bytes, Vec<Arc<Session>>>,
    bytes: usize,
}

/// What a session's registrations are bounded by.
#[derive(Clone, Copy, Debug)]
pub(super) struct WatchBounds {
    /// Most registrations of one session.
    pub(super) of_session: usize,
    /// Most bytes of the keys of all registrations, with [`OVERHEAD`] for each.
    pub(super) bytes: usize,
}

impl Watches {
    /// Registers a session, which has so many registrations; tells whether there was room.
    pub(super) fn add(
        &mut self,
        key: &Bytes,
        session: &Arc<Session>,
        has: usize,
        bounds: WatchBounds,
    ) -> bool {
        let bytes = self.bytes + weight(key);
        if has >= bounds.of_session || bytes > bounds.bytes || self.of(key).len() >= MAX_WATCHERS {
            return false;
        }
        self.restore(key, session);
        true
    }

    /// Takes over a registration that was stored.
    pub(super) fn restore(&mut self, key: &Bytes, session: &Arc<Session>) {
        self.bytes += weight(key);
        self.by_key
            .entry(key.clone())
            .or_default()
            .push(Arc::clone(session));
    }

    /// Takes a session's registration away, if there is one.
    pub(super) fn remove(&mut self, key: &Bytes, uid: SessionUid) {
        let Some(watchers) = self.by_key.get_mut(key) else {
            return;
        };
        let before = watchers.len();
        watchers.retain(|session| session.uid != uid);
        self.bytes -= (before - watchers.len()) * weight(key);
        if watchers.is_empty() {
            self.by_key.remove(key);
        }
    }

    /// Who is notified of a key.
    pub(super) fn of(&self, key: &Bytes) -> &[Arc<Session>] {
        self.by_key.get(key).map(Vec::as_slice).unwrap_or_default()
    }
}

fn weight(key: &Bytes) -> usize {
    OVERHEAD + key.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(uid: SessionUid) -> Arc<Session> {
        Arc::new(Session::new(uid, "c".into(), None, Arc::default()))
    }

    #[test]
    fn registrations_come_and_go_and_are_bounded() {
        let mut watches = Watches::default();
        let (key, other) = (Bytes::from("k"), Bytes::from("other"));
        let bounds = WatchBounds {
            of_session: 1,
            bytes: usize::MAX,
        };
        for uid in 0..MAX_WATCHERS as u64 {
            assert!(watches.add(&key, &session(uid), 0, bounds));
        }
        assert!(!watches.add(&key, &session(1000), 0, bounds));
        assert!(!watches.add(&other, &session(1000), 1, bounds));
        assert!(watches.add(&other, &session(1000), 0, bounds));
        watches.remove(&key, 7);
        assert!(watches.add(&key, &session(1000), 0, bounds));
        assert!(watches.of(&key).iter().all(|session| session.uid != 7));
        watches.remove(&other, 1000);
        assert!(watches.of(&other).is_empty() && watches.by_key.len() == 1);
    }

    #[test]
    fn their_keys_are_counted() {
        let mut watches = Watches::default();
        let (key, long) = (Bytes::from("k"), Bytes::from("k".repeat(1000)));
        let bounds = WatchBounds {
            of_session: 9,
            bytes: 2 * (OVERHEAD + 1),
        };
        assert!(!watches.add(&long, &session(1), 0, bounds));
        assert!(watches.add(&key, &session(1), 0, bounds) && watches.add(&key, &session(2), 0, bounds));
        assert!(!watches.add(&key, &session(3), 0, bounds));
        watches.remove(&key, 3);
        watches.remove(&key, 2);
        assert!(watches.add(&key, &session(3), 0, bounds));
        watches.remove(&key, 1);
        watches.remove(&key, 3);
        assert_eq!(watches.bytes, 0);
    }
}
