//! Shared subscriptions (MQTT 5.0 section 4.8.2): one member of the group gets each message.
//!
//! A group is known by its name *and* its filter. As long as one of its members has a session that outlives its
//! connection, the group has a durable queue of its own, and what nobody can take waits there. What was handed to a
//! member and not acknowledged goes to another when the member's connection ends, except with quality of service 2,
//! where it stays with a session that may return.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use foreshore_record::{DropReason, Qos, TopicFilter};
use foreshore_store::{EntryId, Operation, Page, ReadRange, ReceiverId, Settlement, StoreError};
use parking_lot::Mutex;

use crate::{
    engine::{
        Engine,
        backlog::{AfterRead, Backlog, Offered},
        delivery::{Delivery, Origin},
        pressure::{Congestion, Pressure},
        router::Change,
        trace::Tracer,
    },
    inspect::trace,
    message::{Message, SessionUid},
    session::{Location, Session, Subscription},
};

/// Messages that wait in memory for a member with room.
const MAX_WAITING: usize = 1024;

/// Bytes that wait in memory for a member with room.
const MAX_WAITING_BYTES: usize = 1 << 20;

/// Name of a group's path in the ledger.
pub(crate) fn path_name(group: &str, filter: &str) -> String {
    format!("shared/{group}/{filter}")
}

/// A shared subscription.
#[derive(Debug)]
pub(crate) struct Group {
    /// Name of the group.
    pub(crate) name: String,
    /// Filter that the group shares.
    pub(crate) filter: TopicFilter,
    /// Whether publishers are to wait for it.
    pub(crate) pressure: Pressure,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    receiver: Option<ReceiverId>,
    members: Vec<Member>,
    /// Whose turn it is.
    turn: usize,
    backlog: Backlog<Item>,
    /// Whether somebody reads the queue.
    drained: bool,
    /// What no member could take yet.
    waiting: VecDeque<Item>,
    waiting_bytes: usize,
}

#[derive(Debug)]
struct Member {
    session: Arc<Session>,
    subscription: Subscription,
    /// Deliveries that it has not acknowledged.
    outstanding: usize,
    /// Most of them.
    limit: usize,
}

#[derive(Clone, Debug)]
struct Item {
    message: Arc<Message>,
    entry: EntryId,
}

/// What became of a message that was offered to a group.
#[derive(Debug)]
pub(crate) enum GroupOffer {
    /// A member gets it.
    Deliver(Location, Delivery),
    /// It waits, or it is covered by the durable queue.
    Kept,
    /// There was no room, and it is in no durable queue.
    Dropped,
}

impl Group {
    fn new(name: String, filter: TopicFilter, total: Arc<Congestion>) -> Self {
        let state = State {
            receiver: None,
            members: Vec::new(),
            turn: 0,
            backlog: Backlog::live(),
            drained: false,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        };
        Self {
            name,
            filter,
            pressure: Pressure::new(total),
            state: Mutex::new(state),
        }
    }

    /// Name of the group's path in the ledger, and of its queue.
    pub(crate) fn path_name(&self) -> String {
        path_name(&self.name, self.filter.as_str())
    }

    /// The group's durable queue, if it has one.
    pub(crate) fn receiver(&self) -> Option<ReceiverId> {
        self.state.lock().receiver
    }

    /// Gives the group a durable queue.
    pub(crate) fn make_durable(&self, receiver: ReceiverId) {
        self.state.lock().receiver.get_or_insert(receiver);
    }

    /// Takes over the durable queue that the store knows.
    pub(crate) fn restore(&self, receiver: ReceiverId) {
        let mut state = self.state.lock();
        if state.receiver.is_none() {
            state.receiver = Some(receiver);
            state.backlog = Backlog::draining();
        }
    }

    /// The group's durable queue is gone, because no member's session outlives its connection any more.
    pub(crate) fn make_volatile(&self) -> Option<ReceiverId> {
        let mut state = self.state.lock();
        state.backlog = Backlog::live();
        state.receiver.take()
    }

    /// Whether any member's session outlives its connection.
    pub(crate) fn has_durable_member(&self) -> bool {
        self.state
            .lock()
            .members
            .iter()
            .any(|member| member.session.receiver.is_some())
    }

