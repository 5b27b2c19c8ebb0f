//! The keys of a store itself, sealed with a key of the user.
//!
//! Rows are sealed with keys that the store draws by itself, so that a new key of the user needs nothing but a new
//! keyring. It lies in the store's directory twice, `keys` and `keys.copy`, and is written one after the other, each as
//! a whole: without it nothing could be read. A key is in both before anything is sealed with it, so either will do. Of two
//! that differ the later one counts: an earlier one that came back does not take the place of keys that rows need.
//!
//! ```text
//! keyring = row of: store id, generation, name and fingerprint of the user's key, salt, sealed
//!                                                                                    (form and checksum: see `codec`)
//! sealed  = AES-256-GCM under HKDF-SHA-256(user's key, salt) of a row of:
//!           key of names, first id that was never sealed anew, whether plain rows are left, data keys by number
//! ```
//! The salt is drawn for every writing, so its nonce, zero, is used once with each key.

use std::{cmp::Reverse, collections::BTreeMap, fmt, path::Path};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf::{HKDF_SHA256, Salt},
    rand::{SecureRandom, SystemRandom},
};

use super::keys::{Fingerprint, KEY_LEN, MasterKey, MasterKeys};
use crate::{
    codec::{RowReader, RowWriter},
    entry::EntryId,
    error::StoreError,
    fjall_store::files::{self, Directory},
};

/// Names of the file and of its copy.
pub(crate) const FILES: [&str; 2] = ["keys", "keys.copy"];

/// Largest file, in bytes: many times what fits into it.
const MAX_LEN: u64 = 4 << 20;

const VERSION: u8 = 1;
const SALT_LEN: usize = 32;

/// Number of a data key; rises with each.
pub(crate) type DataKeyNumber = u16;

/// A key that the store drew.
pub(crate) type Key = [u8; KEY_LEN];

/// The keys of a store.
#[derive(Clone)]
pub(crate) struct Keyring {
    /// Drawn when encryption was turned on: binds rows to this store.
    pub(crate) store_id: [u8; 16],
    /// How often it was written.
    generation: u64,
    /// The user's key that this is sealed with.
    pub(crate) sealed_with: MasterKey,
    /// Key of the pseudonyms that stand for names in keys of rows; never changes.
    pub(crate) name_key: Key,
    /// Keys of rows; the last one seals, the others only open.
    pub(crate) data_keys: BTreeMap<DataKeyNumber, Key>,
    /// Whether there may be rows that were written before encryption was turned on.
    pub(crate) has_plain: bool,
    /// Rows of entries with a smaller id may have been written more than once.
    pub(crate) rewritten_below: EntryId,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Keyring")
            .field("sealed_with", &self.sealed_with)
            .field("data_keys", &self.data_keys.keys())
            .field("has_plain", &self.has_plain)
            .finish_non_exhaustive()
    }
}

/// Random bytes of the system.
pub(crate) fn draw<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| failed("draw random numbers for"))?;
    Ok(bytes)
}

/// What can't happen unless the system or a length is out of all bounds.
pub(crate) fn failed(action: &'static str) -> StoreError {
    StoreError::Engine {
        action,
        cause: "the cryptography failed".to_owned(),
    }
}

/// A key for one purpose, made of another one.
pub(crate) fn derive(key: &Key, salt: &[u8], purpose: &[u8]) -> Result<LessSafeKey, StoreError> {
    let secret = Salt::new(HKDF_SHA256, salt).extract(key);
    let purposes = [purpose];
    let derived = secret.expand(&purposes, &AES_256_GCM);
    let derived = derived.map_err(|_| failed("derive a key of"))?;
    Ok(LessSafeKey::new(UnboundKey::from(derived)))
}

const PURPOSE: &[u8] = b"foreshore-store keyring";

impl Keyring {
    /// Keys for a store that has had none so far.
    pub(crate) fn new(key: &MasterKey, has_plain: bool) -> Result<Self, StoreError> {
        Ok(Self {
            store_id: draw()?,
            generation: 0,
            sealed_with: key.clone(),
            name_key: draw()?,
            data_keys: BTreeMap::from([(1, draw()?)]),
            has_plain,
            rewritten_below: 0,
        })
    }

    /// The key that seals rows, and its number.
    pub(crate) fn current(&self) -> Result<(DataKeyNumber, &Key), StoreError> {
        let last = self.data_keys.last_key_value();
        last.map(|(number, key)| (*number, key))
            .ok_or_else(|| failed("find the key of"))
    }

