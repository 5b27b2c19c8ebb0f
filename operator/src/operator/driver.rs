//! The loop that turns changes of any side into passes, plans, workloads and statuses.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use foreshore_control::{
    ControlHandle, GivePlan, Observation, Observed, PlanResource, Resource, ResourceKey, TakePlan,
    plan::DevicePlan,
};
use foreshore_crds::conditions::{Condition, reasons};
use foreshore_runtime::Shutdown;
use foreshore_tls::{CertificateAuthority, RoleIdentity};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

use super::{
    Error,
    placement::{Placement, is_shared},
    rotation,
};
use crate::{
    facts::Facts,
    object::ObjectKey,
    problem::Problem,
    reconcile::{Outcome, Reconciler},
    role::RoleName,
    source::{Snapshot, directory::STATE_NOT_KEPT},
    status::{Index, StatusTable, writer::StatusUpdates},
    workloads::{Running, Workloads},
};

/// How long a role that starts with the operator keeps what it has, while others tell where they answer: its first
/// plan shall not take away what the second would bring back.
const SETTLING: Duration = Duration::from_secs(15);
/// Most events of sessions that are taken before anything else has its turn.
const BURST: usize = 256;

/// What a driver is made of.
pub(super) struct Parts {
    pub(super) reconciler: Reconciler,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(super) workloads: Arc<dyn Workloads>,
    pub(super) control: ControlHandle,
    pub(super) events: mpsc::Receiver<Observed>,
    pub(super) authority: Arc<CertificateAuthority>,
    pub(super) requests: mpsc::Receiver<oneshot::Sender<StatusTable>>,
    pub(super) updates: Option<StatusUpdates>,
    pub(super) present: BTreeMap<ObjectKey, Vec<Condition>>,
}

/// Turns changes into what follows from them.
pub(super) struct Driver {
    /// Away while a pass is taken.
    reconciler: Option<Reconciler>,
    parts: Desired,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    running: watch::Receiver<Arc<Running>>,
    events: mpsc::Receiver<Observed>,
    requests: mpsc::Receiver<oneshot::Sender<StatusTable>>,
    authority: Arc<CertificateAuthority>,
    next_rotation: Instant,
}

/// Most problems that the log tells at a time: who deletes a Device may leave ten thousand Assets without one.
const MOST_LOGGED: usize = 20;

/// What is desired and observed, and who has to be told.
struct Desired {
    snapshot: Arc<Snapshot>,
    facts: Facts,
    index: Index,
    workloads: Arc<dyn Workloads>,
    control: ControlHandle,
    /// Plans as they were set, by instance.
    planned: BTreeMap<RoleIdentity, BTreeMap<ResourceKey, Resource>>,
    /// Where devices are.
    placement: Placement,
    /// Until when roles keep what they have.
    settling: Option<Instant>,
    updates: Option<StatusUpdates>,
}

/// Takes a pass, and keeps what it accepted where `keep` says so, away from tasks that must not wait.
pub(super) async fn pass(
    mut reconciler: Reconciler,
    snapshot: Arc<Snapshot>,
    facts: Facts,
    keep: impl FnOnce(&Outcome) -> bool + Send + 'static,
) -> Result<(Reconciler, Outcome), Error> {
    let taken = tokio::task::spawn_blocking(move || {
        let mut outcome = reconciler.reconcile(&snapshot, &facts);
        if keep(&outcome)
            && let Err(error) = reconciler.accepted().save()
        {
            warn!(%error, "accepted manifests can't be kept");
            outcome
                .problems
                .push(Problem::new(STATE_NOT_KEPT, error.to_string()));
        }
        (reconciler, outcome)
    });
    taken.await.map_err(|error| {
        let message = error.to_string();
        Error::Task(foreshore_runtime::TaskError::Panicked {
            name: "reconcile".into(),
            message,
        })
    })
}

