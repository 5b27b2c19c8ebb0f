//! Sessions that a server keeps, and both versions, against a server that says what each test wants, byte for byte.

use std::{num::NonZeroU16, time::Duration};

use bytes::BytesMut;
use foreshore_record::{Qos, Record, TopicFilter, TopicName};
use foreshore_runtime::{Shutdown, Task, spawn};
use rmqtt_codec::{
    types::{Publish, QoS},
    v3,
    v5::{self, ConnectAck, Packet, SubscribeAckReason},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::codec::{Decoder, Encoder};

use crate::{Client, ConnectionState, Options, Security, Subscriber, Target, Versions};

/// Generous: a deadline, never a measurement.
const SOON: Duration = Duration::from_secs(30);

/// Long enough for what is sent at once, and waited for in vain.
const NOTHING: Duration = Duration::from_millis(300);

struct Server {
    listener: TcpListener,
    /// Filters that its session may have from earlier.
    former: Vec<TopicFilter>,
}

/// A connection whose codec is that of a version.
struct Peer<C> {
    stream: TcpStream,
    codec: C,
    inbound: BytesMut,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let former = Vec::new();
        Self { listener, former }
    }

    fn options(&self, versions: Versions, receive_maximum: u16) -> Options {
        let target = Target {
            addresses: vec![self.listener.local_addr().unwrap().to_string()],
            security: Security::Plain,
        };
        let mut options = Options::new("session", target);
        options.versions = versions;
        options.clean_start = false;
        options.session_expiry = Duration::from_secs(3600);
        options.receive_maximum = receive_maximum;
        options.backoff_min = Duration::from_millis(5);
        options.backoff_max = Duration::from_millis(50);
        options
    }

    fn session(&self, versions: Versions, receive_maximum: u16) -> (Client, Subscriber, Task<()>) {
        let options = self.options(versions, receive_maximum);
        let filter = TopicFilter::new("kept/#").unwrap();
        let filters = vec![(filter, Qos::AtLeastOnce)];
        let (client, service, subscriber) = Client::with_session(options, filters, self.former.clone());
        (client, subscriber, spawn("mqtt", service.run(Shutdown::new())))
    }

    async fn accept<C: Default>(&self) -> Peer<C> {
        let (stream, _) = timeout(SOON, self.listener.accept()).await.unwrap().unwrap();
        Peer {
            stream,
            codec: C::default(),
            inbound: BytesMut::new(),
        }
    }

    /// Takes a connection of MQTT 5.
    async fn welcome(&self, session_present: bool, with: &[Packet]) -> Peer<v5::Codec> {
        let mut peer: Peer<v5::Codec> = self.accept().await;
        assert!(matches!(peer.next().await, Packet::Connect(connect) if !connect.clean_start));
        let acceptance = ConnectAck {
            session_present,
            ..ConnectAck::default()
        };
        let mut all = vec![Packet::ConnectAck(Box::new(acceptance))];
        all.extend_from_slice(with);
        peer.send(&all).await;
        peer
    }
}

impl<C> Peer<C> {
    async fn receive<P, N>(&mut self) -> P
    where
        C: Decoder<Item = (P, N)>,
        C::Error: std::fmt::Debug,
    {
        loop {
            if let Some((packet, _)) = self.codec.decode(&mut self.inbound).unwrap() {
                return packet;
            }
            let read = timeout(SOON, self.stream.read_buf(&mut self.inbound)).await;
            assert_ne!(read.unwrap().unwrap(), 0, "the client has closed the connection");
        }
    }

    async fn send<P: Clone>(&mut self, packets: &[P])
    where
        C: Encoder<P>,
        C::Error: std::fmt::Debug,
    {
        let mut bytes = BytesMut::new();
        for packet in packets {
            self.codec.encode(packet.clone(), &mut bytes).unwrap();
        }
        self.stream.write_all(&bytes).await.unwrap();
    }
}

impl Peer<v5::Codec> {
    async fn next(&mut self) -> Packet {
        self.receive().await
    }

    async fn subscribed(&mut self, reason: SubscribeAckReason) {
        let Packet::Subscribe(subscribe) = self.next().await else {
            panic!("no subscribe")
        };
        assert_eq!(&*subscribe.topic_filters[0].0, "kept/#");
        let ack = v5::SubscribeAck {
            packet_id: subscribe.packet_id,
            properties: Vec::new(),
            reason_string: None,
            status: vec![reason],
        };
        self.send(&[Packet::SubscribeAck(ack)]).await;
    }

    /// The identifier of the next packet, which is a PUBACK.
    async fn acknowledged(&mut self) -> u16 {
        match self.next().await {
            Packet::PublishAck(ack) => ack.packet_id.get(),
            other => panic!("{other:?}"),
        }
    }

