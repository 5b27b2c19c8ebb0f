//! Makes objects as they shall be, and keeps them so.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use foreshore_runtime::{Backoff, Shutdown};
use futures::{StreamExt, stream};
use kube_client::{Api, Client, api::DynamicObject, core::PartialObjectMeta};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

mod drift;
mod make;

use make::{Answer, make};

use super::{
    build::{self, Child, ChildKey, ChildKind, Settings},
    observe::Pods,
};
use crate::{
    control::Trust,
    kubernetes::{Error, OperatorMetrics, Scope, listing::Listing},
    role::RoleName,
    workloads::Workload,
};

/// Calls at a time.
const AT_ONCE: usize = 8;
/// Waits after an object could not be made.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Time between two looks at what is not watched.
const LOOK: Duration = Duration::from_secs(30);

type Desired = watch::Receiver<Arc<BTreeMap<RoleName, Workload>>>;

/// Makes objects as they shall be, and keeps them so.
pub(super) struct Applier {
    client: Client,
    scope: Scope,
    settings: Settings,
    trust: Trust,
    pods: Arc<Pods>,
    metrics: OperatorMetrics,
    wanted: BTreeMap<ChildKey, Child>,
    /// What was made, as it was asked for and as the API answered.
    made: BTreeMap<ChildKey, Made>,
    /// What could not be made.
    failed: BTreeMap<ChildKey, Failed>,
    /// What each watch told of.
    listings: BTreeMap<usize, Listing<ChildKey>>,
    /// ConfigMaps that nobody wants any more: they can't be listed.
    unwanted: BTreeSet<ChildKey>,
    /// Whether what nobody wants any more has been looked for since something changed.
    swept: bool,
}

struct Made {
    manifest: Value,
    /// Identity of the ServiceAccount of its pods.
    account: Option<String>,
    version: Version,
    uid: String,
}

struct Failed {
    manifest: Value,
    error: String,
    backoff: Backoff,
    next: Instant,
}

/// What tells one state of an object from another: the generation where its kind has one, since statuses change without
/// us, or else the resource version.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Version {
    Generation(i64),
    Resource(String),
}

impl Version {
    fn of(metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Self {
        match metadata.generation {
            Some(generation) if generation > 0 => Self::Generation(generation),
            _ => Self::Resource(metadata.resource_version.clone().unwrap_or_default()),
        }
    }
}

impl Applier {
    pub(super) fn new(
        client: Client,
        scope: Scope,
        settings: Settings,
        trust: Trust,
        pods: Arc<Pods>,
        metrics: OperatorMetrics,
    ) -> Self {
        Self {
            client,
            scope,
            settings,
            trust,
            pods,
            metrics,
            wanted: BTreeMap::new(),
            made: BTreeMap::new(),
            failed: BTreeMap::new(),
            listings: BTreeMap::new(),
            unwanted: BTreeSet::new(),
            swept: false,
        }
    }

    /// Runs until the shutdown begins.
    pub(super) async fn run(mut self, mut desired: Desired, shutdown: Shutdown) {
        // Nothing is known to be unwanted before something was wanted once.
        if !matches!(shutdown.or_begun(desired.changed()).await, Some(Ok(()))) {
            return;
        }
        let mut trust = self.trust.subscribe();
        let mut seen = self.watch();
        self.want(&desired.borrow_and_update().clone());
        let mut look = Instant::now() + LOOK;
        loop {
            if shutdown.or_begun(self.step()).await.is_none() {
                return;
            }
            if look <= Instant::now() {
                self.check_trust().await;
                look = Instant::now() + LOOK;
                continue;
            }
            let retry = self.failed.values().map(|failed| failed.next);
            let due = retry.fold(look, Instant::min);
            tokio::select! {
                () = shutdown.begun() => return,
                changed = desired.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.want(&desired.borrow_and_update().clone());
                }
                changed = trust.changed() => if changed.is_ok() {
                    self.want(&desired.borrow().clone());
                },
                event = seen.next() => if let Some(event) = event {
                    self.see(event);
                },
                () = sleep_until(due) => {}
            }
        }
    }

    /// Builds what is wanted now.
    fn want(&mut self, desired: &BTreeMap<RoleName, Workload>) {
        match build::build(desired, &self.settings, &self.trust.bundle().to_pem()) {
            Ok(wanted) => {
                let gone = self.wanted.keys().filter(|key| !wanted.contains_key(*key));
                let gone: Vec<_> = gone.cloned().collect();
                self.swept &= gone.is_empty();
                let unlisted = gone.into_iter().filter(|key| !key.kind.is_listed());
                self.unwanted.extend(unlisted);
                self.unwanted.retain(|key| !wanted.contains_key(key));
                self.wanted = wanted;
            }
            Err(error) => warn!(%error, "objects of workloads can't be written as JSON"),
        }
        let wanted = &self.wanted;
        self.made.retain(|key, _| wanted.contains_key(key));
        self.failed.retain(|key, _| wanted.contains_key(key));
    }

