//! The task that owns the connection: connects, sends, receives, and connects again.

mod exchange;
mod wire;

use std::{collections::HashMap, num::NonZeroU16, sync::Arc, time::Duration};

use foreshore_record::{Qos, TopicFilter};
use foreshore_runtime::{Backoff, Shutdown};
use rmqtt_codec::v5::DisconnectReasonCode;
use tokio::{
    io::AsyncReadExt,
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{info, warn};

use self::wire::{Wire, push};
use crate::{
    client::{ConnectionState, Control, Publication},
    error::{ConnectError, ConnectionLost, SubscribeError},
    inflight::{InFlight, LARGEST_PUBLISH_ID, OUTBOUND_HIGH},
    options::{Options, Target},
    subscriptions::{Acks, Delivery, SubscriberId, Subscriptions, Token},
    transport::{Established, Limits, establish},
    version::Version,
};

/// SUBSCRIBE packets without answer before no more are sent.
const MAX_UNANSWERED: usize = 64;

/// A connection that lasted this long was a good one: the next try follows at once.
const STABLE: Duration = Duration::from_secs(5);

/// Owns the connection of a [`Client`](crate::Client).
#[derive(Debug)]
pub struct Service {
    options: Options,
    publications: mpsc::Receiver<Publication>,
    controls: mpsc::Receiver<Control>,
    state: watch::Sender<ConnectionState>,
    target: watch::Receiver<Target>,
    in_flight: InFlight,
    subscriptions: Subscriptions,
    acks: Arc<Acks>,
    /// The server keeps a session for the one subscriber.
    is_for_session: bool,
    /// The server's session has the filters that it is kept for.
    session_subscribed: bool,
    /// Filters that the server's session may have from earlier, and is not kept for any more.
    former: Vec<TopicFilter>,
    /// SUBSCRIBE packets without answer, by packet identifier.
    unanswered: HashMap<NonZeroU16, Asked>,
    next_control_id: u16,
    /// Messages of QoS 1 that were received over this connection and not acknowledged.
    unacknowledged: usize,
    /// Messages of QoS 1 that were received in this session and not acknowledged, by packet identifier.
    received: HashMap<NonZeroU16, Token>,
    /// Messages of QoS 0 that found no room.
    dropped: u64,
    connections: u64,
}

/// What a SUBSCRIBE asked for.
#[derive(Debug)]
struct Asked {
    subscriber: SubscriberId,
    filters: Vec<(TopicFilter, Qos)>,
    /// Who waits for the answer; nobody when it was subscribed again after a reconnect.
    reply: Option<oneshot::Sender<Result<(), SubscribeError>>>,
}

/// Why a connection is over.
enum End {
    Done,
    Lost(ConnectionLost),
}

impl<E: Into<ConnectionLost>> From<E> for End {
    fn from(lost: E) -> Self {
        Self::Lost(lost.into())
    }
}

impl Service {
    pub(crate) fn new(
        options: Options,
        publications: mpsc::Receiver<Publication>,
        controls: mpsc::Receiver<Control>,
        state: watch::Sender<ConnectionState>,
        target: watch::Receiver<Target>,
    ) -> Self {
        Self {
            in_flight: InFlight::new(options.window, Limits::NOTHING),
            options,
            publications,
            controls,
            state,
            target,
            subscriptions: Subscriptions::default(),
            acks: Arc::default(),
            is_for_session: false,
            session_subscribed: false,
            former: Vec::new(),
            unanswered: HashMap::new(),
            next_control_id: LARGEST_PUBLISH_ID,
            unacknowledged: 0,
            received: HashMap::new(),
            dropped: 0,
            connections: 0,
        }
    }

    /// Adds the subscriber that the server keeps a session for.
    pub(crate) fn begin_session(
        &mut self,
        id: SubscriberId,
        deliveries: mpsc::Sender<Delivery>,
        reserved: usize,
        filters: Vec<(TopicFilter, Qos)>,
        former: Vec<TopicFilter>,
    ) {
        self.is_for_session = true;
        self.former = former;
        self.subscriptions
            .begin_session(id, deliveries, reserved, filters);
    }

    /// Keeps a connection until the shutdown begins or every handle is gone. Then sends what waits until everything is
    /// answered, at the latest until the drain deadline, and disconnects in order.
    pub async fn run(mut self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(self.options.backoff_min, self.options.backoff_max);
        while !self.is_done(&shutdown) {
            let connecting = Box::pin(self.connect(&mut backoff, &shutdown));
            let Some(Some(established)) = shutdown.or_deadline(connecting).await else {
                break;
            };
            let since = Instant::now();
            let address = established.address.clone();
            match Box::pin(self.drive(established, &shutdown)).await {
                End::Done => break,
                End::Lost(error) => {
                    let (client, in_flight) = (self.options.client_id.as_str(), self.in_flight.len());
                    warn!(client, connection = self.connections, in_flight, %error, "connection to broker lost");
                    self.state.send_replace(ConnectionState::Connecting {
                        failures: 0,
                        error: Some(Arc::new(ConnectError::Lost {
                            address,
                            source: error,
                        })),
                    });
                }
            }
            if since.elapsed() >= STABLE {
                backoff.reset();
            } else {
                // A server that accepts and disconnects, or another client of our name, must not keep us spinning.
                let wait = tokio::time::sleep(backoff.next_delay());
                shutdown.or_begun(wait).await;
            }
        }
        if !self.in_flight.is_empty() {
            warn!(
                in_flight = self.in_flight.len(),
                "ended with messages that the broker has not acknowledged"
            );
        }
        self.state.send_replace(ConnectionState::Ended);
    }

    /// Whether nobody wants anything any more and everything was answered.
    fn is_done(&self, shutdown: &Shutdown) -> bool {
        let unwanted = shutdown.is_begun() || self.publications.is_closed() && self.controls.is_closed();
        unwanted && self.in_flight.is_empty() && self.publications.is_empty()
    }

    /// Tries the addresses in turn, with waits between; `None` when there is nothing left to connect for.
    async fn connect(&mut self, backoff: &mut Backoff, shutdown: &Shutdown) -> Option<Established> {
        let mut failures = 0_u32;
        // What ends while it waits makes no further try: each may count for a lock.
        while failures == 0 || !self.is_done(shutdown) {
            let target = self.target.borrow_and_update().clone();
            let index = usize::try_from(failures).unwrap_or(0) % target.addresses.len().max(1);
            let address = target.addresses.get(index).cloned();
            self.options.target = target;
            let result = match &address {
                Some(address) => establish(address, &self.options).await,
                None => Err(ConnectError::NoAddress),
            };
            let error = match result {
                Ok(established) => {
                    self.connected(&established);
                    return Some(established);
                }
                Err(error) => Arc::new(error),
            };
            failures = failures.saturating_add(1);
            // The same trouble is told at once, and then ever more rarely.
            if failures.is_power_of_two() {
                let client = self.options.client_id.as_str();
                warn!(client, failures, %error, "no connection to broker");
            }
            self.state.send_replace(ConnectionState::Connecting {
                failures,
                error: Some(error),
            });
            if self.is_done(shutdown) {
                return None;
            }
            let wait = tokio::time::sleep(backoff.next_delay());
            tokio::pin!(wait);
            tokio::select! {
                () = &mut wait => {}
                Ok(()) = self.target.changed() => {}
                () = shutdown.begun(), if !shutdown.is_begun() => {}
            }
        }
        None
    }

    fn connected(&mut self, established: &Established) {
        self.connections += 1;
        let (address, number) = (established.address.as_str(), self.connections);
        let client = self.options.client_id.as_str();
        info!(client, address, connection = number, "connected to broker");
        self.state.send_replace(ConnectionState::Connected {
            address: address.into(),
            number,
        });
    }

    /// Runs one connection to its end.
    async fn drive(&mut self, established: Established, shutdown: &Shutdown) -> End {
        let session_present = established.session_present;
        let mut wire = Wire::new(established);
        self.in_flight.resume(session_present, wire.limits);
        self.acks.begin_connection();
        self.unacknowledged = 0;
        if !session_present {
            self.received.clear();
            self.session_subscribed = false;
            if !self.options.clean_start && self.connections > 1 {
                warn!(
                    client = self.options.client_id,
                    address = wire.address,
                    "the server has forgotten the session, what it kept for us is lost"
                );
            }
        }
        let mut end = self
            .subscribe_all(&mut wire)
            .map_or_else(End::from, |()| End::Done);
        if matches!(end, End::Done) {
            self.in_flight.pump(&mut wire.outbound);
            // What came together with the server's acceptance is read already.
            end = match self.receive(&mut wire) {
                Ok(()) => self.turn(&mut wire, shutdown).await,
                Err(lost) => End::Lost(lost),
            };
        }
        // What was taken last need not come again.
        if matches!(end, End::Done | End::Lost(ConnectionLost::Unclaimed))
            && let Err(lost) = self.acknowledge(&mut wire)
        {
            end = End::Lost(lost);
        }
        let code = match &end {
            End::Done => Some(DisconnectReasonCode::NormalDisconnection),
            End::Lost(ConnectionLost::Malformed(_)) => Some(DisconnectReasonCode::MalformedPacket),
            End::Lost(ConnectionLost::Protocol { .. }) => Some(DisconnectReasonCode::ProtocolError),
            End::Lost(
                ConnectionLost::Moved | ConnectionLost::Unclaimed | ConnectionLost::Subscription(_),
            ) => Some(DisconnectReasonCode::NormalDisconnection),
            End::Lost(_) => None,
        };
        if let Some(code) = code {
            wire.close(code).await;
        }
        end
    }

    /// Does one thing after another until the connection is over.
    async fn turn(&mut self, wire: &mut Wire, shutdown: &Shutdown) -> End {
        loop {
            if wire.is_idle() && self.is_done(shutdown) {
                return End::Done;
            }
            if shutdown
                .deadline()
                .is_some_and(|deadline| deadline <= Instant::now())
            {
                return End::Done;
            }
            if let Err(lost) = self.step(wire, shutdown).await {
                return End::Lost(lost);
            }
        }
    }

    /// Waits for one thing to happen and does what it asks for.
    async fn step(&mut self, wire: &mut Wire, shutdown: &Shutdown) -> Result<(), ConnectionLost> {
        let pending = !wire.is_idle();
        let may_publish = self.in_flight.has_room()
            && wire.outbound.len() < OUTBOUND_HIGH
            && !(self.publications.is_closed() && self.publications.is_empty());
        let may_control = self.unanswered.len() < MAX_UNANSWERED && !self.controls.is_closed();
        let wake = wire.deadline();
        let wake = shutdown.deadline().map_or(wake, |deadline| deadline.min(wake));
        let may_read = self.may_receive(wire);
        if !may_read {
            wire.is_not_heard();
        }
        wire.make_room();
        tokio::select! {
            read = wire.read.read_buf(&mut wire.inbound), if may_read => {
                wire.has_read(read?)?;
                self.receive(wire)?;
            }
            written = push(&mut wire.write, &mut wire.outbound), if pending => {
                wire.has_written(written?)?;
                self.in_flight.pump(&mut wire.outbound);
            }
            publication = self.publications.recv(), if may_publish => self.publish(publication, wire),
            control = self.controls.recv(), if may_control => self.control(control, wire)?,
            () = self.acks.notified() => {
                self.acknowledge(wire)?;
                self.receive(wire)?;
            }
            Ok(()) = self.target.changed() => self.retarget(wire)?,
            () = shutdown.begun(), if !shutdown.is_begun() => {}
            () = tokio::time::sleep_until(wake) => wire.keep_alive()?,
        }
        Ok(())
    }

    /// Leaves a server that the target no longer names.
    fn retarget(&mut self, wire: &Wire) -> Result<(), ConnectionLost> {
        let target = self.target.borrow_and_update().clone();
        let same =
            target.addresses.contains(&wire.address) && target.security == self.options.target.security;
        if same { Ok(()) } else { Err(ConnectionLost::Moved) }
    }
}

impl Limits {
    /// Those of no server.
    const NOTHING: Self = Self {
        version: Version::V5,
        receive_maximum: 0,
        max_packet_size: 0,
        max_qos: Qos::AtMostOnce,
        retain: false,
        subscription_identifiers: false,
        keep_alive: Duration::ZERO,
    };
}
