//! Making a store as small as what it holds.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use serde::Serialize;

use crate::{
    cipher,
    engine::Engine,
    error::StoreError,
    fjall_store::{self, StoreOptions, engine::FjallEngine, files::QuietDirectory, journal, repair, survey},
};

/// Unit of [`MetadataExt::blocks`], in bytes.
const BLOCK: u64 = 512;

/// What a compaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Compacted {
    /// Bytes of the disk that the database took before.
    pub bytes_before: u64,
    /// Bytes that it takes now.
    pub bytes_after: u64,
}

/// Writes all tables of a store anew without what was deleted or replaced, while no broker has it open. For the time of
/// it, the disk has to hold the largest keyspace twice. The journal that is written to stays as it is, but for an encrypted
/// store: of that every row is sealed with the current key, and no file holds one that is not.
///
/// A damaged store is refused, unless `mend` says to do first what the next start of a broker would do: set aside what
/// can't be read and count it as dropped (`corrupt`).
///
/// # Errors
/// As [`crate::open`], or when the store is damaged. What was acknowledged is never affected.
pub fn compact(directory: &Path, options: &StoreOptions, mend: bool) -> Result<Compacted, StoreError> {
    refuse_damaged(directory, options, mend)?;
    if mend {
        let (store, _) = fjall_store::open(directory, options)?;
        store.close()?;
    }
    let (mut data, cipher) = fjall_store::unlock(directory, options)?;
    let path = data.data();
    let measure = || bytes_of(&path).map_err(|error| StoreError::io("measure", &path, error));
    let bytes_before = measure()?;
    let expected = data.take_clean_mark()?;
    journal::prepare(&data, expected.is_some())?;
    let engine = FjallEngine::start(&data, options)?.with_cipher(cipher);
    let commits = repair::commits(&engine)?;
    if let Some(expected) = expected.filter(|expected| commits < *expected) {
        data.mark_clean(expected)?;
        return Err(damaged(format!(
            "found {commits} commits, there were {expected} at its close"
        )));
    }
    let engine = engine.with_directory(data);
    engine.seal_names()?;
    while engine.keep_up()? {}
    if let Some(encryption) = engine.encryption().filter(|encryption| encryption.is_rewriting) {
        return Err(StoreError::Engine {
            action: "encrypt",
            cause: encryption.problem.unwrap_or_default(),
        });
    }
    engine.compact()?;
    engine.close(commits)?;
    let is_encrypted = engine.cipher().is_some();
    // It stays locked.
    if let (Some(data), true) = (engine.into_directory(), is_encrypted) {
        // All of what the journals hold is in tables now, and older rows are in none.
        journal::forget(&data.data())?;
    }
    Ok(Compacted {
        bytes_before,
        bytes_after: measure()?,
    })
}

/// Looks, without a change, whether there is a store and whether its journals are whole.
fn refuse_damaged(directory: &Path, options: &StoreOptions, mend: bool) -> Result<(), StoreError> {
    let quiet = QuietDirectory::open(directory)?;
    cipher::open_quietly(directory, quiet.format, options.encryption_keys.as_deref())?;
    if mend {
        return Ok(());
    }
    if quiet.is_suspect() {
        return Err(damaged(
            "a broker met something that it could not read".to_owned(),
        ));
    }
    if let Some(place) = survey::check(&quiet.data())?.places.first() {
        let (file, found) = (place.file.display(), &place.found);
        return Err(damaged(format!("{file} can't be read: {found}")));
    }
    let clean = quiet.clean_mark()?.commits().is_some();
    let journals = journal::read(&quiet.data(), clean)?;
    match journals.iter().find(|journal| journal.damaged) {
        Some(journal) => Err(damaged(format!("{} can't be read in full", journal.name()))),
        None => Ok(()),
    }
}

fn damaged(cause: String) -> StoreError {
    StoreError::Damaged {
        what: "the store",
        cause,
    }
}

/// Bytes of the disk that a folder takes: less than the files' lengths where they have holes, as journals do.
fn bytes_of(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for file in fs::read_dir(folder)? {
        let file = file?;
        bytes += if file.file_type()?.is_dir() {
            bytes_of(&file.path())?
        } else {
            file.metadata()?.blocks() * BLOCK
        };
    }
    Ok(bytes)
}
