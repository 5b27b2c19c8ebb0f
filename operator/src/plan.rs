//! What each role is told, and which object each piece of it came from.

use std::collections::{BTreeMap, BTreeSet};

use foreshore_control::{
    PlanResource, Resource, ResourceKey,
    plan::{SecretPlan, SecretValue},
};
use foreshore_crds::conditions::reasons;

use crate::{
    facts::Facts,
    object::ObjectKey,
    problem::Problem,
    resources::{Name, Valid},
    role::RoleName,
};

/// What all roles are told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plans {
    /// By role: its whole plan.
    pub roles: Resources,
    /// By object: what became of it.
    pub carried: BTreeMap<ObjectKey, Carried>,
    /// Of roles whose instances share their work: the resources of each unit of it, by the Device that it is about. What is
    /// in no unit every instance is told.
    pub units: BTreeMap<RoleName, Units>,
    /// Roles whose plan lacks something that is about to be known.
    pub waiting: BTreeSet<RoleName>,
}

/// Whole plans, by role.
pub type Resources = BTreeMap<RoleName, BTreeMap<ResourceKey, Resource>>;

/// Resources of units of work, by the Device that each is about.
pub type Units = BTreeMap<ResourceKey, BTreeSet<ResourceKey>>;

/// What became of an object in the plans.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Carried {
    /// Resources that must be in force before the object is: its own, and the Secrets that it needs.
    pub parts: Vec<(RoleName, ResourceKey)>,
    /// Roles that have to run.
    pub roles: Vec<RoleName>,
    /// Why a part of it is not in a plan yet, or will not be.
    pub notes: Vec<Note>,
}

/// Why something is not in a plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// It waits for something that is about to happen.
    Waits(String),
    /// It is switched off.
    Disabled(String),
    /// It can't be sent.
    Fault(Problem),
}

/// Makes plans.
pub(crate) struct Planner<'a> {
    pub(crate) valid: &'a Valid,
    pub(crate) facts: &'a Facts,
    plans: Plans,
    /// What was planned before: those that are the same are used again, since others hold on to them.
    before: Resources,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(valid: &'a Valid, facts: &'a Facts, before: Resources) -> Self {
        Self {
            valid,
            facts,
            plans: Plans::default(),
            before,
        }
    }

    pub(crate) fn finish(mut self) -> Plans {
        // Each has one or two, and room for four.
        for carried in self.plans.carried.values_mut() {
            carried.parts.shrink_to_fit();
            carried.roles.shrink_to_fit();
        }
        self.plans
    }

    /// Makes sure that a role has a plan, and that an object counts on it.
    pub(crate) fn role(&mut self, role: &RoleName, object: &ObjectKey) {
        self.plans.roles.entry(role.clone()).or_default();
        let roles = &mut self.carried(object).roles;
        if !roles.contains(role) {
            roles.push(role.clone());
        }
    }

    /// Adds a resource to the plan of a role.
    pub(crate) fn add<T: PlanResource>(&mut self, role: &RoleName, object: &ObjectKey, resource: &T) {
        self.role(role, object);
        match Resource::of(resource) {
            Ok(resource) => {
                let key = self.insert(role, resource);
                self.part(role, object, key);
            }
            Err(error) => {
                let problem = Problem::new(reasons::TOO_LARGE, error.to_string()).of(object.clone());
                self.note(object, Note::Fault(problem));
            }
        }
    }

    /// Adds a resource that no object waits for to be in force.
    pub(crate) fn inform<T: PlanResource>(&mut self, role: &RoleName, object: &ObjectKey, resource: &T) {
        match Resource::of(resource) {
            Ok(resource) => drop(self.insert(role, resource)),
            Err(error) => {
                let problem = Problem::new(reasons::TOO_LARGE, error.to_string()).of(object.clone());
                self.note(object, Note::Fault(problem));
            }
        }
    }

    /// Adds a resource, or the same one of before, to the plan of a role.
    fn insert(&mut self, role: &RoleName, resource: Resource) -> ResourceKey {
        let before = self
            .before
            .get_mut(role)
            .and_then(|plan| plan.remove(resource.key()));
        let resource = before.filter(|before| *before == resource).unwrap_or(resource);
        let key = resource.key().clone();
        let plan = self.plans.roles.entry(role.clone()).or_default();
        plan.insert(key.clone(), resource);
        key
    }

    /// Adds Secrets to the plan of a role: those that it needs, and no others.
    pub(crate) fn secrets(&mut self, role: &RoleName, object: &ObjectKey, names: &[Name]) {
        for name in names {
            let key = ResourceKey::new(SecretPlan::KIND, &name.namespace, &name.name);
            if self
                .plans
                .roles
                .get(role)
                .is_some_and(|plan| plan.contains_key(&key))
            {
                self.part(role, object, key);
            } else if let Some(secret) = self.valid.secrets.get(name) {
                let data = secret.data.clone();
                self.secret(role, object, name, data);
            }
        }
    }

    /// Adds a Secret that was made here.
    pub(crate) fn secret(
        &mut self,
        role: &RoleName,
        object: &ObjectKey,
        name: &Name,
        data: BTreeMap<String, SecretValue>,
    ) {
        let Name { namespace, name } = name.clone();
        self.add(
            role,
            object,
            &SecretPlan {
                namespace,
                name,
                data,
            },
        );
    }

    /// Whether an object has a resource in the plan of a role.
    pub(crate) fn has<T: PlanResource>(&self, role: &RoleName, name: &Name) -> bool {
        let key = ResourceKey::new(T::KIND, &name.namespace, &name.name);
        self.plans
            .roles
            .get(role)
            .is_some_and(|plan| plan.contains_key(&key))
    }

    /// Counts everything that an object needs of a role to a device: it goes to the instance that has the device.
    pub(crate) fn unit(&mut self, role: &RoleName, device: &ResourceKey, object: &ObjectKey) {
        let parts = self.plans.carried.get(object).into_iter();
        let parts = parts.flat_map(|carried| &carried.parts);
        let parts = parts.filter(|(of, _)| of == role).map(|(_, key)| key.clone());
        let units = self.plans.units.entry(role.clone()).or_default();
        units.entry(device.clone()).or_default().extend(parts);
    }

    /// Notes that a role can't be told everything about an object yet.
    pub(crate) fn waits(&mut self, role: &RoleName, object: &ObjectKey, message: impl Into<String>) {
        self.plans.waiting.insert(role.clone());
        self.note(object, Note::Waits(message.into()));
    }

    /// Notes that an object is switched off.
    pub(crate) fn disabled(&mut self, object: &ObjectKey, message: impl Into<String>) {
        self.note(object, Note::Disabled(message.into()));
    }

    fn note(&mut self, object: &ObjectKey, note: Note) {
        let notes = &mut self.carried(object).notes;
        if !notes.contains(&note) {
            notes.push(note);
        }
    }

    fn part(&mut self, role: &RoleName, object: &ObjectKey, key: ResourceKey) {
        let part = (role.clone(), key);
        let parts = &mut self.carried(object).parts;
        if !parts.contains(&part) {
            parts.push(part);
        }
    }

    fn carried(&mut self, object: &ObjectKey) -> &mut Carried {
        self.plans.carried.entry(object.clone()).or_default()
    }
}
