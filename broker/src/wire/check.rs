//! What the codec does not check of the packets that it decodes.
//!
//! It lets U+0000 pass, and lengths in more bytes than they need, and bytes behind the last field; and it calls
//! malformed what is a protocol error (MQTT 5.0 sections 1.5, 2.2.2 and 4.13.1). So these packets are gone through
//! once before it reads them.

use super::{
    ReasonCode, Version, WireError,
    connect::{PASSWORD, USERNAME, WILL},
    frame::{self, Frame},
    properties::{MESSAGE_EXPIRY, USER_PROPERTY, take_binary, take_text},
};

/// Where properties stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Connect,
    Will,
    Acknowledgement,
    Subscribe,
    Unsubscribe,
    Disconnect,
    Auth,
}

/// Form of a property's value.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// One byte, 0 or 1.
    Flag,
    /// So many bytes of a number.
    Number(usize),
    /// So many bytes of a number that is not 0.
    Positive(usize),
    /// A variable byte integer that is not 0.
    PositiveLength,
    Text,
    /// A topic name.
    Topic,
    Binary,
}

fn malformed(detail: &'static str) -> WireError {
    WireError::new(ReasonCode::MalformedPacket, detail)
}

fn protocol_error(detail: &'static str) -> WireError {
    WireError::new(ReasonCode::ProtocolError, detail)
}

/// Table 2-4 of section 2.2.2.2 without PUBLISH, and user properties, which all packets may hold.
fn property(identifier: u8) -> Option<(Form, &'static [Place])> {
    use Place::{Acknowledgement, Auth, Connect, Disconnect, Subscribe, Will};
    Some(match identifier {
        0x01 => (Form::Flag, &[Will]),
        0x02 | 0x18 => (Form::Number(4), &[Will]),
        0x03 => (Form::Text, &[Will]),
        0x08 => (Form::Topic, &[Will]),
        0x09 => (Form::Binary, &[Will]),
        0x0b => (Form::PositiveLength, &[Subscribe]),
        0x11 => (Form::Number(4), &[Connect, Disconnect]),
        0x15 => (Form::Text, &[Connect, Auth]),
        0x16 => (Form::Binary, &[Connect, Auth]),
        0x17 | 0x19 => (Form::Flag, &[Connect]),
        0x1c => (Form::Text, &[Disconnect]),
        0x1f => (Form::Text, &[Acknowledgement, Disconnect, Auth]),
        0x21 => (Form::Positive(2), &[Connect]),
        0x22 => (Form::Number(2), &[Connect]),
        0x27 => (Form::Positive(4), &[Connect]),
        _ => return None,
    })
}

/// Checks a CONNECT; its flags stand at `flags_at` in the body. Tells where in the body the value of the
/// will's message expiry interval stands, if it has one.
pub(super) fn connect(
    body: &[u8],
    version: Version,
    flags: u8,
    flags_at: usize,
) -> Result<Option<usize>, WireError> {
    // Behind the flags stand two bytes of the keep alive.
    let mut rest = body
        .get(flags_at + 3..)
        .ok_or_else(|| malformed("CONNECT ends before its keep alive"))?;
    if version.is_v5() {
        take_properties(&mut rest, Place::Connect)?;
    }
    take_text(&mut rest)?;
    let mut expiry_at = None;
    if flags & WILL != 0 {
        if version.is_v5() {
            let block = take_properties(&mut rest, Place::Will)?;
            let start = body.len() - rest.len() - block.len();
            expiry_at = place_of(block, MESSAGE_EXPIRY)?.map(|at| start + at);
        }
        take_text(&mut rest)?;
        take_binary(&mut rest)?;
    }
    if flags & USERNAME != 0 {
        take_text(&mut rest)?;
    }
    if flags & PASSWORD != 0 {
        take_binary(&mut rest)?;
    }
    at_end(rest)?;
    Ok(expiry_at)
}

/// Checks a packet that follows CONNECT and is not PUBLISH.
pub(super) fn packet(frame: &Frame<'_>, version: Version) -> Result<(), WireError> {
    let mut rest = frame.body;
    match frame.first {
        0x40..0x80 if version.is_v5() => {
            take(&mut rest, 3)?;
            take_properties(&mut rest, Place::Acknowledgement)?;
            at_end(rest)
        }
        0x82 => subscribe(rest, version),
        0xa2 => unsubscribe(rest, version),
        0xe0 | 0xf0 if version.is_v5() && rest.len() > 1 => {
            let place = if frame.first == 0xe0 {
                Place::Disconnect
            } else {
                Place::Auth
            };
            take(&mut rest, 1)?;
            take_properties(&mut rest, place)?;
            at_end(rest)
        }
        _ => Ok(()),
    }
}

fn subscribe(mut rest: &[u8], version: Version) -> Result<(), WireError> {
    take(&mut rest, 2)?;
    if version.is_v5() {
        take_properties(&mut rest, Place::Subscribe)?;
    }
    while !rest.is_empty() {
        take_text(&mut rest)?;
        let options = take(&mut rest, 1)?[0];
        // Version 3.1.1 knows the quality of service only ([MQTT-3.8.3-4] there).
        let reserved = if version.is_v5() { 0xc0 } else { 0xfc };
        if options & reserved != 0 {
            return Err(malformed("reserved bits of the subscription options are set"));
        }
        if options & 0x03 == 0x03 {
            return Err(protocol_error("requested quality of service is 3"));
        }
        if options & 0x30 == 0x30 {
            return Err(protocol_error("retain handling is 3"));
        }
    }
    Ok(())
}

