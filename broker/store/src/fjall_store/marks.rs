//! What proves that a batch of the journal is one that this store wrote.
//!
//! Behind damage a journal is searched for the next batch, and what clients published lies there too: bytes that look
//! like a batch must not be taken for one, or a client could write sessions, retained messages, anything. No checksum
//! helps, since everybody can compute it. So each batch begins with an item that nobody else can make: its key is the
//! random name of the database, which is what the search looks for, and its value authenticates all other items of the
//! batch (HMAC-SHA-256, the first 16 bytes). Name and key never leave the folder of the database.
//!
//! Each of the two files, `marks` and `marks.copy`, is enough:
//! ```text
//! name 16 bytes, key 32 bytes, XXH3-128 of both 16 bytes
//! ```

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use ring::hmac;
use xxhash_rust::xxh3::xxh3_128;

use super::{files, sectors};
use crate::error::StoreError;

/// Names of the files.
const FILES: [&str; 2] = ["marks", "marks.copy"];

/// Length of the name of a database, and of a mark.
pub(super) const LEN: usize = 16;

const KEY_LEN: usize = 32;
const CHECKSUM_LEN: usize = 16;
const FILE_LEN: usize = LEN + KEY_LEN + CHECKSUM_LEN;

/// Marks batches.
#[derive(Clone, Debug)]
pub(crate) struct Marks {
    name: [u8; LEN],
    secret: [u8; KEY_LEN],
    key: hmac::Key,
}

/// What there is in the folder of a database.
#[derive(Debug)]
pub(crate) struct Found {
    /// Missing in a database of a version that did not mark its batches, or when both files are damaged.
    pub(crate) marks: Option<Marks>,
    /// Files that are damaged.
    pub(crate) damaged: u64,
}

impl Marks {
    /// Marks that no other database has.
    pub(super) fn random() -> Self {
        Self::of(rand::random(), rand::random())
    }

    fn of(name: [u8; LEN], secret: [u8; KEY_LEN]) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Self { name, secret, key }
    }

    /// Reads the files of a database.
    pub(crate) fn read(data: &Path) -> Result<Found, StoreError> {
        let mut found = Found {
            marks: None,
            damaged: 0,
        };
        for name in FILES {
            let path = data.join(name);
            match read_start(&path) {
                Ok(content) => {
                    let marks = Self::decode(&content);
                    found.damaged += u64::from(marks.is_none());
                    found.marks = found.marks.or(marks);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if sectors::is_unreadable(&error) => found.damaged += 1,
                Err(error) => return Err(StoreError::io("read", path, error)),
            }
        }
        Ok(found)
    }

    fn decode(content: &[u8]) -> Option<Self> {
        let (fields, checksum) = content.split_last_chunk::<CHECKSUM_LEN>()?;
        let (name, secret) = fields.split_first_chunk::<LEN>()?;
        let is_whole = xxh3_128(fields).to_le_bytes() == *checksum;
        is_whole.then(|| Some(Self::of(*name, secret.try_into().ok()?)))?
    }

    /// Writes both files, unless they are as they should be.
    pub(super) fn write(&self, data: &Path) -> Result<(), StoreError> {
        let mut content = Vec::with_capacity(FILE_LEN);
        content.extend_from_slice(&self.name);
        content.extend_from_slice(&self.secret);
        let checksum = xxh3_128(&content);
        content.extend_from_slice(&checksum.to_le_bytes());
        for name in FILES {
            let path = data.join(name);
            if read_start(&path).is_ok_and(|found| found == content) {
                continue;
            }
            let new = data.join(format!("{name}.new"));
            let write = || {
                let mut file = File::create(&new)?;
                file.write_all(&content)?;
                file.sync_all()?;
                fs::rename(&new, &path)
            };
            write().map_err(|error| StoreError::io("write", &path, error))?;
            files::sync_directory(data)?;
        }
        Ok(())
    }

    /// Key of the item that marks a batch.
    pub(super) fn name(&self) -> &[u8; LEN] {
        &self.name
    }

    /// Begins the mark of a batch; the bytes of its other items follow.
    pub(super) fn begin(&self) -> Mark {
        Mark(hmac::Context::with_key(&self.key))
    }
}

/// The mark of a batch as it is computed.
#[derive(Clone)]
pub(super) struct Mark(hmac::Context);

impl Mark {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn finish(self) -> [u8; LEN] {
        let mut mark = [0; LEN];
        let tag = self.0.sign();
        mark.iter_mut()
            .zip(tag.as_ref())
            .for_each(|(to, from)| *to = *from);
        mark
    }
}

/// Reads a small file, and not much of one that is not.
fn read_start(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(FILE_LEN + 1);
    File::open(path)?
        .take(FILE_LEN as u64 + 1)
        .read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_file_is_enough_and_mends_the_other() {
        let home = tempfile::tempdir().unwrap();
        let read = || Marks::read(home.path()).unwrap();
        assert!(read().marks.is_none());
        let marks = Marks::random();
        marks.write(home.path()).unwrap();
        for file in FILES {
            let path = home.path().join(file);
            let whole = fs::read(&path).unwrap();
            for byte in 0..FILE_LEN {
                let mut flipped = whole.clone();
                flipped[byte] ^= 0x10;
                fs::write(&path, flipped).unwrap();
                let found = read();
                assert_eq!(found.damaged, 1);
                assert_eq!(found.marks.unwrap().secret, marks.secret);
            }
            fs::remove_file(&path).unwrap();
            assert_eq!((read().damaged, read().marks.is_some()), (0, true));
            marks.write(home.path()).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn a_mark_depends_on_the_database_and_on_every_byte() {
        let (one, other) = (Marks::random(), Marks::random());
        let mark = |marks: &Marks, bytes: &[u8]| {
            let mut mark = marks.begin();
            mark.update(bytes);
            mark.finish()
        };
        assert_eq!(mark(&one, b"rows"), mark(&one, b"rows"));
        assert_ne!(mark(&one, b"rows"), mark(&one, b"rowt"));
        assert_ne!(mark(&one, b"rows"), mark(&other, b"rows"));
    }
}
