//! Points of the protocol, one a test.

use std::time::Duration;

use foreshore_broker::Limits;
use rmqtt_codec::{
    types::QoS,
    v5::{
        self, PublishAckReason, PublishProperties, RetainHandling, SubscribeAckReason, SubscriptionOptions,
    },
};

use crate::{
    TestBroker,
    client::{Client, back, hello, publish, retained},
};

fn options(qos: QoS) -> SubscriptionOptions {
    SubscriptionOptions {
        qos,
        ..SubscriptionOptions::default()
    }
}

pub(crate) fn will(topic: &str, delay: Option<u32>) -> v5::LastWill {
    v5::LastWill {
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: topic.to_owned().into(),
        message: "gone".into(),
        will_delay_interval_sec: delay,
        correlation_data: None,
        message_expiry_interval: None,
        content_type: None,
        user_properties: Vec::new(),
        is_utf8_payload: None,
        response_topic: None,
    }
}

#[tokio::test]
async fn retained_messages_follow_the_subscription() {
    let broker = TestBroker::start().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for index in 0..500 {
        publisher
            .publish_packet(retained(&format!("r/{index}"), "x", QoS::AtLeastOnce, 1))
            .await;
    }
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("r/#", QoS::AtLeastOnce).await;
    for _ in 0..500 {
        let message = reader.message().await;
        assert!(message.retain);
        reader.acknowledge(message.packet_id.unwrap().get()).await;
    }
    // Handling 1: only if the subscription is new. Handling 2: never.
    let if_new = SubscriptionOptions {
        retain_handling: RetainHandling::AtSubscribeNew,
        ..options(QoS::AtLeastOnce)
    };
    reader.subscribe_with("r/#", if_new, None).await;
    let never = SubscriptionOptions {
        retain_handling: RetainHandling::NoAtSubscribe,
        ..options(QoS::AtLeastOnce)
    };
    reader.subscribe_with("r/7", never, None).await;
    publisher.publish("r/live", "live").await;
    let live = reader.message().await;
    assert_eq!((&live.payload[..], live.retain), (&b"live"[..], false));
    reader.acknowledge(live.packet_id.unwrap().get()).await;
    // As published, the flag stays.
    let as_published = SubscriptionOptions {
        retain_as_published: true,
        ..options(QoS::AtMostOnce)
    };
    reader.subscribe_with("s", as_published, None).await;
    publisher
        .publish_packet(retained("s", "flagged", QoS::AtLeastOnce, 1))
        .await;
    assert!(reader.message().await.retain);
    // An empty payload forgets.
    publisher
        .publish_packet(retained("s", "", QoS::AtLeastOnce, 1))
        .await;
    assert_eq!(reader.take().await, "");
    let mut late = Client::clean(broker.address, "late").await;
    late.subscribe("s", QoS::AtMostOnce).await;
    publisher.publish("s", "first").await;
    assert_eq!(late.take().await, "first");
}

#[tokio::test]
async fn no_local_and_identifiers_and_overlapping_filters() {
    let broker = TestBroker::start().await;
    let mut client = Client::clean(broker.address, "c").await;
    let no_local = SubscriptionOptions {
        no_local: true,
        ..options(QoS::AtLeastOnce)
    };
    client.subscribe_with("own/#", no_local, None).await;
    client
        .subscribe_with("a/+", options(QoS::AtMostOnce), Some(7))
        .await;
    client
        .subscribe_with("a/#", options(QoS::AtLeastOnce), Some(300))
        .await;
    assert_eq!(
        client.publish("own/x", "not back").await,
        PublishAckReason::Success
    );
    let mut other = Client::clean(broker.address, "o").await;
    other.publish("a/b", "once").await;
    let message = client.message().await;
    assert_eq!(
        (message.qos, &message.payload[..]),
        (QoS::AtLeastOnce, &b"once"[..])
    );
    let ids: Vec<u32> = message
        .properties
        .unwrap()
        .subscription_ids
        .iter()
        .map(|id| id.get())
        .collect();
    assert_eq!(ids, [7, 300]);
    client.acknowledge(message.packet_id.unwrap().get()).await;
    other.publish("own/x", "from another").await;
    assert_eq!(client.take().await, "from another");
}

