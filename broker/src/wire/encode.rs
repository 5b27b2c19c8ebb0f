//! Packets that the broker sends, all but PUBLISH.
//!
//! Reason strings go into CONNACK and DISCONNECT, where a client can't forbid them (Request Problem Information, MQTT 5.0
//! section 3.1.2.11.7), and into acknowledgements to our own roles, which never forbid them. Where a reason sends the
//! client to another server, the detail is the reference of that server (section 4.11).

use bytes::{BufMut, BytesMut};
use rmqtt_codec::v5;
use tokio_util::codec::Encoder;

use super::{ReasonCode, Version, auth::Authentication, packet::AckKind};

/// Longest reason string, in bytes: it must never be what makes a packet too large.
const MAX_REASON_STRING: usize = 200;

/// Identifier of the property Reason String (MQTT 5.0 section 2.2.2.2).
const REASON_STRING: u8 = 0x1f;

/// What the server says of itself in CONNACK (MQTT 5.0 section 3.2.2.3).
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnAck {
    /// Whether an earlier session goes on.
    pub(crate) session_present: bool,
    /// Seconds that the session outlives the connection, if not what the client asked for.
    pub(crate) session_expiry: Option<u32>,
    /// Name that the server gave.
    pub(crate) assigned_client_id: Option<String>,
    /// Keep alive, if not what the client asked for.
    pub(crate) server_keep_alive: Option<u16>,
    /// Most messages in flight from the client, not 0.
    pub(crate) receive_maximum: u16,
    /// Largest packet that the server takes.
    pub(crate) maximum_packet_size: u32,
    /// Highest topic alias that the server takes.
    pub(crate) topic_alias_maximum: u16,
    /// How the client proved who it is, by enhanced authentication, with the last word of the method.
    pub(crate) authentication: Option<Authentication>,
}

/// Writes a CONNACK that accepts.
pub(crate) fn connack(version: Version, ack: &ConnAck, out: &mut BytesMut) {
    if !version.is_v5() {
        // Version 3.1 has no Session Present.
        let flags = u8::from(ack.session_present && version == Version::V311);
        out.put_slice(&[0x20, 2, flags, 0]);
        return;
    }
    let authentication = ack.authentication.as_ref();
    let packet = v5::ConnectAck {
        session_present: ack.session_present,
        session_expiry_interval_secs: ack.session_expiry,
        receive_max: std::num::NonZeroU16::new(ack.receive_maximum).unwrap_or(std::num::NonZeroU16::MAX),
        max_packet_size: Some(ack.maximum_packet_size),
        assigned_client_id: ack.assigned_client_id.as_deref().map(Into::into),
        topic_alias_max: ack.topic_alias_maximum,
        server_keepalive_sec: ack.server_keep_alive,
        auth_method: authentication.map(|known| known.method.as_str().into()),
        auth_data: authentication.and_then(|known| known.data.clone()),
        ..v5::ConnectAck::default()
    };
    put(v5::Packet::ConnectAck(Box::new(packet)), out);
}

/// Whether a CONNACK that accepts is not too large for the client.
pub(crate) fn connack_fits(version: Version, ack: &ConnAck, max_size: usize) -> bool {
    let mut out = BytesMut::new();
    connack(version, ack, &mut out);
    out.len() <= max_size
}

/// Writes a CONNACK that refuses, as far as the client takes it.
pub(crate) fn connack_refused(
    version: Version,
    reason: ReasonCode,
    detail: &str,
    max_size: usize,
    out: &mut BytesMut,
) {
    if !version.is_v5() {
        out.put_slice(&[0x20, 2, 0, reason.to_v3_connect()]);
        return;
    }
    let packet = |told: Told<'_>| {
        v5::Packet::ConnectAck(Box::new(v5::ConnectAck {
            reason_code: reason
                .code()
                .try_into()
                .unwrap_or(v5::ConnectAckReason::UnspecifiedError),
            reason_string: told.reason_string.map(Into::into),
            server_reference: told.server_reference.map(Into::into),
            ..v5::ConnectAck::default()
        }))
    };
    put_fitting(packet, Told::new(reason, detail), max_size, out);
}

/// Writes an acknowledgement with a reason string, in version 5.
pub(crate) fn ack_with(kind: AckKind, packet_id: u16, reason: ReasonCode, detail: &str, out: &mut BytesMut) {
    let Some(detail) = reason_string(detail) else {
        return ack(Version::V5, kind, packet_id, reason, out);
    };
    let properties = 3 + detail.len();
    let body = 3 + super::frame::variable_length_size(properties) + properties;
    out.put_u8(kind as u8);
    super::frame::put_variable_length(body, out);
    out.put_u16(packet_id);
    out.put_u8(reason.code());
    super::frame::put_variable_length(properties, out);
    out.put_u8(REASON_STRING);
    out.put_u16(detail.len() as u16);
    out.put_slice(detail.as_bytes());
}

