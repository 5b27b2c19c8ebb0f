//! Who is notified of which key.
//!
//! A registration belongs to a session and lasts as long as the session does, across its connections and across restarts
//! of the broker: a session that is away finds what it missed in its queue.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;

use crate::{message::SessionUid, session::Session};

/// Sessions that may watch one key: each of its changes is a message to each of them.
pub(super) const MAX_WATCHERS: usize = 100;

/// Registrations by key.
#[derive(Debug, Default)]
pub(super) struct Watches(HashMap<Bytes, Vec<Arc<Session>>>);

impl Watches {
    /// Registers a session; it is told whether there was room.
    pub(super) fn add(&mut self, key: &Bytes, session: &Arc<Session>) -> bool {
        let watchers = self.0.entry(key.clone()).or_default();
        if watchers.len() >= MAX_WATCHERS {
            return false;
        }
        watchers.push(Arc::clone(session));
        true
    }

    /// Takes a session's registration away.
    pub(super) fn remove(&mut self, key: &Bytes, uid: SessionUid) {
        if let Some(watchers) = self.0.get_mut(key) {
            watchers.retain(|session| session.uid != uid);
            if watchers.is_empty() {
                self.0.remove(key);
            }
        }
    }

    /// Who is notified of a key.
    pub(super) fn of(&self, key: &Bytes) -> &[Arc<Session>] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }
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
        for uid in 0..MAX_WATCHERS as u64 {
            assert!(watches.add(&key, &session(uid)));
        }
        assert!(!watches.add(&key, &session(1000)));
        assert!(watches.add(&other, &session(1000)));
        watches.remove(&key, 7);
        assert!(watches.add(&key, &session(1000)));
        assert!(watches.of(&key).iter().all(|session| session.uid != 7));
        watches.remove(&other, 1000);
        assert!(watches.of(&other).is_empty() && watches.0.len() == 1);
    }
}
