//! The keys: what each command does to them.
//!
//! All of it is in memory, bounded by number and bytes, and without any I/O; what changed is told, so that it can be
//! stored and published. Everything depends on what is given with the command, the time included.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use foreshore_store::BrokerTime;

use super::{
    clock::{Clock, Timestamp, Version},
    command::{CommandError, Condition, Reply},
};

/// What an entry weighs beside key and value, in bytes: without it, many small keys would cost more than their limit.
const OVERHEAD: usize = 256;

/// Bounds of all keys together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Most keys.
    pub(crate) count: usize,
    /// Most bytes of keys and values, with [`OVERHEAD`] for each.
    pub(crate) bytes: usize,
}

/// What is given with a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances<'a> {
    /// Now on the broker's clock, which expiry runs on.
    pub(super) now: BrokerTime,
    /// Now on the wall clock, which versions follow.
    pub(super) wall: u64,
    /// The client's time (`__ts`).
    pub(super) timestamp: Option<&'a Timestamp>,
    /// The client's fencing token (`__ft`).
    pub(super) fence: Option<&'a Timestamp>,
    /// What the keys may come to.
    pub(super) bounds: Bounds,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// What its client is answered.
    pub(super) reply: Reply,
    /// Version of the value that the answer is about.
    pub(super) version: Option<Version>,
    /// What changed, in this order.
    pub(super) changes: Vec<Change>,
}

/// A key that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The key.
    pub(super) key: Bytes,
    /// Its new value; `None` when it was deleted or has expired.
    pub(super) value: Option<Bytes>,
    /// Version of the new value, or of the deletion.
    pub(super) version: Version,
}

/// What is kept of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its value.
    pub(super) value: Bytes,
    /// Version of the value.
    pub(super) version: Version,
    /// What a request has to show to change it.
    pub(super) fence: Option<Timestamp>,
    /// When it is deleted.
    pub(super) expires_at: Option<BrokerTime>,
}

/// All keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    entries: HashMap<Bytes, Entry>,
    /// Keys that expire, in the order in which they do.
    due: BTreeSet<(BrokerTime, Bytes)>,
    bytes: usize,
    clock: Clock,
}

impl Outcome {
    pub(super) fn unchanged(reply: Reply, version: Option<Version>) -> Self {
        Self {
            reply,
            version,
            changes: Vec::new(),
        }
    }
}

impl Keys {
    /// The value of a key, with its version.
    pub(super) fn get(&self, key: &Bytes, given: &Circumstances<'_>) -> Outcome {
        match self.live(key, given.now) {
            Some(entry) => Outcome::unchanged(Reply::Value(entry.value.clone()), Some(entry.version)),
            None => Outcome::unchanged(Reply::Missing, None),
        }
    }

    /// Sets a key.
    ///
    /// # Errors
    /// When the key is protected by a newer fencing token, or there is no room.
    pub(super) fn set(
        &mut self,
        key: &Bytes,
        value: &Bytes,
        condition: Condition,
        expires_after: Option<Duration>,
        given: &Circumstances<'_>,
    ) -> Result<Outcome, CommandError> {
        let known = self.unfenced(key, given)?;
        let unmet = known.filter(|entry| match condition {
            Condition::None => false,
            Condition::NotExists => true,
            Condition::NotExistsOrEqual => entry.value != value,
        });
        if let Some(entry) = unmet {
            return Ok(Outcome::unchanged(Reply::NotApplied, Some(entry.version)));
        }
        let fence = known
            .and_then(|entry| entry.fence.as_ref())
            .max(given.fence)
            .cloned();
        let is_new = known.is_none();
        self.check_room(key, value, given.bounds)?;
        let mut changes = Vec::new();
        if is_new && self.remove(key).is_some() {
            // It has expired, and nobody has been told yet.
            changes.push(self.deletion(key.clone(), given.wall, None));
        }
        let version = self.clock.tick(given.wall, given.timestamp);
        let expires_at = expires_after.map(|after| given.now.after(after));
        let entry = Entry {
            value: value.clone(),
            version,
            fence,
            expires_at,
        };
        self.insert(key.clone(), entry);
        changes.push(Change {
            key: key.clone(),
            value: Some(value.clone()),
            version,
        });
        Ok(Outcome {
            reply: Reply::Ok,
            version: Some(version),
            changes,
        })
    }

    /// Deletes a key; with a value, only if the key has it.
    ///
    /// # Errors
    /// When the key is protected by a newer fencing token.
    pub(super) fn delete(
        &mut self,
        key: &Bytes,
        only_if: Option<&Bytes>,
        given: &Circumstances<'_>,
    ) -> Result<Outcome, CommandError> {
        let Some(entry) = self.unfenced(key, given)? else {
            return Ok(Outcome::unchanged(Reply::Removed(0), None));
        };
        let version = entry.version;
        if only_if.is_some_and(|value| entry.value != value) {
            return Ok(Outcome::unchanged(Reply::NotApplied, Some(version)));
        }
        self.remove(key);
        Ok(Outcome {
            reply: Reply::Removed(1),
            version: Some(version),
            changes: vec![self.deletion(key.clone(), given.wall, given.timestamp)],
        })
    }

