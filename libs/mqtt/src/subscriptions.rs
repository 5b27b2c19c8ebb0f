//! What is subscribed, and where incoming messages go.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use foreshore_record::{Qos, Record, TopicFilter, TopicName};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{client::Control, error::SubscribeError};

/// Names a [`Subscriber`]; travels as subscription identifier.
pub(crate) type SubscriberId = u32;

/// Receives the messages of the filters that it [adds](Self::add). Dropping it ends its subscriptions.
#[derive(Debug)]
pub struct Subscriber {
    id: SubscriberId,
    deliveries: mpsc::Receiver<Delivery>,
    control: mpsc::Sender<Control>,
}

/// Adds and removes filters of a [`Subscriber`] while another task receives. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Filters {
    id: SubscriberId,
    control: mpsc::Sender<Control>,
}

/// A message that was received.
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub record: Record,
    token: Option<Token>,
}

/// The right to acknowledge one message, once. Shared by all who have the message, and by the connection.
#[derive(Clone, Debug)]
pub(crate) struct Token(Arc<Unacknowledged>);

/// What is known of a message that came again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Revived {
    /// It came over this connection before, as servers of 3.1.1 may do: it is acknowledged once.
    SentTwice,
    /// Somebody has it, or has acknowledged it while there was no connection: it need not be handed out again.
    Taken,
    /// Nobody has it any more.
    GivenUp,
}

#[derive(Debug)]
struct Unacknowledged {
    acks: Arc<Acks>,
    packet_id: u16,
    topic: TopicName,
    payload: Bytes,
    /// The connection that the message came over last. Changed under the lock of `acks`, as `done` is.
    connection: AtomicU64,
    done: AtomicBool,
}

/// Acknowledgements on their way to the connection. Bounded by what the server may send unacknowledged.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    connection: AtomicU64,
    ready: Mutex<Vec<u16>>,
    notify: Notify,
}

impl Subscriber {
    pub(crate) fn new(
        id: SubscriberId,
        deliveries: mpsc::Receiver<Delivery>,
        control: mpsc::Sender<Control>,
    ) -> Self {
        Self {
            id,
            deliveries,
            control,
        }
    }

    /// The next message; `None` when the client has ended.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }

    /// Adds a filter; returns when the server has accepted it. After a reconnect it is subscribed again.
    ///
    /// # Errors
    /// As [`Filters::add`].
    pub async fn add(&self, filter: TopicFilter, qos: Qos) -> Result<(), SubscribeError> {
        self.filters().add(filter, qos).await
    }

    /// A handle that adds and removes filters while another task receives.
    #[must_use]
    pub fn filters(&self) -> Filters {
        Filters {
            id: self.id,
            control: self.control.clone(),
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        // When the channel is full the connection notices the closed receiver at the next message.
        drop(self.control.try_send(Control::End { subscriber: self.id }));
    }
}

impl Filters {
    /// Adds a filter; returns when the server has accepted it, which needs a connection. Quality of service 2 is taken
    /// as 1.
    ///
    /// # Errors
    /// When the server refuses the filter, or the client has ended.
    pub async fn add(&self, filter: TopicFilter, qos: Qos) -> Result<(), SubscribeError> {
        let (reply, answer) = oneshot::channel();
        let add = Control::Add {
            subscriber: self.id,
            filter,
            qos: qos.min(Qos::AtLeastOnce),
            reply,
        };
        self.control.send(add).await.map_err(|_| SubscribeError::Ended)?;
        answer.await.unwrap_or(Err(SubscribeError::Ended))
    }

    /// Removes a filter. Messages that are on their way may still arrive.
    ///
    /// # Errors
    /// When the client has ended.
    pub async fn remove(&self, filter: TopicFilter) -> Result<(), SubscribeError> {
        let remove = Control::Remove {
            subscriber: self.id,
            filter,
        };
        self.control.send(remove).await.map_err(|_| SubscribeError::Ended)
    }
}

impl Delivery {
    pub(crate) fn new(record: Record, token: Option<Token>) -> Self {
        Self { record, token }
    }

    /// Tells the server that the message need not be sent again. A delivery that is dropped without this comes again
    /// on the session's next connection, if the session outlives the present one.
    pub fn acknowledge(self) -> Record {
        if let Some(token) = self.token {
            token.acknowledge();
        }
        self.record
    }
}

impl Token {
    pub(crate) fn new(acks: &Arc<Acks>, packet_id: u16, record: &Record) -> Self {
        let connection = acks.connection.load(Ordering::Acquire);
        Self(Arc::new(Unacknowledged {
            acks: Arc::clone(acks),
            packet_id,
            topic: record.topic.clone(),
            payload: record.payload.clone(),
            connection: AtomicU64::new(connection),
            done: AtomicBool::new(false),
        }))
    }

