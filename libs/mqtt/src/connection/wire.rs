//! One connection: its stream, its buffers and its clock.

use std::{io, time::Duration};

use bytes::BytesMut;
use rmqtt_codec::v5::{Disconnect, DisconnectReasonCode, Packet};
use tokio::{
    io::{AsyncWriteExt, ReadHalf, WriteHalf},
    time::Instant,
};

use crate::{
    error::ConnectionLost,
    transport::{Established, Limits, Stream},
    version::Codec,
};

/// Free space to read into.
const READ_SPACE: usize = 16 * 1024;
/// Buffers that grew beyond this are given back when they are empty.
const BUFFER_KEPT: usize = 1 << 20;
/// Longest wait for the answer to a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the end of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection without keep-alive sleeps at most.
const FAR: Duration = Duration::from_secs(3600);

/// One connection: its stream, its buffers and its clock.
pub(super) struct Wire {
    pub(super) read: ReadHalf<Box<dyn Stream>>,
    pub(super) write: WriteHalf<Box<dyn Stream>>,
    pub(super) inbound: BytesMut,
    pub(super) outbound: BytesMut,
    pub(super) limits: Limits,
    pub(super) address: String,
    /// Something was written and may still wait in the TLS layer.
    pub(super) unflushed: bool,
    codec: Codec,
    sent_at: Instant,
    received_at: Instant,
    pinged_at: Option<Instant>,
}

/// How far [`push`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// So many bytes were written.
    Written(usize),
    /// Everything written is with the operating system.
    Flushed,
}

/// Writes some of what waits; flushes when nothing does. Safe to cancel.
pub(super) async fn push(
    write: &mut WriteHalf<Box<dyn Stream>>,
    outbound: &mut BytesMut,
) -> io::Result<Pushed> {
    if outbound.is_empty() {
        write.flush().await.map(|()| Pushed::Flushed)
    } else {
        write.write_buf(outbound).await.map(Pushed::Written)
    }
}

impl Wire {
    pub(super) fn new(established: Established) -> Self {
        let (read, write) = tokio::io::split(established.stream);
        let now = Instant::now();
        Self {
            read,
            write,
            inbound: established.inbound,
            outbound: BytesMut::new(),
            limits: established.limits,
            address: established.address,
            unflushed: false,
            codec: established.codec,
            sent_at: now,
            received_at: now,
            pinged_at: None,
        }
    }

    /// The next packet that was read completely.
    pub(super) fn decode(&mut self) -> Result<Option<Packet>, ConnectionLost> {
        Ok(self.codec.decode(&mut self.inbound)?)
    }

    /// Writes a packet to the outbound buffer.
    pub(super) fn encode(&mut self, packet: Packet) -> Result<(), ConnectionLost> {
        Ok(self.codec.encode(packet, &mut self.outbound)?)
    }

    /// Whether everything was written.
    pub(super) fn is_idle(&self) -> bool {
        self.outbound.is_empty() && !self.unflushed
    }

    /// Makes room to read into.
    pub(super) fn make_room(&mut self) {
        if self.inbound.is_empty() && self.inbound.capacity() > BUFFER_KEPT {
            self.inbound = BytesMut::new();
        }
        self.inbound.reserve(READ_SPACE);
    }

    pub(super) fn has_read(&mut self, bytes: usize) -> Result<(), ConnectionLost> {
        if bytes == 0 {
            return Err(ConnectionLost::Closed);
        }
        self.received_at = Instant::now();
        self.pinged_at = None;
        Ok(())
    }

    /// The server is not heard at the moment, by our own doing: its silence means nothing.
    pub(super) fn is_not_heard(&mut self) {
        self.received_at = Instant::now();
        self.pinged_at = None;
    }

    pub(super) fn has_written(&mut self, written: Pushed) -> Result<(), ConnectionLost> {
        match written {
            Pushed::Written(0) => return Err(ConnectionLost::Io(io::ErrorKind::WriteZero.into())),
            Pushed::Written(_) => {
                self.sent_at = Instant::now();
                self.unflushed = true;
            }
            Pushed::Flushed => self.unflushed = false,
        }
        if self.outbound.is_empty() && self.outbound.capacity() > BUFFER_KEPT {
            self.outbound = BytesMut::new();
        }
        Ok(())
    }

    /// When [`keep_alive`](Self::keep_alive) has something to do.
    pub(super) fn deadline(&self) -> Instant {
        let keep_alive = self.limits.keep_alive;
        match self.pinged_at {
            _ if keep_alive.is_zero() => self.received_at + FAR,
            Some(pinged_at) => pinged_at + self.ping_timeout(),
            // Silence in either direction is too much of it: a peer that is gone does not answer what is sent.
            None => self.sent_at.min(self.received_at) + keep_alive.mul_f32(0.75),
        }
    }

    /// Pings a silent server, and gives up one that does not answer.
    pub(super) fn keep_alive(&mut self) -> Result<(), ConnectionLost> {
        if self.limits.keep_alive.is_zero() || Instant::now() < self.deadline() {
            return Ok(());
        }
        if self.pinged_at.is_some() {
            return Err(ConnectionLost::Silent {
                after: self.ping_timeout(),
            });
        }
        self.encode(Packet::PingRequest)?;
        let now = Instant::now();
        (self.pinged_at, self.sent_at) = (Some(now), now);
        Ok(())
    }

    fn ping_timeout(&self) -> Duration {
        self.limits.keep_alive.min(PING_TIMEOUT)
    }

    /// Says why the connection ends, and ends it; soon, whatever the server does.
    pub(super) async fn close(&mut self, code: DisconnectReasonCode) {
        if self.encode(Packet::Disconnect(Disconnect::new(code))).is_err() {
            return;
        }
        let end = async {
            self.write.write_all_buf(&mut self.outbound).await?;
            self.write.flush().await?;
            self.write.shutdown().await
        };
        // The connection ends in any case; whether the server heard it changes nothing.
        drop(tokio::time::timeout(CLOSE_TIMEOUT, end).await);
    }
}
