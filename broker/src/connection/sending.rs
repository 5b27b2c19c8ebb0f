//! Deliveries to the client: the window, what is in flight, and what is settled (MQTT 5.0 sections 4.3 and 4.9).

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use foreshore_record::{DropReason, Outcome, Qos, TopicFilter, TopicName};
use foreshore_store::{
    Completion, Direction, EntryFlags, EntryId, Inflight, Operation, ReceiverId, Settlement, StoreError,
    Submitted, committer::TrySubmitError,
};

use super::{
    Connection,
    drain::{Drain, Resend},
    ending::Ending,
};
use crate::{
    engine::{
        Engine,
        backlog::Offered,
        delivery::{Delivery, Origin},
        publish::NO_ROOM,
        shard::weight,
    },
    inspect::trace,
    message::{Hop, Message},
    session::{
        Subscription,
        state::{Held, InFlight, Phase},
    },
    shared::Group,
    wire::{
        ReasonCode, encode,
        packet::{Ack, AckKind},
    },
};

/// Live deliveries that wait for the window before a durable session goes back to its queue.
const MAX_QUEUE: usize = 1024;

/// Retained messages that are stored for a durable session at once.
const REPLAY_AT_ONCE: usize = 64;

/// What is on its way to the client.
#[derive(Debug)]
pub(super) struct Sending {
    /// Most messages in flight.
    window: usize,
    /// Deliveries with quality of service 0 that wait for room.
    zero: VecDeque<Delivery>,
    /// Deliveries with quality of service 1 and 2 that wait for the window, or for room.
    pub(super) queue: VecDeque<Delivery>,
    /// What the waiting deliveries weigh.
    waiting_bytes: usize,
    /// Retained messages that are to be sent because of a subscription.
    replay: VecDeque<Delivery>,
    /// What was in flight when the last connection ended and is to be sent again.
    resend: VecDeque<Resend>,
    /// Reading of the session's queue, if it has one. Boxed, since most connections are idle and have none.
    pub(super) drain: Option<Box<Drain>>,
    /// Topic aliases that the client knows, and how many it takes.
    aliases: HashMap<TopicName, u16>,
    max_aliases: u16,
    /// What is to be stored, and what follows.
    operations: Vec<Operation>,
    settlements: Vec<(ReceiverId, Vec<Settlement>)>,
    after: Vec<After>,
    submitting: Option<(Submit, Vec<After>)>,
    storing: VecDeque<(Completion, Vec<After>)>,
}

struct Submit(Pin<Box<dyn Future<Output = Result<Submitted, StoreError>>>>);

impl std::fmt::Debug for Submit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Submit")
    }
}

/// What follows when operations are stored.
#[derive(Debug)]
enum After {
    /// An entry of a group is settled for good.
    Settled(Arc<Group>, EntryId),
    /// An entry of the session's queue is settled for good.
    SettledOwn(EntryId),
    /// A packet identifier is durable, or with quality of service 0, whose identifier is 0, the end of the entry: the
    /// message is sent.
    Publish(u16, Delivery),
    /// The reception is durable: the message is released.
    Release(u16),
    /// A retained message is in the session's queue; it is delivered as soon as it has its id, the one after so many.
    Replayed(u64, Delivery),
}

impl Sending {
    pub(super) fn new(window: u16, max_aliases: u16, drain: Option<Box<Drain>>) -> Self {
        Self {
            window: window.into(),
            zero: VecDeque::new(),
            queue: VecDeque::new(),
            waiting_bytes: 0,
            replay: VecDeque::new(),
            resend: VecDeque::new(),
            drain,
            aliases: HashMap::new(),
            max_aliases,
            operations: Vec::new(),
            settlements: Vec::new(),
            after: Vec::new(),
            submitting: None,
            storing: VecDeque::new(),
        }
    }