#[tokio::test]
async fn wills_are_published_unless_the_client_says_good_bye() {
    let broker = TestBroker::start().await;
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("will/#", QoS::AtLeastOnce).await;
    let connect = |id: &str, topic, delay| v5::Connect {
        last_will: Some(will(topic, delay)),
        ..hello(id)
    };
    let (mortal, _) = Client::connect(broker.address, connect("one", "will/one", None)).await;
    drop(mortal);
    assert_eq!(reader.take().await, "gone");
    let (polite, _) = Client::connect(broker.address, connect("two", "will/two", None)).await;
    polite.disconnect().await;
    // A delayed will is cancelled by a return in time.
    let durable = |id: &str, topic, delay| v5::Connect {
        session_expiry_interval_secs: 600,
        ..connect(id, topic, delay)
    };
    let (away, _) = Client::connect(broker.address, durable("three", "will/three", Some(3600))).await;
    drop(away);
    let (returned, ack) = Client::connect(broker.address, back("three")).await;
    assert!(ack.session_present);
    returned.disconnect().await;
    // And published after its delay otherwise; good-bye with will publishes as well.
    let (away, _) = Client::connect(broker.address, durable("four", "will/four", Some(1))).await;
    drop(away);
    let message = reader.message().await;
    assert_eq!(&*message.topic, "will/four");
    reader.acknowledge(message.packet_id.unwrap().get()).await;
    let (mut five, _) = Client::connect(broker.address, connect("five", "will/five", None)).await;
    five.send(v5::Packet::Disconnect(v5::Disconnect::new(
        v5::DisconnectReasonCode::DisconnectWithWillMessage,
    )))
    .await;
    assert_eq!(&*reader.message().await.topic, "will/five");
}

