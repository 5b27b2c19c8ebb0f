//! Roles as tasks of this process.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use foreshore_control::enroll::{CredentialSource, LocalTokens};
use foreshore_crds::conditions::reasons;
use foreshore_runtime::{Backoff, Shutdown, Task as Spawned, spawn};
use foreshore_tls::{Role, RoleIdentity, TrustBundle};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::{sync::watch, time::sleep};
use tracing::{error, info, warn};

use super::{Instance, InstanceState, Running, Task, Workload, Workloads};
use crate::{control::ControlAccess, role::RoleName};

/// Shortest and longest wait before a role that ended is started again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A role that ran so long is not taken for one that ends again and again.
const STABLE: Duration = Duration::from_secs(60);
/// How long a one-time token is good: a role enrolls at once.
const TOKEN_LIFETIME: Duration = Duration::from_secs(300);
/// How long a role that is not wanted any more may take to finish.
const DRAIN: Duration = Duration::from_secs(10);
/// How long an instance of which there are others may take: they take its devices first.
const LEAVE: Duration = Duration::from_secs(60);
/// Most instances of a role. They share one process: more of them carry no more.
const MOST_INSTANCES: u32 = 16;

/// Runs roles.
#[async_trait]
pub trait RoleRunner: Send + Sync + 'static {
    /// Runs a role until its shutdown begins.
    ///
    /// # Errors
    /// Why it ended by itself; it is started again after a while. An `Ok` before the shutdown begins counts as one.
    async fn run(&self, start: Start) -> Result<(), RoleError>;
}

/// What a role needs to start.
pub struct Start {
    /// What shall run.
    pub workload: Workload,
    /// Which of the instances of the workload it is, from 0.
    pub ordinal: u32,
    /// Who it is.
    pub identity: RoleIdentity,
    /// Gives a bootstrap credential each time that the role has to enroll, as after the machine slept through the lifetime of its
    /// certificate.
    pub credentials: Arc<dyn CredentialSource>,
    /// Addresses of the control server, `host:port`.
    pub control: Vec<String>,
    /// Roots to trust at the first start.
    pub trust: TrustBundle,
    /// Tells the role to end.
    pub shutdown: Shutdown,
}

/// Why a role ended.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RoleError {
    /// One of `foreshore_crds::conditions::reasons`, such as `PortInUse` or `StorageFailed`.
    pub reason: &'static str,
    /// What happened, for people.
    pub message: String,
}

impl RoleError {
    /// A failure without a reason of its own.
    pub fn new(error: impl fmt::Display) -> Self {
        Self {
            reason: reasons::FAILING,
            message: error.to_string(),
        }
    }
}

/// Roles as tasks of this process.
pub struct LocalWorkloads {
    runner: Arc<dyn RoleRunner>,
    access: ControlAccess,
    tokens: LocalTokens,
    shared: Arc<Shared>,
    /// By role and ordinal.
    tasks: Mutex<BTreeMap<(RoleName, u32), Supervised>>,
}

struct Shared {
    running: watch::Sender<Arc<Running>>,
}

/// A role that is kept running, or that is ending.
struct Supervised {
    /// `None` while it is ending.
    workload: Option<Workload>,
    identity: RoleIdentity,
    shutdown: Shutdown,
    task: Spawned<()>,
}

impl Supervised {
    /// Whether it does what is wanted; where and how pods would run does not matter here.
    fn is_as(&self, wanted: Option<&Workload>) -> bool {
        let (Some(present), Some(wanted)) = (&self.workload, wanted) else {
            return false;
        };
        present.uid == wanted.uid && task_of(present) == task_of(wanted)
    }
}

/// What a workload does. How many do it is no reason to start those anew that do it already.
fn task_of(workload: &Workload) -> Task {
    let mut task = workload.task.clone();
    if let Task::Connector(connector) = &mut task {
        connector.spec.replicas = None;
    }
    task
}

impl LocalWorkloads {
    /// Runs roles with `runner`; they reach the control server by `access` and enroll with tokens of `tokens`.
    #[must_use]
    pub fn new(runner: Arc<dyn RoleRunner>, access: ControlAccess, tokens: LocalTokens) -> Self {
        let shared = Arc::new(Shared {
            running: watch::Sender::new(Arc::default()),
        });
        Self {
            runner,
            access,
            tokens,
            shared,
            tasks: Mutex::default(),
        }
    }

