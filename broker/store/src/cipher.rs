//! Encryption at rest: what is written to the disk is sealed, what is read from it is opened.
//!
//! ```text
//! user's keys ─ seal ─► keyring (data keys, key of names) ─ seal ─► rows
//! ```
//! It stands between the back end and its database, so nothing above it knows of it, and what only moves rows (journals,
//! salvage, compaction) needs no key. A sealed row is
//! ```text
//! 0xE5, number of the data key u16, salt [12], count u32, AES-256-GCM of the row
//! key   = HKDF-SHA-256(data key, salt)
//! nonce = 0 [8], count
//! data that is bound to it = store id [16], name of the keyspace, 0, key of the row
//! ```
//! and numbers are big-endian. The salt is drawn at each opening, and again after 2^32 rows; the count begins at zero
//! with it. So a nonce is used once with a key whatever became of the writes before: nothing has to be remembered over a
//! crash, a power failure, or the return of an older copy of the volume.
//!
//! Keys of rows that are numbers stay as they are, since their order is needed. Keys that are names (client identifiers,
//! topics, keys of the state store) are replaced by pseudonyms, HMAC-SHA-256(key of names, keyspace, name) cut to 16
//! bytes, and the name is sealed with the row.
//!
//! A row that can't be opened is handed on as an empty one, which is what a damaged row is to everything above. It is
//! never taken for a sign that the key is wrong: that shows at the keyring, before anything else is read.

pub(crate) mod keyring;
pub(crate) mod keys;
#[cfg(test)]
mod tests;
pub(crate) mod wrap;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, RwLock};
use ring::{
    aead::{Aad, LessSafeKey, MAX_TAG_LEN, Nonce},
    hmac,
};

use self::{
    keyring::{DataKeyNumber, Key, Keyring, derive, draw, failed},
    keys::MasterKeys,
};
use crate::{
    entry::EntryId,
    error::StoreError,
    fjall_store::{
        StoreOptions,
        files::{Directory, Format},
    },
    keys::{self as row_keys, Bytes, Table},
};

/// First byte of a sealed row. Rows that are not sealed begin with their version, which is far from it.
const SEALED: u8 = 0xE5;

const SALT_LEN: usize = 12;

/// Marker, number of the data key, salt, count.
const HEADER_LEN: usize = 1 + 2 + SALT_LEN + 4;

/// Length of a pseudonym, in bytes.
const PSEUDONYM_LEN: usize = 16;

/// Keys of rows that are kept ready: one for each opening whose rows are read.
const MAX_OPENERS: usize = 256;

/// Time between two looks at the user's keys.
const LOOK_EVERY: Duration = Duration::from_secs(10);

const PURPOSE: &[u8] = b"foreshore-store rows";

/// What a store that is encrypted tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encryption {
    /// Name of the user's key that opens the store; no other one is needed.
    pub key: String,
    /// Whether rows are left that were not sealed since the last change of keys; they are sealed anew in the background.
    pub is_rewriting: bool,
    /// Why the user's keys could not be taken up when they were last looked at.
    pub problem: Option<String>,
}

/// A row as it is read.
pub(crate) struct Opened<'r> {
    /// Its key, with the name in place of a pseudonym.
    pub(crate) key: Cow<'r, [u8]>,
    /// Its value; empty if it can't be opened.
    pub(crate) value: Cow<'r, [u8]>,
}

/// How a row is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// With the current key.
    Current,
    /// With an older key.
    Older,
    /// Not at all.
    Plain,
}

/// Seals and opens rows.
pub(crate) struct Cipher {
    /// Where the user's keys are.
    folder: PathBuf,
    keyring: RwLock<Keyring>,
    /// Keys of rows that no row on disk needs any more. Who looks at the store as it was before still does.
    retired: RwLock<BTreeMap<DataKeyNumber, Key>>,
    /// Whether rows that are not sealed are believed: as long as the store is open where some were there at its opening,
    /// for the same reason.
    believes_plain: bool,
    names: hmac::Key,
    sealer: Mutex<Option<Sealer>>,
    openers: RwLock<HashMap<Segment, Arc<LessSafeKey>>>,
    looked: Mutex<Looked>,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Cipher")
            .field("folder", &self.folder)
            .field("keyring", &*self.keyring.read())
            .finish_non_exhaustive()
    }
}

/// Rows that are sealed with one derived key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Segment {
    number: DataKeyNumber,
    salt: [u8; SALT_LEN],
}

/// Seals rows of a segment, each with a count of its own.
struct Sealer {
    segment: Segment,
    key: LessSafeKey,
    count: u32,
}