    /// Whether any member is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.state.lock().anyone_connected()
    }

    /// Whether a client is a member.
    pub(crate) fn has_member(&self, client: &str) -> bool {
        let state = self.state.lock();
        let mut members = state.members.iter();
        members.any(|member| *member.session.client_id == *client)
    }

    /// Adds a member, or changes its options.
    pub(crate) fn join(&self, session: &Arc<Session>, subscription: Subscription, limit: usize) {
        let mut state = self.state.lock();
        match state.member(session.uid) {
            Some(index) => {
                let member = &mut state.members[index];
                member.subscription = subscription;
                member.limit = limit;
            }
            None => state.members.push(Member {
                session: Arc::clone(session),
                subscription,
                outstanding: 0,
                limit,
            }),
        }
    }

    /// Removes a member, and tells whether the group is empty now.
    pub(crate) fn leave(&self, uid: SessionUid) -> bool {
        let mut state = self.state.lock();
        state.members.retain(|member| member.session.uid != uid);
        state.members.is_empty()
    }

    /// A member's connection ended; it stays a member if its session does.
    pub(crate) fn disconnected(&self, uid: SessionUid) {
        let mut state = self.state.lock();
        if let Some(index) = state.member(uid) {
            state.members[index].outstanding = 0;
        }
    }

    /// Highest quality of service that any member asked for: below 1 nothing is queued.
    pub(crate) fn qos(&self) -> Qos {
        let state = self.state.lock();
        state
            .members
            .iter()
            .map(|member| member.subscription.options.qos)
            .max()
            .unwrap_or_default()
    }

    /// A message was published.
    pub(crate) fn offer(self: &Arc<Self>, message: &Arc<Message>, entry: EntryId) -> GroupOffer {
        let mut state = self.state.lock();
        let item = Item {
            message: Arc::clone(message),
            entry,
        };
        if entry == 0 || state.receiver.is_none() {
            return self.place(&mut state, item);
        }
        match state.backlog.offer(entry, message.weight(), item) {
            Offered::Deliver(item) => self.place(&mut state, item),
            Offered::Covered => GroupOffer::Kept,
        }
    }

    fn place(self: &Arc<Self>, state: &mut State, item: Item) -> GroupOffer {
        if state.waiting.is_empty()
            && let Some((location, delivery)) = state.hand_out(self, &item)
        {
            return GroupOffer::Deliver(location, delivery);
        }
        let durable = item.entry != 0 && state.receiver.is_some();
        if !state.anyone_connected() {
            if durable {
                state.fall_back(item.entry);
                return GroupOffer::Kept;
            }
            return GroupOffer::Dropped;
        }
        if state.waiting.len() < MAX_WAITING && state.waiting_bytes < MAX_WAITING_BYTES {
            state.keep(item);
            if !durable && state.waiting.len() > MAX_WAITING / 2 {
                self.pressure.raise();
            }
            return GroupOffer::Kept;
        }
        if durable {
            state.fall_back(item.entry);
            return GroupOffer::Kept;
        }
        GroupOffer::Dropped
    }

    /// A member has room: what it is to get next, if anything waits.
    pub(crate) fn next_for(self: &Arc<Self>, uid: SessionUid) -> Option<Delivery> {
        let mut state = self.state.lock();
        let index = state.member(uid)?;
        if !state.members[index].has_room() {
            return None;
        }
        let item = state.take_waiting()?;
        if state.waiting.len() <= MAX_WAITING / 4 {
            self.pressure.clear();
        }
        Some(state.give(self, index, &item))
    }

    /// A member acknowledged a delivery, or can't get it.
    pub(crate) fn acknowledged(&self, uid: SessionUid) {
        let mut state = self.state.lock();
        if let Some(index) = state.member(uid) {
            let member = &mut state.members[index];
            member.outstanding = member.outstanding.saturating_sub(1);
        }
    }

    /// An entry is settled for good.
    pub(crate) fn settled(&self, entry: EntryId) {
        self.state.lock().backlog.settled(entry);
    }

    /// An entry is in flight to a session that may return for it.
    pub(crate) fn hold(&self, entry: EntryId) {
        self.state.lock().backlog.hold(entry);
    }

    /// Deliveries come back from a member whose connection ended; what others get at once is returned.
    pub(crate) fn take_back(self: &Arc<Self>, deliveries: Vec<Delivery>) -> Vec<(Location, Delivery)> {
        let mut state = self.state.lock();
        for delivery in deliveries.into_iter().rev() {
            delivery.message.trace(|| trace::Hop::Returned {
                receiver: self.path_name(),
            });
            let item = Item {
                message: delivery.message,
                entry: delivery.entry,
            };
            state.waiting_bytes += item.message.weight();
            state.waiting.push_front(item);
        }
        state.hand_out_waiting(self)
    }

    /// Hands out what waits, as far as members have room.
    pub(crate) fn hand_out(self: &Arc<Self>) -> Vec<(Location, Delivery)> {
        self.state.lock().hand_out_waiting(self)
    }

    /// Begins to read the queue, if that is due and nobody does; then [`Group::step`] tells what to read.
    pub(crate) fn begin_reading(&self) -> bool {
        let mut state = self.state.lock();
        let due = state.receiver.is_some()
            && state.backlog.cursor().is_some()
            && state.waiting.len() < MAX_WAITING / 4
            && state.members.iter().any(Member::has_room);
        let begin = due && !state.drained;
        state.drained |= begin;
        begin
    }

    /// What the reader is to read: entries of this queue, after this one. `None` ends the reading.
    pub(crate) fn step(&self) -> Option<(ReceiverId, EntryId)> {
        let mut state = self.state.lock();
        let room = state.members.iter().any(Member::has_room) && state.waiting.len() < MAX_WAITING / 4;
        let receiver = state.receiver.filter(|_| room);
        let step = receiver.and_then(|receiver| Some((receiver, state.backlog.begin_read()?)));
        state.drained = step.is_some();
        step
    }

    /// Entries were read; what members get at once is returned, with what the reader is to wait for, and with what can't
    /// be delivered.
    pub(crate) fn read(
        self: &Arc<Self>,
        mut page: Page,
        tracer: &Tracer,
    ) -> (Vec<(Location, Delivery)>, Option<EntryId>, Vec<Settlement>) {
        let mut state = self.state.lock();
        let after = state.backlog.end_read(&mut page);
        let unreadable = crate::path::unreadable(&page);
        for settlement in &unreadable {
            state.backlog.hold(settlement.id);
        }
        for entry in page.entries {
            state.keep(Item {
                message: Arc::new(Message {
                    traced: tracer.of(entry.id),
                    ..Message::from_record(&entry.record, entry.expires_at)
                }),
                entry: entry.id,
            });
        }
        let floor = match after {
            AfterRead::More => None,
            AfterRead::AwaitCommit(floor) => Some(floor),
            AfterRead::Live(noted) => {
                for item in noted {
                    state.keep(item);
                }
                None
            }
        };
        (state.hand_out_waiting(self), floor, unreadable)
    }

    /// What the reader waited for is committed.
    pub(crate) fn resolved(&self, floor: EntryId) {
        self.state.lock().backlog.resolved(floor);
    }
}

