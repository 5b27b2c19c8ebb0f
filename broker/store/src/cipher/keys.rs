//! Keys from files: what a user gives, and the only secret that is not in the store's own directory.
//!
//! A folder has one file for each key: its name is the key's, its content are 32 random bytes and nothing else. A file
//! `active` has the name of the key that is to be used; it may be left out where there is only one. A Secret that is
//! mounted is such a folder: names that begin with a dot, by which the kubelet exchanges all files at once, are passed
//! over.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use ring::hmac;

use crate::error::StoreError;

/// Length of every key, in bytes (AES-256, HMAC-SHA-256).
pub(crate) const KEY_LEN: usize = 32;

/// Name of the file that says which key is active.
const ACTIVE: &str = "active";

/// Most keys of a folder.
const MAX_KEYS: usize = 64;

/// Longest name of a key, that of a key of a Secret, in bytes.
const MAX_NAME_LEN: usize = 253;

/// What tells keys apart without giving anything of them away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(pub(crate) [u8; 8]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// A key of the user.
#[derive(Clone)]
pub(crate) struct MasterKey {
    pub(crate) name: String,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) bytes: [u8; KEY_LEN],
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("MasterKey")
            .field("name", &self.name)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl MasterKey {
    pub(crate) fn new(name: String, bytes: [u8; KEY_LEN]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        let tag = hmac::sign(&key, b"foreshore-store fingerprint of a key");
        let mut fingerprint = [0; 8];
        for (to, from) in fingerprint.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        Self {
            name,
            fingerprint: Fingerprint(fingerprint),
            bytes,
        }
    }
}

/// The keys of a folder, as they were when it was read.
#[derive(Debug)]
pub(crate) struct MasterKeys {
    folder: PathBuf,
    active: String,
    keys: BTreeMap<String, MasterKey>,
}

impl MasterKeys {
    /// Reads a folder.
    ///
    /// # Errors
    /// When it can't be read, when a file in it is no key or may be read by others, or when it is not said which key is
    /// active.
    pub(crate) fn read(folder: &Path) -> Result<Self, StoreError> {
        let refused = |cause: String| StoreError::Keys {
            folder: folder.to_owned(),
            cause,
        };
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(|error| refused(error.to_string()))?;
        let (mut keys, mut active) = (BTreeMap::new(), None);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let in_file = |cause: String| refused(format!("file {name:?}: {cause}"));
            if name == ACTIVE {
                active = Some(read_active(&entry.path()).map_err(in_file)?);
                continue;
            }
            if keys.len() == MAX_KEYS {
                return Err(refused(format!("found more than {MAX_KEYS} keys")));
            }
            let bytes = check_name(&name).and_then(|()| read_key(&entry.path()));
            let key = MasterKey::new(name.clone(), bytes.map_err(in_file)?);
            keys.insert(name, key);
        }
        let names = || keys.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let active = match active {
            Some(active) if keys.contains_key(&active) => active,
            Some(active) => {
                let found = format!("file {ACTIVE:?}: found {active:?}, allowed are [{}]", names());
                return Err(refused(found));
            }
            None if keys.len() == 1 => names(),
            None if keys.is_empty() => return Err(refused("found no key".to_owned())),
            None => {
                let found = format!(
                    "found [{}] and no file {ACTIVE:?} that names one of them",
                    names()
                );
                return Err(refused(found));
            }
        };
        Ok(Self {
            folder: folder.to_owned(),
            active,
            keys,
        })
    }

    /// The key that new things are encrypted with.
    pub(crate) fn active(&self) -> Result<&MasterKey, StoreError> {
        self.keys.get(&self.active).ok_or_else(|| StoreError::Keys {
            folder: self.folder.clone(),
            cause: format!("key {:?} is not there", self.active),
        })
    }

    /// The key of that fingerprint, whatever it is called.
    pub(crate) fn find(&self, fingerprint: Fingerprint) -> Option<&MasterKey> {
        self.keys.values().find(|key| key.fingerprint == fingerprint)
    }

    /// Why the key of that name is not among them.
    pub(crate) fn why_not(&self, name: &str) -> String {
        let folder = &self.folder;
        match self.keys.get(name) {
            Some(other) => format!(
                "found another key under this name in {folder:?} (fingerprint {})",
                other.fingerprint
            ),
            None => {
                let names: Vec<_> = self.keys.keys().collect();
                format!("found {names:?} in {folder:?}")
            }
        }
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.len() <= MAX_NAME_LEN && name.bytes().all(is_allowed) {
        return Ok(());
    }
    Err(format!(
        "a key's name has up to {MAX_NAME_LEN} of the characters A-Z, a-z, 0-9, -, _ and ."
    ))
}

