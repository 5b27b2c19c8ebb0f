//! The engine: from a message that was taken in to those who get it.
//!
//! ```text
//! connection ─ publish ─► route (no lock) ─► submit to the store ─► entry ids
//!                              │                                      │
//!                              └── one item for each shard ◄──────────┘      acknowledgement ◄─ commit
//!                                        │
//!                              shard ─► connections ─► PUBLISH, encoded once
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`trie`], [`router`], [`route`] | who gets what is published to a topic |
//! | [`publish`] | what a message means for store, receivers and retained messages |
//! | [`shard`], [`mailbox`] | the threads that carry connections, and how they hand work to each other |
//! | [`delivery`], [`backlog`] | a message on its way to one receiver, from its queue or live |
//! | [`pressure`], [`pace`] | backpressure, and how fast clients may publish |
//! | [`sources`] | the numbers of our own publishers |
//! | [`timers`] | wills and sessions that fall due |
//! | [`trace`] | recording what happens to messages that somebody asked about |

pub(crate) mod backlog;
pub(crate) mod delivery;
pub(crate) mod mailbox;
pub(crate) mod memory;
pub(crate) mod pace;
pub(crate) mod pressure;
pub(crate) mod publish;
pub(crate) mod route;
pub(crate) mod router;
pub(crate) mod shard;
pub(crate) mod sources;
pub(crate) mod timers;
pub(crate) mod topics;
pub(crate) mod trace;
pub(crate) mod trie;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use foreshore_store::{
    BrokerClock, BrokerTime, CommitterHandle, Page, ReadRange, ReceiverId, SharedStore, StoreError,
};

use parking_lot::{Mutex, RwLock};

use self::{
    delivery::Delivery,
    mailbox::Mailbox,
    memory::Memory,
    pace::Pace,
    pressure::Congestion,
    router::Router,
    shard::{Control, ShardItem},
    sources::Sources,
    timers::Timers,
    trace::Tracer,
};
use tokio::sync::Notify;

use crate::{
    audit::Audit,
    auth::Checks,
    listener::placement::Placement,
    options::{Conduct, Limits},
    path::PathRegistry,
    policy::Policies,
    probe::Probes,
    retained::Retained,
    session::{Location, registry::Registry, state::SubscriptionCount},
    shared::Groups,
    state_store::StateStore,
    stats::Stats,
};

/// What all parts of a broker share.
pub(crate) struct Engine {
    /// Namespace and name of the broker, as they stand in path names.
    pub(crate) identity: (String, String),
    pub(crate) router: Router,
    pub(crate) congestion: Arc<Congestion>,
    pub(crate) shards: Vec<Arc<Mailbox<ShardItem>>>,
    /// The store, until the broker has ended.
    pub(crate) open_store: RwLock<Option<SharedStore>>,
    pub(crate) committer: CommitterHandle,
    pub(crate) clock: BrokerClock,
    pub(crate) limits: ArcSwap<Limits>,
    /// The limits have changed.
    pub(crate) limits_changed: Notify,
    /// What is held in memory for clients.
    pub(crate) memory: Arc<Memory>,
    /// What all clients together publish, as it is counted against a rate.
    pub(crate) pace: Mutex<Pace>,
    /// Subscriptions of all sessions.
    pub(crate) subscriptions: SubscriptionCount,
    pub(crate) conduct: ArcSwap<Conduct>,
    pub(crate) policies: ArcSwap<Policies>,
    pub(crate) sessions: Registry,
    pub(crate) retained: Retained,
    pub(crate) state_store: StateStore,
    pub(crate) groups: Groups,
    pub(crate) paths: PathRegistry,
    pub(crate) sources: Sources,
    pub(crate) timers: Timers,
    pub(crate) stats: Stats,
    pub(crate) tracer: Tracer,
    pub(crate) probes: Probes,
    pub(crate) checks: Checks,
    pub(crate) audit: Audit,
    /// Where work runs that belongs to no connection.
    pub(crate) runtime: tokio::runtime::Handle,
    /// Connections at present, in handshakes too.
    pub(crate) placement: Arc<Placement>,
    pub(crate) next_uid: AtomicU64,
}

impl Engine {
    /// The store.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when the broker has ended.
    pub(crate) fn store(&self) -> Result<SharedStore, StoreError> {
        self.open_store.read().clone().ok_or(StoreError::Closed)
    }

    /// Now, on the broker's clock.
    pub(crate) fn now(&self) -> BrokerTime {
        self.clock.now()
    }

    /// A number that no session has.
    pub(crate) fn new_uid(&self) -> u64 {
        self.next_uid.fetch_add(1, Ordering::Relaxed)
    }

    /// Hands a delivery to a connection.
    pub(crate) fn send(&self, location: Location, delivery: Delivery) {
        if let Some(mailbox) = self.shards.get(usize::from(location.shard)) {
            let bytes = delivery.message.weight();
            mailbox.send(ShardItem::Deliver(location, delivery), bytes);
        }
    }

    /// Tells a connection something.
    pub(crate) fn control(&self, location: Location, control: Control) {
        if let Some(mailbox) = self.shards.get(usize::from(location.shard)) {
            mailbox.send(ShardItem::Control(location, control), 0);
        }
    }

    /// Tells all connections something.
    pub(crate) fn control_all(&self, control: &Control) {
        for mailbox in &self.shards {
            mailbox.send(ShardItem::ControlAll(control.clone()), 0);
        }
    }

    /// Runs something that belongs to no connection.
    pub(crate) fn spawn(&self, name: String, work: impl Future<Output = ()> + Send + 'static) {
        // Entered, because the calling shard has a runtime of its own.
        let _runtime = self.runtime.enter();
        foreshore_runtime::spawn(name, work).detach();
    }

    /// Reads a queue on a thread that may wait for the disk.
    pub(crate) fn read(
        &self,
        receiver: ReceiverId,
        range: ReadRange,
    ) -> tokio::task::JoinHandle<Result<Page, StoreError>> {
        let (store, now) = (self.store(), self.now());
        self.runtime
            .spawn_blocking(move || store?.read(receiver, range, now))
    }

    /// Runs something that may wait for the disk.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn foreshore_store::Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.store()?;
        match self.runtime.spawn_blocking(move || work(&*store)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(StoreError::Closed),
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Engine")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}
