//! How a device and each part of its assets is.

use std::{borrow::Cow, fmt, sync::Arc};

use foreshore_crds::conditions::reasons;

/// Reasons of links that `foreshore_crds::conditions::reasons` does not have.
pub mod reason {
    /// What is configured does not fit the device.
    pub const CONFIGURATION_REFUSED: &str = "ConfigurationRefused";
    /// The device answered something that its protocol does not allow.
    pub const PROTOCOL_ERROR: &str = "ProtocolError";
    /// The link is being taken up again.
    pub const RECONNECTING: &str = "Reconnecting";
}

/// A thing that has health of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    /// The device.
    Device,
    /// A dataset of an asset.
    Dataset {
        /// Name of the asset.
        asset: Arc<str>,
        /// Name of the dataset.
        dataset: Arc<str>,
    },
    /// An event of an asset.
    Event {
        /// Name of the asset.
        asset: Arc<str>,
        /// Name of the event group.
        group: Arc<str>,
        /// Name of the event in the group.
        event: Arc<str>,
    },
    /// A stream of an asset.
    Stream {
        /// Name of the asset.
        asset: Arc<str>,
        /// Name of the stream.
        stream: Arc<str>,
    },
    /// An action of an asset.
    Action {
        /// Name of the asset.
        asset: Arc<str>,
        /// Name of the action group.
        group: Arc<str>,
        /// Name of the action in the group.
        action: Arc<str>,
    },
}

impl Member {
    /// Name of the asset; `None` for the device.
    #[must_use]
    pub fn asset(&self) -> Option<&Arc<str>> {
        match self {
            Self::Device => None,
            Self::Dataset { asset, .. }
            | Self::Event { asset, .. }
            | Self::Stream { asset, .. }
            | Self::Action { asset, .. } => Some(asset),
        }
    }
}

impl fmt::Display for Member {
    /// `device`, `dataset ASSET/DATASET`, `event ASSET/GROUP/EVENT`, …
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("device"),
            Self::Dataset { asset, dataset } => write!(f, "dataset {asset}/{dataset}"),
            Self::Event { asset, group, event } => write!(f, "event {asset}/{group}/{event}"),
            Self::Stream { asset, stream } => write!(f, "stream {asset}/{stream}"),
            Self::Action { asset, group, action } => write!(f, "action {asset}/{group}/{action}"),
        }
    }
}

/// How well something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HealthStatus {
    /// It works.
    Healthy,
    /// Nothing is known yet.
    Unknown,
    /// Some of it works.
    Degraded,
    /// It does not work.
    Unhealthy,
}

/// How something is, why, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// How well it works.
    pub status: HealthStatus,
    /// Why: one of [`foreshore_crds::conditions::reasons`], or a reason of the protocol that its page documents.
    pub reason: Cow<'static, str>,
    /// What was seen; empty when healthy.
    pub evidence: String,
    /// What a person can do; empty when there is nothing to do.
    pub next_step: String,
}

/// The health of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberHealth {
    /// The member.
    pub member: Member,
    /// How it is.
    pub health: Health,
}

/// How many failing data points are named; the others are counted.
const NAMED_POINTS: usize = 5;

impl Health {
    /// It works.
    #[must_use]
    pub fn healthy() -> Self {
        Self::new(HealthStatus::Healthy, reasons::HEALTHY, String::new())
    }

    /// Nothing is known yet.
    #[must_use]
    pub fn unknown() -> Self {
        Self::new(HealthStatus::Unknown, reasons::NOT_YET_KNOWN, String::new())
    }

    /// Some of it works.
    pub fn degraded(reason: impl Into<Cow<'static, str>>, evidence: impl Into<String>) -> Self {
        Self::new(HealthStatus::Degraded, reason, evidence)
    }

    /// It does not work.
    pub fn unhealthy(reason: impl Into<Cow<'static, str>>, evidence: impl Into<String>) -> Self {
        Self::new(HealthStatus::Unhealthy, reason, evidence)
    }

    fn new(status: HealthStatus, reason: impl Into<Cow<'static, str>>, evidence: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
            evidence: evidence.into(),
            next_step: String::new(),
        }
    }

    /// Says what a person can do.
    #[must_use]
    pub fn with_next_step(mut self, next_step: impl Into<String>) -> Self {
        self.next_step = next_step.into();
        self
    }

    /// Health of a dataset of which some data points can't be observed: healthy when none fails, unhealthy when all
    /// do.
    ///
    /// `failing` gives the name of each such point and why, as in `("fill-level", "BadNodeIdUnknown: ns=2;s=Level")`.
    pub fn of_points<N: fmt::Display, W: fmt::Display>(
        points: usize,
        failing: impl IntoIterator<Item = (N, W)>,
    ) -> Self {
        let (mut named, mut count) = (Vec::new(), 0_usize);
        for (name, why) in failing {
            count += 1;
            if named.len() < NAMED_POINTS {
                named.push(format!("{name} ({why})"));
            }
        }
        if count == 0 {
            return Self::healthy();
        }
        let status = if count < points {
            HealthStatus::Degraded
        } else {
            HealthStatus::Unhealthy
        };
        let more = if count > named.len() { ", …" } else { "" };
        let evidence = format!("{count} of {points} data points fail: {}{more}", named.join(", "));
        Self::new(status, reasons::ADDRESS_UNKNOWN, evidence)
            .with_next_step("correct the addresses of these data points; they are tried again by themselves")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failing_points_are_counted_and_the_first_are_named() {
        assert_eq!(
            Health::of_points(3, Vec::<(&str, &str)>::new()),
            Health::healthy()
        );
        let some = Health::of_points(9, (0..7).map(|n| (format!("p{n}"), "BadNodeIdUnknown")));
        assert_eq!(some.status, HealthStatus::Degraded);
        assert!(
            some.evidence
                .starts_with("7 of 9 data points fail: p0 (BadNodeIdUnknown), "),
            "{}",
            some.evidence
        );
        assert!(
            some.evidence.ends_with("p4 (BadNodeIdUnknown), …"),
            "{}",
            some.evidence
        );
        assert_eq!(Health::of_points(1, [("a", "b")]).status, HealthStatus::Unhealthy);
    }
}
