//! All statuses as one value: what `foreshore status` prints.
//!
//! The JSON form is stable: members are added, never renamed or removed. `objects[]` has one element for each declared
//! object of ours, in the order of namespace, kind and name; `problems[]` everything that is wrong with manifests, with
//! `file`, `line`, `column`, `object`, `field`, `found`, `allowed`, `nearest`, `reason` and `message`; `roles[]` one
//! element for each instance of a role; `paths[]` the names that the ledger has to show.

mod text;

use std::collections::BTreeMap;

use foreshore_control::{PlanResource, Report, plan::PathPlan};
use foreshore_crds::conditions::{Condition, find, status as truth, types};
use jiff::Timestamp;
use serde::Serialize;

use super::{Index, ObjectStatus, index::Part, remedy};
use crate::{
    object::{Kind, ObjectKey},
    problem::Problem,
    role::RoleName,
    workloads::{Instance, InstanceState},
};

/// How everything stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusTable {
    /// When it was so.
    pub time: Timestamp,
    /// Counts.
    pub summary: Summary,
    /// Declared objects.
    pub objects: Vec<ObjectRow>,
    /// What is wrong with manifests.
    pub problems: Vec<Problem>,
    /// Instances of roles.
    pub roles: Vec<RoleRow>,
    /// Names of all paths from a source to a sink, as in the ledger.
    pub paths: Vec<String>,
}

/// Counts of a [`StatusTable`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Objects of ours.
    pub objects: usize,
    /// Those that are ready.
    pub ready: usize,
    /// Those that are healthy.
    pub healthy: usize,
    /// Those that are known not to be healthy.
    pub unhealthy: usize,
    /// Those that only their author can mend.
    pub stalled: usize,
    /// Things that are wrong with manifests.
    pub problems: usize,
}

/// How one object stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRow {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Identity of this object, other than that of an earlier one of the same name.
    pub uid: String,
    /// When it was first seen.
    pub created: Timestamp,
    /// Version of its spec that is declared.
    pub generation: i64,
    /// Version of its spec that shall run; left out when none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_generation: Option<i64>,
    /// Whether the desired state is in force: `True` or `False`.
    pub ready: String,
    /// Whether it works: `True`, `False` or `Unknown`; left out for kinds that run nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<String>,
    /// Why it is not ready, or not healthy, or that it is.
    pub reason: String,
    /// The same for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What was seen, word for word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<&'static str>,
    /// Where it is declared, `file:line`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Of a Device: the instance of its connector that serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// All conditions.
    pub conditions: Vec<Condition>,
    /// Its parts, as roles report them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartRow>,
}

/// How a part of an object stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PartRow {
    /// Kind of part, such as `Endpoint` or `Dataset`.
    pub kind: String,
    /// Name of the part; left out where there is but one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `Available`, `Degraded`, `Unavailable` or `Unknown`.
    pub health: String,
    /// Why.
    pub reason: String,
    /// The same for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What was seen, word for word.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub evidence: String,
    /// Since when.
    pub since: Timestamp,
    /// Numbers that only grow.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
    /// How fast they grow, in a second.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rates: BTreeMap<String, f64>,
}

/// How an instance of a role stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleRow {
    /// Which role, such as `connector/bottling/opcua`.
    pub role: RoleName,
    /// Which of its instances.
    pub instance: String,
    /// `Running` or `Failing`.
    pub state: &'static str,
    /// Since when.
    pub since: Timestamp,
    /// How often it ended by itself.
    pub restarts: u64,
    /// What it said when it ended the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether it has a session with the operator.
    pub connected: bool,
    /// Name and version of its program.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub software: String,
    /// Where it answers, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses: BTreeMap<String, Vec<String>>,
}

impl StatusTable {
    /// Puts together what an index knows.
    #[must_use]
    pub fn of(index: &Index, now: Timestamp) -> Self {
        let mut objects: Vec<_> = index
            .statuses()
            .values()
            .filter(|status| status.key.kind.is_ours())
            .map(|status| ObjectRow::of(status, index.parts(&status.key), now))
            .collect();
        objects.sort_by(|a, b| (&a.namespace, a.kind, &a.name).cmp(&(&b.namespace, b.kind, &b.name)));
        let outcome = index.outcome();
        let problems: Vec<_> = outcome.all_problems().cloned().collect();
        let running = index.running();
        let roles = running.instances.iter().flat_map(|(role, instances)| {
            instances
                .iter()
                .map(|instance| RoleRow::of(role, instance, index))
        });
        let roles = roles.collect();
        let paths = paths(index);
        let is = |row: &ObjectRow, type_: &str| {
            find(&row.conditions, type_).is_some_and(|condition| condition.status == truth::TRUE)
        };
        let count = |fits: &dyn Fn(&ObjectRow) -> bool| objects.iter().filter(|row| fits(row)).count();
        let summary = Summary {
            objects: objects.len(),
            ready: count(&|row| row.ready == truth::TRUE),
            healthy: count(&|row| row.healthy.as_deref() == Some(truth::TRUE)),
            unhealthy: count(&|row| row.healthy.as_deref() == Some(truth::FALSE)),
            stalled: count(&|row| is(row, types::STALLED)),
            problems: problems.len(),
        };
        Self {
            time: now,
            summary,
            objects,
            problems,
            roles,
            paths,
        }
    }

