//! Rights and certificates change while everybody works.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use foreshore_control::plan::BrokerPolicyPlan;
use foreshore_tls::CertificateChain;
use rcgen::ExtendedKeyUsagePurpose;
use rmqtt_codec::{
    types::QoS,
    v5::{self, DisconnectReasonCode},
};

use crate::{
    client::{Client, publish},
    revocation::{self, Authority},
    role::{Plant, object},
};

const WORKERS: usize = 20;
const GUESTS: usize = 8;

/// What workers and those who watch them share.
#[derive(Default)]
struct Work {
    done: [AtomicUsize; WORKERS],
    over: AtomicBool,
}

/// Publishes numbers and gets each of them back, one after the other, until the work is over.
async fn work(mut client: Client, number: usize, work: Arc<Work>) {
    let topic = format!("work/{number}");
    let mut count = 0;
    while !work.over.load(Ordering::Relaxed) {
        let payload = count.to_string();
        client
            .send_publish(publish(&topic, &payload, QoS::AtLeastOnce, 1))
            .await;
        let (mut acknowledged, mut came_back) = (false, false);
        while !(acknowledged && came_back) {
            match client.receive().await {
                v5::Packet::PublishAck(ack) => {
                    assert_eq!(ack.reason_code, v5::PublishAckReason::Success);
                    acknowledged = true;
                }
                v5::Packet::Publish(message) => {
                    assert_eq!(message.payload, payload);
                    client.acknowledge(message.packet_id.unwrap().get()).await;
                    came_back = true;
                }
                other => panic!("{topic}: {other:?} came"),
            }
        }
        count += 1;
        work.done[number].store(count, Ordering::Relaxed);
    }
    client.ping().await;
}

/// Waits until everybody has done some more.
async fn go_on(work: &Work) {
    let done = |worker: &AtomicUsize| worker.load(Ordering::Relaxed);
    let before: Vec<_> = work.done.iter().map(done).collect();
    let goes_on = async {
        while work
            .done
            .iter()
            .zip(&before)
            .any(|(worker, before)| done(worker) < before + 3)
        {
            tokio::task::yield_now().await;
        }
    };
    let deadline = std::time::Duration::from_secs(60);
    tokio::time::timeout(deadline, goes_on)
        .await
        .expect("everybody goes on");
}

/// Workers may do everything, guests that are left may look.
fn policy(guests: std::ops::Range<usize>) -> BrokerPolicyPlan {
    let guests: Vec<_> = guests.map(|guest| format!("guest-{guest}")).collect();
    let mut rules = vec![serde_json::json!({
        "name": "workers", "effect": "Allow", "actions": ["Connect", "Publish", "Subscribe"],
        "topics": ["work/#"], "principals": { "clients": ["worker-*"] },
    })];
    if !guests.is_empty() {
        rules.push(serde_json::json!({
            "name": "guests", "effect": "Allow", "actions": ["Connect", "Subscribe"], "topics": ["work/#"],
            "principals": { "clients": guests },
        }));
    }
    BrokerPolicyPlan {
        object: object("policy"),
        spec: serde_json::from_value(serde_json::json!({ "rules": rules })).unwrap(),
    }
}

/// With every change one guest loses its rights, and the listener gets another certificate: the guest goes, and all the
/// others lose neither their connection nor a message.
#[tokio::test(flavor = "multi_thread")]
async fn changes_under_load_touch_nobody_whose_rights_stay() {
    let authority = Authority::new("devices");
    let mut plant = revocation::start(&authority, "Tls").await;
    plant.set(&policy(0..GUESTS)).await.unwrap();
    let (shared, mut workers, mut guests) = (Arc::<Work>::default(), Vec::new(), Vec::new());
    let mut serial = 10;
    let mut dial = async |plant: &Plant, client_id: &str| {
        serial += 1;
        revocation::connect(plant, &authority.client(client_id, serial), client_id).await
    };
    for number in 0..WORKERS {
        let mut client = dial(&plant, &format!("worker-{number}")).await;
        client
            .subscribe(&format!("work/{number}"), QoS::AtLeastOnce)
            .await;
        workers.push(tokio::spawn(work(client, number, Arc::clone(&shared))));
    }
    for number in 0..GUESTS {
        let mut client = dial(&plant, &format!("guest-{number}")).await;
        client.subscribe("work/#", QoS::AtMostOnce).await;
        guests.push(tokio::spawn(async move { client.expect_disconnect().await }));
    }
    for (number, guest) in guests.into_iter().enumerate() {
        go_on(&shared).await;
        assert!(!guest.is_finished(), "guest {number} may still be there");
        let server = authority.issue(
            "localhost",
            1000 + number as u64,
            ExtendedKeyUsagePurpose::ServerAuth,
        );
        plant.set(&revocation::server(&server)).await.unwrap();
        plant.set(&policy(number + 1..GUESTS)).await.unwrap();
        assert_eq!(guest.await.unwrap(), DisconnectReasonCode::NotAuthorized);
        go_on(&shared).await;
        // Whoever comes now sees the new one.
        let stream = revocation::dial(&plant, &authority.client("worker-new", 9))
            .await
            .unwrap();
        let issued = CertificateChain::from_pem(server.as_bytes()).unwrap();
        assert_eq!(
            stream.get_ref().1.peer_certificates(),
            Some(issued.certificates())
        );
    }
    shared.over.store(true, Ordering::Relaxed);
    for worker in workers {
        worker.await.unwrap();
    }
}
