//! What clients send after CONNECT, in one form for all versions.

use std::num::NonZeroU32;

use bytes::BytesMut;
use foreshore_record::Qos;
use rmqtt_codec::{types::QoS, v3, v5};
use tokio_util::codec::Decoder;

use super::{ReasonCode, Version, WireError, auth::Auth, check, frame::Frame, publish::Publish};

/// A packet from a client.
#[derive(Debug)]
pub(crate) enum Packet<'a> {
    /// A message.
    Publish(Publish<'a>),
    /// One of the four acknowledgements.
    Ack(Ack),
    /// Subscribe.
    Subscribe(Subscribe),
    /// Unsubscribe.
    Unsubscribe(Unsubscribe),
    /// Are you there?
    PingRequest,
    /// The client leaves.
    Disconnect(Disconnect),
    /// Enhanced authentication.
    Auth(Auth),
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Which of the four.
    pub(crate) kind: AckKind,
    /// Packet identifier.
    pub(crate) packet_id: u16,
    /// Reason code.
    pub(crate) reason: u8,
}

/// Which acknowledgement; the value is the first byte of its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(clippy::enum_variant_names, reason = "the names of the packets")]
pub(crate) enum AckKind {
    /// Quality of service 1 is done.
    PubAck = 0x40,
    /// Quality of service 2, first step.
    PubRec = 0x50,
    /// Quality of service 2, second step.
    PubRel = 0x62,
    /// Quality of service 2 is done.
    PubComp = 0x70,
}

/// A request to subscribe.
#[derive(Debug)]
pub(crate) struct Subscribe {
    /// Packet identifier.
    pub(crate) packet_id: u16,
    /// Subscription identifier.
    pub(crate) identifier: Option<NonZeroU32>,
    /// Filters, as the client wrote them, with options.
    pub(crate) filters: Vec<(String, SubscribeOptions)>,
}

/// Options of a subscription (MQTT 5.0 section 3.8.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct SubscribeOptions {
    /// Highest quality of service.
    pub(crate) qos: Qos,
    /// Own messages are not wanted back.
    #[serde(default)]
    pub(crate) no_local: bool,
    /// RETAIN is to be sent on as published.
    #[serde(default)]
    pub(crate) retain_as_published: bool,
    /// When retained messages are sent.
    #[serde(default)]
    pub(crate) retain_handling: RetainHandling,
}

/// When retained messages are sent for a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum RetainHandling {
    /// At each SUBSCRIBE.
    #[default]
    AtSubscribe,
    /// Only if the subscription is new.
    IfNew,
    /// Never.
    Never,
}

/// A request to unsubscribe.
#[derive(Debug)]
pub(crate) struct Unsubscribe {
    /// Packet identifier.
    pub(crate) packet_id: u16,
    /// Filters, as the client wrote them.
    pub(crate) filters: Vec<String>,
}

/// A client's good-bye.
#[derive(Debug)]
pub(crate) struct Disconnect {
    /// Whether the will is wanted.
    pub(crate) with_will: bool,
    /// A new session expiry interval.
    pub(crate) session_expiry: Option<u32>,
}

impl<'a> Packet<'a> {
    /// Reads a packet.
    ///
    /// # Errors
    /// When it is malformed, or may not be sent by a client after CONNECT.
    pub(crate) fn decode(frame: &Frame<'a>, version: Version) -> Result<Self, WireError> {
        match frame.first {
            0x30..=0x3f => Publish::decode(frame, version).map(Self::Publish),
            0x40 => Ack::decode(frame, AckKind::PubAck, version).map(Self::Ack),
            0x50 => Ack::decode(frame, AckKind::PubRec, version).map(Self::Ack),
            0x62 => Ack::decode(frame, AckKind::PubRel, version).map(Self::Ack),
            0x70 => Ack::decode(frame, AckKind::PubComp, version).map(Self::Ack),
            0xc0 if frame.body.is_empty() => Ok(Self::PingRequest),
            0x82 | 0xa2 | 0xe0 | 0xf0 if version.is_v5() => Self::decode_v5(frame),
            0x82 | 0xa2 | 0xe0 => Self::decode_v3(frame, version),
            0x10 => Err(WireError::new(ReasonCode::ProtocolError, "CONNECT is sent twice")),
            0x20 | 0x90 | 0xb0 | 0xd0 => Err(WireError::new(
                ReasonCode::ProtocolError,
                "packet that only a server may send",
            )),
            _ => Err(WireError::new(
                ReasonCode::MalformedPacket,
                "packet type or flags are reserved",
            )),
        }
    }

