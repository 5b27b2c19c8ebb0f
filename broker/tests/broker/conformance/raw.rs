//! Packets byte by byte: what no codec would send, and everything that comes back.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::client::GENEROUS;

/// First bytes of packets that the broker sends.
pub(crate) const CONNACK: u8 = 0x20;
pub(crate) const PUBACK: u8 = 0x40;
pub(crate) const PUBREC: u8 = 0x50;
pub(crate) const PUBREL: u8 = 0x62;
pub(crate) const PUBCOMP: u8 = 0x70;
pub(crate) const SUBACK: u8 = 0x90;
pub(crate) const UNSUBACK: u8 = 0xb0;
pub(crate) const PINGRESP: u8 = 0xd0;
pub(crate) const DISCONNECT: u8 = 0xe0;

/// Are you there?
pub(crate) const PING: &[u8] = b"\xc0\x00";

/// First byte and what follows the fixed header.
pub(crate) type Packet = (u8, Vec<u8>);

/// A connection that sends and receives bytes.
pub(crate) struct Raw {
    stream: TcpStream,
    input: Vec<u8>,
}

/// Parts one after the other.
pub(crate) fn join(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// A number as a variable byte integer.
pub(crate) fn length(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = (value % 128) as u8;
        value /= 128;
        if value == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

/// A packet: its first byte, its length and its body.
pub(crate) fn packet(first: u8, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    join(&[&[first], &length(body.len()), &body])
}

/// A text or binary value with its length.
pub(crate) fn value(content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    join(&[&(content.len() as u16).to_be_bytes(), content])
}

/// Properties with their length.
pub(crate) fn properties(parts: &[&[u8]]) -> Vec<u8> {
    let block = parts.concat();
    join(&[&length(block.len()), &block])
}

/// A CONNECT of version 5 with a keep alive of a minute; `payload` begins with the client identifier.
pub(crate) fn connect5(flags: u8, block: &[&[u8]], payload: &[&[u8]]) -> Vec<u8> {
    let head = [b"\x00\x04MQTT\x05", &[flags][..], b"\x00\x3c"].concat();
    packet(0x10, &[&head, &properties(block), &payload.concat()])
}

/// A CONNECT of version 3.1.1.
pub(crate) fn connect3(flags: u8, payload: &[&[u8]]) -> Vec<u8> {
    let head = [b"\x00\x04MQTT\x04", &[flags][..], b"\x00\x3c"].concat();
    packet(0x10, &[&head, &payload.concat()])
}

impl Raw {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let input = Vec::new();
        Self { stream, input }
    }

    /// Connects in version 5 with Clean Start.
    pub(crate) async fn connect5(address: SocketAddr, client_id: &str) -> Self {
        Self::connect(address, &connect5(2, &[], &[&value(client_id)])).await
    }

    /// Connects in version 3.1.1 with a clean session.
    pub(crate) async fn connect3(address: SocketAddr, client_id: &str) -> Self {
        Self::connect(address, &connect3(2, &[&value(client_id)])).await
    }

    /// Connects and expects to be let in.
    pub(crate) async fn connect(address: SocketAddr, connect: &[u8]) -> Self {
        let mut raw = Self::open(address).await;
        raw.send(connect).await;
        let (first, body) = raw.packet().await;
        assert_eq!((first, body[1]), (CONNACK, 0), "{body:02x?}");
        raw
    }

    /// Sends bytes, unless the broker has closed the connection already.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _closed_early = self.stream.write_all(bytes).await;
    }

    /// Says that nothing more comes.
    pub(crate) async fn finish(&mut self) {
        let _closed_early = self.stream.shutdown().await;
    }

    /// The next packet; `None` when the broker has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        loop {
            if let Some(packet) = self.cut() {
                return Some(packet);
            }
            let read = tokio::time::timeout(GENEROUS, self.stream.read_buf(&mut self.input));
            match read.await.expect("an answer in time") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    fn cut(&mut self) -> Option<Packet> {
        let (mut size, mut at) = (0, 1);
        loop {
            let byte = usize::from(*self.input.get(at)?);
            size |= (byte & 0x7f) << (7 * (at - 1));
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let body = self.input.get(at..at + size)?.to_vec();
        let first = self.input[0];
        self.input.drain(..at + size);
        Some((first, body))
    }

    pub(crate) async fn packet(&mut self) -> Packet {
        self.next().await.expect("a packet and not the end")
    }

    /// Sends bytes and expects a packet for them.
    pub(crate) async fn ask(&mut self, bytes: &[u8]) -> Packet {
        self.send(bytes).await;
        self.packet().await
    }

    /// Waits until everything that was sent before has been worked on; nothing but the answer may come.
    pub(crate) async fn ping(&mut self) {
        assert_eq!(self.ask(PING).await, (PINGRESP, Vec::new()));
    }

    /// Everything until the end.
    pub(crate) async fn rest(&mut self) -> Vec<Packet> {
        let mut all = Vec::new();
        while let Some(packet) = self.next().await {
            all.push(packet);
        }
        all
    }

    /// Sends what should end the connection, and returns the reason that the broker tells; `None` if it closes without
    /// a word.
    pub(crate) async fn ended_by(&mut self, bytes: &[u8]) -> Option<u8> {
        self.send(bytes).await;
        // If it goes on, it says so.
        self.send(PING).await;
        let mut last = None;
        while let Some((first, body)) = self.next().await {
            assert_ne!(first, PINGRESP, "the connection goes on");
            assert!(last.is_none(), "{first:02x} follows a farewell");
            last = match first {
                DISCONNECT => Some(body[0]),
                CONNACK if body[1] != 0 => Some(body[1]),
                _ => None,
            };
        }
        last
    }
}
