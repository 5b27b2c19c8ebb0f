//! What was observed in the sessions of all roles.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use foreshore_control::{
    Aspect, GivePlan, HandOver, Health, Nack, Observation, Observed, PlanResource, Report, ResourceKey,
    RoleFacts, TakePlan, plan::DevicePlan,
};
use foreshore_tls::{Fingerprint, RoleIdentity};
use jiff::{SignedDuration, Timestamp};

use super::STALE_AFTER;
use crate::{
    object::{Kind, ObjectKey},
    role::RoleName,
    shards::Holding,
};

/// Counters are compared over at least so long, or their rate means little.
const SHORTEST_RATE: SignedDuration = SignedDuration::from_millis(900);
/// A counter that was not told again for so long stands still.
const STANDS_STILL: SignedDuration = SignedDuration::from_secs(15);

/// What one instance of a role did.
#[derive(Debug, Default)]
pub struct Session {
    /// Since when it is connected; `None` while it is not.
    pub connected: Option<Timestamp>,
    /// Since when it is not connected, and why, for people; `None` while it is, or never was.
    pub disconnected: Option<(Timestamp, String)>,
    /// Whether it is without a session for too long.
    pub stale: bool,
    /// Name and version of its program.
    pub software: String,
    /// Where it dials from.
    pub address: Option<SocketAddr>,
    /// The trust bundle that it acknowledged.
    pub trusts: Option<Fingerprint>,
    /// What it told about itself. Kept while it restarts, so that others keep what they were told of it.
    pub facts: RoleFacts,
    /// What it is capable of.
    pub capabilities: BTreeSet<String>,
    /// Whether it has said what it has in force: until then nothing follows from what is not known of it.
    pub(crate) has_told: bool,
    resources: BTreeMap<ResourceKey, Held>,
    /// Where it stands with devices, by what it said last.
    hand_overs: BTreeMap<ResourceKey, HandOver>,
}

impl Session {
    /// What it has of the devices, and of the orders to take or give them.
    pub(crate) fn holdings(&self) -> BTreeMap<ResourceKey, Holding> {
        let mut holdings: BTreeMap<ResourceKey, Holding> = BTreeMap::new();
        for (key, held) in &self.resources {
            let Some(hash) = held.in_force else { continue };
            let device = ResourceKey::new(DevicePlan::KIND, &*key.namespace, &*key.name);
            match key.kind.as_str() {
                DevicePlan::KIND => holdings.entry(device).or_default().device = true,
                GivePlan::KIND => holdings.entry(device).or_default().give = true,
                TakePlan::KIND => holdings.entry(device).or_default().take = Some(hash),
                _ => {}
            }
        }
        for (device, told) in &self.hand_overs {
            holdings.entry(device.clone()).or_default().told = Some(told.clone());
        }
        holdings
    }
}

/// What a role has of a resource.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Hash of the version in force.
    pub(super) in_force: Option<Fingerprint>,
    /// The version that it did not take, and why.
    pub(super) refused: Option<(Fingerprint, Refusal)>,
}

/// Why a role did not take a version of a resource.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Refusal {
    /// It said so.
    Nack(Nack),
    /// It is too old: the capabilities that it lacks.
    Unsupported(Vec<String>),
}

/// A part of an object, as a role reported it last.
#[derive(Debug)]
pub struct Part {
    /// The instance that reports it.
    pub role: RoleIdentity,
    /// What it reports.
    pub report: Report,
    /// When the report came.
    updated: Timestamp,
    /// Counters of an earlier report, and their time.
    baseline: (Timestamp, BTreeMap<String, u64>),
    rates: BTreeMap<String, f64>,
}

impl Part {
    /// How fast each counter grows, in a second.
    #[must_use]
    pub fn rates(&self, now: Timestamp) -> BTreeMap<String, f64> {
        if now.duration_since(self.updated) > STANDS_STILL {
            return self
                .report
                .counters
                .keys()
                .map(|name| (name.clone(), 0.0))
                .collect();
        }
        self.rates.clone()
    }

