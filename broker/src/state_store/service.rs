//! The state store in the broker: commands, deliveries, expiry, start.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use foreshore_store::{Applied, Completion, Operation, Room, Space, StoreError};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    clock::wall_clock,
    command::{Command, CommandError, Reply},
    keys::{Bounds, Change, Circumstances, Keys, Outcome},
    request::{self, Asked, Request, Unanswerable},
    rows::{self, Row},
    watches::{WatchBounds, Watches},
};
use crate::{
    engine::{Engine, publish::Outbound, route::Route},
    message::Message,
    session::{Session, rows as session_rows, state::SessionState},
};

/// Keys that expire in one step.
const EXPIRE_AT_ONCE: usize = 256;

/// Bytes of rows that are read at once at the start.
const PAGE_BYTES: usize = 1 << 20;

/// The state store.
#[derive(Debug)]
pub(crate) struct StateStore {
    state: Mutex<State>,
    deliveries: mpsc::UnboundedSender<Delivery>,
    /// The other end, until somebody delivers.
    delivering: Mutex<Option<mpsc::UnboundedReceiver<Delivery>>>,
    /// A key expires before all others.
    expiry_changed: Notify,
    disk_is_low: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    keys: Keys,
    watches: Watches,
}

/// Resolves when a request is durable and answered.
pub(crate) type Answered = oneshot::Receiver<Result<(), StoreError>>;

/// What is told to clients when it is durable. The queue of these is bounded by the room in the committer's queue, which
/// each of them holds until it is durable, and by the requests that a client may have unacknowledged.
#[derive(Debug)]
struct Delivery {
    /// Resolves when it is durable; `None` when nothing was stored, and so it is as soon as what came before is.
    completion: Option<Completion>,
    /// The messages, each with the operation that stores it if one does.
    messages: Vec<(Outbound, Option<usize>)>,
    /// Who waits for it.
    answered: oneshot::Sender<Result<(), StoreError>>,
}

/// What a command comes to.
#[derive(Default)]
struct Effects {
    operations: Vec<Operation>,
    messages: Vec<(Outbound, Option<usize>)>,
}

impl Default for StateStore {
    fn default() -> Self {
        let (deliveries, delivering) = mpsc::unbounded_channel();
        Self {
            state: Mutex::default(),
            deliveries,
            delivering: Mutex::new(Some(delivering)),
            expiry_changed: Notify::new(),
            disk_is_low: AtomicBool::new(false),
        }
    }
}

impl StateStore {
    /// Number of keys, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        self.state.lock().keys.size()
    }

    /// Takes a session's registrations away, and tells what is to be stored.
    pub(crate) fn forget(&self, session: &SessionState) -> Vec<Operation> {
        let mut operations = Vec::new();
        let mut state = self.state.lock();
        for key in &session.watches {
            state.watches.remove(key, session.session.uid);
            if session.session.receiver.is_some() {
                operations.push(session_rows::delete_watch(&session.session.client_id, key));
            }
        }
        operations
    }

    /// Takes over a registration that was stored.
    pub(crate) fn restore_watch(&self, key: &Bytes, session: &Arc<Session>) {
        self.state.lock().watches.restore(key, session);
    }

    /// Says whether the disk has room for new keys.
    pub(crate) fn set_space(&self, space: Option<Space>) {
        let low = space.is_some_and(Space::is_low);
        self.disk_is_low.store(low, Ordering::Relaxed);
    }

    /// Submits what a command comes to, and queues what is told of it. To be called under the lock that the command took
    /// effect under.
    fn submit(&self, effects: Effects, room: Room) -> Result<Answered, StoreError> {
        let Effects { operations, messages } = effects;
        let completion = if operations.is_empty() {
            None
        } else {
            Some(room.submit(operations)?.completion)
        };
        let (answered, waiting) = oneshot::channel();
        let delivery = Delivery {
            completion,
            messages,
            answered,
        };
        self.deliveries.send(delivery).map_err(|_| StoreError::Closed)?;
        Ok(waiting)
    }
}

