//! Verdicts, workloads and sessions to conditions. Pure: time is an argument.

mod conditions;
mod placed;
mod sessions;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use foreshore_control::{Observed, Resource, ResourceKey, RoleFacts};
use foreshore_crds::conditions::Condition;
use foreshore_tls::RoleIdentity;
use jiff::Timestamp;

use crate::{
    details::Details,
    facts::Facts,
    object::{Kind, Meta, ObjectKey},
    reconcile::Outcome,
    role::RoleName,
    shards::Shards,
    workloads::Running,
};

use placed::Placed;
use sessions::{Change, Sessions};
pub use sessions::{Part, Session};

/// A role that is without a session for so long can't vouch for what it reported any more.
pub const STALE_AFTER: Duration = Duration::from_secs(30);

/// How one object stands.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectStatus {
    /// Which.
    pub key: ObjectKey,
    /// The version that is declared.
    pub declared: Meta,
    /// Generation of the version that shall run; `None` when none does.
    pub running: Option<i64>,
    /// Where it is declared, `file:line`.
    pub place: Option<String>,
    /// Conditions, as `foreshore_crds::conditions` tells.
    pub conditions: Vec<Condition>,
    /// What was seen, word for word.
    pub evidence: Option<Arc<str>>,
    /// What the status of its kind tells beside the conditions: names and counts that seldom change.
    pub details: Details,
    /// Identity of the instance that serves a Device.
    pub instance: Option<String>,
}

/// Knows what is desired and what was observed, and what follows from both.
#[derive(Default)]
pub struct Index {
    outcome: Arc<Outcome>,
    running: Arc<Running>,
    sessions: Sessions,
    /// Objects by the parts of plans that they count on.
    users: BTreeMap<(RoleName, ResourceKey), Vec<ObjectKey>>,
    /// Objects by the roles that they count on.
    carried: BTreeMap<RoleName, Vec<ObjectKey>>,
    statuses: BTreeMap<ObjectKey, Arc<ObjectStatus>>,
    /// Conditions from before this start, of objects that have no status yet.
    present: BTreeMap<ObjectKey, Vec<Condition>>,
    dirty: BTreeSet<ObjectKey>,
    placed: Placed,
}

impl Index {
    /// What is desired.
    #[must_use]
    pub fn outcome(&self) -> &Arc<Outcome> {
        &self.outcome
    }

    /// What runs.
    #[must_use]
    pub fn running(&self) -> &Arc<Running> {
        &self.running
    }

    /// The session of an instance, if it ever had one.
    #[must_use]
    pub fn session(&self, identity: &RoleIdentity) -> Option<&Session> {
        self.sessions.get(identity)
    }

