//! A stand-in for a broker, for tests.
//!
//! It is no broker: it keeps nothing, checks nothing, and knows no sessions. It takes connections, acknowledges and
//! records what is published, passes messages on to whoever subscribes, and misbehaves on demand. It says that it is a
//! stand-in in the reason string of every CONNACK.

use std::{
    collections::HashMap,
    io,
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use foreshore_record::{Qos, Record, TopicFilter};
use foreshore_runtime::{Task, spawn};
use parking_lot::Mutex;
use rmqtt_codec::v5::{
    Codec, ConnectAck, Packet, PublishAck, PublishAck2, PublishAck2Reason, PublishAckReason, Subscribe,
    SubscribeAck, SubscribeAckReason, UnsubscribeAck, UnsubscribeAckReason,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_util::codec::{Decoder, Encoder};

use crate::{
    packet::{from_publish, qos_to_codec, to_publish},
    reason::ReasonCode,
    transport::Stream,
};

/// What the stand-in says in every CONNACK.
pub const CONFESSION: &str = "this is a stand-in for tests, nothing is kept";

/// Reason string of what the judge refuses.
pub const REFUSAL: &str = "the judge of the test refuses it";

/// How the stand-in behaves.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Messages that a client may have on their way.
    pub receive_maximum: u16,
    /// Largest packet taken, in bytes; no bound where it is left out.
    pub max_packet_size: Option<u32>,
    /// TLS with this configuration.
    pub tls: Option<Arc<ServerConfig>>,
    /// Refuses connections with this code.
    pub refuse_connections: Option<rmqtt_codec::v5::ConnectAckReason>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            receive_maximum: 1000,
            max_packet_size: None,
            tls: None,
            refuse_connections: None,
        }
    }
}

/// A PUBLISH as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// Which connection, counted from 1.
    pub connection: u64,
    /// Whether the sender says that it sends it again (DUP).
    pub dup: bool,
    /// The message.
    pub record: Record,
    /// The reason that it was, or will be, acknowledged with.
    pub reason: ReasonCode,
}

type Judge = Box<dyn Fn(&Record) -> ReasonCode + Send>;

/// A broker stand-in that listens on 127.0.0.1. Ends when dropped.
#[derive(Debug)]
pub struct StandIn {
    address: String,
    shared: Arc<Shared>,
    _listening: Task<()>,
}

struct Shared {
    behaviour: Behaviour,
    state: Mutex<State>,
    /// Counts changes of the state, for [`StandIn::wait_until`].
    changed: watch::Sender<u64>,
    /// Whether acknowledgements are held back.
    hold: watch::Sender<bool>,
    /// Counts cuts of all connections.
    cut: watch::Sender<u64>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("behaviour", &self.behaviour)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    received: Vec<Received>,
    unsubscribed: Vec<String>,
    connections: u64,
    open: HashMap<u64, Open>,
    down: bool,
    judge: Option<Judge>,
}

struct Open {
    client_id: String,
    /// Session expiry interval in seconds; nothing where the client asked for a clean start.
    keeps: Option<u32>,
    /// Messages that it takes unacknowledged; nothing where it did not say.
    receive_maximum: Option<u16>,
    filters: Vec<(TopicFilter, Option<NonZeroU32>)>,
    outbox: mpsc::Sender<(Record, Vec<NonZeroU32>)>,
    /// Messages of QoS 1 that the client acknowledged.
    acknowledged: u64,
}