    /// Deletes keys that have expired, at most so many.
    pub(super) fn expire(&mut self, now: BrokerTime, wall: u64, max: usize) -> Vec<Change> {
        let mut changes = Vec::new();
        while changes.len() < max && self.next_expiry().is_some_and(|at| at <= now) {
            let Some((_, key)) = self.due.pop_first() else {
                break;
            };
            self.remove(&key);
            changes.push(self.deletion(key, wall, None));
        }
        changes
    }

    /// When the next key expires.
    pub(super) fn next_expiry(&self) -> Option<BrokerTime> {
        self.due.first().map(|(at, _)| *at)
    }

    /// What is kept of a key, expired or not.
    pub(super) fn entry(&self, key: &Bytes) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The last version that was given out.
    pub(super) fn last_version(&self) -> Version {
        self.clock.last()
    }

    /// Number of keys, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    /// Takes over what was stored.
    pub(super) fn restore(&mut self, key: Bytes, entry: Entry) {
        self.restore_clock(entry.version);
        self.insert(key, entry);
    }

    /// Gives out no version again that was given out before.
    pub(super) fn restore_clock(&mut self, last: Version) {
        self.clock.restore(last);
    }

    fn live(&self, key: &Bytes, now: BrokerTime) -> Option<&Entry> {
        let entry = self.entries.get(key)?;
        entry.expires_at.is_none_or(|at| at > now).then_some(entry)
    }

    /// The entry of a key, if the request may change it.
    fn unfenced(&self, key: &Bytes, given: &Circumstances<'_>) -> Result<Option<&Entry>, CommandError> {
        let known = self.live(key, given.now);
        match (known.and_then(|entry| entry.fence.as_ref()), given.fence) {
            (Some(_), None) => Err(CommandError::MissingFencingToken),
            (Some(held), Some(shown)) if shown < held => Err(CommandError::FencingTokenLowerVersion),
            _ => Ok(known),
        }
    }

    fn check_room(&self, key: &Bytes, value: &Bytes, bounds: Bounds) -> Result<(), CommandError> {
        let replaced = self.entries.get(key);
        let count = self.entries.len() + usize::from(replaced.is_none());
        let freed = replaced.map_or(0, |entry| weight(key, &entry.value));
        let bytes = self.bytes - freed + weight(key, value);
        if count > bounds.count || bytes > bounds.bytes {
            return Err(CommandError::QuotaExceeded);
        }
        Ok(())
    }

    fn deletion(&mut self, key: Bytes, wall: u64, timestamp: Option<&Timestamp>) -> Change {
        Change {
            key,
            value: None,
            version: self.clock.tick(wall, timestamp),
        }
    }

    fn insert(&mut self, key: Bytes, entry: Entry) {
        self.remove(&key);
        self.bytes += weight(&key, &entry.value);
        if let Some(at) = entry.expires_at {
            self.due.insert((at, key.clone()));
        }
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &Bytes) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.bytes -= weight(key, &entry.value);
        if let Some(at) = entry.expires_at {
            self.due.remove(&(at, key.clone()));
        }
        Some(entry)
    }
}

