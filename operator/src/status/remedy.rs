//! What each reason means, and what to do about it.

use foreshore_crds::conditions::reasons;

use crate::source::directory::{STATE_NOT_KEPT, UNREADABLE};

/// A reason, explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// The reason, as conditions carry it.
    pub reason: &'static str,
    /// How it came to that.
    pub cause: &'static str,
    /// What to do; empty where there is nothing to be done.
    pub next: &'static str,
}

const fn remedy(reason: &'static str, cause: &'static str, next: &'static str) -> Remedy {
    Remedy { reason, cause, next }
}

/// All reasons.
pub const REMEDIES: &[Remedy] = &[
    remedy(reasons::ACCEPTED, "the object is valid", ""),
    remedy(
        reasons::INVALID,
        "the manifest breaks a rule, or can't be read",
        "change the named field to what is allowed; what was accepted before runs on until then",
    ),
    remedy(
        reasons::AMBIGUOUS,
        "a reference was left out and several objects would fit",
        "name the one that is meant",
    ),
    remedy(
        reasons::UNSUPPORTED_HERE,
        "the field asks for something that this installation can't do",
        "take the field out, or apply the manifest where it can be done",
    ),
    remedy(
        reasons::UNSUPPORTED_BY_ROLE,
        "the role that would carry it out is older than the feature",
        "update the role's image to the operator's version",
    ),
    remedy(
        reasons::REFUSED_BY_ROLE,
        "the role found that it can't carry it out, and runs its last good version on",
        "read the role's words and change the object",
    ),
    remedy(
        reasons::CONFLICT,
        "another object was there first with the same name or port",
        "remove one of the two, or give it a name or port of its own",
    ),
    remedy(
        reasons::INVALID_EXPRESSION,
        "an expression does not parse, or names what is not there",
        "correct it at the named place; the allowed names are listed",
    ),
    remedy(
        reasons::TOO_LARGE,
        "the object is larger than 1 MB",
        "spread it over several objects",
    ),
    remedy(reasons::RESOLVED, "everything that it names exists and fits", ""),
    remedy(
        reasons::NOT_FOUND,
        "an object that it names does not exist in its namespace",
        "create that object, or correct the name",
    ),
    remedy(
        reasons::SECRET_NOT_FOUND,
        "a Secret that it names does not exist in its namespace",
        "create the Secret, as a manifest or as files NAME/KEY of mode 0600 under --secrets",
    ),
    remedy(
        reasons::SECRET_KEY_MISSING,
        "the Secret lacks a key",
        "add the key, or name the one that holds the value",
    ),
    remedy(
        reasons::SECRET_INVALID,
        "the Secret holds something else than what is needed",
        "replace its content",
    ),
    remedy(
        reasons::PROTOCOL_MISMATCH,
        "what it names speaks another protocol",
        "name one of the same protocol, or use that protocol's block",
    ),
    remedy(
        reasons::REF_NOT_ACCEPTED,
        "what it names is not accepted itself",
        "mend that object first",
    ),
    remedy(reasons::IN_FORCE, "the role reported that it runs as desired", ""),
    remedy(
        reasons::DISABLED,
        "it is switched off",
        "set enabled to true to switch it on",
    ),
    remedy(
        reasons::AWAITING_ROLE,
        "the role has not acknowledged the newest version yet",
        "wait; if it lasts, look at the role's log and its connection to the operator",
    ),
    remedy(
        reasons::STARTING,
        "what carries it out is starting",
        "wait; if it lasts, look at the log of the role that is named",
    ),
    remedy(
        reasons::WAITING_FOR_NODE,
        "the node that holds its volume is lost",
        "bring the node back, or restore from a backup",
    ),
    remedy(
        reasons::FAILING,
        "the role ends again and again",
        "read its last words; it is started again with growing waits",
    ),
    remedy(
        reasons::PORT_IN_USE,
        "another program listens on the port",
        "stop that program, or choose another port",
    ),
    remedy(reasons::TERMINATING, "it is being deleted", ""),
    remedy(reasons::HEALTHY, "it is reachable, and data flows", ""),
    remedy(
        reasons::DEGRADED,
        "some parts work and others do not",
        "look at the parts that are listed",
    ),
    remedy(
        reasons::UNREACHABLE,
        "the other side does not answer",
        "check that it is switched on, its address, and the network in between",
    ),
    remedy(
        reasons::QUEUE_UNAVAILABLE,
        "the broker that messages come from does not answer",
        "check that it runs, its address, and the network in between; what waits there comes by itself then",
    ),
    remedy(
        reasons::QUEUE_FORBIDDEN,
        "the broker that messages come from does not let us in, or not take what the dataflow names",
        "correct user name and password, or the certificate, in the Secret, or what that broker allows",
    ),
    remedy(
        reasons::AUTHENTICATION_FAILED,
        "the other side refused who we are",
        "correct user name and password, or the certificate, in the Secret",
    ),
    remedy(
        reasons::CERTIFICATE_UNTRUSTED,
        "one of both sides does not trust the other's certificate",
        "add the certificate to the Secret that trust names, or ours to what the other side trusts",
    ),
    remedy(
        reasons::ADDRESS_UNKNOWN,
        "the other side does not know an address that was configured",
        "correct the address; discovery shows what the device has",
    ),
    remedy(
        reasons::NO_DATA,
        "connected, and silent for longer than expected",
        "check that the machine runs and that its values change",
    ),
    remedy(
        reasons::STALE,
        "the role that reports it has lost its connection to the operator",
        "look at the role's log; what it does goes on without the operator",
    ),
    remedy(
        reasons::BACKLOG,
        "more comes in than goes out",
        "check the sink, or raise the bounds of its queue",
    ),
    remedy(
        reasons::STORAGE_FAILED,
        "a disk is full or broken",
        "free or replace the disk; nothing that was acknowledged is lost",
    ),
    remedy(
        reasons::MEMORY_EXHAUSTED,
        "clients hold as much memory as they may together: those that hold most are disconnected, new ones refused",
        "see who is slow with foreshore broker backlog; raise limits.maxMemory if all of them are meant to be there",
    ),
    remedy(
        reasons::PROBE_FAILED,
        "the broker connected to its own listener as a client does, and could not use it",
        "the message says at which step: renew an expired certificate, free connections, look at the broker's log",
    ),
    remedy(
        reasons::NOT_YET_KNOWN,
        "nothing has been reported yet",
        "wait; if it lasts, look at the log of the role that carries it out",
    ),
    remedy(
        UNREADABLE,
        "a file or folder can't be read",
        "check that it exists and its permissions; what it declared runs on until then",
    ),
    remedy(
        STATE_NOT_KEPT,
        "the operator can't write what it keeps over restarts",
        "check free space and permissions of the data directory",
    ),
];

