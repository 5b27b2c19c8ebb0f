//! From an address to a connection that the server accepted.

use std::{
    io,
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use foreshore_record::{Qos, Record};
use foreshore_tls::Refusal;
use rmqtt_codec::v5::{Codec, Connect, ConnectAck, LastWill, Packet};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::codec::{Decoder, Encoder};

use crate::{
    error::ConnectError,
    options::{Options, Security},
    packet::{qos_from_codec, qos_to_codec, to_publish},
    reason::ReasonCode,
};

/// A byte stream: TCP, or TLS over it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that the server accepted.
pub(crate) struct Established {
    pub(crate) address: String,
    pub(crate) stream: Box<dyn Stream>,
    /// What was read beyond the server's acceptance.
    pub(crate) inbound: BytesMut,
    pub(crate) codec: Codec,
    pub(crate) limits: Limits,
    pub(crate) session_present: bool,
}

/// What the server accepts (MQTT 5.0, section 3.2.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) receive_maximum: u16,
    pub(crate) max_packet_size: usize,
    pub(crate) max_qos: Qos,
    pub(crate) retain: bool,
    pub(crate) subscription_identifiers: bool,
    pub(crate) keep_alive: Duration,
}

/// Dials one address, and introduces ourselves.
pub(crate) async fn establish(address: &str, options: &Options) -> Result<Established, ConnectError> {
    let after = options.connect_timeout;
    tokio::time::timeout(after, dial(address, options))
        .await
        .unwrap_or_else(|_| {
            Err(ConnectError::Timeout {
                address: address.to_owned(),
                after,
            })
        })
}

async fn dial(address: &str, options: &Options) -> Result<Established, ConnectError> {
    let failed = |source: io::Error| failure(address, source);
    let tcp = TcpStream::connect(address).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    let stream: Box<dyn Stream> = match &options.target.security {
        Security::Plain => Box::new(tcp),
        Security::Tls { config, server_name } => {
            let connector = TlsConnector::from(std::sync::Arc::clone(config));
            Box::new(
                connector
                    .connect(server_name.clone(), tcp)
                    .await
                    .map_err(failed)?,
            )
        }
    };
    introduce(address, stream, options).await
}

fn failure(address: &str, source: io::Error) -> ConnectError {
    let address = address.to_owned();
    match Refusal::find(&source) {
        Some(refusal) => ConnectError::Tls { address, refusal },
        None => ConnectError::Unreachable { address, source },
    }
}

async fn introduce(
    address: &str,
    mut stream: Box<dyn Stream>,
    options: &Options,
) -> Result<Established, ConnectError> {
    let failed = |source: io::Error| failure(address, source);
    let broken = |message: String| ConnectError::Protocol {
        address: address.to_owned(),
        message,
    };
    let mut codec = Codec::new(options.max_packet_size, 0);
    let mut outbound = BytesMut::new();
    let connect = Packet::Connect(Box::new(connect_packet(options)));
    codec
        .encode(connect, &mut outbound)
        .map_err(|error| broken(error.to_string()))?;
    stream.write_all(&outbound).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;

    let mut inbound = BytesMut::with_capacity(16 * 1024);
    let acceptance = loop {
        match codec
            .decode(&mut inbound)
            .map_err(|error| broken(error.to_string()))?
        {
            Some((Packet::ConnectAck(acceptance), _)) => break acceptance,
            Some((packet, _)) => {
                return Err(broken(format!(
                    "answered the connection with packet type {:#04x}",
                    packet.packet_type()
                )));
            }
            None => {}
        }
        if stream.read_buf(&mut inbound).await.map_err(failed)? == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
    };
    let reason = ReasonCode(acceptance.reason_code.into());
    if reason.is_error() {
        let message = acceptance
            .reason_string
            .map(|text| text.to_string())
            .unwrap_or_default();
        return Err(ConnectError::Refused {
            address: address.to_owned(),
            reason,
            message,
        });
    }
    if acceptance.session_present && options.clean_start {
        return Err(broken("found a session although none was asked for".to_owned()));
    }
    let limits = limits_of(&acceptance, options);
    let session_present = acceptance.session_present;
    Ok(Established {
        address: address.to_owned(),
        stream,
        inbound,
        codec,
        limits,
        session_present,
    })
}

fn limits_of(acceptance: &ConnectAck, options: &Options) -> Limits {
    let keep_alive = acceptance
        .server_keepalive_sec
        .map_or(options.keep_alive, |seconds| Duration::from_secs(seconds.into()));
    Limits {
        receive_maximum: acceptance.receive_max.get(),
        max_packet_size: acceptance
            .max_packet_size
            .map_or(usize::MAX, |size| size as usize),
        max_qos: qos_from_codec(acceptance.max_qos),
        retain: acceptance.retain_available,
        subscription_identifiers: acceptance.subscription_identifiers_available,
        keep_alive,
    }
}

fn connect_packet(options: &Options) -> Connect {
    let credentials = options.credentials.as_ref();
    Connect {
        clean_start: options.clean_start,
        keep_alive: u16::try_from(options.keep_alive.as_secs()).unwrap_or(u16::MAX),
        session_expiry_interval_secs: u32::try_from(options.session_expiry.as_secs()).unwrap_or(u32::MAX),
        auth_method: None,
        auth_data: None,
        request_problem_info: true,
        request_response_info: false,
        receive_max: NonZeroU16::new(options.receive_maximum),
        topic_alias_max: 0,
        user_properties: Vec::new(),
        max_packet_size: NonZeroU32::new(options.max_packet_size),
        last_will: options.will.as_ref().map(will),
        client_id: options.client_id.as_str().into(),
        username: credentials.map(|credentials| credentials.username.as_str().into()),
        password: credentials.map(|credentials| Bytes::copy_from_slice(&credentials.password)),
        cert: None,
    }
}

fn will(record: &Record) -> LastWill {
    let publish = to_publish(record, None);
    let properties = publish.properties.unwrap_or_default();
    LastWill {
        qos: qos_to_codec(record.qos),
        retain: record.retain,
        topic: publish.topic,
        message: publish.payload,
        will_delay_interval_sec: None,
        correlation_data: properties.correlation_data,
        message_expiry_interval: properties.message_expiry_interval,
        content_type: properties.content_type,
        user_properties: properties.user_properties,
        is_utf8_payload: properties.is_utf8_payload.then_some(true),
        response_topic: properties.response_topic,
    }
}
