//! MQTT over WebSocket (MQTT 5.0 section 6, RFC 6455).
//!
//! The bytes of MQTT are the payload of binary frames, in order, wherever frames begin and end: a packet may span frames,
//! and a frame may hold several. So frames are not gathered into messages. Payload stays where it was read to, and what is
//! written goes out behind the header of its frame without being copied; no frame, however long it says it is, needs
//! memory of its own. That is why headers and the upgrade are a library's, but not the stream.

mod frames;
mod upgrade;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

use self::frames::{Decoded, Decoder, End};
pub(super) use self::upgrade::accept;

/// Longest payload of a frame to the client: many clients gather a frame before they look at it, and refuse long ones.
const MAX_FRAME: usize = 32 << 10;

/// Pieces that are written at once: those of [`Outgoing`](super::outgoing::Outgoing) behind our own.
const PIECES_AT_ONCE: usize = 33;

/// A WebSocket over a stream.
#[derive(Debug)]
pub(crate) struct WebSocket<S> {
    stream: S,
    decoder: Decoder,
    /// How what the client sends has ended.
    end: Option<End>,
    /// Payload of a ping that is to be answered; of several, the last (section 5.5.3).
    ping: Option<Vec<u8>>,
    /// What is written next: control frames, and the header of the frame that has begun.
    head: BytesMut,
    /// Payload of the frame that has begun and is to follow the head.
    frame_left: usize,
    /// Whether a control frame was written and not flushed.
    unflushed: bool,
    /// Whether the closing frame is among what was written.
    closing: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// A WebSocket whose upgrade was answered.
    fn new(stream: S) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
            end: None,
            ping: None,
            head: BytesMut::new(),
            frame_left: 0,
            unflushed: false,
            closing: false,
        }
    }

    /// The stream below.
    pub(crate) fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Reads bytes of MQTT; 0 bytes mean that the client closed its side.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            self.answer_ping(context)?;
            match &self.end {
                None => {}
                Some(End::Closed(_)) => return Poll::Ready(Ok(0)),
                Some(End::Violation { detail, .. }) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, *detail)));
                }
            }
            let mut input = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut input))?;
            let read = input.filled().len();
            if read == 0 {
                return Poll::Ready(Ok(0));
            }
            let Decoded { length, ping, end } = self.decoder.decode(&mut buffer[..read]);
            if ping.is_some() {
                self.ping = ping;
            }
            self.end = end;
            if length > 0 {
                return Poll::Ready(Ok(length));
            }
        }
    }

    /// Writes as much as fits now. Whoever calls offers what was not written again, at the beginning of what it offers
    /// next.
    pub(crate) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.frame_left == 0 {
            self.queue_pong();
            let length: usize = buffers.iter().map(|buffer| buffer.len()).sum();
            self.frame_left = length.min(MAX_FRAME);
            self.queue_header(OpCode::Data(Data::Binary), self.frame_left);
        }
        loop {
            let mut slices = [IoSlice::new(&[]); PIECES_AT_ONCE];
            let mut count = 0;
            let mut left = self.frame_left;
            let head = (!self.head.is_empty()).then_some(&self.head[..]);
            let payload = buffers.iter().map(|buffer| {
                let part = &buffer[..buffer.len().min(left)];
                left -= part.len();
                part
            });
            for (slice, piece) in slices.iter_mut().zip(head.into_iter().chain(payload)) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            let stream = Pin::new(&mut self.stream);
            let written = ready!(stream.poll_write_vectored(context, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = written.min(self.head.len());
            self.head.advance(of_head);
            self.frame_left -= written - of_head;
            if written > of_head {
                return Poll::Ready(Ok(written - of_head));
            }
        }
    }

    /// Sends what was written and is held back below, and answers a ping that came within a frame.
    pub(crate) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.answer_ping(context)?;
        self.poll_flush_stream(context)
    }

    /// Says that nothing more will be written: the closing frame, which answers that of the client or tells it why, and
    /// the end of the stream below.
    pub(crate) fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Within a frame that can't be completed there is no place for another.
        if self.frame_left == 0 {
            if !self.closing {
                self.closing = true;
                self.queue_close();
            }
            ready!(self.poll_head(context))?;
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    /// Answers a ping as far as that can be done now. Within a frame, that waits for the end of the frame.
    fn answer_ping(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.frame_left > 0 || self.closing {
            return Ok(());
        }
        while self.poll_head(context)?.is_ready() && self.ping.is_some() {
            self.queue_pong();
        }
        Ok(())
    }

    /// Writes the head, where no payload is to follow it, and flushes it.
    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.head.is_empty() {
            let stream = Pin::new(&mut self.stream);
            let written = ready!(stream.poll_write(context, &self.head))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.head.advance(written);
            self.unflushed = true;
        }
        if self.unflushed {
            return self.poll_flush_stream(context);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush_stream(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }

    /// Writes the answer to a ping to the head, once the last answer has left: whoever does not read its answers gets
    /// only the next.
    fn queue_pong(&mut self) {
        if self.head.is_empty()
            && let Some(payload) = self.ping.take()
        {
            self.queue_header(OpCode::Control(Control::Pong), payload.len());
            self.head.extend_from_slice(&payload);
        }
    }

    fn queue_close(&mut self) {
        let code = match &self.end {
            Some(End::Closed(code)) => *code,
            Some(End::Violation { code, .. }) => Some(*code),
            None => Some(CloseCode::Normal),
        };
        let payload = code.map(|code| u16::from(code).to_be_bytes());
        let payload = payload.as_ref().map_or(&[][..], |code| code);
        self.queue_header(OpCode::Control(Control::Close), payload.len());
        self.head.extend_from_slice(payload);
    }

    fn queue_header(&mut self, opcode: OpCode, length: usize) {
        let header = FrameHeader {
            opcode,
            ..FrameHeader::default()
        };
        // Memory takes whatever is written to it.
        drop(header.format(length as u64, &mut (&mut self.head).writer()));
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// An empty ping, with a mask.
    const PING: [u8; 6] = [0x89, 0x80, 1, 2, 3, 4];

    /// Reads once, and finds nothing for MQTT.
    async fn read_nothing(server: &mut WebSocket<tokio::io::DuplexStream>) {
        poll_fn(|context| {
            assert!(server.poll_read(context, &mut [0; 100]).is_pending());
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn a_ping_within_a_frame_is_answered_behind_it() {
        let (stream, mut client) = tokio::io::duplex(16);
        let mut server = WebSocket::new(stream);
        let payload = [7; 100];
        let written = poll_fn(|context| server.poll_write(context, &[IoSlice::new(&payload)]));
        let mut written = written.await.unwrap();
        assert!(written < payload.len());
        client.write_all(&PING).await.unwrap();
        read_nothing(&mut server).await;
        let writing = async {
            while written < payload.len() {
                let rest = [IoSlice::new(&payload[written..])];
                written += poll_fn(|context| server.poll_write(context, &rest))
                    .await
                    .unwrap();
            }
            poll_fn(|context| server.poll_flush(context)).await.unwrap();
        };
        let mut received = [0; 104];
        let reading = tokio::time::timeout(Duration::from_secs(60), client.read_exact(&mut received));
        let ((), read) = tokio::join!(writing, reading);
        read.expect("an answer in time").unwrap();
        let expected = [&[0x82, 100][..], &payload, &[0x8a, 0]].concat();
        assert_eq!(received[..], expected);
    }

    #[tokio::test]
    async fn of_pings_that_find_no_room_the_last_is_answered() {
        // Room for one answer and a bit.
        let (stream, mut client) = tokio::io::duplex(7);
        let mut server = WebSocket::new(stream);
        let mut numbered = [0x89, 0x81, 0, 0, 0, 0, 0];
        for number in 1..=5 {
            numbered[6] = number;
            client.write_all(&numbered).await.unwrap();
            read_nothing(&mut server).await;
        }
        let mut answers = Vec::new();
        while answers.last() != Some(&5) {
            let mut answer = [0; 3];
            let reading = async {
                let read = tokio::time::timeout(Duration::from_secs(60), client.read_exact(&mut answer));
                read.await.expect("an answer in time").unwrap();
            };
            let waiting = poll_fn(|context| match server.poll_read(context, &mut [0; 100]) {
                Poll::Pending => Poll::<()>::Pending,
                Poll::Ready(read) => panic!("{read:?}"),
            });
            tokio::select! {
                () = waiting => {}
                () = reading => {}
            }
            assert_eq!(answer[..2], [0x8a, 1]);
            answers.push(answer[2]);
        }
        assert_eq!(answers, [1, 2, 3, 5]);
    }
}
