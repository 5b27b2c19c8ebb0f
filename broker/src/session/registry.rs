//! All clients that have a session, a connection, or a will that waits.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use foreshore_store::BrokerTime;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedMutexGuard};

use super::{Session, state::SessionState};
use crate::wire::{Version, connect::Will};

/// What a session takes whose client is away, in bytes, beside what it holds.
const PARKED: usize = 1024;

/// All clients, by identifier.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<HashMap<Arc<str>, Arc<Client>>>);

/// One client.
#[derive(Debug)]
pub(crate) struct Client {
    /// Its identifier.
    pub(crate) id: Arc<str>,
    /// Held by whoever connects as this client, so that they come one after the other.
    gate: Arc<tokio::sync::Mutex<()>>,
    known: Mutex<Known>,
    /// Its connection ended.
    parked: Notify,
}

/// What is known of a client.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Its session, connected or not.
    pub(crate) session: Option<Arc<Session>>,
    /// State of the session while it is not connected.
    pub(crate) state: Option<Box<SessionState>>,
    /// When the session ends, if it is not connected and ends at all.
    pub(crate) ends_at: Option<BrokerTime>,
    /// Its will, if that waits, and when it falls due.
    pub(crate) will: Option<(BrokerTime, Will)>,
    /// Its connection.
    pub(crate) connection: Option<ConnectionInfo>,
}

/// What can be seen of a connection from outside.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionInfo {
    /// Listener that it came through.
    pub listener: String,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Version that it speaks.
    pub version: Version,
    /// User name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Since when.
    pub since: Timestamp,
}

/// The right to connect as a client, or to end its session; others wait for it.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The client.
    pub(crate) client: Arc<Client>,
    _gate: OwnedMutexGuard<()>,
}

impl Registry {
    /// The client of that identifier.
    pub(crate) fn client(&self, id: &str) -> Arc<Client> {
        let mut clients = self.0.lock();
        match clients.get(id) {
            Some(client) => Arc::clone(client),
            None => {
                let client = Arc::new(Client::new(id));
                clients.insert(Arc::clone(&client.id), Arc::clone(&client));
                client
            }
        }
    }

    /// The client of that identifier, if anything is known of it.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<Client>> {
        self.0.lock().get(id).cloned()
    }

    /// Waits for the right to connect as a client.
    pub(crate) async fn claim(&self, id: &str) -> Claim {
        let client = self.client(id);
        let gate = Arc::clone(&client.gate).lock_owned().await;
        Claim { client, _gate: gate }
    }

    /// Forgets a client of which nothing is left.
    pub(crate) fn forget_if_idle(&self, id: &str) {
        let mut clients = self.0.lock();
        // Whoever claims the client or waits for it holds it beside the registry.
        let idle = |client: &Arc<Client>| Arc::strong_count(client) == 1 && client.known.lock().is_idle();
        if clients.get(id).is_some_and(idle) {
            clients.remove(id);
        }
    }

    /// Whether a client has a session.
    pub(crate) fn is_known(&self, id: &str) -> bool {
        self.find(id)
            .is_some_and(|client| client.known.lock().session.is_some())
    }

    /// All clients.
    pub(crate) fn all(&self) -> Vec<Arc<Client>> {
        self.0.lock().values().cloned().collect()
    }

    /// Bytes that sessions hold in memory whose clients are away, and their wills.
    pub(crate) fn memory_of_parked(&self) -> usize {
        let bytes = |client: &Arc<Client>| {
            let Known { state, will, .. } = &*client.known.lock();
            let state = state.as_ref().map_or(0, |state| PARKED + state.memory());
            state + will.as_ref().map_or(0, |(_, will)| will.memory())
        };
        self.all().iter().map(bytes).sum()
    }

    /// Number of clients.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

impl Client {
    fn new(id: &str) -> Self {
        Self {
            id: id.into(),
            gate: Arc::default(),
            known: Mutex::default(),
            parked: Notify::new(),
        }
    }

    /// What is known of it. Not to be held across an await.
    pub(crate) fn known(&self) -> parking_lot::MutexGuard<'_, Known> {
        self.known.lock()
    }

    /// Its connection ended, and whoever waits for that may look.
    pub(crate) fn connection_ended(&self) {
        self.parked.notify_waiters();
    }

    /// Waits until it has no connection.
    pub(crate) async fn disconnected(&self) {
        loop {
            let parked = self.parked.notified();
            if self.known.lock().connection.is_none() {
                return;
            }
            parked.await;
        }
    }
}

impl Known {
    fn is_idle(&self) -> bool {
        self.session.is_none() && self.will.is_none() && self.connection.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_connect_one_after_the_other_and_are_forgotten() {
        let registry = Arc::new(Registry::default());
        let first = registry.claim("c").await;
        let waiting = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.claim("c").await.client.id.clone() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(&*waiting.await.unwrap(), "c");
        assert_eq!(registry.len(), 1);
        registry.forget_if_idle("c");
        assert_eq!(registry.len(), 0);
    }
}
