//! A broker without an operator: what it is told when it is started is all that it is told.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, Result};
use foreshore_broker::{
    AuditDestination, Broker, Conduct, Error, Handle, Limits, ListenerOptions, Options, Storage,
    options::{counted_topics, probe_schedule},
};
use foreshore_crds::v1alpha1::{broker::BrokerSpec, broker_policy::BrokerPolicySpec};
use foreshore_operator::RoleName;
use foreshore_runtime::{HealthHandle, HealthRegistry, Metrics, Shutdown, serve_http};
use foreshore_store::StoreError;
use foreshore_tls::Role;
use tracing::info;

use super::super::DRAIN;
use crate::{admin::Answerer, roles::Directory};

/// Times that a broker mends its store and begins again. A disk that damages more than that is for somebody to look at.
const MAX_MENDS: u32 = 8;

/// What the broker is.
pub(super) struct Alone {
    pub(super) storage: Storage,
    pub(super) listeners: Vec<ListenerOptions>,
    pub(super) spec: BrokerSpec,
    /// By name.
    pub(super) policies: Vec<(String, BrokerPolicySpec)>,
    pub(super) audit: Option<AuditDestination>,
}

/// What outlives a broker that begins again.
struct Surroundings {
    name: RoleName,
    component: HealthHandle,
    metrics: Metrics,
    shutdown: Shutdown,
    directory: Arc<Directory>,
}

impl Alone {
    /// Runs the broker until it is told to end. When it meets something in its store that can't be read, it begins again,
    /// which mends the store: there may be nobody who would start it again.
    pub(super) async fn run(&self, http: Option<SocketAddr>) -> Result<()> {
        let (health, names) = (HealthRegistry::new(), Options::default());
        let around = Surroundings {
            name: RoleName::new(Role::Broker, names.namespace, names.name),
            component: health.component("broker"),
            metrics: Metrics::new(),
            shutdown: Shutdown::new(),
            directory: Arc::default(),
        };
        around
            .shutdown
            .begin_on_signals(DRAIN)
            .context("listen for signals")?;
        let mut broker = self.start_or_mend(&around).await?;
        // Kept to the end: dropped, it would serve no longer.
        let _http = match http {
            Some(address) => {
                let (metrics, shutdown) = (around.metrics.clone(), around.shutdown.clone());
                let server = serve_http(address, health, metrics, shutdown).await?;
                info!(address = %server.address, "metrics and health");
                Some(server)
            }
            None => None,
        };
        if let Some(data) = self.data() {
            // The store has locked the directory for this process.
            let answerer = Answerer {
                operator: None,
                directory: Arc::clone(&around.directory),
            };
            if let Err(error) = answerer.serve_socket(data, &around.shutdown) {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "nobody can look at this broker from outside"
                );
            }
        }
        for mends in 0.. {
            let failure = tokio::select! {
                () = around.shutdown.begun() => None,
                error = broker.failed() => Some(error),
            };
            around.directory.remove_broker(&around.name);
            let Some(failure) = failure else { break };
            around.component.failed(failure.to_string());
            if mends == MAX_MENDS || !wants_mending(&failure) {
                return Err(failure).context("the broker ends");
            }
            tracing::error!(error = %failure, "the broker begins again, and mends its store");
            if let Err(error) = broker.stop(DRAIN).await {
                // It was not acknowledged.
                tracing::debug!(%error, "what was queued could not be committed");
            }
            broker = self.start_or_mend(&around).await?;
        }
        broker.stop(DRAIN).await.context("end the broker")
    }

    fn data(&self) -> Option<&Path> {
        match &self.storage {
            Storage::Directory { path, .. } => Some(path),
            Storage::Memory => None,
        }
    }

    /// Starts the broker; once more if it met something that can't be read, which is mended then.
    async fn start_or_mend(&self, around: &Surroundings) -> Result<Handle> {
        match self.start(around).await {
            Err(error) if error.downcast_ref().is_some_and(wants_mending) => {
                tracing::error!(error = format!("{error:#}"), "the store is mended");
                self.start(around).await
            }
            started => started,
        }
    }

    async fn start(&self, around: &Surroundings) -> Result<Handle> {
        let broker = Broker::start(Options {
            storage: self.storage.clone(),
            limits: Limits::from(&self.spec),
            conduct: Conduct::from(&self.spec),
            audit: self.audit.clone(),
            sys_interval: self.spec.sys_interval.map(Into::into),
            metrics: around.metrics.clone(),
            ..Options::default()
        })
        .await?;
        let named = self.policies.iter().map(|(name, policy)| (name.as_str(), policy));
        broker.set_policies(named).context("--policy")?;
        broker.count_topics(&counted_topics(&self.spec));
        broker.set_probe(probe_schedule(&self.spec));
        // Nobody connects before the policies are in force.
        for listener in &self.listeners {
            broker.open_listener(listener.clone())?;
        }
        around.component.ok();
        for (name, endpoint) in broker.endpoints() {
            let url = endpoint.protocol.url(&endpoint.address.to_string());
            info!(name, address = %endpoint.address, url, "listening");
        }
        around.directory.add_broker(around.name.clone(), broker.clone());
        Ok(broker)
    }
}

/// Whether something could not be read that the next start mends. A disk that refuses writes is for others to look at.
fn wants_mending(failure: &Error) -> bool {
    matches!(failure, Error::Store(StoreError::Unreadable { .. }))
}