/// Writes one of the four acknowledgements; below version 5 the reason is left out.
pub(crate) fn ack(version: Version, kind: AckKind, packet_id: u16, reason: ReasonCode, out: &mut BytesMut) {
    let [high, low] = packet_id.to_be_bytes();
    if version.is_v5() && reason != ReasonCode::Success {
        out.put_slice(&[kind as u8, 3, high, low, reason.code()]);
    } else {
        out.put_slice(&[kind as u8, 2, high, low]);
    }
}

/// Writes a SUBACK.
pub(crate) fn suback(version: Version, packet_id: u16, reasons: &[ReasonCode], out: &mut BytesMut) {
    let code = |reason: &ReasonCode| match version {
        Version::V5 => reason.code(),
        _ if reason.is_error() => 0x80,
        _ => reason.code(),
    };
    filters_ack(0x90, version, packet_id, reasons.iter().map(code), out);
}

/// Writes an UNSUBACK.
pub(crate) fn unsuback(version: Version, packet_id: u16, reasons: &[ReasonCode], out: &mut BytesMut) {
    let reasons = if version.is_v5() { reasons } else { &[] };
    filters_ack(
        0xb0,
        version,
        packet_id,
        reasons.iter().map(|reason| reason.code()),
        out,
    );
}

fn filters_ack(
    first: u8,
    version: Version,
    packet_id: u16,
    codes: impl ExactSizeIterator<Item = u8>,
    out: &mut BytesMut,
) {
    out.put_u8(first);
    super::frame::put_variable_length(2 + usize::from(version.is_v5()) + codes.len(), out);
    out.put_u16(packet_id);
    if version.is_v5() {
        // No properties.
        out.put_u8(0);
    }
    out.extend(codes);
}

/// Writes a PINGRESP.
pub(crate) fn pingresp(out: &mut BytesMut) {
    out.put_slice(&[0xd0, 0]);
}

/// Writes a DISCONNECT, which only version 5 knows from a server, as far as the client takes it.
pub(crate) fn disconnect(
    version: Version,
    reason: ReasonCode,
    detail: &str,
    max_size: usize,
    out: &mut BytesMut,
) {
    if !version.is_v5() {
        return;
    }
    let packet = |told: Told<'_>| {
        let code = reason.code().try_into();
        v5::Packet::Disconnect(v5::Disconnect {
            reason_string: told.reason_string.map(Into::into),
            server_reference: told.server_reference.map(Into::into),
            ..v5::Disconnect::new(code.unwrap_or(v5::DisconnectReasonCode::UnspecifiedError))
        })
    };
    put_fitting(packet, Told::new(reason, detail), max_size, out);
}

/// What is told beside a reason code.
#[derive(Clone, Copy, Default)]
struct Told<'a> {
    reason_string: Option<&'a str>,
    server_reference: Option<&'a str>,
}

impl<'a> Told<'a> {
    fn new(reason: ReasonCode, detail: &'a str) -> Self {
        if reason.is_redirect() {
            Self {
                server_reference: Some(detail),
                ..Self::default()
            }
        } else {
            Self {
                reason_string: reason_string(detail),
                ..Self::default()
            }
        }
    }
}

