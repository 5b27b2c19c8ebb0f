//! The directory of a store: its lock, its format, its mark of an orderly close.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    marks::Marks,
    note::{self, Note},
    sectors::Sectors,
    survey,
};
use crate::{cipher, error::StoreError};

/// What the format file holds: rows as they are, or rows that may be sealed (see `cipher`). Versions that know the first
/// one only refuse the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Plain,
    Sealed,
}

impl Format {
    const ALL: [Self; 2] = [Self::Plain, Self::Sealed];
    const ALLOWED: &str = "foreshore-store 1 or foreshore-store 2";

    const fn text(self) -> &'static str {
        match self {
            Self::Plain => "foreshore-store 1",
            Self::Sealed => "foreshore-store 2",
        }
    }
}

/// Name of the file that says that something could not be read.
pub(crate) const SUSPECT: &str = "suspect";

/// Damaged files that are kept for whoever wants to look at them.
const MAX_SET_ASIDE: usize = 8;

/// A locked directory.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    /// Whether there was no store in it.
    pub(crate) created: bool,
    /// What may be in it, as it was found.
    pub(crate) format: Format,
    /// Small files whose content was known and that were written anew.
    pub(crate) restored: u64,
    /// Released by the system when it is dropped, or when the process ends in whatever way.
    _lock: File,
}