fn weight(key: &Bytes, value: &Bytes) -> usize {
    OVERHEAD + key.len() + value.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        count: 3,
        bytes: 3 * (OVERHEAD + 10),
    };

    fn given(now: u64) -> Circumstances<'static> {
        Circumstances {
            now: BrokerTime(now),
            wall: now.saturating_add(1_000_000),
            timestamp: None,
            fence: None,
            bounds: BOUNDS,
        }
    }

    fn fenced(now: u64, fence: &Timestamp) -> Circumstances<'_> {
        Circumstances {
            fence: Some(fence),
            ..given(now)
        }
    }

    fn token(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn milliseconds(count: u64) -> Option<Duration> {
        Some(Duration::from_millis(count))
    }

    /// Sets a key and tells whether the condition was met.
    fn set(keys: &mut Keys, key: &'static str, value: &'static str, condition: Condition, now: u64) -> bool {
        let outcome = keys
            .set(&key.into(), &value.into(), condition, None, &given(now))
            .unwrap();
        assert_eq!(outcome.changes.is_empty(), outcome.reply == Reply::NotApplied);
        outcome.reply == Reply::Ok
    }

    fn value(keys: &Keys, key: &'static str, now: u64) -> Option<Bytes> {
        match keys.get(&key.into(), &given(now)).reply {
            Reply::Value(value) => Some(value),
            _ => None,
        }
    }

    #[test]
    fn conditions_are_kept() {
        let mut keys = Keys::default();
        assert!(set(&mut keys, "k", "a", Condition::NotExists, 0));
        assert!(!set(&mut keys, "k", "a", Condition::NotExists, 0));
        assert!(!set(&mut keys, "k", "b", Condition::NotExistsOrEqual, 0));
        assert!(set(&mut keys, "k", "a", Condition::NotExistsOrEqual, 0));
        assert!(set(&mut keys, "k", "c", Condition::None, 0));
        assert_eq!(value(&keys, "k", 0).unwrap(), "c");
        assert!(set(&mut keys, "new", "a", Condition::NotExistsOrEqual, 0));

        let mut delete = |only_if: Option<&'static str>| {
            let only_if = only_if.map(Bytes::from);
            keys.delete(&"k".into(), only_if.as_ref(), &given(0))
                .unwrap()
                .reply
        };
        assert_eq!(delete(Some("a")), Reply::NotApplied);
        assert_eq!(delete(Some("c")), Reply::Removed(1));
        assert_eq!(delete(Some("c")), Reply::Removed(0));
        assert_eq!(delete(None), Reply::Removed(0));
        assert_eq!(value(&keys, "k", 0), None);
    }

    #[test]
    fn answers_carry_the_version_of_the_value() {
        let mut keys = Keys::default();
        let (key, a, b) = (Bytes::from("k"), Bytes::from("a"), Bytes::from("b"));
        let set = keys.set(&key, &a, Condition::None, None, &given(0)).unwrap();
        let version = set.version;
        assert!(version.is_some() && set.changes[0].version == version.unwrap());
        assert_eq!(keys.get(&key, &given(9)).version, version);
        let unmet = keys.set(&key, &b, Condition::NotExists, None, &given(9)).unwrap();
        assert_eq!(unmet.version, version);
        let unmet = keys.delete(&key, Some(&b), &given(9)).unwrap();
        assert_eq!(unmet.version, version);
        let deleted = keys.delete(&key, None, &given(9)).unwrap();
        assert_eq!(deleted.version, version);
        // Whoever watches can tell that the deletion came after the value.
        assert!(Some(deleted.changes[0].version) > version);
        assert_eq!(keys.get(&key, &given(9)).version, None);
    }

    #[test]
    fn a_fencing_token_protects_a_key_until_it_is_deleted() {
        let mut keys = Keys::default();
        let (key, v) = (Bytes::from("k"), Bytes::from("v"));
        let (older, held, newer) = (token("5:0:a"), token("5:1:a"), token("6:0:a"));
        let mut set = |given: &Circumstances<'_>| {
            keys.set(&key, &v, Condition::None, None, given)
                .map(|outcome| outcome.reply)
        };
        assert_eq!(set(&given(0)), Ok(Reply::Ok));
        assert_eq!(set(&fenced(0, &held)), Ok(Reply::Ok));
        assert_eq!(set(&given(0)), Err(CommandError::MissingFencingToken));
        let lower = Err(CommandError::FencingTokenLowerVersion);
        assert_eq!(set(&fenced(0, &older)), lower);
        assert_eq!(set(&fenced(0, &held)), Ok(Reply::Ok));
        assert_eq!(set(&fenced(0, &newer)), Ok(Reply::Ok));
        assert_eq!(set(&fenced(0, &held)), lower, "the newer one is kept");

        let missing = CommandError::MissingFencingToken;
        assert_eq!(keys.delete(&key, None, &given(0)).unwrap_err(), missing);
        assert_eq!(keys.delete(&key, Some(&v), &given(0)).unwrap_err(), missing);
        assert!(keys.delete(&key, None, &fenced(0, &held)).is_err());
        let deleted = keys.delete(&key, Some(&v), &fenced(0, &newer)).unwrap();
        assert_eq!(deleted.reply, Reply::Removed(1));
        assert!(keys.set(&key, &v, Condition::None, None, &given(0)).is_ok());
    }

    #[test]
    fn a_fence_is_judged_before_a_condition() {
        let mut keys = Keys::default();
        let (key, v) = (Bytes::from("k"), Bytes::from("v"));
        let held = token("5:1:a");
        keys.set(&key, &v, Condition::None, None, &fenced(0, &held))
            .unwrap();
        let refused = keys.set(&key, &v, Condition::NotExists, None, &given(0));
        assert_eq!(refused, Err(CommandError::MissingFencingToken));
    }

    #[test]
    fn keys_expire_with_their_fence_and_are_told_of() {
        let mut keys = Keys::default();
        let (key, v) = (Bytes::from("k"), Bytes::from("v"));
        let held = token("5:1:a");
        keys.set(&key, &v, Condition::None, milliseconds(100), &fenced(0, &held))
            .unwrap();
        assert_eq!(keys.next_expiry(), Some(BrokerTime(100)));
        assert!(keys.expire(BrokerTime(99), 0, 9).is_empty());
        assert_eq!(value(&keys, "k", 99).unwrap(), "v");
        assert_eq!(value(&keys, "k", 100), None);
        // Whoever takes the place of what has expired tells of both, in order.
        let set = keys
            .set(&key, &v, Condition::NotExists, milliseconds(50), &given(100))
            .unwrap();
        let told: Vec<_> = set.changes.iter().map(|change| change.value.is_some()).collect();
        assert_eq!(told, [false, true]);
        assert!(set.changes.is_sorted_by_key(|change| change.version));

        let expired = keys.expire(BrokerTime(150), 0, 9);
        assert_eq!((expired.len(), expired[0].value.clone()), (1, None));
        assert_eq!((keys.size(), keys.next_expiry()), ((0, 0), None));
    }

    #[test]
    fn setting_anew_replaces_the_expiry() {
        let mut keys = Keys::default();
        let (key, v) = (Bytes::from("k"), Bytes::from("v"));
        keys.set(&key, &v, Condition::None, milliseconds(100), &given(0))
            .unwrap();
        keys.set(
            &key,
            &v,
            Condition::NotExistsOrEqual,
            milliseconds(100),
            &given(50),
        )
        .unwrap();
        assert_eq!(keys.next_expiry(), Some(BrokerTime(150)));
        keys.set(&key, &v, Condition::None, None, &given(60)).unwrap();
        assert_eq!(keys.next_expiry(), None);
        assert_eq!(value(&keys, "k", 1 << 40).unwrap(), "v");
    }

    #[test]
    fn many_keys_expire_in_portions() {
        let mut keys = Keys::default();
        for index in 0..3_u64 {
            let key = Bytes::from(index.to_string());
            keys.set(
                &key,
                &"".into(),
                Condition::None,
                milliseconds(3 - index),
                &given(0),
            )
            .unwrap();
        }
        let order = |changes: Vec<Change>| changes.into_iter().map(|change| change.key).collect::<Vec<_>>();
        assert_eq!(order(keys.expire(BrokerTime(9), 0, 2)), ["2", "1"]);
        assert_eq!(order(keys.expire(BrokerTime(9), 0, 2)), ["0"]);
    }

    #[test]
    fn bounds_are_kept() {
        let mut keys = Keys::default();
        for key in ["a", "b", "c"] {
            assert!(set(&mut keys, key, "x", Condition::None, 0));
        }
        let refused = keys.set(&"d".into(), &"x".into(), Condition::None, None, &given(0));
        assert_eq!(refused, Err(CommandError::QuotaExceeded));
        assert!(
            set(&mut keys, "a", "y", Condition::None, 0),
            "a known key needs no place"
        );
        let long = Bytes::from("x".repeat(30));
        let refused = keys.set(&"a".into(), &long, Condition::None, None, &given(0));
        assert_eq!(refused, Err(CommandError::QuotaExceeded));
        assert_eq!(
            value(&keys, "a", 0).unwrap(),
            "y",
            "what is refused changes nothing"
        );
        keys.delete(&"b".into(), None, &given(0)).unwrap();
        assert!(set(&mut keys, "d", "x", Condition::None, 0));
        assert_eq!(keys.size(), (3, 3 * (OVERHEAD + 2)));
    }

    proptest! {
        #[test]
        fn what_is_counted_is_what_is_there(
            steps in prop::collection::vec((0_u8..4, 0_usize..5, prop::option::of(1_u64..20), any::<bool>()), 1..80),
        ) {
            let mut keys = Keys::default();
            let bounds = Bounds { count: 3, bytes: usize::MAX };
            for (now, (key, length, expires, delete)) in steps.into_iter().enumerate() {
                let given = Circumstances { bounds, ..given(now as u64) };
                let key = Bytes::from(vec![key + 1]);
                let value = Bytes::from(vec![0; length]);
                if delete {
                    keys.delete(&key, None, &given).unwrap();
                } else {
                    let expires = expires.map(Duration::from_millis);
                    drop(keys.set(&key, &value, Condition::None, expires, &given));
                }
                keys.expire(given.now, given.wall, 1);
                let bytes: usize = keys.entries.iter().map(|(key, entry)| weight(key, &entry.value)).sum();
                let mut due: Vec<_> = keys.entries.iter()
                    .filter_map(|(key, entry)| Some((entry.expires_at?, key.clone())))
                    .collect();
                due.sort();
                prop_assert_eq!(keys.bytes, bytes);
                prop_assert!(keys.due.iter().eq(due.iter()));
                prop_assert!(keys.entries.len() <= bounds.count);
            }
        }
    }
}
