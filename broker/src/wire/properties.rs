//! Properties of a PUBLISH (MQTT 5.0 section 3.3.2.3), read in place.
//!
//! What travels with a message unchanged stays in its encoded form: it is checked once and copied to every receiver.
//! Only what changes from hop to hop — topic alias, message expiry, subscription identifiers — is taken out.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use foreshore_record::record::Properties;

use super::{ReasonCode, WireError, frame};

const PAYLOAD_FORMAT: u8 = 0x01;
pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
const CONTENT_TYPE: u8 = 0x03;
const RESPONSE_TOPIC: u8 = 0x08;
const CORRELATION_DATA: u8 = 0x09;
pub(crate) const SUBSCRIPTION_IDENTIFIER: u8 = 0x0b;
pub(crate) const TOPIC_ALIAS: u8 = 0x23;
pub(super) const USER_PROPERTY: u8 = 0x26;

/// Most user properties of one message; each costs an allocation when the message is stored.
const MAX_USER_PROPERTIES: usize = 256;

/// The checked properties of a PUBLISH.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PublishProperties<'a> {
    /// Seconds until the message is worthless.
    pub(crate) expiry: Option<u32>,
    /// Topic alias, not zero.
    pub(crate) alias: Option<u16>,
    /// All properties as they came.
    block: &'a [u8],
    /// Where in `block` expiry and alias stand, as start and length; they are not sent on.
    taken_out: [(usize, usize); 2],
    /// Whether there are user properties, among which our publishers' numbers may be.
    pub(crate) has_user: bool,
}

fn malformed(detail: &'static str) -> WireError {
    WireError::new(ReasonCode::MalformedPacket, detail)
}

fn protocol_error(detail: &'static str) -> WireError {
    WireError::new(ReasonCode::ProtocolError, detail)
}

/// Cuts a string or binary value off (sections 1.5.4 and 1.5.6).
pub(crate) fn take_binary<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], WireError> {
    let short = || malformed("packet ends inside of a value");
    let (length, rest) = input.split_first_chunk::<2>().ok_or_else(short)?;
    let (value, rest) = rest
        .split_at_checked(u16::from_be_bytes(*length).into())
        .ok_or_else(short)?;
    *input = rest;
    Ok(value)
}

/// Cuts a UTF-8 string off; U+0000 is not allowed ([MQTT-1.5.4-2]).
pub(crate) fn take_text<'a>(input: &mut &'a [u8]) -> Result<&'a str, WireError> {
    let text = std::str::from_utf8(take_binary(input)?).map_err(|_| malformed("text is not UTF-8"))?;
    if text.contains('\0') {
        Err(malformed("text holds U+0000"))
    } else {
        Ok(text)
    }
}

impl<'a> PublishProperties<'a> {
    /// Cuts the properties off the body of a PUBLISH and checks them.
    pub(crate) fn take(input: &mut &'a [u8]) -> Result<Self, WireError> {
        let (length, size) =
            frame::variable_length(input)?.ok_or_else(|| malformed("packet ends inside of a length"))?;
        let (block, rest) = input[size..]
            .split_at_checked(length as usize)
            .ok_or_else(|| malformed("properties are longer than the packet"))?;
        *input = rest;
        Self::check(block)
    }

    fn check(block: &'a [u8]) -> Result<Self, WireError> {
        let mut found = Self {
            block,
            ..Self::default()
        };
        let mut seen = 0u64;
        let mut users = 0;
        let mut rest = block;
        while let Some((&kind, after)) = rest.split_first() {
            let start = block.len() - rest.len();
            rest = after;
            if kind == USER_PROPERTY {
                users += 1;
                take_text(&mut rest)?;
                take_text(&mut rest)?;
                continue;
            }
            if kind < 64 && seen & (1 << kind) != 0 {
                return Err(protocol_error("property is given twice"));
            }
            seen |= 1 << (kind & 63);
            found.check_one(kind, &mut rest)?;
            let end = block.len() - rest.len();
            match kind {
                MESSAGE_EXPIRY => found.taken_out[0] = (start, end - start),
                TOPIC_ALIAS => found.taken_out[1] = (start, end - start),
                _ => {}
            }
        }
        if users > MAX_USER_PROPERTIES {
            return Err(WireError::new(
                ReasonCode::QuotaExceeded,
                "message has more than 256 user properties",
            ));
        }
        found.has_user = users > 0;
        Ok(found)
    }

