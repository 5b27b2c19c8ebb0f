//! The conditions of one object.

use std::{collections::BTreeSet, sync::Arc};

use foreshore_control::{Health, PlanResource, Resource, ResourceKey, plan::DevicePlan};
use foreshore_crds::conditions::{self, Condition, Verdict as Finding, reasons, status as truth, types};
use foreshore_tls::Fingerprint;
use jiff::Timestamp;

use super::{
    Index, ObjectStatus,
    sessions::{Part, Refusal, severity, worst},
};
use crate::{
    object::{Kind, ObjectKey},
    plan::{Carried, Note},
    problem::Problem,
    reconcile::Verdict,
    role::RoleName,
    status::remedy,
    workloads::{Instance, InstanceState},
};

/// Most problems that a condition tells in full: its message has an end (32,768 characters).
const MOST_PROBLEMS: usize = 10;

/// Whether a kind names other objects or Secrets.
const fn has_references(kind: Kind) -> bool {
    !matches!(kind, Kind::ConfigMap | Kind::Secret)
}

/// Whether a kind runs something that can be healthy.
const fn has_health(kind: Kind) -> bool {
    !matches!(kind, Kind::ConfigMap | Kind::Secret | Kind::BrokerPolicy)
}

/// Why an object is not as desired.
struct Obstacle {
    reason: &'static str,
    message: Arc<str>,
    /// Whether it passes without a change: otherwise it is stalled.
    passes: bool,
    evidence: Option<Arc<str>>,
}

impl Obstacle {
    fn waits(reason: &'static str, message: impl Into<Arc<str>>) -> Self {
        Self {
            reason,
            message: message.into(),
            passes: true,
            evidence: None,
        }
    }

    fn stalls(reason: &'static str, message: impl Into<Arc<str>>) -> Self {
        Self {
            reason,
            message: message.into(),
            passes: false,
            evidence: None,
        }
    }

    fn evidence(mut self, evidence: impl Into<Arc<str>>) -> Self {
        self.evidence = Some(evidence.into());
        self
    }
}

/// Computes the status of an object; conditions that did not flip keep their time.
pub(super) fn status(
    index: &Index,
    key: &ObjectKey,
    verdict: &Verdict,
    conditions: Vec<Condition>,
    now: Timestamp,
) -> ObjectStatus {
    let mut status = ObjectStatus {
        key: key.clone(),
        declared: verdict.declared.clone(),
        running: verdict.running.as_ref().map(|meta| meta.generation),
        place: verdict.place.clone(),
        conditions,
        evidence: None,
        details: index.outcome.details.get(key).cloned().unwrap_or_default(),
        instance: index.instance_of(key).map(|instance| instance.uid().to_owned()),
    };
    let empty = Carried::default();
    let carried = index.outcome.plans.carried.get(key).unwrap_or(&empty);
    let refusal = refusal(index, carried);
    let obstacle = obstacle(index, key, verdict, carried, refusal.as_ref());
    let mut set = |finding: Option<Finding>, type_: &str| match finding {
        Some(finding) => drop(conditions::set(
            &mut status.conditions,
            finding,
            Some(verdict.declared.generation),
            now,
        )),
        None => drop(conditions::remove(&mut status.conditions, type_)),
    };
    set(Some(accepted(verdict, refusal.as_ref())), types::ACCEPTED);
    set(
        has_references(key.kind).then(|| resolved_refs(verdict)),
        types::RESOLVED_REFS,
    );
    set(Some(ready(carried, obstacle.as_ref())), types::READY);
    let finding = |type_, obstacle: &Obstacle| Finding {
        type_,
        status: truth::TRUE,
        reason: obstacle.reason,
        message: Arc::clone(&obstacle.message),
    };
    let passes = obstacle.as_ref().filter(|obstacle| obstacle.passes);
    set(
        passes.map(|obstacle| finding(types::RECONCILING, obstacle)),
        types::RECONCILING,
    );
    let stalls = obstacle.as_ref().filter(|obstacle| !obstacle.passes);
    set(
        stalls.map(|obstacle| finding(types::STALLED, obstacle)),
        types::STALLED,
    );
    let health = has_health(key.kind).then(|| healthy(index, key, carried));
    let (health, seen) = health.unzip();
    set(health, types::HEALTHY);
    // Kept for as long as the object is there.
    status.conditions.shrink_to_fit();
    status.evidence = obstacle
        .and_then(|obstacle| obstacle.evidence)
        .or_else(|| seen.flatten());
    status
}