    /// The row of an object.
    #[must_use]
    pub fn object(&self, key: &ObjectKey) -> Option<&ObjectRow> {
        self.objects
            .iter()
            .find(|row| row.kind == key.kind && row.namespace == key.namespace && row.name == key.name)
    }
}

impl ObjectRow {
    fn of<'a>(status: &ObjectStatus, parts: impl Iterator<Item = &'a Part>, now: Timestamp) -> Self {
        let ObjectStatus {
            key,
            declared,
            running,
            place,
            conditions,
            evidence,
            // They are the definitions' columns; the parts here say more.
            details: _,
            instance,
        } = status;
        let ready = find(conditions, types::READY);
        let healthy = find(conditions, types::HEALTHY);
        // Of a ready object it is told how it feels, of another one why it is not ready.
        let telling = ready
            .filter(|ready| ready.status != truth::TRUE)
            .or(healthy)
            .or(ready);
        let reason = telling
            .map(|condition| condition.reason.to_string())
            .unwrap_or_default();
        let well = [ready, healthy]
            .into_iter()
            .flatten()
            .all(|condition| condition.status == truth::TRUE);
        let next = remedy::explain(&reason)
            .map(|remedy| remedy.next)
            .filter(|next| !well && !next.is_empty());
        Self {
            kind: key.kind,
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: declared.uid.clone(),
            created: declared.created,
            generation: declared.generation,
            running_generation: *running,
            ready: ready
                .map(|condition| condition.status.to_string())
                .unwrap_or_default(),
            healthy: healthy.map(|condition| condition.status.to_string()),
            reason,
            message: telling
                .map(|condition| condition.message.to_string())
                .unwrap_or_default(),
            evidence: evidence.as_deref().map(str::to_owned),
            next,
            place: place.clone(),
            instance: instance.clone(),
            conditions: conditions.clone(),
            parts: parts.map(|part| PartRow::of(part, now)).collect(),
        }
    }
}

impl PartRow {
    fn of(part: &Part, now: Timestamp) -> Self {
        let Report {
            aspect,
            health,
            reason,
            message,
            evidence,
            counters,
            since,
            ..
        } = &part.report;
        Self {
            kind: aspect.kind.as_str().to_owned(),
            name: aspect.name.clone(),
            health: format!("{health:?}"),
            reason: reason.to_string(),
            message: message.clone(),
            evidence: evidence.clone(),
            since: *since,
            counters: counters.clone(),
            rates: part.rates(now),
        }
    }
}

impl RoleRow {
    fn of(role: &RoleName, instance: &Instance, index: &Index) -> Self {
        let session = index.session(&instance.identity);
        let (state, since, error) = match &instance.state {
            InstanceState::Running { since } => ("Running", *since, None),
            InstanceState::Failing { since, error, .. } => ("Failing", *since, Some(error.clone())),
        };
        Self {
            role: role.clone(),
            instance: instance.identity.uid().to_owned(),
            state,
            since,
            restarts: instance.restarts,
            error,
            connected: session.is_some_and(|session| session.connected.is_some()),
            software: session
                .map(|session| session.software.clone())
                .unwrap_or_default(),
            addresses: session
                .map(|session| session.facts.addresses.clone())
                .unwrap_or_default(),
        }
    }
}

/// Every path from a source to a sink that plans make.
fn paths(index: &Index) -> Vec<String> {
    let outcome = index.outcome();
    let keys = outcome.plans.roles.values().flat_map(|plan| plan.keys());
    let queues = keys
        .filter(|key| key.kind == PathPlan::KIND)
        .map(|key| key.name.clone());
    let mut paths: Vec<_> = queues.chain(outcome.device_paths.iter().cloned()).collect();
    paths.sort();
    paths.dedup();
    paths
}
