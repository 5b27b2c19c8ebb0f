//! CONNECT in one form for all versions (MQTT 5.0 section 3.1).

use bytes::{Bytes, BytesMut};
use foreshore_record::{Qos, record::Properties};
use rmqtt_codec::{v3, v5};
use tokio_util::codec::Decoder;

use super::{ReasonCode, Version, WireError, auth::Authentication, check, frame::Frame, packet::qos_from};

/// What a client says first.
#[derive(Clone, Debug)]
pub(crate) struct Connect {
    /// Version that it speaks.
    pub(crate) version: Version,
    /// Whether an earlier session is discarded.
    pub(crate) clean_start: bool,
    /// Seconds after which silence means that it is gone; 0 for never.
    pub(crate) keep_alive: u16,
    /// Its name; empty when it wants one assigned.
    pub(crate) client_id: String,
    /// User name.
    pub(crate) username: Option<String>,
    /// Password.
    pub(crate) password: Option<Bytes>,
    /// What is published when it goes without a good-bye.
    pub(crate) will: Option<Will>,
    /// Seconds that the session outlives the connection; `u32::MAX` for ever.
    pub(crate) session_expiry: u32,
    /// Most messages in flight to it, not 0.
    pub(crate) receive_maximum: u16,
    /// Largest packet that it takes.
    pub(crate) maximum_packet_size: Option<u32>,
    /// Highest topic alias that it takes.
    pub(crate) topic_alias_maximum: u16,
    /// Enhanced authentication, with the first word of the method.
    pub(crate) authentication: Option<Authentication>,
}

/// A will (section 3.1.3.2).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Will {
    /// Where it is published; not checked yet.
    pub(crate) topic: String,
    /// What is published.
    pub(crate) payload: Bytes,
    /// Quality of service.
    pub(crate) qos: Qos,
    /// Whether it is retained.
    pub(crate) retain: bool,
    /// Seconds that it waits for the client to return.
    pub(crate) delay: u32,
    /// What travels with it.
    pub(crate) properties: Properties,
}

const CONNECT: u8 = 0x10;
const CLEAN_START: u8 = 0x02;
pub(super) const WILL: u8 = 0x04;
const WILL_DETAILS: u8 = 0x38;
pub(super) const PASSWORD: u8 = 0x40;
pub(super) const USERNAME: u8 = 0x80;

impl Connect {
    /// Reads the first packet of a connection.
    ///
    /// # Errors
    /// With [`ReasonCode::UnsupportedProtocolVersion`] when it is a CONNECT of another version; otherwise as the packet
    /// is malformed.
    pub(crate) fn decode(frame: &Frame<'_>) -> Result<Self, WireError> {
        if frame.first != CONNECT {
            return Err(WireError::new(
                ReasonCode::ProtocolError,
                "first packet is not CONNECT",
            ));
        }
        let head = Head::read(frame.body)?;
        head.check()?;
        let expiry_at = check::connect(frame.body, head.version, head.flags, head.flags_at)?;
        if head.version.is_v5() {
            decode_v5(frame, &head, expiry_at)
        } else {
            decode_v3(frame, &head)
        }
    }

    /// Largest packet that the client takes, in bytes.
    pub(crate) fn largest_packet(&self) -> usize {
        self.maximum_packet_size.map_or(usize::MAX, |size| size as usize)
    }

    /// The version that a first packet asks for, if it is a CONNECT of one that we know: what tells how to refuse it.
    pub(crate) fn version_of(frame: &Frame<'_>) -> Option<Version> {
        Head::read(frame.body)
            .ok()
            .filter(|_| frame.first == CONNECT)
            .map(|head| head.version)
    }
}

/// The part of the variable header that the codec does not check enough.
struct Head {
    version: Version,
    flags: u8,
    /// Where the flags stand in the body.
    flags_at: usize,
}

