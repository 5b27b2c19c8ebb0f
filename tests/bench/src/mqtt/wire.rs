//! As much of MQTT 5 as a load generator needs: packets are written by hand and read by their headers only, so that the
//! generator costs less than any broker that it measures, and shares no code with ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Type of a packet: the upper half of its first byte.
pub(crate) const CONNACK: u8 = 2;
pub(crate) const PUBLISH: u8 = 3;
pub(crate) const PUBACK: u8 = 4;
pub(crate) const PUBREC: u8 = 5;
pub(crate) const PUBREL: u8 = 6;
pub(crate) const PUBCOMP: u8 = 7;
pub(crate) const SUBACK: u8 = 9;
pub(crate) const PINGRESP: u8 = 13;
const DISCONNECT: u8 = 14;

/// A question for an answer: PINGREQ.
pub(crate) const PING: [u8; 2] = [0xc0, 0];

/// The end of a connection that keeps its session: DISCONNECT.
pub(crate) const GOODBYE: [u8; 2] = [0xe0, 0];

/// First reason code that is an error.
const ERROR: u8 = 0x80;

/// Room for what is read at once.
const READ: usize = 64 << 10;

/// Longest wait for an answer to CONNECT or SUBSCRIBE, on a machine that has much else to do.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);

/// Filters that one SUBSCRIBE asks for.
const FILTERS: usize = 100;

/// Bytes of a payload that tell when and as which of its publisher's messages it was sent.
const STAMP: usize = 16;

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

/// What a client says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hello<'a> {
    pub(crate) client: &'a str,
    /// Whether a session of an earlier connection is taken up.
    pub(crate) resume: bool,
    /// Seconds that the session outlives its connection.
    pub(crate) expiry: u32,
    /// Deliveries that it takes unacknowledged.
    pub(crate) receive_maximum: u16,
    /// Seconds without a word from it after which it is given up.
    pub(crate) keep_alive: u16,
}

impl<'a> Hello<'a> {
    /// A client whose session ends with its connection.
    pub(crate) fn clean(client: &'a str) -> Self {
        Self {
            client,
            resume: false,
            expiry: 0,
            receive_maximum: u16::MAX,
            keep_alive: 60,
        }
    }

    fn packet(&self) -> Vec<u8> {
        let mut body = string("MQTT");
        body.extend([5, if self.resume { 0 } else { 2 }]);
        body.extend(self.keep_alive.to_be_bytes());
        let mut properties = vec![0x21];
        properties.extend(self.receive_maximum.to_be_bytes());
        if self.expiry > 0 {
            properties.push(0x11);
            properties.extend(self.expiry.to_be_bytes());
        }
        body.push(properties.len() as u8);
        body.extend(properties);
        body.extend(string(self.client));
        packet(0x10, &body)
    }
}

fn subscribe(filters: &[String], qos: u8) -> Vec<u8> {
    let mut body = vec![0, 1, 0];
    for filter in filters {
        body.extend(string(filter));
        body.push(qos);
    }
    packet(0x82, &body)
}

/// An acknowledgement that succeeds: PUBACK, PUBREC, PUBREL or PUBCOMP.
pub(crate) fn acknowledge(out: &mut Vec<u8>, kind: u8, id: u16) {
    // MQTT 5.0 section 3.6.1: PUBREL has a reserved bit that is set.
    let reserved = if kind == PUBREL { 2 } else { 0 };
    out.extend([kind << 4 | reserved, 2]);
    out.extend(id.to_be_bytes());
}

/// What messages that are published again and again have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) topic: &'a str,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// Seconds after which it is worthless.
    pub(crate) expiry: Option<u32>,
    /// Bytes of the payload; 0 for one without, which removes a retained message.
    pub(crate) payload: usize,
}

/// A PUBLISH packet to send again and again, with the places of what differs from one to the next.
pub(crate) struct Publish {
    bytes: Vec<u8>,
    id_at: Option<usize>,
    stamp_at: Option<usize>,
}

impl Publish {
    /// A message whose payload, if it has one, begins with the time at which it is sent and its number.
    pub(crate) fn new(message: &Message<'_>) -> Self {
        let Message {
            topic,
            qos,
            retain,
            expiry,
            payload,
        } = *message;
        let payload = if payload == 0 { 0 } else { payload.max(STAMP) };
        let mut body = string(topic);
        let id_in_body = body.len();
        if qos > 0 {
            body.extend([0, 0]);
        }
        match expiry {
            Some(seconds) => {
                body.extend([5, 0x02]);
                body.extend(seconds.to_be_bytes());
            }
            None => body.push(0),
        }
        body.resize(body.len() + payload, b'.');
        let bytes = packet(0x30 | qos << 1 | u8::from(retain), &body);
        let head = bytes.len() - body.len();
        Self {
            id_at: (qos > 0).then_some(head + id_in_body),
            stamp_at: (payload > 0).then(|| bytes.len() - payload),
            bytes,
        }
    }

