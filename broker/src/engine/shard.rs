//! A thread that carries connections, each for its whole life.
//!
//! Nothing on a shard is shared with other threads but its [`Mailbox`](super::mailbox::Mailbox): connections, their
//! inboxes and the cache of routes are touched by this thread only, and so need no locks.

use std::{
    cell::{Cell, RefCell},
    cmp::Reverse,
    collections::VecDeque,
    future::poll_fn,
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant, SystemTime},
};

use foreshore_record::{Qos, TopicName, topic::InvalidTopic};
use foreshore_store::EntryId;
use futures::FutureExt;
use tokio::sync::oneshot;

use super::{
    Engine,
    delivery::{Delivery, Origin},
    memory::{SPARED, Verdict},
    pressure::Keeping,
    publish::{NO_ROOM, NOT_CONNECTED},
    route::{LiveTarget, Route},
    topics::{KnownTopics, Topic},
};
use crate::{
    auth::Expiry,
    connection::{Accepted, handshake},
    inspect::backlog::{Strained, Wanted},
    message::Message,
    session::{Location, MAX_SLOTS, Session},
    stats::traffic::OfClients,
    wire::ReasonCode,
};

/// Bytes that may wait for a connection in excess while publishers wait for it: what was on its way when they began to
/// wait, in the mailbox of its shard and in what they had read before.
const OVERSHOOT: usize = 4 << 20;

/// The part of what may wait for a connection above which it counts as strained, and publishers of what is in no queue
/// wait for it: one of so many.
const STRAINED: usize = 4;

/// How often connections are looked at that may have fallen silent.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// Bytes that are read from a connection at once.
const READ_AT_ONCE: usize = 64 << 10;

/// What a client is told that held more than any other when memory was short.
const EVICTED: &str = "the broker is short of memory and holds most for this client";

/// Work for a shard.
#[derive(Debug)]
pub(crate) enum ShardItem {
    /// A new connection.
    Accept(Box<Accepted>),
    /// A message for connections of this shard.
    Fanout(Fanout),
    /// A delivery for one connection.
    Deliver(Location, Delivery),
    /// A word to one connection.
    Control(Location, Control),
    /// A word to all connections.
    ControlAll(Control),
    /// Somebody asks which connections can't keep up.
    Strained(Wanted, oneshot::Sender<Vec<Strained>>),
    /// The shard ends when its last connection has.
    Stop,
}

/// A message for the connections of one shard.
#[derive(Debug)]
pub(crate) struct Fanout {
    /// The message.
    pub(crate) message: Arc<Message>,
    /// Who gets it.
    pub(crate) route: Arc<Route>,
    /// Which of the route's shards this is for.
    pub(crate) index: usize,
    /// Its entry in durable queues; 0 if it is in none.
    pub(crate) entry: EntryId,
}

