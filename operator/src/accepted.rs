//! The last accepted version of each object: what runs on while a newer one is wrong, after a restart too.
//!
//! A folder keeps all of them, since what is declared may change while nobody looks. The Kubernetes API keeps those alone
//! whose newer version is wrong: it is changed only at times when some operator is told.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tracing::warn;

use crate::{
    object::{Meta, ObjectKey},
    packed::Packed,
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
    pub(crate) manifest: Packed,
}

/// Versions that run on while a newer one is wrong.
pub(crate) type Earlier = BTreeMap<ObjectKey, AcceptedVersion>;

/// The last accepted version of each object.
#[derive(Default)]
pub(crate) struct Accepted {
    objects: BTreeMap<ObjectKey, AcceptedVersion>,
    keep: Keep,
    changed: bool,
}

/// Where versions are kept.
#[derive(Default)]
enum Keep {
    /// Nowhere.
    #[default]
    Nowhere,
    /// All of them, in a folder.
    Folder(Box<Vault>),
    /// Those of which a newer version is wrong, by whoever follows.
    Earlier(watch::Sender<Option<Earlier>>),
}

/// A version as it is written down.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stored {
    #[serde(flatten)]
    pub(crate) key: ObjectKey,
    #[serde(flatten)]
    pub(crate) meta: Meta,
    pub(crate) manifest: Value,
}

impl Stored {
    pub(crate) fn of(key: &ObjectKey, version: &AcceptedVersion) -> Self {
        Self {
            key: key.clone(),
            meta: version.meta.clone(),
            manifest: version.manifest.value(),
        }
    }
}

impl From<Stored> for (ObjectKey, AcceptedVersion) {
    fn from(Stored { key, meta, manifest }: Stored) -> Self {
        let manifest = Packed::of(&manifest);
        (key, AcceptedVersion { meta, manifest })
    }
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
        let stored: Vec<Stored> = match content.as_deref().map(serde_json::from_slice).transpose() {
            Ok(stored) => stored.unwrap_or_default(),
            Err(error) => {
                let aside = vault.set_aside(FILE)?;
                warn!(%error, aside = %aside.display(), "accepted manifests are not understood and set aside");
                Vec::new()
            }
        };
        Ok(Self {
            objects: stored.into_iter().map(Into::into).collect(),
            keep: Keep::Folder(Box::new(vault)),
            changed: false,
        })
    }

    /// Begins with versions that ran on when somebody else led, and tells which do now.
    pub(crate) fn of(earlier: Earlier, kept: watch::Sender<Option<Earlier>>) -> Self {
        Self {
            objects: earlier,
            keep: Keep::Earlier(kept),
            changed: false,
        }
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
        let known = self
            .objects
            .get(key)
            .is_some_and(|known| known.meta == version.meta && known.manifest == version.manifest);
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

    /// Tells which versions run on while a newer one is wrong.
    pub(crate) fn run_on<'a>(&self, objects: impl Iterator<Item = &'a ObjectKey>) {
        let Keep::Earlier(kept) = &self.keep else {
            return;
        };
        // A Secret is nobody's to copy.
        let ours = objects.filter(|key| key.kind.is_ours());
        let earlier: Earlier = ours
            .filter_map(|key| Some((key.clone(), self.objects.get(key)?.clone())))
            .collect();
        kept.send_if_modified(|before| {
            let changed = before.as_ref() != Some(&earlier);
            *before = Some(earlier);
            changed
        });
    }

    /// Writes what changed since the last time, if anything. Blocks: for a thread that may.
    ///
    /// # Errors
    /// When it can't be written; it is tried again the next time.
    pub(crate) fn save(&mut self) -> Result<(), Error> {
        let Keep::Folder(vault) = &self.keep else {
            return Ok(());
        };
        if !self.changed {
            return Ok(());
        }
        let versions = self.objects.iter();
        let stored: Vec<_> = versions.map(|(key, version)| Stored::of(key, version)).collect();
        vault.write(FILE, serde_json::to_vec(&stored).unwrap_or_default())?;
        self.changed = false;
        Ok(())
    }
}
