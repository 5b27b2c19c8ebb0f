//! What the server sent and nobody has handed over yet.
//!
//! The library calls back on the task that drives the session, where nothing may wait. So messages are put aside here
//! and handed over by the same task before it asks for more: a broker that does not take them slows the server down.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
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
    Message(NotificationMessage),
    /// Something may have been missed before what comes next.
    Gap { since: Timestamp, cause: String },
}

/// What was received and not handed over.
pub(crate) struct Inbox {
    waiting: Mutex<VecDeque<Inbound>>,
    /// When anything came for a subscription, keep-alives included.
    heard: Mutex<Instant>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            waiting: Mutex::default(),
            heard: Mutex::new(Instant::now()),
        }
    }

    pub(crate) fn push(&self, inbound: Inbound) {
        self.waiting.lock().push_back(inbound);
    }

    pub(crate) fn take(&self) -> Option<Inbound> {
        self.waiting.lock().pop_front()
    }

    /// When the server was last heard on a subscription.
    pub(crate) fn heard(&self) -> Instant {
        *self.heard.lock()
    }

    /// Begins to wait anew.
    pub(crate) fn listen_anew(&self) {
        *self.heard.lock() = Instant::now();
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
    sequence: Arc<AtomicU32>,
}

impl Receiver {
    pub(crate) fn new(inbox: Arc<Inbox>, sequence: Arc<AtomicU32>) -> Self {
        Self { inbox, sequence }
    }
}

impl OnSubscriptionNotificationCore for Receiver {
    fn on_subscription_notification(&mut self, message: NotificationMessage, _items: MonitoredItemMap<'_>) {
        self.inbox.listen_anew();
        // A keep-alive carries the number of the message to come (OPC 10000-4, 5.14.1.1).
        if message
            .notification_data
            .as_ref()
            .is_some_and(|data| !data.is_empty())
        {
            self.sequence.store(message.sequence_number, Ordering::Release);
            self.inbox.push(Inbound::Message(message));
        }
    }
}