/// A word to a connection.
#[derive(Clone, Debug)]
pub(crate) enum Control {
    /// Another connection of the same client takes the session over.
    TakeOver,
    /// The connection ends.
    Disconnect(ReasonCode, &'static str),
    /// A listener changed its ways to prove who a client is.
    ListenerChanged(Arc<crate::listener::Listener>),
    /// All connections of a listener end.
    ListenerClosed(Arc<crate::listener::Listener>),
    /// Policies changed.
    PolicyChanged,
    /// All clients but our own roles are sent to another server.
    Redirected(Arc<crate::options::Redirect>),
}

/// A thread that carries connections.
#[derive(Debug)]
pub(crate) struct Shard {
    /// Which shard this is.
    pub(crate) index: u8,
    /// What all shards share.
    pub(crate) engine: Arc<Engine>,
    slots: RefCell<Slots>,
    topics: RefCell<KnownTopics>,
    /// Where input is read to before it is looked at; packets that are cut off move to their connection.
    pub(crate) scratch: RefCell<Box<[u8]>>,
    stopping: Cell<bool>,
    /// Connections that have not ended in every respect.
    active: Cell<usize>,
}

#[derive(Debug, Default)]
struct Slots {
    all: Vec<(u32, Option<Rc<Inbox>>)>,
    free: Vec<u32>,
}

/// What waits for one connection.
#[derive(Debug)]
pub(crate) struct Inbox {
    session: Arc<Session>,
    counted: Arc<OfClients>,
    deliveries: RefCell<VecDeque<Delivery>>,
    bytes: Cell<usize>,
    /// Bytes that may wait.
    max_bytes: usize,
    /// Bytes that wait further on, in the connection.
    pub(crate) bytes_ahead: Cell<usize>,
    /// Bytes that the connection holds in memory in all, as it said last.
    memory: Cell<usize>,
    /// Whether the connection ends for holding too many.
    evicted: Cell<bool>,
    controls: RefCell<VecDeque<Control>>,
    waker: RefCell<Option<Waker>>,
    /// When silence means that the client is gone.
    pub(crate) deadline: Cell<Option<Instant>>,
    /// When what let the client in expires.
    pub(crate) expiry: Cell<Option<Expiry>>,
    /// The highest entry that found no room; it is to be read from the queue.
    missed: Cell<EntryId>,
    /// Whether something found no room that is in no queue and should not be lost in silence.
    overrun: Cell<bool>,
}

impl Shard {
    pub(crate) fn new(index: u8, engine: Arc<Engine>) -> Rc<Self> {
        Rc::new(Self {
            index,
            engine,
            slots: RefCell::default(),
            topics: RefCell::default(),
            scratch: RefCell::new(vec![0; READ_AT_ONCE].into_boxed_slice()),
            stopping: Cell::new(false),
            active: Cell::new(0),
        })
    }

    /// Works until told to stop and the last connection has ended.
    pub(crate) async fn run(self: Rc<Self>) {
        let mut watch = tokio::time::interval(WATCH_EVERY);
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mailbox = Arc::clone(&self.engine.shards[usize::from(self.index)]);
        while !(self.stopping.get() && self.active.get() == 0) {
            tokio::select! {
                items = poll_fn(|context| mailbox.poll_take(context)) => {
                    for item in items {
                        self.handle(item);
                    }
                }
                _ = watch.tick() => self.watch(Instant::now()),
            }
            // Connections work before the next items are taken.
            tokio::task::yield_now().await;
        }
    }

    fn handle(self: &Rc<Self>, item: ShardItem) {
        match item {
            ShardItem::Accept(accepted) => {
                if !self.stopping.get() {
                    self.active.set(self.active.get() + 1);
                    let shard = Rc::clone(self);
                    tokio::task::spawn_local(async move {
                        let serving = AssertUnwindSafe(handshake::serve(Rc::clone(&shard), accepted));
                        if serving.catch_unwind().await.is_err() {
                            // A fault of ours, which costs one connection.
                            shard.engine.stats.connection_panics.inc();
                            tracing::error!("a connection panicked");
                        }
                        shard.active.set(shard.active.get() - 1);
                    });
                }
            }
            ShardItem::Fanout(fanout) => self.fan_out(&fanout),
            ShardItem::Deliver(location, delivery) => match self.inbox(location.slot, location.generation) {
                Some(inbox) => inbox.deliver(delivery, &self.engine),
                None => self.return_delivery(delivery),
            },
            ShardItem::Control(location, control) => {
                if let Some(inbox) = self.inbox(location.slot, location.generation) {
                    inbox.control(control);
                }
            }
            ShardItem::ControlAll(control) => {
                for inbox in self.inboxes() {
                    inbox.control(control.clone());
                }
            }
            ShardItem::Strained(wanted, answer) => {
                // Whoever asked may have gone.
                drop(answer.send(self.strained(&wanted)));
            }
            ShardItem::Stop => self.stopping.set(true),
        }
    }