    /// Appends the packet.
    pub(crate) fn write(&self, out: &mut Vec<u8>, id: u16, time: u64, number: u64) {
        let begin = out.len();
        out.extend_from_slice(&self.bytes);
        if let Some(at) = self.id_at {
            out[begin + at..begin + at + 2].copy_from_slice(&id.to_be_bytes());
        }
        if let Some(at) = self.stamp_at {
            let at = begin + at;
            out[at..at + 8].copy_from_slice(&time.to_be_bytes());
            out[at + 8..at + STAMP].copy_from_slice(&number.to_be_bytes());
        }
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

    /// What a PUBLISH holds.
    pub(crate) fn delivery(&self) -> Result<Delivery<'a>> {
        let mut body = self.body;
        let length = usize::from(number(&mut body)?);
        let (topic, rest) = body
            .split_at_checked(length)
            .context("a topic is longer than its packet")?;
        body = rest;
        let qos = self.first >> 1 & 3;
        let id = if qos == 0 { 0 } else { number(&mut body)? };
        let (properties, rest) = varint(body)?.context("a packet ends within its properties")?;
        let payload = rest.get(properties..);
        Ok(Delivery {
            topic,
            qos,
            id,
            payload: payload.context("a packet ends within its properties")?,
        })
    }

    /// The packet identifier of an acknowledgement.
    pub(crate) fn id(&self) -> Result<u16> {
        number(&mut &*self.body)
    }

    /// An error that tells what this is.
    pub(crate) fn unexpected(&self) -> anyhow::Error {
        match (self.kind(), self.body.first()) {
            (DISCONNECT, reason) => Disconnected(reason.copied().unwrap_or(0)).into(),
            (kind, _) => anyhow::anyhow!("packet {kind} was not expected"),
        }
    }

    /// The reason code of an acknowledgement that refuses; one without has succeeded.
    pub(crate) fn refused(&self) -> Option<u8> {
        self.body.get(2).copied().filter(|code| *code >= ERROR)
    }
}

/// The broker ended the connection with a DISCONNECT, for this reason code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disconnected(pub(crate) u8);

impl std::fmt::Display for Disconnected {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "the broker disconnected this client: {:#x}", self.0)
    }
}

impl std::error::Error for Disconnected {}

/// A message that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery<'a> {
    pub(crate) topic: &'a [u8],
    pub(crate) qos: u8,
    /// Packet identifier; 0 at QoS 0.
    pub(crate) id: u16,
    pub(crate) payload: &'a [u8],
}

impl Delivery<'_> {
    /// When it was sent, and its number.
    pub(crate) fn stamp(&self) -> Result<(u64, u64)> {
        stamp(self.payload)
    }
}