fn finding(
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: impl Into<Arc<str>>,
) -> Finding {
    Finding {
        type_,
        status,
        reason,
        message: message.into(),
    }
}

/// Reasons that `ResolvedRefs` carries.
fn is_reference(reason: &str) -> bool {
    [
        reasons::NOT_FOUND,
        reasons::SECRET_NOT_FOUND,
        reasons::SECRET_KEY_MISSING,
        reasons::SECRET_INVALID,
        reasons::PROTOCOL_MISMATCH,
        reasons::REF_NOT_ACCEPTED,
    ]
    .contains(&reason)
}

fn accepted(verdict: &Verdict, refusal: Option<&Obstacle>) -> Finding {
    let problem = verdict
        .problems
        .iter()
        .find(|problem| !is_reference(problem.reason));
    match (problem, refusal) {
        (Some(problem), _) => finding(types::ACCEPTED, truth::FALSE, problem.reason, problem.text()),
        (None, Some(refusal)) => finding(
            types::ACCEPTED,
            truth::FALSE,
            refusal.reason,
            Arc::clone(&refusal.message),
        ),
        (None, None) => finding(types::ACCEPTED, truth::TRUE, reasons::ACCEPTED, ""),
    }
}

fn resolved_refs(verdict: &Verdict) -> Finding {
    match verdict
        .problems
        .iter()
        .find(|problem| is_reference(problem.reason))
    {
        Some(problem) => finding(types::RESOLVED_REFS, truth::FALSE, problem.reason, problem.text()),
        None => finding(types::RESOLVED_REFS, truth::TRUE, reasons::RESOLVED, ""),
    }
}

fn ready(carried: &Carried, obstacle: Option<&Obstacle>) -> Finding {
    if let Some(obstacle) = obstacle {
        return finding(
            types::READY,
            truth::FALSE,
            obstacle.reason,
            Arc::clone(&obstacle.message),
        );
    }
    let disabled = carried.notes.iter().find_map(|note| match note {
        Note::Disabled(message) => Some(message),
        Note::Waits(_) | Note::Fault(_) => None,
    });
    match disabled {
        Some(message) => finding(types::READY, truth::TRUE, reasons::DISABLED, &**message),
        None => finding(types::READY, truth::TRUE, reasons::IN_FORCE, ""),
    }
}

/// The instances that shall have a resource, each with the version: where instances share the work, those that were
/// told so, or while nobody was, those that will hear of it.
fn concerned<'a>(
    index: &'a Index,
    role: &RoleName,
    key: &ResourceKey,
) -> Vec<(&'a Instance, Option<Fingerprint>)> {
    let plan = index.outcome.plans.roles.get(role);
    let whole = plan.and_then(|plan| plan.get(key)).map(Resource::hash);
    let instances = index.running.instances.get(role).into_iter().flatten();
    let (told, untold): (Vec<_>, Vec<_>) = instances
        .map(|instance| (instance, index.placed.of(role, &instance.identity, key)))
        .partition(|(_, told)| told.is_some());
    if told.is_empty() {
        return untold
            .into_iter()
            .map(|(instance, _)| (instance, whole))
            .collect();
    }
    let told = told
        .into_iter()
        .filter_map(|(instance, told)| Some((instance, told??)));
    // What was told is of the plan before, until the next instance is told.
    told.map(|(instance, told)| (instance, whole.or(Some(told))))
        .collect()
}

