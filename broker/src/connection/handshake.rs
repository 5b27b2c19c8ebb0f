//! From the socket to a session: TLS, CONNECT, who it is, what it may, and CONNACK (MQTT 5.0 section 3.1.4).

use std::{borrow::Cow, future::poll_fn, rc::Rc, sync::Arc, time::Duration};

use bytes::BytesMut;
use foreshore_store::ReadRange;
use tokio::net::TcpStream;

use super::{
    Accepted, ClientFacts, Connection,
    audit::Stranger,
    authentication, command,
    drain::{self, Drain, Resend},
    inbound::Receiving,
    outgoing::Outgoing,
    sending::Sending,
    transport::Transport,
};
use crate::{
    audit::What,
    auth::{self, Credentials, Principal},
    engine::{
        memory::{Handshake, SPARED},
        shard::{Control, Shard},
    },
    listener::{ConnectionPermit, Listener, Settings},
    message::Message,
    options::Limits,
    policy::Denied,
    session::{
        lifecycle::{Attached, NotAttached},
        rows,
        state::{Held, Phase, SessionState},
    },
    state_store,
    wire::{
        ReasonCode, Version, WireError,
        auth::Authentication,
        connect::Connect,
        encode::{self, ConnAck},
        frame,
    },
};

/// Largest CONNECT: a will's payload of 64 KiB with its properties, and some room.
const MAX_CONNECT: u32 = 256 << 10;

/// Bytes that are read at once before CONNECT is complete.
const READ_PART: usize = 1024;

/// Longest time that a refusal may take to be sent.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a client is not let in.
pub(super) struct Refused {
    /// Version in which it is told; `None` when it is not told at all.
    version: Option<Version>,
    reason: ReasonCode,
    detail: Cow<'static, str>,
}

impl Refused {
    pub(super) fn new(version: Version, reason: ReasonCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            version: Some(version),
            reason,
            detail: detail.into(),
        }
    }

    /// What the client is told; `None` where it is told nothing.
    pub(super) fn code(&self) -> Option<ReasonCode> {
        self.version.map(|_| self.reason)
    }

    /// Why, in words.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    /// Without a word to the client.
    pub(super) fn silently(detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            version: None,
            reason: ReasonCode::UnspecifiedError,
            detail: detail.into(),
        }
    }
}

/// A client that said who it is.
struct Introduced {
    transport: Transport,
    /// Of the listener, as they were when the connection came.
    settings: Arc<Settings>,
    connect: Connect,
    /// What arrived behind CONNECT.
    rest: BytesMut,
}

/// Carries a connection from its beginning to its end.
pub(crate) async fn serve(shard: Rc<Shard>, accepted: Box<Accepted>) {
    let engine = Arc::clone(&shard.engine);
    // Boxed, so that its memory is given back when the client is let in.
    let let_in = Box::pin(let_in(&shard, *accepted)).await;
    drop(shard);
    match let_in {
        Some(connection) => {
            engine.stats.connected.inc();
            engine.stats.connections.inc();
            let counted = Arc::clone(&connection.client.counted);
            counted.connections.inc();
            connection.run().await;
            counted.connections.dec();
            engine.stats.connections.dec();
        }
        None => drop(engine.stats.not_connected.inc()),
    }
}

