//! The upgrade from HTTP (RFC 6455 section 4), and what MQTT wants of it (MQTT 5.0 section 6).

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tungstenite::{
    error::{CapacityError, Error, ProtocolError},
    handshake::{
        machine::TryParse,
        server::{Request, Response, create_response, write_response},
    },
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
    },
};

use super::WebSocket;

/// Largest request: what browsers send with their cookies, and some room.
const MAX_REQUEST: usize = 8 << 10;

/// Bytes that are read at once.
const READ_PART: usize = 1024;

/// Subprotocols that are spoken, the preferred first: the name that [MQTT-6.0.0-3] and [MQTT-6.0.0-4] demand, and that of
/// clients from before version 3.1.1.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

/// Why a connection does not become a WebSocket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotUpgraded {
    /// The connection broke.
    #[error("connection lost before the upgrade to WebSocket: {0}")]
    Lost(#[from] io::Error),
    /// The request was refused, and the client told why.
    #[error("upgrade to WebSocket refused with {status}: {detail}")]
    Refused {
        /// Status of the response.
        status: StatusCode,
        /// Why.
        detail: String,
    },
}

/// Makes a stream a WebSocket whose client asks for this path and speaks MQTT.
///
/// # Errors
/// When the client does not ask for that.
pub(crate) async fn accept<S>(mut stream: S, path: &str) -> Result<WebSocket<S>, NotUpgraded>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let answered = match read_request(&mut stream).await? {
        Ok(request) => answer(&request, path),
        Err(refusal) => Err(refusal),
    };
    match answered {
        Ok(response) => {
            send(&mut stream, &response, "").await?;
            Ok(WebSocket::new(stream))
        }
        Err(Refusal { status, detail }) => {
            let body = format!("{detail}\n");
            send(&mut stream, &refused(status, body.len()), &body).await?;
            stream.shutdown().await?;
            Err(NotUpgraded::Refused { status, detail })
        }
    }
}

/// What is wrong with a request.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    detail: String,
}

impl Refusal {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { status, detail }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Protocol(ProtocolError::WrongHttpMethod) => StatusCode::METHOD_NOT_ALLOWED,
            Error::Protocol(ProtocolError::WrongHttpVersion) => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Error::Protocol(
                ProtocolError::MissingConnectionUpgradeHeader
                | ProtocolError::MissingUpgradeWebSocketHeader
                | ProtocolError::MissingSecWebSocketVersionHeader,
            ) => StatusCode::UPGRADE_REQUIRED,
            Error::Capacity(CapacityError::TooManyHeaders) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

/// Reads the request; the outer error is that of the stream.
async fn read_request<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Result<Request, Refusal>> {
    let mut input = BytesMut::new();
    loop {
        input.reserve(READ_PART);
        if stream.read_buf(&mut input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match Request::try_parse(&input) {
            // Section 4.1: the client waits for the response before it sends anything else.
            Ok(Some((length, _))) if length < input.len() => {
                let detail = "bytes follow the request before it was answered";
                return Ok(Err(Refusal::new(StatusCode::BAD_REQUEST, detail)));
            }
            Ok(Some((_, request))) => return Ok(Ok(request)),
            Ok(None) if input.len() >= MAX_REQUEST => {
                let detail = format!("request of more than {MAX_REQUEST} bytes");
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                return Ok(Err(Refusal::new(status, detail)));
            }
            Ok(None) => {}
            Err(error) => return Ok(Err(error.into())),
        }
    }
}

/// Judges a request, and makes the response that agrees to it.
fn answer(request: &Request, path: &str) -> Result<Response, Refusal> {
    let found = request.uri().path();
    if found != path {
        let detail = format!("found path {found:?}, allowed is {path:?}");
        return Err(Refusal::new(StatusCode::NOT_FOUND, detail));
    }
    let mut response = create_response(request)?;
    let subprotocol = subprotocol(request).ok_or_else(|| {
        let detail = "found no subprotocol that is spoken, allowed in Sec-WebSocket-Protocol is \"mqtt\"";
        Refusal::new(StatusCode::BAD_REQUEST, detail)
    })?;
    response
        .headers_mut()
        .insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol));
    Ok(response)
}