impl State {
    /// Does what a request asks for.
    fn execute(
        &mut self,
        asked: &Asked,
        given: &Circumstances<'_>,
        session: &mut SessionState,
        bounds: WatchBounds,
        operations: &mut Vec<Operation>,
    ) -> Result<Outcome, CommandError> {
        if given
            .timestamp
            .is_some_and(|timestamp| timestamp.is_too_far_ahead(given.wall))
        {
            return Err(CommandError::TimestampSkew);
        }
        if given
            .fence
            .is_some_and(|fence| fence.is_too_far_ahead(given.wall))
        {
            return Err(CommandError::FencingTokenSkew);
        }
        match &asked.command {
            Command::Get { key } => Ok(self.keys.get(key, given)),
            Command::Set {
                key,
                value,
                condition,
                expires_after,
            } => self.keys.set(key, value, *condition, *expires_after, given),
            Command::Delete { key } => self.keys.delete(key, None, given),
            Command::DeleteIfEqual { key, value } => self.keys.delete(key, Some(value), given),
            Command::Watch { key } => self.watch(key, session, bounds, operations),
            Command::Unwatch { key } => Ok(self.unwatch(key, session, operations)),
        }
    }

    fn watch(
        &mut self,
        key: &Bytes,
        session: &mut SessionState,
        bounds: WatchBounds,
        operations: &mut Vec<Operation>,
    ) -> Result<Outcome, CommandError> {
        if !session.watches.contains(key) {
            let has = session.watches.len();
            if !self.watches.add(key, &session.session, has, bounds) {
                return Err(CommandError::QuotaExceeded);
            }
            session.watches.insert(key.clone());
            if session.session.receiver.is_some() {
                operations.push(session_rows::put_watch(&session.session.client_id, key));
            }
        }
        Ok(Outcome::unchanged(Reply::Ok, None))
    }

    fn unwatch(
        &mut self,
        key: &Bytes,
        session: &mut SessionState,
        operations: &mut Vec<Operation>,
    ) -> Outcome {
        if !session.watches.remove(key) {
            return Outcome::unchanged(Reply::Removed(0), None);
        }
        self.watches.remove(key, session.session.uid);
        if session.session.receiver.is_some() {
            operations.push(session_rows::delete_watch(&session.session.client_id, key));
        }
        Outcome::unchanged(Reply::Ok, None)
    }
}