/// Explains a reason; `None` for one that only a role knows.
#[must_use]
pub fn explain(reason: &str) -> Option<&'static Remedy> {
    REMEDIES.iter().find(|remedy| remedy.reason == reason)
}

/// The page of all reasons, as it lies in `docs/errors/reasons.md`.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# Reasons\n\n<!-- Generated from operator/src/status/remedy.rs by `cargo xtask generate`. Do not edit. -->\n\n\
         Why a condition is as it is, as `foreshore status` and `kubectl describe` show it. Roles have reasons of their \
         own besides, which their messages explain.\n\n| reason | how it came to that | what to do |\n|---|---|---|\n",
    );
    for Remedy { reason, cause, next } in REMEDIES {
        page.extend(["| `", reason, "` | ", cause, " | ", next, " |\n"]);
    }
    page
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_is_explained_once() {
        let known: BTreeSet<_> = REMEDIES.iter().map(|remedy| remedy.reason).collect();
        assert_eq!(known.len(), REMEDIES.len());
        // The constants can't be listed by the compiler, so their source is read.
        let source = include_str!("../../../crds/src/conditions.rs");
        let declared = source
            .lines()
            .skip_while(|line| !line.starts_with("pub mod reasons"));
        let values: Vec<_> = declared
            .take_while(|line| *line != "}")
            .filter_map(|line| line.trim().strip_prefix("pub const ")?.split('"').nth(1))
            .collect();
        assert!(values.len() > 20, "{values:?}");
        for value in values {
            assert!(known.contains(value), "{value} has no remedy");
        }
    }
}
