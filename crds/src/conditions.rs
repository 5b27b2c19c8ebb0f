//! Conditions: the same on every kind, so that `kubectl wait`, Argo CD and Flux need one rule for all.
//!
//! | type | on | meaning |
//! |---|---|---|
//! | `Ready` | all | the desired state is in force |
//! | `Reconciling` | all, only while True | work towards it goes on (kstatus) |
//! | `Stalled` | all, only while True | it can't be reached without a change (kstatus) |
//! | `Accepted` | all | the object is valid and everything it asks for can be had here |
//! | `ResolvedRefs` | kinds with references | every object and Secret it names exists and fits |
//! | `Healthy` | kinds that run something | machines are reachable and data flows; never part of `Ready` |
//!
//! Reasons are part of the API. `docs/errors` explains each with cause and remedy.

use std::sync::Arc;

use compact_str::CompactString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

/// Condition types.
pub mod types {
    /// The desired state is in force.
    pub const READY: &str = "Ready";
    /// Work towards the desired state goes on; present only while True (kstatus).
    pub const RECONCILING: &str = "Reconciling";
    /// The desired state can't be reached without a change; present only while True (kstatus).
    pub const STALLED: &str = "Stalled";
    /// The object is valid and everything it asks for can be had here.
    pub const ACCEPTED: &str = "Accepted";
    /// Every object and Secret that it names exists and fits.
    pub const RESOLVED_REFS: &str = "ResolvedRefs";
    /// Machines are reachable and data flows.
    pub const HEALTHY: &str = "Healthy";
}

/// Values of a condition's status.
pub mod status {
    /// It holds.
    pub const TRUE: &str = "True";
    /// It does not hold.
    pub const FALSE: &str = "False";
    /// Nobody can tell.
    pub const UNKNOWN: &str = "Unknown";
}

/// Reasons, by the condition that carries them.
pub mod reasons {
    // --- Accepted
    /// The object is valid and can be carried out.
    pub const ACCEPTED: &str = "Accepted";
    /// A rule of the schema is broken; the last accepted version runs on.
    pub const INVALID: &str = "Invalid";
    /// A reference was left out and more than one object would fit.
    pub const AMBIGUOUS: &str = "Ambiguous";
    /// A field asks for something that this installation can't do, such as a pod's field without pods.
    pub const UNSUPPORTED_HERE: &str = "UnsupportedHere";
    /// The role that would carry it out is too old to know the feature.
    pub const UNSUPPORTED_BY_ROLE: &str = "UnsupportedByRole";
    /// A role refused the resource that was made of it and runs its last good version on.
    pub const REFUSED_BY_ROLE: &str = "RefusedByRole";
    /// Another object already claims the same name, port or topic.
    pub const CONFLICT: &str = "Conflict";
    /// An expression does not parse or names something unknown.
    pub const INVALID_EXPRESSION: &str = "InvalidExpression";
    /// The object is larger than 1 MB.
    pub const TOO_LARGE: &str = "TooLarge";

    // --- ResolvedRefs
    /// Everything named exists and fits.
    pub const RESOLVED: &str = "Resolved";
    /// An object that it names does not exist.
    pub const NOT_FOUND: &str = "NotFound";
    /// A Secret that it names does not exist.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// A Secret lacks a key that is needed.
    pub const SECRET_KEY_MISSING: &str = "SecretKeyMissing";
    /// A Secret's content can't be read as what is needed.
    pub const SECRET_INVALID: &str = "SecretInvalid";
    /// What it names is of another protocol.
    pub const PROTOCOL_MISMATCH: &str = "ProtocolMismatch";
    /// What it names exists and was not accepted itself.
    pub const REF_NOT_ACCEPTED: &str = "RefNotAccepted";

    // --- Ready
    /// The role reported that it runs as desired.
    pub const IN_FORCE: &str = "InForce";
    /// Switched off by `enabled: false`.
    pub const DISABLED: &str = "Disabled";
    /// The role has not acknowledged the newest version yet.
    pub const AWAITING_ROLE: &str = "AwaitingRole";
    /// Nothing carries it out yet; pods or tasks are starting.
    pub const STARTING: &str = "Starting";
    /// A node is lost and its volume with it.
    pub const WAITING_FOR_NODE: &str = "WaitingForNode";
    /// A task or pod ends again and again.
    pub const FAILING: &str = "Failing";
    /// The port is taken.
    pub const PORT_IN_USE: &str = "PortInUse";
    /// It is being deleted.
    pub const TERMINATING: &str = "Terminating";

