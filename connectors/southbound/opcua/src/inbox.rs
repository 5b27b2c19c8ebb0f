//! What the server sent and nobody has handed over yet, and which messages are still to come.
//!
//! The library calls back on the task that drives the session, where nothing may wait. So messages are put aside here
//! and handed over by the same task before it asks for more: a broker that does not take them slows the server down.
//!
//! Messages of a subscription are numbered one by one, and kept by the server until they are acknowledged
//! (OPC 10000-4, 5.14.1.1). A [`Track`] follows the numbers, so that a message that was sent into a dead connection is
//! missed and fetched again, and one that comes twice is handed over once.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use foreshore_crds::v1alpha1::asset::AssetEvent;
use jiff::Timestamp;
use opcua::{
    client::{MonitoredItemMap, OnSubscriptionNotificationCore},
    types::NotificationMessage,
};
use parking_lot::{Mutex, RwLock};

use crate::items::ItemKey;

/// Something to be handed over, in order.
pub(crate) enum Inbound {
    /// A message with data.
    Message(Arc<Track>, NotificationMessage),
    /// The number that the next message will have, told while there is none.
    Next(Arc<Track>, u32),
    /// Something may have been missed before what comes next.
    Gap { since: Timestamp, cause: String },
}

/// What was received and not handed over.
#[derive(Default)]
pub(crate) struct Inbox(Mutex<VecDeque<Inbound>>);

/// The messages of one subscription, by their numbers.
pub(crate) struct Track(Mutex<Place>);

struct Place {
    subscription: u32,
    /// Number of the last message that was handed over; 0 before the first.
    last: u32,
    /// The server no longer has what is missing before this number.
    given_up: Option<u32>,
    /// When anything came, keep-alives included.
    heard: Instant,
}

/// What a message's number says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is the next.
    Next,
    /// It was handed over before.
    Past,
    /// Messages from this number on are missing.
    Missing(u32),
    /// Messages are missing that the server no longer has.
    Lost,
}

impl Inbox {
    pub(crate) fn push(&self, inbound: Inbound) {
        self.0.lock().push_back(inbound);
    }

    /// Puts a message that was fetched again before those of its subscription that follow it.
    pub(crate) fn insert(&self, track: &Arc<Track>, message: NotificationMessage) {
        let mut waiting = self.0.lock();
        let follows = |inbound: &Inbound| match inbound {
            Inbound::Message(other, later) => {
                Arc::ptr_eq(other, track) && is_after(later.sequence_number, message.sequence_number)
            }
            Inbound::Next(other, next) => {
                Arc::ptr_eq(other, track) && is_after(*next, message.sequence_number)
            }
            Inbound::Gap { .. } => false,
        };
        let place = waiting.iter().position(follows).unwrap_or(waiting.len());
        waiting.insert(place, Inbound::Message(Arc::clone(track), message));
    }

    /// Gives back what has to wait.
    pub(crate) fn put_back(&self, inbound: Inbound) {
        self.0.lock().push_front(inbound);
    }

    pub(crate) fn take(&self) -> Option<Inbound> {
        self.0.lock().pop_front()
    }
}

/// Whether a number comes after another; numbers begin anew at 1 (OPC 10000-4, 7.26).
fn is_after(number: u32, other: u32) -> bool {
    (1..1 << 31).contains(&number.wrapping_sub(other))
}

/// The number that follows; 0 is never used.
pub(crate) fn following(number: u32) -> u32 {
    number.wrapping_add(1).max(1)
}

impl Default for Track {
    fn default() -> Self {
        Self(Mutex::new(Place {
            subscription: 0,
            last: 0,
            given_up: None,
            heard: Instant::now(),
        }))
    }
}

impl Track {
    /// Names the subscription, as soon as the server has.
    pub(crate) fn name(&self, subscription: u32) {
        self.0.lock().subscription = subscription;
    }

    pub(crate) fn subscription(&self) -> u32 {
        self.0.lock().subscription
    }

    /// Number of the next message.
    pub(crate) fn next(&self) -> u32 {
        following(self.0.lock().last)
    }

    /// Whose turn it is. The first message of all may have any number.
    pub(crate) fn turn(&self, number: u32) -> Turn {
        let place = self.0.lock();
        let next = following(place.last);
        if place.last == 0 || number == next {
            Turn::Next
        } else if !is_after(number, next) {
            Turn::Past
        } else if place.given_up.is_some_and(|given_up| !is_after(number, given_up)) {
            Turn::Lost
        } else {
            Turn::Missing(next)
        }
    }

