//! Enhanced authentication (MQTT 5.0 section 4.12): AUTH before CONNACK, and on a connection that lives.
//!
//! Before CONNACK a client may say nothing but AUTH and DISCONNECT ([MQTT-3.1.2-30]), and everything is over in the time
//! that CONNECT may take. Later a client may prove anew who it is whenever it likes, one proof at a time; everything else
//! goes on meanwhile, by the rights that it had. Whoever fails leaves ([MQTT-4.12.1-2]).

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::Sleep;

use super::{
    Connection,
    ending::Ending,
    handshake::{self, Refused},
    transport::Transport,
};
use crate::{
    audit::What,
    auth::{self, Exchange, Principal, Rejected, Step},
    engine::shard::Shard,
    listener::Listener,
    wire::{
        ReasonCode, Version, WireError,
        auth::{Auth, AuthReason, Authentication},
        connect::Connect,
        frame,
        packet::Packet,
    },
};

/// The longest packet while a client has not proved who it is.
const MAX_PACKET: u32 = 80 << 10;

type Steps = dyn Future<Output = Result<Step, Rejected>>;

/// A proof that is under way on a connection that lives.
pub(super) struct Reauthentication {
    turn: Turn,
    patience: Pin<Box<Sleep>>,
}

/// Whose turn it is.
enum Turn {
    /// The client's.
    Client(Exchange),
    /// Ours.
    Broker(Pin<Box<Steps>>),
}

impl std::fmt::Debug for Reauthentication {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Reauthentication")
    }
}

impl From<Rejected> for Box<Ending> {
    /// A client that fails to prove anew who it is has to leave, whatever it failed by.
    fn from(rejected: Rejected) -> Self {
        Ending::refused(ReasonCode::NotAuthorized, rejected.detail).into()
    }
}

fn too_large() -> Rejected {
    Rejected {
        reason: ReasonCode::PacketTooLarge,
        detail: "the client takes no packet as large as AUTH".into(),
    }
}

/// Writes an AUTH packet, if the client takes one as large ([MQTT-3.1.2-24]).
fn put(
    reason: AuthReason,
    method: &str,
    data: Option<Bytes>,
    max: usize,
    out: &mut BytesMut,
) -> Result<(), Rejected> {
    // [MQTT-4.12.0-5]: the method is always that of CONNECT.
    let method = method.to_owned();
    let authentication = Authentication { method, data };
    let mut packet = BytesMut::new();
    Auth {
        reason,
        authentication,
    }
    .encode(&mut packet);
    if packet.len() > max {
        return Err(too_large());
    }
    out.extend_from_slice(&packet);
    Ok(())
}

/// Lets a client prove who it is between CONNECT and CONNACK; returns what its CONNACK says of it too.
pub(super) async fn authenticate(
    shard: &Rc<Shard>,
    transport: &mut Transport,
    input: &mut BytesMut,
    connect: &Connect,
    first: &Authentication,
    listener: &Listener,
) -> Result<(Principal, Authentication), Refused> {
    let refused = |error: Rejected| Refused::new(connect.version, error.reason, error.detail);
    let max = connect.largest_packet();
    let Authentication { method, data } = first;
    let mut data = data.clone();
    let mut exchange = Exchange::begin(method, &listener.settings().authentication).map_err(refused)?;
    loop {
        match exchange.step(data, &shard.engine.checks).await.map_err(refused)? {
            Step::Continue(next, challenge) => {
                let mut out = BytesMut::new();
                put(AuthReason::Continue, method, challenge, max, &mut out).map_err(refused)?;
                handshake::send(transport, out).await?;
                data = answer(transport, input, method).await?;
                exchange = next;
            }
            Step::Done(mut principal, data) => {
                // What is there already was sent before CONNACK.
                if !input.is_empty() {
                    next_packet(transport, input).await?;
                    return Err(out_of_turn());
                }
                principal.certificate = auth::certificate_facts(transport.peer_certificates());
                let method = method.clone();
                return Ok((*principal, Authentication { method, data }));
            }
        }
    }
}

fn out_of_turn() -> Refused {
    let detail = "only AUTH and DISCONNECT may come before CONNACK, and AUTH when it is the client's turn";
    Refused::new(Version::V5, ReasonCode::ProtocolError, detail)
}

/// Reads the client's answer.
async fn answer(
    transport: &mut Transport,
    input: &mut BytesMut,
    method: &str,
) -> Result<Option<Bytes>, Refused> {
    let Auth {
        reason,
        authentication,
    } = next_packet(transport, input).await?;
    // [MQTT-4.12.0-3] and [MQTT-4.12.0-5].
    if reason != AuthReason::Continue || authentication.method != method {
        let detail = "AUTH before CONNACK has to continue with the method of CONNECT";
        return Err(Refused::new(Version::V5, ReasonCode::ProtocolError, detail));
    }
    Ok(authentication.data)
}

