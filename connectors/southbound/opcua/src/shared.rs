//! What the driver of a link's session, its runner and commands share.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use foreshore_connector_sdk::{Emitter, Gap, Health, Member};
use foreshore_crds::v1alpha1::device::OpcuaDevice;
use jiff::{SignedDuration, Timestamp};
use opcua::{client::Session, types::custom::DataTypeTree};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{
    inbox::{Handles, Inbox},
    observed::{Observed, Rhythm, Tools},
    transport::Cutter,
};

/// A link's session, and what is known of it.
pub(crate) struct Shared {
    pub(crate) session: Arc<Session>,
    pub(crate) cutter: Cutter,
    pub(crate) out: Emitter,
    pub(crate) settings: OpcuaDevice,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) handles: Handles,
    pub(crate) observed: tokio::sync::Mutex<Observed>,
    pub(crate) types: RwLock<Option<Arc<DataTypeTree>>>,
    /// How often the session and what is observed in it was taken up; 0 until commands and observing make sense.
    pub(crate) taken_up: watch::Sender<u64>,
    /// The link ends because nobody wants it any more.
    pub(crate) closing: AtomicBool,
}

impl Shared {
    pub(crate) fn tools(&self) -> Tools<'_> {
        let rhythm = Rhythm {
            keep_alive: self.settings.effective_keep_alive_interval(),
            lifetime: self.settings.effective_subscription_lifetime(),
        };
        Tools {
            session: &self.session,
            handles: &self.handles,
            inbox: &self.inbox,
            rhythm,
        }
    }

    /// The server's namespaces in this session.
    pub(crate) async fn namespaces(&self) -> Vec<String> {
        self.observed.lock().await.namespaces.clone()
    }

    /// The server's structures.
    pub(crate) fn types(&self) -> Option<Arc<DataTypeTree>> {
        self.types.read().clone()
    }

    /// Subscriptions on which the server has been silent for longer than it promised: its connection and session live,
    /// and yet no data would ever come.
    pub(crate) fn silent(&self) -> Vec<u32> {
        let Ok(observed) = self.observed.try_lock() else {
            return Vec::new();
        };
        let promised = self.session.subscription_state().lock();
        let silent = observed.subscriptions.iter().filter(|subscription| {
            let Some(promise) = promised.get(subscription.id) else {
                return false;
            };
            let keep_alive = promise
                .publishing_interval()
                .saturating_mul(promise.max_keep_alive_count());
            let patience = keep_alive
                .saturating_mul(3)
                .saturating_add(self.settings.effective_request_timeout());
            subscription.track.heard().elapsed() > patience
        });
        silent.map(|subscription| subscription.id).collect()
    }

    /// Says that nothing works for now.
    pub(crate) fn tell_down(&self, health: &Health) {
        self.out.health(&Member::Device, health.clone());
        // Whoever holds it tells health when done.
        if let Ok(observed) = self.observed.try_lock() {
            for member in observed.members() {
                self.out.health(member, health.clone());
            }
        }
    }

    /// The interruption that begins with the end of the link.
    pub(crate) fn interrupted(&self, cause: &str) -> Gap {
        // Whoever has it is only about to begin observing.
        let heard = self.observed.try_lock().ok().and_then(|observed| {
            let heard = observed
                .subscriptions
                .iter()
                .map(|subscription| subscription.track.heard());
            heard.min().map(|heard| heard.elapsed())
        });
        Gap {
            member: Member::Device,
            since: ago(heard.unwrap_or_default()),
            until: Timestamp::now(),
            cause: cause.to_owned(),
        }
    }
}

/// The time that was so long ago.
pub(crate) fn ago(elapsed: Duration) -> Timestamp {
    let elapsed = SignedDuration::try_from(elapsed).unwrap_or_default();
    Timestamp::now()
        .checked_sub(elapsed)
        .unwrap_or(Timestamp::UNIX_EPOCH)
}
