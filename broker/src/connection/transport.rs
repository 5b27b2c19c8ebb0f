//! What carries the bytes of a connection.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use foreshore_tls::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::websocket::{self, WebSocket};
use crate::options::Protocol;

/// What carries the bytes of a connection.
#[derive(Debug)]
pub(crate) enum Transport {
    /// As they are.
    Socket(Socket),
    /// In frames.
    WebSocket(Box<WebSocket<Socket>>),
}

/// A connection of the network.
#[derive(Debug)]
pub(crate) enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Agrees with a client on what its listener speaks below MQTT; else tells why not.
    pub(crate) async fn accept(stream: TcpStream, protocol: &Protocol) -> Result<Self, String> {
        let socket = match protocol.tls() {
            None => Socket::Tcp(stream),
            Some(config) => {
                let accepted = TlsAcceptor::from(Arc::clone(config)).accept(stream).await;
                let stream = accepted.map_err(|error| format!("no TLS: {error}"))?;
                Socket::Tls(Box::new(stream))
            }
        };
        match protocol.path() {
            None => Ok(Self::Socket(socket)),
            Some(path) => {
                let accepted = websocket::accept(socket, path).await;
                let accepted = accepted.map_err(|error| error.to_string())?;
                Ok(Self::WebSocket(Box::new(accepted)))
            }
        }
    }

    /// The verified certificates of the client, its own first; none if it showed none.
    pub(crate) fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        let socket = match self {
            Self::Socket(socket) => socket,
            Self::WebSocket(stream) => stream.get_ref(),
        };
        match socket {
            Socket::Tcp(_) => &[],
            Socket::Tls(stream) => stream.get_ref().1.peer_certificates().unwrap_or_default(),
        }
    }

    /// Reads what has arrived; 0 bytes mean that the client closed its side.
    pub(crate) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let socket = match self {
            Self::Socket(socket) => socket,
            Self::WebSocket(stream) => return stream.poll_read(context, buffer),
        };
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(socket).poll_read(context, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Writes as much as fits now. What was not written is to be offered again, at the beginning of what is offered next.
    pub(crate) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Socket(socket) => Pin::new(socket).poll_write_vectored(context, buffers),
            Self::WebSocket(stream) => stream.poll_write(context, buffers),
        }
    }

    /// Sends what was written and is held back for encryption.
    pub(crate) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => Pin::new(socket).poll_flush(context),
            Self::WebSocket(stream) => stream.poll_flush(context),
        }
    }

    /// Says that nothing more will be written.
    pub(crate) fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Socket(socket) => Pin::new(socket).poll_shutdown(context),
            Self::WebSocket(stream) => stream.poll_shutdown(context),
        }
    }
}

impl Socket {
    /// Whether it is TLS.
    pub(crate) fn is_encrypted(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_without_websocket_is_no_larger_for_it() {
        assert_eq!(size_of::<Transport>(), size_of::<TcpStream>());
    }
}