    async fn is_silent(&mut self) -> bool {
        timeout(NOTHING, self.next()).await.is_err()
    }
}

fn publish(id: u16, payload: &str, dup: bool) -> Publish {
    Publish {
        dup,
        retain: false,
        qos: QoS::AtLeastOnce,
        topic: "kept/a".into(),
        packet_id: NonZeroU16::new(id),
        payload: payload.to_owned().into(),
        properties: Some(v5::PublishProperties::default()),
    }
}

fn message(id: u16, payload: &str, dup: bool) -> Packet {
    Packet::Publish(Box::new(publish(id, payload, dup)))
}

async fn next(subscriber: &mut Subscriber) -> crate::Delivery {
    timeout(SOON, subscriber.next()).await.unwrap().unwrap()
}

/// Resolves when the client has noticed that there is no connection.
async fn disconnected(client: &Client) {
    let mut state = client.state();
    let lost = state.wait_for(|state| matches!(state, ConnectionState::Connecting { .. }));
    timeout(SOON, lost).await.unwrap().unwrap();
}

const GRANTED: SubscribeAckReason = SubscribeAckReason::GrantedQos1;

#[tokio::test]
async fn what_the_server_kept_is_handed_out_before_anything_is_subscribed() {
    let server = Server::start().await;
    let (_client, mut subscriber, _task) = server.session(Versions::V5, 10);
    let mut peer = server
        .welcome(true, &[message(1, "one", false), message(2, "two", false)])
        .await;
    let (one, two) = (next(&mut subscriber).await, next(&mut subscriber).await);
    assert_eq!(
        (&one.record.payload[..], &two.record.payload[..]),
        (&b"one"[..], &b"two"[..])
    );
    peer.subscribed(GRANTED).await;
    assert!(peer.is_silent().await, "nothing is acknowledged by itself");
    one.acknowledge();
    assert_eq!(peer.acknowledged().await, 1);
}

#[tokio::test]
async fn what_comes_again_is_not_handed_out_again_as_long_as_it_is_held() {
    let server = Server::start().await;
    let (client, mut subscriber, _task) = server.session(Versions::V5, 10);
    let sent = [1, 2, 3].map(|id| message(id, &id.to_string(), false));
    let mut peer = server.welcome(true, &sent).await;
    peer.subscribed(GRANTED).await;
    let (one, two, three) = (
        next(&mut subscriber).await,
        next(&mut subscriber).await,
        next(&mut subscriber).await,
    );
    drop(peer);
    disconnected(&client).await;
    // Taken while there is no connection, taken later, given up.
    one.acknowledge();
    drop(three);
    let again = [1, 2, 3].map(|id| message(id, &id.to_string(), true));
    let mut peer = server.welcome(true, &again).await;
    // Subscribed it is already.
    assert_eq!(peer.acknowledged().await, 1);
    assert_eq!(&next(&mut subscriber).await.acknowledge().payload[..], b"3");
    assert_eq!(peer.acknowledged().await, 3);
    two.acknowledge();
    assert_eq!(peer.acknowledged().await, 2);

    // Its identifier is free again; and a server that has forgotten the session means another message by any.
    peer.send(&[message(2, "new", false)]).await;
    let new = next(&mut subscriber).await;
    assert_eq!(&new.record.payload[..], b"new");
    drop(peer);
    // It looks like the one that is held.
    let mut peer = server.welcome(false, &[message(2, "new", true)]).await;
    peer.subscribed(GRANTED).await;
    let other = next(&mut subscriber).await;
    assert_eq!(&other.record.payload[..], b"new");
    new.acknowledge();
    assert!(
        peer.is_silent().await,
        "of the old session nothing is acknowledged"
    );
    other.acknowledge();
    assert_eq!(peer.acknowledged().await, 2);
}

#[tokio::test]
async fn another_message_by_the_identifier_of_one_that_is_held_is_handed_out() {
    let server = Server::start().await;
    let (_client, mut subscriber, _task) = server.session(Versions::V5, 10);
    let mut peer = server.welcome(true, &[message(1, "before", false)]).await;
    peer.subscribed(GRANTED).await;
    let before = next(&mut subscriber).await;
    drop(peer);
    // A server that died and found an earlier state has sent this over a connection that broke on the way.
    let mut peer = server.welcome(true, &[message(1, "after", true)]).await;
    let after = next(&mut subscriber).await;
    assert_eq!(&after.record.payload[..], b"after");
    before.acknowledge();
    assert!(peer.is_silent().await, "it was not sent over this connection");
    after.acknowledge();
    assert_eq!(peer.acknowledged().await, 1);
}