#[tokio::test]
async fn topic_aliases_work_both_ways() {
    let broker = TestBroker::start().await;
    let connect = v5::Connect {
        topic_alias_max: 2,
        ..hello("reader")
    };
    let (mut reader, ack) = Client::connect(broker.address, connect).await;
    assert!(ack.topic_alias_max > 0);
    reader.subscribe("long/#", QoS::AtMostOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    let aliased = |topic: &str, alias: u16| {
        let properties = PublishProperties {
            topic_alias: std::num::NonZeroU16::new(alias),
            ..PublishProperties::default()
        };
        rmqtt_codec::types::Publish {
            properties: Some(properties),
            ..publish(topic, "x", QoS::AtMostOnce, 0)
        }
    };
    publisher.send_publish(aliased("long/topic", 1)).await;
    publisher.send_publish(aliased("", 1)).await;
    let first = reader.message().await;
    let second = reader.message().await;
    let alias = |message: &rmqtt_codec::types::Publish| message.properties.as_ref().unwrap().topic_alias;
    assert_eq!((&*first.topic, &*second.topic), ("long/topic", ""));
    assert!(alias(&first).is_some() && alias(&first) == alias(&second));
    publisher.send_publish(aliased("", 9)).await;
    assert_eq!(
        publisher.expect_disconnect().await,
        v5::DisconnectReasonCode::TopicAliasInvalid
    );
}

#[tokio::test]
async fn the_clients_receive_maximum_is_kept() {
    let broker = TestBroker::start().await;
    let connect = v5::Connect {
        receive_max: std::num::NonZeroU16::new(2),
        ..hello("reader")
    };
    let (mut reader, _) = Client::connect(broker.address, connect).await;
    reader.subscribe("t", QoS::AtLeastOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for index in 0..10 {
        publisher.publish("t", &index.to_string()).await;
    }
    let first = reader.message().await;
    let second = reader.message().await;
    // Nothing more comes before an acknowledgement: the answer to the ping is next.
    reader.ping().await;
    reader.acknowledge(first.packet_id.unwrap().get()).await;
    reader.acknowledge(second.packet_id.unwrap().get()).await;
    for index in 2..10 {
        assert_eq!(reader.take().await, index.to_string());
    }
}

#[tokio::test]
async fn packets_that_are_too_large_are_neither_taken_nor_sent() {
    let limits = Limits {
        max_packet_size: 2000,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let connect = v5::Connect {
        max_packet_size: std::num::NonZeroU32::new(100),
        ..hello("reader")
    };
    let (mut reader, ack) = Client::connect(broker.address, connect).await;
    assert_eq!(ack.max_packet_size, Some(2000));
    reader.subscribe("t", QoS::AtLeastOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher.publish("t", &"large".repeat(100)).await;
    publisher.publish("t", "small").await;
    assert_eq!(reader.take().await, "small");
    publisher
        .send_publish(publish("t", &"x".repeat(3000), QoS::AtMostOnce, 0))
        .await;
    assert_eq!(
        publisher.expect_disconnect().await,
        v5::DisconnectReasonCode::PacketTooLarge
    );
}

#[tokio::test]
async fn more_in_flight_than_announced_ends_the_connection() {
    let broker = TestBroker::start_limited(Limits {
        receive_maximum: 3,
        ..Limits::default()
    })
    .await;
    let (mut client, ack) = Client::connect(broker.address, hello("c")).await;
    assert_eq!(ack.receive_max.get(), 3);
    for packet_id in 1..=4 {
        client
            .send_publish(publish("t", "x", QoS::ExactlyOnce, packet_id))
            .await;
    }
    loop {
        match client.receive().await {
            v5::Packet::PublishReceived(_) => {}
            v5::Packet::Disconnect(disconnect) => {
                assert_eq!(
                    disconnect.reason_code,
                    v5::DisconnectReasonCode::ReceiveMaximumExceeded
                );
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_message_of_quality_two_is_delivered_once_however_often_it_is_sent() {
    let broker = TestBroker::start().await;
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("t", QoS::ExactlyOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for dup in [false, true, true] {
        let message = rmqtt_codec::types::Publish {
            dup,
            ..publish("t", "once", QoS::ExactlyOnce, 5)
        };
        publisher.send_publish(message).await;
        assert!(matches!(
            publisher.receive().await,
            v5::Packet::PublishReceived(_)
        ));
    }
    publisher.release(5).await;
    assert!(matches!(
        publisher.receive().await,
        v5::Packet::PublishComplete(_)
    ));
    publisher.release(5).await;
    match publisher.receive().await {
        v5::Packet::PublishComplete(ack) => {
            assert_eq!(ack.reason_code, v5::PublishAck2Reason::PacketIdNotFound);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(reader.take().await, "once");
    publisher.publish("t", "next").await;
    assert_eq!(reader.take().await, "next");
}

#[tokio::test]
async fn silence_ends_a_connection() {
    let broker = TestBroker::start().await;
    let connect = v5::Connect {
        keep_alive: 1,
        ..hello("c")
    };
    let (mut client, _) = Client::connect(broker.address, connect).await;
    assert_eq!(
        client.expect_disconnect().await,
        v5::DisconnectReasonCode::KeepAliveTimeout
    );
}

#[tokio::test]
async fn a_packet_that_trickles_in_keeps_no_connection_alive() {
    let broker = TestBroker::start().await;
    let connect = v5::Connect {
        keep_alive: 1,
        ..hello("c")
    };
    let (mut client, _) = Client::connect(broker.address, connect).await;
    // The beginning of a PUBLISH of 100 bytes.
    client.send_raw(&[0x30, 100, 0, 1, b't', 0]).await;
    let trickle = async {
        for _ in 0..90 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            client.send_raw(b"x").await;
            if let Some(packet) = client.arrived().await {
                return Some(packet);
            }
        }
        None
    };
    match trickle.await {
        Some(v5::Packet::Disconnect(told)) => {
            assert_eq!(told.reason_code, v5::DisconnectReasonCode::KeepAliveTimeout);
        }
        other => panic!("DISCONNECT expected before 18 seconds are over, {other:?} came"),
    }
}

#[tokio::test]
async fn an_identifier_is_assigned_and_the_server_tells_its_limits() {
    let limits = Limits {
        max_keep_alive: 60,
        max_session_expiry: 100,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let connect = v5::Connect {
        session_expiry_interval_secs: u32::MAX,
        clean_start: false,
        ..hello("")
    };
    let (_client, ack) = Client::connect(broker.address, connect).await;
    assert!(ack.assigned_client_id.is_some_and(|id| !id.is_empty()));
    assert_eq!(
        (ack.server_keepalive_sec, ack.session_expiry_interval_secs),
        (Some(60), Some(100))
    );
}

#[tokio::test]
async fn faulty_subscriptions_are_refused_one_by_one() {
    let limits = Limits {
        max_subscriptions: 2,
        max_durable_receivers: 1,
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let (mut client, _) = Client::connect(broker.address, back("c")).await;
    for filter in ["a/#/b", "a+", "$share//a", "$share/g/"] {
        assert_eq!(
            client.subscribe(filter, QoS::AtMostOnce).await,
            SubscribeAckReason::TopicFilterInvalid
        );
    }
    assert_eq!(
        client.subscribe("a", QoS::AtLeastOnce).await,
        SubscribeAckReason::GrantedQos1
    );
    assert_eq!(
        client.subscribe("b", QoS::AtLeastOnce).await,
        SubscribeAckReason::GrantedQos1
    );
    assert_eq!(
        client.subscribe("c", QoS::AtLeastOnce).await,
        SubscribeAckReason::QuotaExceeded
    );
    let (mut other, _) = Client::connect(broker.address, back("d")).await;
    assert_eq!(
        other.subscribe("a", QoS::AtLeastOnce).await,
        SubscribeAckReason::QuotaExceeded
    );
    let no_local = SubscriptionOptions {
        no_local: true,
        ..SubscriptionOptions::default()
    };
    client
        .send(v5::Packet::Subscribe(v5::Subscribe {
            packet_id: crate::client::id(1),
            id: None,
            user_properties: Vec::new(),
            topic_filters: vec![("$share/g/a".into(), no_local)],
        }))
        .await;
    assert_eq!(
        client.expect_disconnect().await,
        v5::DisconnectReasonCode::ProtocolError
    );
}

#[tokio::test]
async fn what_is_unknown_or_forbidden_is_answered() {
    let broker = TestBroker::start().await;
    let mut client = Client::open(broker.address).await;
    let connect = v5::Connect {
        auth_method: Some("SCRAM".into()),
        ..hello("c")
    };
    client.send(v5::Packet::Connect(Box::new(connect))).await;
    assert_eq!(
        client.connack().await.reason_code,
        v5::ConnectAckReason::BadAuthenticationMethod
    );

    let mut client = Client::open(broker.address).await;
    client
        .send_raw(b"\x10\x0d\x00\x04MQTT\x07\x02\x00\x00\x00\x00\x00")
        .await;
    assert_eq!(
        client.connack().await.reason_code,
        v5::ConnectAckReason::UnsupportedProtocolVersion
    );

    let mut client = Client::clean(broker.address, "d").await;
    assert_eq!(
        client.publish("$SYS/x", "no").await,
        PublishAckReason::NotAuthorized
    );
    client.send_publish(publish("a/#", "x", QoS::AtMostOnce, 0)).await;
    assert_eq!(
        client.expect_disconnect().await,
        v5::DisconnectReasonCode::TopicNameInvalid
    );

    let mut client = Client::clean(broker.address, "e").await;
    client.send(v5::Packet::Connect(Box::new(hello("e")))).await;
    assert_eq!(
        client.expect_disconnect().await,
        v5::DisconnectReasonCode::ProtocolError
    );
}

#[tokio::test]
async fn who_does_not_introduce_itself_is_shown_out() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let broker = TestBroker::start_limited(limits).await;
    let mut silent = Client::open(broker.address).await;
    silent.expect_end().await;
    let mut wrong = Client::open(broker.address).await;
    wrong.send_raw(b"GET / HTTP/1.1\r\n\r\n").await;
    wrong.expect_end().await;
}