    fn decode_v5(frame: &Frame<'_>) -> Result<Self, WireError> {
        check::packet(frame, Version::V5)?;
        let packet = v5::Codec::new(0, 0).decode(&mut BytesMut::from(frame.packet))?;
        match packet.map(|(packet, _)| packet) {
            Some(v5::Packet::Subscribe(subscribe)) => {
                let filters = subscribe.topic_filters.into_iter();
                Ok(Self::Subscribe(Subscribe {
                    packet_id: subscribe.packet_id.get(),
                    identifier: subscribe.id,
                    filters: filters
                        .map(|(filter, options)| (filter.to_string(), options.into()))
                        .collect(),
                }))
            }
            Some(v5::Packet::Unsubscribe(unsubscribe)) => Ok(Self::Unsubscribe(Unsubscribe {
                packet_id: unsubscribe.packet_id.get(),
                filters: unsubscribe
                    .topic_filters
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            })),
            Some(v5::Packet::Disconnect(disconnect)) => Ok(Self::Disconnect(Disconnect {
                with_will: disconnect.reason_code != v5::DisconnectReasonCode::NormalDisconnection,
                session_expiry: disconnect.session_expiry_interval_secs,
            })),
            Some(v5::Packet::Auth(auth)) => auth.try_into().map(Self::Auth),
            _ => Err(WireError::new(
                ReasonCode::MalformedPacket,
                "packet can't be decoded",
            )),
        }
    }

    fn decode_v3(frame: &Frame<'_>, version: Version) -> Result<Self, WireError> {
        check::packet(frame, version)?;
        let packet = v3::Codec::new(0).decode(&mut BytesMut::from(frame.packet))?;
        match packet.map(|(packet, _)| packet) {
            Some(v3::Packet::Subscribe {
                packet_id,
                topic_filters,
            }) => {
                let filters = topic_filters.into_iter();
                Ok(Self::Subscribe(Subscribe {
                    packet_id: packet_id.get(),
                    identifier: None,
                    filters: filters
                        .map(|(filter, qos)| (filter.to_string(), SubscribeOptions::at_most(qos_from(qos))))
                        .collect(),
                }))
            }
            Some(v3::Packet::Unsubscribe {
                packet_id,
                topic_filters,
            }) => Ok(Self::Unsubscribe(Unsubscribe {
                packet_id: packet_id.get(),
                filters: topic_filters.iter().map(ToString::to_string).collect(),
            })),
            Some(v3::Packet::Disconnect) if frame.body.is_empty() => Ok(Self::Disconnect(Disconnect {
                with_will: false,
                session_expiry: None,
            })),
            _ => Err(WireError::new(
                ReasonCode::MalformedPacket,
                "packet can't be decoded",
            )),
        }
    }
}

impl Ack {
    fn decode(frame: &Frame<'_>, kind: AckKind, version: Version) -> Result<Self, WireError> {
        let malformed = |detail| WireError::new(ReasonCode::MalformedPacket, detail);
        let (packet_id, reason) = match (frame.body, version) {
            (&[high, low], _) => (u16::from_be_bytes([high, low]), 0),
            (&[high, low, reason], Version::V5) => (u16::from_be_bytes([high, low]), reason),
            // Reason string and user properties: only their form matters.
            (&[high, low, reason, ..], Version::V5) => {
                check::packet(frame, version)?;
                (u16::from_be_bytes([high, low]), reason)
            }
            _ => return Err(malformed("acknowledgement has a wrong length")),
        };
        if packet_id == 0 {
            return Err(malformed("packet identifier is 0"));
        }
        if !kind.knows(reason) {
            return Err(malformed("reason code is not one of this packet"));
        }
        Ok(Self {
            kind,
            packet_id,
            reason,
        })
    }
}