#[tokio::test]
async fn what_is_sent_twice_over_a_connection_is_handed_out_and_acknowledged_once() {
    let server = Server::start().await;
    let (_client, mut subscriber, _task) = server.session(Versions::V5, 2);
    let mut peer = server
        .welcome(true, &[message(1, "one", false), message(1, "one", true)])
        .await;
    peer.subscribed(GRANTED).await;
    let one = next(&mut subscriber).await;
    // Of the two that may be on their way there is one.
    peer.send(&[message(1, "one", true), message(2, "two", false)])
        .await;
    let two = next(&mut subscriber).await;
    assert_eq!(&two.record.payload[..], b"two");
    one.acknowledge();
    assert_eq!(peer.acknowledged().await, 1);
    assert!(peer.is_silent().await);
}

#[tokio::test]
async fn who_is_gone_acknowledges_nothing_and_unsubscribes_nothing() {
    let server = Server::start().await;
    let (client, mut subscriber, task) = server.session(Versions::V5, 10);
    let mut peer = server.welcome(true, &[]).await;
    peer.subscribed(GRANTED).await;
    peer.send(&[message(1, "taken", false)]).await;
    next(&mut subscriber).await.acknowledge();
    drop((subscriber, client));
    peer.send(&[message(2, "late", false)]).await;
    assert_eq!(peer.acknowledged().await, 1);
    assert!(matches!(peer.next().await, Packet::Disconnect(_)));
    timeout(SOON, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_sends_more_than_it_may_is_stopped_and_not_left() {
    let server = Server::start().await;
    let (_client, mut subscriber, _task) = server.session(Versions::V5, 2);
    let sent = [1, 2, 3, 4, 5].map(|id| message(id, "x", false));
    let mut peer = server.welcome(true, &sent).await;
    peer.subscribed(GRANTED).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(next(&mut subscriber).await);
    }
    assert!(
        timeout(NOTHING, subscriber.next()).await.is_err(),
        "no more than one too many is taken"
    );
    for expected in 1..=5 {
        held.remove(0).acknowledge();
        assert_eq!(peer.acknowledged().await, expected);
        if expected <= 2 {
            held.push(next(&mut subscriber).await);
        }
    }
}

#[tokio::test]
async fn from_filters_of_earlier_the_session_is_unsubscribed_once() {
    let mut server = Server::start().await;
    server.former.push(TopicFilter::new("former/#").unwrap());
    let (_client, mut subscriber, _task) = server.session(Versions::V5, 10);
    let mut peer = server.welcome(true, &[]).await;
    let Packet::Unsubscribe(unsubscribe) = peer.next().await else {
        panic!("no unsubscribe")
    };
    assert_eq!(unsubscribe.topic_filters, ["former/#"]);
    peer.subscribed(GRANTED).await;
    // The client has the answer when it has seen what comes behind it.
    peer.send(&[message(1, "one", false)]).await;
    next(&mut subscriber).await.acknowledge();
    assert_eq!(peer.acknowledged().await, 1);
    drop(peer);
    let mut peer = server.welcome(true, &[]).await;
    assert!(peer.is_silent().await);
}

#[tokio::test]
async fn a_filter_that_is_refused_is_told_as_the_error_of_the_connection() {
    let server = Server::start().await;
    let (client, _subscriber, _task) = server.session(Versions::V5, 10);
    let mut peer = server.welcome(false, &[]).await;
    peer.subscribed(SubscribeAckReason::NotAuthorized).await;
    let mut state = client.state();
    let lost = state.wait_for(|state| matches!(state, ConnectionState::Connecting { error: Some(_), .. }));
    let found = format!("{:?}", *timeout(SOON, lost).await.unwrap().unwrap());
    assert!(
        found.contains("Subscription(Refused") && found.contains("kept/#"),
        "{found}"
    );
    // It is tried again, since policies change.
    let mut peer = server.welcome(false, &[]).await;
    peer.subscribed(GRANTED).await;
}

/// Answers MQTT 5 as a server of 3.1.1 does, and takes the connection that follows.
async fn welcome_3_1_1(server: &Server, session_present: bool) -> Peer<v3::Codec> {
    let mut peer: Peer<v5::Codec> = server.accept().await;
    assert!(matches!(peer.next().await, Packet::Connect(_)));
    peer.stream.write_all(&[0x20, 2, 0, 1]).await.unwrap();
    let mut peer: Peer<v3::Codec> = server.accept().await;
    let v3::Packet::Connect(connect) = peer.receive().await else {
        panic!("no connect")
    };
    assert!(
        !connect.clean_session && connect.protocol.level() == 4,
        "{connect:?}"
    );
    let ack = v3::ConnectAck {
        return_code: v3::ConnectAckReason::ConnectionAccepted,
        session_present,
    };
    peer.send(&[v3::Packet::ConnectAck(ack)]).await;
    peer
}

#[tokio::test]
async fn a_server_of_3_1_1_is_spoken_to_in_its_version_and_stopped_by_not_being_heard() {
    let server = Server::start().await;
    let (client, mut subscriber, _task) = server.session(Versions::V5OrV311, 2);
    let mut peer = welcome_3_1_1(&server, false).await;
    let v3::Packet::Subscribe {
        packet_id,
        topic_filters,
    } = peer.receive().await
    else {
        panic!("no subscribe")
    };
    assert_eq!(topic_filters, [("kept/#".into(), QoS::AtLeastOnce)]);
    let status = vec![v3::SubscribeReturnCode::Success(QoS::AtLeastOnce)];
    peer.send(&[v3::Packet::SubscribeAck { packet_id, status }]).await;

    let mut record = Record::new(TopicName::new("out").unwrap(), "hello");
    record.qos = Qos::AtLeastOnce;
    record.properties.push_user("not", "carried");
    let receipt = client.publish(&record).await.unwrap();
    let v3::Packet::Publish(publish) = peer.receive().await else {
        panic!("no publish")
    };
    assert_eq!((&*publish.topic, &publish.payload[..]), ("out", &b"hello"[..]));
    let packet_id = publish.packet_id.unwrap();
    peer.send(&[v3::Packet::PublishAck { packet_id }]).await;
    timeout(SOON, receipt).await.unwrap().unwrap();

    // It knows no receive maximum.
    let sent = [1, 2, 3, 4, 5].map(|id| v3::Packet::Publish(Box::new(self::publish(id, "x", false))));
    peer.send(&sent).await;
    let mut held = vec![next(&mut subscriber).await, next(&mut subscriber).await];
    assert!(
        timeout(NOTHING, subscriber.next()).await.is_err(),
        "a third one is not taken"
    );
    for expected in 1..=5 {
        held.remove(0).acknowledge();
        let v3::Packet::PublishAck { packet_id } = peer.receive().await else {
            panic!("no acknowledgement")
        };
        assert_eq!(packet_id.get(), expected);
        if expected < 4 {
            held.push(next(&mut subscriber).await);
        }
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_on_mqtt_5_is_asked_in_3_1_1() {
    let server = Server::start().await;
    let (client, _subscriber, _task) = server.session(Versions::V5OrV311, 2);
    drop(server.accept::<v5::Codec>().await);
    let mut peer: Peer<v3::Codec> = server.accept().await;
    assert!(matches!(peer.receive().await, v3::Packet::Connect(_)));
    let ack = v3::ConnectAck {
        return_code: v3::ConnectAckReason::NotAuthorized,
        session_present: false,
    };
    peer.send(&[v3::Packet::ConnectAck(ack)]).await;
    let mut state = client.state();
    let refused = state.wait_for(|state| matches!(state, ConnectionState::Connecting { error: Some(_), .. }));
    let found = format!("{:?}", *timeout(SOON, refused).await.unwrap().unwrap());
    assert!(found.contains("ReasonCode(135)"), "{found}");
}

#[tokio::test]
async fn a_server_that_has_spoken_mqtt_5_is_no_older_for_hanging_up() {
    let server = Server::start().await;
    let (client, _subscriber, _task) = server.session(Versions::V5OrV311, 2);
    let mut peer = server.welcome(true, &[]).await;
    peer.subscribed(GRANTED).await;
    drop(peer);
    // A proxy, while the server starts.
    drop(server.accept::<v5::Codec>().await);
    let peer = server.welcome(true, &[]).await;
    drop(peer);
    drop(client);
}

#[tokio::test]
async fn a_client_that_is_given_up_makes_no_further_try() {
    let server = Server::start().await;
    let mut options = server.options(Versions::V311, 2);
    options.backoff_min = SOON;
    options.backoff_max = SOON;
    let (client, service) = Client::new(options);
    let shutdown = Shutdown::new();
    let running = spawn("mqtt", service.run(shutdown.clone()));
    drop(server.accept::<v3::Codec>().await);
    let mut state = client.state();
    let failed = state.wait_for(|state| matches!(state, ConnectionState::Connecting { error: Some(_), .. }));
    drop(timeout(SOON, failed).await.unwrap().unwrap());
    shutdown.begin(SOON);
    timeout(SOON, running).await.unwrap().unwrap();
    assert!(timeout(NOTHING, server.listener.accept()).await.is_err());
}