    /// What the instances that run told about themselves.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let mut facts = Facts::default();
        for (role, instances) in &self.running.instances {
            let mut merged = RoleFacts::default();
            let sessions = instances
                .iter()
                .filter_map(|instance| self.session(&instance.identity));
            for RoleFacts { addresses, authority } in sessions.map(|session| &session.facts) {
                for (name, several) in addresses {
                    let merged = merged.addresses.entry(name.clone()).or_default();
                    let new = several.iter().filter(|address| !merged.contains(address));
                    let new: Vec<_> = new.cloned().collect();
                    merged.extend(new);
                }
                if authority.is_some() {
                    merged.authority.clone_from(authority);
                }
            }
            // Whoever has told nothing yet is no reason to think everything over.
            if merged != RoleFacts::default() {
                facts.roles.insert(role.clone(), merged);
            }
        }
        facts
    }

    /// What roles reported about an object, by part.
    pub fn parts(&self, object: &ObjectKey) -> impl Iterator<Item = &Part> {
        self.sessions.parts(object)
    }

    /// The statuses as they were computed last.
    #[must_use]
    pub fn statuses(&self) -> &BTreeMap<ObjectKey, Arc<ObjectStatus>> {
        &self.statuses
    }

    /// Takes conditions that an earlier leader wrote: those that did not flip keep their time.
    pub fn set_present(&mut self, present: BTreeMap<ObjectKey, Vec<Condition>>) {
        self.present = present;
    }

    /// Gives up what is desired; [`Self::set_outcome`] follows.
    pub fn take_outcome(&mut self) -> Arc<Outcome> {
        std::mem::take(&mut self.outcome)
    }

    /// Takes a new pass over what is declared.
    pub fn set_outcome(&mut self, outcome: Arc<Outcome>) {
        self.users.clear();
        self.carried.clear();
        for (object, carried) in &outcome.plans.carried {
            for part in &carried.parts {
                self.users.entry(part.clone()).or_default().push(object.clone());
            }
            for role in &carried.roles {
                self.carried.entry(role.clone()).or_default().push(object.clone());
            }
        }
        // Most parts are one object's, and have room for four.
        self.users.values_mut().for_each(Vec::shrink_to_fit);
        self.dirty.extend(outcome.verdicts.keys().cloned());
        self.dirty.extend(self.statuses.keys().cloned());
        self.outcome = outcome;
    }

    /// Takes a new state of what runs.
    pub fn set_running(&mut self, running: Arc<Running>) {
        let before = std::mem::replace(&mut self.running, running);
        let of = |running: &Running| {
            let roles = running.instances.keys().chain(running.unmade.keys());
            roles.cloned().collect::<Vec<_>>()
        };
        let roles: BTreeSet<_> = of(&before).into_iter().chain(of(&self.running)).collect();
        for role in roles {
            if before.instances.get(&role) != self.running.instances.get(&role)
                || before.unmade.get(&role) != self.running.unmade.get(&role)
            {
                self.mark_role(&role);
            }
        }
        let wanted: BTreeSet<_> = self
            .running
            .instances
            .values()
            .flatten()
            .map(|instance| instance.identity.clone())
            .collect();
        for object in self.sessions.retain(&wanted) {
            self.dirty.insert(object);
        }
    }

    /// Takes what happened in a session.
    pub fn observe(&mut self, observed: Observed, now: Timestamp) {
        let role = RoleName::of(&observed.role);
        for change in self.sessions.observe(observed, now) {
            match change {
                Change::Object(object) => drop(self.dirty.insert(object)),
                Change::Resource(key) => {
                    let users = self.users.get(&(role.clone(), key));
                    self.dirty.extend(users.into_iter().flatten().cloned());
                }
                Change::Role => self.mark_role(&role),
                // A connector is as healthy as its devices.
                Change::Devices => {
                    let connector = ObjectKey::new(Kind::Connector, &role.namespace, &role.name);
                    self.dirty.insert(connector);
                }
            }
        }
    }

    /// When something changes by the mere passing of time.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        self.sessions.next_stale()
    }

    /// Computes what may have changed, and gives back what did; `None` for an object that is gone.
    pub fn refresh(&mut self, now: Timestamp) -> Vec<(ObjectKey, Option<Arc<ObjectStatus>>)> {
        for role in self.sessions.turn_stale(now) {
            self.mark_role(&role);
        }
        let mut changed = Vec::new();
        let mut texts = HashSet::new();
        for object in std::mem::take(&mut self.dirty) {
            // Core kinds have no conditions of ours, but for what is wrong with them.
            let verdict = self.outcome.verdicts.get(&object);
            let Some(verdict) =
                verdict.filter(|verdict| object.kind.is_ours() || !verdict.problems.is_empty())
            else {
                if self.statuses.remove(&object).is_some() {
                    changed.push((object, None));
                }
                continue;
            };
            let before = self.statuses.get(&object);
            let conditions = match before {
                Some(before) => before.conditions.clone(),
                None => self.present.get(&object).cloned().unwrap_or_default(),
            };
            let mut status = conditions::status(self, &object, verdict, conditions, now);
            share_texts(&mut status, &mut texts);
            self.present.remove(&object);
            if before.is_none_or(|before| **before != status) {
                let status = Arc::new(status);
                self.statuses.insert(object.clone(), Arc::clone(&status));
                changed.push((object, Some(status)));
            }
        }
        changed
    }

    /// Which instance of its connector has a device, or is about to.
    fn instance_of(&self, device: &ObjectKey) -> Option<&RoleIdentity> {
        if device.kind != Kind::Device {
            return None;
        }
        let carried = self.outcome.plans.carried.get(device)?;
        let role = carried.roles.first()?;
        let key = ResourceKey::new(device.kind.as_str(), &*device.namespace, &*device.name);
        Some(self.placed.place(role, &key)?.owner())
    }

    /// Takes where the devices of a connector are, and what each of its instances shall have.
    pub(crate) fn set_placed(
        &mut self,
        role: &RoleName,
        shards: Option<&Shards>,
        planned: &BTreeMap<RoleIdentity, BTreeMap<ResourceKey, Resource>>,
    ) {
        let units = self.outcome.plans.units.get(role);
        let devices = units.into_iter().flat_map(BTreeMap::keys);
        let instances = self.running.instances.get(role).into_iter().flatten();
        let identities = instances.map(|instance| &instance.identity);
        if self.placed.set(role, devices, identities, shards, planned) {
            self.mark_role(role);
        }
    }

    fn mark_role(&mut self, role: &RoleName) {
        let counting = self.carried.get(role).into_iter().flatten().cloned();
        self.dirty.extend(counting);
    }
}

/// Lets objects of which the same is said share the text: a connector that does not run concerns thousands.
fn share_texts(status: &mut ObjectStatus, texts: &mut HashSet<Arc<str>>) {
    let messages = status
        .conditions
        .iter_mut()
        .map(|condition| &mut condition.message);
    for text in messages.chain(status.evidence.as_mut()) {
        match texts.get(text) {
            Some(shared) => *text = Arc::clone(shared),
            None => drop(texts.insert(Arc::clone(text))),
        }
    }
}

#[cfg(test)]
mod tests;
