//! The last accepted version of each object: what runs on while a newer one is wrong, after a restart too.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::warn;

use crate::{
    object::{Meta, ObjectKey},
    vault::{Error, Vault},
};

/// Name of the file.
const FILE: &str = "accepted";
/// Largest file.
const MAX_BYTES: u64 = 1 << 30;

/// An accepted version of an object.
#[derive(Clone, PartialEq)]
pub(crate) struct AcceptedVersion {
    pub(crate) meta: Meta,
    pub(crate) manifest: Arc<Value>,
}

/// The last accepted version of each object.
#[derive(Default)]
pub(crate) struct Accepted {
    objects: BTreeMap<ObjectKey, AcceptedVersion>,
    vault: Option<Vault>,
    changed: bool,
}

/// A line of the file: `M` is [`Value`], or a reference to one.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored<M> {
    #[serde(flatten)]
    key: ObjectKey,
    #[serde(flatten)]
    meta: Meta,
    manifest: M,
}

impl Accepted {
    /// Opens what is kept in a folder. A damaged file is set aside: what is wrong now has nothing to fall back on, and
    /// everything else runs.
    ///
    /// # Errors
    /// When the folder can't be used, or others may read its key.
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        let vault = Vault::open(folder)?;
        let content = match vault.read(FILE, MAX_BYTES) {
            Ok(content) => content,
            Err(Error::Damaged { path }) => {
                let aside = vault.set_aside(FILE)?;
                warn!(path = %path.display(), aside = %aside.display(), "accepted manifests are damaged and set aside");
                None
            }
            Err(error) => return Err(error),
        };
        let stored: Vec<Stored<Value>> = match content.as_deref().map(serde_json::from_slice).transpose() {
            Ok(stored) => stored.unwrap_or_default(),
            Err(error) => {
                let aside = vault.set_aside(FILE)?;
                warn!(%error, aside = %aside.display(), "accepted manifests are not understood and set aside");
                Vec::new()
            }
        };
        let objects = stored.into_iter().map(|Stored { key, meta, manifest }| {
            (
                key,
                AcceptedVersion {
                    meta,
                    manifest: Arc::new(manifest),
                },
            )
        });
        Ok(Self {
            objects: objects.collect(),
            vault: Some(vault),
            changed: false,
        })
    }

    /// Whether nothing was ever accepted.
    pub(crate) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&AcceptedVersion> {
        self.objects.get(key)
    }

    /// Notes that a version of an object was accepted.
    pub(crate) fn accept(&mut self, key: &ObjectKey, version: AcceptedVersion) {
        let known = self.objects.get(key).is_some_and(|known| {
            known.meta == version.meta
                && (Arc::ptr_eq(&known.manifest, &version.manifest) || known.manifest == version.manifest)
        });
        if !known {
            self.objects.insert(key.clone(), version);
            self.changed = true;
        }
    }

    /// Forgets objects that nothing declares any more.
    pub(crate) fn retain(&mut self, declared: impl Fn(&ObjectKey) -> bool) {
        let before = self.objects.len();
        self.objects.retain(|key, _| declared(key));
        self.changed |= self.objects.len() != before;
    }

    /// Writes what changed since the last time, if anything. Blocks: for a thread that may.
    ///
    /// # Errors
    /// When it can't be written; it is tried again the next time.
    pub(crate) fn save(&mut self) -> Result<(), Error> {
        let Some(vault) = self.vault.as_ref().filter(|_| self.changed) else {
            return Ok(());
        };
        let stored: Vec<_> = self
            .objects
            .iter()
            .map(|(key, AcceptedVersion { meta, manifest })| Stored {
                key: key.clone(),
                meta: meta.clone(),
                manifest: &**manifest,
            })
            .collect();
        vault.write(FILE, serde_json::to_vec(&stored).unwrap_or_default())?;
        self.changed = false;
        Ok(())
    }
}
