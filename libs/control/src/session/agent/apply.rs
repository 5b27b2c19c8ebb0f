//! Puts changes in force, one after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use foreshore_runtime::{Shutdown, due};
use foreshore_tls::Fingerprint;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{error, warn};

use super::{AgentStatus, Change, Error, InForce, Role, outbox::Outbox, store::PlanStore};
use crate::{
    plan::ResourceKey,
    report::Nack,
    resource::Resource,
    session::wire::{Answer, Received, ResourceVersion},
};

/// How long the surroundings have to become better, before what was refused because of them is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What the operator sent.
pub(super) enum Incoming {
    Set(Received),
    Remove(ResourceKey),
    SnapshotComplete,
}

pub(super) struct Applier<R> {
    pub(super) role: R,
    pub(super) store: Arc<PlanStore>,
    pub(super) in_force: InForce,
    pub(super) refused: BTreeMap<ResourceKey, Nack>,
    /// Refused because of the surroundings: tried again then.
    pub(super) passing: BTreeMap<ResourceKey, (Instant, Resource)>,
    /// Stored, but refused at the start. They stay stored until the operator has said what shall be.
    pub(super) doubtful: BTreeSet<ResourceKey>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) status: watch::Sender<AgentStatus>,
}

impl<R: Role> Applier<R> {
    /// Puts the last good plan in force; returns how many resources it had.
    pub(super) async fn replay(&mut self, limit: usize, shutdown: &Shutdown) -> Result<usize, Error> {
        let store = Arc::clone(&self.store);
        let stored = tokio::task::spawn_blocking(move || store.load(limit)).await;
        let resources = stored.map_err(Error::protocol)??;
        if resources.is_empty() {
            // Without a plan nothing is complete: the role waits for its first.
            return Ok(0);
        }
        for resource in resources {
            if shutdown.is_begun() {
                return Ok(0);
            }
            let version = ResourceVersion::of(&resource);
            match self.role.apply(Change::Set(resource)).await {
                Ok(()) => self.hold(version),
                // It was good once: another version of the program judges otherwise. The operator will send it again,
                // and hear of it.
                Err(nack) => {
                    warn!(key = %version.key, %nack, "stored resource refused");
                    self.doubtful.insert(version.key);
                }
            }
        }
        self.complete().await;
        let replayed = self.in_force.lock().len();
        self.publish();
        Ok(replayed)
    }

    /// Puts changes in force until the shutdown begins.
    pub(super) async fn run(&mut self, mut incoming: mpsc::Receiver<Incoming>, shutdown: &Shutdown) {
        loop {
            let next = self.passing.values().map(|(at, _)| *at).min();
            let next = async {
                tokio::select! {
                    biased;
                    change = incoming.recv() => Some(change),
                    () = due(next) => None,
                }
            };
            // A change that has begun is finished, if the time allows.
            let taken = match shutdown.or_begun(next).await {
                Some(Some(Some(change))) => shutdown.or_deadline(self.take(change)).await,
                Some(None) => shutdown.or_deadline(self.try_again()).await,
                Some(Some(None)) | None => return,
            };
            if taken.is_none() {
                return;
            }
        }
    }

    /// Tries what was refused because of the surroundings and is due. What is refused again in the same words has been
    /// told already.
    async fn try_again(&mut self) {
        let now = Instant::now();
        let due = self.passing.extract_if(.., |_, (at, _)| *at <= now);
        let due: Vec<_> = due.map(|(_, (_, resource))| resource).collect();
        for resource in due {
            match self.role.apply(Change::Set(resource.clone())).await {
                Ok(()) => self.accept(resource).await,
                Err(nack) if self.refused.get(resource.key()) == Some(&nack) => self.put_off(resource),
                Err(nack) => self.refuse_set(resource, nack),
            }
        }
        self.publish();
    }

    async fn take(&mut self, change: Incoming) {
        match change {
            Incoming::Set(Received::Whole(resource)) => self.set(resource).await,
            Incoming::Set(Received::Bad(version, nack)) => self.refuse(version, false, nack),
            Incoming::Remove(key) => self.remove(key).await,
            Incoming::SnapshotComplete => {
                self.complete().await;
                self.drop_doubtful().await;
            }
        }
        self.publish();
    }