impl Driver {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts {
            reconciler,
            snapshot,
            snapshots,
            workloads,
            control,
            events,
            authority,
            requests,
            updates,
            present,
        } = parts;
        let mut running = workloads.running();
        // What runs already is news to this leader.
        running.mark_changed();
        let mut index = Index::default();
        index.set_present(present);
        let parts = Desired {
            snapshot,
            facts: Facts::default(),
            index,
            workloads,
            control,
            planned: BTreeMap::new(),
            placement: Placement::default(),
            settling: Some(Instant::now() + SETTLING),
            updates,
        };
        let (reconciler, next_rotation) = (Some(reconciler), Instant::now());
        Self {
            reconciler,
            parts,
            snapshots,
            running,
            events,
            requests,
            authority,
            next_rotation,
        }
    }

    pub(super) fn workloads(&self) -> Arc<dyn Workloads> {
        Arc::clone(&self.parts.workloads)
    }

    /// Runs until the shutdown begins.
    pub(super) async fn run(mut self, outcome: Outcome, shutdown: Shutdown) -> Result<(), Error> {
        // Whoever started has told of them.
        let known: HashSet<Problem> = outcome.all_problems().cloned().collect();
        self.parts.take_outcome(outcome, &known).await;
        loop {
            self.parts.refresh();
            let wake = self.parts.wake(self.next_rotation);
            tokio::select! {
                biased;
                () = shutdown.begun() => return Ok(()),
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        // The source has ended, and whoever started it knows why.
                        return Ok(());
                    }
                    let snapshot = self.snapshots.borrow_and_update().clone();
                    if let Some(snapshot) = snapshot {
                        self.parts.snapshot = snapshot;
                        self.pass().await?;
                    }
                }
                changed = self.running.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.take_running().await?;
                }
                observed = self.events.recv() => {
                    let Some(observed) = observed else { return Ok(()) };
                    self.observe(observed).await?;
                }
                Some(request) = self.requests.recv() => {
                    let table = StatusTable::of(&self.parts.index, Timestamp::now());
                    // Whoever asked may be gone.
                    drop(request.send(table));
                }
                () = sleep_until(wake) => self.on_time().await,
            }
        }
    }

    async fn pass(&mut self) -> Result<(), Error> {
        let Some(mut reconciler) = self.reconciler.take() else {
            return Ok(());
        };
        // Nobody looks at the outcome of before until there is another.
        let before = self.parts.index.take_outcome();
        let known: HashSet<Problem> = before.all_problems().cloned().collect();
        reconciler.take_back(Arc::unwrap_or_clone(before).plans.roles);
        let (snapshot, facts) = (Arc::clone(&self.parts.snapshot), self.parts.facts.clone());
        let (reconciler, outcome) = pass(reconciler, snapshot, facts, |_| true).await?;
        self.reconciler = Some(reconciler);
        self.parts.take_outcome(outcome, &known).await;
        Ok(())
    }

    /// Takes what runs now.
    async fn take_running(&mut self) -> Result<(), Error> {
        let running = Arc::clone(&self.running.borrow_and_update());
        self.parts.index.set_running(running);
        if !self.take_facts().await? {
            self.parts.set_plans();
        }
        Ok(())
    }

    /// Takes what roles told about themselves; whether a pass followed from it.
    async fn take_facts(&mut self) -> Result<bool, Error> {
        let facts = self.parts.index.facts();
        let changed = facts != self.parts.facts;
        if changed {
            self.parts.facts = facts;
            self.pass().await?;
        }
        Ok(changed)
    }

    /// Takes what happened in sessions, several at a time where many wait.
    async fn observe(&mut self, observed: Observed) -> Result<(), Error> {
        let now = Timestamp::now();
        let mut next = Some(observed);
        let (mut trusts, mut tells) = (false, false);
        let mut shared = BTreeSet::new();
        for _ in 0..BURST {
            let Some(observed) = next.take().or_else(|| self.events.try_recv().ok()) else {
                break;
            };
            log(&observed);
            trusts |= matches!(observed.what, Observation::Trusts { .. });
            tells |= matches!(observed.what, Observation::Facts(_));
            if bears_on_devices(&observed) {
                shared.insert(RoleName::of(&observed.role));
            }
            self.parts.index.observe(observed, now);
        }
        for role in shared {
            self.parts.set_plans_of(&role);
        }
        if trusts && rotation::is_under_way(&self.authority) {
            self.rotate().await;
        }
        if tells {
            self.take_facts().await?;
        }
        Ok(())
    }

    async fn on_time(&mut self) {
        let now = Instant::now();
        if self.parts.settling.is_some_and(|until| until <= now) {
            self.parts.settling = None;
            self.parts.set_plans();
        }
        if self.next_rotation <= now {
            self.rotate().await;
        }
    }

    async fn rotate(&mut self) {
        self.next_rotation = Instant::now() + rotation::INTERVAL;
        let index = &self.parts.index;
        let instances = index.running().instances.values().flatten();
        let trusted: BTreeSet<_> = instances
            .map(|instance| {
                index
                    .session(&instance.identity)
                    .and_then(|session| session.trusts)
            })
            .collect();
        rotation::step(Arc::clone(&self.authority), trusted).await;
    }
}

impl Desired {
    async fn take_outcome(&mut self, outcome: Outcome, known: &HashSet<Problem>) {
        log_problems(outcome.all_problems().filter(|problem| !known.contains(problem)));
        let workloads = outcome.workloads.clone();
        self.index.set_outcome(Arc::new(outcome));
        self.workloads.apply(workloads).await;
        self.set_plans();
    }

