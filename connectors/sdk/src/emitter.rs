//! The way from a link to the runner: bounded by what is in memory, so that a slow broker slows the device down.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

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
    queue: mpsc::Sender<Item>,
    shared: Arc<Shared>,
    /// Whether this link's time is over.
    closed: CancellationToken,
}

/// What reaches the publisher of a device, in order.
#[derive(Debug)]
pub(crate) enum Item {
    /// A link saw something.
    Seen(Held),
    /// A link is there, and values may follow; its source's URI.
    LinkUp(Option<Arc<str>>),
    /// The link is over.
    LinkDown,
    /// Nothing follows.
    End,
}

/// What one device has on its way; lives as long as the device is planned.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    queue: mpsc::Sender<Item>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    budget: Arc<Semaphore>,
    units: u32,
    board: Board,
}

/// The latest health of every member. Later health replaces earlier, so it never grows and nobody waits.
#[derive(Debug, Default)]
pub(crate) struct Board {
    members: Mutex<BTreeMap<Member, Kept>>,
    changed: Notify,
}

/// What is known about one member.
#[derive(Clone, Debug)]
struct Kept {
    /// What the link, or the runner in its place, says.
    health: Health,
    /// A trouble on our side of the link, such as a broker that refuses the member's messages.
    trouble: Option<Health>,
    /// The link's tasks have spoken since [`Board::expect`]: what they say is newer than what `observe` returns.
    told: bool,
}

/// An observation with its share of the budget, which is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) observation: Observation,
    pub(crate) share: Share,
}

/// A share of a device's budget.
#[derive(Debug)]
pub(crate) struct Share {
    _permit: OwnedSemaphorePermit,
}

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

/// The way from the links of one device to its publisher.
pub(crate) fn channel(budget_bytes: usize) -> (Channel, mpsc::Receiver<Item>) {
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
    (Channel { queue, shared }, receiver)
}

impl Channel {
    /// An emitter for one link, and what ends it.
    pub(crate) fn emitter(&self) -> (Emitter, CancellationToken) {
        let closed = CancellationToken::new();
        let emitter = Emitter {
            queue: self.queue.clone(),
            shared: Arc::clone(&self.shared),
            closed: closed.clone(),
        };
        (emitter, closed)
    }

    /// Tells the publisher something in order with what links saw.
    pub(crate) async fn tell(&self, item: Item) {
        // A publisher that is gone needs no telling.
        drop(self.queue.send(item).await);
    }

