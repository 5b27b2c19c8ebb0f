//! Frames from the client (RFC 6455 section 5), taken apart where they were read to.

use std::io::Cursor;

use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

/// Longest header: two bytes, eight of length, four of mask.
const MAX_HEADER: usize = 14;

/// Longest payload of a control frame (section 5.5).
const MAX_CONTROL: u64 = 125;

/// Takes frames apart. What it holds of a frame is its header or, of a control frame, at most 125 bytes.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// A header that is not complete.
    header: Vec<u8>,
    /// The frame whose payload is being read.
    frame: Option<Frame>,
    /// Whether a message has begun and its last frame has not.
    in_message: bool,
    /// Payload of a control frame.
    control: Vec<u8>,
}

/// A frame whose payload is being read.
#[derive(Debug)]
struct Frame {
    kind: Kind,
    /// Bytes of payload that are still to come.
    left: u64,
    /// The mask, turned so that it begins with the next byte.
    mask: [u8; 4],
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Binary,
    Close,
    Ping,
    Pong,
}

/// What a piece of input holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Bytes of MQTT, which stand at the beginning of the input now.
    pub(super) length: usize,
    /// Payload of the last ping.
    pub(super) ping: Option<Vec<u8>>,
    /// How the stream ends after those bytes.
    pub(super) end: Option<End>,
}

/// How a stream of frames ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client closes it, perhaps with a code.
    Closed(Option<CloseCode>),
    /// The client does what it must not.
    Violation {
        /// What it is told.
        code: CloseCode,
        /// What it did.
        detail: &'static str,
    },
}

const fn violation(detail: &'static str) -> End {
    let code = CloseCode::Protocol;
    End::Violation { code, detail }
}

impl Decoder {
    /// Takes the frames of some input apart, and moves the bytes of MQTT to its beginning. After an end, the rest of the
    /// input is forgotten, and no more is to be decoded.
    pub(super) fn decode(&mut self, input: &mut [u8]) -> Decoded {
        let mut decoded = Decoded::default();
        let mut next = 0;
        while next < input.len() {
            let Some(frame) = &mut self.frame else {
                match self.begin(&input[next..]) {
                    Ok(taken) => next += taken,
                    Err(end) => decoded.end = Some(end),
                }
                self.finish(&mut decoded);
                if decoded.end.is_some() {
                    break;
                }
                continue;
            };
            let rest = input.len() - next;
            let part = usize::try_from(frame.left).map_or(rest, |left| left.min(rest));
            let range = next..next + part;
            unmask(&mut input[range.clone()], &mut frame.mask);
            match frame.kind {
                Kind::Binary => {
                    input.copy_within(range, decoded.length);
                    decoded.length += part;
                }
                Kind::Close | Kind::Ping | Kind::Pong => self.control.extend_from_slice(&input[range]),
            }
            frame.left -= part as u64;
            next += part;
            self.finish(&mut decoded);
            if decoded.end.is_some() {
                break;
            }
        }
        decoded
    }