/// Reads a packet, which has to be AUTH.
async fn next_packet(transport: &mut Transport, input: &mut BytesMut) -> Result<Auth, Refused> {
    let refused = |error: WireError| Refused::new(Version::V5, error.reason, error.detail);
    loop {
        if let Some(frame) = frame::cut(input, MAX_PACKET).map_err(refused)? {
            let packet = Packet::decode(&frame, Version::V5).map_err(refused)?;
            let auth = match packet {
                Packet::Auth(auth) => auth,
                Packet::Disconnect(_) => return Err(Refused::silently("the client disconnected")),
                _ => return Err(out_of_turn()),
            };
            let taken = frame.packet.len();
            input.advance(taken);
            return Ok(auth);
        }
        handshake::read(transport, input).await?;
    }
}

impl Connection {
    /// AUTH on a connection that lives (section 4.12.1).
    pub(super) fn on_auth(&mut self, auth: Auth) -> Result<(), Box<Ending>> {
        let protocol_error = |detail| Ending::refused(ReasonCode::ProtocolError, detail).into();
        let Some(method) = &self.client.authentication_method else {
            // [MQTT-4.12.0-7].
            return Err(protocol_error("AUTH is sent without enhanced authentication"));
        };
        let Authentication { method: named, data } = auth.authentication;
        // [MQTT-4.12.1-1].
        if **method != *named {
            return Err(protocol_error(
                "the authentication method is another than in CONNECT",
            ));
        }
        let under_way = self.reauthentication.take().map(|boxed| *boxed);
        let (exchange, patience) = match (auth.reason, under_way) {
            (AuthReason::Reauthenticate, None) => {
                let ways = &self.client.listener.settings().authentication;
                let timeout = self.engine.limits.load().connect_timeout;
                (
                    Exchange::begin(method, ways)?,
                    Box::pin(tokio::time::sleep(timeout)),
                )
            }
            (
                AuthReason::Continue,
                Some(Reauthentication {
                    turn: Turn::Client(exchange),
                    patience,
                }),
            ) => (exchange, patience),
            _ => return Err(protocol_error("AUTH is sent out of turn")),
        };
        let engine = Arc::clone(&self.engine);
        let step = Box::pin(async move { exchange.step(data, &engine.checks).await });
        let turn = Turn::Broker(step);
        self.reauthentication = Some(Box::new(Reauthentication { turn, patience }));
        Ok(())
    }

    /// Goes on with a proof that is under way.
    pub(super) fn poll_reauthentication(&mut self, context: &mut Context<'_>) -> Result<bool, Box<Ending>> {
        let Some(under_way) = &mut self.reauthentication else {
            return Ok(false);
        };
        let Reauthentication { turn, patience } = &mut **under_way;
        if patience.as_mut().poll(context).is_ready() {
            let detail = "the client did not prove anew in time who it is";
            return Err(Ending::refused(ReasonCode::NotAuthorized, detail).into());
        }
        let Turn::Broker(step) = turn else {
            return Ok(false);
        };
        let Poll::Ready(step) = step.as_mut().poll(context) else {
            return Ok(false);
        };
        match step? {
            Step::Continue(exchange, data) => {
                *turn = Turn::Client(exchange);
                self.send_auth(AuthReason::Continue, data)?;
            }
            Step::Done(principal, data) => {
                self.reauthentication = None;
                self.reauthenticated(*principal)?;
                self.send_auth(AuthReason::Success, data)?;
            }
        }
        Ok(true)
    }

    fn send_auth(&mut self, reason: AuthReason, data: Option<Bytes>) -> Result<(), Box<Ending>> {
        let method = self.client.authentication_method.clone().unwrap_or_default();
        put(
            reason,
            &method,
            data,
            self.client.maximum_packet_size,
            self.out.tail(),
        )?;
        Ok(())
    }

    /// The client is who it was, with the rights that it has now.
    fn reauthenticated(&mut self, mut principal: Principal) -> Result<(), Box<Ending>> {
        let refused = |detail| Box::new(Ending::refused(ReasonCode::NotAuthorized, detail));
        if !principal.is_same_as(&self.client.principal) {
            return Err(refused("the client has proved to be somebody else"));
        }
        // The listener may have changed since the proof began.
        let ways = &self.client.listener.settings().authentication;
        let renewed = principal.renew(ways);
        renewed.map_err(|_| refused("the listener does not take that proof any more"))?;
        principal.certificate = std::mem::take(&mut self.client.principal.certificate);
        self.inbox.expiry.set(principal.expiry);
        self.client.principal = principal;
        tracing::debug!(client = %self.client.id, "the client has proved anew who it is");
        self.audit(What::Reauthenticated);
        self.apply_policies()
    }
}
