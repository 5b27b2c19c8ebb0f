//! The broker: what it serves, told to the operator; its failure, told to whoever keeps it running.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use foreshore_broker::{BrokerRole, Handle, RoleOptions, Served};
use foreshore_crds::conditions::reasons;
use foreshore_operator::{
    RoleName,
    facts::{self, RoleFacts},
    workloads::local::{FactsHandle, RoleError, Start},
};
use foreshore_runtime::spawn;
use tokio::sync::watch;

use super::{DRAIN, Directory, Observability, Roles};

/// Runs a broker until its shutdown begins.
pub(super) async fn run(roles: &Roles, start: Start, observability: Observability) -> Result<(), RoleError> {
    let agent = roles.agent(&start)?;
    let reporter = agent.reporter();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (role, served) = BrokerRole::new(RoleOptions {
        identity: agent.identity(),
        report: Arc::new(move |report| reporter.report(report)),
        directory: roles.directory(&start).join("store"),
        metrics: observability.metrics,
        default_address: Ipv4Addr::LOCALHOST.into(),
        mqtt_address: any,
        queue_address: any,
        shutdown: start.shutdown.clone(),
    });
    let (facts, name) = (start.facts.clone(), start.workload.role.clone());
    let telling = spawn(
        "broker facts",
        tell(facts, name, Arc::clone(&roles.directory), served.clone()),
    );
    let ended = tokio::select! {
        ended = agent.run(role, start.shutdown.clone()) => ended.map_err(RoleError::new),
        cause = failed(served.clone()) => Err(RoleError { reason: reasons::STORAGE_FAILED, message: cause }),
    };
    telling.abort();
    let broker = served.borrow().broker.clone();
    let Some(broker) = broker else { return ended };
    // Roles that read and write have ended before; what is counted now is what remains.
    match broker.ledger().await {
        Ok(ledger) => drop(
            roles
                .directory
                .closing
                .lock()
                .insert(start.workload.role.clone(), ledger),
        ),
        Err(error) => tracing::warn!(%error, "no closing ledger"),
    }
    roles.directory.brokers.lock().remove(&start.workload.role);
    let stopped = broker.stop(DRAIN).await;
    let stopped = stopped.map_err(|error| RoleError {
        reason: reasons::STORAGE_FAILED,
        message: error.to_string(),
    });
    ended.and(stopped)
}

/// Resolves with the cause when the broker that is served can commit nothing any more.
async fn failed(mut served: watch::Receiver<Served>) -> String {
    let broker: Option<Handle> = match served.wait_for(|served| served.broker.is_some()).await {
        Ok(served) => served.broker.clone(),
        Err(_) => None,
    };
    match broker {
        Some(broker) => broker.failed().await.to_string(),
        None => std::future::pending().await,
    }
}

/// Tells where the broker answers, each time that changes.
async fn tell(
    facts: FactsHandle,
    name: RoleName,
    directory: Arc<Directory>,
    mut served: watch::Receiver<Served>,
) {
    while served.changed().await.is_ok() {
        let now = served.borrow_and_update().clone();
        let mut told = RoleFacts::default();
        for (listener, address) in &now.listeners {
            told = told.with(facts::listener(listener), format!("mqtt://{address}"));
        }
        for (fact, address) in [(facts::MQTT, now.mqtt), (facts::QUEUE, now.queues)] {
            if let Some(address) = address {
                told = told.with(fact, address.to_string());
            }
        }
        facts.tell(told);
        if let Some(broker) = now.broker {
            directory.brokers.lock().insert(name.clone(), broker);
        }
    }
}
