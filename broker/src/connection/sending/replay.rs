//! Retained messages that a client gets because it subscribed (MQTT 5.0 section 3.3.1.3).
//!
//! A SUBSCRIBE packet of some bytes may ask for all of them, and ten thousand times. So they are looked up when there is
//! room for them, and a few at a time: what waits is the subscription.

use std::{collections::VecDeque, mem::size_of, sync::Arc};

use foreshore_record::{Qos, TopicFilter, TopicName};
use foreshore_store::{EntryFlags, Operation};

use super::{After, Connection, Delivery, Origin};
use crate::{message::Message, session::Subscription};

/// Retained messages that are stored for a durable session at once.
const STORED_AT_ONCE: usize = 64;

/// Topics that are looked at before others have their turn.
const LOOKS: usize = 1024;

/// Retained messages that are to be sent.
#[derive(Debug, Default)]
pub(in crate::connection) struct Replays {
    /// Subscriptions whose messages were not all looked up.
    asked: VecDeque<Replay>,
    /// What the filters of these take, in bytes.
    filter_bytes: usize,
    /// What was found.
    found: VecDeque<Delivery>,
}

/// A subscription that is to get what is retained.
#[derive(Debug)]
struct Replay {
    filter: TopicFilter,
    subscription: Subscription,
    /// Where to go on.
    from: Option<TopicName>,
}

impl Replays {
    /// Subscriptions that wait for theirs.
    pub(in crate::connection) fn len(&self) -> usize {
        self.asked.len()
    }

    /// Bytes that wait.
    pub(in crate::connection) fn memory(&self) -> usize {
        self.filter_bytes + self.asked.len() * size_of::<Replay>() + self.found.len() * size_of::<Delivery>()
    }

    fn ask(&mut self, filter: TopicFilter, subscription: Subscription) {
        self.filter_bytes += filter.as_str().len();
        self.asked.push_back(Replay {
            filter,
            subscription,
            from: None,
        });
    }

    fn answered(&mut self) {
        if let Some(replay) = self.asked.pop_front() {
            self.filter_bytes -= replay.filter.as_str().len();
        }
    }
}

impl Connection {
    /// Sends what is retained for a subscription, as soon as there is room.
    pub(in crate::connection) fn replay_retained(&mut self, filter: TopicFilter, subscription: Subscription) {
        self.sending.replays.ask(filter, subscription);
    }

    /// Sends retained messages as far as there is room.
    pub(super) fn pump_retained(&mut self) -> bool {
        let mut progress = false;
        if self.has_room_outside() {
            progress = self.look_up_retained();
        }
        while self.has_room_outside()
            && self.sending.queue.is_empty()
            && self.sending.operations.len() < STORED_AT_ONCE
            && let Some(delivery) = self.sending.replays.found.pop_front()
        {
            self.replay(delivery);
            progress = true;
        }
        progress
    }

    /// Looks up a few retained messages, if none is there; tells whether it looked.
    fn look_up_retained(&mut self) -> bool {
        let replays = &mut self.sending.replays;
        let mut looks = LOOKS;
        while replays.found.is_empty()
            && looks > 0
            && let Some(Replay {
                filter,
                subscription,
                from,
            }) = replays.asked.front_mut()
        {
            let identifiers = subscription
                .identifier
                .map(|identifier| [identifier.get()].into());
            let permissions = &self.client.permissions;
            let found = &mut replays.found;
            let give = |message: &Arc<Message>| {
                if permissions.may_receive(&message.topic).is_ok() {
                    found.push_back(Delivery {
                        message: Arc::clone(message),
                        entry: 0,
                        qos: subscription.options.qos.min(message.qos),
                        retain: true,
                        identifiers: Option::clone(&identifiers),
                        origin: Origin::Session,
                    });
                }
            };
            // Whoever has unsubscribed meanwhile gets no more ([MQTT-3.10.4-2]).
            let is_wanted = self.state.subscriptions.contains_key(filter.as_str());
            let rest = is_wanted
                .then(|| {
                    let now = self.engine.clock.now();
                    self.engine
                        .retained
                        .matching(filter, from.take(), &mut looks, now, give)
                })
                .flatten();
            looks = looks.saturating_sub(1);
            match rest {
                Some(next) => *from = Some(next),
                None => replays.answered(),
            }
        }
        looks < LOOKS
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
}