impl AckKind {
    /// Whether a reason code is one of the packet's (sections 3.4.2.1, 3.5.2.1, 3.6.2.1 and 3.7.2.1).
    fn knows(self, reason: u8) -> bool {
        match self {
            Self::PubAck | Self::PubRec => matches!(
                reason,
                0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99
            ),
            Self::PubRel | Self::PubComp => matches!(reason, 0x00 | 0x92),
        }
    }
}

impl SubscribeOptions {
    /// A subscription as versions below 5 know it.
    pub(crate) fn at_most(qos: Qos) -> Self {
        Self {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::AtSubscribe,
        }
    }
}

impl From<v5::SubscriptionOptions> for SubscribeOptions {
    fn from(options: v5::SubscriptionOptions) -> Self {
        Self {
            qos: qos_from(options.qos),
            no_local: options.no_local,
            retain_as_published: options.retain_as_published,
            retain_handling: match options.retain_handling {
                v5::RetainHandling::AtSubscribe => RetainHandling::AtSubscribe,
                v5::RetainHandling::AtSubscribeNew => RetainHandling::IfNew,
                v5::RetainHandling::NoAtSubscribe => RetainHandling::Never,
            },
        }
    }
}

pub(crate) fn qos_from(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::cut;

    fn decode(packet: &[u8], version: Version) -> Result<Packet<'_>, WireError> {
        Packet::decode(&cut(packet, 1000).unwrap().unwrap(), version)
    }

    #[test]
    fn subscriptions_of_both_versions_read_alike() {
        let Ok(Packet::Subscribe(three)) = decode(b"\x82\x07\x00\x09\x00\x02a/\x01", Version::V311) else {
            panic!()
        };
        assert_eq!(
            three.filters,
            [("a/".to_owned(), SubscribeOptions::at_most(Qos::AtLeastOnce))]
        );
        let Ok(Packet::Subscribe(five)) = decode(b"\x82\x0a\x00\x09\x02\x0b\x05\x00\x02a/\x2d", Version::V5)
        else {
            panic!()
        };
        assert_eq!(
            (five.packet_id, five.identifier.map(NonZeroU32::get)),
            (9, Some(5))
        );
        let options = five.filters[0].1;
        assert!(options.no_local && options.retain_as_published);
        assert_eq!(options.retain_handling, RetainHandling::Never);
    }

    #[test]
    fn acknowledgements_may_be_short() {
        for (packet, reason) in [
            (&b"\x40\x02\x00\x07"[..], 0),
            (b"\x40\x03\x00\x07\x10", 0x10),
            (b"\x40\x04\x00\x07\x80\x00", 0x80),
        ] {
            let Ok(Packet::Ack(ack)) = decode(packet, Version::V5) else {
                panic!()
            };
            assert_eq!(
                ack,
                Ack {
                    kind: AckKind::PubAck,
                    packet_id: 7,
                    reason
                }
            );
        }
    }

    #[test]
    fn what_is_reserved_is_refused() {
        let reason = |packet, version| decode(packet, version).unwrap_err().reason;
        assert_eq!(
            reason(b"\x82\x06\x00\x09\x00\x01a\x05", Version::V311),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\x60\x02\x00\x07", Version::V5),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\x40\x02\x00\x00", Version::V5),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\x40\x03\x00\x01\x00", Version::V311),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\xc0\x01\x00", Version::V311),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\xe0\x01\x00", Version::V311),
            ReasonCode::MalformedPacket
        );
        assert_eq!(
            reason(b"\x20\x02\x00\x00", Version::V311),
            ReasonCode::ProtocolError
        );
        assert_eq!(reason(b"\xf0\x00", Version::V311), ReasonCode::MalformedPacket);
        assert_eq!(
            reason(b"\x82\x03\x00\x09\x00", Version::V5),
            ReasonCode::ProtocolError
        );
    }
}