impl Directory {
    /// Locks a directory, checks its format and removes what was not finished, for tests.
    #[cfg(test)]
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let directory = Self::lock(path)?;
        directory.prepare()?;
        Ok(directory)
    }

    /// Locks a directory and checks its format; nothing is done to what is in it.
    pub(crate) fn lock(path: &Path) -> Result<Self, StoreError> {
        create_directory(path).map_err(|error| StoreError::io("create the directory", path, error))?;
        let lock = lock(path)?;
        let mut directory = Self {
            path: path.to_owned(),
            created: false,
            format: Format::Plain,
            restored: 0,
            _lock: lock,
        };
        let Some(found) = format(path)? else {
            directory.write_format(Format::Plain)?;
            directory.created = true;
            return Ok(directory);
        };
        directory.format = found.format;
        if !found.is_whole {
            directory.write_format(found.format)?;
        }
        if found.is_damaged {
            tracing::error!(?path, format = ?found.format, "the file `format` was damaged and is restored");
            directory.restored += 1;
        }
        Ok(directory)
    }

    /// Removes what was not finished, and makes the folder of the database.
    pub(crate) fn prepare(&self) -> Result<(), StoreError> {
        let data = self.data();
        self.remove_unfinished()?;
        fs::create_dir_all(&data).map_err(|error| StoreError::io("create the directory", data, error))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where fjall keeps its files.
    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Where a database is made that is to take the place of [`Directory::data`].
    pub(crate) fn new_data(&self) -> PathBuf {
        self.path.join("data.new")
    }

    /// Whether there may be rows.
    pub(crate) fn has_database(&self) -> Result<bool, StoreError> {
        for path in [self.data(), self.new_data()] {
            let is_there = path.try_exists();
            if is_there.map_err(|error| StoreError::io("look for", path, error))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn write_format(&self, format: Format) -> Result<(), StoreError> {
        self.write_synced("format", note::content(format.text()).as_bytes())
    }

    /// Says that rows may be sealed from now on.
    pub(crate) fn become_sealed(&self) -> Result<(), StoreError> {
        self.write_format(Format::Sealed)
    }

    /// Removes a database whose creation was interrupted: fjall would not open it, and nothing was committed to it. One
    /// that was finished and has lost its version is left: the version is restored.
    fn remove_unfinished(&self) -> Result<(), StoreError> {
        let (data, new) = (self.data(), self.new_data());
        let failed = |error| StoreError::io("read the directory", &data, error);
        if !data.join("version").exists() && new.join("version").exists() {
            // A salvaged copy was about to take the place of what had been removed.
            let replace = || {
                if data.exists() {
                    fs::remove_dir_all(&data)?;
                }
                fs::rename(&new, &data)
            };
            replace().map_err(|error| StoreError::io("replace", &data, error))?;
        }
        if !data.exists() || data.join("version").try_exists().map_err(failed)? {
            return Ok(());
        }
        if survey::has_keyspaces(&data)? {
            return Ok(());
        }
        fs::remove_dir_all(&data).map_err(|error| StoreError::io("remove", &data, error))
    }

    /// Removes the mark of an orderly close and tells the number of commits at that time; none if it is damaged.
    pub(crate) fn take_clean_mark(&mut self) -> Result<Option<u64>, StoreError> {
        let mark = self.path.join("clean");
        let found = clean_mark(&self.path)?;
        if found == CleanMark::None {
            return Ok(None);
        }
        if found == CleanMark::Damaged {
            tracing::error!(
                ?mark,
                "the mark of an orderly close is damaged and counts as none"
            );
            self.restored += 1;
        }
        fs::remove_file(&mark).map_err(|error| StoreError::io("remove", mark, error))?;
        sync_directory(&self.path)?;
        Ok(found.commits())
    }

    /// Marks that everything is on disk.
    pub(crate) fn mark_clean(&self, commits: u64) -> Result<(), StoreError> {
        self.write_synced("clean", note::content(&commits.to_string()).as_bytes())
    }

    /// Tells the next opening to look for damage.
    pub(crate) fn mark_suspect(&self) -> Result<(), StoreError> {
        self.write_synced(SUSPECT, b"something could not be read\n")
    }

    /// Forgets the mark, if there is one, when everything was read.
    pub(crate) fn clear_suspicion(&self) -> Result<(), StoreError> {
        let mark = self.path.join(SUSPECT);
        match fs::remove_file(&mark) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.map_err(|error| StoreError::io("remove", mark, error))?,
        }
        sync_directory(&self.path)
    }

    /// Writes a small file so that it is there as a whole or not at all.
    pub(crate) fn write_synced(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let (path, new) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(|error| StoreError::io("write", &path, error))?;
        sync_directory(&self.path)
    }

    /// Keeps a damaged file as it is found. The file itself stays where it is.
    pub(crate) fn keep_damaged(&self, file: &Path) -> Result<PathBuf, StoreError> {
        let aside = self.place_aside(&file.file_name().unwrap_or_default().to_string_lossy())?;
        // A link costs no space, of which there may be none; not every file system has them.
        let copy = || {
            let from = File::open(file)?;
            io::copy(&mut Sectors::new(&from), &mut File::create(&aside)?).map(drop)
        };
        let kept = fs::hard_link(file, &aside).or_else(|_| copy());
        kept.map_err(|error| StoreError::io("set aside", file, error))?;
        self.sync_aside()?;
        Ok(aside)
    }

    /// Moves the whole database away.
    pub(crate) fn set_store_aside(&self) -> Result<PathBuf, StoreError> {
        let aside = self.place_aside("data")?;
        let data = self.data();
        fs::rename(&data, &aside).map_err(|error| StoreError::io("set aside", data, error))?;
        self.sync_aside()?;
        Ok(aside)
    }

    /// Makes durable what was set aside, and that it is no longer where it was.
    fn sync_aside(&self) -> Result<(), StoreError> {
        sync_directory(&self.path.join("damaged"))?;
        sync_directory(&self.path)
    }

    /// A new place below `damaged/`, with the oldest ones removed.
    fn place_aside(&self, name: &str) -> Result<PathBuf, StoreError> {
        let damaged = self.path.join("damaged");
        let prepare = || {
            fs::create_dir_all(&damaged)?;
            let mut kept = fs::read_dir(&damaged)?.collect::<io::Result<Vec<_>>>()?;
            kept.sort_by_key(fs::DirEntry::file_name);
            for old in kept.iter().rev().skip(MAX_SET_ASIDE - 1) {
                let path = old.path();
                if old.file_type()?.is_dir() {
                    fs::remove_dir_all(path)?
                } else {
                    fs::remove_file(path)?
                }
            }
            io::Result::Ok(())
        };
        prepare().map_err(|error| StoreError::io("prepare", &damaged, error))?;
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Ok(damaged.join(format!("{:020}-{name}", since.as_nanos())))
    }
}

/// A directory whose store is only looked at: nothing in it is made, changed or removed, and no broker opens it
/// meanwhile.
#[derive(Debug)]
pub(crate) struct QuietDirectory {
    path: PathBuf,
    /// What may be in it.
    pub(crate) format: Format,
    /// Whether the file that says so is damaged.
    pub(crate) is_format_damaged: bool,
    /// `None` where there is no lock file, as in a copy that was made without it: nobody has it open.
    _lock: Option<File>,
}

impl QuietDirectory {
    /// Locks the directory of a store and checks its format.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let no_store = |cause: &str| StoreError::NoStore {
            path: path.to_owned(),
            cause: cause.to_owned(),
        };
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(no_store("it is no directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(no_store("there is nothing"));
            }
            Err(error) => return Err(StoreError::io("read", path, error)),
        }
        let file = path.join("lock");
        let lock = match File::open(&file) {
            Ok(lock) => Some(take_lock(lock, path)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(StoreError::io("open", file, error)),
        };
        let found = format(path)?.ok_or_else(|| no_store("it holds no file `format`"))?;
        let directory = Self {
            path: path.to_owned(),
            format: found.format,
            is_format_damaged: found.is_damaged,
            _lock: lock,
        };
        if !directory.data().join("version").exists() {
            return Err(no_store("it holds no database `data`"));
        }
        Ok(directory)
    }

    /// Where fjall keeps its files.
    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// The mark of an orderly close.
    pub(crate) fn clean_mark(&self) -> Result<CleanMark, StoreError> {
        clean_mark(&self.path)
    }

    /// Whether a broker met something that it could not read.
    pub(crate) fn is_suspect(&self) -> bool {
        super::is_suspect(&self.path)
    }
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let lock = path.join("lock");
    let open = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&lock);
    take_lock(open.map_err(|error| StoreError::io("open", &lock, error))?, path)
}

