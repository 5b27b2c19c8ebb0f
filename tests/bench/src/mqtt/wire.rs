//! As much of MQTT 5 as a load generator needs: packets are written by hand and read by their headers only, so that the
//! generator costs less than any broker that it measures, and shares no code with ours.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Type of a packet: the upper half of its first byte.
pub(crate) const CONNACK: u8 = 2;
pub(crate) const PUBLISH: u8 = 3;
pub(crate) const PUBACK: u8 = 4;
pub(crate) const SUBACK: u8 = 9;
const DISCONNECT: u8 = 14;

/// First reason code that is an error.
const ERROR: u8 = 0x80;

/// Room for what is read at once.
const READ: usize = 64 << 10;

/// Nanoseconds since 1970. Publisher and subscriber are processes of one machine, so that they share it.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut rest = body.len();
    loop {
        let byte = (rest % 128) as u8;
        rest /= 128;
        if rest == 0 {
            packet.push(byte);
            break;
        }
        packet.push(byte | 0x80);
    }
    packet.extend(body);
    packet
}

fn string(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn connect(client: &str, persistent: bool, receive_maximum: u16) -> Vec<u8> {
    let mut body = string("MQTT");
    // Version 5, clean start, a keep-alive of a minute; a persistent session is one that lives for an hour.
    body.extend([5, 2, 0, 60]);
    let mut properties = vec![0x21];
    properties.extend(receive_maximum.to_be_bytes());
    if persistent {
        properties.push(0x11);
        properties.extend(3_600_u32.to_be_bytes());
    }
    body.push(properties.len() as u8);
    body.extend(properties);
    body.extend(string(client));
    packet(0x10, &body)
}

fn subscribe(filter: &str, qos: u8) -> Vec<u8> {
    let mut body = vec![0, 1, 0];
    body.extend(string(filter));
    body.push(qos);
    packet(0x82, &body)
}

/// A PUBLISH packet to send again and again, with the places of what differs from one to the next.
pub(crate) struct Publish {
    bytes: Vec<u8>,
    id_at: Option<usize>,
    time_at: usize,
}

impl Publish {
    /// A message whose payload begins with the time at which it is sent.
    pub(crate) fn new(topic: &str, qos: u8, payload: usize) -> Self {
        let payload = payload.max(8);
        let mut body = string(topic);
        if qos > 0 {
            body.extend([0, 0]);
        }
        body.push(0);
        body.resize(body.len() + payload, b'.');
        let bytes = packet(0x30 | qos << 1, &body);
        let time_at = bytes.len() - payload;
        let id_at = (qos > 0).then(|| time_at - 3);
        Self {
            bytes,
            id_at,
            time_at,
        }
    }

    /// Appends the packet.
    pub(crate) fn write(&self, out: &mut Vec<u8>, id: u16, time: u64) {
        let begin = out.len();
        out.extend_from_slice(&self.bytes);
        if let Some(at) = self.id_at {
            out[begin + at..begin + at + 2].copy_from_slice(&id.to_be_bytes());
        }
        out[begin + self.time_at..begin + self.time_at + 8].copy_from_slice(&time.to_be_bytes());
    }
}

/// A packet that arrived.
pub(crate) struct Packet<'a> {
    first: u8,
    body: &'a [u8],
}

impl<'a> Packet<'a> {
    pub(crate) fn kind(&self) -> u8 {
        self.first >> 4
    }

    /// The packet identifier and the time of sending in a PUBLISH.
    pub(crate) fn published(&self) -> Result<(Option<u16>, u64)> {
        let mut body = self.body;
        let length = usize::from(number(&mut body)?);
        body = body.get(length..).context("a topic is longer than its packet")?;
        let id = if self.first & 0x06 == 0 {
            None
        } else {
            Some(number(&mut body)?)
        };
        let (properties, rest) = varint(body)?.context("a packet ends within its properties")?;
        let payload = rest.get(properties..properties + 8);
        let time = payload.context("a payload is shorter than the time in it")?;
        Ok((id, u64::from_be_bytes(time.try_into()?)))
    }

    /// An error that tells what this is.
    pub(crate) fn unexpected(&self) -> anyhow::Error {
        match (self.kind(), self.body.first()) {
            (DISCONNECT, Some(reason)) => anyhow::anyhow!("the broker disconnected this client: {reason:#x}"),
            (kind, _) => anyhow::anyhow!("packet {kind} was not expected"),
        }
    }

    /// The reason code of a PUBACK; one without has succeeded.
    pub(crate) fn refused(&self) -> Option<u8> {
        self.body.get(2).copied().filter(|code| *code >= ERROR)
    }
}

