//! Connecting, publishing and subscribing.

use rmqtt_codec::{types::QoS, v3, v5};

use crate::{
    TestBroker,
    client::{Client, Client3, hello, publish},
};

#[tokio::test]
async fn a_message_goes_from_one_client_to_another_in_all_versions_and_qualities() {
    let broker = TestBroker::start().await;
    let mut five = Client::clean(broker.address, "five").await;
    let (mut three, present) = Client3::connect(broker.address, "three", true).await;
    assert!(!present);
    assert_eq!(
        five.subscribe("a/+", QoS::ExactlyOnce).await,
        v5::SubscribeAckReason::GrantedQos2
    );
    assert_eq!(
        three.subscribe("a/#", QoS::AtLeastOnce).await,
        v3::SubscribeReturnCode::Success(QoS::AtLeastOnce)
    );
    let mut publisher = Client::clean(broker.address, "publisher").await;
    for (index, qos) in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]
        .into_iter()
        .enumerate()
    {
        let payload = format!("message {index}");
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { 9 };
        let reason = publisher
            .publish_packet(publish("a/b", &payload, qos, packet_id))
            .await;
        assert_eq!(reason, v5::PublishAckReason::Success);
        assert_eq!(five.take().await, payload);
        assert_eq!(three.take().await, payload);
    }
    assert_eq!(
        publisher.publish("nobody", "x").await,
        v5::PublishAckReason::NoMatchingSubscribers
    );
    three.publish("a/three", "from three").await;
    assert_eq!(five.take().await, "from three");
    broker.stop().await;
}

#[tokio::test]
async fn a_stop_says_good_bye() {
    let broker = TestBroker::start().await;
    let mut client = Client::connect(broker.address, hello("c")).await.0;
    let address = broker.address;
    broker.stop().await;
    assert_eq!(
        client.expect_disconnect().await,
        v5::DisconnectReasonCode::ServerShuttingDown
    );
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
