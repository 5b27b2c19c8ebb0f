//! What ours reads.

use bytes::BytesMut;
use foreshore_record::{TopicFilter, TopicName, record::Properties};
use serde_json::{Value, json};

use super::{hex, make::Made};
use crate::wire::{
    auth::AuthReason,
    connect::Connect,
    frame,
    packet::{Packet, RetainHandling, Subscribe, Unsubscribe},
    properties,
    publish::Publish,
};

/// Reads a packet, or tells why not.
pub(super) fn read(made: &Made) -> Result<Value, String> {
    let text = |error: crate::wire::WireError| error.to_string();
    let frame = frame::cut(&made.bytes, u32::MAX).map_err(text)?.unwrap();
    if made.kind == "connect" {
        return connect(Connect::decode(&frame).map_err(text)?);
    }
    Ok(match Packet::decode(&frame, made.version).map_err(text)? {
        Packet::Publish(message) => publish(&message)?,
        Packet::Ack(ack) => json!({
            "first": ack.kind as u8,
            "packet_id": ack.packet_id,
            "reason": ack.reason,
        }),
        Packet::Subscribe(request) => subscribe(&request)?,
        Packet::Unsubscribe(request) => unsubscribe(&request)?,
        Packet::PingRequest => json!("ping"),
        Packet::Disconnect(disconnect) => json!({
            "with_will": disconnect.with_will,
            "session_expiry": disconnect.session_expiry,
        }),
        Packet::Auth(auth) => json!({
            "reason": match auth.reason {
                AuthReason::Success => 0x00,
                AuthReason::Continue => 0x18,
                AuthReason::Reauthenticate => 0x19,
            },
            "method": auth.authentication.method,
            "data": auth.authentication.data.as_deref().map(hex),
        }),
    })
}

fn connect(connect: Connect) -> Result<Value, String> {
    if let Some(will) = &connect.will {
        topic(&will.topic)?;
    }
    let (method, data) = connect.authentication.map_or((None, None), |authentication| {
        (Some(authentication.method), authentication.data)
    });
    Ok(json!({
        "version": connect.version,
        "clean_start": connect.clean_start,
        "keep_alive": connect.keep_alive,
        "client_id": connect.client_id,
        "username": connect.username,
        "password": connect.password.as_deref().map(hex),
        "will": connect.will.map(|will| json!({
            "topic": will.topic,
            "payload": hex(&will.payload),
            "qos": u8::from(will.qos),
            "retain": will.retain,
            "delay": will.delay,
            "properties": properties_of(&will.properties),
        })),
        "session_expiry": connect.session_expiry,
        "receive_maximum": connect.receive_maximum,
        "maximum_packet_size": connect.maximum_packet_size,
        "topic_alias_maximum": connect.topic_alias_maximum,
        "method": method,
        "data": data.as_deref().map(hex),
    }))
}

fn publish(message: &Publish<'_>) -> Result<Value, String> {
    // Empty with an alias only.
    if !message.topic.is_empty() {
        topic(message.topic)?;
    }
    let mut forwarded = BytesMut::new();
    message.properties.put_forwarded(&mut forwarded);
    Ok(json!({
        "dup": message.dup,
        "qos": u8::from(message.qos),
        "retain": message.retain,
        "packet_id": message.packet_id,
        "topic": message.topic,
        "alias": message.properties.alias,
        "properties": properties_of(&properties::decode(&forwarded, message.properties.expiry)),
        "payload": hex(message.payload),
    }))
}

fn properties_of(properties: &Properties) -> Value {
    json!({
        "content_type": properties.content_type,
        "payload_is_utf8": properties.payload_is_utf8,
        "expiry": properties.expiry_seconds,
        "response_topic": properties.response_topic,
        "correlation_data": properties.correlation_data.as_deref().map(hex),
        "user": properties.user,
    })
}

fn subscribe(subscribe: &Subscribe) -> Result<Value, String> {
    for (text, _) in &subscribe.filters {
        filter(text)?;
    }
    let filters = subscribe.filters.iter().map(|(filter, options)| {
        json!({
            "filter": filter,
            "qos": u8::from(options.qos),
            "no_local": options.no_local,
            "retain_as_published": options.retain_as_published,
            "retain_handling": match options.retain_handling {
                RetainHandling::AtSubscribe => 0,
                RetainHandling::IfNew => 1,
                RetainHandling::Never => 2,
            },
        })
    });
    Ok(json!({
        "packet_id": subscribe.packet_id,
        "identifier": subscribe.identifier,
        "filters": filters.collect::<Vec<_>>(),
    }))
}

fn unsubscribe(unsubscribe: &Unsubscribe) -> Result<Value, String> {
    for text in &unsubscribe.filters {
        filter(text)?;
    }
    Ok(json!({
        "packet_id": unsubscribe.packet_id,
        "filters": unsubscribe.filters,
    }))
}

/// The broker looks at the topic when the packet is decoded, and refuses it then.
fn topic(topic: &str) -> Result<(), String> {
    match TopicName::new(topic) {
        Ok(_) => Ok(()),
        Err(_) if topic.is_empty() => Err("topic is empty".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// As with topics; only that SUBACK and UNSUBACK refuse what is wrong, and the rest of the packet counts.
fn filter(filter: &str) -> Result<(), String> {
    let shared = TopicFilter::parse_shared(filter).map_err(|error| error.to_string())?;
    if shared.is_none() {
        TopicFilter::new(filter).map_err(|error| error.to_string())?;
    }
    Ok(())
}
