//! Every role that has a plan or a session.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Weak},
};

use foreshore_tls::{Fingerprint, RoleIdentity};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::deltas::Counts;
use crate::{plan::ResourceKey, proto::GoodbyeReason, resource::Resource};

/// Why a plan was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Two resources have the same key.
    #[error("plan holds {key} twice")]
    Repeated {
        /// Which.
        key: ResourceKey,
    },
    /// There are too many resources.
    #[error("plan holds {found} resources, allowed are {allowed}")]
    TooMany {
        /// How many there are.
        found: usize,
        /// The most that is accepted.
        allowed: usize,
    },
}

/// What a role shall have in force.
#[derive(Debug)]
pub(super) struct Plan {
    /// By phase and key, which is the order of sending.
    resources: Vec<Resource>,
    /// Where each key is in `resources`.
    places: HashMap<ResourceKey, usize>,
    number: u64,
}

impl Plan {
    /// Numbers the resources: one that has not changed since the earlier plan keeps its version.
    pub(super) fn new(mut resources: Vec<Resource>, earlier: Option<&Self>) -> Result<Self, PlanError> {
        let number = earlier.map_or(0, |earlier| earlier.number) + 1;
        resources.sort_unstable_by(|a, b| (a.phase(), a.key()).cmp(&(b.phase(), b.key())));
        let mut places = HashMap::with_capacity(resources.len());
        for (place, resource) in resources.iter_mut().enumerate() {
            let version = match earlier.and_then(|earlier| earlier.get(resource.key())) {
                Some(earlier) if earlier.hash() == resource.hash() => earlier.version(),
                _ => number,
            };
            resource.set_version(version);
            if places.insert(resource.key().clone(), place).is_some() {
                return Err(PlanError::Repeated {
                    key: resource.key().clone(),
                });
            }
        }
        Ok(Self {
            resources,
            places,
            number,
        })
    }

    pub(super) fn resources(&self) -> &[Resource] {
        &self.resources
    }

    pub(super) fn get(&self, key: &ResourceKey) -> Option<&Resource> {
        self.places.get(key).and_then(|place| self.resources.get(*place))
    }
}

/// How a role stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleStatus {
    /// Which role.
    pub role: RoleIdentity,
    /// Its session, if it has one.
    pub session: Option<SessionStatus>,
    /// How many resources its plan holds; `None` before it has one.
    pub desired: Option<usize>,
}

/// How a session stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionStatus {
    /// Where the role dials from.
    pub address: SocketAddr,
    /// When the session began.
    pub since: Timestamp,
    /// Name and version of the role's program.
    pub software: String,
    /// Resources of the plan that are in force.
    pub acknowledged: usize,
    /// Resources of the plan that the role refused.
    pub refused: usize,
    /// Resources of the plan that the role is too old for.
    pub unsupported: usize,
    /// The trust bundle that the role acknowledged in this session.
    pub trusts: Option<Fingerprint>,
}

impl SessionStatus {
    pub(super) fn new(address: SocketAddr, software: String) -> Self {
        Self {
            address,
            since: Timestamp::now(),
            software,
            acknowledged: 0,
            refused: 0,
            unsupported: 0,
            trusts: None,
        }
    }

    pub(super) fn count(&mut self, counts: Counts) {
        self.acknowledged = counts.acknowledged;
        self.refused = counts.refused;
        self.unsupported = counts.unsupported;
    }
}

/// What ties a session to its role's entry.
pub(super) struct Ticket {
    registry: Weak<Mutex<HashMap<RoleIdentity, Entry>>>,
    role: RoleIdentity,
    number: u64,
    /// The plan to aim at; changes with each `set_plan`.
    pub(super) plan: watch::Receiver<Option<Arc<Plan>>>,
    /// Why the session shall end.
    pub(super) end: watch::Receiver<Option<GoodbyeReason>>,
    /// Done when an earlier session of the role, if there was one, has ended.
    pub(super) predecessor: Option<CancellationToken>,
    done: CancellationToken,
}

