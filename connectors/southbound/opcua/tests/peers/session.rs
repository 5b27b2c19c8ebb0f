//! The server ends the session, and keeps its subscriptions or does not.

use crate::{
    plant::{Plant, Security, counter_spec, device_spec, interruptions},
    server::{Counts, Kind, Server},
};

const ONE: Counts = Counts {
    sessions: 1,
    subscriptions: 1,
};

/// Ends the session at the server and waits for data again; gives back what was interrupted, and the gaps told.
async fn lose_session(server: &mut Server, security: Security) -> (usize, usize) {
    let plant = Plant::start(server, &server.address(), device_spec(security), counter_spec()).await;
    plant.wait_for_counter(0, 20).await;
    server.signal("USR2");
    plant.wait_for_reason("Reconnecting").await;
    let before = plant.counter().len();
    plant.wait_for_counter(before, 60).await;
    plant.wait_for_reason("Healthy").await;
    let counter = plant.counter();
    let breaks = interruptions(&counter);
    assert!(breaks.iter().all(|(one, next)| next > one), "{breaks:?}");
    server.wait_for_counts(ONE);
    (breaks.len(), plant.gaps())
}

/// The subscriptions move to the new session, with all that they hold.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_are_transferred_on_node_opcua() {
    let mut server = Server::start(Kind::Node, &[]);
    assert_eq!(lose_session(&mut server, Security::SignAndEncrypt).await, (0, 0));
}

/// As S7 PLCs: new subscriptions, and the gap is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_transfers_nothing_costs_a_gap_that_is_told() {
    let mut server = Server::start(Kind::Node, &["no-transfer"]);
    assert_eq!(lose_session(&mut server, Security::None).await, (1, 1));
}

/// asyncua 2.1 transfers subscriptions and serves them no more. That is noticed, and told.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_is_silent_after_its_transfer_is_created_anew() {
    let mut server = Server::start(Kind::Asyncua, &[]);
    assert_eq!(lose_session(&mut server, Security::None).await, (1, 1));
}
