//! Packets that a client could send, in order or with a fault.

use bytes::BufMut;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use crate::wire::{Version, frame::put_variable_length};

/// A packet.
#[derive(Debug)]
pub(super) struct Made {
    /// What it was before it got a fault.
    pub(super) kind: &'static str,
    /// The version of its connection.
    pub(super) version: Version,
    /// The whole packet; its length is right.
    pub(super) bytes: Vec<u8>,
}

const TEXTS: [&str; 12] = [
    "",
    "a",
    "a/b",
    "/",
    "$SYS/x",
    "\u{feff}b",
    "ü€😀",
    "a b",
    "0123456789abcdefghijklmnopqrstuvwxyz",
    "t/1",
    "+",
    "a#",
];
const FILTERS: [&str; 13] = [
    "a",
    "a/b",
    "#",
    "+",
    "a/+/b",
    "a/#",
    "+/+",
    "$share/g/a/#",
    "$share/g",
    "$share//a",
    "a+",
    "#/a",
    "$share/+/a",
];

/// Property identifiers of a packet that may hold them: CONNECT, will, PUBLISH, acknowledgements, SUBSCRIBE, UNSUBSCRIBE,
/// DISCONNECT, AUTH.
const OF_CONNECT: &[u8] = &[0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27];
const OF_WILL: &[u8] = &[0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26];
const OF_PUBLISH: &[u8] = &[0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26];
const OF_ACK: &[u8] = &[0x1f, 0x26];
const OF_SUBSCRIBE: &[u8] = &[0x0b, 0x26];
const OF_UNSUBSCRIBE: &[u8] = &[0x26];
const OF_DISCONNECT: &[u8] = &[0x11, 0x1f, 0x26];
const OF_AUTH: &[u8] = &[0x15, 0x15, 0x16, 0x1f, 0x26];

/// A packet of any kind and version; every second has a fault, or what looks like one.
pub(super) fn packet(random: &mut StdRng) -> Made {
    let version = *[Version::V5, Version::V5, Version::V311, Version::V31]
        .choose(random)
        .unwrap();
    let mut body = Vec::new();
    let (kind, mut first) = match random.random_range(0..10) {
        0 | 1 => ("connect", connect(random, version, &mut body)),
        2 | 3 => ("publish", publish(random, version, &mut body)),
        4 => ("ack", ack(random, version, &mut body)),
        5 => ("subscribe", subscribe(random, version, &mut body)),
        6 => ("unsubscribe", unsubscribe(random, version, &mut body)),
        7 => ("disconnect", disconnect(random, version, &mut body)),
        8 if version.is_v5() => ("auth", auth(random, &mut body)),
        _ => ("ping", 0xc0),
    };
    if random.random() {
        for _ in 0..random.random_range(1..4) {
            disturb(random, &mut first, &mut body);
        }
    }
    let mut bytes = vec![first];
    put_variable_length(body.len(), &mut bytes);
    bytes.append(&mut body);
    Made { kind, version, bytes }
}

fn disturb(random: &mut StdRng, first: &mut u8, body: &mut Vec<u8>) {
    let at = random.random_range(0..=body.len());
    let byte = *[0, 1, 2, 3, 0x0b, 0x26, 0x7f, 0x80, 0xff, random.random()]
        .choose(random)
        .unwrap();
    match random.random_range(0..12) {
        0..5 => {
            if let Some(place) = body.get_mut(at) {
                *place = byte;
            }
        }
        5..7 => body.insert(at, byte),
        7..9 => {
            if at < body.len() {
                body.remove(at);
            }
        }
        9 => body.truncate(at),
        // Kind and flags; CONNECT stays one, because it is read by its own rules.
        10 if *first != 0x10 => *first = random.random_range(0x30..=0xff),
        _ => body.push(byte),
    }
}

fn text(random: &mut StdRng, out: &mut Vec<u8>) {
    let text = TEXTS.choose(random).unwrap();
    // One in fifty is no text: not UTF-8, a surrogate, U+0000.
    let odd: [&[u8]; 3] = [b"\xc3\x28", b"\xed\xa0\x80", b"a\0"];
    let bytes = if random.random_ratio(1, 50) {
        odd.choose(random).unwrap()
    } else {
        text.as_bytes()
    };
    binary(bytes, out);
}

fn binary(bytes: &[u8], out: &mut Vec<u8>) {
    out.put_u16(bytes.len() as u16);
    out.put_slice(bytes);
}

fn payload(random: &mut StdRng) -> Vec<u8> {
    let size = random.random_range(0..20);
    (0..size).map(|_| random.random_range(b' '..b'~')).collect()
}

fn number(random: &mut StdRng) -> u32 {
    *[0, 1, 2, 60, 0xffff, 0x1_0000, u32::MAX, random.random()]
        .choose(random)
        .unwrap()
}