/// Finds out who the client is, and lets it in or tells it why not.
async fn let_in(shard: &Rc<Shard>, accepted: Accepted) -> Option<Box<Connection>> {
    let Accepted {
        stream,
        peer,
        listener,
        permit,
    } = accepted;
    let timeout = shard.engine.limits.load().connect_timeout;
    let refuse_with = async |transport: Option<Transport>,
                             client: &str,
                             username: Option<&str>,
                             max_size,
                             refused: Refused| {
        let stranger = Stranger {
            listener: &listener,
            peer,
            client,
            username,
        };
        stranger.refused(&shard.engine, &refused);
        tracing::info!(
            listener = %listener.name,
            %peer,
            client,
            reason = refused.reason.text(),
            detail = %refused.detail,
            "connection refused"
        );
        refuse(transport, &refused, max_size).await;
        None
    };
    let memory = Handshake::new(&shard.engine.memory);
    let introduced = match tokio::time::timeout(timeout, introduce(stream, &listener, memory)).await {
        Ok(Ok(introduced)) => introduced,
        Ok(Err((transport, refused))) => return refuse_with(transport, "", None, usize::MAX, refused).await,
        Err(_) => {
            tracing::debug!(listener = %listener.name, %peer, "no CONNECT arrived in time");
            let stranger = Stranger {
                listener: &listener,
                peer,
                client: "",
                username: None,
            };
            stranger.was_silent(&shard.engine);
            return None;
        }
    };
    let Introduced {
        mut transport,
        settings,
        connect,
        mut rest,
    } = introduced;
    let (client_id, username) = (connect.client_id.clone(), connect.username.clone());
    let max_size = connect.largest_packet();
    match welcome(shard, &mut transport, &mut rest, connect, &listener, peer).await {
        Ok(welcomed) => {
            if !Arc::ptr_eq(&settings, &listener.settings()) {
                // What it was judged by has changed before it could be told of changes.
                let changed = Control::ListenerChanged(Arc::clone(&listener));
                welcomed.attached.inbox.control(changed);
            }
            let connection = Box::new(welcomed.connection(shard, transport, rest, permit));
            connection.audit(What::Connected);
            Some(connection)
        }
        Err(refused) => {
            refuse_with(
                Some(transport),
                &client_id,
                username.as_deref(),
                max_size,
                refused,
            )
            .await
        }
    }
}

/// Reads CONNECT.
async fn introduce(
    stream: std::net::TcpStream,
    listener: &Listener,
    mut memory: Handshake,
) -> Result<Introduced, (Option<Transport>, Refused)> {
    let stream = TcpStream::from_std(stream).map_err(|error| (None, Refused::silently(error.to_string())))?;
    let settings = listener.settings();
    let mut transport = Transport::accept(stream, &settings.protocol)
        .await
        .map_err(|detail| (None, Refused::silently(detail)))?;
    let mut input = BytesMut::new();
    loop {
        if let Err(refused) = read(&mut transport, &mut input).await {
            return Err((Some(transport), refused));
        }
        if !memory.holds(input.capacity()) && input.len() > SPARED {
            // Before it has said which version it speaks, it can't be told either.
            return Err((None, Refused::silently("there is no memory for its CONNECT")));
        }
        match decode(&input) {
            Ok(None) => {}
            Ok(Some((connect, length))) => {
                // A part of the input would hold all of its memory for as long as the connection lives.
                let rest = BytesMut::from(&input[length..]);
                return Ok(Introduced {
                    transport,
                    settings,
                    connect,
                    rest,
                });
            }
            Err(refused) => return Err((Some(transport), refused)),
        }
    }
}

/// Reads what has arrived, or waits for it.
pub(super) async fn read(transport: &mut Transport, input: &mut BytesMut) -> Result<(), Refused> {
    let start = input.len();
    input.resize(start + READ_PART, 0);
    let read = poll_fn(|context| transport.poll_read(context, &mut input[start..])).await;
    input.truncate(start + *read.as_ref().unwrap_or(&0));
    match read {
        Ok(1..) => Ok(()),
        Ok(0) => Err(Refused::silently("closed before CONNACK")),
        Err(error) => Err(Refused::silently(error.to_string())),
    }
}

/// Sends a packet before CONNACK.
pub(super) async fn send(transport: &mut Transport, packet: BytesMut) -> Result<(), Refused> {
    let mut out = Outgoing::default();
    out.append(packet.freeze());
    let sent = poll_fn(|context| out.poll_write(context, transport)).await;
    sent.map_err(|error| Refused::silently(error.to_string()))
}