    fn check_one(&mut self, kind: u8, rest: &mut &'a [u8]) -> Result<(), WireError> {
        let short = || malformed("packet ends inside of a property");
        match kind {
            PAYLOAD_FORMAT => match rest.try_get_u8().map_err(|_| short())? {
                0 | 1 => {}
                _ => return Err(protocol_error("payload format indicator is neither 0 nor 1")),
            },
            MESSAGE_EXPIRY => self.expiry = Some(rest.try_get_u32().map_err(|_| short())?),
            TOPIC_ALIAS => {
                self.alias = Some(rest.try_get_u16().map_err(|_| short())?);
                if self.alias == Some(0) {
                    return Err(WireError::new(ReasonCode::TopicAliasInvalid, "topic alias is 0"));
                }
            }
            CONTENT_TYPE => drop(take_text(rest)?),
            RESPONSE_TOPIC => {
                if take_text(rest)?.contains(['+', '#']) {
                    return Err(protocol_error("response topic holds a wildcard"));
                }
            }
            CORRELATION_DATA => drop(take_binary(rest)?),
            SUBSCRIPTION_IDENTIFIER => {
                return Err(protocol_error("a client may not send subscription identifiers"));
            }
            _ => return Err(malformed("property does not belong to this packet")),
        }
        Ok(())
    }

    /// Bytes of what is sent on unchanged.
    pub(crate) fn forwarded_len(&self) -> usize {
        self.block.len() - self.taken_out[0].1 - self.taken_out[1].1
    }

    /// Copies what is sent on unchanged.
    pub(crate) fn put_forwarded(&self, out: &mut BytesMut) {
        let [mut first, mut second] = self.taken_out;
        if first.0 > second.0 {
            std::mem::swap(&mut first, &mut second);
        }
        let mut at = 0;
        for (start, length) in [first, second].into_iter().filter(|(_, length)| *length > 0) {
            out.put_slice(&self.block[at..start]);
            at = start + length;
        }
        out.put_slice(&self.block[at..]);
    }
}

/// Reads forwarded properties, which were checked before, into the form that is stored.
pub(crate) fn decode(mut block: &[u8], expiry: Option<u32>) -> Properties {
    let mut properties = Properties {
        expiry_seconds: expiry,
        ..Properties::default()
    };
    while let Some((&kind, rest)) = block.split_first() {
        block = rest;
        match kind {
            PAYLOAD_FORMAT => properties.payload_is_utf8 = block.try_get_u8() == Ok(1),
            CONTENT_TYPE => properties.content_type = take_text(&mut block).ok().map(str::to_owned),
            RESPONSE_TOPIC => properties.response_topic = take_text(&mut block).ok().map(str::to_owned),
            CORRELATION_DATA => {
                properties.correlation_data = take_binary(&mut block).ok().map(Bytes::copy_from_slice);
            }
            USER_PROPERTY => {
                let (Ok(name), Ok(value)) = (take_text(&mut block), take_text(&mut block)) else {
                    break;
                };
                properties.push_user(name, value);
            }
            _ => break,
        }
    }
    properties
}

/// Adds a user property after those that are there. Texts too long for the wire are cut.
pub(crate) fn with_user(block: &[u8], name: &str, value: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(block.len() + 5 + name.len() + value.len());
    out.put_slice(block);
    out.put_u8(USER_PROPERTY);
    for text in [name, value] {
        let text = text
            .get(..text.floor_char_boundary(usize::from(u16::MAX)))
            .unwrap_or_default();
        out.put_u16(text.len() as u16);
        out.put_slice(text.as_bytes());
    }
    out.freeze()
}

