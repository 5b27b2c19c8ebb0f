//! A folder of files: one that is written to, and complete ones.
//!
//! ```text
//! 20260131T120000.000000000Z.jsonl        complete
//! 20260131T130000.000000000Z.jsonl.open   written to; a torn last line is cut off when it is opened again
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use tracing::{info, warn};

/// Ending of complete files.
const COMPLETE: &str = ".jsonl";

/// Ending of the file that is written to.
const OPEN: &str = ".jsonl.open";

/// When a new file begins, and how many are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes of a file.
    pub max_bytes: u64,
    /// Age of a file.
    pub max_age: Duration,
    /// Complete files to keep; 0 for all.
    pub max_files: u32,
}

/// What could not be done with a file or folder.
#[derive(Debug, thiserror::Error)]
#[error("{}: {operation}: {source}", path.display())]
pub(crate) struct FolderError {
    path: PathBuf,
    operation: &'static str,
    pub(crate) source: io::Error,
}

fn at(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> FolderError {
    move |source| FolderError {
        path: path.to_owned(),
        operation,
        source,
    }
}

/// Writes lines to a folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    rotation: Rotation,
    current: Option<Current>,
}

/// The file that is written to.
#[derive(Debug)]
struct Current {
    file: File,
    path: PathBuf,
    /// Bytes that are synced.
    len: u64,
    since: Timestamp,
}

impl Folder {
    /// Opens nothing yet.
    pub(crate) const fn new(path: PathBuf, rotation: Rotation) -> Self {
        Self {
            path,
            rotation,
            current: None,
        }
    }

    /// Appends lines and syncs them.
    pub(crate) fn append(&mut self, lines: &[u8], now: Timestamp) -> Result<(), FolderError> {
        if lines.is_empty() {
            return Ok(());
        }
        self.rotate(lines.len() as u64, now)?;
        let current = self.current(now)?;
        let written = current.file.write_all(lines).map_err(at(&current.path, "write"));
        let synced = written.and_then(|()| current.file.sync_data().map_err(at(&current.path, "sync")));
        match synced {
            Ok(()) => {
                current.len += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // What was written, and what of it is on the disk, is not known: the file is opened and mended anew.
                let synced = current.len;
                self.give_up(synced);
                Err(error)
            }
        }
    }

    /// Tells whether lines can be written, without writing any.
    pub(crate) fn check(&mut self, now: Timestamp) -> Result<(), FolderError> {
        self.rotate(0, now)?;
        self.current(now).map(drop)
    }

    /// Forgets the open file. It is taken up again by whoever opens the folder next.
    pub(crate) fn close(&mut self) {
        self.current = None;
    }

    /// Drops the open file, without the part of it that was not acknowledged if that can be done.
    fn give_up(&mut self, synced: u64) {
        let Some(current) = self.current.take() else {
            return;
        };
        if let Err(error) = current.file.set_len(synced) {
            warn!(path = %current.path.display(), %error, "lines that were not acknowledged stay, and may come twice");
        }
    }

    /// The file that is written to: the one that was left open, or a new one.
    fn current(&mut self, now: Timestamp) -> Result<&mut Current, FolderError> {
        let current = match self.current.take() {
            Some(current) => current,
            None => self.open(now)?,
        };
        Ok(self.current.insert(current))
    }

    fn open(&self, now: Timestamp) -> Result<Current, FolderError> {
        fs::create_dir_all(&self.path).map_err(at(&self.path, "create"))?;
        let mut left = self.files(OPEN)?;
        let (path, since) = match left.pop() {
            Some(name) => (self.path.join(&name), time_of(&name, OPEN).unwrap_or(now)),
            None => (self.path.join(format!("{}{OPEN}", name_of(now))), now),
        };
        // More than one is left only when completing one was cut short.
        for name in left {
            let open = self.path.join(&name);
            drop(mended(&open)?);
            self.complete(&open)?;
        }
        let (file, len) = mended(&path)?;
        sync_folder(&self.path)?;
        Ok(Current {
            file,
            path,
            len,
            since,
        })
    }

    /// Completes the open file if it is large or old enough, or would become too large.
    fn rotate(&mut self, coming: u64, now: Timestamp) -> Result<(), FolderError> {
        let rotation = self.rotation;
        let current = self.current(now)?;
        let age = Duration::try_from(now.duration_since(current.since)).unwrap_or_default();
        let full = current.len + coming > rotation.max_bytes || age >= rotation.max_age;
        let current_path = current.path.clone();
        if current.len == 0 || !full {
            return Ok(());
        }
        self.current = None;
        self.complete(&current_path)?;
        self.retain()
    }

    fn complete(&self, open: &Path) -> Result<(), FolderError> {
        let complete = open.with_extension("");
        fs::rename(open, &complete).map_err(at(open, "rename"))?;
        info!(path = %complete.display(), "file is complete");
        sync_folder(&self.path)
    }

    /// Deletes the oldest complete files above the number that is kept.
    fn retain(&self) -> Result<(), FolderError> {
        if self.rotation.max_files == 0 {
            return Ok(());
        }
        let mut complete = self.files(COMPLETE)?;
        let keep = complete.len().min(self.rotation.max_files as usize);
        complete.truncate(complete.len() - keep);
        for name in complete {
            let path = self.path.join(&name);
            fs::remove_file(&path).map_err(at(&path, "delete"))?;
            info!(path = %path.display(), "oldest file is deleted");
        }
        Ok(())
    }

    /// Names of our files with that ending, oldest first. Others in the folder are left alone.
    fn files(&self, ending: &str) -> Result<Vec<String>, FolderError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(at(&self.path, "list"))? {
            let entry = entry.map_err(at(&self.path, "list"))?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if time_of(&name, ending).is_some() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

/// The name of a file that begins at that time; names sort as times do.
fn name_of(time: Timestamp) -> String {
    let text = format!("{time:.9}");
    text.chars().filter(|c| !matches!(c, '-' | ':')).collect()
}

/// The time that a name tells, if it is one of ours.
fn time_of(name: &str, ending: &str) -> Option<Timestamp> {
    name.strip_suffix(ending)?.parse().ok()
}

/// Opens a file for appending, without a torn last line.
fn mended(path: &Path) -> Result<(File, u64), FolderError> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    let mut file = options.open(path).map_err(at(path, "open"))?;
    let len = file.metadata().map_err(at(path, "inspect"))?.len();
    let whole = end_of_last_line(&mut file, len).map_err(at(path, "read"))?;
    if whole < len {
        warn!(path = %path.display(), bytes = len - whole, "torn line is cut off, it was never acknowledged");
        file.set_len(whole).map_err(at(path, "truncate"))?;
    }
    file.sync_all().map_err(at(path, "sync"))?;
    Ok((file, whole))
}

/// Where the last line feed ends.
fn end_of_last_line(file: &mut File, len: u64) -> io::Result<u64> {
    const CHUNK: u64 = 64 << 10;
    let mut end = len;
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(CHUNK);
        chunk.clear();
        file.seek(SeekFrom::Start(start))?;
        Read::by_ref(file).take(end - start).read_to_end(&mut chunk)?;
        if let Some(at) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Makes names durable: of new, renamed and deleted files.
fn sync_folder(path: &Path) -> Result<(), FolderError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(at(path, "sync"))
}