fn decode(input: &[u8]) -> Result<Option<(Connect, usize)>, Refused> {
    let refused = |version, WireError { reason, detail }| Refused {
        version,
        reason,
        detail,
    };
    // Whatever does not begin as CONNECT is not listened to any further.
    if input.first().is_some_and(|first| *first != 0x10) {
        return Err(refused(
            None,
            WireError::new(ReasonCode::ProtocolError, "first packet is not CONNECT"),
        ));
    }
    let frame = match frame::cut(input, MAX_CONNECT) {
        Ok(Some(frame)) => frame,
        Ok(None) => return Ok(None),
        Err(error) => return Err(refused(None, error)),
    };
    match Connect::decode(&frame) {
        Ok(connect) => Ok(Some((connect, frame.packet.len()))),
        Err(error) => {
            let version = match error.reason {
                // Newer clients understand the form of version 5, older ones that of 3.1.1.
                ReasonCode::UnsupportedProtocolVersion
                    if frame.body.get(6).is_some_and(|level| *level > 5) =>
                {
                    Some(Version::V5)
                }
                ReasonCode::UnsupportedProtocolVersion => Some(Version::V311),
                ReasonCode::ClientIdentifierNotValid => Some(Version::V311),
                // Below version 5 there is no code for a malformed CONNECT ([MQTT-3.1.4-1] of version 3.1.1).
                _ => Connect::version_of(&frame).filter(|version| version.is_v5()),
            };
            Err(refused(version, error))
        }
    }
}

async fn refuse(transport: Option<Transport>, refused: &Refused, max_size: usize) {
    let Some(mut transport) = transport else { return };
    // No other reason is told without its code: then the words are for the log alone.
    let concealed = refused.reason == ReasonCode::UnspecifiedError;
    let detail = if concealed { "" } else { &refused.detail };
    let mut out = Outgoing::default();
    if let Some(version) = refused.version {
        encode::connack_refused(version, refused.reason, detail, max_size, out.tail());
    }
    let farewell = async {
        poll_fn(|context| out.poll_write(context, &mut transport)).await?;
        poll_fn(|context| transport.poll_shutdown(context)).await
    };
    if let Ok(Err(error)) = tokio::time::timeout(FAREWELL, farewell).await {
        tracing::trace!(%error, "refusal was not sent");
    }
}

/// A client that was let in.
struct Welcomed {
    facts: ClientFacts,
    attached: Attached,
    resend: Vec<Resend>,
    ack: ConnAck,
    window: u16,
    aliases: u16,
}

async fn welcome(
    shard: &Rc<Shard>,
    transport: &mut Transport,
    rest: &mut BytesMut,
    mut connect: Connect,
    listener: &Arc<Listener>,
    peer: std::net::SocketAddr,
) -> Result<Welcomed, Refused> {
    let engine = &shard.engine;
    let version = connect.version;
    let refused = |reason, detail: String| Refused::new(version, reason, detail);
    let limits = engine.limits.load_full();
    let mut ack = ConnAck {
        receive_maximum: limits.receive_maximum,
        maximum_packet_size: limits.max_packet_size,
        topic_alias_maximum: limits.max_topic_aliases,
        ..ConnAck::default()
    };
    if connect.client_id.len() > rows::MAX_CLIENT_ID {
        let detail = format!(
            "client identifier has {} bytes, {} are allowed",
            connect.client_id.len(),
            rows::MAX_CLIENT_ID
        );
        return Err(refused(ReasonCode::ClientIdentifierNotValid, detail));
    }
    if connect.client_id.is_empty() {
        connect.client_id = format!("auto-{}", uuid::Uuid::new_v4().simple());
        ack.assigned_client_id = Some(connect.client_id.clone());
    }
    if engine.memory.excess() > 0 && !listener.is_for_roles() {
        engine.memory.count_refused();
        engine.stats.memory_refused.inc();
        let detail = "the broker is short of memory".to_owned();
        return Err(refused(ReasonCode::QuotaExceeded, detail));
    }
    let (principal, authentication) = identify(shard, transport, rest, &connect, listener).await?;
    ack.authentication = authentication;
    if let Some(redirect) = &engine.conduct.load().redirect
        && !principal.is_ours()
    {
        return Err(refused(redirect.reason(), redirect.server_reference.clone()));
    }
    let facts = facts(shard, &connect, principal, listener, peer, &mut ack, &limits)
        .map_err(|(reason, detail)| refused(reason, detail))?;
    let expiry = connect.session_expiry.min(limits.max_session_expiry);
    if expiry != connect.session_expiry {
        ack.session_expiry = Some(expiry);
    }
    if !encode::connack_fits(version, &ack, facts.maximum_packet_size) {
        let detail = "CONNACK is larger than the client's maximum packet size".to_owned();
        return Err(refused(ReasonCode::PacketTooLarge, detail));
    }
    let attached = engine
        .attach(shard, &facts, connect.clean_start, expiry)
        .await
        .map_err(|NotAttached(reason, detail)| refused(reason, detail))?;
    ack.session_present = attached.present;
    let resend = resend(shard, &attached.state).await;
    Ok(Welcomed {
        facts,
        attached,
        resend,
        ack,
        window: connect.receive_maximum.min(limits.max_inflight),
        aliases: connect.topic_alias_maximum.min(limits.max_topic_aliases),
    })
}