impl Head {
    fn read(body: &[u8]) -> Result<Self, WireError> {
        let (version, flags_at) = match body {
            [0, 4, b'M', b'Q', b'T', b'T', 5, ..] => (Version::V5, 7),
            [0, 4, b'M', b'Q', b'T', b'T', 4, ..] => (Version::V311, 7),
            [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', 3, ..] => (Version::V31, 9),
            [0, 4, b'M', b'Q', b'T', b'T', _, ..] | [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', _, ..] => {
                let detail = "protocol version is none of 3.1, 3.1.1 and 5.0";
                return Err(WireError::new(ReasonCode::UnsupportedProtocolVersion, detail));
            }
            _ => {
                return Err(WireError::new(
                    ReasonCode::MalformedPacket,
                    "protocol name is not MQTT",
                ));
            }
        };
        let flags = *body
            .get(flags_at)
            .ok_or_else(|| WireError::new(ReasonCode::MalformedPacket, "CONNECT ends before its flags"))?;
        Ok(Self {
            version,
            flags,
            flags_at,
        })
    }

    fn check(&self) -> Result<(), WireError> {
        let malformed = |detail| Err(WireError::new(ReasonCode::MalformedPacket, detail));
        if self.flags & 1 != 0 {
            return malformed("reserved flag of CONNECT is set");
        }
        if self.flags & WILL == 0 && self.flags & WILL_DETAILS != 0 {
            return malformed("will quality of service or retain is set without a will");
        }
        // [MQTT-3.1.2-22] of version 3.1.1; version 5 allows it.
        if self.version == Version::V311 && self.flags & PASSWORD != 0 && self.flags & USERNAME == 0 {
            return malformed("password is given without a user name");
        }
        Ok(())
    }
}

fn decode_v5(frame: &Frame<'_>, head: &Head, expiry_at: Option<usize>) -> Result<Connect, WireError> {
    let mut packet = BytesMut::from(frame.packet);
    let body_at = frame.packet.len() - frame.body.len();
    // The codec refuses an empty client identifier without Clean Start; version 5 allows it ([MQTT-3.1.3-6]).
    packet[body_at + head.flags_at] |= CLEAN_START;
    // And it refuses a will that expires at once (section 3.1.3.2.4).
    let expiry = expiry_at.and_then(|at| packet[body_at + at..].first_chunk_mut::<4>());
    let expires_at_once = expiry.is_some_and(|value| {
        let is_zero = *value == [0; 4];
        value[3] |= u8::from(is_zero);
        is_zero
    });
    let Some((v5::Packet::Connect(connect), _)) = v5::Codec::new(0, 0).decode(&mut packet)? else {
        return Err(WireError::new(
            ReasonCode::MalformedPacket,
            "CONNECT can't be decoded",
        ));
    };
    let connect = *connect;
    if connect.auth_data.is_some() && connect.auth_method.is_none() {
        return Err(WireError::new(
            ReasonCode::ProtocolError,
            "authentication data is given without a method",
        ));
    }
    Ok(Connect {
        version: head.version,
        clean_start: head.flags & CLEAN_START != 0,
        keep_alive: connect.keep_alive,
        client_id: connect.client_id.to_string(),
        username: connect.username.map(|name| name.to_string()),
        password: connect.password.map(|password| Bytes::copy_from_slice(&password)),
        will: connect.last_will.map(|will| will_v5(will, expires_at_once)),
        session_expiry: connect.session_expiry_interval_secs,
        receive_maximum: connect.receive_max.map_or(u16::MAX, std::num::NonZeroU16::get),
        maximum_packet_size: connect.max_packet_size.map(std::num::NonZeroU32::get),
        topic_alias_maximum: connect.topic_alias_max,
        authentication: connect.auth_method.map(|method| Authentication {
            method: method.to_string(),
            data: connect.auth_data.map(|data| Bytes::copy_from_slice(&data)),
        }),
    })
}

fn will_v5(will: v5::LastWill, expires_at_once: bool) -> Will {
    let user = will.user_properties.iter();
    Will {
        topic: will.topic.to_string(),
        payload: Bytes::copy_from_slice(&will.message),
        qos: qos_from(will.qos),
        retain: will.retain,
        delay: will.will_delay_interval_sec.unwrap_or(0),
        properties: Properties {
            content_type: will.content_type.map(|text| text.to_string()),
            payload_is_utf8: will.is_utf8_payload.unwrap_or(false),
            expiry_seconds: match will.message_expiry_interval {
                Some(_) if expires_at_once => Some(0),
                expiry => expiry.map(std::num::NonZeroU32::get),
            },
            response_topic: will.response_topic.map(|text| text.to_string()),
            correlation_data: will.correlation_data.map(|data| Bytes::copy_from_slice(&data)),
            user: user
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
        },
    }
}

fn decode_v3(frame: &Frame<'_>, head: &Head) -> Result<Connect, WireError> {
    let decoded = v3::Codec::new(0)
        .decode(&mut BytesMut::from(frame.packet))
        .map_err(|error| match error {
            rmqtt_codec::error::DecodeError::InvalidClientId => WireError::new(
                ReasonCode::ClientIdentifierNotValid,
                "client identifier is empty, which a clean session only may be",
            ),
            error => error.into(),
        })?;
    let Some((v3::Packet::Connect(connect), _)) = decoded else {
        return Err(WireError::new(
            ReasonCode::MalformedPacket,
            "CONNECT can't be decoded",
        ));
    };
    let connect = *connect;
    Ok(Connect {
        version: head.version,
        clean_start: connect.clean_session,
        keep_alive: connect.keep_alive,
        client_id: connect.client_id.to_string(),
        username: connect.username.map(|name| name.to_string()),
        password: connect.password.map(|password| Bytes::copy_from_slice(&password)),
        will: connect.last_will.map(|will| Will {
            topic: will.topic.to_string(),
            payload: Bytes::copy_from_slice(&will.message),
            qos: qos_from(will.qos),
            retain: will.retain,
            delay: 0,
            properties: Properties::default(),
        }),
        session_expiry: if connect.clean_session { 0 } else { u32::MAX },
        receive_maximum: u16::MAX,
        maximum_packet_size: None,
        topic_alias_maximum: 0,
        authentication: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::cut;

    fn decode(body: &[u8]) -> Result<Connect, WireError> {
        let packet = [&[CONNECT, body.len() as u8], body].concat();
        Connect::decode(&cut(&packet, 1000).unwrap().unwrap())
    }

    #[test]
    fn all_three_versions_are_understood() {
        let five = decode(b"\0\x04MQTT\x05\x00\0\x3c\x05\x11\0\0\0\x0a\0\0").unwrap();
        assert_eq!(
            (five.version, five.clean_start, five.session_expiry),
            (Version::V5, false, 10)
        );
        assert_eq!((five.client_id.as_str(), five.receive_maximum), ("", u16::MAX));
        let four = decode(b"\0\x04MQTT\x04\x02\0\x3c\0\x01c").unwrap();
        assert_eq!(
            (four.version, four.client_id.as_str(), four.session_expiry),
            (Version::V311, "c", 0)
        );
        let three = decode(b"\0\x06MQIsdp\x03\x00\0\x3c\0\x01c").unwrap();
        assert_eq!((three.version, three.session_expiry), (Version::V31, u32::MAX));
    }

    #[test]
    fn what_the_codec_refuses_is_taken() {
        // A will that expires at once, after another property.
        let body = b"\0\x04MQTT\x05\x06\0\0\0\0\x01c\x07\x01\x01\x02\0\0\0\0\0\x01t\0\0";
        let will = decode(body).unwrap().will.unwrap();
        assert_eq!(
            (will.topic.as_str(), will.properties.expiry_seconds),
            ("t", Some(0))
        );
        assert!(will.properties.payload_is_utf8);
        // An empty client identifier without Clean Start.
        assert!(!decode(b"\0\x04MQTT\x05\x00\0\0\0\0\0").unwrap().clean_start);
    }

    #[test]
    fn what_the_codec_lets_pass_is_refused() {
        let reason = |body: &[u8]| decode(body).unwrap_err().reason;
        assert_eq!(
            reason(b"\0\x04MQTT\x05\x08\0\0\0\0\0"),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\0\x04MQTT\x04\x42\0\0\0\x01c\0\x01p"),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\0\x04MQTT\x05\x02\0\0\0\0\x01\0"),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\0\x04MQTT\x04\x03\0\0\0\x01c"),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\0\x04MQTT\x05\x02\0\0\x04\x16\0\x01x\0\0"),
            ReasonCode::ProtocolError
        );
        assert_eq!(
            reason(b"\0\x04MQTT\x04\x00\0\0\0\0"),
            ReasonCode::ClientIdentifierNotValid
        );
        assert_eq!(
            reason(b"\0\x04MQTT\x06\x02\0\0\0\0\0"),
            ReasonCode::UnsupportedProtocolVersion
        );
        assert_eq!(
            reason(b"\0\x04HTTP\x05\x02\0\0\0\0\0"),
            ReasonCode::MalformedPacket
        );
        assert_eq!(reason(b"\0\x04MQTT\x05"), ReasonCode::MalformedPacket);
    }
}