/// Writes a packet with what is told beside its code, or without that, or not at all, so that it is not larger than the client
/// takes ([MQTT-3.1.2-24], [MQTT-3.2.2-19], [MQTT-3.14.2-3]).
fn put_fitting(packet: impl Fn(Told<'_>) -> v5::Packet, told: Told<'_>, max_size: usize, out: &mut BytesMut) {
    let start = out.len();
    for told in [told, Told::default()] {
        put(packet(told), out);
        if out.len() - start <= max_size {
            return;
        }
        out.truncate(start);
    }
}

fn reason_string(detail: &str) -> Option<&str> {
    let end = detail.floor_char_boundary(MAX_REASON_STRING);
    detail.get(..end).filter(|text| !text.is_empty())
}

pub(super) fn put(packet: v5::Packet, out: &mut BytesMut) {
    if let Err(error) = v5::Codec::new(0, 0).encode(packet, out) {
        // All lengths are bounded by us, so that this is a fault of ours; the client sees a closed connection.
        tracing::error!(%error, "packet can't be encoded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
        let mut out = BytesMut::new();
        write(&mut out);
        out.to_vec()
    }

    #[test]
    fn each_version_gets_its_own_form() {
        let ack = |version, reason| written(|out| super::ack(version, AckKind::PubAck, 7, reason, out));
        assert_eq!(ack(Version::V5, ReasonCode::Success), b"\x40\x02\x00\x07");
        assert_eq!(
            ack(Version::V5, ReasonCode::QuotaExceeded),
            b"\x40\x03\x00\x07\x97"
        );
        assert_eq!(ack(Version::V311, ReasonCode::QuotaExceeded), b"\x40\x02\x00\x07");

        let told = |detail| {
            written(|out| super::ack_with(AckKind::PubAck, 7, ReasonCode::NotAuthorized, detail, out))
        };
        assert_eq!(told("no"), b"\x40\x09\x00\x07\x87\x05\x1f\x00\x02no");
        assert_eq!(told(""), b"\x40\x03\x00\x07\x87");
        assert_eq!(
            told(&"n".repeat(1000)).len(),
            2 + 1 + 3 + 2 + 3 + MAX_REASON_STRING
        );

        let reasons = [ReasonCode::GrantedQos1, ReasonCode::NotAuthorized];
        let suback = |version| written(|out| super::suback(version, 7, &reasons, out));
        assert_eq!(suback(Version::V5), b"\x90\x05\x00\x07\x00\x01\x87");
        assert_eq!(suback(Version::V311), b"\x90\x04\x00\x07\x01\x80");
        let unsuback = |version| written(|out| super::unsuback(version, 7, &[ReasonCode::Success], out));
        assert_eq!(unsuback(Version::V5), b"\xb0\x04\x00\x07\x00\x00");
        assert_eq!(unsuback(Version::V311), b"\xb0\x02\x00\x07");

        let refused = |version| {
            written(|out| {
                super::connack_refused(version, ReasonCode::BadUserNameOrPassword, "no", usize::MAX, out);
            })
        };
        assert_eq!(refused(Version::V5), b"\x20\x08\x00\x86\x05\x1f\x00\x02no");
        assert_eq!(refused(Version::V311), b"\x20\x02\x00\x04");
        let elsewhere = ReasonCode::UseAnotherServer;
        let sent_on = written(|out| super::connack_refused(Version::V5, elsewhere, "b", usize::MAX, out));
        assert_eq!(sent_on, b"\x20\x07\x00\x9c\x04\x1c\x00\x01b");
        let sent_away = written(|out| super::disconnect(Version::V5, elsewhere, "b", usize::MAX, out));
        assert_eq!(sent_away, b"\xe0\x06\x9c\x04\x1c\x00\x01b");
        let bye = |version| {
            written(|out| super::disconnect(version, ReasonCode::SessionTakenOver, "", usize::MAX, out))
        };
        assert_eq!(bye(Version::V5), b"\xe0\x02\x8e\x00");
        assert_eq!(bye(Version::V311), b"");
    }

    #[test]
    fn a_reason_string_is_never_what_makes_a_packet_too_large() {
        let bye = |max| written(|out| disconnect(Version::V5, ReasonCode::ProtocolError, "no", max, out));
        assert_eq!(bye(9), b"\xe0\x07\x82\x05\x1f\x00\x02no");
        assert_eq!(bye(8), b"\xe0\x02\x82\x00");
        assert_eq!(bye(3), b"");
        let refused =
            |max| written(|out| connack_refused(Version::V5, ReasonCode::NotAuthorized, "no", max, out));
        assert_eq!(refused(9), b"\x20\x03\x00\x87\x00");
        assert_eq!(refused(4), b"");
        assert!(connack_fits(Version::V5, &ConnAck::default(), 100));
        assert!(!connack_fits(Version::V5, &ConnAck::default(), 4));
        // What enhanced authentication ends with counts: two identifiers, two lengths, "M" and "d".
        let plain = written(|out| connack(Version::V5, &ConnAck::default(), out)).len();
        let proved = ConnAck {
            authentication: Some(Authentication {
                method: "M".to_owned(),
                data: Some(bytes::Bytes::from_static(b"d")),
            }),
            ..ConnAck::default()
        };
        assert!(connack_fits(Version::V5, &proved, plain + 8));
        assert!(!connack_fits(Version::V5, &proved, plain + 7));
    }

    #[test]
    fn connack_tells_what_the_server_takes() {
        let ack = ConnAck {
            session_present: true,
            receive_maximum: 64,
            maximum_packet_size: 1 << 20,
            topic_alias_maximum: 32,
            assigned_client_id: Some("x".into()),
            ..ConnAck::default()
        };
        let packet = written(|out| connack(Version::V5, &ack, out));
        assert_eq!(
            packet,
            b"\x20\x12\x01\x00\x0f\x21\x00\x40\x27\x00\x10\x00\x00\x12\x00\x01x\x22\x00\x20"
        );
        assert_eq!(
            written(|out| connack(Version::V31, &ack, out)),
            b"\x20\x02\x00\x00"
        );
    }
}