    fn acknowledge(&self) {
        let message = &*self.0;
        let acks = &message.acks;
        let mut ready = acks.ready.lock();
        let first = !message.done.swap(true, Ordering::AcqRel);
        if first && message.is_of_this_connection() {
            ready.push(message.packet_id);
            drop(ready);
            acks.notify.notify_one();
        }
    }

    /// Whether it is this message. A server that was set back to an earlier state may mean another one by the identifier.
    pub(crate) fn is(&self, topic: &str, payload: &[u8]) -> bool {
        self.0.topic.as_str() == topic && self.0.payload == payload
    }

    /// The message came again in its session.
    pub(crate) fn revive(&self) -> Revived {
        let message = &*self.0;
        let acks = &message.acks;
        let mut ready = acks.ready.lock();
        if message.is_of_this_connection() {
            return Revived::SentTwice;
        }
        let connection = acks.connection.load(Ordering::Acquire);
        message.connection.store(connection, Ordering::Release);
        if message.done.load(Ordering::Acquire) {
            ready.push(message.packet_id);
            drop(ready);
            acks.notify.notify_one();
            return Revived::Taken;
        }
        // The connection has one itself.
        if Arc::strong_count(&self.0) > 1 {
            Revived::Taken
        } else {
            Revived::GivenUp
        }
    }
}

impl Unacknowledged {
    fn is_of_this_connection(&self) -> bool {
        self.connection.load(Ordering::Acquire) == self.acks.connection.load(Ordering::Acquire)
    }
}

impl Acks {
    /// A new connection: acknowledgements of earlier ones are void.
    pub(crate) fn begin_connection(&self) {
        let mut ready = self.ready.lock();
        self.connection.fetch_add(1, Ordering::AcqRel);
        ready.clear();
    }

    pub(crate) fn take(&self) -> Vec<u16> {
        std::mem::take(&mut *self.ready.lock())
    }

    pub(crate) async fn notified(&self) {
        self.notify.notified().await;
    }
}

/// All subscribers of a client.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    subscribers: HashMap<SubscriberId, Entry>,
}

#[derive(Debug)]
struct Entry {
    deliveries: mpsc::Sender<Delivery>,
    filters: BTreeMap<TopicFilter, Qos>,
    reserved: usize,
    /// The server keeps a session for it, also while nobody receives.
    keeps_session: bool,
}

/// How a message was dispatched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dispatch {
    /// At least one subscriber has it.
    Delivered,
    /// Nobody wants it any more.
    Unwanted,
    /// A subscriber of a message of QoS 0 had no room for it.
    Dropped,
    /// Whoever received the session's messages is gone.
    Unclaimed,
}

impl Subscriptions {
    /// Adds a subscriber whose channel keeps `reserved` places for messages of QoS 1.
    pub(crate) fn begin(&mut self, id: SubscriberId, deliveries: mpsc::Sender<Delivery>, reserved: usize) {
        self.subscribers.insert(
            id,
            Entry {
                deliveries,
                filters: BTreeMap::new(),
                reserved,
                keeps_session: false,
            },
        );
    }

    /// Adds the subscriber that a session is kept for.
    pub(crate) fn begin_session(
        &mut self,
        id: SubscriberId,
        deliveries: mpsc::Sender<Delivery>,
        reserved: usize,
        filters: impl IntoIterator<Item = (TopicFilter, Qos)>,
    ) {
        self.subscribers.insert(
            id,
            Entry {
                deliveries,
                filters: filters.into_iter().collect(),
                reserved,
                keeps_session: true,
            },
        );
    }

    /// Whether a session is kept for a subscriber.
    pub(crate) fn keeps_session(&self, id: SubscriberId) -> bool {
        self.subscribers.get(&id).is_some_and(|entry| entry.keeps_session)
    }

    /// Adds a filter; false when another subscriber has it.
    pub(crate) fn add(&mut self, id: SubscriberId, filter: TopicFilter, qos: Qos) -> bool {
        if self
            .subscribers
            .iter()
            .any(|(other, entry)| *other != id && entry.filters.contains_key(&filter))
        {
            return false;
        }
        let entry = self.subscribers.get_mut(&id);
        entry.map(|entry| entry.filters.insert(filter, qos)).is_some()
    }