/// The subprotocol to speak, of those that the client offers.
fn subprotocol(request: &Request) -> Option<&'static str> {
    let offered = |wanted: &&str| {
        request
            .headers()
            .get_all(SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|offer| offer.trim() == *wanted)
    };
    SUBPROTOCOLS.into_iter().find(offered)
}

/// The response to a request that is refused.
fn refused(status: StatusCode, body_length: usize) -> Response {
    const VERSION: HeaderName = HeaderName::from_static("sec-websocket-version");
    let mut response = Response::new(());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(CONTENT_LENGTH, body_length.into());
    match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(ALLOW, HeaderValue::from_static("GET"));
        }
        StatusCode::UPGRADE_REQUIRED => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(VERSION, HeaderValue::from_static("13"));
        }
        _ => {}
    }
    response
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, response: &Response, body: &str) -> io::Result<()> {
    let mut output = Vec::new();
    write_response(&mut output, response).map_err(io::Error::other)?;
    output.extend_from_slice(body.as_bytes());
    stream.write_all(&output).await?;
    stream.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str, headers: &[&str]) -> Vec<u8> {
        let standing = [
            "Host: broker",
            "Connection: keep-alive, Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ];
        let lines = [&[line][..], &standing, headers, &["", ""]].concat();
        lines.join("\r\n").into_bytes()
    }

    async fn judge(input: &[u8]) -> Result<Response, Refusal> {
        let mut input = input;
        let request = read_request(&mut input).await.unwrap()?;
        answer(&request, "/mqtt")
    }

    async fn status(input: &[u8]) -> u16 {
        judge(input).await.unwrap_err().status.as_u16()
    }

    const LINE: &str = "GET /mqtt?token=1 HTTP/1.1";

    #[tokio::test]
    async fn the_subprotocol_is_answered() {
        let cases: [(&[&str], &str); 4] = [
            (&["Sec-WebSocket-Protocol: mqtt"], "mqtt"),
            (&["Sec-WebSocket-Protocol: chat, mqttv3.1,mqtt"], "mqtt"),
            (
                &["Sec-WebSocket-Protocol: chat", "sec-websocket-protocol: mqtt"],
                "mqtt",
            ),
            (&["Sec-WebSocket-Protocol: mqttv3.1"], "mqttv3.1"),
        ];
        for (offer, expected) in cases {
            let response = judge(&request(LINE, offer)).await.unwrap();
            assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
            assert_eq!(response.headers()[SEC_WEBSOCKET_PROTOCOL], expected, "{offer:?}");
            // The example of section 1.3.
            assert_eq!(
                response.headers()["sec-websocket-accept"],
                "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
            );
        }
    }

    #[tokio::test]
    async fn other_requests_are_refused() {
        let mqtt = ["Sec-WebSocket-Protocol: mqtt"];
        assert_eq!(status(&request("GET / HTTP/1.1", &mqtt)).await, 404);
        assert_eq!(status(&request("GET /mqtt/ HTTP/1.1", &mqtt)).await, 404);
        assert_eq!(status(&request("POST /mqtt HTTP/1.1", &mqtt)).await, 405);
        assert_eq!(status(&request("GET /mqtt HTTP/1.0", &mqtt)).await, 505);
        assert_eq!(status(&request(LINE, &[])).await, 400);
        assert_eq!(
            status(&request(LINE, &["Sec-WebSocket-Protocol: chat, MQTT"])).await,
            400
        );
        assert_eq!(status(b"GET /mqtt HTTP/1.1\r\nHost: broker\r\n\r\n").await, 426);
        let early = [request(LINE, &mqtt), vec![0x82]].concat();
        assert_eq!(status(&early).await, 400);
        // MQTT without WebSocket: the first byte shows it.
        assert_eq!(status(&[0x10, 0x0c, 0, 4]).await, 400);
        let cookie = format!("Cookie: {}", "c".repeat(MAX_REQUEST));
        assert_eq!(status(&request(LINE, &[&cookie])).await, 431);
    }
}
