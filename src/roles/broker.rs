//! The broker: what it serves, told to the operator; its failure, told to whoever keeps it running.

use std::sync::Arc;

use foreshore_broker::{BrokerRole, Handle, RoleOptions, Served};
use foreshore_control::Reporter;
use foreshore_crds::conditions::reasons;
use foreshore_operator::{
    RoleName,
    facts::{self, RoleFacts},
    workloads::{local::RoleError, ports},
};
use foreshore_runtime::spawn;
use tokio::sync::watch;

use super::{Assignment, DRAIN, Directory, Observability, Roles, Site};

/// Runs a broker until its shutdown begins.
pub(super) async fn run(
    roles: &Roles,
    assignment: Assignment,
    observability: Observability,
) -> Result<(), RoleError> {
    let agent = roles.agent(&assignment)?;
    let reporter = agent.reporter();
    let site = &roles.site;
    let (role, served) = BrokerRole::new(RoleOptions {
        identity: agent.identity(),
        report: Arc::new(move |report| reporter.report(report)),
        directory: roles.folder(&assignment).join("store"),
        encryption_keys: roles.encryption.keys.clone(),
        encrypt_existing: roles.encryption.existing,
        metrics: observability.metrics,
        default_address: site.bind,
        mqtt_address: site.listen(0, ports::MQTT),
        queue_address: site.listen(0, ports::QUEUE),
        shutdown: assignment.shutdown.clone(),
    });
    let name = assignment.name.clone();
    let telling = spawn(
        "broker facts",
        tell(
            agent.reporter(),
            name,
            site.clone(),
            Arc::clone(&roles.directory),
            served.clone(),
        ),
    );
    let ended = tokio::select! {
        ended = agent.run(role, assignment.shutdown.clone()) => ended.map_err(RoleError::new),
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
                .insert(assignment.name.clone(), ledger),
        ),
        Err(error) => tracing::warn!(%error, "no closing ledger"),
    }
    roles.directory.brokers.lock().remove(&assignment.name);
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
    reporter: Reporter,
    name: RoleName,
    site: Site,
    directory: Arc<Directory>,
    mut served: watch::Receiver<Served>,
) {
    while served.changed().await.is_ok() {
        let now = served.borrow_and_update().clone();
        let mut told = RoleFacts::default();
        for (listener, endpoint) in &now.listeners {
            let authority = site.dialled(endpoint.address);
            told = told.with(facts::listener(listener), endpoint.protocol.url(&authority));
        }
        for (fact, address) in [(facts::MQTT, now.mqtt), (facts::QUEUE, now.queues)] {
            if let Some(address) = address {
                told = told.with(fact, site.dialled(address));
            }
        }
        reporter.tell(told);
        if let Some(broker) = now.broker {
            directory.brokers.lock().insert(name.clone(), broker);
        }
    }
}
