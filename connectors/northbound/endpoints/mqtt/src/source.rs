//! A session at another broker as the queue of a sink.
//!
//! The broker keeps what waits, and we acknowledge what the sink has acknowledged: PUBACK is the cursor. A crash repeats
//! what was on its way and loses nothing; after a mere break of the connection, what is still here is not taken twice.
//! Nothing of it is on a disk of ours, and no more of it is in memory than the receive maximum. So the totals count from
//! the start of the runner, and how much waits at the other broker is known to that one alone.

mod held;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use foreshore_control::{
    Nack,
    queue::{DeadLetter, EntryId, Error, OpenPath, PathTotals, Paths, ReadBatch, ReadRange, Settlement},
};
use foreshore_mqtt::{Client, ConnectError, ConnectionLost, ConnectionState, ReasonCode, Subscriber};
use foreshore_northbound::{SourceSetup, Surroundings};
use foreshore_record::{Qos, TopicFilter};
use foreshore_runtime::Shutdown;
use foreshore_tls::Identity;
use futures::FutureExt as _;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::held::{Held, Totals};
use crate::{
    block,
    ending::{EndOnDrop, GOODBYE},
    target::Connection,
};

/// Longest wait for the end of the first try to connect.
const FIRST_TRY: Duration = Duration::from_secs(15);

/// The queue of one sink: a session that another broker keeps.
pub(crate) struct SessionQueue {
    setup: SourceSetup,
    filters: Vec<TopicFilter>,
    identity: Identity,
    shutdown: Shutdown,
    known: KnownFilters,
    totals: Arc<Mutex<Totals>>,
}

/// Filters that this process has given to each session, by client identifier: a dataflow whose topics change takes the old
/// ones back.
pub(crate) type KnownFilters = Arc<Mutex<BTreeMap<String, BTreeSet<TopicFilter>>>>;

impl SessionQueue {
    /// Judges what the session is to be, without connecting.
    pub(crate) fn new(
        setup: SourceSetup,
        surroundings: &Surroundings,
        known: &KnownFilters,
    ) -> Result<Self, Nack> {
        let mqtt = block(&setup.endpoint)?;
        if mqtt.broker_ref.is_some() {
            let message = "a broker of ours keeps queues itself, source.brokerRef names it";
            return Err(Nack::new("UnsupportedHere", message));
        }
        let filters = setup.topics.iter().map(|topic| TopicFilter::new(topic.as_str()));
        let filters = filters
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Nack::new("InvalidResource", error.to_string()))?;
        let totals = Totals::new(&setup.path);
        Ok(Self {
            setup,
            filters,
            identity: surroundings.identity.clone(),
            shutdown: surroundings.shutdown.clone(),
            known: Arc::clone(known),
            totals: Arc::new(Mutex::new(totals)),
        })
    }

    async fn connection(&self) -> Result<Connection, Error> {
        let SourceSetup {
            dataflow,
            sink,
            endpoint,
            ..
        } = &self.setup;
        let (endpoint, identity) = (endpoint.clone(), self.identity.clone());
        // Beside the client of a sink that leads to the same broker.
        let name = format!("{}-{}-{sink}-source", dataflow.namespace, dataflow.name);
        // The system's authorities are read from files.
        let made = tokio::task::spawn_blocking(move || {
            let mqtt = block(&endpoint)?;
            let mut connection = Connection::new(mqtt, &endpoint, &name, &identity)?;
            connection.options.clean_start = false;
            connection.options.session_expiry = mqtt.effective_session_expiry();
            Ok::<_, Nack>(connection)
        });
        made.await
            .map_err(|error| unavailable(&error))?
            .map_err(|nack| unavailable(&nack))
    }

    /// Filters that the session may have from before an edit.
    fn former(&self, client_id: &str) -> Vec<TopicFilter> {
        let mut known = self.known.lock();
        let given = known.entry(client_id.to_owned()).or_default();
        given.extend(self.filters.iter().cloned());
        let former = given.iter().filter(|filter| !self.filters.contains(filter));
        former.cloned().collect()
    }
}

fn unavailable(cause: &dyn std::fmt::Display) -> Error {
    Error::Unavailable {
        cause: cause.to_string(),
    }
}