/// Finds out who the client is; with enhanced authentication, also what CONNACK says of it.
async fn identify(
    shard: &Rc<Shard>,
    transport: &mut Transport,
    rest: &mut BytesMut,
    connect: &Connect,
    listener: &Listener,
) -> Result<(Principal, Option<Authentication>), Refused> {
    let engine = &shard.engine;
    let Connect {
        client_id,
        username,
        password,
        ..
    } = connect;
    let tickets = &engine.probes.tickets;
    if tickets.redeem(client_id, username.as_deref(), password.as_deref()) {
        return Ok((Principal::probe(), None));
    }
    if let Some(first) = &connect.authentication {
        let authenticate = authentication::authenticate(shard, transport, rest, connect, first, listener);
        let timeout = engine.limits.load().connect_timeout;
        let Ok(proved) = tokio::time::timeout(timeout, authenticate).await else {
            let detail = "the client did not prove in time who it is";
            return Err(Refused::new(connect.version, ReasonCode::NotAuthorized, detail));
        };
        return proved.map(|(principal, authentication)| (principal, Some(authentication)));
    }
    let shown = Credentials {
        client_id: &connect.client_id,
        listener: &listener.name,
        username: connect.username.as_deref(),
        password: connect.password.as_deref(),
        certificates: transport.peer_certificates(),
    };
    auth::authenticate(&listener.settings().authentication, &shown, &engine.checks)
        .await
        .map(|principal| (principal, None))
        .map_err(|rejected| Refused::new(connect.version, rejected.reason, rejected.detail))
}

