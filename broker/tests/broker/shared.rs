//! Shared subscriptions.

use std::collections::BTreeSet;

use rmqtt_codec::types::QoS;

use crate::{
    TestBroker,
    client::{Client, back},
};

#[tokio::test]
async fn each_message_goes_to_one_member_and_groups_do_not_mix() {
    let broker = TestBroker::start().await;
    let mut members = Vec::new();
    for (name, filter) in [
        ("a1", "$share/g/a"),
        ("a2", "$share/g/a"),
        ("b1", "$share/g/b"),
        ("h1", "$share/h/a"),
    ] {
        let mut member = Client::clean(broker.address, name).await;
        member.subscribe(filter, QoS::AtLeastOnce).await;
        members.push(member);
    }
    let mut publisher = Client::clean(broker.address, "p").await;
    for index in 0..10 {
        publisher.publish("a", &format!("a{index}")).await;
        publisher.publish("b", &format!("b{index}")).await;
    }
    let mut of_group = BTreeSet::new();
    for member in members.iter_mut().take(2) {
        for _ in 0..5 {
            of_group.insert(member.take().await);
        }
    }
    assert_eq!(of_group, (0..10).map(|index| format!("a{index}")).collect());
    for index in 0..10 {
        assert_eq!(members[2].take().await, format!("b{index}"));
        assert_eq!(members[3].take().await, format!("a{index}"));
    }
}

#[tokio::test]
async fn what_a_dead_member_did_not_acknowledge_goes_to_another() {
    let broker = TestBroker::start().await;
    let mut first = Client::clean(broker.address, "first").await;
    first.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for index in 0..5 {
        publisher.publish("t", &index.to_string()).await;
    }
    for _ in 0..5 {
        first.message().await;
    }
    let mut second = Client::clean(broker.address, "second").await;
    second.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    drop(first);
    for index in 0..5 {
        assert_eq!(second.take().await, index.to_string());
    }
}

#[tokio::test]
async fn a_group_with_a_persistent_member_waits_for_it() {
    let broker = TestBroker::start().await;
    let (mut member, _) = Client::connect(broker.address, back("member")).await;
    member.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    member.disconnect().await;
    let mut publisher = Client::clean(broker.address, "p").await;
    for index in 0..2000 {
        publisher.publish("t", &index.to_string()).await;
    }
    let (mut member, ack) = Client::connect(broker.address, back("member")).await;
    assert!(ack.session_present);
    let mut seen = BTreeSet::new();
    for _ in 0..2000 {
        assert!(seen.insert(member.take().await));
    }
    publisher.publish("t", "live").await;
    assert_eq!(member.take().await, "live");
    member.ping().await;
    let ledger = broker.handle.ledger().await.unwrap();
    let line = ledger.iter().find(|line| line.path == "shared/g/t").unwrap();
    assert!(line.balances() && line.received == 2001, "{line:?}");
}
