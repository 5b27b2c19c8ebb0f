//! The part of a session that only its connection sees; while there is none, the registry keeps it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use foreshore_record::{DropReason, Qos};
use foreshore_store::{Direction, EntryId, Inflight, ReceiverId, Slot};

use super::{Session, Subscription};
use crate::{engine::trace::Leg, inspect::trace, shared::Group, wire::packet::Ack};

/// What a subscription takes beside its filter, in bytes: here, and in both copies of the table of subscriptions.
const SUBSCRIPTION: usize = 512;

/// What an entry of a map takes beside its value, in bytes.
const ENTRY: usize = 32;

/// State of a session (MQTT 5.0 section 4.1).
#[derive(Debug)]
pub(crate) struct SessionState {
    /// The part that all shards see.
    pub(crate) session: Arc<Session>,
    /// Subscriptions by filter as the client wrote it, `$share/…` included.
    pub(crate) subscriptions: HashMap<Arc<str>, Subscribed>,
    /// Bytes of all filters.
    pub(crate) filter_bytes: usize,
    /// Keys of the state store that it is notified of.
    pub(crate) watches: HashSet<Bytes>,
    /// Packet identifiers of the client with quality of service 2 whose PUBREL is awaited.
    pub(crate) inbound: HashSet<u16>,
    /// Packet identifiers of ours that are in use.
    pub(crate) outbound: BTreeMap<u16, InFlight>,
    /// The last packet identifier that was given out.
    last_packet_id: u16,
    /// Seconds that the session outlives its connection; `u32::MAX` for ever.
    pub(crate) expiry: u32,
    /// Whether the messages in flight were read back from the store.
    pub(crate) restored: bool,
}

/// A subscription, and the group that it shares.
#[derive(Debug)]
pub(crate) struct Subscribed {
    /// Options and identifier.
    pub(crate) subscription: Subscription,
    /// The group of a shared subscription.
    pub(crate) group: Option<Arc<Group>>,
    /// Where it is counted, for as long as it is there.
    counted: SubscriptionCount,
}

/// How many subscriptions all sessions have.
#[derive(Debug, Default)]
pub(crate) struct SubscriptionCount(Arc<AtomicUsize>);

impl SubscriptionCount {
    /// So many; several who ask at the same moment may each find room for the last one.
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A subscription that is counted until it is dropped.
    pub(crate) fn count(&self, subscription: Subscription, group: Option<Arc<Group>>) -> Subscribed {
        self.0.fetch_add(1, Ordering::Relaxed);
        Subscribed {
            subscription,
            group,
            counted: Self(Arc::clone(&self.0)),
        }
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        self.counted.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A message in flight to the client.
#[derive(Clone, Debug)]
pub(crate) struct InFlight {
    /// Where its entry is.
    pub(crate) held: Held,
    /// Quality of service, 1 or 2.
    pub(crate) qos: Qos,
    /// How far it is.
    pub(crate) phase: Phase,
    /// Where its hops are recorded, if somebody asked about it.
    pub(crate) leg: Option<Box<Leg>>,
}

/// Where the entry of a message in flight is.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    /// Nowhere: the message was live only, or it is settled.
    Nowhere,
    /// In the session's queue.
    Own(EntryId),
    /// In a group's hands; the delivery goes back when the connection ends.
    Group(Box<crate::engine::delivery::Delivery>, Arc<Group>),
    /// In a group's queue, known from before a restart.
    GroupQueue(ReceiverId, EntryId),
}

/// How far a message in flight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its packet identifier is being made durable (quality of service 2); then it is sent.
    Storing,
    /// PUBLISH was sent.
    Sent,
    /// PUBREC has arrived and is being made durable; then PUBREL is sent.
    Releasing,
    /// PUBREL was sent.
    Released,
}

impl InFlight {
    /// Records a hop, if somebody asked about the message.
    pub(crate) fn trace(&self, hop: impl FnOnce(String, Option<String>) -> trace::Hop) {
        if let Some(leg) = &self.leg {
            leg.record(hop);
        }
    }

    /// Records that the client acknowledged a step, or refused the message.
    pub(crate) fn trace_ack(&self, ack: Ack) {
        self.trace(|receiver, client| match ack.reason {
            0x80.. => trace::Hop::Dropped {
                receiver,
                reason: DropReason::REFUSED.to_string(),
            },
            _ => trace::Hop::Acknowledged {
                receiver,
                client,
                packet: trace::hop::packet_name(ack.kind),
                packet_id: ack.packet_id,
            },
        });
    }
}

