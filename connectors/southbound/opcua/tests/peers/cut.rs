//! The connection is cut, and comes back. Where both servers are told the same, one of them waits for the full run.

use std::time::Duration;

use crate::{
    plant::{Plant, Security, counter_spec, device_spec, interruptions},
    proxy::Proxy,
    server::{Counts, Kind, SOON, Server, full},
};

/// The session and the subscription that one dataset needs.
const ONE: Counts = Counts {
    sessions: 1,
    subscriptions: 1,
};

/// The counter is consecutive, and the server has one session and one subscription.
fn assert_nothing_is_lost(plant: &Plant, server: &mut Server) {
    let counter = plant.counter();
    assert_eq!(interruptions(&counter), [], "{counter:?}");
    assert_eq!(plant.gaps(), 0);
    server.wait_for_counts(ONE);
}

/// An outage that the server's queues cover: nothing may be lost, nothing doubled, nothing left behind.
async fn nothing_is_lost(kind: Kind, security: Security) {
    let mut server = Server::start(kind, &[]);
    let proxy = Proxy::to(server.port()).await;
    let plant = Plant::start(&server, &proxy.address(), device_spec(security), counter_spec()).await;
    plant.wait_for_counter(0, 20).await;
    for outage in [Duration::from_millis(2500), Duration::from_millis(10)] {
        proxy.cut();
        plant.wait_for_reason("Reconnecting").await;
        tokio::time::sleep(outage).await;
        let before = plant.counter().len();
        proxy.mend();
        plant.wait_for_counter(before, 80).await;
        plant.wait_for_reason("Healthy").await;
    }
    assert_nothing_is_lost(&plant, &mut server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_loses_nothing_on_asyncua() {
    nothing_is_lost(Kind::Asyncua, Security::None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_cut_loses_nothing_on_asyncua() {
    nothing_is_lost(Kind::Asyncua, Security::SignAndEncrypt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_loses_nothing_on_node_opcua() {
    nothing_is_lost(Kind::Node, Security::None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_cut_loses_nothing_on_node_opcua() {
    nothing_is_lost(Kind::Node, Security::SignAndEncrypt).await;
}

/// Several cuts in a row, some while what the one before left is being taken up.
async fn nothing_is_lost_in_a_row_of_cuts(kind: Kind, security: Security) {
    let mut server = Server::start(kind, &[]);
    let proxy = Proxy::to(server.port()).await;
    let plant = Plant::start(&server, &proxy.address(), device_spec(security), counter_spec()).await;
    plant.wait_for_counter(0, 20).await;
    for pause in [0, 20, 150, 5, 400, 60, 250, 30] {
        proxy.cut();
        tokio::time::sleep(Duration::from_millis(pause)).await;
        proxy.mend();
        tokio::time::sleep(Duration::from_millis(pause * 2)).await;
    }
    let before = plant.counter().len();
    plant.wait_for_counter(before, 60).await;
    plant.wait_for_reason("Healthy").await;
    let counter = plant.counter();
    let lost = interruptions(&counter);
    // asyncua forgets a message when it sends it again, though that may be lost too (OPC 10000-4, 5.14.1.1 has it wait for
    // the acknowledgement). Then at least nothing is lost in silence.
    let forgets = kind == Kind::Asyncua && lost.iter().all(|(one, next)| next > one);
    assert!(lost.is_empty() || forgets, "{lost:?} of {counter:?}");
    assert_eq!(lost.len(), plant.gaps());
    let sessions = server.counts().sessions;
    assert!(sessions <= 2, "{sessions} sessions");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_cuts_on_asyncua() {
    if full() {
        nothing_is_lost_in_a_row_of_cuts(Kind::Asyncua, Security::SignAndEncrypt).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_cuts_on_node_opcua() {
    nothing_is_lost_in_a_row_of_cuts(Kind::Node, Security::None).await;
}

/// A cut at any moment between the first byte and the first value.
async fn a_cut_while_connecting_is_survived(kind: Kind) {
    let mut server = Server::start(kind, &[]);
    let proxy = Proxy::to(server.port()).await;
    // So that sessions that a cut left behind do not add up.
    let mut spec = device_spec(Security::None);
    spec["opcua"]["sessionTimeout"] = "5s".into();
    let cuts: &[u64] = if full() {
        &[
            1, 50, 150, 250, 400, 700, 1000, 2000, 4000, 8000, 11_000, 12_000, 12_500, 13_000, 13_500,
            14_000, 15_000,
        ]
    } else {
        &[150, 700, 12_500, 13_500]
    };
    for bytes in cuts {
        proxy.cut_after(*bytes);
        let plant = Plant::start(&server, &proxy.address(), spec.clone(), counter_spec()).await;
        plant.wait_for_counter(0, 10).await;
        plant.wait(|_| proxy.was_cut(), "nothing was cut").await;
        let before = plant.counter().len();
        let counter = plant.wait_for_counter(before, 10).await;
        assert_eq!(interruptions(&counter), [], "{counter:?}");
        let sessions = server.counts().sessions;
        assert!(sessions <= 2, "{sessions} sessions after a cut at {bytes} bytes");
        drop(plant.harness.stop(SOON).await);
        server.wait_for_counts(Counts {
            sessions: 0,
            subscriptions: 0,
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_while_connecting_to_asyncua() {
    a_cut_while_connecting_is_survived(Kind::Asyncua).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_while_connecting_to_node_opcua() {
    if full() {
        a_cut_while_connecting_is_survived(Kind::Node).await;
    }
}

/// A server that is frozen: its connections stay open and nothing answers.
async fn a_frozen_server_is_noticed(kind: Kind, security: Security) {
    let mut server = Server::start(kind, &[]);
    let mut spec = device_spec(security);
    spec["opcua"]["connectTimeout"] = "2s".into();
    let plant = Plant::start(&server, &server.address(), spec, counter_spec()).await;
    plant.wait_for_counter(0, 20).await;
    server.signal("STOP");
    plant.wait_for_reason("Reconnecting").await;
    // Long enough for a connection that is not greeted to be given up.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let before = plant.counter().len();
    server.signal("CONT");
    plant.wait_for_counter(before, 60).await;
    plant.wait_for_reason("Healthy").await;
    assert_nothing_is_lost(&plant, &mut server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_asyncua_is_noticed() {
    a_frozen_server_is_noticed(Kind::Asyncua, Security::None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_opcua_is_noticed() {
    if full() {
        a_frozen_server_is_noticed(Kind::Node, Security::SignAndEncrypt).await;
    }
}

/// A network that swallows everything, with the connections that were opened meanwhile: none of them is ever greeted.
async fn a_network_that_swallows_everything_is_noticed(kind: Kind, security: Security) {
    let mut server = Server::start(kind, &[]);
    let proxy = Proxy::to(server.port()).await;
    let mut spec = device_spec(security);
    spec["opcua"]["connectTimeout"] = "2s".into();
    let plant = Plant::start(&server, &proxy.address(), spec, counter_spec()).await;
    plant.wait_for_counter(0, 20).await;
    proxy.freeze();
    plant.wait_for_reason("Reconnecting").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = plant.counter().len();
    proxy.mend();
    plant.wait_for_counter(before, 60).await;
    plant.wait_for_reason("Healthy").await;
    assert_nothing_is_lost(&plant, &mut server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swallowing_network_before_asyncua() {
    if full() {
        a_network_that_swallows_everything_is_noticed(Kind::Asyncua, Security::SignAndEncrypt).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swallowing_network_before_node_opcua() {
    a_network_that_swallows_everything_is_noticed(Kind::Node, Security::None).await;
}
