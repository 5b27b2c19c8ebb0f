//! From an address to a connection that the server accepted.

use std::{
    io,
    num::{NonZeroU16, NonZeroU32},
    sync::atomic::Ordering,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use foreshore_record::{Qos, Record};
use foreshore_tls::Refusal;
use rmqtt_codec::v5::{Connect, ConnectAck, LastWill, Packet};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tracing::info;

use crate::{
    error::ConnectError,
    options::{Options, Security, Versions},
    packet::{qos_from_codec, qos_to_codec, to_publish},
    reason::ReasonCode,
    version::{Codec, Version},
};

/// A byte stream: TCP, or TLS over it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What a server that knows only MQTT 3.1.1 answers to another version (its section 3.2): a CONNACK without properties.
const REFUSED_BY_V311: [u8; 4] = [0x20, 0x02, 0x00, 0x01];

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

/// What the server accepts (MQTT 5.0, section 3.2.2.3); with 3.1.1, which has no words for it, everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) version: Version,
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
    tokio::time::timeout(after, negotiate(address, options))
        .await
        .unwrap_or_else(|_| {
            Err(ConnectError::Timeout {
                address: address.to_owned(),
                after,
            })
        })
}

async fn negotiate(address: &str, options: &Options) -> Result<Established, ConnectError> {
    match options.versions {
        Versions::V5 => dial(address, options, Version::V5).await,
        Versions::V311 => dial(address, options, Version::V311).await,
        Versions::V5OrV311 => {
            let spoken = &options.v5_was_spoken;
            let result = dial(address, options, Version::V5).await;
            match &result {
                // A proxy hangs up too while the server behind it is away: that makes it no older.
                Err(error)
                    if error.is_of_the_version()
                        || error.is_hanging_up() && !spoken.load(Ordering::Relaxed) =>
                {
                    info!(address, %error, "mqtt 5.0 is refused, 3.1.1 is tried");
                    return dial(address, options, Version::V311).await;
                }
                Err(_) => {}
                Ok(_) => spoken.store(true, Ordering::Relaxed),
            }
            result
        }
    }
}

async fn dial(address: &str, options: &Options, version: Version) -> Result<Established, ConnectError> {
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
    introduce(address, stream, options, version).await
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
    version: Version,
) -> Result<Established, ConnectError> {
    let failed = |source: io::Error| failure(address, source);
    let broken = |message: String| ConnectError::Protocol {
        address: address.to_owned(),
        message,
    };
    let mut codec = Codec::new(version, options.max_packet_size);
    let mut outbound = BytesMut::new();
    let connect = Packet::Connect(Box::new(connect_packet(options)));
    codec
        .encode(connect, &mut outbound)
        .map_err(|error| broken(error.to_string()))?;
    stream.write_all(&outbound).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;

    let mut inbound = BytesMut::with_capacity(16 * 1024);
    let acceptance = loop {
        if version == Version::V5 && inbound.starts_with(&REFUSED_BY_V311) {
            return Err(ConnectError::Refused {
                address: address.to_owned(),
                reason: ReasonCode::UNSUPPORTED_PROTOCOL_VERSION,
                message: String::new(),
            });
        }
        match codec
            .decode(&mut inbound)
            .map_err(|error| broken(error.to_string()))?
        {
            Some(Packet::ConnectAck(acceptance)) => break acceptance,
            Some(packet) => {
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
    let limits = limits_of(&acceptance, options, version);
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

fn limits_of(acceptance: &ConnectAck, options: &Options, version: Version) -> Limits {
    let keep_alive = acceptance
        .server_keepalive_sec
        .map_or(options.keep_alive, |seconds| Duration::from_secs(seconds.into()));
    Limits {
        version,
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