    /// Goes over to another key of the user, and to another key for rows with it; those of entries before `next_id` are
    /// to be sealed anew.
    pub(crate) fn rotate(&mut self, key: &MasterKey, next_id: EntryId) -> Result<(), StoreError> {
        let (last, _) = self.current()?;
        let number = last.checked_add(1).ok_or_else(|| failed("number the keys of"))?;
        self.data_keys.insert(number, draw()?);
        self.sealed_with = key.clone();
        self.rewritten_below = self.rewritten_below.max(next_id);
        Ok(())
    }

    /// Whether a store has one, or the copy of one.
    pub(crate) fn is_there(directory: &Path) -> Result<bool, StoreError> {
        for name in FILES {
            let path = directory.join(name);
            let is_there = path.try_exists();
            if is_there.map_err(|error| StoreError::io("look for", path, error))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads the keyring of a store, or its copy, and whether the two differ or one is unreadable.
    ///
    /// # Errors
    /// When both are missing or damaged, or the user's key is not there.
    pub(crate) fn read(directory: &Path, keys: Option<&MasterKeys>) -> Result<(Self, bool), StoreError> {
        if !Self::is_there(directory)? {
            return Err(StoreError::Keyring {
                path: directory.join(FILES[0]),
                cause: "the store is encrypted, and neither it nor its copy is there".to_owned(),
            });
        }
        let files = FILES.map(|name| directory.join(name));
        let contents = files.map(|path| (files::read_bytes(&path, MAX_LEN), path));
        let differ = match &contents {
            [(Ok(first), _), (Ok(second), _)] => first != second,
            _ => true,
        };
        let (mut found, mut problem) = (Vec::new(), None);
        let mut put_aside = |path: &Path, error: StoreError| {
            tracing::error!(?path, %error, "a keyring can't be used");
            problem.get_or_insert(error);
        };
        for (content, path) in contents {
            match content.and_then(|content| Outer::decode(&content).map_err(|error| damaged(&path, error))) {
                Ok(outer) => found.push((outer, path)),
                Err(error) => put_aside(&path, error),
            }
        }
        found.sort_by_key(|(outer, _)| Reverse(outer.generation));
        for (outer, path) in found {
            match Self::unseal(directory, &path, outer, keys) {
                Ok(keyring) => return Ok((keyring, differ)),
                Err(error @ StoreError::NoKey { .. }) => return Err(error),
                Err(error) => put_aside(&path, error),
            }
        }
        Err(problem.unwrap_or(StoreError::Closed))
    }

    fn unseal(
        directory: &Path,
        path: &Path,
        mut outer: Outer,
        keys: Option<&MasterKeys>,
    ) -> Result<Self, StoreError> {
        let key = keys.and_then(|keys| keys.find(outer.fingerprint));
        let key = key.ok_or_else(|| StoreError::NoKey {
            path: directory.to_owned(),
            key: outer.name.clone(),
            fingerprint: outer.fingerprint.to_string(),
            cause: keys.map_or_else(
                || "no folder with keys was named".to_owned(),
                |keys| keys.why_not(&outer.name),
            ),
        })?;
        let aad = outer.aad();
        let opened = derive(&key.bytes, &outer.salt, PURPOSE)?
            .open_in_place(Nonce::assume_unique_for_key([0; 12]), aad, &mut outer.sealed)
            .map_err(|_| damaged(path, "it was changed, or it is damaged"))?;
        let opened = opened.to_vec();
        Self::decode(&outer, key, &opened).map_err(|error| damaged(path, error))
    }

    fn decode(outer: &Outer, sealed_with: &MasterKey, opened: &[u8]) -> Result<Self, StoreError> {
        let mut row = RowReader::open("the keyring", VERSION, opened)?;
        let name_key = array(&mut row)?;
        let rewritten_below = row.number()?;
        let has_plain = row.byte()? != 0;
        let mut data_keys = BTreeMap::new();
        for _ in 0..row.count()? {
            data_keys.insert(row.small()?, array(&mut row)?);
        }
        if data_keys.is_empty() {
            return Err(row.damaged("it holds no key"));
        }
        Ok(Self {
            store_id: outer.store_id,
            generation: outer.generation,
            sealed_with: sealed_with.clone(),
            name_key,
            data_keys,
            has_plain,
            rewritten_below,
        })
    }

    /// Writes it and its copy.
    pub(crate) fn write(&mut self, directory: &Directory) -> Result<(), StoreError> {
        self.generation += 1;
        let Self {
            store_id,
            generation,
            sealed_with: key,
            name_key,
            data_keys,
            has_plain,
            rewritten_below,
        } = self;
        let mut row = RowWriter::new(VERSION, 64 + data_keys.len() * 36);
        row.bytes(name_key);
        row.number(*rewritten_below);
        row.byte(u8::from(*has_plain));
        row.number(data_keys.len() as u64);
        for (number, key) in data_keys {
            row.number((*number).into());
            row.bytes(key);
        }
        let mut outer = Outer {
            store_id: *store_id,
            generation: *generation,
            name: key.name.clone(),
            fingerprint: key.fingerprint,
            salt: draw()?,
            sealed: row.finish().to_vec(),
        };
        let aad = outer.aad();
        derive(&key.bytes, &outer.salt, PURPOSE)?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key([0; 12]), aad, &mut outer.sealed)
            .map_err(|_| failed("seal the keyring of"))?;
        let content = outer.encode();
        for name in FILES {
            directory.write_synced(name, &content)?;
        }
        Ok(())
    }
}

/// Reads bytes of a length that is fixed.
pub(super) fn array<const N: usize>(row: &mut RowReader<'_>) -> Result<[u8; N], StoreError> {
    let bytes = row.bytes()?;
    bytes
        .try_into()
        .map_err(|_| row.damaged("a field has a wrong length"))
}

fn damaged(path: &Path, cause: impl fmt::Display) -> StoreError {
    StoreError::Keyring {
        path: path.to_owned(),
        cause: cause.to_string(),
    }
}

/// The keyring as it stands in its file.
struct Outer {
    store_id: [u8; 16],
    generation: u64,
    name: String,
    fingerprint: Fingerprint,
    salt: [u8; SALT_LEN],
    sealed: Vec<u8>,
}

impl Outer {
    /// All of it that is not sealed.
    fn aad(&self) -> Aad<Vec<u8>> {
        Aad::from(
            [
                &self.store_id[..],
                &self.generation.to_be_bytes(),
                &self.fingerprint.0,
                &self.salt,
                self.name.as_bytes(),
            ]
            .concat(),
        )
    }