    /// Tells every instance what it shall have in force.
    fn set_plans(&mut self) {
        let outcome = Arc::clone(self.index.outcome());
        let running = Arc::clone(self.index.running());
        self.placement.retain(&outcome);
        let mut wanted = BTreeSet::new();
        for (role, instances) in &running.instances {
            // A role that is ending keeps what it has.
            if !outcome.workloads.contains_key(role) {
                continue;
            }
            wanted.extend(instances.iter().map(|instance| instance.identity.clone()));
            self.set_plans_of(role);
        }
        let gone: Vec<_> = self
            .planned
            .keys()
            .filter(|identity| !wanted.contains(*identity))
            .cloned()
            .collect();
        for identity in gone {
            self.planned.remove(&identity);
            // An instance that still ends is told nothing more; one that is gone is forgotten.
            let ending = running
                .instances
                .values()
                .flatten()
                .any(|instance| instance.identity == identity);
            if !ending {
                self.control.remove_role(&identity);
            }
        }
    }

    /// Tells the instances of one role what they shall have in force.
    fn set_plans_of(&mut self, role: &RoleName) {
        let (outcome, running) = (Arc::clone(self.index.outcome()), Arc::clone(self.index.running()));
        let Some(instances) = running.instances.get(role) else {
            return;
        };
        if !outcome.workloads.contains_key(role) {
            return;
        }
        let settling = self.settling.is_some();
        if is_shared(role) {
            let Some(plans) = self.placement.plans(role, instances, &self.index, settling) else {
                return;
            };
            for (identity, plan) in plans {
                self.set_plan(role, &identity, &plan);
            }
            self.index
                .set_placed(role, self.placement.of(role), &self.planned);
        } else {
            let empty = BTreeMap::new();
            let plan = outcome.plans.roles.get(role).unwrap_or(&empty);
            for instance in instances {
                self.set_plan(role, &instance.identity, plan);
            }
        }
    }

    fn set_plan(&mut self, role: &RoleName, identity: &RoleIdentity, plan: &BTreeMap<ResourceKey, Resource>) {
        if self.planned.get(identity) == Some(plan) {
            return;
        }
        let waits = self.index.outcome().plans.waiting.contains(role);
        if self.settling.is_some() && !self.planned.contains_key(identity) && waits {
            return;
        }
        match self.control.set_plan(identity, plan.values().cloned().collect()) {
            Ok(()) => drop(self.planned.insert(identity.clone(), plan.clone())),
            Err(error) => error!(%role, %error, "plan can't be set; the role keeps the one before"),
        }
    }

    /// Computes what may have changed, and hands it to the sink.
    fn refresh(&mut self) {
        for (object, status) in self.index.refresh(Timestamp::now()) {
            match (&self.updates, status) {
                (Some(updates), Some(status)) => updates.update(status),
                (Some(updates), None) => updates.forget(&object),
                (None, _) => {}
            }
        }
    }

    /// When something is due by the mere passing of time.
    fn wake(&self, rotation: Instant) -> Instant {
        let stale = self.index.next_due().map(|due| {
            let wait = due.duration_since(Timestamp::now());
            Instant::now() + Duration::try_from(wait).unwrap_or_default()
        });
        [Some(rotation), self.settling, stale]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(rotation)
    }
}

/// Whether something that happened may move a device.
fn bears_on_devices(observed: &Observed) -> bool {
    let about =
        |key: &ResourceKey| [DevicePlan::KIND, TakePlan::KIND, GivePlan::KIND].contains(&key.kind.as_str());
    is_shared(&RoleName::of(&observed.role))
        && match &observed.what {
            Observation::Holds { .. } | Observation::HandOver(_) | Observation::Disconnected { .. } => true,
            Observation::Ack { resource } => about(&resource.key),
            Observation::Removed { key } => about(key),
            _ => false,
        }
}

/// Tells of problems when they are new; of many at once, how many there are.
pub(super) fn log_problems<'a>(mut problems: impl Iterator<Item = &'a Problem>) {
    problems.by_ref().take(MOST_LOGGED).for_each(log_problem);
    let more = problems.count();
    if more > 0 {
        warn!(
            more,
            "more manifests are not accepted; the status of each tells why"
        );
    }
}

fn log_problem(problem: &Problem) {
    if problem.reason == reasons::NOT_YET_KNOWN {
        warn!(%problem, "declared objects can't be read now; what is known of them stays in force");
    } else {
        warn!(%problem, "manifest is not accepted");
    }
}

/// What an operator of a plant wants to read in the log; reports are in the status.
fn log(observed: &Observed) {
    let Observed { role, what } = observed;
    match what {
        Observation::Connected {
            software, address, ..
        } => info!(%role, software, %address, "role is connected"),
        Observation::Disconnected {
            reason,
            on_purpose: true,
        } => info!(%role, reason, "role took its leave"),
        Observation::Disconnected {
            reason,
            on_purpose: false,
        } => warn!(%role, reason, "role is not connected"),
        Observation::Nack { resource, nack } => {
            warn!(%role, resource = %resource.key, reason = %nack.reason, message = nack.message, "role refused");
        }
        Observation::Unsupported { resource, missing } => {
            warn!(%role, resource = %resource.key, ?missing, "role is too old for a resource");
        }
        _ => {}
    }
}
