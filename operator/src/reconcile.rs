//! One pass from what is declared to what shall run: judge, dereference, validate, plan.
//!
//! Pure but for a memory of what was judged and what was accepted. For each object the newest version that is right
//! and fits runs: the declared one, or else the last that was accepted. So a wrong edit stops nothing; what an object
//! refers to may still go, and then neither version fits.

use std::collections::{BTreeMap, BTreeSet};

use foreshore_crds::conditions::reasons;
use jiff::Timestamp;

use crate::{
    accepted::{Accepted, AcceptedVersion},
    details::{self, Details},
    facts::Facts,
    judged::{self, Object},
    object::{Kind, Meta, ObjectKey},
    packed::Packed,
    plan::{Planner, Plans, Resources},
    platform::Platform,
    problem::Problem,
    resources::{Faults, Scope, Valid, Version, dataflow, device::ValidDevice},
    role::RoleName,
    source::{Snapshot, Sourced},
    workloads::{self, Workload},
};

/// What a pass gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Every object that is declared.
    pub verdicts: BTreeMap<ObjectKey, Verdict>,
    /// What is wrong with files, and belongs to no object or not only to one.
    pub problems: Vec<Problem>,
    /// What each role is told.
    pub plans: Plans,
    /// What shall run.
    pub workloads: BTreeMap<RoleName, Workload>,
    /// Names in the ledger of the paths from devices to brokers.
    pub device_paths: Vec<String>,
    /// What statuses tell beside conditions, by object.
    pub details: BTreeMap<ObjectKey, Details>,
}

impl Outcome {
    /// Everything that is wrong, of files and of objects.
    pub fn all_problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems
            .iter()
            .chain(self.verdicts.values().flat_map(|verdict| &verdict.problems))
    }
}

/// What a pass found about one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The version that is declared.
    pub declared: Meta,
    /// The version that shall run: the declared one, an earlier one that was accepted, or none.
    pub running: Option<Meta>,
    /// Where it is declared, `file:line`.
    pub place: Option<String>,
    /// What is wrong with the declared version, with places; empty when it shall run.
    pub problems: Vec<Problem>,
}

/// Takes passes, and remembers what is needed for the next one.
pub struct Reconciler {
    platform: Platform,
    accepted: Accepted,
    /// Judging takes longest, so each version is judged once: the declared one and the accepted one.
    judged: BTreeMap<ObjectKey, Vec<Judged>>,
    /// What the pass before planned.
    planned: Resources,
}

/// A version that was judged.
struct Judged {
    manifest: Packed,
    result: Result<Object, Vec<Problem>>,
}

/// The versions of an object that could run.
struct Candidates<'a> {
    key: &'a ObjectKey,
    sourced: &'a Sourced,
    declared: Result<Object, Vec<Problem>>,
    /// The last accepted version, where it differs from the declared one.
    earlier: Option<(Meta, Object)>,
}

impl Reconciler {
    /// Begins with what was accepted earlier.
    pub(crate) fn new(platform: Platform, accepted: Accepted) -> Self {
        Self {
            platform,
            accepted,
            judged: BTreeMap::new(),
            planned: Resources::new(),
        }
    }

    /// Takes back what the pass before planned: with ten thousand objects there is no room for two outcomes.
    pub(crate) fn take_back(&mut self, planned: Resources) {
        self.planned = planned;
    }

    /// What was accepted, to be kept.
    pub(crate) fn accepted(&mut self) -> &mut Accepted {
        &mut self.accepted
    }

    /// Takes a pass. Versions that shall run count as accepted from now on.
    pub fn reconcile(&mut self, snapshot: &Snapshot, facts: &Facts) -> Outcome {
        self.judged.retain(|key, _| snapshot.objects.contains_key(key));
        self.accepted.retain(|key| snapshot.objects.contains_key(key));
        let declared: BTreeSet<ObjectKey> = snapshot.objects.keys().cloned().collect();
        let platform = self.platform.clone();
        let mut scope = Scope::new(&platform, &declared);
        scope
            .valid
            .service_accounts
            .clone_from(&snapshot.service_accounts);
        let mut verdicts = BTreeMap::new();
        let mut queues = Vec::new();
        for kind in Kind::ALL {
            for candidates in self.candidates(kind, snapshot) {
                let verdict = choose(&candidates, &mut scope);
                if verdict.problems.is_empty()
                    && let Some(manifest) = &candidates.sourced.manifest
                {
                    let version = AcceptedVersion {
                        meta: verdict.declared.clone(),
                        manifest: manifest.clone(),
                    };
                    self.accepted.accept(candidates.key, version);
                }
                if verdict.running.is_none() {
                    queues.extend(queues_to_keep(&candidates, &scope));
                }
                verdicts.insert(candidates.key.clone(), verdict);
            }
        }
        let run_on = verdicts.iter().filter(|(_, verdict)| {
            let declared = &verdict.declared;
            verdict
                .running
                .as_ref()
                .is_some_and(|running| running != declared)
        });
        self.accepted.run_on(run_on.map(|(key, _)| key));
        let valid = scope.valid;
        Outcome {
            verdicts,
            problems: snapshot.problems.clone(),
            plans: plan(&valid, &queues, facts, std::mem::take(&mut self.planned)),
            workloads: workloads::desired(&valid),
            device_paths: device_paths(&valid),
            details: details::of(&valid),
        }
    }