impl Effects {
    /// Adds the rows of what changed, and the messages to those who watch it.
    fn add_changes(&mut self, engine: &Engine, state: &State, changes: &[Change]) {
        let longest = engine.limits.load().max_message_expiry;
        let expires_at =
            longest.map(|seconds| engine.now().after(std::time::Duration::from_secs(seconds.into())));
        for change in changes {
            self.operations.push(match state.keys.entry(&change.key) {
                Some(entry) if change.value.is_some() => rows::put(&change.key, entry),
                _ => rows::delete(&change.key),
            });
            for watcher in state.watches.of(&change.key) {
                match request::notification(&watcher.client_id, change, expires_at) {
                    // Clients of the SDK in Go and .NET do not subscribe to it.
                    Ok(message) => {
                        let route = engine.router.route(message.topic.as_str()).only_to(watcher);
                        engine.stats.state_notifications.inc();
                        self.add_message(engine, message, route);
                    }
                    Err(error) => {
                        tracing::error!(client = %watcher.client_id, %error, "client can't be notified")
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.operations.push(rows::put_clock(state.keys.last_version()));
        }
    }

    /// Adds an answer, if whoever asked subscribes to the topic that it wants it on.
    fn add_answer(&mut self, engine: &Engine, message: Message, session: &Session) {
        let route = engine.router.route(message.topic.as_str()).only(session.uid);
        if route.is_empty() {
            let (client, topic) = (&session.client_id, &message.topic);
            tracing::debug!(%client, %topic, "client does not subscribe to its response topic");
        } else {
            self.add_message(engine, message, route);
        }
    }

    fn add_message(&mut self, engine: &Engine, message: Message, route: Route) {
        let outbound = Outbound {
            message: Arc::new(message),
            route: Arc::new(route),
        };
        let operation = engine.operation(&outbound, None).map(|operation| {
            self.operations.push(operation);
            self.operations.len() - 1
        });
        self.messages.push((outbound, operation));
    }
}

impl Engine {
    /// Does what a client asks of the state store; the room is for what the request weighs.
    ///
    /// # Errors
    /// When nothing can be committed any more.
    pub(crate) fn serve(
        &self,
        session: &mut SessionState,
        request: &Request,
        room: Room,
    ) -> Result<Answered, StoreError> {
        let store = &self.state_store;
        let limits = self.limits.load();
        let bounds = if store.disk_is_low.load(Ordering::Relaxed) {
            Bounds { count: 0, bytes: 0 }
        } else {
            limits.state()
        };
        self.stats.state_requests.inc();
        let mut effects = Effects::default();
        let mut state = store.state.lock();
        let before = state.keys.next_expiry();
        let answer = match &request.asked {
            Err(Unanswerable::Version(found)) => request.answer_version(found),
            Err(Unanswerable::Command(error)) => request.answer(&Reply::Error(*error), None),
            Ok(asked) => {
                let given = Circumstances {
                    now: self.now(),
                    wall: wall_clock(),
                    timestamp: asked.timestamp.as_ref(),
                    fence: asked.fence.as_ref(),
                    bounds,
                };
                let watch_bounds = WatchBounds {
                    of_session: limits.max_subscriptions,
                    bytes: limits.max_state_bytes,
                };
                let outcome = state
                    .execute(asked, &given, session, watch_bounds, &mut effects.operations)
                    .unwrap_or_else(|error| Outcome::unchanged(Reply::Error(error), None));
                effects.add_changes(self, &state, &outcome.changes);
                request.answer(&outcome.reply, outcome.version)
            }
        };
        effects.add_answer(self, answer, &session.session);
        let answered = store.submit(effects, room);
        let after = state.keys.next_expiry();
        drop(state);
        if after.is_some() && (before.is_none() || after < before) {
            store.expiry_changed.notify_one();
        }
        answered
    }

    /// Tells clients what is durable, for as long as the broker runs: in the order of commands, whoever they came from.
    pub(crate) async fn deliver_state(self: Arc<Self>) {
        let Some(mut deliveries) = self.state_store.delivering.lock().take() else {
            return;
        };
        while let Some(delivery) = deliveries.recv().await {
            let applied = match delivery.completion {
                Some(completion) => completion.await,
                None => Ok(Vec::new()),
            };
            let outcome = applied.map(|applied| {
                for (outbound, operation) in delivery.messages {
                    let stored = operation.and_then(|operation| applied.get(operation));
                    let entry = match stored {
                        Some(Applied::Published { id, .. }) => *id,
                        Some(Applied::Refused(refusal)) => {
                            let topic = &outbound.message.topic;
                            tracing::warn!(%topic, ?refusal, "message of the state store is not queued");
                            self.stats.refused.inc();
                            0
                        }
                        _ => 0,
                    };
                    // Whoever connected meanwhile may have changed no subscription.
                    let route = Arc::new(outbound.route.relocated(self.router.epoch()));
                    self.fan_out(None, &Outbound { route, ..outbound }, entry);
                }
            });
            // Whoever does not wait for it has gone.
            drop(delivery.answered.send(outcome));
        }
    }

    /// Deletes what has expired, for as long as the broker runs. However much expires at once, commands wait for a
    /// portion of it at most.
    pub(crate) async fn expire_state(self: Arc<Self>) {
        loop {
            let next = self.state_store.state.lock().keys.next_expiry();
            let now = self.now();
            match next {
                Some(at) if at <= now => {
                    if let Err(error) = self.expire_some().await {
                        tracing::debug!(%error, "nothing expires any more");
                        return;
                    }
                }
                Some(at) => {
                    let changed = self.state_store.expiry_changed.notified();
                    // Either way it is looked at again.
                    drop(tokio::time::timeout(at.since(now), changed).await);
                }
                None => self.state_store.expiry_changed.notified().await,
            }
        }
    }

    async fn expire_some(&self) -> Result<(), StoreError> {
        let store = &self.state_store;
        let room = self
            .committer
            .reserve(EXPIRE_AT_ONCE * size_of::<Operation>())
            .await?;
        let answered = {
            let mut state = store.state.lock();
            let changes = state.keys.expire(self.now(), wall_clock(), EXPIRE_AT_ONCE);
            let mut effects = Effects::default();
            effects.add_changes(self, &state, &changes);
            store.submit(effects, room)?
        };
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Takes over the keys that the store knows. Waits for the disk.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    pub(crate) fn load_state(&self) -> Result<(), StoreError> {
        let store = self.store()?;
        self.state_store.set_space(store.space());
        let mut state = self.state_store.state.lock();
        let mut after: Option<Bytes> = None;
        loop {
            let page = store.state(after.as_deref(), PAGE_BYTES)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key.clone());
            for row in &page {
                match rows::read(row) {
                    Ok(Row::Key(key, entry)) => state.keys.restore(key, entry),
                    Ok(Row::Clock(last)) => state.keys.restore_clock(last),
                    Err(error) => tracing::error!(key = ?row.key, %error, "a key is damaged and left out"),
                }
            }
        }
    }
}