/// The last look at the user's keys.
struct Looked {
    at: Option<Instant>,
    problem: Option<String>,
}

/// Takes up the keys of a store that is locked; encrypts it from now on if a folder of keys is named and it is not
/// encrypted so far.
///
/// # Errors
/// When the store is encrypted and its key is not there, when it holds rows that are not sealed and may not be encrypted,
/// or when the keys can't be used. Nothing was changed then.
pub(crate) fn open(
    directory: &Directory,
    options: &StoreOptions,
    keys: Option<&MasterKeys>,
) -> Result<Option<Cipher>, StoreError> {
    let path = directory.path();
    let folder = options.encryption_keys.as_deref();
    let found = is_encrypted(path, directory.format)?.then(|| Keyring::read(path, keys));
    let (mut keyring, is_written) = match (found.transpose()?, folder.and(keys)) {
        (Some((keyring, differ)), _) => (keyring, !differ),
        (None, Some(keys)) => (Keyring::new(keys.active()?, directory.has_database()?)?, false),
        (None, None) => return Ok(None),
    };
    if keyring.has_plain && !options.encrypt_existing {
        return Err(StoreError::NotEncrypted {
            path: path.to_owned(),
        });
    }
    if !is_written {
        keyring.write(directory)?;
    }
    if directory.format == Format::Plain {
        directory.become_sealed()?;
        tracing::info!(
            key = keyring.sealed_with.name,
            "the store is encrypted from now on"
        );
    }
    Ok(Some(Cipher::new(folder.unwrap_or(path), keyring)))
}

/// Takes up the keys of a store that is only read.
///
/// # Errors
/// As [`open`], but for rows that are not sealed: those are told of.
pub(crate) fn open_quietly(
    directory: &Path,
    format: Format,
    folder: Option<&Path>,
) -> Result<Option<Cipher>, StoreError> {
    if !is_encrypted(directory, format)? {
        return Ok(None);
    }
    let keys = folder.map(MasterKeys::read).transpose()?;
    let (keyring, _) = Keyring::read(directory, keys.as_ref())?;
    Ok(Some(Cipher::new(folder.unwrap_or(directory), keyring)))
}

/// Whether a store is encrypted. A keyring tells it too: the format is written after it, and may be one that was brought
/// back from before. Keys are never drawn where there are some.
fn is_encrypted(directory: &Path, format: Format) -> Result<bool, StoreError> {
    Ok(format == Format::Sealed || has_keyring(directory)?)
}

/// Whether there are keys that rows are sealed with.
pub(crate) fn has_keyring(directory: &Path) -> Result<bool, StoreError> {
    Keyring::is_there(directory)
}

impl Cipher {
    fn new(folder: &Path, keyring: Keyring) -> Self {
        Self {
            folder: folder.to_owned(),
            retired: RwLock::default(),
            believes_plain: keyring.has_plain,
            names: hmac::Key::new(hmac::HMAC_SHA256, &keyring.name_key),
            keyring: RwLock::new(keyring),
            sealer: Mutex::default(),
            openers: RwLock::default(),
            looked: Mutex::new(Looked {
                at: None,
                problem: None,
            }),
        }
    }

    // === keys ===

    /// What there is to tell.
    pub(crate) fn state(&self) -> Encryption {
        let keyring = self.keyring.read();
        Encryption {
            key: keyring.sealed_with.name.clone(),
            is_rewriting: keyring.has_plain || keyring.data_keys.len() > 1,
            problem: self.looked.lock().problem.clone(),
        }
    }

    pub(crate) fn has_plain(&self) -> bool {
        self.keyring.read().has_plain
    }

    /// Whether rows may be left that the current key did not seal.
    pub(crate) fn is_rewriting(&self) -> bool {
        let keyring = self.keyring.read();
        keyring.has_plain || keyring.data_keys.len() > 1
    }

    /// Whether the row of an entry may have been written more than once, because it was sealed anew.
    pub(crate) fn was_rewritten(&self, id: EntryId) -> bool {
        id < self.keyring.read().rewritten_below
    }

    /// Remembers, before rows are sealed anew, which those may be: no entry from `next_id` on. Those that come later are
    /// sealed with the current key already.
    pub(crate) fn begin_rewriting(&self, directory: &Directory, next_id: EntryId) -> Result<(), StoreError> {
        let mut keyring = self.keyring.read().clone();
        keyring.rewritten_below = keyring.rewritten_below.max(next_id);
        self.replace(keyring, directory)
    }

