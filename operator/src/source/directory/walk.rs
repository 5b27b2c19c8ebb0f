//! Which files there are, within bounds, without reading them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::problem::Problem;

use super::UNREADABLE;

/// Deepest folder below a root.
const MAX_DEPTH: usize = 16;
/// Most files of all roots.
const MAX_FILES: usize = 10_000;
/// Most entries of folders that are looked at, whatever they are.
const MAX_ENTRIES: usize = 200_000;

/// What tells one version of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    mode: u32,
}

impl Signature {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            mode: metadata.mode(),
        }
    }

    /// Size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Permission bits.
    pub(super) fn permissions(&self) -> u32 {
        self.mode & 0o777
    }
}

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Files in order of their path, each once.
    pub(super) files: BTreeMap<PathBuf, Signature>,
    /// Folders whose changes matter.
    pub(super) folders: BTreeSet<PathBuf>,
    /// Files and folders that exist and could not be looked at: what they declared earlier still counts.
    pub(super) unreadable: Vec<PathBuf>,
    /// What could not be looked at, and why.
    pub(super) problems: Vec<Problem>,
}

/// Looks for the files below `roots` that `wanted` says are of interest. Hidden files and folders are left out;
/// symbolic links are followed, so that a mounted ConfigMap is read once, through its visible names.
pub(super) fn walk(roots: &[PathBuf], wanted: fn(&Path) -> bool) -> Found {
    let mut walk = Walk {
        found: Found::default(),
        entered: HashSet::new(),
        entries: 0,
        wanted,
    };
    for root in roots {
        walk.root(root);
    }
    walk.found
}

struct Walk {
    found: Found,
    /// Folders that were entered, by device and inode: a link may lead back.
    entered: HashSet<(u64, u64)>,
    entries: usize,
    wanted: fn(&Path) -> bool,
}

impl Walk {
    fn root(&mut self, root: &Path) {
        match fs::metadata(root) {
            Ok(metadata) if metadata.is_dir() => {
                self.watch_links_of(root);
                self.folder(root, &metadata);
            }
            Ok(metadata) => {
                self.watch_links_of(root);
                self.file(root.to_owned(), &metadata);
            }
            Err(error) => {
                self.watch_links_of(root);
                self.unreadable(root, &error);
            }
        }
    }

    /// Walks a folder and what is below it, without recursion.
    fn folder(&mut self, top: &Path, metadata: &fs::Metadata) {
        if !self.entered.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        let mut waiting = vec![(top.to_owned(), 0_usize)];
        while let Some((folder, depth)) = waiting.pop() {
            self.found.folders.insert(folder.clone());
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                // It went between being listed and being read.
                Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => continue,
                Err(error) => {
                    self.unreadable(&folder, &error);
                    continue;
                }
            };
            for entry in entries {
                self.entries += 1;
                if self.entries > MAX_ENTRIES {
                    self.refuse(top, "too many entries", format!("{MAX_ENTRIES} in all folders"));
                    return;
                }
                match entry {
                    Ok(entry) if is_hidden(&entry.file_name()) => {}
                    Ok(entry) => {
                        if let Some(below) = self.entry(entry.path(), depth) {
                            waiting.push((below, depth + 1));
                        }
                    }
                    Err(error) => self.unreadable(&folder, &error),
                }
            }
        }
    }

    /// Looks at one entry of a folder; gives back a folder that is to be walked.
    fn entry(&mut self, path: PathBuf, depth: usize) -> Option<PathBuf> {
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() => {
                return None;
            }
            Err(error) => {
                if (self.wanted)(&path) {
                    self.unreadable(&path, &error);
                }
                return None;
            }
        };
        if metadata.is_dir() {
            if depth + 1 > MAX_DEPTH {
                self.refuse(&path, "a folder too deep", format!("{MAX_DEPTH} levels"));
                return None;
            }
            return self
                .entered
                .insert((metadata.dev(), metadata.ino()))
                .then_some(path);
        }
        if (self.wanted)(&path) {
            if fs::symlink_metadata(&path).is_ok_and(|link| link.is_symlink()) {
                self.watch_links_of(&path);
            }
            self.file(path, &metadata);
        }
        None
    }

    fn file(&mut self, path: PathBuf, metadata: &fs::Metadata) {
        if !metadata.is_file() {
            self.refuse(&path, "not a regular file", "regular files".to_owned());
        } else if self.found.files.len() >= MAX_FILES && !self.found.files.contains_key(&path) {
            self.refuse(&path, "too many files", format!("{MAX_FILES} in all"));
        } else {
            self.found.files.insert(path, Signature::of(metadata));
        }
    }

    /// A file changes by itself, or with the folder that it is renamed into, or with a link that leads to it.
    fn watch_links_of(&mut self, path: &Path) {
        let mut parents = vec![folder_of(path)];
        if let Ok(real) = fs::canonicalize(path) {
            parents.push(folder_of(&real));
        }
        self.found.folders.extend(parents);
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) {
        self.found.unreadable.push(path.to_owned());
        self.problem(path, format!("can't be read: {error}"), None);
    }

    /// Something that is not taken on; what it declared earlier still counts.
    fn refuse(&mut self, path: &Path, message: &str, allowed: String) {
        self.found.unreadable.push(path.to_owned());
        self.problem(path, message.to_owned(), Some(allowed));
    }

    fn problem(&mut self, path: &Path, message: String, allowed: Option<String>) {
        let mut problem = Problem::new(UNREADABLE, message).in_file(path.display().to_string());
        problem.allowed = allowed;
        self.found.problems.push(problem);
    }
}

