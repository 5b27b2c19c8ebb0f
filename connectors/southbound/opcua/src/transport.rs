//! The library's TCP transport, with what it gets wrong put right, and a way to cut it.
//!
//! - When a channel opens, the library keeps the channel's nonce in the place of the session's, and signs with it when
//!   it takes the session up again; every server then refuses the signature, the session is lost and with it, on
//!   servers that transfer no subscriptions, the data of the outage (OPC 10000-4, 5.7.3.2: the signature covers the
//!   last nonce that the server gave in CreateSession or ActivateSession).
//! - It counts the lifetime of a channel's token by the server's clock. Its own mend for clocks that differ shifts
//!   values that are times, and the times of events. Counted by our clock nothing need be shifted.
//! - It waits for ever for a server that takes a connection and does not greet.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use opcua::{
    client::{
        ConnectionSource,
        transport::{
            Connector, RequestRecv, SecureChannelState, TcpConnector, TcpTransport, Transport,
            TransportConfiguration, TransportPollResult,
        },
    },
    crypto::SecurityPolicy,
    types::{ChannelSecurityToken, DateTime, EndpointDescription, Error, StatusCode},
};
use tokio::sync::watch;

/// Cuts connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Cutter {
    cuts: Arc<watch::Sender<u64>>,
    connect_timeout: Duration,
}

/// Makes connections that a [`Cutter`] cuts.
pub(crate) struct Dialler {
    tcp: TcpConnector,
    cutter: Cutter,
}

/// A connection.
pub(crate) struct Connection {
    tcp: TcpTransport,
    channel: Arc<SecureChannelState>,
    cut: watch::Receiver<u64>,
}

/// What tells one token of a channel from another.
type TokenName = (u32, u32);

impl Cutter {
    /// For connections that are made within so long.
    pub(crate) fn new(connect_timeout: Duration) -> Self {
        Self {
            cuts: Arc::new(watch::Sender::new(0)),
            connect_timeout,
        }
    }

    /// Cuts the connection without a word to the server, which keeps session and subscriptions; the library connects
    /// again by itself. Does nothing while there is no connection.
    pub(crate) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl ConnectionSource for Cutter {
    type Builder = Dialler;

    fn get_connector(&self, endpoint: &EndpointDescription) -> Result<Dialler, Error> {
        Ok(Dialler {
            tcp: TcpConnector::new(endpoint.endpoint_url.as_ref())?,
            cutter: self.clone(),
        })
    }
}

impl Connector for Dialler {
    type Transport = Connection;

    async fn connect(
        &self,
        channel: Arc<SecureChannelState>,
        requests: RequestRecv,
        config: TransportConfiguration,
    ) -> Result<Connection, Error> {
        let cut = self.cutter.cuts.subscribe();
        let connecting = self.tcp.connect(Arc::clone(&channel), requests, config);
        let tcp = tokio::time::timeout(self.cutter.connect_timeout, connecting)
            .await
            .map_err(|_| Error::new(StatusCode::BadTimeout, "the server does not greet"))??;
        Ok(Connection { tcp, channel, cut })
    }

    fn default_endpoint(&self) -> EndpointDescription {
        self.tcp.default_endpoint()
    }
}

impl Transport for Connection {
    async fn poll(&mut self) -> TransportPollResult {
        let Self { tcp, channel, cut } = self;
        let mut polling = pin!(tcp.poll());
        // Where the answer that opens or renews a channel is taken in; sessions answer elsewhere.
        let polled = poll_fn(|context| {
            let (token, nonce) = before(channel);
            let polled = polling.as_mut().poll(context);
            after(channel, token, &nonce);
            polled
        });
        tokio::select! {
            result = polled => result,
            _ = cut.changed() => TransportPollResult::Closed(StatusCode::BadConnectionClosed),
        }
    }

    fn connected_url(&self) -> &str {
        self.tcp.connected_url()
    }
}

/// The present token, and the nonce that a session would be signed with.
fn before(channel: &SecureChannelState) -> (TokenName, Vec<u8>) {
    let channel = channel.secure_channel().read();
    let nonce = match channel.security_policy() {
        SecurityPolicy::None => Vec::new(),
        _ => channel.remote_nonce().to_vec(),
    };
    ((channel.secure_channel_id(), channel.token_id()), nonce)
}

/// Puts right what the answer left that opened or renewed a channel.
fn after(channel: &SecureChannelState, token: TokenName, nonce: &[u8]) {
    let unchanged = {
        let channel = channel.secure_channel().read();
        (channel.secure_channel_id(), channel.token_id()) == token
    };
    if unchanged {
        return;
    }
    let mut channel = channel.secure_channel().write();
    let token = ChannelSecurityToken {
        channel_id: channel.secure_channel_id(),
        token_id: channel.token_id(),
        created_at: DateTime::now(),
        revised_lifetime: channel.token_lifetime(),
    };
    channel.set_security_token(token);
    if channel.security_policy() != SecurityPolicy::None {
        // Keys take their lifetime from the token.
        channel.derive_keys();
        if !nonce.is_empty() {
            channel.set_remote_nonce(nonce);
        }
    }
}
