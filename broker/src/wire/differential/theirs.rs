//! What `mqtt-proto` reads.

use mqtt_proto::{Protocol, QosPid, TopicName, v3, v5};
use serde_json::{Value, json};

use super::{hex, make::Made};
use crate::wire::Version;

/// What it has read of a packet.
#[derive(Debug)]
pub(super) struct Read {
    /// In the form of ours.
    pub(super) content: Value,
    /// Bytes of the packet when it writes what it has read.
    pub(super) size: usize,
}

/// Reads a packet, or tells why not.
pub(super) fn read(made: &Made) -> Result<Read, String> {
    let cut_short = || "packet is longer than it says".to_owned();
    if made.version.is_v5() {
        let packet = v5::Packet::decode(&made.bytes).map_err(|error| error.to_string())?;
        let packet = packet.ok_or_else(cut_short)?;
        let size = packet.encode_len().map_err(|error| error.to_string())?;
        let content = of_v5(packet)?;
        Ok(Read { content, size })
    } else {
        let packet = v3::Packet::decode(&made.bytes).map_err(|error| error.to_string())?;
        let packet = packet.ok_or_else(cut_short)?;
        let size = packet.encode_len().map_err(|error| error.to_string())?;
        let content = of_v3(packet)?;
        Ok(Read { content, size })
    }
}

fn of_v5(packet: v5::Packet) -> Result<Value, String> {
    let ack = |first: u8, pid: mqtt_proto::Pid, reason: u8| {
        Ok(json!({"first": first, "packet_id": pid.value(), "reason": reason}))
    };
    match packet {
        v5::Packet::Connect(connect) => Ok(connect_v5(connect)),
        v5::Packet::Publish(publish) => {
            let properties = publish.properties;
            let alias = properties.topic_alias;
            if properties.subscription_id.is_some() {
                return Err("a client may not send subscription identifiers".to_owned());
            }
            let properties = self::properties(
                properties.content_type.as_deref(),
                properties.payload_is_utf8,
                properties.message_expiry_interval,
                properties.response_topic.as_ref(),
                properties.correlation_data.as_deref(),
                &properties.user_properties,
            );
            Ok(message(
                publish.dup,
                publish.retain,
                publish.qos_pid,
                &publish.topic_name,
                alias,
                properties,
                &publish.payload,
            ))
        }
        v5::Packet::Puback(it) => ack(0x40, it.pid, it.reason_code as u8),
        v5::Packet::Pubrec(it) => ack(0x50, it.pid, it.reason_code as u8),
        v5::Packet::Pubrel(it) => ack(0x62, it.pid, it.reason_code as u8),
        v5::Packet::Pubcomp(it) => ack(0x70, it.pid, it.reason_code as u8),
        v5::Packet::Subscribe(subscribe) => Ok(json!({
            "packet_id": subscribe.pid.value(),
            "identifier": subscribe.properties.subscription_id.map(v5::VarByteInt::value),
            "filters": subscribe.topics.iter().map(|(filter, options)| json!({
                "filter": &**filter,
                "qos": options.max_qos as u8,
                "no_local": options.no_local,
                "retain_as_published": options.retain_as_published,
                "retain_handling": options.retain_handling as u8,
            })).collect::<Vec<_>>(),
        })),
        v5::Packet::Unsubscribe(unsubscribe) => Ok(json!({
            "packet_id": unsubscribe.pid.value(),
            "filters": unsubscribe.topics.iter().map(|filter| &**filter).collect::<Vec<_>>(),
        })),
        v5::Packet::Pingreq => Ok(json!("ping")),
        v5::Packet::Disconnect(disconnect) => Ok(json!({
            "with_will": disconnect.reason_code != v5::DisconnectReasonCode::NormalDisconnect,
            "session_expiry": disconnect.properties.session_expiry_interval,
        })),
        v5::Packet::Auth(auth) => Ok(json!({
            "reason": auth.reason_code as u8,
            "method": auth.properties.auth_method.as_deref(),
            "data": auth.properties.auth_data.as_deref().map(hex),
        })),
        other => Err(format!("only a server may send {:?}", other.get_type())),
    }
}