    /// Adds something that is to be stored.
    pub(super) fn operation(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// An entry leaves its queue.
    pub(super) fn settle(
        &mut self,
        receiver: ReceiverId,
        group: Option<Arc<Group>>,
        id: EntryId,
        outcome: Outcome,
    ) {
        let emitted = u32::from(outcome == Outcome::Delivered);
        let settlement = Settlement { id, emitted, outcome };
        match self.settlements.iter_mut().find(|(known, _)| *known == receiver) {
            Some((_, settlements)) => settlements.push(settlement),
            None => self.settlements.push((receiver, vec![settlement])),
        }
        if let Some(group) = group {
            self.after.push(After::Settled(group, id));
        } else if let Some(drain) = self.drain.as_mut().filter(|drain| drain.receiver == receiver) {
            drain.settles(id);
            self.after.push(After::SettledOwn(id));
        }
    }

    /// All operations that wait, settlements first.
    pub(super) fn take_operations(&mut self) -> Vec<Operation> {
        let settlements = std::mem::take(&mut self.settlements).into_iter();
        let mut operations: Vec<_> = settlements
            .map(|(receiver, settlements)| Operation::Settle {
                receiver,
                epoch: 0,
                settlements,
            })
            .collect();
        operations.append(&mut self.operations);
        operations
    }

    /// Stores what is not stored yet, and lets groups know when their entries are settled for good.
    pub(super) async fn finish(&mut self, engine: &Arc<Engine>) -> Result<(), StoreError> {
        if let Some((Submit(submit), after)) = self.submitting.take() {
            self.storing.push_back((submit.await?.completion, after));
        }
        let operations = self.take_operations();
        if !operations.is_empty() {
            let submitted = engine.committer.submit(operations).await?;
            self.storing
                .push_back((submitted.completion, std::mem::take(&mut self.after)));
        }
        let of_groups = |after: After| match after {
            After::Settled(group, entry) => Some((group, entry)),
            _ => None,
        };
        let storing = std::mem::take(&mut self.storing).into_iter();
        let storing: Vec<_> = storing
            .map(|(completion, after)| {
                (
                    completion,
                    after.into_iter().filter_map(of_groups).collect::<Vec<_>>(),
                )
            })
            .filter(|(_, settled)| !settled.is_empty())
            .collect();
        if !storing.is_empty() {
            engine.spawn("settle".to_owned(), async move {
                for (completion, settled) in storing {
                    if completion.await.is_ok() {
                        for (group, entry) in settled {
                            group.settled(entry);
                        }
                    }
                }
            });
        }
        Ok(())
    }

    /// Retained messages that are still to be sent.
    pub(super) fn replay_len(&self) -> usize {
        self.replay.len()
    }

    /// All deliveries that were not sent.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = Delivery> {
        self.waiting_bytes = 0;
        std::mem::take(&mut self.zero)
            .into_iter()
            .chain(std::mem::take(&mut self.queue))
    }

    /// Sends a message again, as soon as the window allows it.
    pub(super) fn push_resend(&mut self, resend: Resend) {
        self.resend.push_back(resend);
    }

    pub(super) fn push(&mut self, delivery: Delivery) {
        self.waiting_bytes += weight(&delivery);
        self.queue.push_back(delivery);
    }
}

impl Connection {
    /// Delivers whatever can be delivered.
    pub(super) fn poll_sending(&mut self, context: &mut Context<'_>) -> Result<bool, Box<Ending>> {
        let mut progress = self.poll_stored(context)?;
        progress |= self.poll_drain(context)?;
        while let Some(delivery) = self.inbox.next() {
            self.offer(delivery);
            progress = true;
        }
        let missed = self.inbox.take_missed();
        if missed > 0 {
            self.fall_back(missed);
            progress = true;
        }
        if self.inbox.is_overrun() {
            let detail = "the client is too slow for the messages that it subscribed to";
            return Err(Ending::refused(ReasonCode::QuotaExceeded, detail).into());
        }
        progress |= self.pump();
        progress |= self.store()?;
        self.inbox.bytes_ahead.set(self.sending.waiting_bytes);
        self.inbox.relieve();
        Ok(progress)
    }

    /// A delivery arrives live.
    pub(super) fn offer(&mut self, delivery: Delivery) {
        let from_queue = delivery.entry != 0 && matches!(delivery.origin, Origin::Session);
        let delivery = match &mut self.sending.drain {
            Some(drain) if from_queue => {
                match drain.backlog.offer(delivery.entry, weight(&delivery), delivery) {
                    Offered::Deliver(delivery) => delivery,
                    Offered::Covered => return,
                }
            }
            _ => delivery,
        };
        self.place(delivery);
    }

    fn place(&mut self, delivery: Delivery) {
        let zero = delivery.qos == Qos::AtMostOnce;
        let first = if zero {
            self.sending.zero.is_empty()
        } else {
            self.sending.queue.is_empty()
        };
        if first && self.has_room_outside() && (zero || self.window_is_open()) {
            self.send(delivery);
        } else if zero {
            self.sending.waiting_bytes += weight(&delivery);
            self.sending.zero.push_back(delivery);
        } else {
            self.sending.push(delivery);
            if self.sending.queue.len() > MAX_QUEUE && self.sending.drain.is_some() {
                self.fall_back(0);
            }
        }
    }