    /// Delivers a message to connections of this shard.
    pub(crate) fn fan_out(&self, fanout: &Fanout) {
        for LiveTarget {
            target,
            slot,
            generation,
        } in &fanout.route.shards[fanout.index].targets
        {
            let target = &fanout.route.targets[*target as usize];
            let Some(delivery) = target.delivery(&fanout.message, fanout.entry) else {
                continue;
            };
            match self.inbox(*slot, *generation) {
                Some(inbox) => inbox.deliver(delivery, &self.engine),
                None => delivery.misses(&target.session, NOT_CONNECTED),
            }
        }
    }

    /// A group's delivery found its member's connection gone.
    fn return_delivery(&self, delivery: Delivery) {
        if let Origin::Group(group) = &delivery.origin {
            let group = Arc::clone(group);
            for (location, delivery) in group.take_back(vec![delivery]) {
                self.engine.send(location, delivery);
            }
        }
    }

    /// What is known of a topic.
    pub(crate) fn topic(&self, topic: &str) -> Result<Topic, InvalidTopic> {
        let mut topics = self.topics.borrow_mut();
        let router = &self.engine.router;
        let name = match topics.get(topic) {
            Some(known) if known.route.epoch == router.epoch() => return Ok(known.clone()),
            Some(known) => known.name.clone(),
            None => self.topic_name(topic)?,
        };
        let topic = Topic {
            route: Arc::new(router.route(topic)),
            counted: self.engine.stats.by_topic.of(topic),
            name,
        };
        topics.put(topic.clone());
        Ok(topic)
    }

    fn topic_name(&self, topic: &str) -> Result<TopicName, InvalidTopic> {
        let name = TopicName::new(topic)?;
        let found = name.levels().count();
        if found > self.engine.limits.load().max_topic_levels {
            return Err(InvalidTopic::TooManyLevels { found });
        }
        Ok(name)
    }

    /// Gives a connection its place.
    pub(crate) fn enter(
        &self,
        session: &Arc<Session>,
        counted: &Arc<OfClients>,
    ) -> Option<(Location, Rc<Inbox>)> {
        let max_bytes = self.engine.limits.load().max_live_bytes;
        let inbox = Rc::new(Inbox::new(Arc::clone(session), Arc::clone(counted), max_bytes));
        let (slot, generation) = self.slots.borrow_mut().enter(&inbox)?;
        Some((
            Location {
                shard: self.index,
                slot,
                generation,
            },
            inbox,
        ))
    }

    /// Takes a connection's place back; returns what still waited for it.
    pub(crate) fn leave(&self, location: Location) -> VecDeque<Delivery> {
        let inbox = self.slots.borrow_mut().leave(location.slot);
        let Some(inbox) = inbox else {
            return VecDeque::new();
        };
        let held = inbox.memory.take();
        self.engine.memory.account(self.index, held, 0);
        inbox.take()
    }

    fn inbox(&self, slot: u32, generation: u32) -> Option<Rc<Inbox>> {
        let slots = self.slots.borrow();
        let (used, inbox) = slots.all.get(slot as usize)?;
        (*used == generation).then(|| inbox.clone()).flatten()
    }

    fn inboxes(&self) -> Vec<Rc<Inbox>> {
        self.slots
            .borrow()
            .all
            .iter()
            .filter_map(|(_, inbox)| inbox.clone())
            .collect()
    }

    /// Connections that can't keep up, those with most bytes first.
    fn strained(&self, wanted: &Wanted) -> Vec<Strained> {
        let mut strained: Vec<_> = self
            .inboxes()
            .iter()
            .filter(|inbox| wanted.concerns(&inbox.session.client_id))
            .filter_map(|inbox| inbox.strain(self.index))
            .collect();
        strained.sort_by_key(|strained| Reverse(strained.live_bytes));
        strained.truncate(wanted.max);
        strained
    }

