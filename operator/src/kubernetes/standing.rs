//! Statuses as they stand in the API, of ten thousand objects: of each only what a next writing needs to know.

use std::{collections::BTreeMap, sync::Arc};

use compact_str::CompactString;
use foreshore_crds::conditions::{Condition, find, status as truth, types};
use foreshore_tls::Fingerprint;
use serde_json::Value;

use crate::{object::ObjectKey, packed};

/// What stands there, by object.
#[derive(Debug, Default)]
pub(super) struct Standings {
    objects: BTreeMap<ObjectKey, Object>,
}

/// The status of one life of an object.
#[derive(Debug)]
struct Object {
    uid: String,
    /// As it was written last, or as the watch told it.
    status: Written,
    /// Conditions that an earlier leader wrote, without their messages; `None` after the first own writing. What the
    /// watch tells may lag behind that.
    earlier: Option<Vec<Condition>>,
}

/// What is remembered of a status.
#[derive(Clone, Debug)]
pub(super) struct Written {
    digest: Fingerprint,
    headline: Option<Headline>,
}

/// What of a condition tells one state from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Headline {
    type_: CompactString,
    status: CompactString,
    reason: CompactString,
}

impl Standings {
    /// Takes what the watch tells of an object.
    pub(super) fn tell(&mut self, key: &ObjectKey, uid: String, status: Value) {
        if let Some(object) = self.objects.get(key)
            && object.uid == uid
            && object.earlier.is_none()
        {
            return;
        }
        let mut earlier = conditions(&status);
        let status = Written::new(status, &earlier);
        for condition in &mut earlier {
            condition.message = Arc::default();
        }
        earlier.shrink_to_fit();
        let earlier = Some(earlier);
        self.objects.insert(key.clone(), Object { uid, status, earlier });
    }

    /// Forgets an object that is gone.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        self.objects.remove(key);
    }

    /// Takes what was written, unless the object is gone meanwhile.
    pub(super) fn write(&mut self, key: &ObjectKey, uid: &str, written: Written) {
        if let Some(object) = self.objects.get_mut(key).filter(|object| object.uid == uid) {
            object.status = written;
            object.earlier = None;
        }
    }

    /// What stands there for this life of an object.
    pub(super) fn get(&self, key: &ObjectKey, uid: &str) -> Option<Written> {
        let object = self.objects.get(key).filter(|object| object.uid == uid)?;
        Some(object.status.clone())
    }

    /// Gives up the conditions that an earlier leader wrote.
    pub(super) fn take_conditions(&mut self) -> BTreeMap<ObjectKey, Vec<Condition>> {
        let told = self.objects.iter_mut().filter_map(|(key, object)| {
            let earlier = object.earlier.as_mut()?;
            Some((key.clone(), std::mem::take(earlier)))
        });
        told.collect()
    }

    /// Whether nothing is known of any object.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

impl Written {
    /// Of a status as it is written.
    pub(super) fn of(status: &Value) -> Self {
        Self::new(status.clone(), &conditions(status))
    }

    fn new(status: Value, conditions: &[Condition]) -> Self {
        Self {
            digest: packed::digest(status),
            headline: headline(conditions).map(Headline::of),
        }
    }

    /// Whether it is the same status.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// What said most about the object.
    pub(super) fn headline(&self) -> Option<&Headline> {
        self.headline.as_ref()
    }
}

impl Headline {
    pub(super) fn of(condition: &Condition) -> Self {
        Self {
            type_: condition.type_.clone(),
            status: condition.status.clone(),
            reason: condition.reason.clone(),
        }
    }
}

/// The condition that says most about an object: what keeps it from being ready, or what is wrong with its machine.
pub(super) fn headline(conditions: &[Condition]) -> Option<&Condition> {
    let failed = |type_: &str| find(conditions, type_).filter(|condition| condition.status == truth::FALSE);
    failed(types::READY)
        .or_else(|| failed(types::HEALTHY))
        .or_else(|| find(conditions, types::HEALTHY))
        .or_else(|| find(conditions, types::READY))
}

fn conditions(status: &Value) -> Vec<Condition> {
    let conditions = status.get("conditions").cloned();
    conditions
        .and_then(|conditions| serde_json::from_value(conditions).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::object::Kind;

    #[test]
    fn what_was_written_counts_until_the_object_is_another_one() {
        let key = ObjectKey::new(Kind::Asset, "plant", "filler");
        let mut standings = Standings::default();
        let (old, new) = (json!({"b": 1, "a": 2}), json!({"a": 3}));
        let of = |status: &Value| Written::of(status);
        standings.write(&key, "1", of(&new));
        assert!(standings.is_empty(), "nobody told of that object");
        standings.tell(&key, "1".to_owned(), old.clone());
        let same = json!({"a": 2, "b": 1});
        assert!(standings.get(&key, "1").unwrap().is(&of(&same)));
        standings.write(&key, "1", of(&new));
        standings.tell(&key, "1".to_owned(), old.clone());
        assert!(
            standings.get(&key, "1").unwrap().is(&of(&new)),
            "the watch lags behind"
        );
        assert!(standings.get(&key, "2").is_none());
        standings.tell(&key, "2".to_owned(), old.clone());
        standings.write(&key, "1", of(&new));
        assert!(standings.get(&key, "2").unwrap().is(&of(&old)));
        standings.forget(&key);
        assert!(standings.is_empty());
    }
}