/// When a payload was sent, and its number.
pub(crate) fn stamp(payload: &[u8]) -> Result<(u64, u64)> {
    let stamp = payload.first_chunk::<STAMP>();
    let stamp = stamp.context("a payload is shorter than the time and number in it")?;
    let (time, number) = stamp.split_at(8);
    Ok((
        u64::from_be_bytes(time.try_into()?),
        u64::from_be_bytes(number.try_into()?),
    ))
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
pub(crate) struct Client<S = TcpStream> {
    pub(crate) stream: S,
    pub(crate) inbox: Inbox,
    /// Whether the broker had a session of an earlier connection.
    pub(crate) resumed: bool,
}

impl Client {
    pub(crate) async fn connect(address: &str, hello: &Hello<'_>) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("connect")?;
        stream.set_nodelay(true)?;
        Self::over(stream, hello).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Connects over a stream that is open.
    pub(crate) async fn over(stream: S, hello: &Hello<'_>) -> Result<Self> {
        let mut client = Self {
            stream,
            inbox: Inbox::new(),
            resumed: false,
        };
        let flags_and_code = |body: &[u8]| body.get(..2).map(<[u8]>::to_vec);
        let answer = client.ask(&hello.packet(), CONNACK, flags_and_code).await;
        let answer = answer.context("connect")?;
        client.resumed = answer[0] & 1 == 1;
        match answer[1] {
            0 => Ok(client),
            code => bail!("connect: refused: {code:#x}"),
        }
    }

    /// Subscribes. Messages may come before the answer (MQTT 5.0 section 3.8.4): these are acknowledged and forgotten, so
    /// that whoever needs each has to subscribe before they are published.
    pub(crate) async fn subscribe(&mut self, filters: &[String], qos: u8) -> Result<()> {
        for some in filters.chunks(FILTERS) {
            // The codes stand last: packet identifier, properties, one code for each filter.
            let codes = |body: &[u8]| body.len().checked_sub(some.len()).map(|at| body[at..].to_vec());
            let codes = self.ask(&subscribe(some, qos), SUBACK, codes).await;
            let codes = codes.context("subscribe")?;
            if let Some((filter, code)) = some.iter().zip(codes).find(|(_, code)| *code >= ERROR) {
                bail!("subscribe {filter:?}: refused: {code:#x}");
            }
        }
        Ok(())
    }

    /// Sends a packet and returns a part of the answer.
    async fn ask(
        &mut self,
        question: &[u8],
        kind: u8,
        part: impl Fn(&[u8]) -> Option<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        self.stream.write_all(question).await?;
        // What is encrypted may wait in memory when the socket takes nothing for a moment.
        self.stream.flush().await?;
        let answer = async {
            let mut acknowledgements = Vec::new();
            loop {
                while let Some(packet) = self.inbox.next()? {
                    if packet.kind() == kind {
                        self.stream.write_all(&acknowledgements).await?;
                        return part(packet.body).context("an answer is too short");
                    }
                    if kind != SUBACK || packet.kind() != PUBLISH {
                        return Err(packet.unexpected());
                    }
                    match packet.delivery()? {
                        Delivery { qos: 0, .. } => {}
                        Delivery { qos: 1, id, .. } => acknowledge(&mut acknowledgements, PUBACK, id),
                        Delivery { qos, .. } => bail!("a message at QoS {qos} came before its subscription"),
                    }
                }
                self.stream.write_all(&acknowledgements).await?;
                acknowledgements.clear();
                self.read().await?;
            }
        };
        timeout(ANSWER, answer).await.context("no answer in time")?
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

    fn message(qos: u8) -> Message<'static> {
        Message {
            topic: "bench/1",
            qos,
            retain: false,
            expiry: None,
            payload: 300,
        }
    }

    #[test]
    fn what_is_written_is_read_back_whatever_the_cuts() {
        for (qos, expiry) in [(0, None), (1, None), (1, Some(5)), (2, Some(5))] {
            let message = Publish::new(&Message {
                expiry,
                ..message(qos)
            });
            let mut bytes = Vec::new();
            for id in 1..=3 {
                message.write(&mut bytes, id, 1_000 + u64::from(id), 7 * u64::from(id));
            }
            for step in [1, 7, bytes.len()] {
                let (mut inbox, mut found) = (Inbox::new(), Vec::new());
                for part in bytes.chunks(step) {
                    inbox.room()[..part.len()].copy_from_slice(part);
                    inbox.filled(part.len());
                    while let Some(packet) = inbox.next().unwrap() {
                        assert_eq!(packet.kind(), PUBLISH);
                        let delivery = packet.delivery().unwrap();
                        assert_eq!((delivery.topic, delivery.qos), (&b"bench/1"[..], qos));
                        assert_eq!(delivery.payload.len(), 300);
                        found.push((delivery.id, delivery.stamp().unwrap()));
                    }
                }
                let id = |id| if qos > 0 { id } else { 0 };
                assert_eq!(
                    found,
                    [(id(1), (1_001, 7)), (id(2), (1_002, 14)), (id(3), (1_003, 21))]
                );
            }
        }
    }

    #[test]
    fn a_message_without_payload_removes_a_retained_one() {
        let (mut bytes, mut inbox) = (Vec::new(), Inbox::new());
        let message = Message {
            retain: true,
            payload: 0,
            ..message(1)
        };
        Publish::new(&message).write(&mut bytes, 9, 1, 1);
        inbox.room()[..bytes.len()].copy_from_slice(&bytes);
        inbox.filled(bytes.len());
        let packet = inbox.next().unwrap().unwrap();
        assert_eq!(packet.first, 0x33);
        let delivery = packet.delivery().unwrap();
        assert_eq!((delivery.id, delivery.payload), (9, &[][..]));
        assert!(delivery.stamp().is_err());
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
        assert!(short.delivery().is_err());
    }
}
