//! One client's connection, from CONNECT to its end, as one task on one shard.
//!
//! A connection never waits in one place: [`Connection::poll`] does whatever can be done, and is called again when there
//! is more. So a client that is slow to read does not keep its acknowledgements from being read, and a publisher that
//! has to wait for a slow receiver still gets its own deliveries.
//!
//! | module | what |
//! |---|---|
//! | [`handshake`] | from the socket to a session |
//! | [`authentication`] | AUTH, before CONNACK and later |
//! | [`audit`] | what the audit log is told |
//! | [`inbound`] | packets from the client |
//! | [`publish`] | PUBLISH from the client |
//! | [`command`] | commands to assets, which tell who asks |
//! | [`request`] | requests to the state store |
//! | [`subscribe`] | SUBSCRIBE and UNSUBSCRIBE |
//! | [`acks`] | acknowledgements, which leave after the commit |
//! | [`sending`] | deliveries to the client: window, in flight, settled |
//! | [`drain`] | reading the session's queue, and the switch to live |
//! | [`memory`] | what it holds in memory |
//! | [`ending`] | the end |
//! | [`outgoing`], [`transport`] | bytes |
//! | [`websocket`] | bytes in frames |

mod acks;
mod audit;
mod authentication;
mod command;
mod drain;
pub(crate) mod ending;
pub(crate) mod handshake;
mod inbound;
mod memory;
mod outgoing;
mod publish;
mod request;
mod sending;
mod subscribe;
pub(crate) mod transport;
mod websocket;

use std::{
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use foreshore_record::TopicName;

use self::{
    authentication::Reauthentication, ending::Ending, inbound::Receiving, outgoing::Outgoing,
    sending::Sending, transport::Transport,
};
use crate::{
    auth::Principal,
    engine::{
        Engine,
        shard::{Control, Inbox, Shard},
    },
    listener::{ConnectionPermit, Listener},
    policy::Permissions,
    session::{Location, Session, state::SessionState},
    state_store,
    stats::traffic::OfClients,
    wire::{ReasonCode, Version, connect::Will},
};

/// Rounds of work before other connections of the shard have theirs.
const ROUNDS: usize = 8;

/// Bytes that wait for a client before no further delivery is written, and nothing more is read from it.
const MAX_OUTGOING: usize = 128 << 10;

/// A connection that a listener took, on its way to its shard.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// The socket.
    pub(crate) stream: std::net::TcpStream,
    /// Where it comes from.
    pub(crate) peer: SocketAddr,
    /// The listener.
    pub(crate) listener: Arc<Listener>,
    /// Its place among all connections.
    pub(crate) permit: ConnectionPermit,
}

/// What is known of the client.
#[derive(Debug)]
pub(crate) struct ClientFacts {
    /// Its identifier.
    pub(crate) id: Arc<str>,
    /// Version that it speaks.
    pub(crate) version: Version,
    /// Who it is.
    pub(crate) principal: Principal,
    /// How it proved that, by enhanced authentication.
    pub(crate) authentication_method: Option<Box<str>>,
    /// What it may do.
    pub(crate) permissions: Permissions,
    /// Silence after which it counts as gone.
    pub(crate) silence: Option<Duration>,
    /// Largest packet that it takes.
    pub(crate) maximum_packet_size: usize,
    /// What is counted of its messages.
    pub(crate) counted: Arc<OfClients>,
    /// What is published when it goes without a good-bye.
    pub(crate) will: Option<Box<Will>>,
    /// The listener that it came through.
    pub(crate) listener: Arc<Listener>,
    /// Where it comes from.
    pub(crate) peer: SocketAddr,
}