    /// A connection holds so many bytes in memory now; tells why it has to end, if it has to.
    pub(crate) fn holds(&self, inbox: &Inbox, bytes: usize) -> Result<(), &'static str> {
        if inbox.evicted.get() || inbox.memory.get() == bytes {
            return Ok(());
        }
        let before = inbox.memory.replace(bytes);
        let detail = match self.engine.memory.account(self.index, before, bytes) {
            Verdict::Fits => return Ok(()),
            Verdict::TooMuch => "the broker holds more for the client than it may for one",
            Verdict::Worst => EVICTED,
        };
        self.evict(inbox);
        self.engine.memory.set_worst(self.index, self.worst());
        Err(detail)
    }

    /// A connection ends because it holds too much: what it holds is as good as given back.
    fn evict(&self, inbox: &Inbox) {
        let held = inbox.memory.take();
        inbox.evicted.set(true);
        self.engine.memory.account(self.index, held, 0);
        self.engine.memory.count_ended();
        self.engine.stats.memory_ended.inc();
        tracing::warn!(client = %inbox.session.client_id, bytes = held, "a client holds too much memory");
    }

    /// What the connection holds that holds most.
    fn worst(&self) -> usize {
        let slots = self.slots.borrow();
        let inboxes = slots.all.iter().filter_map(|(_, inbox)| inbox.as_ref());
        inboxes.map(|inbox| inbox.memory.get()).max().unwrap_or_default()
    }

    /// Ends the connections that hold most until the quota is kept: those of this shard that are as bad as the worst of
    /// all, or half as bad.
    fn keep_memory_quota(&self) {
        let memory = &self.engine.memory;
        if memory.excess() > 0 {
            let mut inboxes = self.inboxes();
            inboxes.sort_by_key(|inbox| Reverse(inbox.memory.get()));
            for inbox in inboxes {
                let held = inbox.memory.get();
                if memory.excess() == 0 || held <= SPARED || held < memory.worst() / 2 {
                    break;
                }
                self.evict(&inbox);
                inbox.control(Control::Disconnect(ReasonCode::QuotaExceeded, EVICTED));
            }
        }
        memory.set_worst(self.index, self.worst());
    }

    /// Ends connections whose clients have fallen silent, or were let in by what has expired.
    fn watch(&self, now: Instant) {
        self.keep_memory_quota();
        let wall_clock = SystemTime::now();
        for inbox in self.inboxes() {
            if let Some(Expiry { detail, .. }) = inbox.expiry.get().filter(|expiry| expiry.at <= wall_clock) {
                inbox.expiry.set(None);
                inbox.control(Control::Disconnect(ReasonCode::NotAuthorized, detail));
            }
            if inbox.deadline.get().is_some_and(|deadline| deadline <= now) {
                inbox.deadline.set(None);
                inbox.control(Control::Disconnect(
                    ReasonCode::KeepAliveTimeout,
                    "nothing was heard in time",
                ));
            }
        }
    }
}

impl Slots {
    fn enter(&mut self, inbox: &Rc<Inbox>) -> Option<(u32, u32)> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.all.len())
                    .ok()
                    .filter(|slot| *slot < MAX_SLOTS)?;
                self.all.push((0, None));
                slot
            }
        };
        let (generation, place) = &mut self.all[slot as usize];
        *place = Some(Rc::clone(inbox));
        Some((slot, *generation))
    }

    fn leave(&mut self, slot: u32) -> Option<Rc<Inbox>> {
        let (generation, place) = &mut self.all[slot as usize];
        let inbox = place.take();
        if inbox.is_some() {
            *generation = generation.wrapping_add(1);
            self.free.push(slot);
        }
        inbox
    }
}

impl Inbox {
    fn new(session: Arc<Session>, counted: Arc<OfClients>, max_bytes: usize) -> Self {
        Self {
            session,
            counted,
            deliveries: RefCell::default(),
            bytes: Cell::new(0),
            max_bytes,
            bytes_ahead: Cell::new(0),
            memory: Cell::new(0),
            evicted: Cell::new(false),
            controls: RefCell::default(),
            waker: RefCell::default(),
            deadline: Cell::new(None),
            expiry: Cell::new(None),
            missed: Cell::new(0),
            overrun: Cell::new(false),
        }
    }

