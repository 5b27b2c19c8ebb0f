//! What roles keep, sealed with the keys that stores are encrypted with.

use std::io;

use foreshore_control::KeyWrap;
use foreshore_store::{KeyWrapper, StoreError};

/// Wraps the key of what a role keeps with one of a folder.
pub(super) struct FolderKeys(pub(super) KeyWrapper);

fn refused(error: StoreError) -> io::Error {
    io::Error::other(error)
}

impl KeyWrap for FolderKeys {
    fn wrap(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        self.0.wrap(key).map_err(refused)
    }

    fn unwrap(&self, wrapped: &[u8]) -> io::Result<Vec<u8>> {
        self.0.unwrap(wrapped).map_err(refused)
    }

    fn is_current(&self, wrapped: &[u8]) -> io::Result<bool> {
        self.0.is_current(wrapped).map_err(refused)
    }
}