/// Writes stored properties in the form in which they are sent on. Values too long for the wire are left out; they can't
/// have come from it.
pub(crate) fn encode(properties: &Properties) -> Bytes {
    fn put(out: &mut BytesMut, values: &[&[u8]], kind: u8) {
        if values.iter().any(|value| value.len() > usize::from(u16::MAX)) {
            return;
        }
        out.put_u8(kind);
        for value in values {
            out.put_u16(value.len() as u16);
            out.put_slice(value);
        }
    }
    let Properties {
        content_type,
        payload_is_utf8,
        expiry_seconds: _,
        response_topic,
        correlation_data,
        user,
    } = properties;
    let mut out = BytesMut::new();
    if *payload_is_utf8 {
        out.put_slice(&[PAYLOAD_FORMAT, 1]);
    }
    if let Some(text) = content_type {
        put(&mut out, &[text.as_bytes()], CONTENT_TYPE);
    }
    if let Some(text) = response_topic {
        put(&mut out, &[text.as_bytes()], RESPONSE_TOPIC);
    }
    if let Some(data) = correlation_data {
        put(&mut out, &[data], CORRELATION_DATA);
    }
    for (name, value) in user {
        put(&mut out, &[name.as_bytes(), value.as_bytes()], USER_PROPERTY);
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        let mut out = Vec::new();
        frame::put_variable_length(body.len(), &mut out);
        out.extend(body);
        out
    }

    const USER: &[u8] = b"\x26\x00\x01k\x00\x01v";
    const EXPIRY: &[u8] = &[MESSAGE_EXPIRY, 0, 0, 0, 60];
    const ALIAS: &[u8] = &[TOPIC_ALIAS, 0, 7];

    #[test]
    fn what_changes_from_hop_to_hop_is_taken_out() {
        for order in [
            [USER, EXPIRY, ALIAS],
            [ALIAS, USER, EXPIRY],
            [EXPIRY, ALIAS, USER],
        ] {
            let input = block(&order);
            let found = PublishProperties::take(&mut &input[..]).unwrap();
            assert_eq!(
                (found.expiry, found.alias, found.has_user),
                (Some(60), Some(7), true)
            );
            let mut out = BytesMut::new();
            found.put_forwarded(&mut out);
            assert_eq!((&out[..], found.forwarded_len()), (USER, USER.len()));
        }
    }

    #[test]
    fn stored_properties_return_to_the_same_bytes() {
        let input = block(&[
            b"\x01\x01",
            b"\x03\x00\x01t",
            b"\x08\x00\x01r",
            b"\x09\x00\x02\xff\x00",
            USER,
            USER,
        ]);
        let mut out = BytesMut::new();
        PublishProperties::take(&mut &input[..])
            .unwrap()
            .put_forwarded(&mut out);
        let stored = decode(&out, Some(3));
        assert_eq!(stored.expiry_seconds, Some(3));
        assert_eq!(stored.user.len(), 2);
        assert_eq!(encode(&stored), out.freeze());
    }

    #[test]
    fn faults_are_told_apart() {
        let reason = |parts: &[&[u8]]| {
            PublishProperties::take(&mut &block(parts)[..])
                .unwrap_err()
                .reason
        };
        assert_eq!(reason(&[EXPIRY, EXPIRY]), ReasonCode::ProtocolError);
        assert_eq!(reason(&[&[TOPIC_ALIAS, 0, 0]]), ReasonCode::TopicAliasInvalid);
        assert_eq!(
            reason(&[&[SUBSCRIPTION_IDENTIFIER, 1]]),
            ReasonCode::ProtocolError
        );
        assert_eq!(reason(&[b"\x08\x00\x01#"]), ReasonCode::ProtocolError);
        assert_eq!(reason(&[b"\x03\x00\x01\x00"]), ReasonCode::MalformedPacket);
        assert_eq!(reason(&[b"\x03\x00\x02\xc3"]), ReasonCode::MalformedPacket);
        assert_eq!(reason(&[&[0x77]]), ReasonCode::MalformedPacket);
        assert_eq!(reason(&[&[0xff, 0]]), ReasonCode::MalformedPacket);
        assert_eq!(
            PublishProperties::take(&mut &[5, 1][..]).unwrap_err().reason,
            ReasonCode::MalformedPacket
        );
    }
}