    /// Removes a filter; false when it was not there.
    pub(crate) fn remove(&mut self, id: SubscriberId, filter: &TopicFilter) -> bool {
        self.subscribers
            .get_mut(&id)
            .and_then(|entry| entry.filters.remove(filter))
            .is_some()
    }

    /// Removes a subscriber; its filters.
    pub(crate) fn end(&mut self, id: SubscriberId) -> Vec<TopicFilter> {
        self.subscribers
            .remove(&id)
            .map(|entry| entry.filters.into_keys().collect())
            .unwrap_or_default()
    }

    /// Everything to subscribe on a new connection.
    pub(crate) fn all(&self) -> impl Iterator<Item = (SubscriberId, Vec<(TopicFilter, Qos)>)> {
        self.subscribers.iter().map(|(id, entry)| {
            (
                *id,
                entry
                    .filters
                    .iter()
                    .map(|(filter, qos)| (filter.clone(), *qos))
                    .collect(),
            )
        })
    }

    /// Hands a message to the subscribers that the identifiers name, or, without identifiers, to those with a filter
    /// that matches.
    pub(crate) fn dispatch(
        &mut self,
        ids: &[NonZeroU32],
        record: &Record,
        token: Option<&Token>,
    ) -> Dispatch {
        let mut outcome = Dispatch::Unwanted;
        let mut closed = Vec::new();
        for (id, entry) in &self.subscribers {
            let named = ids.iter().any(|named| named.get() == *id);
            let matches = || {
                entry
                    .filters
                    .keys()
                    .any(|filter| filter.matches(record.topic.as_str()))
            };
            if !(named || ids.is_empty() && matches()) {
                continue;
            }
            if entry.deliveries.is_closed() && entry.keeps_session {
                return Dispatch::Unclaimed;
            }
            if entry.deliveries.is_closed() {
                closed.push(*id);
                continue;
            }
            // Messages of QoS 1 always find room: the server sends no more of them than places are kept.
            if token.is_none() && entry.deliveries.capacity() <= entry.reserved {
                outcome = Dispatch::Dropped;
                continue;
            }
            match entry
                .deliveries
                .try_send(Delivery::new(record.clone(), token.cloned()))
            {
                Err(_) if entry.keeps_session => return Dispatch::Unclaimed,
                Ok(()) if outcome == Dispatch::Unwanted => outcome = Dispatch::Delivered,
                Ok(()) => {}
                Err(_) => outcome = Dispatch::Dropped,
            }
        }
        for id in closed {
            self.subscribers.remove(&id);
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_SESSION: SubscriberId = 1;
    const OTHER: SubscriberId = 2;

    fn filter(filter: &str) -> TopicFilter {
        TopicFilter::new(filter).unwrap()
    }

    fn record(topic: &str) -> Record {
        Record::new(TopicName::new(topic).unwrap(), "payload")
    }

    #[test]
    fn what_a_session_is_kept_for_is_never_unwanted_or_dropped() {
        let mut subscriptions = Subscriptions::default();
        let (of_session, kept) = mpsc::channel(1);
        let (of_other, other) = mpsc::channel(1);
        let filters = [(filter("kept/#"), Qos::AtLeastOnce)];
        subscriptions.begin_session(OF_SESSION, of_session, 0, filters);
        subscriptions.begin(OTHER, of_other, 0);
        assert!(subscriptions.add(OTHER, filter("other/#"), Qos::AtLeastOnce));
        let acks = Arc::new(Acks::default());
        let mut dispatch = |topic: &str| {
            let record = record(topic);
            let token = Token::new(&acks, 1, &record);
            subscriptions.dispatch(&[], &record, Some(&token))
        };
        assert_eq!(
            (dispatch("kept/a"), dispatch("other/a")),
            (Dispatch::Delivered, Dispatch::Delivered)
        );
        // There is no room, since the server sent more than it may.
        assert_eq!(
            (dispatch("kept/a"), dispatch("other/a")),
            (Dispatch::Unclaimed, Dispatch::Dropped)
        );
        drop((kept, other));
        assert_eq!(
            (dispatch("kept/a"), dispatch("other/a")),
            (Dispatch::Unclaimed, Dispatch::Unwanted)
        );
        assert_eq!(dispatch("kept/a"), Dispatch::Unclaimed);
    }
}
