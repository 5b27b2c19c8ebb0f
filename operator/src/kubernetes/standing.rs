//! Statuses as they stand in the API, of ten thousand objects: whole only until the first own writing.

use std::collections::BTreeMap;

use foreshore_crds::conditions::{find, status as truth, types};
use foreshore_tls::Fingerprint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::Value;

use crate::{object::ObjectKey, packed::Packed};

/// What stands there, by object.
#[derive(Debug, Default)]
pub(super) struct Standings {
    objects: BTreeMap<ObjectKey, Object>,
}

/// The status of one life of an object.
#[derive(Debug)]
struct Object {
    uid: String,
    standing: Standing,
}

/// A status, as far as it is known.
#[derive(Debug)]
enum Standing {
    /// As the watch told it.
    Told(Packed),
    /// As it was written last. What the watch tells may lag behind that.
    Written(Written),
}

/// What is remembered of a status that was written.
#[derive(Clone, Debug)]
pub(super) struct Written {
    digest: Fingerprint,
    headline: Option<Headline>,
}

/// What of a condition tells one state from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Headline {
    type_: String,
    status: String,
    reason: String,
}

impl Standings {
    /// Takes what the watch tells of an object.
    pub(super) fn tell(&mut self, key: &ObjectKey, uid: String, status: Value) {
        if let Some(object) = self.objects.get(key)
            && object.uid == uid
            && matches!(object.standing, Standing::Written(_))
        {
            return;
        }
        let standing = Standing::Told(Packed::sorted(status));
        self.objects.insert(key.clone(), Object { uid, standing });
    }

    /// Forgets an object that is gone.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        self.objects.remove(key);
    }

    /// Takes what was written, unless the object is gone meanwhile.
    pub(super) fn write(&mut self, key: &ObjectKey, uid: &str, written: Written) {
        if let Some(object) = self.objects.get_mut(key).filter(|object| object.uid == uid) {
            object.standing = Standing::Written(written);
        }
    }

    /// What stands there for this life of an object.
    pub(super) fn get(&self, key: &ObjectKey, uid: &str) -> Option<Written> {
        let object = self.objects.get(key).filter(|object| object.uid == uid)?;
        Some(match &object.standing {
            Standing::Told(status) => Written::of(&status.value()),
            Standing::Written(written) => written.clone(),
        })
    }

    /// Conditions that an earlier leader wrote.
    pub(super) fn conditions(&self) -> BTreeMap<ObjectKey, Vec<Condition>> {
        let told = self
            .objects
            .iter()
            .filter_map(|(key, object)| match &object.standing {
                Standing::Told(status) => Some((key.clone(), conditions(&status.value()))),
                Standing::Written(_) => None,
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
        Self {
            digest: Packed::sorted(status.clone()).digest(),
            headline: headline(&conditions(status)).map(Headline::of),
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