impl StandIn {
    /// Listens on a free port.
    ///
    /// # Errors
    /// When none can be had.
    pub async fn start(behaviour: Behaviour) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            behaviour,
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            hold: watch::Sender::new(false),
            cut: watch::Sender::new(0),
        });
        let listening = spawn("stand-in", listen(listener, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            _listening: listening,
        })
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Every PUBLISH that arrived, repeats included.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.shared.state.lock().received.clone()
    }

    /// The messages that a broker would keep: acknowledged without an error, and of numbered ones only those whose
    /// number rises.
    #[must_use]
    pub fn kept(&self) -> Vec<Record> {
        let mut last: HashMap<String, (u64, u64)> = HashMap::new();
        let mut kept = self.received();
        kept.retain(|received| {
            let Some(number) = &received.record.number else {
                return !received.reason.is_error();
            };
            let place = (number.epoch, number.sequence);
            let known = last.entry(number.source.clone()).or_default();
            let rises = place > *known;
            *known = place.max(*known);
            rises && !received.reason.is_error()
        });
        kept.into_iter().map(|received| received.record).collect()
    }

    /// Connections that were ever accepted.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.state.lock().connections
    }

    /// Client identifiers of the connections that are open.
    #[must_use]
    pub fn clients(&self) -> Vec<String> {
        self.shared
            .state
            .lock()
            .open
            .values()
            .map(|open| open.client_id.clone())
            .collect()
    }

    /// Filters that are subscribed.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        let state = self.shared.state.lock();
        let filters = state.open.values().flat_map(|open| &open.filters);
        filters.map(|(filter, _)| filter.to_string()).collect()
    }

    /// How many messages the open connections take unacknowledged, of those that say so.
    #[must_use]
    pub fn receive_maxima(&self) -> Vec<u16> {
        let state = self.shared.state.lock();
        state
            .open
            .values()
            .filter_map(|open| open.receive_maximum)
            .collect()
    }

    /// For how many seconds the sessions of open connections are to be kept, of those that are to go on with an earlier one.
    #[must_use]
    pub fn kept_sessions(&self) -> Vec<u32> {
        let state = self.shared.state.lock();
        state.open.values().filter_map(|open| open.keeps).collect()
    }

    /// Filters that clients were unsubscribed from, in order.
    #[must_use]
    pub fn unsubscribed(&self) -> Vec<String> {
        self.shared.state.lock().unsubscribed.clone()
    }

    /// Messages that clients acknowledged.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.shared
            .state
            .lock()
            .open
            .values()
            .map(|open| open.acknowledged)
            .sum()
    }

    /// Decides from now on with which reason each message is acknowledged.
    pub fn judge(&self, judge: impl Fn(&Record) -> ReasonCode + Send + 'static) {
        self.shared.state.lock().judge = Some(Box::new(judge));
    }

    /// Holds acknowledgements back, or lets them go.
    pub fn hold(&self, hold: bool) {
        self.shared.hold.send_replace(hold);
    }

    /// Cuts all connections; acknowledgements that were held back are lost.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Takes no connections any more and cuts those that there are, or takes them again.
    pub fn down(&self, down: bool) {
        self.shared.state.lock().down = down;
        if down {
            self.cut();
        }
    }

    /// Sends a message to everyone who subscribes to it; how many those are.
    pub fn publish(&self, record: &Record) -> usize {
        self.shared.route(record)
    }

    /// Sends a message to everyone, whatever they subscribe to, by the identifiers of what they do, as a server does that
    /// remembers filters of earlier.
    pub fn publish_to_all(&self, record: &Record) {
        for open in self.shared.state.lock().open.values() {
            let identifiers = open.filters.iter().filter_map(|(_, id)| *id).collect();
            // One that is full has enough to do.
            drop(open.outbox.try_send((record.clone(), identifiers)));
        }
    }

    /// Waits until something holds of this stand-in; whether it did within `within`.
    pub async fn wait_until(&self, within: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let mut changed = self.shared.changed.subscribe();
        let wait = async {
            while !holds(self) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(within, wait).await.is_ok()
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.send_modify(|changes| *changes += 1);
    }

    fn route(&self, record: &Record) -> usize {
        let state = self.state.lock();
        let mut receivers = 0;
        for open in state.open.values() {
            let matching = || {
                open.filters
                    .iter()
                    .filter(|(filter, _)| filter.matches(record.topic.as_str()))
            };
            if matching().next().is_some() {
                let ids = matching().filter_map(|(_, id)| *id).collect();
                receivers += usize::from(open.outbox.try_send((record.clone(), ids)).is_ok());
            }
        }
        receivers
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = Vec::new();
    while let Ok((stream, _)) = listener.accept().await {
        if shared.state.lock().down {
            continue;
        }
        let shared = Arc::clone(&shared);
        connections.retain(|task: &Task<()>| !task.is_finished());
        connections.push(spawn("stand-in-connection", async move {
            if let Err(error) = accept(stream, &shared).await {
                tracing::debug!(%error, "stand-in's connection ended");
            }
        }));
    }
}

async fn accept(stream: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let stream: Box<dyn Stream> = match &shared.behaviour.tls {
        Some(config) => Box::new(TlsAcceptor::from(Arc::clone(config)).accept(stream).await?),
        None => Box::new(stream),
    };
    let mut connection = Connection {
        stream,
        codec: Codec::default(),
        inbound: BytesMut::new(),
        shared: Arc::clone(shared),
        number: 0,
        held: Vec::new(),
        next_id: 0,
    };
    let mut cut = shared.cut.subscribe();
    let result = tokio::select! {
        result = connection.run() => result,
        _ = cut.changed() => Ok(()),
    };
    let number = connection.number;
    shared.change(|state| drop(state.open.remove(&number)));
    result
}

struct Connection {
    stream: Box<dyn Stream>,
    codec: Codec,
    inbound: BytesMut,
    shared: Arc<Shared>,
    number: u64,
    held: Vec<Packet>,
    next_id: u16,
}

impl Connection {
    async fn run(&mut self) -> io::Result<()> {
        let Some(mut outbox) = self.introduce().await? else {
            return Ok(());
        };
        let mut hold = self.shared.hold.subscribe();
        loop {
            tokio::select! {
                packet = self.read() => match packet? {
                    Some(packet) => self.handle(packet).await?,
                    None => return Ok(()),
                },
                Some((record, ids)) = outbox.recv() => self.deliver(record, ids).await?,
                Ok(()) = hold.changed() => {
                    if !*hold.borrow_and_update() {
                        for packet in std::mem::take(&mut self.held) {
                            self.write(packet).await?;
                        }
                    }
                }
            }
        }
    }

    /// Answers the CONNECT; `None` when the connection is refused.
    async fn introduce(&mut self) -> io::Result<Option<mpsc::Receiver<(Record, Vec<NonZeroU32>)>>> {
        let Some(Packet::Connect(connect)) = self.read().await? else {
            return Err(io::Error::other("no CONNECT"));
        };
        let behaviour = self.shared.behaviour.clone();
        let mut acceptance = ConnectAck {
            receive_max: NonZeroU16::new(behaviour.receive_maximum).unwrap_or(NonZeroU16::MIN),
            max_packet_size: behaviour.max_packet_size,
            reason_string: Some(CONFESSION.into()),
            ..ConnectAck::default()
        };
        if let Some(reason) = behaviour.refuse_connections {
            acceptance.reason_code = reason;
            self.write(Packet::ConnectAck(Box::new(acceptance))).await?;
            return Ok(None);
        }
        let (sender, outbox) = mpsc::channel(1024);
        let client_id = connect.client_id.to_string();
        let keeps = (!connect.clean_start).then_some(connect.session_expiry_interval_secs);
        let receive_maximum = connect.receive_max.map(NonZeroU16::get);
        self.shared.change(|state| {
            state.connections += 1;
            self.number = state.connections;
            let open = Open {
                client_id,
                keeps,
                receive_maximum,
                filters: Vec::new(),
                outbox: sender,
                acknowledged: 0,
            };
            state.open.insert(self.number, open);
        });
        self.write(Packet::ConnectAck(Box::new(acceptance))).await?;
        Ok(Some(outbox))
    }

    async fn handle(&mut self, packet: Packet) -> io::Result<()> {
        let number = self.number;
        match packet {
            Packet::Publish(publish) => {
                let (dup, id) = (publish.dup, publish.packet_id);
                let record = from_publish(*publish).map_err(io::Error::other)?;
                let routed = self.shared.route(&record);
                self.answer(
                    Received {
                        connection: number,
                        dup,
                        record,
                        reason: ReasonCode::SUCCESS,
                    },
                    id,
                    routed,
                )
                .await
            }
            Packet::PublishRelease(release) => {
                self.acknowledge(Packet::PublishComplete(PublishAck2 {
                    packet_id: release.packet_id,
                    reason_code: PublishAck2Reason::Success,
                    properties: Vec::new(),
                    reason_string: None,
                }))
                .await
            }
            Packet::PublishAck(_) => {
                self.shared.change(|state| {
                    if let Some(open) = state.open.get_mut(&number) {
                        open.acknowledged += 1;
                    }
                });
                Ok(())
            }
            Packet::Subscribe(subscribe) => self.subscribe(subscribe).await,
            Packet::Unsubscribe(unsubscribe) => {
                self.shared.change(|state| {
                    let gone = unsubscribe.topic_filters.iter();
                    state.unsubscribed.extend(gone.map(ToString::to_string));
                    if let Some(open) = state.open.get_mut(&number) {
                        open.filters.retain(|(filter, _)| {
                            !unsubscribe
                                .topic_filters
                                .iter()
                                .any(|gone| **gone == *filter.as_str())
                        });
                    }
                });
                let status = vec![UnsubscribeAckReason::Success; unsubscribe.topic_filters.len()];
                let packet_id = unsubscribe.packet_id;
                let ack = UnsubscribeAck {
                    packet_id,
                    properties: Vec::new(),
                    reason_string: None,
                    status,
                };
                self.write(Packet::UnsubscribeAck(ack)).await
            }
            Packet::PingRequest => self.write(Packet::PingResponse).await,
            Packet::Disconnect(_) => Err(io::ErrorKind::ConnectionAborted.into()),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }

    /// Records a message and acknowledges it as the judge says.
    async fn answer(
        &mut self,
        mut received: Received,
        id: Option<NonZeroU16>,
        routed: usize,
    ) -> io::Result<()> {
        let nobody = if routed == 0 {
            ReasonCode::NO_MATCHING_SUBSCRIBERS
        } else {
            ReasonCode::SUCCESS
        };
        let qos = received.record.qos;
        let reason = {
            let mut state = self.shared.state.lock();
            received.reason = state
                .judge
                .as_ref()
                .map_or(nobody, |judge| judge(&received.record));
            let reason = received.reason;
            state.received.push(received);
            reason
        };
        self.shared.changed.send_modify(|changes| *changes += 1);
        let Some(packet_id) = id else { return Ok(()) };
        let reason_code = PublishAckReason::try_from(reason.0).unwrap_or(PublishAckReason::UnspecifiedError);
        let ack = PublishAck {
            packet_id,
            reason_code,
            properties: Vec::new(),
            reason_string: (reason.0 >= 0x80).then(|| REFUSAL.into()),
        };
        let packet = if qos == Qos::ExactlyOnce {
            Packet::PublishReceived(ack)
        } else {
            Packet::PublishAck(ack)
        };
        self.acknowledge(packet).await
    }

    async fn acknowledge(&mut self, packet: Packet) -> io::Result<()> {
        if *self.shared.hold.borrow() {
            self.held.push(packet);
            return Ok(());
        }
        self.write(packet).await
    }

    async fn subscribe(&mut self, subscribe: Subscribe) -> io::Result<()> {
        let mut status = Vec::new();
        let mut added = Vec::new();
        for (filter, _) in &subscribe.topic_filters {
            match TopicFilter::new(&**filter) {
                Ok(filter) => {
                    added.push((filter, subscribe.id));
                    status.push(SubscribeAckReason::GrantedQos1);
                }
                Err(_) => status.push(SubscribeAckReason::TopicFilterInvalid),
            }
        }
        self.shared.change(|state| {
            if let Some(open) = state.open.get_mut(&self.number) {
                open.filters
                    .retain(|(filter, _)| !added.iter().any(|(new, _)| new == filter));
                open.filters.extend(added);
            }
        });
        let packet_id = subscribe.packet_id;
        self.write(Packet::SubscribeAck(SubscribeAck {
            packet_id,
            properties: Vec::new(),
            reason_string: None,
            status,
        }))
        .await
    }

    async fn deliver(&mut self, mut record: Record, ids: Vec<NonZeroU32>) -> io::Result<()> {
        record.qos = record.qos.min(Qos::AtLeastOnce);
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        let id = NonZeroU16::new(self.next_id).filter(|_| record.qos != Qos::AtMostOnce);
        let mut publish = to_publish(&record, id);
        publish.qos = qos_to_codec(record.qos);
        if let Some(properties) = &mut publish.properties {
            properties.subscription_ids = ids;
        }
        self.write(Packet::Publish(Box::new(publish))).await
    }

    async fn read(&mut self) -> io::Result<Option<Packet>> {
        loop {
            if let Some((packet, _)) = self.codec.decode(&mut self.inbound).map_err(io::Error::other)? {
                return Ok(Some(packet));
            }
            if self.stream.read_buf(&mut self.inbound).await? == 0 {
                return Ok(None);
            }
        }
    }

    async fn write(&mut self, packet: Packet) -> io::Result<()> {
        let mut outbound = BytesMut::new();
        self.codec
            .encode(packet, &mut outbound)
            .map_err(io::Error::other)?;
        self.stream.write_all(&outbound).await?;
        self.stream.flush().await
    }
}
