//! Keys of others that lie beside a store, wrapped with the user's.
//!
//! ```text
//! wrapped = row of: name and fingerprint of the user's key, salt, sealed      (form and checksum: see `codec`)
//! sealed  = AES-256-GCM under HKDF-SHA-256(user's key, salt)
//! ```
//! The salt is drawn for every wrapping, so its nonce, zero, is used once with each key.

use std::path::PathBuf;

use ring::aead::{Aad, Nonce};

use super::{
    keyring::{array, derive, draw, failed},
    keys::{Fingerprint, MasterKey, MasterKeys},
};
use crate::{
    codec::{RowReader, RowWriter},
    error::StoreError,
};

const VERSION: u8 = 1;
const SALT_LEN: usize = 32;
const PURPOSE: &[u8] = b"foreshore-store wrapped key";

/// What it is called where it is damaged.
const WHAT: &str = "the wrapped key";

/// Wraps keys with those of a folder (see [`crate::StoreOptions::encryption_keys`]).
#[derive(Clone, Debug)]
pub struct KeyWrapper {
    folder: PathBuf,
}

impl KeyWrapper {
    /// With the keys of that folder, which is read each time.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Wraps a key with the active one.
    ///
    /// # Errors
    /// [`StoreError::Keys`] when the folder can't be used.
    pub fn wrap(&self, key: &[u8]) -> Result<Vec<u8>, StoreError> {
        let keys = MasterKeys::read(&self.folder)?;
        let active = keys.active()?;
        let mut wrapped = Wrapped {
            name: active.name.clone(),
            fingerprint: active.fingerprint,
            salt: draw()?,
            sealed: key.to_vec(),
        };
        let aad = wrapped.aad();
        derive(&active.bytes, &wrapped.salt, PURPOSE)?
            .seal_in_place_append_tag(nonce(), aad, &mut wrapped.sealed)
            .map_err(|_| failed("wrap a key beside"))?;
        Ok(wrapped.encode())
    }

    /// Gives back a key that was wrapped.
    ///
    /// # Errors
    /// [`StoreError::Keys`] when the folder can't be used or has not the key that it was wrapped with,
    /// [`StoreError::Damaged`] when it was changed since.
    pub fn unwrap(&self, wrapped: &[u8]) -> Result<Vec<u8>, StoreError> {
        let mut wrapped = Wrapped::decode(wrapped)?;
        let keys = MasterKeys::read(&self.folder)?;
        let key: &MasterKey = keys.find(wrapped.fingerprint).ok_or_else(|| StoreError::Keys {
            folder: self.folder.clone(),
            cause: format!(
                "key {:?} (fingerprint {}) is needed: {}",
                wrapped.name,
                wrapped.fingerprint,
                keys.why_not(&wrapped.name)
            ),
        })?;
        let aad = wrapped.aad();
        let opened = derive(&key.bytes, &wrapped.salt, PURPOSE)?
            .open_in_place(nonce(), aad, &mut wrapped.sealed)
            .map_err(|_| StoreError::Damaged {
                what: WHAT,
                cause: "it was changed".to_owned(),
            })?;
        Ok(opened.to_vec())
    }

    /// Whether it was wrapped with the key that is active now.
    ///
    /// # Errors
    /// [`StoreError::Keys`] when the folder can't be used, [`StoreError::Damaged`] when it is no wrapped key.
    pub fn is_current(&self, wrapped: &[u8]) -> Result<bool, StoreError> {
        let keys = MasterKeys::read(&self.folder)?;
        Ok(Wrapped::decode(wrapped)?.fingerprint == keys.active()?.fingerprint)
    }
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

struct Wrapped {
    name: String,
    fingerprint: Fingerprint,
    salt: [u8; SALT_LEN],
    sealed: Vec<u8>,
}

impl Wrapped {
    /// All of it that is not sealed.
    fn aad(&self) -> Aad<Vec<u8>> {
        Aad::from([&self.fingerprint.0[..], &self.salt, self.name.as_bytes()].concat())
    }

    fn encode(&self) -> Vec<u8> {
        let mut row = RowWriter::new(VERSION, 64 + self.name.len() + self.sealed.len());
        row.text(&self.name);
        row.bytes(&self.fingerprint.0);
        row.bytes(&self.salt);
        row.bytes(&self.sealed);
        row.finish().to_vec()
    }

    fn decode(content: &[u8]) -> Result<Self, StoreError> {
        let mut row = RowReader::open(WHAT, VERSION, content)?;
        Ok(Self {
            name: row.text()?.to_owned(),
            fingerprint: Fingerprint(array(&mut row)?),
            salt: array(&mut row)?,
            sealed: row.bytes()?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::tests::encrypted::write_key;

    #[test]
    fn a_key_is_given_back_by_the_key_that_wrapped_it_and_by_no_other() {
        let folder = tempfile::tempdir().unwrap();
        write_key(folder.path(), "spring", 1);
        let wrapper = KeyWrapper::new(folder.path().to_owned());
        let wrapped = wrapper.wrap(b"key of a plan").unwrap();
        assert!(!wrapped.windows(13).any(|window| window == b"key of a plan"));
        assert_ne!(wrapper.wrap(b"key of a plan").unwrap(), wrapped);
        assert_eq!(wrapper.unwrap(&wrapped).unwrap(), b"key of a plan");
        assert!(wrapper.is_current(&wrapped).unwrap());
        for at in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[at] ^= 1;
            assert!(wrapper.unwrap(&changed).is_err(), "byte {at}");
        }
        // Another one is active: the old one opens still, until it is gone.
        write_key(folder.path(), "autumn", 2);
        fs::write(folder.path().join("active"), "autumn").unwrap();
        assert!(!wrapper.is_current(&wrapped).unwrap());
        assert_eq!(wrapper.unwrap(&wrapped).unwrap(), b"key of a plan");
        assert!(wrapper.is_current(&wrapper.wrap(b"key").unwrap()).unwrap());
        write_key(folder.path(), "spring", 3);
        let error = wrapper.unwrap(&wrapped).unwrap_err().to_string();
        assert!(error.contains("\"spring\"") && error.contains("found another key under this name"));
        fs::remove_file(folder.path().join("spring")).unwrap();
        let error = wrapper.unwrap(&wrapped).unwrap_err().to_string();
        assert!(
            error.contains("\"spring\"") && error.contains("found [\"autumn\"]"),
            "{error}"
        );
    }

    #[test]
    fn what_opens_is_bound_to_the_name_of_its_key() {
        let folder = tempfile::tempdir().unwrap();
        write_key(folder.path(), "spring", 1);
        let wrapper = KeyWrapper::new(folder.path().to_owned());
        let mut wrapped = Wrapped::decode(&wrapper.wrap(b"key").unwrap()).unwrap();
        assert_eq!(wrapper.unwrap(&wrapped.encode()).unwrap(), b"key");
        wrapped.name = "winter".to_owned();
        assert!(wrapper.unwrap(&wrapped.encode()).is_err());
    }
}