impl SessionState {
    pub(crate) fn new(session: Arc<Session>, expiry: u32) -> Self {
        Self {
            session,
            subscriptions: HashMap::new(),
            filter_bytes: 0,
            watches: HashSet::new(),
            inbound: HashSet::new(),
            outbound: BTreeMap::new(),
            last_packet_id: 0,
            expiry,
            restored: true,
        }
    }

    /// Bytes that it holds in memory.
    pub(crate) fn memory(&self) -> usize {
        self.filter_bytes
            + self.subscriptions.len() * SUBSCRIPTION
            + self.outbound.len() * (size_of::<InFlight>() + ENTRY)
            + (self.inbound.len() + self.watches.len()) * ENTRY
    }

    /// A packet identifier that is not in use; `None` when all are.
    pub(crate) fn next_packet_id(&mut self) -> Option<u16> {
        for _ in 0..u16::MAX {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            if !self.outbound.contains_key(&self.last_packet_id) {
                return Some(self.last_packet_id);
            }
        }
        None
    }

    /// Takes over what the store knows of messages in flight.
    pub(crate) fn restore(&mut self, inflight: impl IntoIterator<Item = (Slot, Inflight)>) {
        for (slot, state) in inflight {
            let own = self.session.receiver;
            match (slot.direction, state) {
                (Direction::Inbound, _) => drop(self.inbound.insert(slot.packet_id)),
                (Direction::Outbound, Inflight::Sent { receiver, id }) => {
                    let held = if own == Some(receiver) {
                        Held::Own(id)
                    } else {
                        Held::GroupQueue(receiver, id)
                    };
                    let entry = InFlight {
                        held,
                        qos: Qos::ExactlyOnce,
                        phase: Phase::Sent,
                        leg: None,
                    };
                    self.outbound.insert(slot.packet_id, entry);
                }
                (Direction::Outbound, _) => {
                    let entry = InFlight {
                        held: Held::Nowhere,
                        qos: Qos::ExactlyOnce,
                        phase: Phase::Released,
                        leg: None,
                    };
                    self.outbound.insert(slot.packet_id, entry);
                }
            }
        }
        self.restored = true;
    }

    /// The durable place of a packet identifier; `None` if the session is not durable.
    pub(crate) fn slot(&self, direction: Direction, packet_id: u16) -> Option<Slot> {
        self.session.receiver.map(|session| Slot {
            session,
            direction,
            packet_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_identifiers_are_not_used_twice_at_a_time() {
        let session = Arc::new(Session::new(1, "c".into(), None, Arc::default()));
        let mut state = SessionState::new(session, 0);
        let in_flight = InFlight {
            held: Held::Nowhere,
            qos: Qos::AtLeastOnce,
            phase: Phase::Sent,
            leg: None,
        };
        assert_eq!(state.next_packet_id(), Some(1));
        state.outbound.insert(2, in_flight.clone());
        assert_eq!(state.next_packet_id(), Some(3));
        state.last_packet_id = u16::MAX;
        assert_eq!(state.next_packet_id(), Some(1));
        state
            .outbound
            .extend((1..=u16::MAX).map(|id| (id, in_flight.clone())));
        assert_eq!(state.next_packet_id(), None);
    }

    #[test]
    fn what_was_in_flight_comes_back_from_the_store() {
        let session = Arc::new(Session::new(1, "c".into(), Some(9), Arc::default()));
        let mut state = SessionState::new(session, 10);
        let slot = |direction, packet_id| Slot {
            session: 9,
            direction,
            packet_id,
        };
        state.restore([
            (slot(Direction::Inbound, 4), Inflight::Received),
            (
                slot(Direction::Outbound, 1),
                Inflight::Sent { receiver: 9, id: 77 },
            ),
            (
                slot(Direction::Outbound, 2),
                Inflight::Sent { receiver: 10, id: 78 },
            ),
            (slot(Direction::Outbound, 3), Inflight::Released),
        ]);
        assert!(state.inbound.contains(&4));
        assert!(matches!(state.outbound[&1].held, Held::Own(77)));
        assert!(matches!(state.outbound[&2].held, Held::GroupQueue(10, 78)));
        assert_eq!(state.outbound[&3].phase, Phase::Released);
    }
}
