//! Manifests from the Kubernetes API.
//!
//! One watch for each kind and namespace. Secrets and ConfigMaps are read one by one, those alone that manifests name,
//! and read again from time to time: the operator may not list them. So are the keys of the cluster's service accounts,
//! where a Broker takes their tokens. An object that can't be understood is one that is
//! declared and not right; it disturbs no other.

mod definitions;
mod fetched;
mod issuer;
mod watched;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_runtime::{Shutdown, due, spawn};
use futures::{StreamExt, stream::SelectAll};
use kube_client::Client;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::info;

use self::{fetched::Fetched, issuer::Issuer, watched::Watched};
use super::{OperatorMetrics, Scope, standing::Standings, unreadable};
use crate::{
    object::{Kind, ObjectKey},
    source::{Error, ResourceSource, Snapshot, Snapshots},
};

/// How long changes are gathered before they are told: a folder of manifests arrives object by object.
const GATHER: Duration = Duration::from_millis(20);

/// Statuses as they stand in the API.
pub(super) type Statuses = Arc<Mutex<Standings>>;

/// Manifests from the Kubernetes API.
pub struct KubernetesSource {
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    statuses: Statuses,
}

impl KubernetesSource {
    /// Begins to watch, also on an instance that does not lead: when it does one day, it knows everything already.
    /// Secrets and the keys of service accounts are read again after `refresh`.
    #[must_use]
    pub fn start(
        client: Client,
        scope: Scope,
        refresh: Duration,
        metrics: OperatorMetrics,
        shutdown: Shutdown,
    ) -> Self {
        let (sender, snapshots) = watch::channel(None);
        let statuses = Statuses::default();
        let state = State {
            watched: Watched::new(Arc::clone(&statuses), metrics),
            fetched: Fetched::new(client.clone()),
            issuer: Issuer::new(client.clone()),
            refresh,
        };
        spawn("kubernetes source", async move {
            shutdown.or_begun(state.run(client, scope, sender)).await;
        })
        .detach();
        Self { snapshots, statuses }
    }

    /// Statuses as they stand in the API.
    pub(super) fn statuses(&self) -> Statuses {
        Arc::clone(&self.statuses)
    }

    /// Resolves when everything has been read once.
    pub async fn read(&mut self) {
        // An error means that the process ends.
        drop(self.snapshots.wait_for(Option::is_some).await);
    }
}

#[async_trait]
impl ResourceSource for KubernetesSource {
    async fn run(self: Box<Self>, snapshots: Snapshots, shutdown: Shutdown) -> Result<(), Error> {
        let mut read = self.snapshots.clone();
        loop {
            let now = read.borrow_and_update().clone();
            if now.is_some() {
                snapshots.send_replace(now);
            }
            match shutdown.or_begun(read.changed()).await {
                Some(Ok(())) => {}
                Some(Err(_)) | None => return Ok(()),
            }
        }
    }
}

struct State {
    watched: Watched,
    fetched: Fetched,
    issuer: Issuer,
    refresh: Duration,
}

impl State {
    async fn run(mut self, client: Client, scope: Scope, sender: watch::Sender<Option<Arc<Snapshot>>>) {
        let mut events = SelectAll::new();
        let mut definitions = std::pin::pin!(definitions::changes(client.clone()));
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_ours()) {
            for api in scope.apis(&client, &super::resource(kind)) {
                events.push(self.watched.watch(kind, api));
            }
        }
        let mut gathered: Option<Instant> = None;
        let mut refresh = Instant::now() + self.refresh;
        loop {
            tokio::select! {
                event = events.next() => {
                    let Some((stream, event)) = event else { return };
                    if self.watched.take(stream, event) && gathered.is_none() {
                        gathered = Some(Instant::now() + GATHER);
                    }
                }
                Some(kind) = definitions.next() => {
                    info!(%kind, "definition changed, and its objects are read again");
                    self.watched.read_again(kind);
                }
                () = due(gathered) => {
                    gathered = None;
                    if self.watched.is_read() {
                        self.fetched.want(self.wanted()).await;
                        self.issuer.want(self.watched.takes_service_accounts()).await;
                        self.tell(&sender);
                    }
                }
                () = sleep_until(refresh) => {
                    if self.fetched.refresh().await | self.issuer.refresh().await {
                        self.tell(&sender);
                    }
                    refresh = Instant::now() + self.refresh;
                }
            }
        }
    }

    /// Secrets and ConfigMaps that manifests name.
    fn wanted(&self) -> BTreeSet<ObjectKey> {
        self.watched.references().cloned().collect()
    }

    fn tell(&self, sender: &watch::Sender<Option<Arc<Snapshot>>>) {
        let watched = self.watched.objects().iter();
        let objects = watched
            .chain(self.fetched.objects())
            .map(|(key, sourced)| (key.clone(), sourced.clone()))
            .collect();
        let faults = self.watched.faults().chain(self.fetched.faults());
        let problems = faults.chain(self.issuer.fault()).map(unreadable).collect();
        sender.send_replace(Some(Arc::new(Snapshot {
            objects,
            problems,
            service_accounts: self.issuer.told(),
        })));
    }
}