    /// Leaves what is in the session's queue there, to be read when there is room.
    fn fall_back(&mut self, missed: EntryId) {
        let Some(drain) = &mut self.sending.drain else {
            return;
        };
        let own = |delivery: &Delivery| delivery.entry != 0 && matches!(delivery.origin, Origin::Session);
        let mut floor = missed;
        for waiting in [&mut self.sending.queue, &mut self.sending.zero] {
            waiting.retain(|delivery| {
                if own(delivery) {
                    delivery.misses(&self.session, NO_ROOM);
                    floor = floor.max(delivery.entry);
                }
                !own(delivery)
            });
        }
        let waiting = self.sending.queue.iter().chain(&self.sending.zero);
        self.sending.waiting_bytes = waiting.map(weight).sum();
        drain.backlog.fall_back(floor);
    }

    fn window_is_open(&self) -> bool {
        self.state.outbound.len() < self.sending.window
    }

    /// Whether one of the messages that are to be sent again fits into the window, which may have become smaller: they
    /// are among those in flight though they were not sent on this connection.
    fn may_resend(&self) -> bool {
        let unread = self.sending.drain.as_deref().map_or(0, Drain::to_resume);
        let not_sent = unread + self.sending.resend.len();
        self.state.outbound.len().saturating_sub(not_sent) < self.sending.window
    }

    /// Sends what waits, as far as there is room.
    fn pump(&mut self) -> bool {
        let mut progress = false;
        while self.has_room_outside()
            && self.may_resend()
            && let Some(Resend {
                packet_id,
                delivery,
                dup,
            }) = self.sending.resend.pop_front()
        {
            // The client may have acknowledged it meanwhile.
            if let Some(in_flight) = self.state.outbound.get_mut(&packet_id) {
                // Its packet identifier was stored before the connection began.
                in_flight.phase = Phase::Sent;
                in_flight.leg = delivery.leg(&self.session).map(Box::new);
                self.write(&delivery, packet_id, dup);
            }
            progress = true;
        }
        while self.has_room_outside()
            && let Some(delivery) = self.sending.zero.pop_front()
        {
            self.sending.waiting_bytes -= weight(&delivery);
            self.send(delivery);
            progress = true;
        }
        while self.has_room_outside()
            && self.window_is_open()
            && let Some(delivery) = self.sending.queue.pop_front()
        {
            self.sending.waiting_bytes -= weight(&delivery);
            self.send(delivery);
            progress = true;
        }
        while self.has_room_outside()
            && self.sending.queue.is_empty()
            && self.sending.operations.len() < REPLAY_AT_ONCE
            && let Some(delivery) = self.sending.replay.pop_front()
        {
            self.replay(delivery);
            progress = true;
        }
        progress
    }

    /// Sends a message, or settles it if it can't be.
    pub(super) fn send(&mut self, delivery: Delivery) {
        let now = self.engine.now();
        if delivery.message.is_expired(now) {
            return self.give_up(delivery, DropReason::EXPIRED);
        }
        let hop = self.hop(&delivery);
        if delivery.message.packet_size(&hop) > self.client.maximum_packet_size {
            return self.give_up(delivery, DropReason::TOO_LARGE);
        }
        if delivery.qos == Qos::AtMostOnce {
            return self.send_qos0(delivery);
        }
        let Some(packet_id) = self.state.next_packet_id() else {
            // The window is smaller than the number of identifiers, so that this can't be.
            return self.sending.push(delivery);
        };
        let durable = delivery.entry != 0 && self.session.receiver.is_some();
        let store_first = durable && delivery.qos == Qos::ExactlyOnce;
        let phase = if store_first { Phase::Storing } else { Phase::Sent };
        let held = match &delivery.origin {
            Origin::Session if delivery.entry == 0 => Held::Nowhere,
            Origin::Session => {
                if let Some(drain) = &mut self.sending.drain {
                    drain.backlog.hold(delivery.entry);
                }
                Held::Own(delivery.entry)
            }
            Origin::Group(group) => Held::Group(Box::new(delivery.clone()), Arc::clone(group)),
        };
        self.state.outbound.insert(
            packet_id,
            InFlight {
                held,
                qos: delivery.qos,
                phase,
                leg: delivery.leg(&self.session).map(Box::new),
            },
        );
        if store_first {
            self.store_packet_id(packet_id, delivery);
        } else {
            self.write(&delivery, packet_id, false);
        }
    }