    /// Makes what differs, in the order of kinds, and removes what nobody wants any more.
    async fn step(&mut self) {
        for kind in ChildKind::ALL {
            let now = Instant::now();
            let of_kind = self.wanted.iter().filter(|(key, _)| key.kind == kind);
            let due = of_kind.filter_map(|(key, child)| {
                // Who its pods are, has to be known first.
                let account = self.account_of(key)?;
                self.is_due(key, child, account, now).then(|| {
                    (
                        key.clone(),
                        child.manifest.clone(),
                        account.map(ToOwned::to_owned),
                    )
                })
            });
            let due: Vec<_> = due.collect();
            let client = &self.client;
            let calls = due.into_iter().map(|(key, manifest, account)| async move {
                let made = make(client, &key, &manifest, account.as_deref()).await;
                (key, manifest, account, made)
            });
            let made: Vec<_> = stream::iter(calls).buffer_unordered(AT_ONCE).collect().await;
            for (key, manifest, account, made) in made {
                self.note(key, manifest, account, made);
            }
        }
        let mut unmade = BTreeMap::new();
        for (key, failed) in &self.failed {
            if let Some(role) = self.wanted.get(key).and_then(|child| child.role.clone()) {
                unmade
                    .entry(role)
                    .or_insert_with(|| format!("{key} can't be made: {}", failed.error));
            }
        }
        self.pods.set_unmade(unmade);
        if !self.swept {
            self.swept = self.sweep().await;
        }
    }

    fn is_due(&self, key: &ChildKey, child: &Child, account: Option<&str>, now: Instant) -> bool {
        if let Some(failed) = self.failed.get(key)
            && failed.manifest == child.manifest
        {
            return failed.next <= now;
        }
        self.made
            .get(key)
            .is_none_or(|made| made.manifest != child.manifest || made.account.as_deref() != account)
    }

    /// Identity of the ServiceAccount of an object's pods: `Some(None)` where it has none, `None` while it is not made.
    ///
    /// Another one than before makes the object due: the tokens of its pods are those of the account before, and stay so
    /// for most of an hour.
    fn account_of(&self, key: &ChildKey) -> Option<Option<&str>> {
        if !key.kind.has_pods() {
            return Some(None);
        }
        let account = ChildKey {
            kind: ChildKind::ServiceAccount,
            ..key.clone()
        };
        self.made.get(&account).map(|made| Some(made.uid.as_str()))
    }

    fn note(&mut self, key: ChildKey, manifest: Value, account: Option<String>, made: Result<Answer, Error>) {
        match made {
            Ok(Answer { version, uid }) => {
                self.failed.remove(&key);
                let made = Made {
                    manifest,
                    account,
                    version,
                    uid,
                };
                self.made.insert(key, made);
            }
            Err(error) => {
                let before = self
                    .failed
                    .remove(&key)
                    .filter(|before| before.manifest == manifest);
                let mut backoff =
                    before.map_or_else(|| Backoff::new(RETRY.0, RETRY.1), |before| before.backoff);
                let delay = backoff.next_delay();
                if error.is_namespace_gone() {
                    // What declares it is gone in a moment.
                    debug!(object = %key, %error, "object can't be made");
                } else {
                    self.metrics.apply_failures.inc();
                    warn!(object = %key, %error, retry_seconds = delay.as_secs_f64(), "object can't be made");
                }
                let failed = Failed {
                    manifest,
                    error: error.to_string(),
                    backoff,
                    next: Instant::now() + delay,
                };
                self.made.remove(&key);
                self.failed.insert(key, failed);
            }
        }
    }
}

impl Made {
    /// Whether our own last change is newer than what the watch tells now.
    fn is_newer(&self, seen: &Version) -> bool {
        match (&self.version, seen) {
            (Version::Generation(made), Version::Generation(seen)) => made > seen,
            _ => false,
        }
    }
}

impl ChildKind {
    /// Whether the operator may list and watch it.
    fn is_listed(self) -> bool {
        self != Self::ConfigMap
    }

    /// Whether it makes pods.
    fn has_pods(self) -> bool {
        matches!(self, Self::Deployment | Self::StatefulSet)
    }
}

fn api(client: &Client, key: &ChildKey) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), &key.namespace, &key.kind.resource())
}

fn key(kind: ChildKind, object: &PartialObjectMeta<DynamicObject>) -> Option<ChildKey> {
    Some(ChildKey {
        kind,
        namespace: object.metadata.namespace.clone()?,
        name: object.metadata.name.clone()?,
    })
}