/// A device that is on its way between instances, of those that an object counts on.
fn moving(index: &Index, carried: &Carried) -> Option<Obstacle> {
    let devices = carried
        .parts
        .iter()
        .filter(|(_, key)| key.kind == DevicePlan::KIND);
    let mut of_device = devices.filter_map(|(role, key)| {
        let place = index.placed.place(role, key)?;
        place.is_moving().then_some((key, place))
    });
    let (device, place) = of_device.next()?;
    let message = format!("{device} is handed over: {place}");
    Some(Obstacle::waits(reasons::AWAITING_ROLE, message))
}

/// A connector is ready when each of its devices is at one instance.
fn moving_of_connector(index: &Index, key: &ObjectKey) -> Option<Obstacle> {
    if key.kind != Kind::Connector {
        return None;
    }
    let role = RoleName::new(foreshore_tls::Role::Connector, &key.namespace, &key.name);
    let (device, place) = index.placed.moving(&role).next()?;
    let message = format!("{device} is handed over: {place}");
    Some(Obstacle::waits(reasons::AWAITING_ROLE, message))
}

/// A refusal of the role, of the version that it shall have now.
fn refusal(index: &Index, carried: &Carried) -> Option<Obstacle> {
    for (role, key) in &carried.parts {
        for (instance, desired) in concerned(index, role, key) {
            let held = index.sessions.held(&instance.identity, key);
            let Some((hash, refusal)) = held.and_then(|held| held.refused.as_ref()) else {
                continue;
            };
            if desired.is_none_or(|desired| desired != *hash) || is_passing(refusal) {
                continue;
            }
            return Some(match refusal {
                Refusal::Nack(nack) => Obstacle::stalls(
                    reasons::REFUSED_BY_ROLE,
                    format!("{role} refused {key}: {}: {}", nack.reason, nack.message),
                ),
                Refusal::Unsupported(missing) => Obstacle::stalls(
                    reasons::UNSUPPORTED_BY_ROLE,
                    format!("{role} is too old for {key}: it lacks {}", missing.join(", ")),
                ),
            });
        }
    }
    None
}

/// Whether the role was hindered by its surroundings, and tries again by itself.
fn is_passing(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Nack(nack) if nack.is_passing())
}

/// What hinders a role at present from doing what it is told.
fn hindrance(index: &Index, carried: &Carried) -> Option<Obstacle> {
    for (role, key) in &carried.parts {
        for (instance, desired) in concerned(index, role, key) {
            let held = index.sessions.held(&instance.identity, key);
            if let Some((hash, Refusal::Nack(nack))) = held.and_then(|held| held.refused.as_ref())
                && nack.is_passing()
                && desired == Some(*hash)
            {
                let reason = remedy::explain(&nack.reason).map_or(reasons::FAILING, |remedy| remedy.reason);
                let message = format!("{role} tries {key} again and again: {}", nack.message);
                return Some(Obstacle::waits(reason, message).evidence(&*nack.message));
            }
        }
    }
    None
}

/// The first thing that keeps an object from being as desired: what only its author can mend comes first.
fn obstacle(
    index: &Index,
    key: &ObjectKey,
    verdict: &Verdict,
    carried: &Carried,
    refusal: Option<&Obstacle>,
) -> Option<Obstacle> {
    if let Some(problem) = verdict.problems.first() {
        let runs_on = match &verdict.running {
            Some(meta) => format!("; generation {} runs on", meta.generation),
            None => "; nothing of it runs".to_owned(),
        };
        let message = format!("{}{runs_on}", told(&verdict.problems));
        let obstacle = Obstacle::stalls(problem.reason, message);
        return Some(match problem.place() {
            Some(place) => obstacle.evidence(place),
            None => obstacle,
        });
    }
    let fault = carried.notes.iter().find_map(|note| match note {
        Note::Fault(problem) => Some(problem),
        Note::Waits(_) | Note::Disabled(_) => None,
    });
    if let Some(problem) = fault {
        return Some(Obstacle::stalls(problem.reason, problem.text()));
    }
    if let Some(Obstacle {
        reason,
        message,
        passes,
        evidence,
    }) = refusal
    {
        return Some(Obstacle {
            reason,
            message: Arc::clone(message),
            passes: *passes,
            evidence: evidence.clone(),
        });
    }
    let failing = carried.roles.iter().find_map(|role| role_obstacle(index, role));
    let waiting = || {
        carried.notes.iter().find_map(|note| match note {
            Note::Waits(message) => Some(Obstacle::waits(reasons::STARTING, &**message)),
            Note::Fault(_) | Note::Disabled(_) => None,
        })
    };
    failing
        .or_else(|| hindrance(index, carried))
        .or_else(waiting)
        .or_else(|| unacknowledged(index, carried))
        .or_else(|| moving(index, carried))
        .or_else(|| moving_of_connector(index, key))
}