/// The folder that a path is in.
fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(found: &Found, root: &Path) -> Vec<String> {
        found
            .files
            .keys()
            .map(|path| path.strip_prefix(root).unwrap().display().to_string())
            .collect()
    }

    fn all(_: &Path) -> bool {
        true
    }

    #[test]
    fn a_mounted_config_map_is_read_through_its_visible_names() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("..2026_11_21")).unwrap();
        fs::write(root.join("..2026_11_21/a.yaml"), "").unwrap();
        symlink("..2026_11_21", root.join("..data")).unwrap();
        symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
        let found = walk(&[root.to_owned()], all);
        assert_eq!(names(&found, root), ["a.yaml"]);
        assert!(found.folders.contains(root) && found.problems.is_empty());
        let real = fs::canonicalize(root).unwrap();
        assert!(
            found.folders.contains(&real.join("..2026_11_21")),
            "{:?}",
            found.folders
        );
    }

    #[test]
    fn links_in_a_circle_end() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("below")).unwrap();
        fs::write(root.join("below/a.yaml"), "").unwrap();
        symlink(root, root.join("below/again")).unwrap();
        symlink("self", root.join("self")).unwrap();
        let found = walk(&[root.to_owned(), root.join("below")], all);
        assert_eq!(names(&found, root), ["below/a.yaml"]);
        assert_eq!(found.unreadable, [root.join("self")]);
    }

    #[test]
    fn what_is_missing_or_too_deep_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let deep = root.join(["d"; MAX_DEPTH + 1].join("/"));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("a.yaml"), "").unwrap();
        let found = walk(&[root.to_owned(), root.join("missing")], all);
        let messages: Vec<_> = found
            .problems
            .iter()
            .map(|problem| problem.message.as_str())
            .collect();
        assert_eq!(messages.first(), Some(&"a folder too deep"));
        assert!(
            messages[1].starts_with("can't be read: No such file"),
            "{messages:?}"
        );
        assert!(found.files.is_empty());
    }

    #[test]
    fn a_pipe_is_no_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let socket = std::os::unix::net::UnixListener::bind(folder.path().join("a.yaml")).unwrap();
        let found = walk(&[folder.path().to_owned()], all);
        assert_eq!(found.problems[0].message, "not a regular file");
        drop(socket);
    }
}
