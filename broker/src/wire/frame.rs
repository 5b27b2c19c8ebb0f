//! The fixed header: where one packet ends and the next begins (MQTT 5.0 section 2.1).
//!
//! Packets are cut out here and not in the codec, because the codec reserves a whole packet as soon as it has seen its
//! length: with a few bytes each, strangers could make the broker allocate the largest packet for every connection.

use super::{ReasonCode, WireError};

/// One packet as it stands in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// Type and flags.
    pub(crate) first: u8,
    /// What follows the fixed header.
    pub(crate) body: &'a [u8],
    /// The whole packet, fixed header included.
    pub(crate) packet: &'a [u8],
}

/// Cuts the first packet off the input; `None` when it is not complete yet.
///
/// # Errors
/// When the length is malformed, or larger than `max_packet` allows for the whole packet.
pub(crate) fn cut(input: &[u8], max_packet: u32) -> Result<Option<Frame<'_>>, WireError> {
    let Some((&first, rest)) = input.split_first() else {
        return Ok(None);
    };
    let Some((body_len, len_bytes)) = variable_length(rest)? else {
        return Ok(None);
    };
    let header = 1 + len_bytes;
    let total = header + body_len as usize;
    if total > max_packet as usize {
        return Err(WireError::new(
            ReasonCode::PacketTooLarge,
            "packet is larger than the maximum packet size",
        ));
    }
    Ok(input.get(..total).map(|packet| Frame {
        first,
        body: &packet[header..],
        packet,
    }))
}

/// Reads a variable byte integer (section 1.5.5) with the number of bytes it takes; `None` when it is cut short.
pub(crate) fn variable_length(input: &[u8]) -> Result<Option<(u32, usize)>, WireError> {
    let malformed = |detail| WireError::new(ReasonCode::MalformedPacket, detail);
    let mut value = 0u32;
    for (index, &byte) in input.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            // [MQTT-1.5.5-1]: as few bytes as possible.
            if byte == 0 && index > 0 {
                return Err(malformed("variable byte integer is longer than needed"));
            }
            return Ok(Some((value, index + 1)));
        }
    }
    if input.len() >= 4 {
        Err(malformed("variable byte integer is longer than four bytes"))
    } else {
        Ok(None)
    }
}

/// Bytes that a variable byte integer takes.
pub(crate) fn variable_length_size(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

/// Writes a variable byte integer of at most 268,435,455.
pub(crate) fn put_variable_length(mut value: usize, out: &mut impl bytes::BufMut) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.put_u8(low);
            return;
        }
        out.put_u8(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_one_packet_after_the_other() {
        let input = [0xc0, 0, 0x30, 3, 0, 1, b'a', 0x40];
        let ping = cut(&input, 100).unwrap().unwrap();
        assert_eq!((ping.first, ping.body.len(), ping.packet.len()), (0xc0, 0, 2));
        let publish = cut(&input[2..], 100).unwrap().unwrap();
        assert_eq!((publish.first, publish.body), (0x30, &[0, 1, b'a'][..]));
        assert_eq!(cut(&input[7..], 100), Ok(None));
        assert_eq!(cut(&[], 100), Ok(None));
    }

    #[test]
    fn the_maximum_counts_the_whole_packet() {
        assert!(cut(&[0x30, 3, 0, 1, b'a'], 5).unwrap().is_some());
        assert_eq!(cut(&[0x30, 3], 4).unwrap_err().reason, ReasonCode::PacketTooLarge);
    }

    #[test]
    fn lengths_have_one_form_only() {
        assert_eq!(variable_length(&[0x80, 0x01]), Ok(Some((128, 2))));
        assert_eq!(
            variable_length(&[0xff, 0xff, 0xff, 0x7f]),
            Ok(Some((268_435_455, 4)))
        );
        assert_eq!(variable_length(&[0x80]), Ok(None));
        assert!(variable_length(&[0x80, 0x00]).is_err());
        assert!(variable_length(&[0xff, 0xff, 0xff, 0xff]).is_err());
    }

    #[test]
    fn written_lengths_are_read_back() {
        for value in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455] {
            let mut out = Vec::new();
            put_variable_length(value, &mut out);
            assert_eq!(out.len(), variable_length_size(value));
            assert_eq!(variable_length(&out), Ok(Some((value as u32, out.len()))));
        }
    }
}