impl ClientFacts {
    /// Whether it may get a message that was queued for it. Notifications of the state store are for whoever may ask it.
    fn may_receive(&self, topic: &TopicName) -> bool {
        if state_store::is_reserved(topic) {
            state_store::may_ask(&self.permissions)
        } else {
            self.permissions.may_receive(topic).is_ok()
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    shard: Rc<Shard>,
    engine: Arc<Engine>,
    location: Location,
    inbox: Rc<Inbox>,
    transport: Transport,
    out: Outgoing,
    client: ClientFacts,
    /// Bytes that the client's will takes.
    will_memory: usize,
    session: Arc<Session>,
    state: Box<SessionState>,
    receiving: Receiving,
    sending: Sending,
    reauthentication: Option<Box<Reauthentication>>,
    _permit: ConnectionPermit,
}

impl Connection {
    /// Carries the connection to its end.
    pub(crate) async fn run(mut self: Box<Self>) {
        let ending = poll_fn(|context| self.poll(context)).await;
        // Boxed, so that a connection does not hold the memory of its end all its life.
        Box::pin((*self).end(ending)).await;
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Ending> {
        match self.poll_rounds(context).and_then(|()| self.account()) {
            Ok(()) => Poll::Pending,
            Err(ending) => Poll::Ready(*ending),
        }
    }

    /// Does what can be done; an error is the connection's end.
    fn poll_rounds(&mut self, context: &mut Context<'_>) -> Result<(), Box<Ending>> {
        self.inbox.register(context.waker());
        for _ in 0..ROUNDS {
            let mut progress = false;
            while let Some(control) = self.inbox.next_control() {
                self.obey(control)?;
            }
            progress |= self.poll_reauthentication(context)?;
            progress |= self.poll_acks(context)?;
            progress |= self.poll_sending(context)?;
            progress |= self.poll_receiving(context)?;
            progress |= self.poll_out(context)?;
            if !progress {
                return Ok(());
            }
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    /// Writes what waits; progress is what makes room for waiting deliveries.
    fn poll_out(&mut self, context: &mut Context<'_>) -> Result<bool, Box<Ending>> {
        if self.out.is_empty() {
            return Ok(false);
        }
        let was_full = self.out.bytes() >= MAX_OUTGOING;
        match self.out.poll_write(context, &mut self.transport) {
            Poll::Ready(Err(error)) => Err(Ending::lost(error.to_string()).into()),
            _ => Ok(was_full && self.out.bytes() < MAX_OUTGOING),
        }
    }

    fn has_room_outside(&self) -> bool {
        self.out.bytes() < MAX_OUTGOING
    }

    fn obey(&mut self, control: Control) -> Result<(), Box<Ending>> {
        match control {
            Control::TakeOver => Err(Ending::taken_over().into()),
            Control::Disconnect(reason, detail) => Err(Ending::refused(reason, detail).into()),
            Control::ListenerClosed(listener) if Arc::ptr_eq(&listener, &self.client.listener) => {
                Err(Ending::refused(ReasonCode::AdministrativeAction, "the listener is closed").into())
            }
            Control::ListenerChanged(listener) if Arc::ptr_eq(&listener, &self.client.listener) => {
                let settings = listener.settings();
                let clients = settings.clients.as_ref();
                if clients.is_some_and(|clients| clients.revokes(self.transport.peer_certificates())) {
                    // What the client shows to be let in does not count any more: its user, not an administrator, has to
                    // do something about it.
                    let detail = "the client's certificate is revoked";
                    return Err(Ending::refused(ReasonCode::NotAuthorized, detail).into());
                }
                self.client
                    .principal
                    .renew(&settings.authentication)
                    .map_err(|reason| {
                        Box::new(Ending::refused(reason, "the client has to prove anew who it is"))
                    })?;
                self.apply_policies()
            }
            Control::ListenerClosed(_) | Control::ListenerChanged(_) => Ok(()),
            Control::PolicyChanged => self.apply_policies(),
            Control::Redirected(_) if self.client.principal.is_own_role() => Ok(()),
            Control::Redirected(redirect) => Err(Ending::redirected(&redirect).into()),
        }
    }

    /// Judges the client by the policies as they are now. Whoever lost a right that it uses is disconnected, so that it
    /// learns of it; nobody else notices anything.
    fn apply_policies(&mut self) -> Result<(), Box<Ending>> {
        let policies = self.engine.policies.load();
        self.client.permissions = policies.permissions(&self.client.id, &self.client.principal);
        let lost_connect = self.client.permissions.may_connect().is_err();
        let lost_subscriptions = self.forbidden_subscriptions();
        let lost_watches = !self.state.watches.is_empty() && !state_store::may_ask(&self.client.permissions);
        if lost_connect || lost_watches || !lost_subscriptions.is_empty() {
            self.remove_subscriptions(&lost_subscriptions);
            if lost_watches {
                self.remove_watches();
            }
            return Err(Ending::refused(ReasonCode::NotAuthorized, "a policy took a right away").into());
        }
        Ok(())
    }

    /// What the client is told when a policy refuses it something.
    fn policy_refusal(&self) -> ReasonCode {
        self.engine.conduct.load().policy_refusal()
    }

    /// Something was heard from the client.
    fn heard(&self) {
        if let Some(silence) = self.client.silence {
            self.inbox.deadline.set(Some(Instant::now() + silence));
        }
    }
}
