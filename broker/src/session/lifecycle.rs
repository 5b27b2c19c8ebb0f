//! A session's beginning, return and end (MQTT 5.0 sections 3.1.2.4 and 4.1).

use std::{rc::Rc, sync::Arc, time::Duration};

use foreshore_record::DropReason;
use foreshore_store::{Applied, Operation, StoreError};
use jiff::Timestamp;

use super::{
    Location, Session,
    registry::{Claim, Client, ConnectionInfo, Known},
    rows::{self, SessionRow},
    state::SessionState,
};
use crate::{
    connection::ClientFacts,
    engine::{
        Engine,
        router::Change,
        shard::{Control, Inbox, Shard},
        timers::Due,
    },
    will,
    wire::{ReasonCode, connect::Will},
};

/// Longest time that a connection waits for its predecessor to end.
const TAKE_OVER: Duration = Duration::from_secs(10);

/// A connection's place in its session.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The session's state.
    pub(crate) state: Box<SessionState>,
    /// Whether the session was there before.
    pub(crate) present: bool,
    /// Where the connection is.
    pub(crate) location: Location,
    /// What arrives for it.
    pub(crate) inbox: Rc<Inbox>,
}

/// Why a connection got no session.
#[derive(Debug)]
pub(crate) struct NotAttached(pub(crate) ReasonCode, pub(crate) String);

impl From<StoreError> for NotAttached {
    fn from(error: StoreError) -> Self {
        Self(
            ReasonCode::ServerUnavailable,
            format!("the store failed: {error}"),
        )
    }
}

impl Engine {
    /// Gives a connection its session: the one that waits for it, or a new one.
    pub(crate) async fn attach(
        self: &Arc<Self>,
        shard: &Rc<Shard>,
        facts: &ClientFacts,
        clean_start: bool,
        expiry: u32,
    ) -> Result<Attached, NotAttached> {
        let claim = self.sessions.claim(&facts.id).await;
        self.take_over(&claim.client).await?;
        let mut operations = Vec::new();
        let (mut state, present) = match self.resumable(&claim, clean_start) {
            Some(state) => (state, true),
            None => {
                self.end_previous(&claim, &mut operations).await;
                (
                    Box::new(self.begin(&claim, expiry, &mut operations).await?),
                    false,
                )
            }
        };
        state.expiry = expiry;
        let Some((location, inbox)) = shard.enter(&state.session, &facts.counted) else {
            let mut known = claim.client.known();
            known.session = Some(Arc::clone(&state.session));
            known.state = Some(state);
            return Err(NotAttached(
                ReasonCode::ServerBusy,
                "too many connections".to_owned(),
            ));
        };
        state.session.set_location(Some(location));
        if !state.subscriptions.is_empty() {
            self.router.touch();
        }
        self.remember(&claim, facts, &state);
        self.store_beginning(facts, &state, present, operations).await?;
        if let (false, Some(receiver)) = (state.restored, state.session.receiver) {
            let inflight = self.blocking(move |store| store.inflight(receiver)).await?;
            state.restore(inflight);
        }
        Ok(Attached {
            state,
            present,
            location,
            inbox,
        })
    }

    /// Ends the client's present connection, if there is one.
    async fn take_over(&self, client: &Arc<Client>) -> Result<(), NotAttached> {
        let location = {
            let known = client.known();
            if known.connection.is_none() {
                return Ok(());
            }
            known.session.as_ref().and_then(|session| session.location())
        };
        if let Some(location) = location {
            self.control(location, Control::TakeOver);
        }
        tokio::time::timeout(TAKE_OVER, client.disconnected())
            .await
            .map_err(|_| {
                let detail = "an earlier connection of this client does not end";
                NotAttached(ReasonCode::ServerBusy, detail.to_owned())
            })
    }

    /// The session that waits for the client, if it wants it.
    fn resumable(&self, claim: &Claim, clean_start: bool) -> Option<Box<SessionState>> {
        let now = self.now();
        let mut known = claim.client.known();
        let over = known.ends_at.is_some_and(|at| at <= now);
        if clean_start || over {
            return None;
        }
        let state = known.state.take()?;
        self.nothing_is_due(&claim.client.id, &mut known);
        Some(state)
    }

    /// Ends the session that the client does not want any more; its will is due at once.
    async fn end_previous(self: &Arc<Self>, claim: &Claim, operations: &mut Vec<Operation>) {
        let (state, will) = {
            let mut known = claim.client.known();
            known.session = None;
            (
                known.state.take(),
                self.nothing_is_due(&claim.client.id, &mut known),
            )
        };
        if let Some(state) = state {
            operations.extend(self.end_session(&state));
        }
        // Before the new connection stores a will of its own, which this one's row must not hide.
        if let Some(will) = will {
            self.publish_will(&claim.client.id, &will).await;
        }
    }

