//! What others do to our objects, and objects of ours that nobody wants any more.

use futures::{Stream, StreamExt, stream::SelectAll};
use kube_client::{
    api::{DeleteParams, DynamicObject, ListParams},
    core::PartialObjectMeta,
};
use kube_runtime::{
    WatchStreamExt,
    watcher::{Config, Event, watcher},
};
use tracing::{info, warn};

use super::{Applier, Version, api, key};
use crate::{
    kubernetes::{listing::Change, within},
    workloads::pods::build::{ChildKey, ChildKind, SELECTOR},
};

/// What one of the watches of objects told.
pub(super) type Seen = (
    usize,
    ChildKind,
    Result<Event<PartialObjectMeta<DynamicObject>>, kube_runtime::watcher::Error>,
);

impl Applier {
    /// Removes objects of ours that nobody wants; whether all were found and removed.
    pub(super) async fn sweep(&mut self) -> bool {
        let mut all = true;
        for kind in ChildKind::ALL.into_iter().filter(|kind| kind.is_listed()) {
            let resource = kind.resource();
            for api in self
                .scope
                .apis::<PartialObjectMeta<DynamicObject>>(&self.client, &resource)
            {
                let listed = within(api.list(&ListParams::default().labels(SELECTOR))).await;
                let listed = match listed {
                    Ok(listed) => listed,
                    Err(error) => {
                        warn!(?kind, %error, "objects can't be listed; what nobody wants any more stays for now");
                        all = false;
                        continue;
                    }
                };
                for object in listed.items {
                    let Some(key) = key(kind, &object) else { continue };
                    if !self.wanted.contains_key(&key) {
                        all &= self.remove(&key).await;
                    }
                }
            }
        }
        for key in std::mem::take(&mut self.unwanted) {
            if !self.remove(&key).await {
                self.unwanted.insert(key);
                all = false;
            }
        }
        all
    }

    async fn remove(&self, key: &ChildKey) -> bool {
        let api = api(&self.client, key);
        match within(api.delete(&key.name, &DeleteParams::background())).await {
            Ok(_) => info!(object = %key, "object that nobody wants any more is removed"),
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                warn!(object = %key, %error, "object that nobody wants any more can't be removed");
                return false;
            }
        }
        true
    }

    /// What others changed of our objects, or deleted, is made again, also after a gap of the watch.
    pub(super) fn see(&mut self, (stream, kind, event): Seen) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                self.metrics.watch_errors.inc();
                warn!(?kind, %error, "watch of objects failed, and is tried again");
                return;
            }
        };
        if matches!(event, Event::Init) {
            self.swept = false;
        }
        let listing = self.listings.entry(stream).or_default();
        for change in listing.take(event, |object| key(kind, object)) {
            match change {
                Change::Is(key, object) => {
                    let version = Version::of(&object.metadata);
                    let made = self.made.get(&key);
                    if made.is_some_and(|made| made.version != version && !made.is_newer(&version)) {
                        self.made.remove(&key);
                    }
                }
                Change::Gone(key) => drop(self.made.remove(&key)),
            }
        }
    }

    pub(super) fn watch(&self) -> SelectAll<std::pin::Pin<Box<dyn Stream<Item = Seen> + Send>>> {
        let kinds = ChildKind::ALL.into_iter().filter(|kind| kind.is_listed());
        let apis = kinds.flat_map(|kind| {
            let apis = self.scope.apis(&self.client, &kind.resource());
            apis.into_iter().map(move |api| (kind, api))
        });
        let mut seen = SelectAll::new();
        for (stream, (kind, api)) in apis.enumerate() {
            let watch = watcher(api, Config::default().labels(SELECTOR)).default_backoff();
            seen.push(watch.map(move |event| (stream, kind, event)).boxed());
        }
        seen
    }

    /// Whether the roots of each namespace are still there: nobody watches them.
    pub(super) async fn check_trust(&mut self) {
        let trusted: Vec<_> = self
            .made
            .keys()
            .filter(|key| key.kind == ChildKind::ConfigMap)
            .cloned()
            .collect();
        for key in trusted {
            let Ok(found) = within(api(&self.client, &key).get_opt(&key.name)).await else {
                continue;
            };
            let version = found.map(|found| Version::of(&found.metadata));
            if version.as_ref() != self.made.get(&key).map(|made| &made.version) {
                self.made.remove(&key);
            }
        }
    }
}