    /// With quality of service 0 nothing is sent twice: what is in a queue has left it for good before it is sent.
    fn send_qos0(&mut self, delivery: Delivery) {
        if delivery.entry == 0 {
            self.write(&delivery, 0, false);
        } else {
            self.sending.after.push(After::Publish(0, delivery.clone()));
        }
        self.settle(delivery, Outcome::Delivered);
    }

    /// With quality of service 2 the packet identifier has to survive a crash, or the client could get the message
    /// twice.
    fn store_packet_id(&mut self, packet_id: u16, delivery: Delivery) {
        let queue = match &delivery.origin {
            Origin::Session => self.session.receiver,
            Origin::Group(group) => group.receiver(),
        };
        if let (Some(slot), Some(receiver)) = (self.state.slot(Direction::Outbound, packet_id), queue) {
            let state = Inflight::Sent {
                receiver,
                id: delivery.entry,
            };
            self.sending.operation(Operation::SetInflight { slot, state });
        }
        self.sending.after.push(After::Publish(packet_id, delivery));
    }

    fn hop<'a>(&self, delivery: &'a Delivery) -> Hop<'a> {
        let topic = &delivery.message.topic;
        let alias = match self.sending.aliases.get(topic) {
            Some(&alias) => Some((alias, false)),
            None if self.sending.aliases.len() < usize::from(self.sending.max_aliases) => {
                Some((self.sending.aliases.len() as u16 + 1, true))
            }
            None => None,
        };
        Hop {
            version: self.client.version,
            qos: delivery.qos,
            retain: delivery.retain,
            dup: false,
            packet_id: 0,
            identifiers: delivery.identifiers.as_deref().unwrap_or_default(),
            alias,
            now: self.engine.now(),
        }
    }

    pub(super) fn write(&mut self, delivery: &Delivery, packet_id: u16, dup: bool) {
        let hop = Hop {
            packet_id,
            dup,
            ..self.hop(delivery)
        };
        if let Some((alias, true)) = hop.alias {
            self.sending.aliases.insert(delivery.message.topic.clone(), alias);
        }
        if let Some(payload) = delivery.message.write(&hop, self.out.tail()) {
            self.out.append(payload);
        }
        if let Some(leg) = delivery.leg(&self.session) {
            leg.record(|receiver, client| trace::Hop::Sent {
                receiver,
                client,
                qos: delivery.qos,
                packet_id,
                dup,
            });
        }
        let bytes = delivery.message.payload.len();
        self.client.counted.traffic.count_sent(bytes);
        if !self.client.principal.is_probe() {
            self.engine.stats.sent.inc();
            self.engine.stats.sent_bytes.inc_by(bytes as u64);
            self.count_sent_topic(&delivery.message);
        }
    }

    fn count_sent_topic(&self, message: &Message) {
        let bytes = message.payload.len();
        if let Some(counted) = &message.counted {
            counted.count_sent(bytes);
        } else if self.engine.stats.by_topic.is_counting()
            // What comes from a queue or was retained: the shard knows its topic, or learns it once.
            && let Ok(topic) = self.shard.topic(message.topic.as_str())
            && let Some(counted) = &topic.counted
        {
            counted.count_sent(bytes);
        }
    }

    /// A delivery ends without having been sent.
    pub(super) fn give_up(&mut self, delivery: Delivery, reason: DropReason) {
        if delivery.entry == 0 {
            self.engine.stats.dropped_live.inc();
            self.client.counted.traffic.count_dropped();
            delivery.message.count_dropped();
        }
        if let Some(leg) = delivery.leg(&self.session) {
            leg.record(|receiver, _| trace::Hop::Dropped {
                receiver,
                reason: reason.to_string(),
            });
        }
        self.settle(delivery, Outcome::Dropped { reason });
    }

    /// A delivery is done.
    fn settle(&mut self, delivery: Delivery, outcome: Outcome) {
        let held = match delivery.origin.clone() {
            Origin::Session => Held::Own(delivery.entry),
            Origin::Group(group) => Held::Group(Box::new(delivery), group),
        };
        self.complete(held, outcome);
    }

    /// A delivery is done: its entry leaves its queue.
    fn complete(&mut self, held: Held, outcome: Outcome) {
        match held {
            Held::Nowhere | Held::Own(0) => {}
            Held::Own(id) => {
                if let Some(receiver) = self.session.receiver {
                    self.sending.settle(receiver, None, id, outcome);
                }
            }
            Held::GroupQueue(receiver, id) => self.sending.settle(receiver, None, id, outcome),
            Held::Group(delivery, group) => {
                if let (Some(receiver), 1..) = (group.receiver(), delivery.entry) {
                    self.sending
                        .settle(receiver, Some(Arc::clone(&group)), delivery.entry, outcome);
                }
                if delivery.qos != Qos::AtMostOnce {
                    group.acknowledged(self.session.uid);
                }
                if let Some(next) = group.next_for(self.session.uid) {
                    self.place(next);
                }
                if group.begin_reading() {
                    self.engine.drain_group(group);
                }
            }
        }
    }

    /// A group may have something for this connection, which is new or new in the group.
    pub(super) fn serve_group(&mut self, group: &Arc<Group>) {
        for (location, delivery) in group.hand_out() {
            self.engine.send(location, delivery);
        }
        if group.begin_reading() {
            self.engine.drain_group(Arc::clone(group));
        }
    }

    /// Quality of service 1 is done.
    pub(super) fn on_puback(&mut self, ack: Ack) {
        let expected = |in_flight: &InFlight| in_flight.qos == Qos::AtLeastOnce;
        if !self.state.outbound.get(&ack.packet_id).is_some_and(expected) {
            return;
        }
        if let Some(in_flight) = self.state.outbound.remove(&ack.packet_id) {
            in_flight.trace_ack(ack);
            self.complete(in_flight.held, outcome_of(ack));
        }
    }

    /// Quality of service 2, first step.
    pub(super) fn on_pubrec(&mut self, ack: Ack) {
        let packet_id = ack.packet_id;
        let Some(in_flight) = self.state.outbound.get_mut(&packet_id) else {
            let reason = ReasonCode::PacketIdentifierNotFound;
            return encode::ack(
                self.client.version,
                AckKind::PubRel,
                packet_id,
                reason,
                self.out.tail(),
            );
        };
        match in_flight.phase {
            Phase::Sent if in_flight.qos == Qos::ExactlyOnce => {}
            Phase::Released => return self.release(packet_id),
            _ => return,
        }
        in_flight.trace_ack(ack);
        let held = std::mem::replace(&mut in_flight.held, Held::Nowhere);
        let durable = !matches!(held, Held::Nowhere) && self.session.receiver.is_some();
        let refused = ack.reason >= 0x80;
        if refused {
            self.state.outbound.remove(&packet_id);
        } else {
            in_flight.phase = Phase::Releasing;
        }
        self.complete(held, outcome_of(ack));
        let slot = self
            .state
            .slot(Direction::Outbound, packet_id)
            .filter(|_| durable);
        match (refused, slot) {
            (true, Some(slot)) => self.sending.operation(Operation::ClearInflight { slot }),
            (true, None) => {}
            (false, Some(slot)) => {
                self.sending.operation(Operation::SetInflight {
                    slot,
                    state: Inflight::Released,
                });
                self.sending.after.push(After::Release(packet_id));
            }
            (false, None) => self.release(packet_id),
        }
    }

    /// Quality of service 2, second step.
    pub(super) fn release(&mut self, packet_id: u16) {
        if let Some(in_flight) = self.state.outbound.get_mut(&packet_id) {
            in_flight.phase = Phase::Released;
            in_flight.trace(|receiver, client| trace::Hop::Released {
                receiver,
                client,
                packet_id,
            });
        }
        encode::ack(
            self.client.version,
            AckKind::PubRel,
            packet_id,
            ReasonCode::Success,
            self.out.tail(),
        );
    }

    /// Quality of service 2 is done.
    pub(super) fn on_pubcomp(&mut self, ack: Ack) {
        let released = |in_flight: &InFlight| in_flight.phase == Phase::Released;
        if self.state.outbound.get(&ack.packet_id).is_some_and(released) {
            if let Some(in_flight) = self.state.outbound.remove(&ack.packet_id) {
                in_flight.trace_ack(ack);
            }
            if let Some(slot) = self.state.slot(Direction::Outbound, ack.packet_id) {
                self.sending.operation(Operation::ClearInflight { slot });
            }
        }
    }

    /// Sends retained messages because of a subscription.
    pub(super) fn replay_retained(&mut self, filter: &TopicFilter, subscription: &Subscription) {
        let identifiers = subscription
            .identifier
            .map(|identifier| [identifier.get()].into());
        let (replay, permissions) = (&mut self.sending.replay, &self.client.permissions);
        self.engine
            .retained
            .matching(filter.as_str(), self.engine.clock.now(), |message| {
                if permissions.may_receive(&message.topic).is_ok() {
                    replay.push_back(Delivery {
                        message: Arc::clone(message),
                        entry: 0,
                        qos: subscription.options.qos.min(message.qos),
                        retain: true,
                        identifiers: Option::clone(&identifiers),
                        origin: Origin::Session,
                    });
                }
            });
    }

    fn replay(&mut self, delivery: Delivery) {
        match self.session.receiver {
            Some(receiver) if delivery.qos != Qos::AtMostOnce => {
                let flags = EntryFlags {
                    qos: delivery.qos,
                    retain: true,
                    subscription_identifiers: delivery.identifiers.as_deref().unwrap_or_default().to_vec(),
                };
                let ordinal = self.sending.operations.iter().map(Operation::ids).sum();
                self.sending
                    .operation(Operation::Publish(foreshore_store::Publish {
                        message: delivery.message.to_stored(),
                        receivers: vec![(receiver, flags)],
                        update_retained: false,
                        receipt: None,
                    }));
                self.sending.after.push(After::Replayed(ordinal, delivery));
            }
            _ => self.place(delivery),
        }
    }

    /// Stores what waits to be stored. Progress means that there is a completion to be polled, which wakes nobody before.
    fn store(&mut self) -> Result<bool, Box<Ending>> {
        if self.sending.submitting.is_some() {
            return Ok(false);
        }
        let operations = self.sending.take_operations();
        if operations.is_empty() {
            return Ok(false);
        }
        let after = std::mem::take(&mut self.sending.after);
        match self.engine.committer.try_submit(operations) {
            Ok(submitted) => self.stored(submitted, after),
            Err(TrySubmitError::Full(operations)) => {
                let committer = self.engine.committer.clone();
                let submit = async move { committer.submit(operations).await };
                self.sending.submitting = Some((Submit(Box::pin(submit)), after));
            }
            Err(TrySubmitError::Failed(error)) => return Err(Ending::store_failed(&error).into()),
        }
        Ok(true)
    }

    fn stored(&mut self, submitted: Submitted, after: Vec<After>) {
        let (replayed, after): (Vec<_>, Vec<_>) = after
            .into_iter()
            .partition(|after| matches!(after, After::Replayed(..)));
        self.sending.storing.push_back((submitted.completion, after));
        for after in replayed {
            if let After::Replayed(ordinal, delivery) = after {
                self.offer(Delivery {
                    entry: submitted.first_id + ordinal,
                    ..delivery
                });
            }
        }
    }

    /// Does what follows from operations that are durable.
    fn poll_stored(&mut self, context: &mut Context<'_>) -> Result<bool, Box<Ending>> {
        let mut progress = false;
        if let Some((Submit(submit), _)) = &mut self.sending.submitting
            && let Poll::Ready(submitted) = submit.as_mut().poll(context)
        {
            let submitted = submitted.map_err(|error| Ending::store_failed(&error))?;
            let after = self
                .sending
                .submitting
                .take()
                .map(|(_, after)| after)
                .unwrap_or_default();
            self.stored(submitted, after);
            progress = true;
        }
        while let Some((completion, _)) = self.sending.storing.front_mut()
            && let Poll::Ready(applied) = Pin::new(completion).poll(context)
        {
            applied.map_err(|error| Ending::store_failed(&error))?;
            let after = self
                .sending
                .storing
                .pop_front()
                .map(|(_, after)| after)
                .unwrap_or_default();
            for after in after {
                self.follow(after);
            }
            progress = true;
        }
        Ok(progress)
    }

    fn follow(&mut self, after: After) {
        match after {
            After::SettledOwn(entry) => {
                if let Some(drain) = &mut self.sending.drain {
                    drain.backlog.settled(entry);
                }
            }
            After::Settled(group, entry) => group.settled(entry),
            After::Publish(0, delivery) => self.write(&delivery, 0, false),
            After::Publish(packet_id, delivery) => {
                if let Some(in_flight) = self.state.outbound.get_mut(&packet_id) {
                    in_flight.phase = Phase::Sent;
                    self.write(&delivery, packet_id, false);
                }
            }
            After::Release(packet_id) => self.release(packet_id),
            After::Replayed(..) => {}
        }
    }
}

/// How a client's acknowledgement ends a delivery.
fn outcome_of(ack: Ack) -> Outcome {
    match ack.reason {
        0x80.. => Outcome::Dropped {
            reason: DropReason::REFUSED,
        },
        _ => Outcome::Delivered,
    }
}