    /// The client is back, or its session is over: nothing falls due for it any more. Returns the will that waited.
    fn nothing_is_due(&self, id: &Arc<str>, known: &mut Known) -> Option<Will> {
        if let Some(at) = known.ends_at.take() {
            self.timers.remove(at, Due::Session(Arc::clone(id)));
        }
        let (at, will) = known.will.take()?;
        self.timers.remove(at, Due::Will(Arc::clone(id)));
        Some(will)
    }

    /// Makes a new session; a durable one gets its queue.
    async fn begin(
        &self,
        claim: &Claim,
        expiry: u32,
        operations: &mut Vec<Operation>,
    ) -> Result<SessionState, NotAttached> {
        let mut receiver = None;
        if expiry > 0 {
            let limits = self.limits.load().queue();
            operations.push(Operation::PutReceiver {
                name: rows::path_name(&claim.client.id),
                limits,
            });
            let applied = self.committer.commit(std::mem::take(operations)).await?;
            receiver = match applied.last() {
                Some(Applied::Receiver { receiver, .. }) => Some(*receiver),
                other => {
                    return Err(NotAttached(
                        ReasonCode::UnspecifiedError,
                        format!("the store gave no queue but {other:?}"),
                    ));
                }
            };
        }
        let total = Arc::clone(&self.congestion);
        let session = Session::new(self.new_uid(), Arc::clone(&claim.client.id), receiver, total);
        Ok(SessionState::new(Arc::new(session), expiry))
    }

    fn remember(&self, claim: &Claim, facts: &ClientFacts, state: &SessionState) {
        let mut known = claim.client.known();
        known.session = Some(Arc::clone(&state.session));
        known.connection = Some(ConnectionInfo {
            listener: facts.listener.name.to_string(),
            peer: facts.peer,
            version: facts.version,
            username: facts.principal.username.clone(),
            since: Timestamp::now(),
        });
    }

    /// Stores what has changed by the connection. For a durable session this is the barrier that its queue is read
    /// after (see `connection::drain`).
    async fn store_beginning(
        &self,
        facts: &ClientFacts,
        state: &SessionState,
        present: bool,
        mut operations: Vec<Operation>,
    ) -> Result<(), NotAttached> {
        if state.session.receiver.is_some() {
            operations.push(row(facts, state, None).put(&facts.id));
        }
        match &facts.will {
            Some(will) => operations.push(will::put(&facts.id, will, None)),
            None if present => operations.push(will::delete(&facts.id)),
            None => {}
        }
        if !operations.is_empty() {
            self.committer.commit(operations).await?;
        }
        Ok(())
    }

    /// A connection has ended: its session waits for the client's return, or ends as well.
    pub(crate) async fn disconnected(
        self: &Arc<Self>,
        facts: &ClientFacts,
        had_will: bool,
        state: Box<SessionState>,
        will: Option<Will>,
    ) {
        let client = self.sessions.client(&facts.id);
        let now = self.now();
        let keeps = state.expiry > 0 && state.session.receiver.is_some();
        let row = row(facts, &state, Some(now.0));
        let ends_at = row.ends_at(now).filter(|_| keeps);
        let mut operations = if keeps {
            vec![row.put(&facts.id)]
        } else {
            self.end_session(&state)
        };
        let delay = will
            .as_ref()
            .map(|will| if keeps { will.delay.min(state.expiry) } else { 0 });
        let mut will_waits = None;
        match (&will, delay) {
            (Some(will), Some(delay @ 1..)) => {
                let due = now.after(Duration::from_secs(delay.into()));
                operations.push(will::put(&facts.id, will, Some(due)));
                will_waits = Some((due, will.clone()));
            }
            (Some(will), _) => self.publish_will(&facts.id, will).await,
            (None, _) if had_will => operations.push(will::delete(&facts.id)),
            _ => {}
        }
        if !operations.is_empty()
            && let Err(error) = self.committer.submit(operations).await
        {
            tracing::warn!(client = %facts.id, %error, "the end of a connection could not be stored");
        }
        if let Some((due, _)) = &will_waits {
            self.timers.add(*due, Due::Will(Arc::clone(&client.id)));
        }
        if let Some(at) = ends_at {
            self.timers.add(at, Due::Session(Arc::clone(&client.id)));
        }
        {
            let mut known = client.known();
            known.connection = None;
            known.ends_at = ends_at;
            known.will = will_waits;
            if keeps {
                known.state = Some(state);
            } else {
                known.session = None;
            }
        }
        client.connection_ended();
        let id = Arc::clone(&client.id);
        drop(client);
        self.sessions.forget_if_idle(&id);
    }

