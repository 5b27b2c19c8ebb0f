//! The way from a link to the runner: bounded by what is in memory, so that a slow broker slows the device down.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{
    health::{Health, Member},
    observation::Observation,
};

/// Observations that may be on their way from a link, whatever their size.
const QUEUE_LENGTH: usize = 1024;

/// Bytes for each permit of the budget.
const UNIT: usize = 256;

/// Takes what a link saw, and how it is. Cheap to clone.
///
/// An observation counts against the device's budget from here until the broker has acknowledged its message durably.
/// When the budget is used up, [`emit`](Self::emit) waits: a link that waits with it stops asking its device, and the
/// device's own queues hold what comes meanwhile.
#[derive(Clone, Debug)]
pub struct Emitter {
    queue: mpsc::Sender<Held>,
    shared: Arc<Shared>,
}

/// What one device has on its way.
#[derive(Debug)]
pub(crate) struct Shared {
    budget: Arc<Semaphore>,
    units: u32,
    board: Board,
}

/// The latest health of every member. Later health replaces earlier, so it never grows and nobody waits.
#[derive(Debug, Default)]
pub(crate) struct Board {
    members: Mutex<BTreeMap<Member, Health>>,
    changed: Notify,
}

/// An observation with its share of the budget, which is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) observation: Observation,
    pub(crate) share: Share,
}

/// A share of a device's budget.
#[derive(Debug)]
pub(crate) struct Share(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// The runner wants nothing of this link any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the link is no longer wanted")]
pub struct Closed;

/// Why an observation was not taken at once; it is given back.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TryEmitError {
    /// The budget is used up; [`Emitter::ready`] tells when it is not.
    #[error("the device's budget is used up")]
    Full(Box<Observation>),
    /// The runner wants nothing of this link any more.
    #[error("the link is no longer wanted")]
    Closed(Box<Observation>),
}

/// The runner's end of an [`Emitter`].
pub(crate) fn channel(budget_bytes: usize) -> (Emitter, mpsc::Receiver<Held>) {
    let (queue, receiver) = mpsc::channel(QUEUE_LENGTH);
    let units = u32::try_from(budget_bytes / UNIT)
        .unwrap_or(u32::MAX)
        .clamp(1, 1 << 28);
    let budget = Arc::new(Semaphore::new(units as usize));
    let shared = Arc::new(Shared {
        budget,
        units,
        board: Board::default(),
    });
    (Emitter { queue, shared }, receiver)
}

impl Emitter {
    /// Hands over what was seen, and waits while the budget is used up. What one task emits keeps its order.
    ///
    /// Dropping the future hands nothing over.
    ///
    /// # Errors
    /// When the runner wants nothing of this link any more.
    pub async fn emit(&self, observation: Observation) -> Result<(), Closed> {
        let units = self.units_of(&observation);
        let permit = Arc::clone(&self.shared.budget)
            .acquire_many_owned(units)
            .await
            .map_err(|_| Closed)?;
        self.queue
            .send(Held {
                observation,
                share: Share(permit),
            })
            .await
            .map_err(|_| Closed)
    }

    /// Hands over what was seen if that is possible without waiting; for callbacks that must not wait.
    ///
    /// # Errors
    /// Gives the observation back: when the budget is used up, or the runner wants nothing any more.
    pub fn try_emit(&self, observation: Observation) -> Result<(), TryEmitError> {
        use tokio::sync::TryAcquireError;
        let units = self.units_of(&observation);
        let permit = match Arc::clone(&self.shared.budget).try_acquire_many_owned(units) {
            Ok(permit) => permit,
            Err(TryAcquireError::NoPermits) => return Err(TryEmitError::Full(Box::new(observation))),
            Err(TryAcquireError::Closed) => return Err(TryEmitError::Closed(Box::new(observation))),
        };
        self.queue
            .try_send(Held {
                observation,
                share: Share(permit),
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(held) => TryEmitError::Full(Box::new(held.observation)),
                mpsc::error::TrySendError::Closed(held) => TryEmitError::Closed(Box::new(held.observation)),
            })
    }

    /// Waits until at least a small observation can be handed over: the moment to ask the device for more.
    ///
    /// # Errors
    /// When the runner wants nothing of this link any more.
    pub async fn ready(&self) -> Result<(), Closed> {
        drop(self.shared.budget.acquire().await.map_err(|_| Closed)?);
        drop(self.queue.reserve().await.map_err(|_| Closed)?);
        Ok(())
    }

    /// Says how a member is; never waits, the latest counts. Members that are not planned are ignored.
    pub fn health(&self, member: &Member, health: Health) {
        self.shared.board.set(member, health);
    }

    /// Whether the runner wants nothing of this link any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Resolves when the runner wants nothing of this link any more.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }

    pub(crate) fn board(&self) -> &Board {
        &self.shared.board
    }

    fn units_of(&self, observation: &Observation) -> u32 {
        // An observation larger than the whole budget takes all of it, and so travels alone.
        u32::try_from(observation.weight().div_ceil(UNIT))
            .unwrap_or(u32::MAX)
            .min(self.shared.units)
    }
}

impl Board {
    /// Plans the members: forgets those that are gone and adds those that are new as unknown.
    pub(crate) fn plan(&self, planned: impl IntoIterator<Item = Member>) {
        let mut members = self.members.lock();
        let mut old = std::mem::take(&mut *members);
        for member in planned {
            let health = old.remove(&member).unwrap_or_else(Health::unknown);
            members.insert(member, health);
        }
        drop(members);
        self.changed.notify_one();
    }

    /// Sets the health of a planned member.
    pub(crate) fn set(&self, member: &Member, health: Health) {
        let mut members = self.members.lock();
        match members.get_mut(member) {
            Some(known) if *known == health => return,
            Some(known) => *known = health,
            None => {
                tracing::debug!(%member, "health of a member that is not planned");
                return;
            }
        }
        drop(members);
        self.changed.notify_one();
    }

    /// All members with their health.
    pub(crate) fn all(&self) -> Vec<(Member, Health)> {
        self.members
            .lock()
            .iter()
            .map(|(member, health)| (member.clone(), health.clone()))
            .collect()
    }

    /// Resolves after a change since the last call; for one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
