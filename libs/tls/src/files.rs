//! Small files that must be whole and, where they hold keys, private.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use crate::Error;

/// Writes a file that only its owner may read (mode 0600), replacing it as a whole.
///
/// # Errors
/// [`Error::File`] when the directory is missing, full or not writable.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    write_with_mode(path, content, 0o600)
}

/// Writes a file that everyone may read (mode 0644), replacing it as a whole.
///
/// # Errors
/// [`Error::File`] when the directory is missing, full or not writable.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<(), Error> {
    write_with_mode(path, content, 0o644)
}

/// Reads a file that only its owner may read, of at most `limit` bytes.
///
/// # Errors
/// [`Error::FileMode`] when group or others have any right on it, [`Error::TooLarge`], [`Error::File`].
pub fn read_private(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(|source| file_error("read", path, source))?;
    // The mode is asked of the open file, so that it can't be exchanged in between.
    let mode = file
        .metadata()
        .map_err(|source| file_error("read", path, source))?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::FileMode {
            path: path.to_owned(),
            mode,
        });
    }
    read_open(file, path, limit)
}

/// Reads a file of at most `limit` bytes, whoever may read it.
///
/// # Errors
/// [`Error::TooLarge`], [`Error::File`].
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path).map_err(|source| file_error("read", path, source))?;
    read_open(file, path, limit)
}

fn read_open(file: File, path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let mut content = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(|source| file_error("read", path, source))?;
    let found = content.len() as u64;
    if found > limit {
        return Err(Error::TooLarge {
            what: path.display().to_string(),
            found,
            allowed: limit,
        });
    }
    Ok(content)
}

fn write_with_mode(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = temporary_beside(path);
    write_and_rename(&temporary, path, content, mode).map_err(|source| {
        // The error that matters is the first one; a left-over is overwritten by nobody and harms nobody.
        drop(fs::remove_file(&temporary));
        file_error("write", path, source)
    })
}

/// Content, then name, then the directory entry reach the disk, in this order, so that a power cut leaves the
/// old file or the new one, never half of it.
fn write_and_rename(temporary: &Path, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(temporary, path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// A name in the same directory (a rename must not cross file systems) that no other writer of this process or
/// another one uses.
fn temporary_beside(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}-{number}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Makes a directory, and those above it that are missing, that only its owner may enter (mode 0700). One that exists
/// is left as it is.
///
/// # Errors
/// [`Error::File`].
pub fn create_private_directory(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| file_error("create", path, source))
}

pub(crate) fn file_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        action,
        path: path.to_owned(),
        source,
    }
}