    /// Looks whether the user made another key the active one, if it is time to, and seals the keyring with it; rows are
    /// sealed with a new key of the store then. Tells whether that is so.
    ///
    /// # Errors
    /// When the keyring can't be written. Keys that can't be used are put off.
    pub(crate) fn look(&self, directory: &Directory, next_id: EntryId) -> Result<bool, StoreError> {
        let mut looked = self.looked.lock();
        if looked.at.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return Ok(false);
        }
        looked.at = Some(Instant::now());
        drop(looked);
        match MasterKeys::read(&self.folder) {
            Ok(keys) => {
                let taken_up = self.take_up(directory, &keys, next_id)?;
                if self.looked.lock().problem.take().is_some() {
                    tracing::info!(folder = ?self.folder, "keys can be used again");
                }
                Ok(taken_up)
            }
            Err(error) => Ok(self.put_off(&error)),
        }
    }

    /// Tells why keys are not taken up for now, if that was not told before; there is nothing to do then.
    pub(crate) fn put_off(&self, error: &StoreError) -> bool {
        let problem = Some(error.to_string());
        let mut looked = self.looked.lock();
        if looked.problem != problem {
            tracing::error!(problem, "keys are not taken up: those before stay in use");
            looked.problem = problem;
        }
        false
    }

    /// Makes the next look due at once, for tests.
    #[cfg(test)]
    pub(crate) fn look_soon(&self) {
        self.looked.lock().at = None;
    }

    /// Keeps no key of rows ready, for tests.
    #[cfg(test)]
    pub(crate) fn forget_openers(&self) {
        self.openers.write().clear();
    }

    /// Seals the keyring with the active key, if it is sealed with another one.
    fn take_up(
        &self,
        directory: &Directory,
        keys: &MasterKeys,
        next_id: EntryId,
    ) -> Result<bool, StoreError> {
        let active = keys.active()?;
        let mut keyring = self.keyring.read().clone();
        let before = keyring.sealed_with.clone();
        if before.fingerprint == active.fingerprint {
            return Ok(false);
        }
        keyring.rotate(active, next_id)?;
        self.replace(keyring, directory)?;
        tracing::info!(
            key = active.name,
            no_longer_needed = before.name,
            "the store is opened by another key; its rows are sealed anew"
        );
        Ok(true)
    }

    /// Forgets older keys after every row was sealed with the current one, and that is on disk.
    pub(crate) fn end_rewriting(&self, directory: &Directory) -> Result<(), StoreError> {
        let mut keyring = self.keyring.read().clone();
        let (current, _) = keyring.current()?;
        let kept = keyring.data_keys.split_off(&current);
        let older = std::mem::replace(&mut keyring.data_keys, kept);
        keyring.has_plain = false;
        self.retired.write().extend(older);
        self.replace(keyring, directory)
    }

    fn replace(&self, mut keyring: Keyring, directory: &Directory) -> Result<(), StoreError> {
        keyring.write(directory)?;
        // Nothing is sealed with an older key after this.
        let mut sealer = self.sealer.lock();
        *self.keyring.write() = keyring;
        *sealer = None;
        Ok(())
    }

    // === rows ===

    /// The key that a row has on disk.
    pub(crate) fn stored_key(&self, table: Table, key: &[u8]) -> Bytes {
        if !table.is_named() {
            return key.into();
        }
        let mut tag = hmac::Context::with_key(&self.names);
        for part in [table.name().as_bytes(), &[0], key] {
            tag.update(part);
        }
        tag.sign()
            .as_ref()
            .get(..PSEUDONYM_LEN)
            .unwrap_or_default()
            .into()
    }

    /// Seals the value of a row, whose keys are given as others know it and as it is on disk.
    pub(crate) fn seal(
        &self,
        table: Table,
        key: &[u8],
        stored: &[u8],
        row: &[u8],
    ) -> Result<Bytes, StoreError> {
        let name = if table.is_named() { key } else { &[] };
        let mut sealed = Vec::with_capacity(HEADER_LEN + 4 + name.len() + row.len() + MAX_TAG_LEN);
        let mut guard = self.sealer.lock();
        let sealer = match guard.as_mut() {
            Some(sealer) if sealer.count < u32::MAX => sealer,
            _ => guard.insert(self.new_sealer()?),
        };
        let Sealer { segment, key, count } = sealer;
        sealed.push(SEALED);
        sealed.extend_from_slice(&segment.number.to_be_bytes());
        sealed.extend_from_slice(&segment.salt);
        sealed.extend_from_slice(&count.to_be_bytes());
        let nonce = nonce(*count);
        *count += 1;
        if table.is_named() {
            let length = u32::try_from(name.len()).map_err(|_| failed("seal a row of"))?;
            sealed.extend_from_slice(&length.to_be_bytes());
            sealed.extend_from_slice(name);
        }
        sealed.extend_from_slice(row);
        let content = sealed.get_mut(HEADER_LEN..).unwrap_or_default();
        let tag = key.seal_in_place_separate_tag(nonce, self.bound(table, stored), content);
        let tag = tag.map_err(|_| failed("seal a row of"))?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed.into())
    }

    fn new_sealer(&self) -> Result<Sealer, StoreError> {
        let keyring = self.keyring.read();
        let (number, key) = keyring.current()?;
        let salt = draw()?;
        Ok(Sealer {
            segment: Segment { number, salt },
            key: derive(key, &salt, PURPOSE)?,
            count: 0,
        })
    }

    /// Opens a row as it is on disk.
    pub(crate) fn open<'r>(&self, table: Table, stored: &'r [u8], value: &'r [u8]) -> Opened<'r> {
        let as_stored = |value: &'r [u8]| Opened {
            key: Cow::Borrowed(stored),
            value: Cow::Borrowed(value),
        };
        if value.first() != Some(&SEALED) {
            // Where all are sealed, somebody else put it there.
            return as_stored(if self.believes_plain { value } else { &[] });
        }
        let Some(mut opened) = self.open_sealed(table, stored, value) else {
            return as_stored(&[]);
        };
        if !table.is_named() {
            return Opened {
                key: Cow::Borrowed(stored),
                value: Cow::Owned(opened),
            };
        }
        let name = opened.split_first_chunk::<4>().and_then(|(length, rest)| {
            let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
            rest.get(..length).map(<[u8]>::to_vec)
        });
        let Some(name) = name else {
            return as_stored(&[]);
        };
        opened.drain(..4 + name.len());
        Opened {
            key: Cow::Owned(name),
            value: Cow::Owned(opened),
        }
    }

    fn open_sealed(&self, table: Table, stored: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        let (header, content) = value.split_at_checked(HEADER_LEN)?;
        let segment = Segment::of(header)?;
        let count = u32::from_be_bytes(*header.last_chunk()?);
        let known = self.openers.read().get(&segment).map(Arc::clone);
        let key = match &known {
            Some(key) => Arc::clone(key),
            None => {
                let (keyring, retired) = (self.keyring.read(), self.retired.read());
                let key = keyring.data_keys.get(&segment.number);
                let key = key.or_else(|| retired.get(&segment.number))?;
                Arc::new(derive(key, &segment.salt, PURPOSE).ok()?)
            }
        };
        let mut content = content.to_vec();
        let bound = self.bound(table, stored);
        let length = key.open_in_place(nonce(count), bound, &mut content).ok()?.len();
        content.truncate(length);
        if known.is_none() {
            // Only what opened something: a damaged row must not push others out.
            let mut openers = self.openers.write();
            if openers.len() >= MAX_OPENERS {
                openers.clear();
            }
            openers.insert(segment, key);
        }
        Some(content)
    }

    /// How a value on disk is sealed, as it says itself.
    pub(crate) fn age(&self, value: &[u8]) -> Age {
        if value.first() != Some(&SEALED) {
            return Age::Plain;
        }
        let current = self.keyring.read().current().map(|(number, _)| number);
        match (Segment::of(value), current) {
            (Some(segment), Ok(current)) if segment.number == current => Age::Current,
            _ => Age::Older,
        }
    }

    /// What a sealed row is bound to.
    fn bound(&self, table: Table, stored: &[u8]) -> Aad<Vec<u8>> {
        let store = self.keyring.read().store_id;
        Aad::from([&store[..], table.name().as_bytes(), &[0], stored].concat())
    }
}

impl Segment {
    fn of(header: &[u8]) -> Option<Self> {
        let (number, rest) = header.get(1..)?.split_first_chunk()?;
        Some(Self {
            number: u16::from_be_bytes(*number),
            salt: *rest.first_chunk()?,
        })
    }
}

fn nonce(count: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[8..].copy_from_slice(&count.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Id of the entry that a row belongs to, in keyspaces whose keys end in one.
pub(crate) fn id_of(key: &[u8]) -> EntryId {
    key.last_chunk::<8>()
        .and_then(|id| row_keys::split_number(id))
        .unwrap_or_default()
}
