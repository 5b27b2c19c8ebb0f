//! Secrets and ConfigMaps, read one by one.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, stream};
use kube_client::{Api, Client, api::DynamicObject};
use tracing::warn;

use super::watched::{manifest, meta_of};
use crate::{
    kubernetes::{Error, resource, within},
    object::ObjectKey,
    packed::Packed,
    source::Sourced,
};

/// Calls at a time.
const AT_ONCE: usize = 8;

/// What manifests name.
pub(super) struct Fetched {
    client: Client,
    wanted: BTreeSet<ObjectKey>,
    objects: BTreeMap<ObjectKey, Sourced>,
    /// What can't be read now, and why. What was known of it stays.
    faults: BTreeMap<ObjectKey, String>,
}

impl Fetched {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            wanted: BTreeSet::new(),
            objects: BTreeMap::new(),
            faults: BTreeMap::new(),
        }
    }

    pub(super) fn objects(&self) -> &BTreeMap<ObjectKey, Sourced> {
        &self.objects
    }

    pub(super) fn faults(&self) -> impl Iterator<Item = &str> {
        self.faults.values().map(String::as_str)
    }

    /// Reads what is named now and was not before; forgets what is not named any more.
    pub(super) async fn want(&mut self, wanted: BTreeSet<ObjectKey>) {
        self.objects.retain(|key, _| wanted.contains(key));
        self.faults.retain(|key, _| wanted.contains(key));
        let new: Vec<_> = wanted.difference(&self.wanted).cloned().collect();
        self.wanted = wanted;
        self.fetch(new).await;
    }

    /// Reads everything again; whether anything is different.
    pub(super) async fn refresh(&mut self) -> bool {
        self.fetch(self.wanted.iter().cloned().collect()).await
    }

    async fn fetch(&mut self, keys: Vec<ObjectKey>) -> bool {
        let client = &self.client;
        let calls = keys.into_iter().map(|key| async move {
            let api: Api<DynamicObject> =
                Api::namespaced_with(client.clone(), &key.namespace, &resource(key.kind));
            let read = within(api.get_opt(&key.name)).await;
            (key, read)
        });
        let read: Vec<_> = stream::iter(calls).buffer_unordered(AT_ONCE).collect().await;
        let mut changed = false;
        for (key, read) in read {
            changed |= self.take(key, read);
        }
        changed
    }

    fn take(&mut self, key: ObjectKey, read: Result<Option<DynamicObject>, Error>) -> bool {
        let object = match read {
            Ok(object) => object,
            Err(error) => {
                let fault = format!("{key} can't be read: {error}");
                let news = self.faults.get(&key) != Some(&fault);
                if news {
                    warn!(object = %key, %error, "can't be read, and is tried again");
                }
                self.faults.insert(key, fault);
                return news;
            }
        };
        let mended = self.faults.remove(&key).is_some();
        let Some(object) = object else {
            return self.objects.remove(&key).is_some() || mended;
        };
        let sourced = sourced(&key, object);
        let known = self.objects.get(&key);
        let same =
            known.is_some_and(|known| known.meta == sourced.meta && known.manifest == sourced.manifest);
        if !same {
            self.objects.insert(key, sourced);
        }
        !same || mended
    }
}

fn sourced(key: &ObjectKey, object: DynamicObject) -> Sourced {
    Sourced {
        meta: meta_of(&object.metadata),
        // Their labels mean nothing to us.
        manifest: Some(Packed::of(&manifest(key, None, None, object.data))),
        origin: None,
    }
}
