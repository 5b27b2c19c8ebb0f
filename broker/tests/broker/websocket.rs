//! MQTT over WebSocket, frame by frame (MQTT 5.0 section 6, RFC 6455).

use std::{net::SocketAddr, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use foreshore_broker::{Limits, Options, Protocol};
use rmqtt_codec::{
    types::QoS,
    v5::{self, DisconnectReasonCode, Packet},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::codec::{Decoder, Encoder};

use crate::{
    TestBroker,
    client::{GENEROUS, Stream, hello, publish},
    options,
    role::{Plant, broker},
};

/// First bytes of frames that stand for themselves.
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

const MASK: [u8; 4] = [0xa1, 0x5e, 0x0f, 0xff];

pub(crate) fn websocket() -> Options {
    let mut options = options();
    options.listeners[0].protocol = Protocol::WebSocket { path: "/mqtt".into() };
    options
}

async fn start_limited(limits: Limits) -> TestBroker {
    TestBroker::start_with(Options {
        limits,
        ..websocket()
    })
    .await
}

/// A request to upgrade, with one more header.
fn request(line: &str, header: &str) -> String {
    format!(
        "{line}\r\nHost: broker\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{header}\r\n\r\n"
    )
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(first, payload.len() as u64);
    bytes.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    bytes
}

/// The header of a frame with a length in its longest form.
fn header(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(0x80 | length as u8),
        126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes
}

fn encoded(packet: Packet) -> BytesMut {
    let mut bytes = BytesMut::new();
    v5::Codec::new(0, 0).encode(packet, &mut bytes).unwrap();
    bytes
}

fn connect(client_id: &str) -> BytesMut {
    encoded(Packet::Connect(Box::new(hello(client_id))))
}

/// A client that sends the frames that a test says.
pub(crate) struct Raw {
    stream: Box<dyn Stream>,
    input: BytesMut,
    /// Bytes of MQTT that arrived and make no packet yet.
    mqtt: BytesMut,
    codec: v5::Codec,
}

impl Raw {
    /// Opens a connection without a word.
    async fn silent(address: SocketAddr) -> Self {
        Self::bare(TcpStream::connect(address).await.unwrap())
    }

    fn bare(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            input: BytesMut::new(),
            mqtt: BytesMut::new(),
            codec: v5::Codec::new(0, 0),
        }
    }

    /// Asks for something, and returns the head of the response.
    async fn asking(address: SocketAddr, request: &str) -> (Self, String) {
        let mut client = Self::silent(address).await;
        let head = client.ask(request).await;
        (client, head)
    }

    async fn ask(&mut self, request: &str) -> String {
        self.send(request.as_bytes()).await;
        let end = loop {
            if let Some(end) = self.input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(self.fill().await, "a response expected, the end came");
        };
        let head = self.input.split_to(end);
        String::from_utf8(head.to_vec()).unwrap()
    }

    /// A WebSocket for MQTT.
    async fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), "/mqtt").await
    }

    pub(crate) async fn over(stream: impl Stream + 'static, path: &str) -> Self {
        let mut client = Self::bare(stream);
        let line = format!("GET {path} HTTP/1.1");
        let head = client.ask(&request(&line, "Sec-WebSocket-Protocol: mqtt")).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client
    }

    /// A client that was let in.
    async fn connected(address: SocketAddr, client_id: &str) -> Self {
        let mut client = Self::open(address).await;
        client.connect(client_id).await;
        client
    }

    pub(crate) async fn connect(&mut self, client_id: &str) {
        self.send(&frame(BINARY, &connect(client_id))).await;
        self.expect_connack().await;
    }

    /// Waits until everything that was sent before has been worked on.
    pub(crate) async fn ping(&mut self) {
        self.send(&frame(BINARY, &encoded(Packet::PingRequest))).await;
        assert!(matches!(self.packet().await, Packet::PingResponse));
    }

    async fn expect_connack(&mut self) {
        match self.packet().await {
            Packet::ConnectAck(ack) => {
                assert_eq!(ack.reason_code, v5::ConnectAckReason::Success, "{ack:?}");
            }
            other => panic!("CONNACK expected, {other:?} came"),
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Reads more; tells whether there was more.
    async fn fill(&mut self) -> bool {
        let read = tokio::time::timeout(GENEROUS, self.stream.read_buf(&mut self.input));
        matches!(read.await.expect("bytes in time"), Ok(1..))
    }

    /// The next frame, by its first byte and payload; `None` at the end.
    async fn frame(&mut self) -> Option<(u8, Bytes)> {
        loop {
            if let [first, second, rest @ ..] = &self.input[..] {
                assert_eq!(second & 0x80, 0, "a server masks nothing");
                let (length, skipped) = match (*second, rest) {
                    (126, [a, b, ..]) => (Some(usize::from(u16::from_be_bytes([*a, *b]))), 4),
                    (126 | 127, _) => (None, 0),
                    (short, _) => (Some(usize::from(short)), 2),
                };
                assert_ne!(*second, 127, "no frame is longer than 64 KiB");
                if let Some(length) = length
                    && self.input.len() >= skipped + length
                {
                    let first = *first;
                    self.input.advance(skipped);
                    return Some((first, self.input.split_to(length).freeze()));
                }
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    /// The next packet, out of frames that hold nothing else.
    pub(crate) async fn packet(&mut self) -> Packet {
        loop {
            if let Some((packet, _)) = self.codec.decode(&mut self.mqtt).unwrap() {
                return packet;
            }
            match self.frame().await {
                Some((BINARY, payload)) => self.mqtt.extend_from_slice(&payload),
                other => panic!("a binary frame expected, {other:?} came"),
            }
        }
    }

    /// Expects a closing frame and the end.
    async fn expect_close(&mut self, code: &[u8]) {
        let (first, payload) = self.frame().await.expect("a closing frame");
        assert_eq!((first, &payload[..]), (CLOSE, code));
        assert_eq!(self.frame().await, None);
    }

    async fn expect_end(&mut self) {
        while self.fill().await {}
    }
}

fn code(code: u16) -> [u8; 2] {
    code.to_be_bytes()
}

fn subscribe(filter: &str) -> BytesMut {
    encoded(Packet::Subscribe(v5::Subscribe {
        packet_id: crate::client::id(1),
        id: None,
        user_properties: Vec::new(),
        topic_filters: vec![(filter.into(), v5::SubscriptionOptions::default())],
    }))
}

#[tokio::test]
async fn packets_and_frames_begin_and_end_where_they_like() {
    let broker = TestBroker::start_with(websocket()).await;
    let mut client = Raw::open(broker.address).await;
    // One packet in many frames of one message, with a ping between them.
    let connect = connect("c");
    let (first, rest) = connect.split_at(1);
    client.send(&frame(0x02, first)).await;
    client.send(&frame(PING, b"still there")).await;
    for byte in &rest[..rest.len() - 1] {
        client.send(&frame(0x00, &[*byte])).await;
    }
    client.send(&frame(0x80, &rest[rest.len() - 1..])).await;
    assert_eq!(
        client.frame().await,
        Some((PONG, Bytes::from_static(b"still there")))
    );
    client.expect_connack().await;
    client.send(&frame(BINARY, &subscribe("a"))).await;
    assert!(matches!(client.packet().await, Packet::SubscribeAck(_)));
    // Several packets in one frame, and the last of them in parts.
    let payload = "x".repeat(200_000);
    let packets = [
        encoded(Packet::PingRequest),
        encoded(Packet::PingRequest),
        encoded(Packet::Publish(Box::new(publish(
            "a",
            &payload,
            QoS::AtMostOnce,
            0,
        )))),
    ]
    .concat();
    let (one, two) = packets.split_at(1000);
    client.send(&frame(BINARY, one)).await;
    client.send(&frame(BINARY, two)).await;
    assert!(matches!(client.packet().await, Packet::PingResponse));
    assert!(matches!(client.packet().await, Packet::PingResponse));
    match client.packet().await {
        Packet::Publish(message) => assert!(message.payload == payload),
        other => panic!("PUBLISH expected, {other:?} came"),
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_text_frame_closes_the_connection() {
    let broker = TestBroker::start_with(websocket()).await;
    let mut stranger = Raw::open(broker.address).await;
    stranger.send(&frame(0x81, &connect("text"))).await;
    stranger.expect_close(&code(1003)).await;

    let mut watcher = Raw::connected(broker.address, "watcher").await;
    watcher.send(&frame(BINARY, &subscribe("wills"))).await;
    assert!(matches!(watcher.packet().await, Packet::SubscribeAck(_)));
    let mut client = Raw::open(broker.address).await;
    let mut connect = hello("client");
    connect.last_will = Some(crate::protocol::will("wills", None));
    client
        .send(&frame(BINARY, &encoded(Packet::Connect(Box::new(connect)))))
        .await;
    client.expect_connack().await;
    // What came before it counts.
    let both = [frame(BINARY, &encoded(Packet::PingRequest)), frame(0x81, b"text")];
    client.send(&both.concat()).await;
    assert!(matches!(client.packet().await, Packet::PingResponse));
    client.expect_close(&code(1003)).await;
    // It went without a good-bye.
    assert!(matches!(watcher.packet().await, Packet::Publish(_)));
    let mut unmasked = Raw::connected(broker.address, "unmasked").await;
    unmasked.send(&[BINARY, 2, 0xc0, 0]).await;
    unmasked.expect_close(&code(1002)).await;
}

#[tokio::test]
async fn whoever_asks_for_something_else_is_told_and_closed() {
    let broker = TestBroker::start_with(websocket()).await;
    let mqtt = "Sec-WebSocket-Protocol: mqtt";
    let oversize = format!("Cookie: {}", "c".repeat(10_000));
    for (line, header, status) in [
        ("GET / HTTP/1.1", mqtt, "404"),
        ("GET /mqtt/more HTTP/1.1", mqtt, "404"),
        ("GET /mqtt HTTP/1.1", "X-Other: header", "400"),
        ("GET /mqtt HTTP/1.1", "Sec-WebSocket-Protocol: chat", "400"),
        ("POST /mqtt HTTP/1.1", mqtt, "405"),
        ("GET /mqtt HTTP/1.1", &oversize, "431"),
    ] {
        let (mut client, head) = Raw::asking(broker.address, &request(line, header)).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {head}");
        client.expect_end().await;
    }
    let (mut client, head) = Raw::asking(broker.address, "GET /mqtt HTTP/1.1\r\nHost: b\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 426 "), "{head}");
    assert!(head.contains("sec-websocket-version: 13"), "{head}");
    client.expect_end().await;
    // MQTT without WebSocket.
    let mut client = Raw::silent(broker.address).await;
    client.send(&connect("bare")).await;
    client.expect_end().await;
    let old = request("GET /mqtt HTTP/1.1", "Sec-WebSocket-Protocol: mqttv3.1");
    let (_, head) = Raw::asking(broker.address, &old).await;
    assert!(head.contains("sec-websocket-protocol: mqttv3.1"), "{head}");
}

#[tokio::test]
async fn a_packet_that_is_too_large_is_refused_and_a_frame_never_is() {
    let broker = start_limited(Limits {
        max_packet_size: 1000,
        ..Limits::default()
    })
    .await;
    let mut client = Raw::connected(broker.address, "c").await;
    // A frame that claims four exbibytes is as good as any stream.
    client.send(&header(BINARY, 1 << 62)).await;
    let masked = |bytes: &[u8]| frame(BINARY, bytes)[6..].to_vec();
    let pings = encoded(Packet::PingRequest).repeat(2);
    for _ in 0..100 {
        client.send(&masked(&pings)).await;
        for _ in 0..2 {
            assert!(matches!(client.packet().await, Packet::PingResponse));
        }
    }
    let large = publish("a", &"x".repeat(2000), QoS::AtMostOnce, 0);
    client
        .send(&masked(&encoded(Packet::Publish(Box::new(large)))[..4]))
        .await;
    match client.packet().await {
        Packet::Disconnect(disconnect) => {
            assert_eq!(disconnect.reason_code, DisconnectReasonCode::PacketTooLarge);
        }
        other => panic!("DISCONNECT expected, {other:?} came"),
    }
    client.expect_close(&code(1000)).await;
    let mut client = Raw::connected(broker.address, "d").await;
    client.send(&frame(PING, &[0; 126])).await;
    client.expect_close(&code(1002)).await;
}

#[tokio::test]
async fn whoever_falls_silent_is_given_up() {
    let broker = start_limited(Limits {
        connect_timeout: Duration::from_millis(300),
        ..Limits::default()
    })
    .await;
    Raw::silent(broker.address).await.expect_end().await;
    let mut half = Raw::silent(broker.address).await;
    half.send(b"GET /mqtt HTTP/1.1\r\nHost: b").await;
    half.expect_end().await;
    Raw::open(broker.address).await.expect_end().await;
    // The last word of a client that is gone, and of one that closes its side without a closing frame.
    let mut gone = Raw::connected(broker.address, "gone").await;
    gone.stream.shutdown().await.unwrap();
    gone.expect_end().await;
    let sessions = broker.handle.sessions(None, 10).await.unwrap().items;
    assert!(
        sessions.iter().all(|session| session.connection.is_none()),
        "{sessions:?}"
    );
}

#[tokio::test]
async fn a_ping_of_websocket_keeps_no_client_of_mqtt_alive() {
    let broker = TestBroker::start_with(websocket()).await;
    let mut client = Raw::open(broker.address).await;
    let mut connect = hello("c");
    connect.keep_alive = 1;
    client
        .send(&frame(BINARY, &encoded(Packet::Connect(Box::new(connect)))))
        .await;
    client.expect_connack().await;
    let mut pongs = 0;
    let disconnect = loop {
        // It may be closed already.
        drop(client.stream.write_all(&frame(PING, b"")).await);
        match client.frame().await.expect("a frame") {
            (PONG, _) => pongs += 1,
            (BINARY, payload) => break payload,
            other => panic!("PONG or DISCONNECT expected, {other:?} came"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(pongs > 0);
    let keep_alive_timeout = u8::from(DisconnectReasonCode::KeepAliveTimeout);
    assert_eq!((disconnect[0], disconnect[2]), (0xe0, keep_alive_timeout));
}

#[tokio::test]
async fn either_side_closes_in_order() {
    let broker = TestBroker::start_with(websocket()).await;
    let mut client = Raw::connected(broker.address, "c").await;
    let good_bye = encoded(Packet::Disconnect(v5::Disconnect::default()));
    client.send(&frame(BINARY, &good_bye)).await;
    client.expect_close(&code(1000)).await;
    let mut client = Raw::connected(broker.address, "c").await;
    client.send(&frame(CLOSE, &[0x0f, 0xa0, b'w', b'h', b'y'])).await;
    client.expect_close(&code(4000)).await;
    let mut client = Raw::connected(broker.address, "c").await;
    client.send(&frame(CLOSE, b"")).await;
    client.expect_close(b"").await;
    let mut early = Raw::open(broker.address).await;
    early.send(&frame(CLOSE, &code(1001))).await;
    early.expect_close(&code(1001)).await;
    let mut client = Raw::connected(broker.address, "c").await;
    let stopping = tokio::spawn(broker.stop());
    assert!(matches!(client.packet().await, Packet::Disconnect(_)));
    client.expect_close(&code(1000)).await;
    stopping.await.unwrap();
}

#[tokio::test]
async fn pings_without_end_cost_one_answer() {
    let broker = TestBroker::start_with(websocket()).await;
    let mut client = Raw::connected(broker.address, "c").await;
    let pings = frame(PING, &[b'p'; 125]).repeat(100_000);
    let last = frame(PING, b"last");
    // Nothing is read while all of it is written: the broker must take it in without keeping answers.
    client.send(&pings).await;
    client.send(&last).await;
    loop {
        let (first, payload) = client.frame().await.unwrap();
        assert_eq!(first, PONG);
        if payload == "last" {
            break;
        }
    }
    client.ping().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_opens_a_websocket_whose_path_can_change() {
    let mut plant = Plant::new();
    let port = foreshore_peers::free_port();
    let plan = |path: Option<&str>| {
        let mut listener = serde_json::json!({
            "name": "web", "port": port, "protocol": "WebSocket", "authentication": [{ "anonymous": {} }],
        });
        if let Some(path) = path {
            listener["path"] = path.into();
        }
        broker(serde_json::json!({ "listeners": [listener] }))
    };
    plant.set(&plan(None)).await.unwrap();
    let address = plant.address("web");
    assert_eq!(plant.url("web"), format!("ws://{address}/mqtt"));
    let mut client = Raw::connected(address, "c").await;
    plant.set(&plan(Some("/plant/line"))).await.unwrap();
    assert_eq!(plant.url("web"), format!("ws://{address}/plant/line"));
    client.ping().await;
    let late = request("GET /mqtt HTTP/1.1", "Sec-WebSocket-Protocol: mqtt");
    let (_, head) = Raw::asking(address, &late).await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    let stream = TcpStream::connect(address).await.unwrap();
    Raw::over(stream, "/plant/line").await.connect("d").await;
    for wrong in ["/plant?line=1", "/plant#line", "/plant line"] {
        let nack = plant.set(&plan(Some(wrong))).await.unwrap_err();
        assert_eq!(nack.reason, "Invalid");
        assert!(nack.message.contains(wrong), "{}", nack.message);
    }
    client.ping().await;
}
