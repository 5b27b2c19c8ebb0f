//! An MQTT client that does what a test says and nothing else.

use std::{
    net::SocketAddr,
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rmqtt_codec::{types::QoS, v3, v5};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::codec::{Decoder, Encoder};

/// Longer than anything takes on a machine that has much else to do.
pub(crate) const GENEROUS: Duration = Duration::from_secs(60);

/// What carries a connection.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A client of version 5.
pub(crate) struct Client {
    stream: Box<dyn Stream>,
    codec: v5::Codec,
    input: BytesMut,
}

/// A client of version 3.1.1.
pub(crate) struct Client3 {
    stream: TcpStream,
    codec: v3::Codec,
    input: BytesMut,
}

pub(crate) fn id(packet_id: u16) -> NonZeroU16 {
    NonZeroU16::new(packet_id).unwrap()
}

/// A CONNECT with Clean Start.
pub(crate) fn hello(client_id: &str) -> v5::Connect {
    v5::Connect {
        client_id: client_id.into(),
        clean_start: true,
        ..v5::Connect::default()
    }
}

/// A CONNECT that wants its session back, and kept for an hour.
pub(crate) fn back(client_id: &str) -> v5::Connect {
    v5::Connect {
        clean_start: false,
        session_expiry_interval_secs: 3600,
        ..hello(client_id)
    }
}

pub(crate) fn publish(topic: &str, payload: &str, qos: QoS, packet_id: u16) -> rmqtt_codec::types::Publish {
    rmqtt_codec::types::Publish {
        dup: false,
        retain: false,
        qos,
        topic: topic.into(),
        packet_id: NonZeroU16::new(packet_id),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        properties: None,
    }
}

pub(crate) fn retained(topic: &str, payload: &str, qos: QoS, packet_id: u16) -> rmqtt_codec::types::Publish {
    rmqtt_codec::types::Publish {
        retain: true,
        ..publish(topic, payload, qos, packet_id)
    }
}

impl Client {
    /// Opens a connection without a word.
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    pub(crate) fn over(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            codec: v5::Codec::new(0, 0),
            input: BytesMut::new(),
        }
    }

    /// Connects and expects to be let in.
    pub(crate) async fn connect(address: SocketAddr, connect: v5::Connect) -> (Self, v5::ConnectAck) {
        let mut client = Self::open(address).await;
        client.send(v5::Packet::Connect(Box::new(connect))).await;
        let ack = client.connack().await;
        assert_eq!(ack.reason_code, v5::ConnectAckReason::Success, "{ack:?}");
        (client, ack)
    }

    /// Connects with Clean Start.
    pub(crate) async fn clean(address: SocketAddr, client_id: &str) -> Self {
        Self::connect(address, hello(client_id)).await.0
    }

    pub(crate) async fn connack(&mut self) -> v5::ConnectAck {
        match self.receive().await {
            v5::Packet::ConnectAck(ack) => *ack,
            other => panic!("CONNACK expected, {other:?} came"),
        }
    }

    pub(crate) async fn send(&mut self, packet: v5::Packet) {
        let mut out = BytesMut::new();
        self.codec.encode(packet, &mut out).unwrap();
        self.send_raw(&out).await;
    }

    pub(crate) async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next packet; `None` when the broker has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<v5::Packet> {
        loop {
            if let Some((packet, _)) = self.codec.decode(&mut self.input).unwrap() {
                return Some(packet);
            }
            let read = tokio::time::timeout(GENEROUS, self.stream.read_buf(&mut self.input));
            match read.await.expect("a packet in time") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// A packet that has arrived by now.
    pub(crate) async fn arrived(&mut self) -> Option<v5::Packet> {
        let soon = Duration::from_millis(1);
        if let Ok(Ok(_)) = tokio::time::timeout(soon, self.stream.read_buf(&mut self.input)).await {
            return self
                .codec
                .decode(&mut self.input)
                .unwrap()
                .map(|(packet, _)| packet);
        }
        None
    }

    pub(crate) async fn receive(&mut self) -> v5::Packet {
        self.next().await.expect("a packet and not the end")
    }

    /// Expects DISCONNECT and the end.
    pub(crate) async fn expect_disconnect(&mut self) -> v5::DisconnectReasonCode {
        loop {
            match self.receive().await {
                v5::Packet::Disconnect(disconnect) => {
                    assert!(self.next().await.is_none());
                    return disconnect.reason_code;
                }
                v5::Packet::Publish(_) => {}
                other => panic!("DISCONNECT expected, {other:?} came"),
            }
        }
    }

    pub(crate) async fn expect_end(&mut self) {
        while self.next().await.is_some() {}
    }

    /// Subscribes to one filter, and returns the reason.
    pub(crate) async fn subscribe(&mut self, filter: &str, qos: QoS) -> v5::SubscribeAckReason {
        let options = v5::SubscriptionOptions {
            qos,
            ..v5::SubscriptionOptions::default()
        };
        self.subscribe_with(filter, options, None).await
    }

    pub(crate) async fn subscribe_with(
        &mut self,
        filter: &str,
        options: v5::SubscriptionOptions,
        identifier: Option<u32>,
    ) -> v5::SubscribeAckReason {
        self.send(v5::Packet::Subscribe(v5::Subscribe {
            packet_id: id(60_000),
            id: identifier.and_then(NonZeroU32::new),
            user_properties: Vec::new(),
            topic_filters: vec![(filter.into(), options)],
        }))
        .await;
        match self.receive().await {
            v5::Packet::SubscribeAck(ack) => ack.status[0],
            other => panic!("SUBACK expected, {other:?} came"),
        }
    }

    pub(crate) async fn unsubscribe(&mut self, filter: &str) -> v5::UnsubscribeAckReason {
        self.send(v5::Packet::Unsubscribe(v5::Unsubscribe {
            packet_id: id(60_001),
            user_properties: Vec::new(),
            topic_filters: vec![filter.into()],
        }))
        .await;
        match self.receive().await {
            v5::Packet::UnsubscribeAck(ack) => ack.status[0],
            other => panic!("UNSUBACK expected, {other:?} came"),
        }
    }

    /// Sends messages in one piece, as a client does that waits for nothing.
    pub(crate) async fn send_publishes(&mut self, all: impl Iterator<Item = rmqtt_codec::types::Publish>) {
        let mut bytes = BytesMut::new();
        for publish in all {
            let packet = v5::Packet::Publish(Box::new(publish));
            self.codec.encode(packet, &mut bytes).unwrap();
        }
        self.send_raw(&bytes).await;
    }

    pub(crate) async fn send_publish(&mut self, publish: rmqtt_codec::types::Publish) {
        self.send(v5::Packet::Publish(Box::new(publish))).await;
    }

    /// Publishes with quality of service 1, and returns the reason.
    pub(crate) async fn publish(&mut self, topic: &str, payload: &str) -> v5::PublishAckReason {
        self.publish_packet(publish(topic, payload, QoS::AtLeastOnce, 7))
            .await
    }

    /// Publishes with whatever quality of service, through all its steps, and returns the first reason.
    pub(crate) async fn publish_packet(
        &mut self,
        publish: rmqtt_codec::types::Publish,
    ) -> v5::PublishAckReason {
        let qos = publish.qos;
        self.send_publish(publish).await;
        match qos {
            QoS::AtMostOnce => v5::PublishAckReason::Success,
            QoS::AtLeastOnce => match self.receive().await {
                v5::Packet::PublishAck(ack) => ack.reason_code,
                other => panic!("PUBACK expected, {other:?} came"),
            },
            QoS::ExactlyOnce => {
                let received = match self.receive().await {
                    v5::Packet::PublishReceived(ack) => ack,
                    other => panic!("PUBREC expected, {other:?} came"),
                };
                if u8::from(received.reason_code) < 0x80 {
                    self.release(received.packet_id.get()).await;
                    match self.receive().await {
                        v5::Packet::PublishComplete(_) => {}
                        other => panic!("PUBCOMP expected, {other:?} came"),
                    }
                }
                received.reason_code
            }
        }
    }

    pub(crate) async fn release(&mut self, packet_id: u16) {
        let release = v5::PublishAck2 {
            packet_id: id(packet_id),
            ..v5::PublishAck2::default()
        };
        self.send(v5::Packet::PublishRelease(release)).await;
    }

    pub(crate) async fn acknowledge(&mut self, packet_id: u16) {
        let ack = v5::PublishAck {
            packet_id: id(packet_id),
            ..v5::PublishAck::default()
        };
        self.send(v5::Packet::PublishAck(ack)).await;
    }

    pub(crate) async fn received(&mut self, packet_id: u16) {
        let ack = v5::PublishAck {
            packet_id: id(packet_id),
            ..v5::PublishAck::default()
        };
        self.send(v5::Packet::PublishReceived(ack)).await;
    }

    pub(crate) async fn complete(&mut self, packet_id: u16) {
        let ack = v5::PublishAck2 {
            packet_id: id(packet_id),
            ..v5::PublishAck2::default()
        };
        self.send(v5::Packet::PublishComplete(ack)).await;
    }

    /// The next message, without acknowledging it.
    pub(crate) async fn message(&mut self) -> rmqtt_codec::types::Publish {
        match self.receive().await {
            v5::Packet::Publish(publish) => *publish,
            other => panic!("PUBLISH expected, {other:?} came"),
        }
    }

    /// The next message, acknowledged through all its steps, as text.
    pub(crate) async fn take(&mut self) -> String {
        let message = self.message().await;
        match (message.qos, message.packet_id) {
            (QoS::AtLeastOnce, Some(packet_id)) => self.acknowledge(packet_id.get()).await,
            (QoS::ExactlyOnce, Some(packet_id)) => {
                self.received(packet_id.get()).await;
                self.expect_release(packet_id.get()).await;
                self.complete(packet_id.get()).await;
            }
            _ => {}
        }
        String::from_utf8(message.payload.to_vec()).unwrap()
    }

    pub(crate) async fn expect_release(&mut self, packet_id: u16) {
        match self.receive().await {
            v5::Packet::PublishRelease(release) => assert_eq!(release.packet_id.get(), packet_id),
            other => panic!("PUBREL expected, {other:?} came"),
        }
    }

    /// Waits until everything that was sent before has been worked on.
    pub(crate) async fn ping(&mut self) {
        self.send(v5::Packet::PingRequest).await;
        match self.receive().await {
            v5::Packet::PingResponse => {}
            other => panic!("PINGRESP expected, {other:?} came"),
        }
    }

    /// Says good-bye, and waits for the end.
    pub(crate) async fn disconnect(mut self) {
        self.send(v5::Packet::Disconnect(v5::Disconnect::default())).await;
        self.expect_end().await;
    }
}

impl Client3 {
    /// Opens a connection and sends CONNECT.
    pub(crate) async fn open(address: SocketAddr, connect: v3::Connect) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut client = Self {
            stream,
            codec: v3::Codec::new(0),
            input: BytesMut::new(),
        };
        client.send(v3::Packet::Connect(Box::new(connect))).await;
        client
    }

    /// Connects and expects to be let in; tells whether the session was present.
    pub(crate) async fn connect(address: SocketAddr, client_id: &str, clean_session: bool) -> (Self, bool) {
        let connect = v3::Connect {
            client_id: client_id.into(),
            clean_session,
            ..v3::Connect::default()
        };
        let mut client = Self::open(address, connect).await;
        match client.receive().await {
            v3::Packet::ConnectAck(ack) => {
                assert_eq!(ack.return_code, v3::ConnectAckReason::ConnectionAccepted);
                (client, ack.session_present)
            }
            other => panic!("CONNACK expected, {other:?} came"),
        }
    }

    pub(crate) async fn send(&mut self, packet: v3::Packet) {
        let mut out = BytesMut::new();
        self.codec.encode(packet, &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Option<v3::Packet> {
        loop {
            if let Some((packet, _)) = self.codec.decode(&mut self.input).unwrap() {
                return Some(packet);
            }
            let read = tokio::time::timeout(GENEROUS, self.stream.read_buf(&mut self.input));
            match read.await.expect("a packet in time") {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub(crate) async fn receive(&mut self) -> v3::Packet {
        self.next().await.expect("a packet and not the end")
    }

    pub(crate) async fn subscribe(&mut self, filter: &str, qos: QoS) -> v3::SubscribeReturnCode {
        let topic_filters = vec![(filter.into(), qos)];
        self.send(v3::Packet::Subscribe {
            packet_id: id(60_000),
            topic_filters,
        })
        .await;
        match self.receive().await {
            v3::Packet::SubscribeAck { status, .. } => status[0],
            other => panic!("SUBACK expected, {other:?} came"),
        }
    }

    pub(crate) async fn publish(&mut self, topic: &str, payload: &str) {
        self.send(v3::Packet::Publish(Box::new(publish(
            topic,
            payload,
            QoS::AtLeastOnce,
            7,
        ))))
        .await;
        match self.receive().await {
            v3::Packet::PublishAck { packet_id } => assert_eq!(packet_id, id(7)),
            other => panic!("PUBACK expected, {other:?} came"),
        }
    }

    /// The next message, acknowledged with quality of service 1, as text.
    pub(crate) async fn take(&mut self) -> String {
        match self.receive().await {
            v3::Packet::Publish(publish) => {
                if let Some(packet_id) = publish.packet_id {
                    self.send(v3::Packet::PublishAck { packet_id }).await;
                }
                String::from_utf8(publish.payload.to_vec()).unwrap()
            }
            other => panic!("PUBLISH expected, {other:?} came"),
        }
    }
}