    /// Takes a newer report of the same part.
    fn update(&mut self, report: Report, now: Timestamp) {
        let (since, before) = &self.baseline;
        let elapsed = now.duration_since(*since);
        if elapsed >= SHORTEST_RATE {
            self.rates = report
                .counters
                .iter()
                .map(|(name, value)| {
                    // A counter that began anew has grown by all that it shows.
                    let before = before
                        .get(name)
                        .copied()
                        .filter(|before| before <= value)
                        .unwrap_or_default();
                    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more")]
                    let grown = (value - before) as f64;
                    (name.clone(), grown / elapsed.as_secs_f64())
                })
                .collect();
            self.baseline = (now, report.counters.clone());
        }
        self.report = report;
        self.updated = now;
    }
}

/// What may be different after something was observed.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    /// What is reported of an object.
    Object(ObjectKey),
    /// What a role has of a resource.
    Resource(ResourceKey),
    /// Everything about a role.
    Role,
    /// How well a role does: one of its devices changed its health.
    Devices,
}

/// All sessions.
#[derive(Default)]
pub(super) struct Sessions {
    by_role: BTreeMap<RoleIdentity, Session>,
    parts: BTreeMap<ObjectKey, BTreeMap<(RoleIdentity, Aspect), Part>>,
}

impl Sessions {
    pub(super) fn get(&self, identity: &RoleIdentity) -> Option<&Session> {
        self.by_role.get(identity)
    }

    /// What an instance has of a resource.
    pub(super) fn held(&self, identity: &RoleIdentity, key: &ResourceKey) -> Option<&Held> {
        self.by_role.get(identity)?.resources.get(key)
    }

    pub(super) fn parts(&self, object: &ObjectKey) -> impl Iterator<Item = &Part> {
        self.parts.get(object).into_iter().flat_map(BTreeMap::values)
    }