    /// Keeps a workload running, once its predecessor, if it has one, has given up port and directory.
    fn start(
        &self,
        workload: Workload,
        ordinal: u32,
        predecessor: Option<Spawned<()>>,
    ) -> Result<Supervised, foreshore_tls::Error> {
        let role = &workload.role;
        let uid = match ordinal {
            0 => workload.uid.clone(),
            ordinal => format!("{}-{ordinal}", workload.uid),
        };
        let identity = RoleIdentity::new(role.role, &*role.namespace, &*role.name, uid)?;
        let (shutdown, named) = (Shutdown::new(), identity.clone());
        let supervisor = Supervisor {
            runner: Arc::clone(&self.runner),
            access: self.access.clone(),
            tokens: self.tokens.clone(),
            shared: Arc::clone(&self.shared),
            workload: workload.clone(),
            ordinal,
            identity,
            shutdown: shutdown.clone(),
        };
        let task = spawn(format!("supervisor of {}", workload.role), async move {
            if let Some(predecessor) = predecessor {
                drop(predecessor.await);
            }
            supervisor.run().await;
        });
        Ok(Supervised {
            workload: Some(workload),
            identity: named,
            shutdown,
            task,
        })
    }
}

#[async_trait]
impl Workloads for LocalWorkloads {
    async fn apply(&self, desired: BTreeMap<RoleName, Workload>) {
        let mut tasks = self.tasks.lock();
        tasks.retain(|_, supervised| supervised.workload.is_some() || !supervised.task.is_finished());
        for ((role, ordinal), supervised) in tasks.iter_mut() {
            let wanted = desired.get(role);
            let enough = wanted.is_some_and(|wanted| *ordinal >= instances_of(wanted));
            if supervised.workload.is_some() && (enough || !supervised.is_as(wanted)) {
                info!(%role, ordinal, "role is not wanted any more, or not so");
                supervised.workload = None;
                self.shared.leave(role, &supervised.identity);
                supervised.shutdown.begin(if enough { LEAVE } else { DRAIN });
            }
        }
        for (role, workload) in desired {
            for ordinal in 0..instances_of(&workload) {
                let key = (role.clone(), ordinal);
                let predecessor = match tasks.remove(&key) {
                    Some(supervised) if supervised.workload.is_some() => {
                        tasks.insert(key, supervised);
                        continue;
                    }
                    predecessor => predecessor.map(|supervised| supervised.task),
                };
                match self.start(workload.clone(), ordinal, predecessor) {
                    Ok(started) => drop(tasks.insert(key, started)),
                    Err(error) => error!(%role, ordinal, %error, "role can't be named"),
                }
            }
        }
    }

    fn running(&self) -> watch::Receiver<Arc<Running>> {
        self.shared.running.subscribe()
    }

    async fn end(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        // In the order of the data's way: what a role has sent, the next one still takes.
        for phase in END_ORDER {
            let (now, later): (BTreeMap<_, _>, _) =
                tasks.into_iter().partition(|((role, _), _)| phase(role.role));
            tasks = later;
            for supervised in now.values() {
                supervised.shutdown.begin(DRAIN);
            }
            for ((role, _), supervised) in now {
                if let Err(error) = supervised.task.await {
                    error!(%role, %error, "supervisor of a role failed");
                }
            }
        }
    }
}

/// How many instances of a workload run here. Replicas do not restart those that are there already.
fn instances_of(workload: &Workload) -> u32 {
    match &workload.task {
        Task::Connector(_) => workload.shape.replicas.clamp(1, MOST_INSTANCES),
        Task::Broker | Task::Dataflow | Task::Simulator | Task::Cloud => 1,
    }
}

/// Which roles end together, and after which others.
const END_ORDER: [fn(Role) -> bool; 4] = [
    |role| matches!(role, Role::Simulator | Role::Connector),
    |role| matches!(role, Role::Dataflow),
    |role| matches!(role, Role::Broker),
    |_| true,
];