/// Up to four properties, mostly of those that the packet may hold.
fn properties(random: &mut StdRng, usual: &[u8], out: &mut Vec<u8>) {
    let mut block = Vec::new();
    for _ in 0..[0, 0, 1, 1, 2, 4].choose(random).copied().unwrap_or_default() {
        let identifier = if random.random_ratio(1, 40) {
            random.random_range(0..0x2c)
        } else {
            *usual.choose(random).unwrap()
        };
        block.push(identifier);
        match identifier {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2a => {
                let end = if random.random_ratio(1, 20) { 4 } else { 2 };
                block.push(random.random_range(0..end));
            }
            0x13 | 0x21 | 0x22 | 0x23 => block.put_u16(number(random) as u16),
            0x02 | 0x11 | 0x18 | 0x27 => block.put_u32(number(random)),
            0x0b => put_variable_length((number(random) & 0x0fff_ffff) as usize, &mut block),
            0x09 | 0x16 => binary(&payload(random), &mut block),
            0x26 => {
                text(random, &mut block);
                text(random, &mut block);
            }
            _ => text(random, &mut block),
        }
    }
    put_variable_length(block.len(), out);
    out.append(&mut block);
}

fn packet_id(random: &mut StdRng, out: &mut Vec<u8>) {
    out.put_u16(if random.random_ratio(1, 50) {
        0
    } else {
        random.random_range(1..=u16::MAX)
    });
}

fn connect(random: &mut StdRng, version: Version, out: &mut Vec<u8>) -> u8 {
    let (name, level): (&[u8], _) = match version {
        Version::V31 => (b"MQIsdp", 3),
        Version::V311 => (b"MQTT", 4),
        Version::V5 => (b"MQTT", 5),
    };
    binary(name, out);
    let mut flags: u8 = random.random::<u8>() & 0b1100_0110;
    if flags & 0x04 != 0 {
        flags |= random.random_range(0..3) << 3 | (random.random::<u8>() & 0x20);
    }
    out.put_slice(&[level, flags]);
    out.put_u16(random.random());
    if version.is_v5() {
        properties(random, OF_CONNECT, out);
    }
    text(random, out);
    if flags & 0x04 != 0 {
        if version.is_v5() {
            properties(random, OF_WILL, out);
        }
        text(random, out);
        binary(&payload(random), out);
    }
    if flags & 0x80 != 0 {
        text(random, out);
    }
    if flags & 0x40 != 0 {
        binary(&payload(random), out);
    }
    0x10
}

fn publish(random: &mut StdRng, version: Version, out: &mut Vec<u8>) -> u8 {
    let qos: u8 = random.random_range(0..3);
    let dup = if qos > 0 || random.random_ratio(1, 50) {
        random.random::<u8>() & 8
    } else {
        0
    };
    text(random, out);
    if qos > 0 {
        packet_id(random, out);
    }
    if version.is_v5() {
        properties(random, OF_PUBLISH, out);
    }
    out.append(&mut payload(random));
    0x30 | dup | qos << 1 | (random.random::<u8>() & 1)
}

fn ack(random: &mut StdRng, version: Version, out: &mut Vec<u8>) -> u8 {
    packet_id(random, out);
    if version.is_v5() && random.random() {
        let reason = [
            0x00,
            0x10,
            0x80,
            0x83,
            0x87,
            0x90,
            0x91,
            0x92,
            0x97,
            0x99,
            random.random(),
        ];
        out.push(*reason.choose(random).unwrap());
        if random.random() {
            properties(random, OF_ACK, out);
        }
    }
    *[0x40, 0x50, 0x62, 0x70].choose(random).unwrap()
}

fn subscribe(random: &mut StdRng, version: Version, out: &mut Vec<u8>) -> u8 {
    packet_id(random, out);
    if version.is_v5() {
        properties(random, OF_SUBSCRIBE, out);
    }
    for _ in 0..random.random_range(0..4) {
        binary(FILTERS.choose(random).unwrap().as_bytes(), out);
        let options = random.random_range(0..3);
        out.push(match version {
            Version::V5 => options | random.random_range(0..3) << 4 | (random.random::<u8>() & 0x0c),
            _ => options,
        });
    }
    0x82
}

fn unsubscribe(random: &mut StdRng, version: Version, out: &mut Vec<u8>) -> u8 {
    packet_id(random, out);
    if version.is_v5() {
        properties(random, OF_UNSUBSCRIBE, out);
    }
    for _ in 0..random.random_range(0..4) {
        binary(FILTERS.choose(random).unwrap().as_bytes(), out);
    }
    0xa2
}

fn disconnect(random: &mut StdRng, version: Version, out: &mut Vec<u8>) -> u8 {
    if version.is_v5() && random.random() {
        let reason = [
            0x00,
            0x04,
            0x80,
            0x81,
            0x82,
            0x83,
            0x90,
            0x93,
            0x94,
            0x95,
            0x96,
            0x97,
            0x98,
            0x99,
            random.random(),
        ];
        out.push(*reason.choose(random).unwrap());
        if random.random() {
            properties(random, OF_DISCONNECT, out);
        }
    }
    0xe0
}

fn auth(random: &mut StdRng, out: &mut Vec<u8>) -> u8 {
    if random.random_ratio(9, 10) {
        out.push(*[0x18, 0x19, 0x00, random.random()].choose(random).unwrap());
        properties(random, OF_AUTH, out);
    }
    0xf0
}
