//! What is to be written to a client: small packets gathered, large payloads sent from where they are.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};

use super::transport::Transport;

/// Pieces that are written at once.
const PIECES_AT_ONCE: usize = 32;

/// A buffer that is larger than this is given back when it is empty.
const KEEP_CAPACITY: usize = 1024;

/// What is to be written to a client.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// Complete pieces, in order.
    pieces: VecDeque<Bytes>,
    /// Packets that follow them.
    tail: BytesMut,
    /// Bytes in the pieces.
    piece_bytes: usize,
    /// Bytes that were written to the transport and not flushed yet.
    unflushed: bool,
}

impl Outgoing {
    /// Where packets are written to.
    pub(crate) fn tail(&mut self) -> &mut BytesMut {
        &mut self.tail
    }

    /// Appends a payload that belongs to the packet whose head was written last.
    pub(crate) fn append(&mut self, payload: Bytes) {
        if !self.tail.is_empty() {
            let head = self.tail.split().freeze();
            self.piece_bytes += head.len();
            self.pieces.push_back(head);
        }
        self.piece_bytes += payload.len();
        self.pieces.push_back(payload);
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.piece_bytes + self.tail.len()
    }

    /// Bytes that it holds in memory.
    pub(crate) fn memory(&self) -> usize {
        self.piece_bytes + self.tail.capacity()
    }

    /// Whether everything was handed to the system.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes() == 0 && !self.unflushed
    }

    /// Writes until everything is written, or no more fits.
    pub(crate) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        transport: &mut Transport,
    ) -> Poll<io::Result<()>> {
        while self.bytes() > 0 {
            let mut slices = [IoSlice::new(&[]); PIECES_AT_ONCE];
            let mut count = 0;
            let all = self.pieces.iter().map(|piece| &piece[..]).chain([&self.tail[..]]);
            for (slice, piece) in slices.iter_mut().zip(all) {
                *slice = IoSlice::new(piece);
                count += 1;
            }
            let written = ready!(transport.poll_write(context, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            self.advance(written);
        }
        if self.unflushed {
            ready!(transport.poll_flush(context))?;
            self.unflushed = false;
        }
        if self.tail.capacity() > KEEP_CAPACITY {
            self.tail = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.pieces.front_mut() {
            let part = written.min(piece.len());
            piece.advance(part);
            self.piece_bytes -= part;
            written -= part;
            if !piece.is_empty() {
                return;
            }
            self.pieces.pop_front();
        }
        self.tail.advance(written);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::connection::transport::Socket;

    #[tokio::test]
    async fn everything_arrives_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut transport = Transport::Socket(Socket::Tcp(client));
        let (mut server, _) = listener.accept().await.unwrap();
        let mut out = Outgoing::default();
        let mut expected = Vec::new();
        for index in 0..100u8 {
            out.tail().extend_from_slice(&[index; 10]);
            expected.extend([index; 10]);
            if index % 3 == 0 {
                out.append(Bytes::from(vec![index; 5000]));
                expected.extend([index; 5000]);
            }
        }
        assert_eq!(out.bytes(), expected.len());
        let total = expected.len();
        let reading = tokio::spawn(async move {
            let mut read = vec![0; total];
            server.read_exact(&mut read).await.unwrap();
            read
        });
        poll_fn(|context| out.poll_write(context, &mut transport))
            .await
            .unwrap();
        assert!(out.is_empty());
        assert!(reading.await.unwrap() == expected);
    }
}