    pub(crate) fn board(&self) -> &Board {
        &self.shared.board
    }
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
        let hand_over = async {
            let permit = Arc::clone(&self.shared.budget)
                .acquire_many_owned(units)
                .await
                .map_err(|_| Closed)?;
            let place = self.queue.reserve().await.map_err(|_| Closed)?;
            place.send(Item::Seen(Held {
                observation,
                share: Share { _permit: permit },
            }));
            Ok(())
        };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Closed),
            result = hand_over => result,
        }
    }

    /// Hands over what was seen if that is possible without waiting; for callbacks that must not wait.
    ///
    /// # Errors
    /// Gives the observation back: when the budget is used up, or the runner wants nothing any more.
    pub fn try_emit(&self, observation: Observation) -> Result<(), TryEmitError> {
        use tokio::sync::{TryAcquireError, mpsc::error::TrySendError};
        if self.is_closed() {
            return Err(TryEmitError::Closed(Box::new(observation)));
        }
        let units = self.units_of(&observation);
        let permit = match Arc::clone(&self.shared.budget).try_acquire_many_owned(units) {
            Ok(permit) => permit,
            Err(TryAcquireError::NoPermits) => return Err(TryEmitError::Full(Box::new(observation))),
            Err(TryAcquireError::Closed) => return Err(TryEmitError::Closed(Box::new(observation))),
        };
        match self.queue.try_reserve() {
            Ok(place) => {
                place.send(Item::Seen(Held {
                    observation,
                    share: Share { _permit: permit },
                }));
                Ok(())
            }
            Err(TrySendError::Full(())) => Err(TryEmitError::Full(Box::new(observation))),
            Err(TrySendError::Closed(())) => Err(TryEmitError::Closed(Box::new(observation))),
        }
    }

    /// Waits until at least a small observation can be handed over: the moment to ask the device for more.
    ///
    /// # Errors
    /// When the runner wants nothing of this link any more.
    pub async fn ready(&self) -> Result<(), Closed> {
        let room = async {
            drop(self.shared.budget.acquire().await.map_err(|_| Closed)?);
            drop(self.queue.reserve().await.map_err(|_| Closed)?);
            Ok(())
        };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Closed),
            result = room => result,
        }
    }

    /// Says how a member is; never waits, the latest counts. Members that are not planned are ignored.
    pub fn health(&self, member: &Member, health: Health) {
        if !self.is_closed() {
            self.shared.board.tell(member, health);
        }
    }

    /// Whether the runner wants nothing of this link any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled() || self.queue.is_closed()
    }

    /// Resolves when the runner wants nothing of this link any more.
    pub async fn closed(&self) {
        tokio::select! {
            () = self.closed.cancelled() => {}
            () = self.queue.closed() => {}
        }
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
            let unknown = || Kept {
                health: Health::unknown(),
                trouble: None,
                told: false,
            };
            let kept = old.remove(&member).unwrap_or_else(unknown);
            members.insert(member, kept);
        }
        drop(members);
        self.changed.notify_one();
    }

    /// Sets the health of a planned member.
    pub(crate) fn set(&self, member: &Member, health: Health) {
        self.change(member, |kept| {
            let changed = kept.health != health;
            kept.health = health;
            changed
        });
    }

    /// A link's task says how a planned member is.
    fn tell(&self, member: &Member, health: Health) {
        self.change(member, |kept| {
            let changed = kept.health != health;
            (kept.health, kept.told) = (health, true);
            changed
        });
    }

    /// What `observe` is about to return counts, unless a task of the link speaks meanwhile.
    pub(crate) fn expect(&self) {
        self.members
            .lock()
            .values_mut()
            .for_each(|kept| kept.told = false);
    }

    /// Sets the health that `observe` returned, unless a task of the link has spoken since [`expect`](Self::expect).
    pub(crate) fn returned(&self, member: &Member, health: Health) {
        self.change(member, |kept| {
            let changed = !kept.told && kept.health != health;
            if changed {
                kept.health = health;
            }
            changed
        });
    }

    /// Sets the health of every member but the device.
    pub(crate) fn set_all(&self, health: impl Fn(&Member) -> Health) {
        for (member, kept) in &mut *self.members.lock() {
            if *member != Member::Device {
                kept.health = health(member);
            }
        }
        self.changed.notify_one();
    }

    /// Notes a trouble on our side of the link, or that it is over.
    pub(crate) fn trouble(&self, member: &Member, trouble: Option<Health>) {
        self.change(member, |kept| {
            let changed = kept.trouble != trouble;
            kept.trouble = trouble;
            changed
        });
    }

    fn change(&self, member: &Member, change: impl FnOnce(&mut Kept) -> bool) {
        let changed = match self.members.lock().get_mut(member) {
            Some(kept) => change(kept),
            None => {
                tracing::debug!(%member, "health of a member that is not planned");
                false
            }
        };
        if changed {
            self.changed.notify_one();
        }
    }

    /// All members with their health: the worse of what the link says and our own trouble.
    pub(crate) fn all(&self) -> Vec<(Member, Health)> {
        let members = self.members.lock();
        members
            .iter()
            .map(|(member, kept)| (member.clone(), kept.shown().clone()))
            .collect()
    }

    /// The health of one member.
    pub(crate) fn get(&self, member: &Member) -> Option<Health> {
        self.members.lock().get(member).map(|kept| kept.shown().clone())
    }

    /// Resolves after a change since the last call; for one waiter.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Kept {
    fn shown(&self) -> &Health {
        match &self.trouble {
            Some(trouble) if trouble.status > self.health.status => trouble,
            _ => &self.health,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_task_says_is_newer_than_what_observe_returns() {
        let (channel, _items) = channel(1024);
        let (emitter, closed) = channel.emitter();
        let member = Member::Stream {
            asset: "camera".into(),
            stream: "view".into(),
        };
        let board = channel.board();
        board.plan([Member::Device, member.clone()]);
        board.expect();
        emitter.health(&member, Health::healthy());
        board.returned(&member, Health::unknown());
        assert_eq!(board.get(&member), Some(Health::healthy()));
        board.expect();
        board.returned(&member, Health::unknown());
        assert_eq!(board.get(&member), Some(Health::unknown()));
        closed.cancel();
        emitter.health(&member, Health::healthy());
        assert_eq!(
            board.get(&member),
            Some(Health::unknown()),
            "a link that is over was heard"
        );
    }

    #[test]
    fn the_worse_of_link_and_delivery_is_shown() {
        let (channel, _items) = channel(1024);
        let board = channel.board();
        board.plan([Member::Device]);
        board.set(&Member::Device, Health::healthy());
        board.trouble(&Member::Device, Some(Health::degraded("Backlog", "full")));
        assert_eq!(
            board.get(&Member::Device).map(|health| health.reason),
            Some("Backlog".into())
        );
        board.set(&Member::Device, Health::unhealthy("Unreachable", "off"));
        assert_eq!(
            board.get(&Member::Device).map(|health| health.reason),
            Some("Unreachable".into())
        );
        board.trouble(&Member::Device, None);
        board.set(&Member::Device, Health::healthy());
        assert_eq!(board.get(&Member::Device), Some(Health::healthy()));
    }
}