/// Locks the lock file of a directory, which may be open for reading only.
fn take_lock(file: File, directory: &Path) -> Result<File, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
            path: directory.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(StoreError::io("lock", directory.join("lock"), error)),
    }
}

/// What the mark of an orderly close tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CleanMark {
    /// There is none: the end was another one.
    None,
    /// Commits that there were.
    Commits(u64),
    /// It can't be read.
    Damaged,
}

impl CleanMark {
    pub(crate) fn commits(self) -> Option<u64> {
        match self {
            Self::Commits(commits) => Some(commits),
            Self::None | Self::Damaged => None,
        }
    }
}

fn clean_mark(directory: &Path) -> Result<CleanMark, StoreError> {
    Ok(match note::read(&directory.join("clean"))? {
        Note::None => CleanMark::None,
        Note::Whole(text) | Note::Unchecked(text) => {
            text.parse().map_or(CleanMark::Damaged, CleanMark::Commits)
        }
        Note::Damaged(_) => CleanMark::Damaged,
    })
}

/// What a directory tells of its format.
struct FoundFormat {
    format: Format,
    /// Whether the file is as it is written today.
    is_whole: bool,
    is_damaged: bool,
}

/// Checks the format of a directory; `None` if there is no store in it at all.
///
/// A file that is damaged or gone is no reason to refuse what is a store of ours by the marks of its journals: there is
/// only one format that rows may be in where there are no keys, and one where there are. Another version says which one it
/// is in a file that is whole.
fn format(directory: &Path) -> Result<Option<FoundFormat>, StoreError> {
    let known = |found: &str| Format::ALL.into_iter().find(|format| format.text() == found);
    let refused = |found| StoreError::Format {
        path: directory.to_owned(),
        found,
        allowed: Format::ALLOWED,
    };
    let found = match note::read(&directory.join("format"))? {
        Note::None if !directory.join("data").exists() => return Ok(None),
        Note::None => "none".to_owned(),
        Note::Whole(text) => {
            let format = known(&text).ok_or_else(|| refused(text))?;
            return Ok(Some(FoundFormat {
                format,
                is_whole: true,
                is_damaged: false,
            }));
        }
        Note::Unchecked(text) => match known(&text) {
            Some(format) => {
                return Ok(Some(FoundFormat {
                    format,
                    is_whole: false,
                    is_damaged: false,
                }));
            }
            None => text,
        },
        Note::Damaged(text) => text,
    };
    if Marks::read(&directory.join("data"))?.marks.is_none() {
        // There is no telling what wrote the data.
        return Err(refused(found.chars().take(64).collect()));
    }
    let format = if cipher::has_keyring(directory)? {
        Format::Sealed
    } else {
        Format::Plain
    };
    Ok(Some(FoundFormat {
        format,
        is_whole: false,
        is_damaged: true,
    }))
}

/// Reads a file of at most so many bytes.
pub(crate) fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, StoreError> {
    let read = || {
        let mut content = Vec::new();
        File::open(path)?.take(limit).read_to_end(&mut content)?;
        Ok(content)
    };
    read().map_err(|error| StoreError::io("read", path, error))
}

/// Makes a directory, and those above it that are missing, each with a name that a power failure does not take.
fn create_directory(path: &Path) -> io::Result<()> {
    let above = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && above != path => {
            create_directory(above)?;
            fs::create_dir(path)?;
        }
        made => made?,
    }
    File::open(above)?.sync_all()
}

/// Makes names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let sync = || File::open(path)?.sync_all();
    sync().map_err(|error| StoreError::io("sync", path, error))
}