    /// What was refused at the start, and is not in force after the operator's snapshot either, is no good.
    async fn drop_doubtful(&mut self) {
        for key in std::mem::take(&mut self.doubtful) {
            if !self.in_force.lock().contains_key(&key) {
                let store = Arc::clone(&self.store);
                self.persist(move || store.remove(&key)).await;
            }
        }
    }

    async fn set(&mut self, resource: Resource) {
        let version = ResourceVersion::of(&resource);
        let held = self.in_force.lock().get(resource.key()).map(|(_, hash)| *hash);
        if held != Some(version.hash) {
            if let Err(nack) = self.role.apply(Change::Set(resource.clone())).await {
                self.refuse_set(resource, nack);
                return;
            }
            self.accept(resource).await;
        } else {
            self.acknowledge(version);
        }
    }

    /// The role has put it in force.
    async fn accept(&mut self, resource: Resource) {
        let version = ResourceVersion::of(&resource);
        let store = Arc::clone(&self.store);
        self.persist(move || store.put(resource)).await;
        self.acknowledge(version);
    }

    /// The version is in force.
    fn acknowledge(&mut self, version: ResourceVersion) {
        self.forget_refusal(&version.key);
        self.hold(version.clone());
        self.outbox.answer(Answer {
            resource: version,
            removed: false,
            refused: None,
        });
    }

    fn refuse_set(&mut self, resource: Resource, nack: Nack) {
        let version = ResourceVersion::of(&resource);
        if nack.is_passing() {
            self.put_off(resource);
        } else {
            self.passing.remove(&version.key);
        }
        self.refuse(version, false, nack);
    }

    fn put_off(&mut self, resource: Resource) {
        let again = (Instant::now() + RETRY, resource);
        self.passing.insert(again.1.key().clone(), again);
    }

    fn forget_refusal(&mut self, key: &ResourceKey) {
        self.refused.remove(key);
        self.passing.remove(key);
    }

    async fn remove(&mut self, key: ResourceKey) {
        // Even if the removal is refused: it shall not come back by itself.
        self.passing.remove(&key);
        let held = self.in_force.lock().get(&key).copied();
        let (version, hash) = held.unwrap_or_else(|| (0, Fingerprint::of(b"")));
        let resource = ResourceVersion {
            key: key.clone(),
            version,
            hash,
        };
        if held.is_some()
            && let Err(nack) = self.role.apply(Change::Remove(key.clone())).await
        {
            self.refuse(resource, true, nack);
            return;
        }
        self.in_force.lock().remove(&key);
        self.forget_refusal(&key);
        let store = Arc::clone(&self.store);
        self.persist(move || store.remove(&key)).await;
        self.outbox.answer(Answer {
            resource,
            removed: true,
            refused: None,
        });
    }

    async fn complete(&mut self) {
        if let Err(nack) = self.role.apply(Change::SnapshotComplete).await {
            warn!(%nack, "end of snapshot refused");
        }
    }

    fn hold(&self, resource: ResourceVersion) {
        self.in_force
            .lock()
            .insert(resource.key, (resource.version, resource.hash));
    }

    fn refuse(&mut self, resource: ResourceVersion, removed: bool, nack: Nack) {
        warn!(key = %resource.key, %nack, "resource refused, its last good version stays in force");
        self.refused.insert(resource.key.clone(), nack.clone());
        self.outbox.answer(Answer {
            resource,
            removed,
            refused: Some(nack),
        });
    }

    /// A plan that is in force but not stored is worth telling, not worth refusing.
    async fn persist(&self, access: impl FnOnce() -> Result<(), foreshore_tls::Error> + Send + 'static) {
        match tokio::task::spawn_blocking(access).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!(%error, "last good plan not stored"),
            Err(error) => error!(%error, "last good plan not stored"),
        }
    }

    fn publish(&self) {
        let (in_force, refused) = (self.in_force.lock().len(), self.refused.len());
        self.status.send_if_modified(|status| {
            let changed = (status.in_force, status.refused) != (in_force, refused);
            (status.in_force, status.refused) = (in_force, refused);
            changed
        });
    }
}