    /// A message was handed over.
    pub(crate) fn handed_over(&self, number: u32) {
        let mut place = self.0.lock();
        place.last = number;
        place.given_up = place.given_up.filter(|given_up| is_after(*given_up, number));
    }

    /// Nothing that is missing before a number will come.
    pub(crate) fn give_up(&self, number: u32) {
        self.0.lock().given_up = Some(number);
    }

    /// When the server was last heard on the subscription.
    pub(crate) fn heard(&self) -> Instant {
        self.0.lock().heard
    }

    /// Begins to wait anew.
    pub(crate) fn listen_anew(&self) {
        self.0.lock().heard = Instant::now();
    }
}

/// What a monitored item feeds.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) key: ItemKey,
    /// How its events are read; `None` for values.
    pub(crate) event: Option<Box<AssetEvent>>,
}

/// Targets by client handle.
#[derive(Default)]
pub(crate) struct Handles(RwLock<HashMap<u32, Arc<Target>>>);

impl Handles {
    pub(crate) fn insert(&self, handle: u32, target: Target) {
        self.0.write().insert(handle, Arc::new(target));
    }

    pub(crate) fn remove(&self, handle: u32) {
        self.0.write().remove(&handle);
    }

    pub(crate) fn get(&self, handle: u32) -> Option<Arc<Target>> {
        self.0.read().get(&handle).cloned()
    }
}

/// Takes the messages of one subscription from the library.
pub(crate) struct Receiver {
    inbox: Arc<Inbox>,
    track: Arc<Track>,
}

impl Receiver {
    pub(crate) fn new(inbox: Arc<Inbox>, track: Arc<Track>) -> Self {
        Self { inbox, track }
    }
}

impl OnSubscriptionNotificationCore for Receiver {
    fn on_subscription_notification(&mut self, message: NotificationMessage, _items: MonitoredItemMap<'_>) {
        self.track.listen_anew();
        let track = Arc::clone(&self.track);
        self.inbox.push(if is_empty(&message) {
            Inbound::Next(track, message.sequence_number)
        } else {
            Inbound::Message(track, message)
        });
    }
}

/// Whether a message only says that the server is there.
pub(crate) fn is_empty(message: &NotificationMessage) -> bool {
    message.notification_data.as_ref().is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_turn_once() {
        let track = Track::default();
        assert_eq!((track.next(), track.turn(7)), (1, Turn::Next));
        track.handed_over(7);
        assert_eq!(track.turn(8), Turn::Next);
        assert_eq!((track.turn(7), track.turn(3)), (Turn::Past, Turn::Past));
        assert_eq!(track.turn(11), Turn::Missing(8));
        track.give_up(11);
        assert_eq!((track.turn(11), track.turn(12)), (Turn::Lost, Turn::Missing(8)));
        track.handed_over(11);
        assert_eq!(track.turn(13), Turn::Missing(12));
        let track = Track::default();
        track.handed_over(u32::MAX);
        assert_eq!((track.turn(1), track.turn(2)), (Turn::Next, Turn::Missing(1)));
        assert_eq!(track.turn(u32::MAX), Turn::Past);
    }

    #[test]
    fn what_was_fetched_again_comes_before_what_follows_it() {
        let (inbox, track, other) = (Inbox::default(), Arc::default(), Arc::default());
        let message = |number| NotificationMessage {
            sequence_number: number,
            ..NotificationMessage::default()
        };
        inbox.push(Inbound::Message(Arc::clone(&other), message(9)));
        inbox.push(Inbound::Message(Arc::clone(&track), message(5)));
        inbox.push(Inbound::Next(Arc::clone(&track), 6));
        for number in [3, 4, 5] {
            inbox.insert(&track, message(number));
        }
        let numbers = std::iter::from_fn(|| inbox.take()).map(|inbound| match inbound {
            Inbound::Message(_, message) => message.sequence_number,
            Inbound::Next(_, next) => next,
            Inbound::Gap { .. } => 0,
        });
        assert_eq!(numbers.collect::<Vec<_>>(), [9, 3, 4, 5, 5, 6]);
    }
}
