//! The PUBLISH that a client sent (MQTT 5.0 section 3.3), read in place.

use bytes::Buf;
use foreshore_record::Qos;

use super::{
    ReasonCode, Version, WireError,
    frame::Frame,
    properties::{PublishProperties, take_text},
};

/// A PUBLISH as it stands in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    /// Whether it may be a repeat.
    pub(crate) dup: bool,
    /// Quality of service.
    pub(crate) qos: Qos,
    /// Whether to retain it.
    pub(crate) retain: bool,
    /// Topic name; empty when only an alias is given. Not checked for wildcards yet.
    pub(crate) topic: &'a str,
    /// Packet identifier; 0 with quality of service 0.
    pub(crate) packet_id: u16,
    /// Properties; empty below version 5.
    pub(crate) properties: PublishProperties<'a>,
    /// Payload.
    pub(crate) payload: &'a [u8],
}

impl<'a> Publish<'a> {
    /// Reads a PUBLISH.
    pub(crate) fn decode(frame: &Frame<'a>, version: Version) -> Result<Self, WireError> {
        let malformed = |detail| WireError::new(ReasonCode::MalformedPacket, detail);
        let qos = Qos::try_from((frame.first >> 1) & 3)
            .map_err(|_| malformed("both bits of the quality of service are set"))?;
        let dup = frame.first & 8 != 0;
        if dup && qos == Qos::AtMostOnce {
            return Err(malformed("DUP is set with quality of service 0"));
        }
        let mut body = frame.body;
        let topic = take_text(&mut body)?;
        let packet_id = match qos {
            Qos::AtMostOnce => 0,
            _ => match body.try_get_u16() {
                Ok(0) => return Err(malformed("packet identifier is 0")),
                Ok(id) => id,
                Err(_) => return Err(malformed("packet ends before the packet identifier")),
            },
        };
        let properties = match version {
            Version::V5 => PublishProperties::take(&mut body)?,
            Version::V311 | Version::V31 => PublishProperties::default(),
        };
        if topic.is_empty() && properties.alias.is_none() {
            return Err(match version {
                Version::V5 => WireError::new(ReasonCode::ProtocolError, "neither topic nor alias is given"),
                _ => malformed("topic is empty"),
            });
        }
        Ok(Self {
            dup,
            qos,
            retain: frame.first & 1 != 0,
            topic,
            packet_id,
            properties,
            payload: body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::cut;

    fn decode(packet: &[u8], version: Version) -> Result<Publish<'_>, WireError> {
        Publish::decode(&cut(packet, 1000).unwrap().unwrap(), version)
    }

    #[test]
    fn reads_both_versions() {
        let five = decode(b"\x3d\x0e\x00\x05topic\x43\x21\x00data", Version::V5).unwrap();
        assert_eq!((five.dup, five.qos, five.retain), (true, Qos::ExactlyOnce, true));
        assert_eq!(
            (five.topic, five.packet_id, five.payload),
            ("topic", 0x4321, &b"data"[..])
        );
        let three = decode(b"\x30\x0b\x00\x05topicdata", Version::V311).unwrap();
        assert_eq!(
            (three.qos, three.topic, three.payload),
            (Qos::AtMostOnce, "topic", &b"data"[..])
        );
    }

    #[test]
    fn refuses_what_the_standard_forbids() {
        let reason = |packet, version| decode(packet, version).unwrap_err().reason;
        assert_eq!(
            reason(b"\x36\x05\x00\x01a\x00\x01", Version::V311),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\x38\x03\x00\x01a", Version::V311),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\x32\x05\x00\x01a\x00\x00", Version::V311),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\x30\x03\x00\x00\x00", Version::V5),
            ReasonCode::ProtocolError
        );
        assert_eq!(
            reason(b"\x30\x04\x00\x02\xc3\x28", Version::V311),
            ReasonCode::MalformedPacket
        );
    }
}
