//! Where manifests come from: a directory, or the Kubernetes API.
//!
//! A source tells its whole state each time it changes ([`Snapshot`]); whoever reads it compares. Values are shared, so
//! that a snapshot of ten thousand objects costs as many pointers.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use foreshore_control::plan::ServiceAccountIssuerPlan;
use foreshore_runtime::Shutdown;
use tokio::sync::watch;

use crate::{
    object::{Meta, ObjectKey},
    packed::Packed,
    problem::{Position, Problem},
};

pub mod directory;

use directory::yaml;

/// Where snapshots are sent; `None` until the source has told its state once. Only the newest counts.
pub type Snapshots = watch::Sender<Option<Arc<Snapshot>>>;

/// Something that declares objects.
#[async_trait]
pub trait ResourceSource: Send + 'static {
    /// Tells the present state and then each new one, until the end begins.
    ///
    /// # Errors
    /// Only what no later state can mend. A source that can't be read for a while tells so in
    /// [`Snapshot::problems`] and goes on.
    async fn run(self: Box<Self>, snapshots: Snapshots, shutdown: Shutdown) -> Result<(), Error>;
}

/// Why a source can't begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path that was given does not exist or can't be read.
    #[error("{problem}")]
    Root {
        /// What is wrong with it.
        problem: Box<Problem>,
    },
    /// The state that a source keeps can't be opened.
    #[error("state of the manifests: {0}")]
    State(#[from] crate::vault::Error),
    /// A task of the source ended by itself.
    #[error(transparent)]
    Task(#[from] foreshore_runtime::TaskError),
}

/// All that a source declares at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The objects.
    pub objects: BTreeMap<ObjectKey, Sourced>,
    /// What can't be told to be an object, or not which.
    pub problems: Vec<Problem>,
    /// Who signs the tokens of the cluster's service accounts; `None` where no Broker takes them.
    pub service_accounts: Option<ServiceAccounts>,
}

/// Who signs the tokens of the cluster's service accounts, or why that is not known.
pub type ServiceAccounts = Result<Arc<ServiceAccountIssuerPlan>, String>;

/// An object as its source declares it.
#[derive(Clone)]
pub struct Sourced {
    /// Which life and version of the object it is.
    pub meta: Meta,
    /// The manifest, not judged yet. `None` while it can't be read ([`Snapshot::problems`] tells why): the object is
    /// still declared, so what was accepted of it runs on.
    pub manifest: Option<Packed>,
    /// Where it stands; `None` for an object that did not come from a file.
    pub origin: Option<Origin>,
}

impl fmt::Debug for Sourced {
    /// Leaves the manifest out, which may hold secrets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Sourced")
            .field("meta", &self.meta)
            .field("readable", &self.manifest.is_some())
            .field("origin", &self.origin)
            .finish()
    }
}

impl Sourced {
    /// Adds to a problem of this object where its field stands.
    #[must_use]
    pub fn locate(&self, problem: Problem) -> Problem {
        match &self.origin {
            Some(origin) => origin.locate(problem),
            None => problem,
        }
    }
}

/// Where a manifest stands.
#[derive(Clone)]
pub struct Origin {
    /// File, as it was given.
    pub file: Arc<str>,
    /// Where the manifest begins.
    pub position: Position,
    /// Which document of the file.
    pub(crate) document: usize,
    /// What stands before the manifest's own field paths inside of the document.
    pub(crate) prefix: String,
    /// Content of the file, to find fields in; `None` where fields have no places.
    pub(crate) text: Option<Arc<str>>,
}

impl fmt::Debug for Origin {
    /// Leaves the text out, which may hold secrets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

impl fmt::Display for Origin {
    /// `file:line`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.file, self.position.line)
    }
}

impl Origin {
    /// Adds to a problem where its field stands, or where the manifest begins.
    #[must_use]
    pub fn locate(&self, problem: Problem) -> Problem {
        let path = format!("{}{}", self.prefix, problem.field.as_deref().unwrap_or_default());
        let field = self
            .text
            .as_ref()
            .and_then(|text| yaml::locate(text, self.document, &path));
        problem.in_file(&*self.file).at(field.unwrap_or(self.position))
    }
}