/// Problems of one object, as a condition tells them: whoever corrects one wants to know of the others.
fn told(problems: &[Problem]) -> String {
    let texts: Vec<_> = problems.iter().take(MOST_PROBLEMS).map(Problem::text).collect();
    let more = match problems.len().saturating_sub(MOST_PROBLEMS) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!("{}{more}", texts.join("; "))
}

/// Whether a role runs at all.
fn role_obstacle(index: &Index, role: &RoleName) -> Option<Obstacle> {
    // A connector without replicas, and a runner whose dataflows are switched off, are not missed.
    if !index.outcome.workloads.contains_key(role) {
        return None;
    }
    let instances = index
        .running
        .instances
        .get(role)
        .map(Vec::as_slice)
        .unwrap_or_default();
    if let Some(why) = index.running.unmade.get(role) {
        return Some(Obstacle::waits(reasons::FAILING, &**why));
    }
    if instances.is_empty() {
        return Some(Obstacle::waits(reasons::STARTING, format!("{role} is starting")));
    }
    // How one stands that ends on purpose does not matter.
    let staying = instances.iter().filter(|instance| !instance.leaving);
    let mut staying = staying.map(|instance| (instance, &instance.state));
    staying.find_map(|(instance, state)| match state {
        InstanceState::Running { .. } => None,
        InstanceState::Failing {
            since,
            error,
            reason,
            next,
        } => {
            let message = match instance.restarts {
                0 => format!("{role} does not run since {since:.0}: {error}"),
                times => format!(
                    "{role} ended at {since:.0} ({times} times so far), and is started again at {next:.0}: {error}"
                ),
            };
            Some(Obstacle::waits(reason, message).evidence(&**error))
        }
    })
}

/// A part that a role has not acknowledged in the version that it shall have.
fn unacknowledged(index: &Index, carried: &Carried) -> Option<Obstacle> {
    for (role, key) in &carried.parts {
        if !index.outcome.workloads.contains_key(role) {
            continue;
        }
        let concerned = concerned(index, role, key);
        let instances = index.running.instances.get(role);
        if concerned.is_empty() && instances.is_some_and(|instances| !instances.is_empty()) {
            let message = format!("no instance of {role} has {key} yet");
            return Some(Obstacle::waits(reasons::AWAITING_ROLE, message));
        }
        for (instance, desired) in concerned {
            let held = index
                .sessions
                .held(&instance.identity, key)
                .and_then(|held| held.in_force);
            if held != desired {
                let connected = index
                    .sessions
                    .get(&instance.identity)
                    .is_some_and(|one| one.connected.is_some());
                let message = if connected {
                    format!("{role} has not acknowledged {key} yet")
                } else {
                    format!("{role} is not connected to the operator, and has not acknowledged {key} yet")
                };
                return Some(Obstacle::waits(reasons::AWAITING_ROLE, message));
            }
        }
    }
    None
}