fn number(bytes: &mut &[u8]) -> Result<u16> {
    let (number, rest) = bytes.split_first_chunk().context("a packet is too short")?;
    *bytes = rest;
    Ok(u16::from_be_bytes(*number))
}

/// A variable byte integer and what follows it; `None` when it is not there whole.
fn varint(bytes: &[u8]) -> Result<Option<(usize, &[u8])>> {
    let mut value = 0;
    for place in 0..4 {
        let Some(byte) = bytes.get(place) else {
            return Ok(None);
        };
        value |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Some((value, &bytes[place + 1..])));
        }
    }
    bail!("a packet's length has more than four bytes")
}

/// Bytes that arrived, cut into packets.
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; READ],
            begin: 0,
            end: 0,
        }
    }

    /// Room to read into. What is left of the last packet is moved to the front.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.begin..self.end, 0);
        self.end -= self.begin;
        self.begin = 0;
        &mut self.bytes[self.end..]
    }

    pub(crate) fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// The next packet that is there whole.
    pub(crate) fn next(&mut self) -> Result<Option<Packet<'_>>> {
        let bytes = &self.bytes[self.begin..self.end];
        let Some((first, after)) = bytes.split_first() else {
            return Ok(None);
        };
        let Some((length, body)) = varint(after)? else {
            return Ok(None);
        };
        if body.len() < length {
            if length + 8 > self.bytes.len() {
                bail!("a packet of {length} bytes was not expected");
            }
            return Ok(None);
        }
        self.begin = self.end - body.len() + length;
        Ok(Some(Packet {
            first: *first,
            body: &body[..length],
        }))
    }
}

/// A client that is connected.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) inbox: Inbox,
}

impl Client {
    pub(crate) async fn connect(
        address: &str,
        name: &str,
        persistent: bool,
        receive_maximum: u16,
    ) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connect")?;
        stream.set_nodelay(true)?;
        let mut client = Self {
            stream,
            inbox: Inbox::new(),
        };
        client.send(&connect(name, persistent, receive_maximum)).await?;
        client.expect(CONNACK, 1).await?;
        Ok(client)
    }

    pub(crate) async fn subscribe(&mut self, filter: &str, qos: u8) -> Result<()> {
        self.send(&subscribe(filter, qos)).await?;
        // The code stands last: packet identifier, properties, one code for each filter.
        self.expect(SUBACK, usize::MAX).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// Reads one packet and fails when it is another, or its reason code, at that place or at the end, is an error.
    async fn expect(&mut self, kind: u8, code_at: usize) -> Result<()> {
        loop {
            if let Some(packet) = self.inbox.next()? {
                let code = packet.body.get(code_at.min(packet.body.len().saturating_sub(1)));
                if packet.kind() != kind || code.is_none_or(|code| *code >= ERROR) {
                    bail!("refused: packet {} {:?}", packet.kind(), packet.body);
                }
                return Ok(());
            }
            self.read().await?;
        }
    }

    pub(crate) async fn read(&mut self) -> Result<()> {
        match self.stream.read(self.inbox.room()).await? {
            0 => bail!("the broker closed the connection"),
            count => {
                self.inbox.filled(count);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_whatever_the_cuts() {
        for qos in [0, 1] {
            let message = Publish::new("bench/1", qos, 300);
            let mut bytes = Vec::new();
            for id in 1..=3 {
                message.write(&mut bytes, id, 1_000 + u64::from(id));
            }
            for step in [1, 7, bytes.len()] {
                let (mut inbox, mut found) = (Inbox::new(), Vec::new());
                for part in bytes.chunks(step) {
                    inbox.room()[..part.len()].copy_from_slice(part);
                    inbox.filled(part.len());
                    while let Some(packet) = inbox.next().unwrap() {
                        assert_eq!(packet.kind(), PUBLISH);
                        found.push(packet.published().unwrap());
                    }
                }
                let id = |id| (qos > 0).then_some(id);
                assert_eq!(found, [(id(1), 1_001), (id(2), 1_002), (id(3), 1_003)]);
            }
        }
    }

    #[test]
    fn what_is_no_packet_is_an_error() {
        let mut inbox = Inbox::new();
        inbox.room()[..5].copy_from_slice(&[0x30, 0xff, 0xff, 0xff, 0xff]);
        inbox.filled(5);
        assert!(inbox.next().is_err());
        let short = Packet {
            first: 0x30,
            body: &[0, 9, b'a'],
        };
        assert!(short.published().is_err());
    }
}
