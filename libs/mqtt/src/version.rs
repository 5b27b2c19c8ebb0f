//! Both versions of MQTT on the wire, one inside: packets of 3.1.1 become those of 5.0 that say the same, and back.

use bytes::BytesMut;
use rmqtt_codec::{
    error::{DecodeError, EncodeError},
    types::{MQTT_LEVEL_311, Protocol},
    v3,
    v5::{self, ConnectAck, ConnectAckReason, Packet, PublishAck, PublishAck2, SubscribeAckReason},
};
use tokio_util::codec::{Decoder, Encoder};

/// Which version a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V5,
    V311,
}

/// Encoder and decoder of one connection.
#[derive(Debug)]
pub(crate) enum Codec {
    V5(v5::Codec),
    V311(v3::Codec),
}

impl Codec {
    /// Takes packets of at most so many bytes.
    pub(crate) fn new(version: Version, max_packet_size: u32) -> Self {
        match version {
            Version::V5 => Self::V5(v5::Codec::new(max_packet_size, 0)),
            Version::V311 => Self::V311(v3::Codec::new(max_packet_size)),
        }
    }

    /// The next packet that was read completely.
    ///
    /// # Errors
    /// When what was read is no packet.
    pub(crate) fn decode(&mut self, inbound: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        match self {
            Self::V5(codec) => Ok(codec.decode(inbound)?.map(|(packet, _)| packet)),
            Self::V311(codec) => codec
                .decode(inbound)?
                .map(|(packet, _)| newer(packet))
                .transpose(),
        }
    }

    /// Appends a packet.
    ///
    /// # Errors
    /// When it can't be written, or the version has no such packet.
    pub(crate) fn encode(&mut self, packet: Packet, outbound: &mut BytesMut) -> Result<(), EncodeError> {
        match self {
            Self::V5(codec) => codec.encode(packet, outbound),
            Self::V311(codec) => codec.encode(older(packet)?, outbound),
        }
    }
}

/// A packet that a server of 3.1.1 sent.
fn newer(packet: v3::Packet) -> Result<Packet, DecodeError> {
    let acknowledgement = |packet_id| PublishAck {
        packet_id,
        reason_code: v5::PublishAckReason::Success,
        properties: Vec::new(),
        reason_string: None,
    };
    Ok(match packet {
        v3::Packet::ConnectAck(ack) => Packet::ConnectAck(Box::new(ConnectAck {
            session_present: ack.session_present,
            reason_code: connect_reason(ack.return_code),
            subscription_identifiers_available: false,
            ..ConnectAck::default()
        })),
        v3::Packet::Publish(publish) => Packet::Publish(publish),
        v3::Packet::PublishAck { packet_id } => Packet::PublishAck(acknowledgement(packet_id)),
        v3::Packet::PublishReceived { packet_id } => Packet::PublishReceived(acknowledgement(packet_id)),
        v3::Packet::PublishComplete { packet_id } => Packet::PublishComplete(PublishAck2 {
            packet_id,
            reason_code: v5::PublishAck2Reason::Success,
            properties: Vec::new(),
            reason_string: None,
        }),
        v3::Packet::SubscribeAck { packet_id, status } => Packet::SubscribeAck(v5::SubscribeAck {
            packet_id,
            properties: Vec::new(),
            reason_string: None,
            status: status.into_iter().map(subscribe_reason).collect(),
        }),
        v3::Packet::UnsubscribeAck { packet_id } => Packet::UnsubscribeAck(v5::UnsubscribeAck {
            packet_id,
            properties: Vec::new(),
            reason_string: None,
            status: Vec::new(),
        }),
        v3::Packet::PingResponse => Packet::PingResponse,
        // What only clients send.
        _ => return Err(DecodeError::UnsupportedPacketType),
    })
}

/// MQTT 3.1.1, section 3.2.2.3.
fn connect_reason(code: v3::ConnectAckReason) -> ConnectAckReason {
    match code {
        v3::ConnectAckReason::ConnectionAccepted => ConnectAckReason::Success,
        v3::ConnectAckReason::UnacceptableProtocolVersion => ConnectAckReason::UnsupportedProtocolVersion,
        v3::ConnectAckReason::IdentifierRejected => ConnectAckReason::ClientIdentifierNotValid,
        v3::ConnectAckReason::ServiceUnavailable => ConnectAckReason::ServerUnavailable,
        v3::ConnectAckReason::BadUserNameOrPassword => ConnectAckReason::BadUserNameOrPassword,
        v3::ConnectAckReason::NotAuthorized => ConnectAckReason::NotAuthorized,
        v3::ConnectAckReason::Reserved => ConnectAckReason::UnspecifiedError,
    }
}

/// MQTT 3.1.1, section 3.9.3.
fn subscribe_reason(code: v3::SubscribeReturnCode) -> SubscribeAckReason {
    use rmqtt_codec::types::QoS;
    match code {
        v3::SubscribeReturnCode::Success(QoS::AtMostOnce) => SubscribeAckReason::GrantedQos0,
        v3::SubscribeReturnCode::Success(QoS::AtLeastOnce) => SubscribeAckReason::GrantedQos1,
        v3::SubscribeReturnCode::Success(QoS::ExactlyOnce) => SubscribeAckReason::GrantedQos2,
        v3::SubscribeReturnCode::Failure => SubscribeAckReason::UnspecifiedError,
    }
}

/// A packet of ours, without what 3.1.1 has no place for.
fn older(packet: Packet) -> Result<v3::Packet, EncodeError> {
    Ok(match packet {
        Packet::Connect(connect) => {
            let v5::Connect {
                clean_start,
                keep_alive,
                last_will,
                client_id,
                username,
                password,
                cert,
                ..
            } = *connect;
            let last_will = last_will.map(|will| v3::LastWill {
                qos: will.qos,
                retain: will.retain,
                topic: will.topic,
                message: will.message,
            });
            v3::Packet::Connect(Box::new(v3::Connect {
                protocol: Protocol(MQTT_LEVEL_311),
                clean_session: clean_start,
                keep_alive,
                last_will,
                client_id,
                username,
                password,
                cert,
            }))
        }
        Packet::PublishAck(ack) => v3::Packet::PublishAck {
            packet_id: ack.packet_id,
        },
        Packet::Subscribe(subscribe) => v3::Packet::Subscribe {
            packet_id: subscribe.packet_id,
            topic_filters: subscribe
                .topic_filters
                .into_iter()
                .map(|(filter, options)| (filter, options.qos))
                .collect(),
        },
        Packet::Unsubscribe(unsubscribe) => v3::Packet::Unsubscribe {
            packet_id: unsubscribe.packet_id,
            topic_filters: unsubscribe.topic_filters,
        },
        Packet::PingRequest => v3::Packet::PingRequest,
        Packet::Disconnect(_) => v3::Packet::Disconnect,
        // A client of ours sends no others this way.
        _ => return Err(EncodeError::MalformedPacket),
    })
}