/// Whether what an object stands for works, and what was seen.
fn healthy(index: &Index, key: &ObjectKey, carried: &Carried) -> (Finding, Option<Arc<str>>) {
    let unknown = |reason, message: String| (finding(types::HEALTHY, truth::UNKNOWN, reason, message), None);
    if let Some(Note::Disabled(message)) = carried
        .notes
        .iter()
        .find(|note| matches!(note, Note::Disabled(_)))
    {
        return unknown(reasons::DISABLED, message.clone());
    }
    let Some(worst) = worst(index.sessions.parts(key)) else {
        return match key.kind {
            Kind::Connector => (healthy_connector(index, key), None),
            _ => unknown(reasons::NOT_YET_KNOWN, String::new()),
        };
    };
    let stale = index.sessions.parts(key).find_map(|part| {
        let session = index.sessions.get(&part.role).filter(|session| session.stale)?;
        session
            .disconnected
            .as_ref()
            .map(|(since, why)| (&part.role, since, why))
    });
    if let Some((role, since, why)) = stale {
        let message = format!(
            "{} is without a session since {since:.0}: {why}",
            RoleName::of(role)
        );
        return unknown(reasons::STALE, message);
    }
    let evidence = Some(worst.report.evidence.as_str()).filter(|evidence| !evidence.is_empty());
    let some_work = index
        .sessions
        .parts(key)
        .any(|part| severity(part.report.health) == 0);
    let (status, otherwise) = match worst.report.health {
        Health::Available => return (finding(types::HEALTHY, truth::TRUE, reasons::HEALTHY, ""), None),
        Health::Unknown => (truth::UNKNOWN, reasons::NOT_YET_KNOWN),
        Health::Degraded => (truth::FALSE, reasons::DEGRADED),
        Health::Unavailable if some_work => (truth::FALSE, reasons::DEGRADED),
        Health::Unavailable => (truth::FALSE, reasons::UNREACHABLE),
    };
    let reason = known_reason(&worst.report.reason).unwrap_or(otherwise);
    (
        finding(types::HEALTHY, status, reason, describe(index, key, worst)),
        evidence.map(Arc::from),
    )
}

/// A connector reports its devices, not itself.
fn healthy_connector(index: &Index, key: &ObjectKey) -> Finding {
    let role = RoleName::new(foreshore_tls::Role::Connector, &key.namespace, &key.name);
    // On its way a device is reported by two instances, and counts once.
    let (mut all, mut bad): (BTreeSet<&str>, BTreeSet<&str>) = (BTreeSet::new(), BTreeSet::new());
    for (device, part) in index.sessions.devices_of(&role) {
        all.insert(&device.name);
        if matches!(part.report.health, Health::Degraded | Health::Unavailable) {
            bad.insert(&device.name);
        }
    }
    let all = all.len();
    let shown = bad.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    let message = format!("{} of {all} devices do not work: {shown}", bad.len());
    match (all, bad.len()) {
        (0, _) => finding(
            types::HEALTHY,
            truth::UNKNOWN,
            reasons::NOT_YET_KNOWN,
            "it has reported no device yet",
        ),
        (_, 0) => finding(types::HEALTHY, truth::TRUE, reasons::HEALTHY, ""),
        (all, bad) if bad == all => finding(types::HEALTHY, truth::FALSE, reasons::UNREACHABLE, message),
        _ => finding(types::HEALTHY, truth::FALSE, reasons::DEGRADED, message),
    }
}

/// Reasons are part of the API: one that only a role knows goes into the message.
fn known_reason(reason: &str) -> Option<&'static str> {
    remedy::explain(reason).map(|remedy| remedy.reason)
}

/// The worst part in its role's words, and how many others are no better.
fn describe(index: &Index, key: &ObjectKey, worst: &Part) -> String {
    let report = &worst.report;
    let mut message = report.aspect.to_string();
    if known_reason(&report.reason).is_none() && !report.reason.is_empty() {
        message.push_str(&format!(" ({})", report.reason));
    }
    if !report.message.is_empty() {
        message.push_str(": ");
        message.push_str(&report.message);
    }
    let as_bad = |part: &&Part| severity(part.report.health) >= severity(report.health);
    let others = index.sessions.parts(key).filter(as_bad).count().saturating_sub(1);
    if others > 0 {
        message.push_str(&format!(" (and {others} more parts)"));
    }
    message
}