impl State {
    fn member(&self, uid: SessionUid) -> Option<usize> {
        self.members.iter().position(|member| member.session.uid == uid)
    }

    fn anyone_connected(&self) -> bool {
        self.members
            .iter()
            .any(|member| member.session.location().is_some())
    }

    /// Finds a member with room, in turn.
    fn hand_out(&mut self, group: &Arc<Group>, item: &Item) -> Option<(Location, Delivery)> {
        let count = self.members.len();
        let candidates = (0..count).map(|step| (self.turn + step) % count);
        let (index, location) = candidates
            .filter_map(|index| {
                let member = &self.members[index];
                member
                    .session
                    .location()
                    .filter(|_| member.has_room())
                    .map(|location| (index, location))
            })
            .next()?;
        self.turn = (index + 1) % count;
        Some((location, self.give(group, index, item)))
    }

    fn give(&mut self, group: &Arc<Group>, index: usize, item: &Item) -> Delivery {
        let member = &mut self.members[index];
        let options = member.subscription.options;
        let qos = options.qos.min(item.message.qos);
        if qos != Qos::AtMostOnce {
            member.outstanding += 1;
        }
        if item.entry != 0 {
            self.backlog.hold(item.entry);
        }
        item.message.trace(|| trace::Hop::Assigned {
            receiver: group.path_name(),
            client: member.session.client_id.to_string(),
        });
        Delivery {
            message: Arc::clone(&item.message),
            entry: item.entry,
            qos,
            retain: options.retain_as_published && item.message.retain,
            identifiers: member
                .subscription
                .identifier
                .map(|identifier| [identifier.get()].into()),
            origin: Origin::Group(Arc::clone(group)),
        }
    }

    /// Keeps an item until a member has room.
    fn keep(&mut self, item: Item) {
        if item.entry != 0 {
            self.backlog.hold(item.entry);
        }
        self.waiting_bytes += item.message.weight();
        self.waiting.push_back(item);
    }

    fn take_waiting(&mut self) -> Option<Item> {
        let item = self.waiting.pop_front()?;
        self.waiting_bytes -= item.message.weight();
        Some(item)
    }

    fn hand_out_waiting(&mut self, group: &Arc<Group>) -> Vec<(Location, Delivery)> {
        let mut handed_out = Vec::new();
        while let Some(item) = self.take_waiting() {
            match self.hand_out(group, &item) {
                Some(delivery) => handed_out.push(delivery),
                None => {
                    self.waiting_bytes += item.message.weight();
                    self.waiting.push_front(item);
                    break;
                }
            }
        }
        if self.waiting.len() <= MAX_WAITING / 4 {
            group.pressure.clear();
        }
        handed_out
    }