impl Ticket {
    /// Publishes how the session stands.
    pub(super) fn publish(&self, status: &SessionStatus) {
        self.with_session(|session| session.status = Some(status.clone()));
    }

    fn with_session(&self, change: impl FnOnce(&mut Session)) {
        let Some(roles) = self.registry.upgrade() else {
            return;
        };
        let mut roles = roles.lock();
        let session = roles.get_mut(&self.role).and_then(|entry| entry.session.as_mut());
        if let Some(session) = session.filter(|session| session.number == self.number) {
            change(session);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.done.cancel();
        let Some(roles) = self.registry.upgrade() else {
            return;
        };
        let mut roles = roles.lock();
        if let Some(entry) = roles.get_mut(&self.role) {
            if entry
                .session
                .as_ref()
                .is_some_and(|session| session.number == self.number)
            {
                entry.session = None;
            }
            // A role without plan and session is nobody's affair.
            if entry.session.is_none() && entry.plan.borrow().is_none() {
                roles.remove(&self.role);
            }
        }
    }
}

struct Entry {
    plan: watch::Sender<Option<Arc<Plan>>>,
    session: Option<Session>,
}

struct Session {
    number: u64,
    end: watch::Sender<Option<GoodbyeReason>>,
    done: CancellationToken,
    status: Option<SessionStatus>,
}

impl Entry {
    fn new() -> Self {
        Self {
            plan: watch::Sender::new(None),
            session: None,
        }
    }
}

pub(super) struct Registry {
    roles: Arc<Mutex<HashMap<RoleIdentity, Entry>>>,
    max_resources: usize,
    next_session: Mutex<u64>,
}

impl Registry {
    pub(super) fn new(max_resources: usize) -> Self {
        Self {
            roles: Arc::default(),
            max_resources,
            next_session: Mutex::new(0),
        }
    }

    pub(super) fn set_plan(&self, role: &RoleIdentity, resources: Vec<Resource>) -> Result<(), PlanError> {
        if resources.len() > self.max_resources {
            return Err(PlanError::TooMany {
                found: resources.len(),
                allowed: self.max_resources,
            });
        }
        let mut roles = self.roles.lock();
        let entry = roles.entry(role.clone()).or_insert_with(Entry::new);
        let plan = Plan::new(resources, entry.plan.borrow().as_deref())?;
        entry.plan.send_replace(Some(Arc::new(plan)));
        Ok(())
    }

    pub(super) fn remove_role(&self, role: &RoleIdentity) {
        if let Some(session) = self.roles.lock().remove(role).and_then(|entry| entry.session) {
            session.end.send_replace(Some(GoodbyeReason::Removed));
        }
    }

    /// Enters a session, which supersedes an earlier one of the same role: of two connections the older is the one
    /// whose end was not noticed yet.
    pub(super) fn begin(&self, role: &RoleIdentity) -> Ticket {
        let number = {
            let mut next = self.next_session.lock();
            *next += 1;
            *next
        };
        let mut roles = self.roles.lock();
        let entry = roles.entry(role.clone()).or_insert_with(Entry::new);
        let done = CancellationToken::new();
        let (end, ended) = watch::channel(None);
        let session = Session {
            number,
            end,
            done: done.clone(),
            status: None,
        };
        let predecessor = entry.session.replace(session).map(|earlier| {
            earlier.end.send_replace(Some(GoodbyeReason::Replaced));
            earlier.done
        });
        Ticket {
            registry: Arc::downgrade(&self.roles),
            role: role.clone(),
            number,
            plan: entry.plan.subscribe(),
            end: ended,
            predecessor,
            done,
        }
    }

    pub(super) fn roles(&self) -> Vec<RoleStatus> {
        let roles = self.roles.lock();
        let mut statuses: Vec<RoleStatus> = roles
            .iter()
            .map(|(role, entry)| RoleStatus {
                role: role.clone(),
                session: entry.session.as_ref().and_then(|session| session.status.clone()),
                desired: entry.plan.borrow().as_ref().map(|plan| plan.resources.len()),
            })
            .collect();
        statuses.sort_unstable_by(|a, b| a.role.cmp(&b.role));
        statuses
    }
}