    /// Leaves a delivery for the connection, if there is room.
    pub(crate) fn deliver(&self, delivery: Delivery, engine: &Engine) {
        let weight = weight(&delivery);
        let waiting = self.bytes.get() + self.bytes_ahead.get();
        // What a group hands out is bounded by the group, and would have to go back to it.
        let from_group = matches!(delivery.origin, Origin::Group(_)) && delivery.qos != Qos::AtMostOnce;
        let overshoots = delivery.qos != Qos::AtMostOnce && self.session.pressure.is_congested();
        let most = if overshoots {
            self.max_bytes + OVERSHOOT
        } else {
            self.max_bytes
        };
        if waiting > 0 && waiting + weight > most && !from_group {
            delivery.misses(&self.session, NO_ROOM);
            match delivery {
                Delivery { entry: 1.., .. } => self.missed.set(delivery.entry.max(self.missed.get())),
                Delivery {
                    qos: Qos::AtMostOnce, ..
                } => {
                    engine.stats.dropped_live.inc();
                    self.counted.traffic.count_dropped();
                    delivery.message.count_dropped();
                }
                _ => self.overrun.set(true),
            }
            self.wake();
            return;
        }
        if waiting > self.max_bytes / STRAINED && delivery.entry == 0 {
            self.session.pressure.raise();
        }
        self.bytes.set(self.bytes.get() + weight);
        self.deliveries.borrow_mut().push_back(delivery);
        self.wake();
    }

    /// What is to be told of its connection, if that can't keep up.
    fn strain(&self, shard: u8) -> Option<Strained> {
        let live_bytes = self.bytes.get() + self.bytes_ahead.get();
        let keeping = self.session.pressure.keeping();
        let strained = keeping != Keeping::Up || live_bytes > self.max_bytes / STRAINED;
        strained.then(|| Strained {
            client_id: self.session.client_id.to_string(),
            shard,
            keeping,
            deliveries: self.deliveries.borrow().len(),
            live_bytes,
            max_live_bytes: self.max_bytes,
        })
    }

    /// Leaves a word for the connection.
    pub(crate) fn control(&self, control: Control) {
        self.controls.borrow_mut().push_back(control);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whom to wake when something arrives.
    pub(crate) fn register(&self, waker: &Waker) {
        let mut known = self.waker.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    /// The next delivery.
    pub(crate) fn next(&self) -> Option<Delivery> {
        let delivery = self.deliveries.borrow_mut().pop_front()?;
        self.bytes.set(self.bytes.get() - weight(&delivery));
        Some(delivery)
    }

    /// The next word.
    pub(crate) fn next_control(&self) -> Option<Control> {
        self.controls.borrow_mut().pop_front()
    }

    /// The highest entry that found no room since the last call; 0 if all did.
    pub(crate) fn take_missed(&self) -> EntryId {
        self.missed.take()
    }

    /// Whether something found no room that should not be lost in silence.
    pub(crate) fn is_overrun(&self) -> bool {
        self.overrun.get()
    }

    /// Tells publishers that they may go on, if little enough waits.
    pub(crate) fn relieve(&self) {
        if self.bytes.get() + self.bytes_ahead.get() < self.max_bytes / 8 {
            self.session.pressure.clear();
        }
    }

    /// Bytes that wait for the connection, here and further on.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.bytes.get() + self.bytes_ahead.get()
    }

    fn take(&self) -> VecDeque<Delivery> {
        self.bytes.set(0);
        self.deliveries.take()
    }
}

/// What a waiting delivery weighs, in bytes.
pub(crate) fn weight(delivery: &Delivery) -> usize {
    std::mem::size_of::<Delivery>() + delivery.message.weight()
}
