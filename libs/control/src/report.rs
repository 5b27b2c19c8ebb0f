//! What roles report.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use bytes::Bytes;
use foreshore_crds::conditions::reasons;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::plan::{ObjectRef, ResourceKey};

/// Longest reason code, in bytes.
pub(crate) const LONGEST_REASON: usize = 128;
/// Longest message and evidence, in bytes.
pub(crate) const LONGEST_TEXT: usize = 4096;
/// Longest name of an aspect or a counter, in bytes.
pub(crate) const LONGEST_NAME: usize = 1024;
/// Most counters of a report.
pub(crate) const MOST_COUNTERS: usize = 64;
/// Largest schema or discovered document, in bytes.
pub(crate) const LARGEST_DOCUMENT: usize = 512 * 1024;

/// How a part of an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Health {
    /// It works.
    Available,
    /// It works in part.
    Degraded,
    /// It does not work.
    Unavailable,
    /// It was not tried yet.
    Unknown,
}

/// The kinds of parts that objects have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum AspectKind {
    /// The connection to a device, or to the system that a dataflow delivers to.
    Endpoint,
    /// A dataset of an asset.
    Dataset,
    /// An event of an asset.
    Event,
    /// A stream of an asset.
    Stream,
    /// An action of an asset.
    Action,
    /// A durable queue and its receiver.
    Path,
    /// A listener of a broker.
    Listener,
    /// The role as a whole, as its storage.
    Role,
    /// One that this version does not know.
    Other(String),
}

impl AspectKind {
    const KNOWN: [Self; 8] = [
        Self::Endpoint,
        Self::Dataset,
        Self::Event,
        Self::Stream,
        Self::Action,
        Self::Path,
        Self::Listener,
        Self::Role,
    ];

    /// The name on the wire and for people.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Endpoint => "Endpoint",
            Self::Dataset => "Dataset",
            Self::Event => "Event",
            Self::Stream => "Stream",
            Self::Action => "Action",
            Self::Path => "Path",
            Self::Listener => "Listener",
            Self::Role => "Role",
            Self::Other(name) => name,
        }
    }

    pub(crate) fn from_name(name: String) -> Self {
        Self::KNOWN
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .unwrap_or(Self::Other(name))
    }
}

/// A part of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Aspect {
    /// What kind of part.
    pub kind: AspectKind,
    /// Its name within the object (`group/event` where groups have events); empty where there is but one.
    pub name: String,
}

impl Aspect {
    /// Names a part.
    #[must_use]
    pub fn new(kind: AspectKind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }

    /// The connection of a device or endpoint, of which there is one.
    #[must_use]
    pub fn endpoint() -> Self {
        Self::new(AspectKind::Endpoint, "")
    }
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() {
            f.write_str(self.kind.as_str())
        } else {
            write!(f, "{} {}", self.kind.as_str(), self.name)
        }
    }
}

/// How a part of an object is, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The object.
    pub object: ResourceKey,
    /// Identity of the object: another one of the same name has another.
    pub uid: String,
    /// Version of the object's spec that is in force.
    pub observed_generation: i64,
    /// The part.
    pub aspect: Aspect,
    /// How it is.
    pub health: Health,
    /// Why: a constant that is documented with cause and remedy, as `BadCertificate`. At most 128 bytes.
    pub reason: Cow<'static, str>,
    /// What is wrong, for people. At most 4,096 bytes, longer text is cut.
    pub message: String,
    /// What was seen, word for word: a status code, the text of a fault. At most 4,096 bytes, longer text is cut.
    pub evidence: String,
    /// Numbers that only grow, by name. At most 64.
    pub counters: BTreeMap<String, u64>,
    /// When it began to be so, by the role's clock. The [`Reporter`](crate::session::agent::Reporter) sets it: it
    /// stays as long as health and reason do.
    pub since: Timestamp,
}