impl Shared {
    fn update(&self, role: &RoleName, identity: &RoleIdentity, change: impl FnOnce(&mut Instance)) {
        self.running.send_if_modified(|running| {
            let mut changed = (**running).clone();
            let instances = changed.instances.get_mut(role).into_iter().flatten();
            if let Some(instance) = instances.into_iter().find(|one| one.identity == *identity) {
                change(instance);
            }
            self.replace(running, changed)
        });
    }

    /// Notes that an instance runs.
    fn begin(&self, role: &RoleName, identity: &RoleIdentity) {
        self.running.send_if_modified(|running| {
            let mut changed = (**running).clone();
            let instances = changed.instances.entry(role.clone()).or_default();
            let state = InstanceState::Running {
                since: Timestamp::now(),
            };
            match instances.iter_mut().find(|one| one.identity == *identity) {
                Some(instance) => instance.state = state,
                None => instances.push(Instance {
                    identity: identity.clone(),
                    state,
                    restarts: 0,
                    leaving: false,
                }),
            }
            self.replace(running, changed)
        });
    }

    /// Notes that an instance ends for good: others may take what it has.
    fn leave(&self, role: &RoleName, identity: &RoleIdentity) {
        self.update(role, identity, |instance| instance.leaving = true);
    }

    fn remove(&self, role: &RoleName, identity: &RoleIdentity) {
        self.running.send_if_modified(|running| {
            let mut changed = (**running).clone();
            if let Some(instances) = changed.instances.get_mut(role) {
                instances.retain(|one| one.identity != *identity);
                if instances.is_empty() {
                    changed.instances.remove(role);
                }
            }
            self.replace(running, changed)
        });
    }

    fn replace(&self, running: &mut Arc<Running>, changed: Running) -> bool {
        let differs = **running != changed;
        if differs {
            *running = Arc::new(changed);
        }
        differs
    }
}

/// Keeps one role running.
struct Supervisor {
    runner: Arc<dyn RoleRunner>,
    access: ControlAccess,
    tokens: LocalTokens,
    shared: Arc<Shared>,
    workload: Workload,
    ordinal: u32,
    identity: RoleIdentity,
    shutdown: Shutdown,
}

impl Supervisor {
    async fn run(self) {
        let role = self.workload.role.clone();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while !self.shutdown.is_begun() {
            self.shared.begin(&role, &self.identity);
            let began = Instant::now();
            info!(%role, "role starts");
            let result = self.once().await;
            if self.shutdown.is_begun() {
                break;
            }
            if began.elapsed() >= STABLE {
                backoff.reset();
            }
            let RoleError { reason, message } = result
                .err()
                .unwrap_or_else(|| RoleError::new("the role ended by itself"));
            let delay = backoff.next_delay();
            warn!(%role, reason, error = %message, retry_seconds = delay.as_secs_f64(), "role ended");
            let since = Timestamp::now();
            let next = SignedDuration::try_from(delay)
                .ok()
                .and_then(|delay| since.checked_add(delay).ok());
            self.shared.update(&role, &self.identity, |instance| {
                instance.restarts = instance.restarts.saturating_add(1);
                let (error, next) = (message, next.unwrap_or(since));
                instance.state = InstanceState::Failing {
                    since,
                    error,
                    reason,
                    next,
                };
            });
            if self.shutdown.or_begun(sleep(delay)).await.is_none() {
                break;
            }
        }
        self.shared.remove(&role, &self.identity);
    }

    /// Runs the role once. Its own task, so that a panic of the role ends only that.
    async fn once(&self) -> Result<(), RoleError> {
        let ControlAccess { addresses, trust } = self.access.clone();
        let start = Start {
            workload: self.workload.clone(),
            ordinal: self.ordinal,
            identity: self.identity.clone(),
            credentials: self.tokens.source(self.identity.clone(), TOKEN_LIFETIME),
            control: addresses,
            trust: trust.bundle(),
            shutdown: self.shutdown.child(),
        };
        let runner = Arc::clone(&self.runner);
        let task = spawn(
            self.workload.role.to_string(),
            async move { runner.run(start).await },
        );
        match self.shutdown.or_deadline(task).await {
            Some(Ok(result)) => result,
            Some(Err(panicked)) => Err(RoleError::new(panicked)),
            None => {
                warn!(role = %self.workload.role, "role did not end in time and was cut off");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
