//! Manifests in files, watched and read again when they change.
//!
//! | module | what |
//! |---|---|
//! | [`walk`] | which files there are |
//! | [`yaml`] | text to values, with places |
//! | [`document`] | values to objects: kind, namespace, name |
//! | [`secrets`] | `--secrets DIR` |
//! | [`identity`] | UIDs and generations, kept over restarts |
//! | [`catalogue`] | all files put together: duplicates, unreadable files |
//! | [`watch`] | being told that files changed |
//!
//! What a directory can do that an API server can't: hold half a file, two objects of one name, and text that is no
//! YAML. None of these removes what ran before; only removing a file, or a document from a file that can be read, does.

use std::{borrow::Cow, path::PathBuf, time::Duration};

use async_trait::async_trait;
use foreshore_runtime::Shutdown;
use jiff::Timestamp;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::{problem::Problem, vault::Vault};

use super::{Error, ResourceSource, Snapshot, Snapshots};

mod catalogue;
mod document;
mod identity;
mod secrets;
mod walk;
mod watch;
pub(crate) mod yaml;

use catalogue::{Catalogue, Places, Scan};
use identity::Identities;
use watch::Watch;

/// Reason of problems with files that can't be read.
pub const UNREADABLE: &str = "Unreadable";
/// Reason of the problem that what is kept over restarts can't be written.
pub const STATE_NOT_KEPT: &str = "StateNotKept";

/// Quiet time after a change before files are read: an editor writes more than once.
const QUIET: Duration = Duration::from_millis(100);
/// Longest wait for quiet.
const LONGEST: Duration = Duration::from_millis(500);
/// Time between two looks at files that are being written.
const UNSETTLED: Duration = Duration::from_millis(100);
/// Time between two looks at folders that can't be watched.
const POLL: Duration = Duration::from_secs(1);

/// A manifest that is part of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedFile {
    /// Name, as problems show it.
    pub name: Cow<'static, str>,
    /// Content.
    pub text: Cow<'static, str>,
}

/// Which files declare what runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Files, or folders with files `*.yaml`, `*.yml` and `*.json`.
    pub paths: Vec<PathBuf>,
    /// Manifests that are part of the program.
    pub embedded: Vec<EmbeddedFile>,
    /// Folder of secrets: files `NAME/KEY`, or `NAMESPACE/NAME/KEY`, of mode 0600.
    pub secrets: Option<PathBuf>,
    /// Namespace of objects that name none.
    pub default_namespace: String,
    /// Folder where UIDs and generations are kept; `None` forgets them.
    pub state: Option<PathBuf>,
    /// Time between two looks at files that are watched: watches miss changes on network file systems.
    pub rescan: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            paths: Vec::new(),
            embedded: Vec::new(),
            secrets: None,
            default_namespace: "default".to_owned(),
            state: None,
            rescan: Duration::from_secs(10),
        }
    }
}

/// Files that declare what runs.
pub struct Directory {
    catalogue: Catalogue,
    vault: Option<Vault>,
    rescan: Duration,
}

impl Directory {
    /// Opens what is kept over restarts.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn open(options: Options) -> Result<Self, Error> {
        let Options {
            paths,
            embedded,
            secrets,
            default_namespace,
            state,
            rescan,
        } = options;
        let vault = state.as_deref().map(Vault::open).transpose()?;
        let identities = vault
            .as_ref()
            .map(Identities::load)
            .transpose()?
            .unwrap_or_default();
        let places = Places {
            paths,
            embedded,
            secrets,
            default_namespace,
        };
        Ok(Self {
            catalogue: Catalogue::new(places, identities),
            vault,
            rescan,
        })
    }

    /// Reads all files once.
    ///
    /// # Errors
    /// [`Error::Root`] when a path that was given can't be read.
    pub fn read(mut self) -> Result<Snapshot, Error> {
        let Scan { snapshot, .. } = self.catalogue.scan(&|_| false, Timestamp::now());
        let snapshot = snapshot.unwrap_or_default();
        self.check_roots(&snapshot, false)?;
        Ok(snapshot)
    }

    /// A path that can't be read is a mistake of whoever gave it, unless it could be read before: then it is a fault,
    /// and what it declared runs on.
    fn check_roots(&mut self, snapshot: &Snapshot, may_hold: bool) -> Result<(), Error> {
        let roots = self.catalogue.roots();
        let known = may_hold && self.catalogue.identities().roots == roots;
        let shown: Vec<_> = self
            .catalogue
            .given()
            .map(|path| path.display().to_string())
            .collect();
        let unreadable = |problem: &&Problem| {
            problem.reason == UNREADABLE && problem.file.as_ref().is_some_and(|file| shown.contains(file))
        };
        match snapshot.problems.iter().find(unreadable) {
            Some(problem) if !known => Err(Error::Root {
                problem: Box::new(problem.clone()),
            }),
            _ => {
                self.catalogue.identities().set_roots(roots);
                Ok(())
            }
        }
    }

    /// Keeps what changed, before anybody acts on it.
    fn keep(&mut self, snapshot: &mut Snapshot) {
        let Some(vault) = &self.vault else { return };
        if let Err(error) = self.catalogue.identities().save(vault) {
            warn!(%error, "generations of objects can't be kept; after a restart roles may get older ones");
            snapshot
                .problems
                .push(Problem::new(STATE_NOT_KEPT, error.to_string()));
        }
    }

    /// Looks at all files, away from the tasks that must not wait. The `first` look checks the paths that were given.
    async fn scan(mut self, mut watch: Watch, first: bool) -> Result<(Self, Watch, Scan, bool), Error> {
        let look = move || {
            let mut scan = self
                .catalogue
                .scan(&|path| watch.is_being_written(path), Timestamp::now());
            let watched = watch.set(&scan.folders);
            // What changed before a folder was watched told nobody.
            scan.unsettled |= watched.new;
            if let Some(snapshot) = &mut scan.snapshot {
                if first {
                    self.check_roots(snapshot, true)?;
                }
                self.keep(snapshot);
            }
            Ok((self, watch, scan, watched.all))
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_else(|error| {
            let message = error.to_string();
            Err(Error::Task(foreshore_runtime::TaskError::Panicked {
                name: "manifests".into(),
                message,
            }))
        })
    }
}

#[async_trait]
impl ResourceSource for Directory {
    async fn run(self: Box<Self>, snapshots: Snapshots, shutdown: Shutdown) -> Result<(), Error> {
        let (mut directory, mut watch, mut first) = (*self, Watch::new(), true);
        loop {
            let (scanned, watching, scan, all_watched) = directory.scan(watch, first).await?;
            (directory, watch, first) = (scanned, watching, false);
            if let Some(snapshot) = scan.snapshot {
                info!(
                    objects = snapshot.objects.len(),
                    problems = snapshot.problems.len(),
                    "manifests read"
                );
                snapshots.send_replace(Some(snapshot.into()));
            }
            let pause = match (scan.unsettled, all_watched) {
                (true, _) => UNSETTLED,
                (false, true) => directory.rescan,
                (false, false) => POLL,
            };
            tokio::select! {
                biased;
                () = shutdown.begun() => return Ok(()),
                () = watch.changed() => quiet(&watch).await,
                () = sleep(pause) => {}
            }
        }
    }
}

/// Waits until nothing changes for a while.
async fn quiet(watch: &Watch) {
    let deadline = Instant::now() + LONGEST;
    while Instant::now() < deadline {
        if timeout(QUIET, watch.changed()).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