    /// Takes a session out of everything, and tells what is to be stored.
    pub(crate) fn end_session(&self, state: &SessionState) -> Vec<Operation> {
        let session = &state.session;
        let mut operations = Vec::new();
        let mut changes = Vec::new();
        for (filter, subscribed) in &state.subscriptions {
            match &subscribed.group {
                Some(_) => operations.extend(self.unsubscribe(session, filter, subscribed)),
                None => {
                    changes.push(Change::Unsubscribe(Arc::clone(filter), session.uid));
                    if session.receiver.is_some() {
                        operations.push(rows::delete_subscription(&session.client_id, filter));
                    }
                }
            }
        }
        self.router.update(changes);
        operations.extend(self.state_store.forget(state));
        if let Some(receiver) = session.receiver {
            operations.push(Operation::ClearSession { session: receiver });
            operations.push(Operation::DropReceiver {
                receiver,
                reason: DropReason::SESSION_ENDED,
            });
            operations.push(rows::delete(&session.client_id));
        }
        operations
    }

    /// Handles what falls due, for as long as the broker runs.
    pub(crate) async fn run_timers(self: Arc<Self>) {
        loop {
            match self.timers.take(self.now()) {
                Ok(Due::Will(client)) => self.will_is_due(&client).await,
                Ok(Due::Session(client)) => self.session_is_due(&client).await,
                Err(wait) => self.timers.wait(wait).await,
            }
        }
    }

    async fn will_is_due(self: &Arc<Self>, id: &str) {
        let claim = self.sessions.claim(id).await;
        let now = self.now();
        let due = claim.client.known().will.take_if(|(at, _)| *at <= now);
        if let Some((_, will)) = due {
            self.publish_will(id, &will).await;
        }
        drop(claim);
        self.sessions.forget_if_idle(id);
    }

    async fn session_is_due(self: &Arc<Self>, id: &str) {
        let claim = self.sessions.claim(id).await;
        let now = self.now();
        let ended = {
            let mut known = claim.client.known();
            let due = known.connection.is_none() && known.ends_at.is_some_and(|at| at <= now);
            due.then(|| {
                known.session = None;
                (
                    known.state.take(),
                    self.nothing_is_due(&claim.client.id, &mut known),
                )
            })
        };
        if let Some((state, will)) = ended {
            let operations = state.map(|state| self.end_session(&state)).unwrap_or_default();
            if let Err(error) = self.committer.submit(operations).await {
                tracing::warn!(client = id, %error, "the end of a session could not be stored");
            }
            // [MQTT-3.1.3-9]: with the session its will falls due.
            if let Some(will) = will {
                self.publish_will(id, &will).await;
            }
            tracing::debug!(client = id, "session has expired");
        }
        drop(claim);
        self.sessions.forget_if_idle(id);
    }
}

fn row(facts: &ClientFacts, state: &SessionState, disconnected_at: Option<u64>) -> SessionRow {
    SessionRow {
        expiry: state.expiry,
        disconnected_at,
        version: facts.version,
        username: facts.principal.username.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::{
        Broker,
        auth::Method,
        options::{ListenerOptions, Options},
    };

    /// Connects as `c` for a session of an hour, with a will that waits for as long, and reads CONNACK.
    async fn connect(address: SocketAddr, clean_start: bool) -> TcpStream {
        let mut packet = b"\x10\x20\x00\x04MQTT\x05\x04\x00\x00\x05\x11\x00\x00\x0e\x10\x00\x01c".to_vec();
        packet[9] |= u8::from(clean_start) << 1;
        packet.extend(b"\x05\x18\x00\x00\x0e\x10\x00\x01w\x00\x01x");
        packet[1] = u8::try_from(packet.len() - 2).unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&packet).await.unwrap();
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).await.unwrap();
        assert_eq!((connack[0], connack[3]), (0x20, 0));
        stream
    }

    #[tokio::test]
    async fn a_client_that_comes_and_goes_leaves_no_more_than_once() {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let handle = Broker::start(Options {
            listeners: vec![ListenerOptions::tcp("tcp", address, vec![Method::Anonymous])],
            ..Options::default()
        });
        let handle = handle.await.unwrap();
        let (_, address) = handle.addresses().remove(0);
        let engine = handle.engine();
        for round in 0..6 {
            let stream = connect(address, round == 4).await;
            assert_eq!(engine.timers.len(), 0);
            drop(stream);
            let gone = async {
                while engine.timers.len() < 2 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(30), gone).await.unwrap();
        }
        handle.stop(Duration::from_secs(10)).await.unwrap();
    }
}
