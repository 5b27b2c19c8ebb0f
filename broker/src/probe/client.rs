//! One connection of the probe: as little of a client as shows that a listener works.

use std::{
    io::{Cursor, Error, ErrorKind},
    net::SocketAddr,
    num::NonZeroU16,
    sync::Arc,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rmqtt_codec::{
    types::{Publish, QoS},
    v5::{
        Codec, Connect, ConnectAckReason, Disconnect, Packet, PublishAck, PublishAckReason, Subscribe,
        SubscriptionOptions,
    },
};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::codec::{Decoder, Encoder};
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Data, OpCode},
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ticket::{Ticket, USERNAME};
use crate::options::Protocol;

/// Most bytes that a listener may answer with before the probe loses patience: an answer of it has some hundred.
const MAX_ANSWER: usize = 64 << 10;

/// How far the probe came with a listener that asks for a certificate of somebody else's authority.
const CERTIFICATE_WANTED: &str = "looked at as far as the certificate that it asks every client for";

/// A byte stream: TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Connects, subscribes, publishes, and waits for the message. Tells how far it came, if not to the end for a good reason.
///
/// # Errors
/// What went wrong, for people.
pub(super) async fn round_trip(
    address: SocketAddr,
    protocol: &Protocol,
    ticket: &Ticket,
    topic: &str,
) -> Result<Option<&'static str>, String> {
    match look(address, protocol, ticket, topic).await {
        Ok(()) => Ok(None),
        Err(Failed::CertificateWanted) => Ok(Some(CERTIFICATE_WANTED)),
        Err(Failed::Because(cause)) => Err(cause),
    }
}

/// Why a look did not come to its end.
enum Failed {
    /// The listener asks for a certificate that the probe does not have.
    CertificateWanted,
    Because(String),
}

impl Failed {
    fn at(step: &str) -> impl Fn(Error) -> Self {
        move |error| {
            let alert = error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match alert {
                Some(rustls::Error::AlertReceived(
                    rustls::AlertDescription::CertificateRequired
                    | rustls::AlertDescription::HandshakeFailure,
                )) => Self::CertificateWanted,
                _ => Self::Because(format!("{step}: {error}")),
            }
        }
    }
}

async fn look(address: SocketAddr, protocol: &Protocol, ticket: &Ticket, topic: &str) -> Result<(), Failed> {
    let tcp = TcpStream::connect(address).await.map_err(Failed::at("connect"))?;
    tcp.set_nodelay(true).map_err(Failed::at("connect"))?;
    let stream: Box<dyn Stream> = if protocol.tls().is_some() {
        let connector = TlsConnector::from(Arc::new(tls_config().map_err(Failed::Because)?));
        let name = ServerName::IpAddress(address.ip().into());
        Box::new(connector.connect(name, tcp).await.map_err(Failed::at("TLS"))?)
    } else {
        Box::new(tcp)
    };
    let mut wire = Wire {
        stream,
        framed: false,
        raw: BytesMut::new(),
        input: BytesMut::new(),
        codec: Codec::new(0, 0),
    };
    if let Some(path) = protocol.path() {
        wire.upgrade(address, path).await?;
    }
    wire.exchange(ticket, topic).await
}

/// A connection as the probe needs it.
struct Wire {
    stream: Box<dyn Stream>,
    /// Whether MQTT is in frames of a WebSocket.
    framed: bool,
    /// What was read from the network, where that is frames.
    raw: BytesMut,
    /// What was read of MQTT.
    input: BytesMut,
    codec: Codec,
}

