//! Quotas of memory: floods and slow readers lose their own connections, and others notice nothing.

use std::time::Duration;

use foreshore_broker::{Limits, Options};
use futures::{StreamExt, stream::FuturesUnordered};
use rmqtt_codec::{
    types::QoS,
    v5::{self, ConnectAckReason, DisconnectReasonCode},
};

use crate::{
    TestBroker,
    client::{Client, GENEROUS, back, hello, publish},
    options,
    protocol::will,
};

const MIB: usize = 1 << 20;

fn quota(max_memory: usize) -> Limits {
    Limits {
        max_memory: Some(max_memory),
        max_packet_size: 4 << 20,
        ..Limits::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_and_floods_are_ended_and_a_pair_that_behaves_loses_nothing() {
    let metrics = foreshore_runtime::Metrics::new();
    let broker = TestBroker::start_with(Options {
        limits: quota(8 * MIB),
        metrics: metrics.clone(),
        ..options()
    })
    .await;
    let mut reader = Client::clean(broker.address, "reader").await;
    reader.subscribe("good", QoS::AtLeastOnce).await;
    let mut writer = Client::clean(broker.address, "writer").await;
    let address = broker.address;

    // Ten that read nothing of what they subscribed to. Everybody is there before memory is short.
    let mut slow = Vec::new();
    for index in 0..10 {
        let mut client = Client::clean(address, &format!("slow-{index}")).await;
        client.subscribe("bad", QoS::AtMostOnce).await;
        slow.push(client);
    }
    let mut pourer = Client::clean(address, "pourer").await;
    // Twenty packets of 2 MiB of which the end never comes.
    let mut floods = Vec::new();
    for index in 0..20 {
        floods.push(Client::clean(address, &format!("flood-{index}")).await);
    }
    let mut floods: FuturesUnordered<_> = floods
        .into_iter()
        .map(|mut flood| {
            tokio::spawn(async move {
                let mut head = vec![0x30, 0x80, 0x80, 0x80, 0x01, 0, 1, b'f', 0];
                head.resize(3 * MIB / 2, b'x');
                flood.send_raw(&head).await;
                flood.next().await
            })
        })
        .collect();
    let pouring = tokio::spawn(async move {
        let payload = "x".repeat(60_000);
        for _ in 0..400 {
            pourer
                .send_publish(publish("bad", &payload, QoS::AtMostOnce, 0))
                .await;
        }
        pourer.ping().await;
    });

    for index in 0..500 {
        let payload = index.to_string();
        writer.publish("good", &payload).await;
        assert_eq!(reader.take().await, payload);
    }
    pouring.await.unwrap();

    // Some were told before they went; what they held is given back, so that the quota is kept again.
    let kept = async {
        while broker.handle.memory().bytes > 8 * MIB || broker.handle.memory().ended == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(GENEROUS, kept).await.unwrap();
    let told = async {
        while let Some(flood) = floods.next().await {
            // Those that are still there wait for nothing; one that was cut off while it wrote has panicked.
            if let Ok(Some(v5::Packet::Disconnect(told))) = flood {
                return told.reason_code;
            }
        }
        panic!("nobody was told")
    };
    let told = tokio::time::timeout(GENEROUS, told).await.unwrap();
    assert_eq!(told, DisconnectReasonCode::QuotaExceeded);
    let line = "foreshore_broker_memory_connections_ended_total";
    assert!(!metrics.encode().unwrap().contains(&format!("{line} 0\n")));
    writer.publish("good", "last").await;
    assert_eq!(reader.take().await, "last");
}

#[tokio::test]
async fn nobody_new_is_let_in_while_memory_is_short() {
    let broker = TestBroker::start_limited(quota(usize::MAX)).await;
    let mut present = Client::clean(broker.address, "present").await;
    // Less than a connection takes: those that hold little stay, and nobody comes.
    broker.handle.set_limits(quota(1));
    let mut late = Client::open(broker.address).await;
    late.send(v5::Packet::Connect(Box::new(hello("late")))).await;
    let v5::Packet::ConnectAck(ack) = late.receive().await else {
        panic!("no CONNACK")
    };
    assert_eq!(ack.reason_code, ConnectAckReason::QuotaExceeded);
    present.ping().await;
    let memory = broker.handle.memory();
    assert_eq!((memory.refused, memory.ended, memory.max_bytes), (1, 0, Some(1)));
    broker.handle.set_limits(quota(64 * MIB));
    Client::clean(broker.address, "later").await.ping().await;
}

#[tokio::test]
async fn one_client_holds_no_more_than_it_may() {
    let broker = TestBroker::start_limited(Limits {
        max_client_memory: Some(256 << 10),
        ..quota(usize::MAX)
    })
    .await;
    let mut modest = Client::clean(broker.address, "modest").await;
    let mut greedy = Client::clean(broker.address, "greedy").await;
    let mut head = vec![0x30, 0x80, 0x80, 0x80, 0x01, 0, 1, b'f', 0];
    head.resize(MIB, b'x');
    greedy.send_raw(&head).await;
    assert_eq!(
        greedy.expect_disconnect().await,
        DisconnectReasonCode::QuotaExceeded
    );
    modest.ping().await;
    assert_eq!(broker.handle.memory().ended, 1);
}

#[tokio::test]
async fn what_is_held_is_counted_and_given_back() {
    let broker = TestBroker::start_limited(quota(usize::MAX)).await;
    let at_rest = broker.handle.memory().bytes;
    let until = async |expected: &dyn Fn(usize) -> bool| {
        let seen = async {
            while !expected(broker.handle.memory().bytes) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(GENEROUS, seen).await.unwrap();
    };
    let (mut client, _) = Client::connect(broker.address, back("c")).await;
    let filter = "f".repeat(10_000);
    for index in 0..10 {
        client
            .subscribe(&format!("{filter}/{index}"), QoS::AtLeastOnce)
            .await;
    }
    until(&|bytes| bytes > at_rest + 104_000).await;
    client.unsubscribe(&format!("{filter}/0")).await;
    until(&|bytes| bytes < at_rest + 104_000).await;
    // A session that waits holds them still: that is measured now and then.
    client.disconnect().await;
    until(&|bytes| bytes > at_rest + 90_000 && bytes < at_rest + 97_000).await;
    let clean = || v5::Connect {
        clean_start: true,
        ..hello("c")
    };
    Client::connect(broker.address, clean())
        .await
        .0
        .disconnect()
        .await;
    until(&|bytes| bytes == at_rest).await;
    // A will, with the client and while it waits. Each of its properties takes more than it did on the way.
    let mortal = v5::Connect {
        last_will: Some(v5::LastWill {
            message: "x".repeat(50_000).into(),
            user_properties: vec![("".into(), "".into()); 2_000],
            ..will("w", Some(1000))
        }),
        ..back("c")
    };
    let bytes_of_will = 50_000 + 2_000 * 2 * size_of::<String>();
    let (client, _) = Client::connect(broker.address, mortal).await;
    until(&|bytes| bytes > at_rest + bytes_of_will).await;
    drop(client);
    until(&|bytes| bytes > at_rest + bytes_of_will && bytes < at_rest + bytes_of_will + 3_000).await;
    Client::connect(broker.address, clean())
        .await
        .0
        .disconnect()
        .await;
    until(&|bytes| bytes == at_rest).await;
}