    /// Leaves what is durable to the queue.
    fn fall_back(&mut self, entry: EntryId) {
        let floor = self
            .waiting
            .iter()
            .map(|item| item.entry)
            .fold(entry, EntryId::max);
        for item in self.waiting.iter().filter(|item| item.entry != 0) {
            self.backlog.give_back(item.entry);
        }
        self.waiting.retain(|item| item.entry == 0);
        self.waiting_bytes = self.waiting.iter().map(|item| item.message.weight()).sum();
        self.backlog.fall_back(floor);
    }
}

impl Member {
    fn has_room(&self) -> bool {
        self.outstanding < self.limit
            && self.session.location().is_some()
            && !self.session.pressure.is_congested()
    }
}

// === all groups ===

/// All shared subscriptions, by name of the group and filter.
#[derive(Debug, Default)]
pub(crate) struct Groups(Mutex<HashMap<(String, String), Arc<Group>>>);

/// What follows from a member's coming or going.
#[derive(Debug, Default)]
pub(crate) struct Consequences {
    /// Changes of the table of subscriptions.
    pub(crate) changes: Vec<Change>,
    /// What is to be stored.
    pub(crate) operations: Vec<Operation>,
}

impl Groups {
    /// Adds a member to a group, which is made if it is not there.
    pub(crate) fn join(
        &self,
        engine: &Engine,
        name: &str,
        filter: &TopicFilter,
        session: &Arc<Session>,
        subscription: Subscription,
    ) -> (Arc<Group>, Consequences) {
        let mut consequences = Consequences::default();
        let mut groups = self.0.lock();
        let group = groups
            .entry((name.to_owned(), filter.to_string()))
            .or_insert_with(|| {
                let total = Arc::clone(&engine.congestion);
                let group = Arc::new(Group::new(name.to_owned(), filter.clone(), total));
                consequences.changes.push(Change::AddGroup(Arc::clone(&group)));
                group
            });
        let limits = engine.limits.load();
        group.join(session, subscription, limits.max_inflight.into());
        if session.receiver.is_some() && group.receiver().is_none() {
            let name = group.path_name();
            consequences.operations.push(Operation::PutReceiver {
                name,
                limits: limits.queue(),
            });
        }
        (Arc::clone(group), consequences)
    }

    /// Removes a member from its group, and the group with its last member. With its last durable member goes its queue.
    pub(crate) fn leave(&self, group: &Arc<Group>, uid: SessionUid) -> Consequences {
        let mut consequences = Consequences::default();
        let mut groups = self.0.lock();
        if group.leave(uid) {
            groups.remove(&(group.name.clone(), group.filter.to_string()));
            consequences.changes.push(Change::RemoveGroup(Arc::clone(group)));
        }
        if !group.has_durable_member()
            && let Some(receiver) = group.make_volatile()
        {
            let reason = DropReason::SESSION_ENDED;
            consequences
                .operations
                .push(Operation::DropReceiver { receiver, reason });
        }
        consequences
    }

    /// All groups.
    pub(crate) fn all(&self) -> Vec<Arc<Group>> {
        self.0.lock().values().cloned().collect()
    }
}

impl Engine {
    /// Reads a group's queue until its members have enough to do, or all of it was read.
    pub(crate) fn drain_group(self: &Arc<Self>, group: Arc<Group>) {
        let engine = Arc::clone(self);
        let name = format!("drain {}", group.path_name());
        self.spawn(name, async move {
            if let Err(error) = drain(&engine, &group).await {
                // The committer tells the role as well; without a store there is nothing to go on with.
                tracing::error!(%error, group = group.name, filter = %group.filter, "can't read the queue");
            }
        });
    }
}

async fn drain(engine: &Arc<Engine>, group: &Arc<Group>) -> Result<(), StoreError> {
    while let Some((receiver, after)) = group.step() {
        let range = ReadRange {
            after,
            before: None,
            max_entries: MAX_WAITING / 4,
            max_bytes: MAX_WAITING_BYTES,
        };
        let page = match engine.read(receiver, range).await {
            Ok(page) => page?,
            Err(_) => return Ok(()),
        };
        let (deliveries, floor, unreadable) = group.read(page, &engine.tracer);
        for (location, delivery) in deliveries {
            engine.send(location, delivery);
        }
        if !unreadable.is_empty() {
            let settled: Vec<_> = unreadable.iter().map(|settlement| settlement.id).collect();
            let traced = engine.tracer.settled(&group.path_name(), &unreadable);
            let settle = Operation::Settle {
                receiver,
                epoch: 0,
                settlements: unreadable,
            };
            engine.committer.commit(vec![settle]).await?;
            for entry in settled {
                group.settled(entry);
            }
            for (traced, hop) in traced {
                traced.record(hop);
            }
        }
        if let Some(floor) = floor {
            engine.committer.commit(Vec::new()).await?;
            group.resolved(floor);
        }
    }
    Ok(())
}