#[async_trait]
impl Paths for SessionQueue {
    async fn open(&self, path: &str) -> Result<Box<dyn OpenPath>, Error> {
        let Connection { options } = self.connection().await?;
        let filters = self.filters.iter().cloned();
        let filters = filters.map(|filter| (filter, Qos::AtLeastOnce)).collect();
        let former = self.former(&options.client_id);
        let (client, service, subscriber) = Client::with_session(options, filters, former);
        let shutdown = self.shutdown.child();
        let ending = EndOnDrop::new(&shutdown, GOODBYE);
        foreshore_runtime::spawn("mqtt source", service.run(shutdown)).detach();
        let mut state = client.state();
        let tried = state.wait_for(|state| !matches!(state, ConnectionState::Connecting { error: None, .. }));
        // Whatever came of it is in the state, and read there.
        drop(tokio::time::timeout(FIRST_TRY, tried).await);
        let epoch = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default();
        Ok(Box::new(Session {
            path: path.to_owned(),
            epoch,
            state: client.state(),
            subscriber: tokio::sync::Mutex::new(subscriber),
            held: Mutex::new(Held::new(epoch, self.filters.clone(), Arc::clone(&self.totals))),
            _ending: ending,
            _client: client,
        }))
    }

    async fn totals(&self) -> Result<Vec<PathTotals>, Error> {
        Ok(vec![self.totals.lock().told()])
    }

    async fn dead_letters(&self, _: &str, _: EntryId, _: u32) -> Result<Vec<DeadLetter>, Error> {
        Ok(Vec::new())
    }

    async fn replay(&self, _: &str, _: &[EntryId]) -> Result<u64, Error> {
        Ok(0)
    }
}

/// Whether there is a connection, and why not.
fn connected(state: &watch::Receiver<ConnectionState>) -> Result<(), Error> {
    match &*state.borrow() {
        ConnectionState::Connected { .. } => Ok(()),
        ConnectionState::Connecting {
            error: Some(error), ..
        } if is_refusal(error) => Err(Error::Refused {
            cause: error.to_string(),
        }),
        ConnectionState::Connecting {
            error: Some(error), ..
        } => Err(unavailable(error)),
        ConnectionState::Connecting { error: None, .. } => Err(unavailable(&"no connection yet")),
        ConnectionState::Ended => Err(unavailable(&"the client has ended")),
    }
}

/// Whether somebody has to change something, here or there.
fn is_refusal(error: &ConnectError) -> bool {
    match error {
        ConnectError::Refused { reason, .. } => {
            [ReasonCode::BAD_USER_NAME_OR_PASSWORD, ReasonCode::NOT_AUTHORIZED].contains(reason)
        }
        ConnectError::Lost { source, .. } => matches!(source, ConnectionLost::Subscription(_)),
        ConnectError::Tls { .. } => true,
        _ => false,
    }
}

/// A session with a connection that mends itself.
struct Session {
    path: String,
    /// When it was opened, in microseconds since 1970.
    epoch: u64,
    state: watch::Receiver<ConnectionState>,
    subscriber: tokio::sync::Mutex<Subscriber>,
    held: Mutex<Held>,
    /// Before the subscriber's client, so that what was settled last is still acknowledged.
    _ending: EndOnDrop,
    _client: Client,
}

impl Session {
    /// Resolves when there is no connection, with why.
    async fn lost(&self) -> Error {
        let mut state = self.state.clone();
        loop {
            if let Err(error) = connected(&state) {
                return error;
            }
            if state.changed().await.is_err() {
                return Error::Closed {
                    path: self.path.clone(),
                };
            }
        }
    }
}

#[async_trait]
impl OpenPath for Session {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn opening_tail(&self) -> EntryId {
        // What waits there can't be told from what happens now.
        held::FIRST
    }

    async fn read(&self, range: ReadRange) -> Result<ReadBatch, Error> {
        let present = self.held.lock().read(&range);
        if !present.entries.is_empty() {
            return Ok(present);
        }
        if range.wait.is_zero() {
            return connected(&self.state).map(|()| present);
        }
        let mut subscriber = self.subscriber.lock().await;
        let received = tokio::select! {
            biased;
            received = subscriber.next() => Some(received),
            error = self.lost() => return Err(error),
            () = tokio::time::sleep(range.wait) => None,
        };
        // With the first comes what is there by now.
        let mut next = received;
        while let Some(received) = next {
            let Some(delivery) = received else {
                return Err(Error::Closed {
                    path: self.path.clone(),
                });
            };
            self.held.lock().take_in(delivery, Timestamp::now());
            next = subscriber.next().now_or_never();
        }
        Ok(self.held.lock().read(&range))
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), Error> {
        self.held.lock().settle(settlements);
        Ok(())
    }
}