/// Judges what the client asks for by its permissions and the limits.
fn facts(
    shard: &Rc<Shard>,
    connect: &Connect,
    principal: Principal,
    listener: &Arc<Listener>,
    peer: std::net::SocketAddr,
    ack: &mut ConnAck,
    limits: &Limits,
) -> Result<ClientFacts, (ReasonCode, String)> {
    let permissions = shard
        .engine
        .policies
        .load()
        .permissions(&connect.client_id, &principal);
    let conduct = shard.engine.conduct.load();
    let refused = |denied: Denied| {
        let detail = format!("policy refuses it: {}", denied.rule());
        (conduct.policy_refusal(), detail)
    };
    permissions.may_connect().map_err(refused)?;
    if let Some(will) = &connect.will {
        let topic = will
            .check()
            .map_err(|reason| (reason, "the will is not valid".to_owned()))?;
        permissions
            .may_publish(&topic, will.qos, will.retain)
            .map_err(refused)?;
        if state_store::is_request(&topic) || state_store::is_reserved(&topic) {
            let words = "a will is none of the state store's messages";
            return Err((ReasonCode::NotAuthorized, words.to_owned()));
        }
        if command::is_command(&topic) {
            let words = "a will can't be a command: nobody asks for it when it is published";
            return Err((ReasonCode::NotAuthorized, words.to_owned()));
        }
    }
    let mut keep_alive = connect.keep_alive;
    if connect.version.is_v5() && (keep_alive == 0 || keep_alive > limits.max_keep_alive) {
        keep_alive = limits.max_keep_alive;
        ack.server_keep_alive = Some(keep_alive);
    }
    Ok(ClientFacts {
        id: connect.client_id.as_str().into(),
        version: connect.version,
        counted: shard.engine.stats.by_client.of(&listener.name, principal.class()),
        principal,
        permissions,
        authentication_method: connect
            .authentication
            .as_ref()
            .map(|known| known.method.as_str().into()),
        // [MQTT-3.1.2-22]: one and a half times the keep alive.
        silence: (keep_alive > 0).then(|| Duration::from_millis(u64::from(keep_alive) * 1500)),
        maximum_packet_size: connect.largest_packet(),
        will: connect.will.clone().map(Box::new),
        listener: Arc::clone(listener),
        peer,
    })
}

/// Reads what was in flight from a group's queue when the last connection ended.
async fn resend(shard: &Rc<Shard>, state: &SessionState) -> Vec<Resend> {
    let mut resend = Vec::new();
    for (&packet_id, in_flight) in &state.outbound {
        let (Held::GroupQueue(receiver, id), Phase::Sent | Phase::Storing) =
            (&in_flight.held, in_flight.phase)
        else {
            continue;
        };
        let range = ReadRange {
            after: id - 1,
            before: Some(id + 1),
            max_entries: 1,
            max_bytes: usize::MAX,
        };
        let Ok(Ok(page)) = shard.engine.read(*receiver, range).await else {
            continue;
        };
        if let Some(entry) = page.entries.into_iter().next() {
            let message = Arc::new(Message {
                traced: shard.engine.tracer.of(entry.id),
                ..Message::from_record(&entry.record, entry.expires_at)
            });
            resend.push(Resend {
                packet_id,
                delivery: drain::delivery(message, entry.id, &entry.flags),
                dup: true,
            });
        }
    }
    resend
}

impl Welcomed {
    /// The connection, with CONNACK as the first thing that it sends.
    fn connection(
        self,
        shard: &Rc<Shard>,
        transport: Transport,
        rest: BytesMut,
        permit: ConnectionPermit,
    ) -> Connection {
        let Self {
            facts,
            attached,
            resend,
            ack,
            window,
            aliases,
        } = self;
        let Attached {
            state,
            location,
            inbox,
            ..
        } = attached;
        let session = Arc::clone(&state.session);
        let drain = session
            .receiver
            .map(|receiver| Box::new(Drain::new(receiver, &state)));
        let sending = Sending::new(window, aliases, drain);
        let mut out = Outgoing::default();
        encode::connack(facts.version, &ack, out.tail());
        let groups: Vec<_> = state
            .subscriptions
            .values()
            .filter_map(|known| known.group.clone())
            .collect();
        let unacknowledged = state.inbound.len();
        let mut connection = Connection {
            shard: Rc::clone(shard),
            engine: Arc::clone(&shard.engine),
            location,
            inbox,
            transport,
            out,
            will_memory: facts.will.as_ref().map_or(0, |will| will.memory()),
            client: facts,
            session,
            state,
            receiving: Receiving::new(rest),
            sending,
            reauthentication: None,
            _permit: permit,
        };
        connection.receiving.unacknowledged = unacknowledged;
        connection.heard();
        connection.inbox.expiry.set(connection.client.principal.expiry);
        connection.resume(resend);
        for group in groups {
            connection.serve_group(&group);
        }
        connection
    }
}