fn unsubscribe(mut rest: &[u8], version: Version) -> Result<(), WireError> {
    take(&mut rest, 2)?;
    if version.is_v5() {
        take_properties(&mut rest, Place::Unsubscribe)?;
    }
    while !rest.is_empty() {
        take_text(&mut rest)?;
    }
    Ok(())
}

fn take<'a>(input: &mut &'a [u8], count: usize) -> Result<&'a [u8], WireError> {
    let (value, rest) = input
        .split_at_checked(count)
        .ok_or_else(|| malformed("packet ends inside of a value"))?;
    *input = rest;
    Ok(value)
}

fn at_end(rest: &[u8]) -> Result<(), WireError> {
    if rest.is_empty() {
        Ok(())
    } else {
        Err(malformed("packet goes on behind its last field"))
    }
}

/// Cuts a variable byte integer off.
fn take_length(input: &mut &[u8]) -> Result<u32, WireError> {
    let (length, size) =
        frame::variable_length(input)?.ok_or_else(|| malformed("packet ends inside of a length"))?;
    take(input, size)?;
    Ok(length)
}

/// Cuts properties off, without their length.
fn take_properties<'a>(input: &mut &'a [u8], place: Place) -> Result<&'a [u8], WireError> {
    let length = take_length(input)?;
    let whole = take(input, length as usize)?;
    let mut block = whole;
    let mut seen = 0u64;
    while !block.is_empty() {
        let identifier = take(&mut block, 1)?[0];
        if identifier == USER_PROPERTY {
            take_text(&mut block)?;
            take_text(&mut block)?;
            continue;
        }
        let (form, places) = property(identifier).ok_or_else(|| malformed("property is not known"))?;
        if !places.contains(&place) {
            return Err(malformed("property does not belong to this packet"));
        }
        // All identifiers of the table are below 64.
        if seen & (1 << identifier) != 0 {
            return Err(protocol_error("property is given twice"));
        }
        seen |= 1 << identifier;
        take_value(&mut block, form)?;
    }
    Ok(whole)
}

/// Where in properties that were checked the value of one of them stands.
fn place_of(whole: &[u8], wanted: u8) -> Result<Option<usize>, WireError> {
    let mut block = whole;
    while !block.is_empty() {
        let identifier = take(&mut block, 1)?[0];
        if identifier == wanted {
            return Ok(Some(whole.len() - block.len()));
        }
        match property(identifier) {
            Some((form, _)) => take_value(&mut block, form)?,
            None => {
                take_text(&mut block)?;
                take_text(&mut block)?;
            }
        }
    }
    Ok(None)
}

fn take_value(block: &mut &[u8], form: Form) -> Result<(), WireError> {
    let wrong = match form {
        Form::Flag => (take(block, 1)?[0] > 1).then_some("property is neither 0 nor 1"),
        Form::Number(size) => take(block, size).map(|_| None)?,
        Form::Positive(size) => {
            let is_zero = take(block, size)?.iter().all(|byte| *byte == 0);
            is_zero.then_some("property is 0")
        }
        Form::PositiveLength => (take_length(block)? == 0).then_some("property is 0"),
        Form::Text => take_text(block).map(|_| None)?,
        // [MQTT-3.3.2-14]: the will becomes a PUBLISH.
        Form::Topic => take_text(block)?
            .contains(['+', '#'])
            .then_some("response topic holds a wildcard"),
        Form::Binary => take_binary(block).map(|_| None)?,
    };
    wrong.map_or(Ok(()), |detail| Err(protocol_error(detail)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::cut;

    #[test]
    fn every_property_is_below_the_width_of_the_mask_and_has_one_place_at_least() {
        for identifier in 0..=u8::MAX {
            if let Some((_, places)) = property(identifier) {
                assert!(identifier < 64 && !places.is_empty(), "{identifier}");
            }
        }
    }

    #[test]
    fn malformed_packets_and_protocol_errors_are_told_apart() {
        for (bytes, expected) in [
            (&b"\x82\x06\0\x01\0\0\0\0"[..], None),
            (b"\x82\x07\0\x01\0\0\x01a\0", None),
            (b"\x82\x07\0\x01\0\0\x01\0\0", Some(ReasonCode::MalformedPacket)),
            (b"\x82\x07\0\x01\0\0\x01a\x40", Some(ReasonCode::MalformedPacket)),
            (b"\x82\x07\0\x01\0\0\x01a\x03", Some(ReasonCode::ProtocolError)),
            (b"\x82\x07\0\x01\0\0\x01a\x30", Some(ReasonCode::ProtocolError)),
            (
                b"\x82\x09\0\x01\x02\x0b\0\0\x01a\0",
                Some(ReasonCode::ProtocolError),
            ),
            (
                b"\x82\x08\0\x01\x80\0\0\x01a\0",
                Some(ReasonCode::MalformedPacket),
            ),
            (b"\x40\x08\0\x01\0\x04\x1f\0\x01a", None),
            (
                b"\x40\x09\0\x01\0\x04\x1f\0\x01ab",
                Some(ReasonCode::MalformedPacket),
            ),
            (b"\xe0\x07\0\x05\x11\0\0\0\x01", None),
            (b"\xe0\x04\0\x02\x01\0", Some(ReasonCode::MalformedPacket)),
        ] {
            let frame = cut(bytes, 100).unwrap().unwrap();
            let found = packet(&frame, Version::V5).err().map(|error| error.reason);
            assert_eq!(found, expected, "{bytes:02x?}");
        }
    }
}