    /// Reads a header, and returns how many bytes of the input it took.
    fn begin(&mut self, input: &[u8]) -> Result<usize, End> {
        let known = self.header.len();
        let taken = input.len().min(MAX_HEADER - known);
        self.header.extend_from_slice(&input[..taken]);
        let mut cursor = Cursor::new(&self.header);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| violation("frame of a reserved kind"))?;
        let Some((header, length)) = parsed else {
            return Ok(taken);
        };
        // At most `MAX_HEADER`, which fits.
        let header_length = cursor.position() as usize;
        self.header.clear();
        let kind = self.judge(&header, length)?;
        let mask = header.mask.ok_or(violation("frame without a mask"))?;
        self.frame = Some(Frame {
            kind,
            left: length,
            mask,
        });
        Ok(header_length - known)
    }

    /// What a frame is, if it may stand here.
    fn judge(&mut self, header: &FrameHeader, length: u64) -> Result<Kind, End> {
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(violation("frame of an extension that was not agreed on"));
        }
        if length >> 63 != 0 {
            return Err(violation("length with its highest bit set"));
        }
        match header.opcode {
            OpCode::Data(data) => {
                let kind = match (data, self.in_message) {
                    (Data::Binary, false) | (Data::Continue, true) => Kind::Binary,
                    (Data::Binary, true) => return Err(violation("new message within a message")),
                    (Data::Continue, false) => return Err(violation("continuation of no message")),
                    // [MQTT-6.0.0-1]
                    (Data::Text | Data::Reserved(_), _) => {
                        return Err(End::Violation {
                            code: CloseCode::Unsupported,
                            detail: "text frame, MQTT comes in binary frames only",
                        });
                    }
                };
                self.in_message = !header.is_final;
                Ok(kind)
            }
            OpCode::Control(_) if !header.is_final => Err(violation("control frame in parts")),
            OpCode::Control(_) if length > MAX_CONTROL => {
                Err(violation("control frame of more than 125 bytes"))
            }
            OpCode::Control(Control::Close) => Ok(Kind::Close),
            OpCode::Control(Control::Ping) => Ok(Kind::Ping),
            OpCode::Control(Control::Pong) => Ok(Kind::Pong),
            OpCode::Control(Control::Reserved(_)) => Err(violation("frame of a reserved kind")),
        }
    }

    /// Does what follows from a frame that is complete.
    fn finish(&mut self, decoded: &mut Decoded) {
        let Some(Frame { kind, .. }) = self.frame.take_if(|frame| frame.left == 0) else {
            return;
        };
        match kind {
            Kind::Binary => {}
            Kind::Pong => self.control.clear(),
            Kind::Ping => decoded.ping = Some(std::mem::take(&mut self.control)),
            Kind::Close => decoded.end = Some(closed(&self.control)),
        }
    }
}

/// What a close frame says (section 5.5.1).
fn closed(payload: &[u8]) -> End {
    match payload {
        [] => End::Closed(None),
        [high, low, reason @ ..] => {
            let code = CloseCode::from(u16::from_be_bytes([*high, *low]));
            if code.is_allowed() && std::str::from_utf8(reason).is_ok() {
                End::Closed(Some(code))
            } else {
                violation("close frame with a code or reason that is not allowed")
            }
        }
        [_] => violation("close frame of one byte"),
    }
}