    fn encode(&self) -> Vec<u8> {
        let mut row = RowWriter::new(VERSION, 96 + self.name.len() + self.sealed.len());
        row.bytes(&self.store_id);
        row.number(self.generation);
        row.text(&self.name);
        row.bytes(&self.fingerprint.0);
        row.bytes(&self.salt);
        row.bytes(&self.sealed);
        row.finish().to_vec()
    }

    fn decode(content: &[u8]) -> Result<Self, StoreError> {
        let mut row = RowReader::open("the keyring", VERSION, content)?;
        Ok(Self {
            store_id: array(&mut row)?,
            generation: row.number()?,
            name: row.text()?.to_owned(),
            fingerprint: Fingerprint(array(&mut row)?),
            salt: array(&mut row)?,
            sealed: row.bytes()?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::encrypted::write_key;

    #[test]
    fn nothing_of_a_keyring_can_be_changed_without_the_key_it_is_sealed_with() {
        let home = tempfile::tempdir().unwrap();
        let (store, folder) = (home.path().join("store"), home.path().join("keys"));
        std::fs::create_dir(&folder).unwrap();
        write_key(&folder, "spring", 1);
        let keys = MasterKeys::read(&folder).unwrap();
        let directory = Directory::open(&store).unwrap();
        let mut keyring = Keyring::new(keys.active().unwrap(), false).unwrap();
        keyring.write(&directory).unwrap();
        let outer = || Outer::decode(&std::fs::read(store.join("keys")).unwrap()).unwrap();
        let unseal = |outer: Outer| Keyring::unseal(&store, &store.join("keys"), outer, Some(&keys));
        assert_eq!(unseal(outer()).unwrap().generation, 1);
        let changes: [fn(&mut Outer); 5] = [
            |outer| outer.store_id[3] ^= 1,
            |outer| outer.generation += 1,
            |outer| outer.name.push('x'),
            |outer| outer.salt[3] ^= 1,
            |outer| outer.sealed[3] ^= 1,
        ];
        for (at, change) in changes.into_iter().enumerate() {
            let mut changed = outer();
            change(&mut changed);
            let error = unseal(changed).err().unwrap();
            assert!(matches!(error, StoreError::Keyring { .. }), "{at}: {error}");
        }
    }
}