fn read_active(path: &Path) -> Result<String, String> {
    // A blank and a line break are forgiven.
    let (content, _) = read_file(path, MAX_NAME_LEN + 2)?;
    let name = String::from_utf8(content).map_err(|_| "found bytes that are no text".to_owned())?;
    Ok(name.trim().to_owned())
}

fn read_key(path: &Path) -> Result<[u8; KEY_LEN], String> {
    let (content, metadata) = read_file(path, KEY_LEN)?;
    // Who may read the file may read the store. The owner is another one where a Secret is mounted: root, for whom the
    // group stands in.
    let mode = metadata.permissions().mode() & 0o777;
    let allowed = if metadata.uid() == 0 { 0o640 } else { 0o600 };
    if mode & !allowed & 0o077 != 0 {
        return Err(format!("found mode {mode:04o}, allowed is {allowed:04o} or less"));
    }
    let wrong = |found: String| format!("found {found}, a key has {KEY_LEN} and nothing else");
    content.try_into().map_err(|content: Vec<u8>| {
        wrong(if content.len() > KEY_LEN {
            format!("more than {KEY_LEN} bytes")
        } else {
            format!("{} bytes", content.len())
        })
    })
}

/// Reads a file of which no more than so many bytes and one are looked at.
fn read_file(path: &Path, limit: usize) -> Result<(Vec<u8>, fs::Metadata), String> {
    let text = |error: io::Error| error.to_string();
    // A pipe would keep whoever opens it waiting.
    if !fs::metadata(path).map_err(text)?.is_file() {
        return Err("it is no file".to_owned());
    }
    let file = File::open(path).map_err(text)?;
    let metadata = file.metadata().map_err(text)?;
    let mut content = Vec::new();
    file.take(limit as u64 + 1)
        .read_to_end(&mut content)
        .map_err(text)?;
    Ok((content, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::encrypted::write_key;

    fn refusal(folder: &Path) -> String {
        MasterKeys::read(folder).unwrap_err().to_string()
    }

    #[test]
    fn the_only_key_is_active_and_of_several_the_one_that_is_named() {
        let folder = tempfile::tempdir().unwrap();
        write_key(folder.path(), "2026-05", 5);
        fs::write(folder.path().join(".hidden"), b"no key").unwrap();
        assert_eq!(
            MasterKeys::read(folder.path()).unwrap().active().unwrap().name,
            "2026-05"
        );
        write_key(folder.path(), "2026-11", 11);
        assert!(refusal(folder.path()).contains("found [2026-05, 2026-11] and no file \"active\""));
        fs::write(folder.path().join("active"), "2026-11\n").unwrap();
        let keys = MasterKeys::read(folder.path()).unwrap();
        assert_eq!(keys.active().unwrap().name, "2026-11");
        let older = MasterKey::new(String::new(), [5; KEY_LEN]);
        assert_eq!(keys.find(older.fingerprint).unwrap().name, "2026-05");
        fs::write(folder.path().join("active"), "2027-05").unwrap();
        assert!(refusal(folder.path()).contains("found \"2027-05\", allowed are [2026-05, 2026-11]"));
    }

    #[test]
    fn what_is_no_key_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        assert!(refusal(&folder.path().join("missing")).contains("missing"));
        assert!(refusal(folder.path()).contains("found no key"));
        for (content, found) in [
            (31, "found 31 bytes"),
            (33, "found more than 32 bytes"),
            (0, "found 0 bytes"),
        ] {
            let path = folder.path().join("key");
            fs::write(&path, vec![7; content]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let refusal = refusal(folder.path());
            assert!(
                refusal.contains("\"key\"") && refusal.contains(found),
                "{refusal}"
            );
        }
        fs::remove_file(folder.path().join("key")).unwrap();
        write_key(folder.path(), "my key", 1);
        assert!(refusal(folder.path()).contains("\"my key\": a key's name has"));
        fs::remove_file(folder.path().join("my key")).unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        assert!(refusal(folder.path()).contains("\"folder\": it is no file"));
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        write_key(folder.path(), "key", 1);
        let path = folder.path().join("key");
        let set = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        for mode in [0o400, 0o600] {
            set(mode);
            MasterKeys::read(folder.path()).unwrap();
        }
        for mode in [0o604, 0o644, 0o660, 0o601] {
            set(mode);
            assert!(refusal(folder.path()).contains(&format!("found mode {mode:04o}")));
        }
        // The group of a Secret that root mounted is ours; that of a file of anybody else is not.
        set(0o440);
        if fs::metadata(&path).unwrap().uid() == 0 {
            MasterKeys::read(folder.path()).unwrap();
            std::os::unix::fs::chown(&path, Some(1000), None).unwrap();
        }
        assert!(refusal(folder.path()).contains("found mode 0440, allowed is 0600 or less"));
    }
}
