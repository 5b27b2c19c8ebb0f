//! Being told that files changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, ModifyKind},
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{debug, warn};

/// How long a file that is being written is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most files that are remembered as being written; more are read at once.
const MAX_WRITTEN: usize = 1024;

/// Watches folders, not what is below them, and wakes whoever waits for a change.
pub(super) struct Watch {
    /// `None` where the operating system has no more watches to give; changes are then found by looking.
    watcher: Option<RecommendedWatcher>,
    /// By path, the folder that lay there: one that was removed and made again is another.
    watched: BTreeMap<PathBuf, (u64, u64)>,
    signal: Arc<Signal>,
}

#[derive(Default)]
struct Signal {
    changed: Notify,
    /// Files that were written to and not closed yet, by the time of the first write.
    written: Mutex<HashMap<PathBuf, Instant>>,
}

impl Watch {
    pub(super) fn new() -> Self {
        let signal = Arc::new(Signal::default());
        let handler = Arc::clone(&signal);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| handler.take(event));
        let watcher = watcher
            .inspect_err(|error| warn!(%error, "can't watch manifests; changes are found by looking"))
            .ok();
        Self {
            watcher,
            watched: BTreeMap::new(),
            signal,
        }
    }

    /// Watches these folders and no others; tells whether all of them are watched, and whether any is newly so.
    pub(super) fn set(&mut self, folders: &BTreeSet<PathBuf>) -> Watched {
        let Some(watcher) = &mut self.watcher else {
            return Watched {
                all: false,
                new: false,
            };
        };
        let present: BTreeMap<&PathBuf, (u64, u64)> = folders
            .iter()
            .filter_map(|folder| {
                Some((
                    folder,
                    fs::metadata(folder)
                        .ok()
                        .map(|found| (found.dev(), found.ino()))?,
                ))
            })
            .collect();
        self.watched.retain(|folder, identity| {
            let stays = present.get(folder) == Some(identity);
            if !stays && let Err(error) = watcher.unwatch(folder) {
                // The operating system gave up on a folder that was removed, which is what is wanted.
                debug!(%error, folder = %folder.display(), "folder was not watched");
            }
            stays
        });
        let mut new = false;
        for (folder, identity) in present {
            if self.watched.contains_key(folder) {
                continue;
            }
            match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => new |= self.watched.insert(folder.clone(), identity).is_none(),
                Err(error) => debug!(%error, folder = %folder.display(), "can't watch folder"),
            }
        }
        Watched {
            all: self.watched.len() == folders.len(),
            new,
        }
    }

    /// Resolves when something changed since the last call.
    pub(super) async fn changed(&self) {
        self.signal.changed.notified().await;
    }

    /// Whether somebody has the file open for writing and may not be done with it.
    pub(super) fn is_being_written(&self, path: &Path) -> bool {
        let written = self.signal.written.lock();
        written.get(path).is_some_and(|since| since.elapsed() < PATIENCE)
    }
}

/// What [`Watch::set`] did.
pub(super) struct Watched {
    /// Whether all folders are watched.
    pub(super) all: bool,
    /// Whether a folder is watched that was not before: it may have changed in between.
    pub(super) new: bool,
}

impl Signal {
    fn take(&self, event: notify::Result<Event>) {
        match event {
            Ok(event) => {
                if self.note(&event) {
                    self.changed.notify_one();
                }
            }
            Err(error) => {
                warn!(%error, "watching manifests failed; changes are found by looking");
                self.changed.notify_one();
            }
        }
    }

    /// Takes note of who writes what; tells whether the event is a change. Being read is none, or looking would
    /// never end.
    fn note(&self, event: &Event) -> bool {
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                let mut written = self.written.lock();
                for path in &event.paths {
                    written.remove(path);
                }
                true
            }
            EventKind::Access(_) => false,
            EventKind::Modify(ModifyKind::Data(_)) => {
                // Other systems do not tell when a file is closed.
                if cfg!(target_os = "linux") {
                    let mut written = self.written.lock();
                    written.retain(|_, since| since.elapsed() < PATIENCE);
                    if written.len() < MAX_WRITTEN {
                        for path in &event.paths {
                            written.entry(path.clone()).or_insert_with(Instant::now);
                        }
                    }
                }
                true
            }
            _ => {
                let mut written = self.written.lock();
                for path in &event.paths {
                    written.remove(path);
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    async fn told(watch: &Watch) -> bool {
        tokio::time::timeout(Duration::from_secs(10), watch.changed())
            .await
            .is_ok()
    }

    #[tokio::test]
    async fn a_file_is_being_written_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let mut watch = Watch::new();
        let watched = watch.set(&BTreeSet::from([root.clone()]));
        assert!(watched.all && watched.new && !watch.set(&BTreeSet::from([root.clone()])).new);

        let path = root.join("a.yaml");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert!(told(&watch).await);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !watch.is_being_written(&path) {
            assert!(Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
        drop(file);
        while watch.is_being_written(&path) {
            assert!(Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn reading_is_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        fs::write(root.join("a.yaml"), "x").unwrap();
        let mut watch = Watch::new();
        watch.set(&BTreeSet::from([root.clone()]));
        fs::read(root.join("a.yaml")).unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(200), watch.changed())
                .await
                .is_err()
        );
        fs::rename(root.join("a.yaml"), root.join("b.yaml")).unwrap();
        assert!(told(&watch).await);
    }
}