    // --- Healthy
    /// Reachable, and data flows.
    pub const HEALTHY: &str = "Healthy";
    /// Some parts work and others don't; the message tells which.
    pub const DEGRADED: &str = "Degraded";
    /// The other side can't be reached.
    pub const UNREACHABLE: &str = "Unreachable";
    /// The broker that messages come from does not answer.
    pub const QUEUE_UNAVAILABLE: &str = "QueueUnavailable";
    /// The broker that messages come from does not let us take them.
    pub const QUEUE_FORBIDDEN: &str = "QueueForbidden";
    /// The other side refused who we are.
    pub const AUTHENTICATION_FAILED: &str = "AuthenticationFailed";
    /// The other side's certificate is not trusted, or ours is not trusted there.
    pub const CERTIFICATE_UNTRUSTED: &str = "CertificateUntrusted";
    /// The other side does not know an address that was configured.
    pub const ADDRESS_UNKNOWN: &str = "AddressUnknown";
    /// Connected, and no data for longer than expected.
    pub const NO_DATA: &str = "NoData";
    /// Nobody reported for too long.
    pub const STALE: &str = "Stale";
    /// The backlog grows or is full.
    pub const BACKLOG: &str = "Backlog";
    /// A disk is full or broken.
    pub const STORAGE_FAILED: &str = "StorageFailed";
    /// Clients hold as much memory as they may together.
    pub const MEMORY_EXHAUSTED: &str = "MemoryExhausted";
    /// A listener is open and clients can't use it.
    pub const PROBE_FAILED: &str = "ProbeFailed";
    /// Nothing has been reported yet.
    pub const NOT_YET_KNOWN: &str = "NotYetKnown";
}

/// Longest message that is written into a condition, in characters: enough to act on, far below etcd's bounds.
pub const MAX_MESSAGE: usize = 1024;

/// A condition as `metav1.Condition` has it, in little room: ten thousand objects have five each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// When its status flipped last.
    pub last_transition_time: Time,
    /// For people; objects of which the same is said share it.
    #[serde(default)]
    pub message: Arc<str>,
    /// Generation of the object that it speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One of [`reasons`], or what an earlier version called it.
    pub reason: CompactString,
    /// One of [`status`].
    pub status: CompactString,
    /// One of [`types`], or what an earlier version called it.
    #[serde(rename = "type")]
    pub type_: CompactString,
}

/// One condition that should hold, without the bookkeeping that [`set`] adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// One of [`types`].
    pub type_: &'static str,
    /// One of [`status`].
    pub status: &'static str,
    /// One of [`reasons`].
    pub reason: &'static str,
    /// For people: what was seen and what to do about it.
    pub message: Arc<str>,
}

/// Sets a condition. `lastTransitionTime` moves only when the status flips; a message is cut at
/// [`MAX_MESSAGE`]. Tells whether anything changed.
pub fn set(
    conditions: &mut Vec<Condition>,
    verdict: Verdict,
    generation: Option<i64>,
    now: jiff::Timestamp,
) -> bool {
    let old = conditions
        .iter()
        .position(|condition| condition.type_ == verdict.type_);
    let unflipped = old
        .and_then(|index| conditions.get(index))
        .filter(|condition| condition.status == verdict.status)
        .map(|condition| condition.last_transition_time.clone());
    let new = Condition {
        type_: verdict.type_.into(),
        status: verdict.status.into(),
        reason: verdict.reason.into(),
        message: cut(verdict.message),
        observed_generation: generation,
        last_transition_time: unflipped.unwrap_or(Time(now)),
    };
    match old.and_then(|index| conditions.get_mut(index)) {
        Some(condition) if *condition == new => false,
        Some(condition) => {
            *condition = new;
            true
        }
        None => {
            conditions.push(new);
            true
        }
    }
}

/// A message no longer than [`MAX_MESSAGE`].
fn cut(message: Arc<str>) -> Arc<str> {
    if message.chars().nth(MAX_MESSAGE).is_none() {
        return message;
    }
    message.chars().take(MAX_MESSAGE).collect::<String>().into()
}

/// Takes a condition away, as kstatus wants for `Reconciling` and `Stalled`. Tells whether it was there.
pub fn remove(conditions: &mut Vec<Condition>, type_: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|condition| condition.type_ != type_);
    conditions.len() != before
}

/// The condition of a type.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: &'static str, message: &str) -> Verdict {
        Verdict {
            type_: types::READY,
            status,
            reason: reasons::IN_FORCE,
            message: message.into(),
        }
    }

    #[test]
    fn transition_time_moves_only_when_the_status_flips() {
        let mut conditions = Vec::new();
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        assert!(set(&mut conditions, verdict(status::TRUE, "a"), Some(1), at(1)));
        assert!(!set(&mut conditions, verdict(status::TRUE, "a"), Some(1), at(2)));
        assert!(set(&mut conditions, verdict(status::TRUE, "b"), Some(2), at(3)));
        assert_eq!(
            find(&conditions, types::READY).unwrap().last_transition_time,
            Time(at(1))
        );
        assert!(set(&mut conditions, verdict(status::FALSE, "b"), Some(2), at(4)));
        assert_eq!(
            find(&conditions, types::READY).unwrap().last_transition_time,
            Time(at(4))
        );
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let mut conditions = Vec::new();
        set(
            &mut conditions,
            verdict(status::TRUE, &"ä".repeat(2000)),
            None,
            jiff::Timestamp::UNIX_EPOCH,
        );
        assert_eq!(conditions[0].message.chars().count(), MAX_MESSAGE);
    }

    #[test]
    fn removal_tells_whether_it_was_there() {
        let mut conditions = Vec::new();
        set(
            &mut conditions,
            verdict(status::TRUE, ""),
            None,
            jiff::Timestamp::UNIX_EPOCH,
        );
        assert!(remove(&mut conditions, types::READY));
        assert!(!remove(&mut conditions, types::READY));
    }
}