    /// The objects of a kind. Those that did not change come first: they were there before others took their port.
    fn candidates<'a>(&mut self, kind: Kind, snapshot: &'a Snapshot) -> Vec<Candidates<'a>> {
        let first = ObjectKey::new(kind, "", "");
        let of_kind = snapshot
            .objects
            .range(first..)
            .take_while(|(key, _)| key.kind == kind);
        let mut candidates: Vec<_> = of_kind
            .map(|(key, sourced)| self.candidate(key, sourced))
            .collect();
        candidates.sort_by_key(|one| (one.earlier.is_some(), order(one.sourced)));
        candidates
    }

    fn candidate<'a>(&mut self, key: &'a ObjectKey, sourced: &'a Sourced) -> Candidates<'a> {
        let accepted = self.accepted.get(key).cloned();
        let mut versions = Vec::with_capacity(2);
        let declared = match &sourced.manifest {
            Some(manifest) => {
                let earlier = accepted.as_ref().map(|accepted| &accepted.manifest);
                let judged = self.judge(key, manifest, earlier);
                let result = judged.result.clone();
                versions.push(judged);
                result
            }
            None => Err(vec![unreadable()]),
        };
        let differs = |accepted: &AcceptedVersion| {
            accepted.meta != sourced.meta || sourced.manifest.as_ref() != Some(&accepted.manifest)
        };
        let earlier = accepted.filter(differs);
        let earlier = earlier.and_then(|AcceptedVersion { meta, manifest }| {
            let judged = self.judge(key, &manifest, None);
            let object = judged.result.clone().ok();
            versions.push(judged);
            Some((meta, object?))
        });
        self.judged.insert(key.clone(), versions);
        Candidates {
            key,
            sourced,
            declared,
            earlier,
        }
    }

    /// Judges a manifest, or remembers how it was judged.
    fn judge(&self, key: &ObjectKey, manifest: &Packed, earlier: Option<&Packed>) -> Judged {
        let mut known = self.judged.get(key).into_iter().flatten();
        let result = match known.find(|known| known.manifest == *manifest) {
            Some(known) => known.result.clone(),
            None => judged::judge(key, &manifest.value(), earlier.map(Packed::value).as_ref()),
        };
        Judged {
            manifest: manifest.clone(),
            result,
        }
    }
}

fn order(sourced: &Sourced) -> Timestamp {
    sourced.meta.created
}

/// What is wrong with an object whose file can't be read now.
fn unreadable() -> Problem {
    Problem::new(
        reasons::INVALID,
        "its manifest can't be read now, or it is declared more than once",
    )
}

/// Takes in the newest version that is right and fits.
fn choose(candidates: &Candidates<'_>, scope: &mut Scope<'_>) -> Verdict {
    let Candidates {
        key,
        sourced,
        declared,
        earlier,
    } = candidates;
    let result = match declared {
        Ok(object) => scope.admit(key, &sourced.meta, object),
        Err(problems) => Err(problems.clone()),
    };
    let (running, problems) = match result {
        Ok(()) => (Some(sourced.meta.clone()), Vec::new()),
        Err(problems) => {
            let runs_on = earlier
                .as_ref()
                .filter(|(meta, object)| scope.admit(key, meta, object).is_ok());
            let placed = problems
                .into_iter()
                .map(|problem| sourced.locate(problem.of((*key).clone())));
            (runs_on.map(|(meta, _)| meta.clone()), placed.collect())
        }
    };
    Verdict {
        declared: sourced.meta.clone(),
        running,
        place: sourced.origin.as_ref().map(ToString::to_string),
        problems,
    }
}

/// The queues of a Dataflow that can't run: what waits in them is not given up for a missing endpoint.
fn queues_to_keep(candidates: &Candidates<'_>, scope: &Scope<'_>) -> Option<dataflow::Queues> {
    let Candidates {
        key,
        sourced,
        declared,
        earlier,
    } = candidates;
    let (meta, object) = match (earlier, declared) {
        (Some((meta, object)), _) => (meta, object),
        (None, Ok(object)) => (&sourced.meta, object),
        (None, Err(_)) => return None,
    };
    let Object::Dataflow(spec) = object else {
        return None;
    };
    dataflow::queues(&Version::new(key, meta, spec), scope, &mut Faults::default())
}

/// As connectors name them: `connector/{namespace}/{device}->broker/{namespace}/{broker}`.
fn device_paths(valid: &Valid) -> Vec<String> {
    let path = |device: &ValidDevice| {
        let broker = &valid.connectors.get(&device.connector)?.broker;
        Some(format!("connector/{}->broker/{broker}", device.version.name))
    };
    valid
        .devices
        .values()
        .filter(|device| device.version.spec.effective_enabled())
        .filter_map(path)
        .collect()
}

fn plan(valid: &Valid, queues: &[dataflow::Queues], facts: &Facts, before: Resources) -> Plans {
    let mut planner = Planner::new(valid, facts, before);
    let Valid {
        config_maps: _,
        // Secrets go with what refers to them.
        secrets: _,
        // It goes with the brokers that take its tokens.
        service_accounts: _,
        brokers,
        policies,
        connectors,
        simulators,
        clouds,
        // Endpoints go with the dataflows that use them.
        endpoints: _,
        devices,
        assets,
        dataflows,
    } = valid;
    brokers.values().for_each(|broker| broker.plan(&mut planner));
    policies.values().for_each(|policy| policy.plan(&mut planner));
    connectors
        .values()
        .for_each(|connector| connector.plan(&mut planner));
    simulators
        .values()
        .for_each(|simulator| simulator.plan(&mut planner));
    clouds.values().for_each(|cloud| cloud.plan(&mut planner));
    devices.values().for_each(|device| device.plan(&mut planner));
    assets.values().for_each(|asset| asset.plan(&mut planner));
    dataflows
        .values()
        .for_each(|dataflow| dataflow.plan(&mut planner));
    queues.iter().for_each(|queues| queues.plan(&mut planner));
    planner.finish()
}

#[cfg(test)]
pub(crate) mod tests;