/// Takes the mask off (section 5.3), and turns it for the bytes that follow.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let (words, rest) = bytes.as_chunks_mut::<4>();
    for word in words {
        for (byte, mask) in word.iter_mut().zip(&*mask) {
            *byte ^= mask;
        }
    }
    for (byte, mask) in rest.iter_mut().zip(&*mask) {
        *byte ^= mask;
    }
    let turn = rest.len();
    mask.rotate_left(turn);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

    /// A frame as a client sends it; `first` is its first byte.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            short @ 0..=125 => bytes.push(0x80 | short as u8),
            long @ 126..=0xffff => {
                bytes.push(0x80 | 126);
                bytes.extend((long as u16).to_be_bytes());
            }
            longer => {
                bytes.push(0x80 | 127);
                bytes.extend((longer as u64).to_be_bytes());
            }
        }
        bytes.extend(MASK);
        bytes.extend(
            payload
                .iter()
                .zip(MASK.iter().cycle())
                .map(|(byte, mask)| byte ^ mask),
        );
        bytes
    }

    /// Decodes input that arrives in parts of some length.
    fn decode(input: &[u8], part: usize) -> (Vec<u8>, Vec<Vec<u8>>, Option<End>) {
        let mut decoder = Decoder::default();
        let (mut bytes, mut pings) = (Vec::new(), Vec::new());
        for part in input.chunks(part) {
            let mut part = part.to_vec();
            let decoded = decoder.decode(&mut part);
            bytes.extend_from_slice(&part[..decoded.length]);
            pings.extend(decoded.ping);
            if decoded.end.is_some() {
                return (bytes, pings, decoded.end);
            }
        }
        (bytes, pings, None)
    }

    fn end_of(input: &[u8]) -> End {
        decode(input, input.len()).2.expect("an end")
    }

    fn code_of(input: &[u8]) -> CloseCode {
        match end_of(input) {
            End::Violation { code, .. } => code,
            End::Closed(code) => panic!("a violation expected, found {code:?}"),
        }
    }

    #[test]
    fn messages_are_read_however_they_are_cut() {
        let long = vec![7; 70_000];
        let input = [
            frame(0x02, b"one"),
            frame(0x89, b"are you there"),
            frame(0x00, &[b'x'; 300]),
            frame(0x80, b""),
            frame(0x8a, b"unasked"),
            frame(0x82, &long),
            frame(0x89, b""),
            frame(0x88, &[0x03, 0xe9, b'b', b'y', b'e']),
            frame(0x82, b"after the end"),
        ]
        .concat();
        let expected = [&b"one"[..], &[b'x'; 300], &long].concat();
        for part in [1, 2, 3, 13, 14, 1000, input.len()] {
            let (bytes, pings, end) = decode(&input, part);
            assert!(bytes == expected, "in parts of {part}");
            assert_eq!(pings.last().unwrap(), b"", "in parts of {part}");
            assert_eq!(
                end,
                Some(End::Closed(Some(CloseCode::Away))),
                "in parts of {part}"
            );
        }
        assert_eq!(decode(&input, 1).1, [&b"are you there"[..], b""]);
    }

    #[test]
    fn what_came_before_a_violation_counts() {
        let input = [frame(0x82, b"good"), frame(0x81, b"bad"), frame(0x82, b"late")].concat();
        let (bytes, _, end) = decode(&input, input.len());
        assert_eq!(bytes, b"good");
        assert!(matches!(
            end,
            Some(End::Violation {
                code: CloseCode::Unsupported,
                ..
            })
        ));
    }

    #[test]
    fn what_the_protocol_forbids_ends_the_stream() {
        let protocol = CloseCode::Protocol;
        assert_eq!(code_of(&frame(0x81, b"text")), CloseCode::Unsupported);
        assert_eq!(code_of(&frame(0x01, b"part of a text")), CloseCode::Unsupported);
        assert_eq!(code_of(&[0x82, 0x01, b'a', 0, 0, 0]), protocol, "no mask");
        assert_eq!(code_of(&frame(0xc2, b"compressed")), protocol);
        assert_eq!(code_of(&frame(0x83, b"")), protocol, "reserved data");
        assert_eq!(code_of(&frame(0x8b, b"")), protocol, "reserved control");
        assert_eq!(code_of(&frame(0x80, b"")), protocol, "continuation of nothing");
        let twice = [frame(0x02, b"a"), frame(0x82, b"b")].concat();
        assert_eq!(code_of(&twice), protocol);
        assert_eq!(code_of(&frame(0x09, b"")), protocol, "ping in parts");
        assert_eq!(code_of(&frame(0x89, &[0; 126])), protocol, "long ping");
        assert_eq!(code_of(&frame(0x88, &[0x03])), protocol, "half a code");
        assert_eq!(
            code_of(&frame(0x88, &[0x03, 0xed])),
            protocol,
            "1005 is never sent"
        );
        assert_eq!(code_of(&frame(0x88, &[0x03, 0xe8, 0xff])), protocol, "no UTF-8");
        let endless = [&[0x82, 0xff][..], &[0xff; 8], &MASK].concat();
        assert_eq!(code_of(&endless), protocol);
        assert_eq!(end_of(&frame(0x88, b"")), End::Closed(None));
    }

    #[test]
    fn a_length_that_is_claimed_costs_nothing() {
        let claimed = [&[0x82, 0xff, 0x7f][..], &[0xff; 7], &MASK].concat();
        let mut decoder = Decoder::default();
        let mut input = claimed;
        assert_eq!(decoder.decode(&mut input), Decoded::default());
        assert_eq!(decoder.decode(&mut [0; 1000]).length, 1000);
        assert!(decoder.header.capacity() <= 16 && decoder.control.capacity() == 0);
    }

    proptest! {
        #[test]
        fn no_input_is_too_strange(input in proptest::collection::vec(any::<u8>(), 0..400), part in 1..50_usize) {
            let (bytes, _, _) = decode(&input, part);
            prop_assert!(bytes.len() <= input.len());
        }
    }
}