impl Report {
    /// A report about a part of an object that a plan's resource was made from.
    #[must_use]
    pub fn new(
        kind: &str,
        object: &ObjectRef,
        aspect: Aspect,
        health: Health,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            object: ResourceKey::new(kind, object.namespace.clone(), object.name.clone()),
            uid: object.uid.clone(),
            observed_generation: object.generation,
            aspect,
            health,
            reason: reason.into(),
            message: String::new(),
            evidence: String::new(),
            counters: BTreeMap::new(),
            since: Timestamp::UNIX_EPOCH,
        }
    }

    /// Says for people what is wrong.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// Adds what was seen, word for word.
    #[must_use]
    pub fn evidence(mut self, evidence: impl Into<String>) -> Self {
        self.evidence = evidence.into();
        self
    }

    /// Adds a number that only grows.
    #[must_use]
    pub fn counter(mut self, name: impl Into<String>, value: u64) -> Self {
        self.counters.insert(name.into(), value);
        self
    }

    /// Cuts what is too long, so that no report is refused for its size.
    pub(crate) fn bounded(mut self) -> Self {
        if self.reason.len() > LONGEST_REASON {
            let mut reason = self.reason.into_owned();
            cut(&mut reason, LONGEST_REASON);
            self.reason = reason.into();
        }
        cut(&mut self.message, LONGEST_TEXT);
        cut(&mut self.evidence, LONGEST_TEXT);
        cut(&mut self.uid, LONGEST_NAME);
        self.counters.retain(|name, _| name.len() <= LONGEST_NAME);
        while self.counters.len() > MOST_COUNTERS {
            self.counters.pop_last();
        }
        self
    }
}

/// The JSON Schema of what a part of an object sends or takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// The object.
    pub object: ResourceKey,
    /// The part.
    pub aspect: Aspect,
    /// The schema, at most 512 KiB.
    pub document: Bytes,
}

/// Something that a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovered {
    /// The scan.
    pub scan: ResourceKey,
    /// Names the find within the scan.
    pub id: String,
    /// What was found, as JSON, at most 512 KiB.
    pub document: Bytes,
}

/// Why a role refuses a resource: its last good version stays in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Nack {
    /// A constant that is documented with cause and remedy, as `UnsupportedHere`.
    pub reason: Cow<'static, str>,
    /// What is wrong, for people: place, found, allowed.
    pub message: String,
}

impl Nack {
    /// Refuses.
    #[must_use]
    pub fn new(reason: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// Whether the surroundings are to blame, and may be better in a while, rather than the resource: the role tries it
    /// again by itself.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        [
            reasons::PORT_IN_USE,
            reasons::STORAGE_FAILED,
            reasons::NOT_YET_KNOWN,
        ]
        .contains(&&*self.reason)
    }

    pub(crate) fn bounded(self) -> Self {
        let mut reason = self.reason.into_owned();
        let mut message = self.message;
        cut(&mut reason, LONGEST_REASON);
        cut(&mut message, LONGEST_TEXT);
        Self {
            reason: reason.into(),
            message,
        }
    }
}

impl From<crate::resource::Error> for Nack {
    fn from(error: crate::resource::Error) -> Self {
        Self::new("InvalidResource", error.to_string())
    }
}

fn cut(text: &mut String, longest: usize) {
    if text.len() > longest {
        text.truncate(text.floor_char_boundary(longest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        let object = ObjectRef {
            namespace: "plant".into(),
            name: "line".into(),
            uid: "1".into(),
            generation: 3,
        };
        let report = Report::new(
            "Asset",
            &object,
            Aspect::endpoint(),
            Health::Degraded,
            "r".repeat(500),
        )
        .message("ü".repeat(LONGEST_TEXT))
        .bounded();
        assert_eq!(report.reason.len(), LONGEST_REASON);
        assert_eq!(report.message.len(), LONGEST_TEXT);
        let nack = Nack::new("x", format!("a{}", "ü".repeat(LONGEST_TEXT))).bounded();
        assert_eq!(nack.message.len(), LONGEST_TEXT - 1);
    }

    #[test]
    fn kinds_of_aspects_keep_their_names() {
        for kind in AspectKind::KNOWN {
            assert_eq!(AspectKind::from_name(kind.as_str().to_owned()), kind);
        }
        assert_eq!(
            AspectKind::from_name("Newer".to_owned()),
            AspectKind::Other("Newer".to_owned())
        );
    }
}
