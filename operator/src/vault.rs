//! State on disk, encrypted: manifests hold secrets.
//!
//! A folder with a key (mode 0600, made at first use) and files sealed with it (XChaCha is not in *ring*; AES-256-GCM
//! with a random nonce for each writing is safe for 2^32 writings). Files are replaced as a whole: a power cut leaves
//! the old content or the new one.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use foreshore_tls::{read_private, write_private};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

/// First bytes of a sealed file; the number rises when the format changes.
const MAGIC: &[u8] = b"foreshore-sealed-1\n";
/// Name of the key's file.
const KEY_FILE: &str = "key";
const KEY_LEN: usize = 32;

/// Why sealed state can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or a file in it can't be made, read or written, or others may read it.
    #[error(transparent)]
    File(#[from] foreshore_tls::Error),
    /// The folder can't be made.
    #[error("can't make the folder {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The key's file holds something else.
    #[error("{} holds {found} bytes, {KEY_LEN} are allowed", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: usize,
    },
    /// The file is damaged, or was sealed with another key.
    #[error("{} is damaged, or was sealed with another key than {KEY_FILE} beside it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The operating system gave no random numbers, or the content is too long to be sealed.
    #[error("can't encrypt {}", path.display())]
    Encrypt {
        /// The file.
        path: PathBuf,
    },
}

/// A folder of sealed files.
#[derive(Debug)]
pub(crate) struct Vault {
    folder: PathBuf,
    key: LessSafeKey,
    random: SystemRandom,
}

impl Vault {
    /// Opens a folder, making it and its key where they are missing.
    ///
    /// # Errors
    /// When they can't be made or read, or others may read the key.
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| Error::Folder {
                path: folder.to_owned(),
                source,
            })?;
        let random = SystemRandom::new();
        let path = folder.join(KEY_FILE);
        let bytes = if path.try_exists().map_err(|source| Error::Folder {
            path: path.clone(),
            source,
        })? {
            read_private(&path, KEY_LEN as u64)?
        } else {
            let mut bytes = vec![0; KEY_LEN];
            random
                .fill(&mut bytes)
                .map_err(|_| Error::Encrypt { path: path.clone() })?;
            write_private(&path, &bytes)?;
            bytes
        };
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| Error::Key {
            path,
            found: bytes.len(),
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            key: LessSafeKey::new(key),
            random,
        })
    }

    /// Where a file of that name lies.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.sealed"))
    }

    /// Reads a file of at most `limit` bytes; `None` when there is none.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Damaged`].
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path(name);
        if !path.try_exists().map_err(|source| Error::Folder {
            path: path.clone(),
            source,
        })? {
            return Ok(None);
        }
        let sealed = read_private(&path, limit)?;
        let damaged = || Error::Damaged { path: path.clone() };
        let (nonce, ciphertext) = sealed
            .strip_prefix(MAGIC)
            .and_then(|rest| rest.split_first_chunk::<NONCE_LEN>())
            .ok_or_else(damaged)?;
        let mut content = ciphertext.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = self
            .key
            .open_in_place(nonce, aad(name), &mut content)
            .map_err(|_| damaged())?
            .len();
        content.truncate(length);
        Ok(Some(content))
    }

    /// Writes a file, replacing it as a whole.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Encrypt`].
    pub(crate) fn write(&self, name: &str, mut content: Vec<u8>) -> Result<(), Error> {
        let path = self.path(name);
        let failed = |_| Error::Encrypt { path: path.clone() };
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(failed)?;
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad(name), &mut content)
            .map_err(failed)?;
        let sealed = [MAGIC, &nonce, &content].concat();
        Ok(write_private(&path, &sealed)?)
    }

    /// Moves a file that can't be read out of the way and tells where it lies now.
    ///
    /// # Errors
    /// When it can't be renamed.
    pub(crate) fn set_aside(&self, name: &str) -> Result<PathBuf, Error> {
        let (from, to) = (self.path(name), self.folder.join(format!("{name}.damaged")));
        fs::rename(&from, &to).map_err(|source| Error::Folder { path: from, source })?;
        Ok(to)
    }
}

/// Ties content to its name, so that files can't be exchanged for each other.
fn aad(name: &str) -> Aad<&[u8]> {
    Aad::from(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_nowhere_in_the_clear() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("state");
        let vault = Vault::open(&below).unwrap();
        assert_eq!(vault.read("a", 1000).unwrap(), None);
        vault.write("a", b"password".to_vec()).unwrap();
        vault.write("a", b"password2".to_vec()).unwrap();
        let again = Vault::open(&below).unwrap();
        assert_eq!(again.read("a", 1000).unwrap().unwrap(), b"password2");
        for entry in fs::read_dir(&below).unwrap() {
            let path = entry.unwrap().path();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert!(
                !fs::read(&path)
                    .unwrap()
                    .windows(8)
                    .any(|window| window == b"password")
            );
        }
    }

    #[test]
    fn damage_another_key_and_an_open_key_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        vault.write("a", b"content".to_vec()).unwrap();
        let mut sealed = fs::read(vault.path("a")).unwrap();
        *sealed.last_mut().unwrap() ^= 1;
        fs::write(vault.path("a"), &sealed).unwrap();
        assert!(matches!(vault.read("a", 1000), Err(Error::Damaged { .. })));
        let aside = vault.set_aside("a").unwrap();
        assert!(aside.exists());
        assert_eq!(vault.read("a", 1000).unwrap(), None);

        vault.write("a", b"content".to_vec()).unwrap();
        fs::rename(vault.path("a"), vault.path("b")).unwrap();
        assert!(matches!(vault.read("b", 1000), Err(Error::Damaged { .. })));

        let key = folder.path().join(KEY_FILE);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Vault::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("key"), "{error}");
        fs::remove_file(&key).unwrap();
        fs::write(&key, "short").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            Vault::open(folder.path()),
            Err(Error::Key { found: 5, .. })
        ));
    }
}