impl Wire {
    /// Makes it a WebSocket (RFC 6455 section 4.1).
    async fn upgrade(&mut self, address: SocketAddr, path: &str) -> Result<(), Failed> {
        let failed = Failed::at("upgrade to WebSocket");
        // Section 4.1 wants a new key each time, for caches; there is none between us and our own listener.
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: mqtt\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes()).await.map_err(&failed)?;
        self.stream.flush().await.map_err(&failed)?;
        let end = loop {
            if let Some(end) = self.raw.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end;
            }
            self.read_raw("upgrade to WebSocket").await?;
        };
        let head = self.raw.split_to(end + 4);
        if !head.starts_with(b"HTTP/1.1 101 ") {
            let line = head[..].split(|byte| *byte == b'\r').next().unwrap_or_default();
            let line = String::from_utf8_lossy(line);
            return Err(Failed::Because(format!(
                "upgrade to WebSocket: answered with {line:?}"
            )));
        }
        self.framed = true;
        Ok(())
    }

    /// Speaks MQTT.
    async fn exchange(&mut self, ticket: &Ticket, topic: &str) -> Result<(), Failed> {
        let because = |cause: String| Err(Failed::Because(cause));
        let connect = Connect {
            client_id: ticket.client_id.as_str().into(),
            clean_start: true,
            keep_alive: 60,
            username: Some(USERNAME.into()),
            password: Some(Bytes::copy_from_slice(ticket.password())),
            ..Connect::default()
        };
        self.send("CONNECT", Packet::Connect(Box::new(connect))).await?;
        match self.receive("CONNECT").await? {
            Packet::ConnectAck(ack) if ack.reason_code == ConnectAckReason::Success => {}
            Packet::ConnectAck(ack) => {
                let told = ack.reason_string.as_deref().unwrap_or_default();
                return because(format!("CONNECT: refused with {:?}: {told}", ack.reason_code));
            }
            other => return because(format!("CONNECT: answered with {other:?}")),
        }
        let options = SubscriptionOptions {
            qos: QoS::AtLeastOnce,
            ..SubscriptionOptions::default()
        };
        let subscribe = Subscribe {
            packet_id: NonZeroU16::MIN,
            id: None,
            user_properties: Vec::new(),
            topic_filters: vec![(topic.into(), options)],
        };
        self.send("SUBSCRIBE", Packet::Subscribe(subscribe)).await?;
        match self.receive("SUBSCRIBE").await? {
            Packet::SubscribeAck(ack) if ack.status.iter().all(|status| u8::from(*status) < 0x80) => {}
            other => return because(format!("SUBSCRIBE: answered with {other:?}")),
        }
        let payload = Bytes::copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        let publish = Publish {
            dup: false,
            retain: false,
            qos: QoS::AtLeastOnce,
            topic: topic.into(),
            packet_id: Some(NonZeroU16::MIN),
            payload: payload.clone(),
            properties: None,
        };
        self.send("PUBLISH", Packet::Publish(Box::new(publish))).await?;
        let (mut acknowledged, mut returned) = (false, false);
        while !(acknowledged && returned) {
            match self.receive("PUBLISH").await? {
                Packet::PublishAck(ack) if ack.reason_code == PublishAckReason::Success => {
                    acknowledged = true
                }
                Packet::Publish(publish) if publish.payload == payload => {
                    returned = true;
                    let ack = PublishAck {
                        packet_id: publish.packet_id.unwrap_or(NonZeroU16::MIN),
                        ..PublishAck::default()
                    };
                    self.send("PUBACK", Packet::PublishAck(ack)).await?;
                }
                other => return because(format!("PUBLISH: answered with {other:?}")),
            }
        }
        self.send("DISCONNECT", Packet::Disconnect(Disconnect::default()))
            .await
    }

    async fn send(&mut self, step: &str, packet: Packet) -> Result<(), Failed> {
        let mut bytes = BytesMut::new();
        self.codec
            .encode(packet, &mut bytes)
            .map_err(|error| Failed::Because(format!("{step}: {error:?}")))?;
        if self.framed {
            let mask: [u8; 4] = rand::random();
            let header = FrameHeader {
                opcode: OpCode::Data(Data::Binary),
                mask: Some(mask),
                ..FrameHeader::default()
            };
            let mut frame = BytesMut::new().writer();
            // Memory takes whatever is written to it.
            drop(header.format(bytes.len() as u64, &mut frame));
            let mut frame = frame.into_inner();
            frame.extend(
                bytes
                    .iter()
                    .zip(mask.iter().cycle())
                    .map(|(byte, mask)| byte ^ mask),
            );
            bytes = frame;
        }
        let failed = Failed::at(step);
        self.stream.write_all(&bytes).await.map_err(&failed)?;
        self.stream.flush().await.map_err(&failed)
    }

    async fn receive(&mut self, step: &str) -> Result<Packet, Failed> {
        loop {
            let decoded = self.codec.decode(&mut self.input);
            match decoded.map_err(|error| Failed::Because(format!("{step}: {error:?}")))? {
                Some((packet, _)) => return Ok(packet),
                None if self.framed => {
                    while !self.take_frame(step)? {
                        self.read_raw(step).await?;
                    }
                }
                None => {
                    self.read_raw(step).await?;
                    self.input.unsplit(self.raw.split());
                }
            }
        }
    }

    /// Takes the payload of a frame, if a whole one is there.
    fn take_frame(&mut self, step: &str) -> Result<bool, Failed> {
        let mut cursor = Cursor::new(&self.raw[..]);
        let parsed = FrameHeader::parse(&mut cursor);
        let Some((header, length)) = parsed.map_err(|error| Failed::Because(format!("{step}: {error}")))?
        else {
            return Ok(false);
        };
        let begin = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if self.raw.len().saturating_sub(begin) < length {
            return Ok(false);
        }
        self.raw.advance(begin);
        let payload = self.raw.split_to(length);
        match header.opcode {
            OpCode::Data(Data::Binary | Data::Continue) => self.input.extend_from_slice(&payload),
            other => return Err(Failed::Because(format!("{step}: a frame {other:?} came"))),
        }
        Ok(true)
    }

    async fn read_raw(&mut self, step: &str) -> Result<(), Failed> {
        if self.raw.len() + self.input.len() > MAX_ANSWER {
            return Err(Failed::Because(format!(
                "{step}: answered with more than {MAX_ANSWER} bytes"
            )));
        }
        match self.stream.read_buf(&mut self.raw).await {
            Ok(1..) => Ok(()),
            Ok(0) => Err(Failed::at(step)(ErrorKind::UnexpectedEof.into())),
            Err(error) => Err(Failed::at(step)(error)),
        }
    }
}

/// TLS that wants a certificate of the listener that is valid today, and the key to it. Who issued it, only those know who
/// are to trust it.
fn tls_config() -> Result<ClientConfig, String> {
    let provider = CryptoProvider::get_default().ok_or("TLS: no cryptography is installed")?;
    let verifier = ValidToday(Arc::clone(provider));
    Ok(ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

#[derive(Debug)]
struct ValidToday(Arc<CryptoProvider>);

impl ServerCertVerifier for ValidToday {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        for certificate in [end_entity].into_iter().chain(intermediates) {
            let (_, parsed) = X509Certificate::from_der(certificate)
                .map_err(|_| rustls::Error::from(CertificateError::BadEncoding))?;
            let validity = parsed.validity();
            if now < validity.not_before.timestamp() {
                return Err(CertificateError::NotValidYet.into());
            }
            if now > validity.not_after.timestamp() {
                return Err(CertificateError::Expired.into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
