//! Which object is which: what a directory does not say and an API server would.
//!
//! Each object gets a UID when it is first seen and a generation that rises with its spec. Both survive a restart, or
//! roles would take an old plan for a new one.

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    object::{Meta, ObjectKey},
    vault::{Error, Vault},
};

use super::document::Declared;

/// Name space of our UIDs (RFC 9562, 5.5).
const UID_NAMESPACE: Uuid = Uuid::from_u128(0x6f72_6573_686f_7265_8000_6f62_6a65_6374);
/// Name of the file.
const FILE: &str = "objects";
/// Largest file: far more than [`super::walk`] lets in.
const MAX_BYTES: u64 = 256 << 20;

/// What is kept of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) meta: Meta,
    /// Of the spec that the generation stands for.
    pub(super) digest: [u8; 32],
    /// Absolute path of the file that declares it.
    pub(super) file: String,
}

/// What is kept of all objects.
#[derive(Debug, Default)]
pub(super) struct Identities {
    pub(super) objects: BTreeMap<ObjectKey, Identity>,
    /// Absolute paths of the roots that declared them.
    pub(super) roots: Vec<PathBuf>,
    changed: bool,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    roots: Vec<PathBuf>,
    objects: Vec<StoredObject>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredObject {
    #[serde(flatten)]
    key: ObjectKey,
    #[serde(flatten)]
    meta: Meta,
    digest: String,
    file: String,
}

impl Identities {
    /// Reads what was kept. A damaged file is set aside: objects get new UIDs, which costs a new plan and no data.
    ///
    /// # Errors
    /// When the file exists and can't be read.
    pub(super) fn load(vault: &Vault) -> Result<Self, Error> {
        let content = match vault.read(FILE, MAX_BYTES) {
            Ok(content) => content,
            Err(Error::Damaged { path }) => {
                let aside = vault.set_aside(FILE)?;
                warn!(path = %path.display(), aside = %aside.display(), "identities of objects are damaged and set aside");
                None
            }
            Err(error) => return Err(error),
        };
        let Some(content) = content else {
            return Ok(Self::default());
        };
        match Self::decode(&content) {
            Ok(identities) => Ok(identities),
            Err(error) => {
                let aside = vault.set_aside(FILE)?;
                warn!(%error, aside = %aside.display(), "identities of objects are not understood and set aside");
                Ok(Self::default())
            }
        }
    }

    fn decode(content: &[u8]) -> Result<Self, serde_json::Error> {
        let Stored { roots, objects } = serde_json::from_slice(content)?;
        let objects = objects.into_iter().map(
            |StoredObject {
                 key,
                 meta,
                 digest,
                 file,
             }| {
                // A digest that is not understood differs from all others: the generation rises once more than needed.
                let mut bytes = [0; 32];
                if hex::decode_to_slice(digest, &mut bytes).is_err() {
                    bytes = [0; 32];
                }
                (
                    key,
                    Identity {
                        meta,
                        digest: bytes,
                        file,
                    },
                )
            },
        );
        Ok(Self {
            objects: objects.collect(),
            roots,
            changed: false,
        })
    }

    /// Writes what changed since the last time, if anything.
    ///
    /// # Errors
    /// When it can't be written.
    pub(super) fn save(&mut self, vault: &Vault) -> Result<(), Error> {
        if !self.changed {
            return Ok(());
        }
        let objects = self
            .objects
            .iter()
            .map(|(key, Identity { meta, digest, file })| StoredObject {
                key: key.clone(),
                meta: meta.clone(),
                digest: hex::encode(digest),
                file: file.clone(),
            });
        let stored = Stored {
            roots: self.roots.clone(),
            objects: objects.collect(),
        };
        let content = serde_json::to_vec(&stored).unwrap_or_default();
        vault.write(FILE, content)?;
        self.changed = false;
        Ok(())
    }

    /// Notes from which roots objects come.
    pub(super) fn set_roots(&mut self, roots: Vec<PathBuf>) {
        if self.roots != roots {
            self.roots = roots;
            self.changed = true;
        }
    }

    /// Notes that a file declares an object, and tells which life and version of it that is.
    pub(super) fn seen(&mut self, declared: &Declared, file: &str, now: Timestamp) -> Meta {
        let Declared { key, digest, .. } = declared;
        let Some(identity) = self.objects.get_mut(key) else {
            let meta = Meta {
                uid: uid(key, now),
                generation: 1,
                created: now,
            };
            let identity = Identity {
                meta: meta.clone(),
                digest: *digest,
                file: file.to_owned(),
            };
            self.objects.insert(key.clone(), identity);
            self.changed = true;
            return meta;
        };
        if identity.digest != *digest {
            identity.digest = *digest;
            identity.meta.generation = identity.meta.generation.saturating_add(1);
            self.changed = true;
            info!(object = %key, generation = identity.meta.generation, "object changed");
        }
        if identity.file != file {
            file.clone_into(&mut identity.file);
            self.changed = true;
        }
        identity.meta.clone()
    }

    /// Forgets objects that nothing declares any more.
    pub(super) fn retain(&mut self, declared: impl Fn(&ObjectKey) -> bool) {
        let before = self.objects.len();
        self.objects.retain(|key, _| declared(key));
        self.changed |= self.objects.len() != before;
    }
}

/// The same name declared again later is another object, so the time is part of what the UID is made from.
fn uid(key: &ObjectKey, now: Timestamp) -> String {
    let text = format!(
        "{}/{}/{}@{}",
        key.kind,
        key.namespace,
        key.name,
        now.as_nanosecond()
    );
    Uuid::new_v5(&UID_NAMESPACE, text.as_bytes()).to_string()
}