fn connect_v5(connect: v5::Connect) -> Value {
    let properties = connect.properties;
    json!({
        "version": Version::V5,
        "clean_start": connect.clean_start,
        "keep_alive": connect.keep_alive,
        "client_id": &*connect.client_id,
        "username": connect.username.as_deref(),
        "password": connect.password.as_deref().map(hex),
        "will": connect.last_will.map(|will| json!({
            "topic": &*will.topic_name,
            "payload": hex(&will.payload),
            "qos": will.qos as u8,
            "retain": will.retain,
            "delay": will.properties.delay_interval.unwrap_or(0),
            "properties": self::properties(
                will.properties.content_type.as_deref(),
                will.properties.payload_is_utf8,
                will.properties.message_expiry_interval,
                will.properties.response_topic.as_ref(),
                will.properties.correlation_data.as_deref(),
                &will.properties.user_properties,
            ),
        })),
        "session_expiry": properties.session_expiry_interval.unwrap_or(0),
        "receive_maximum": properties.receive_max.unwrap_or(u16::MAX),
        "maximum_packet_size": properties.max_packet_size,
        "topic_alias_maximum": properties.topic_alias_max.unwrap_or(0),
        "method": properties.auth_method.as_deref(),
        "data": properties.auth_data.as_deref().map(hex),
    })
}

fn properties(
    content_type: Option<&str>,
    payload_is_utf8: Option<bool>,
    expiry: Option<u32>,
    response_topic: Option<&TopicName>,
    correlation_data: Option<&[u8]>,
    user: &[v5::UserProperty],
) -> Value {
    json!({
        "content_type": content_type,
        "payload_is_utf8": payload_is_utf8.unwrap_or(false),
        "expiry": expiry,
        "response_topic": response_topic.map(|topic| &**topic),
        "correlation_data": correlation_data.map(hex),
        "user": user.iter().map(|one| (&*one.name, &*one.value)).collect::<Vec<_>>(),
    })
}

fn message(
    dup: bool,
    retain: bool,
    qos_pid: QosPid,
    topic: &TopicName,
    alias: Option<u16>,
    properties: Value,
    payload: &[u8],
) -> Value {
    json!({
        "dup": dup,
        "qos": qos_pid.qos() as u8,
        "retain": retain,
        "packet_id": qos_pid.pid().map_or(0, mqtt_proto::Pid::value),
        "topic": &**topic,
        "alias": alias,
        "properties": properties,
        "payload": hex(payload),
    })
}

fn of_v3(packet: v3::Packet) -> Result<Value, String> {
    let no_properties = || properties(None, None, None, None, None, &[]);
    let ack =
        |first: u8, pid: mqtt_proto::Pid| Ok(json!({"first": first, "packet_id": pid.value(), "reason": 0}));
    match packet {
        v3::Packet::Connect(connect) => Ok(json!({
            "version": match connect.protocol {
                Protocol::V310 => Version::V31,
                Protocol::V311 => Version::V311,
                Protocol::V500 => Version::V5,
            },
            "clean_start": connect.clean_session,
            "keep_alive": connect.keep_alive,
            "client_id": &*connect.client_id,
            "username": connect.username.as_deref(),
            "password": connect.password.as_deref().map(hex),
            "will": connect.last_will.map(|will| json!({
                "topic": &*will.topic_name,
                "payload": hex(&will.message),
                "qos": will.qos as u8,
                "retain": will.retain,
                "delay": 0,
                "properties": no_properties(),
            })),
            "session_expiry": if connect.clean_session { 0 } else { u32::MAX },
            "receive_maximum": u16::MAX,
            "maximum_packet_size": null,
            "topic_alias_maximum": 0,
            "method": null,
            "data": null,
        })),
        v3::Packet::Publish(publish) => Ok(message(
            publish.dup,
            publish.retain,
            publish.qos_pid,
            &publish.topic_name,
            None,
            no_properties(),
            &publish.payload,
        )),
        v3::Packet::Puback(pid) => ack(0x40, pid),
        v3::Packet::Pubrec(pid) => ack(0x50, pid),
        v3::Packet::Pubrel(pid) => ack(0x62, pid),
        v3::Packet::Pubcomp(pid) => ack(0x70, pid),
        v3::Packet::Subscribe(subscribe) => Ok(json!({
            "packet_id": subscribe.pid.value(),
            "identifier": null,
            "filters": subscribe.topics.iter().map(|(filter, qos)| json!({
                "filter": &**filter,
                "qos": *qos as u8,
                "no_local": false,
                "retain_as_published": false,
                "retain_handling": 0,
            })).collect::<Vec<_>>(),
        })),
        v3::Packet::Unsubscribe(unsubscribe) => Ok(json!({
            "packet_id": unsubscribe.pid.value(),
            "filters": unsubscribe.topics.iter().map(|filter| &**filter).collect::<Vec<_>>(),
        })),
        v3::Packet::Pingreq => Ok(json!("ping")),
        v3::Packet::Disconnect => Ok(json!({"with_will": false, "session_expiry": null})),
        other => Err(format!("only a server may send {:?}", other.get_type())),
    }
}
