//! Deliveries to the client: what waits, and the window that it waits for (MQTT 5.0 sections 4.3 and 4.9).

mod replay;
mod settling;
mod storing;
mod writing;

use std::{
    collections::{HashMap, VecDeque},
    task::Context,
};

use foreshore_record::{Qos, TopicName};
use foreshore_store::{Completion, EntryId, Operation, ReceiverId, Settlement};

use self::{
    replay::Replays,
    storing::{After, Submit},
};
use super::{
    Connection,
    drain::{Drain, Resend},
    ending::Ending,
};
use crate::{
    engine::{
        backlog::Offered,
        delivery::{Delivery, Origin},
        publish::NO_ROOM,
        shard::weight,
    },
    session::state::Phase,
    wire::ReasonCode,
};

/// Live deliveries that wait for the window before a durable session goes back to its queue.
const MAX_QUEUE: usize = 1024;

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
    pub(super) replays: Replays,
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

impl Sending {
    pub(super) fn new(window: u16, max_aliases: u16, drain: Option<Box<Drain>>) -> Self {
        Self {
            window: window.into(),
            zero: VecDeque::new(),
            queue: VecDeque::new(),
            waiting_bytes: 0,
            replays: Replays::default(),
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
        progress | self.pump_retained()
    }
}