    /// What a workload reports of its devices.
    pub(super) fn devices_of<'a>(
        &'a self,
        role: &'a RoleName,
    ) -> impl Iterator<Item = (&'a ObjectKey, &'a Part)> {
        let devices = self
            .parts
            .iter()
            .filter(|(object, _)| object.kind == Kind::Device);
        let parts = devices.flat_map(|(object, parts)| parts.values().map(move |part| (object, part)));
        parts.filter(move |(_, part)| RoleName::of(&part.role) == *role)
    }

    /// Forgets instances that are not wanted any more; tells which objects they reported.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<RoleIdentity>) -> Vec<ObjectKey> {
        self.by_role.retain(|identity, _| wanted.contains(identity));
        let mut changed = Vec::new();
        self.parts.retain(|object, parts| {
            let before = parts.len();
            parts.retain(|(identity, _), _| wanted.contains(identity));
            if parts.len() != before {
                changed.push(object.clone());
            }
            !parts.is_empty()
        });
        changed
    }

    /// When the next session turns stale.
    pub(super) fn next_stale(&self) -> Option<Timestamp> {
        let waiting = self.by_role.values().filter(|session| !session.stale);
        waiting
            .filter_map(|session| stale_at(session.disconnected.as_ref()?.0))
            .min()
    }

    /// Notes which sessions are lost for too long; tells whose.
    pub(super) fn turn_stale(&mut self, now: Timestamp) -> Vec<RoleName> {
        let mut turned = Vec::new();
        for (identity, session) in &mut self.by_role {
            let due = session
                .disconnected
                .as_ref()
                .and_then(|(since, _)| stale_at(*since));
            if !session.stale && due.is_some_and(|due| due <= now) {
                session.stale = true;
                turned.push(RoleName::of(identity));
            }
        }
        turned
    }

    /// Takes what happened.
    pub(super) fn observe(&mut self, observed: Observed, now: Timestamp) -> Vec<Change> {
        let Observed { role, what } = observed;
        match what {
            Observation::Report(report) => return self.report(role, report, now),
            Observation::Retracted { object, aspect } => return self.retract(&role, &object, aspect),
            Observation::Connected {
                software,
                capabilities,
                address,
            } => {
                let voided = self.forget_reports(&role);
                let session = self.by_role.entry(role).or_default();
                *session = Session {
                    connected: Some(now),
                    software,
                    address: Some(address),
                    capabilities,
                    facts: std::mem::take(&mut session.facts),
                    // What it has in force follows.
                    ..Session::default()
                };
                return voided
                    .into_iter()
                    .map(Change::Object)
                    .chain([Change::Role])
                    .collect();
            }
            _ => {}
        }
        let session = self.by_role.entry(role).or_default();
        match what {
            Observation::Holds { resources } => {
                session.has_told = true;
                for resource in resources {
                    session.resources.entry(resource.key).or_default().in_force = Some(resource.hash);
                }
                vec![Change::Role]
            }
            Observation::Ack { resource } => {
                let held = session.resources.entry(resource.key.clone()).or_default();
                *held = Held {
                    in_force: Some(resource.hash),
                    refused: None,
                };
                vec![Change::Resource(resource.key)]
            }
            Observation::Removed { key } => {
                session.resources.remove(&key);
                // What it said of a device was about the device that is gone.
                session.hand_overs.remove(&key);
                vec![Change::Resource(key)]
            }
            Observation::Nack { resource, nack } => {
                let held = session.resources.entry(resource.key.clone()).or_default();
                held.refused = Some((resource.hash, Refusal::Nack(nack)));
                vec![Change::Resource(resource.key)]
            }
            Observation::Unsupported { resource, missing } => {
                let held = session.resources.entry(resource.key.clone()).or_default();
                held.refused = Some((resource.hash, Refusal::Unsupported(missing)));
                vec![Change::Resource(resource.key)]
            }
            Observation::HandOver(told) => {
                session.hand_overs.insert(told.device.clone(), told);
                Vec::new()
            }
            Observation::Trusts { bundle } => {
                session.trusts = Some(bundle);
                Vec::new()
            }
            Observation::Facts(facts) => {
                session.facts = facts;
                Vec::new()
            }
            Observation::Disconnected {
                reason,
                on_purpose: _,
            } => {
                session.connected = None;
                session.disconnected = Some((now, reason));
                vec![Change::Role]
            }
            // Schemas and finds are for those who ask for them, certificates renew by themselves; the rest was taken
            // above, or is newer than this version.
            _ => Vec::new(),
        }
    }

    fn report(&mut self, role: RoleIdentity, report: Report, now: Timestamp) -> Vec<Change> {
        let Some(object) = object_of(&report.object) else {
            return Vec::new();
        };
        let health = report.health;
        let parts = self.parts.entry(object.clone()).or_default();
        let before = match parts.get_mut(&(role.clone(), report.aspect.clone())) {
            Some(part) => {
                let before = part.report.health;
                part.update(report, now);
                Some(before)
            }
            None => {
                let baseline = (now, report.counters.clone());
                let key = (role.clone(), report.aspect.clone());
                parts.insert(
                    key,
                    Part {
                        role,
                        report,
                        updated: now,
                        baseline,
                        rates: BTreeMap::new(),
                    },
                );
                None
            }
        };
        let turned = object.kind == Kind::Device && before != Some(health);
        let devices = turned.then_some(Change::Devices);
        [Change::Object(object)].into_iter().chain(devices).collect()
    }

    fn retract(&mut self, role: &RoleIdentity, object: &ResourceKey, aspect: Aspect) -> Vec<Change> {
        let Some(object) = object_of(object) else {
            return Vec::new();
        };
        let Some(parts) = self.parts.get_mut(&object) else {
            return Vec::new();
        };
        parts.remove(&(role.clone(), aspect));
        if parts.is_empty() {
            self.parts.remove(&object);
        }
        let devices = (object.kind == Kind::Device).then_some(Change::Devices);
        [Change::Object(object)].into_iter().chain(devices).collect()
    }

    /// Whatever an instance reported in an earlier session is void.
    fn forget_reports(&mut self, role: &RoleIdentity) -> Vec<ObjectKey> {
        let mut changed = Vec::new();
        self.parts.retain(|object, parts| {
            let before = parts.len();
            parts.retain(|(identity, _), _| identity != role);
            if parts.len() != before {
                changed.push(object.clone());
            }
            !parts.is_empty()
        });
        changed
    }
}

/// How much of an object works.
pub(super) fn worst<'a>(parts: impl Iterator<Item = &'a Part>) -> Option<&'a Part> {
    parts.max_by_key(|part| severity(part.report.health))
}

/// Larger is worse.
pub(super) fn severity(health: Health) -> u8 {
    match health {
        Health::Available => 0,
        Health::Unknown => 1,
        Health::Degraded => 2,
        Health::Unavailable => 3,
    }
}

fn stale_at(since: Timestamp) -> Option<Timestamp> {
    since
        .checked_add(SignedDuration::try_from(STALE_AFTER).ok()?)
        .ok()
}

fn object_of(key: &ResourceKey) -> Option<ObjectKey> {
    Some(ObjectKey::new(
        Kind::from_name(&key.kind)?,
        &key.namespace,
        &key.name,
    ))
}
