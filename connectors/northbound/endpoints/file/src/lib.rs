//! Sink to JSON-lines files.
//!
//! Each record is a line: `{"time":…,"topic":…,"properties":{…},"payload":…}`. A payload that is JSON stands there as it
//! is, any other as `"payloadBase64"`. A batch is acknowledged after it was written and synced. Files are named by the
//! time of their first line; one that is large or old enough is completed, and the oldest complete ones are deleted.
//!
//! A crash may leave a torn last line. It was never acknowledged, so it is cut off when the folder is opened again.

mod folder;
mod line;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use foreshore_control::Nack;
use foreshore_crds::v1alpha1::dataflow_endpoint::{Compression, EndpointType, FileEndpoint};
use foreshore_northbound::{
    Batch, Capabilities, Delivery, EndpointSetup, Sink, SinkError, SinkFactory, SinkSetup, health::reason,
};
use parking_lot::Mutex;

pub use folder::Rotation;
use folder::{Folder, FolderError};

/// Makes sinks to files below a directory.
#[derive(Clone, Debug)]
pub struct FileSinks {
    directory: Option<PathBuf>,
}

impl FileSinks {
    /// Files below a directory; without one, endpoints of this type are refused.
    #[must_use]
    pub const fn new(directory: Option<PathBuf>) -> Self {
        Self { directory }
    }

    fn folder_of(&self, setup: &SinkSetup) -> Result<PathBuf, Nack> {
        let file = block(&setup.endpoint)?;
        let template = setup.sink.file.as_ref().and_then(|sink| sink.path.as_ref());
        let template = template.map_or("{namespace}/{dataflow}", |path| path.as_str());
        let below = fill(template, setup)?;
        // Several sinks of a dataflow must not write to one file.
        let directory = self.directory.as_ref().ok_or_else(no_directory)?;
        Ok(directory
            .join(fill(&file.path, setup)?)
            .join(below)
            .join(setup.sink.name.as_str()))
    }
}

fn no_directory() -> Nack {
    Nack::new("UnsupportedHere", "this runner has no data directory for files")
}

fn block(setup: &EndpointSetup) -> Result<&FileEndpoint, Nack> {
    let file = setup.endpoint.spec.file.as_ref();
    file.ok_or_else(|| Nack::new("InvalidResource", "endpoint has no block `file`"))
}

/// Fills in the placeholders of a path. Names of objects hold no separators.
fn fill(template: &str, setup: &SinkSetup) -> Result<PathBuf, Nack> {
    let filled = template
        .replace("{namespace}", &setup.dataflow.namespace)
        .replace("{dataflow}", &setup.dataflow.name)
        .replace("{sink}", &setup.sink.name);
    if filled.contains(['{', '}']) {
        let allowed = "{namespace}, {dataflow} and {sink} are allowed";
        return Err(Nack::new(
            "PathInvalid",
            format!("path {template:?} has an unknown placeholder, {allowed}"),
        ));
    }
    let path = PathBuf::from(filled);
    // The manifest's own rule excludes these; a path must not leave its directory all the same.
    let stays = path
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_)));
    if !stays {
        return Err(Nack::new(
            "PathInvalid",
            format!("path {template:?} leaves the data directory"),
        ));
    }
    Ok(path)
}

#[async_trait]
impl SinkFactory for FileSinks {
    fn endpoint_type(&self) -> EndpointType {
        EndpointType::File
    }

    fn check_endpoint(&self, setup: &EndpointSetup) -> Result<(), Nack> {
        let file = block(setup)?;
        if self.directory.is_none() {
            return Err(no_directory());
        }
        match file.effective_compression() {
            Compression::None => Ok(()),
            found => {
                let message = format!("compression {found:?} of files is not supported yet, None is");
                Err(Nack::new("UnsupportedHere", message))
            }
        }
    }

    fn check_sink(&self, setup: &SinkSetup) -> Result<(), Nack> {
        self.folder_of(setup).map(drop)
    }

    async fn create(&self, setup: &SinkSetup) -> Result<Arc<dyn Sink>, SinkError> {
        let refused = |nack: Nack| SinkError::fatal("PathInvalid", nack);
        let folder = self.folder_of(setup).map_err(refused)?;
        let rotation = block(&setup.endpoint)
            .map_err(refused)?
            .rotation
            .clone()
            .unwrap_or_default();
        let rotation = Rotation {
            max_bytes: rotation.effective_max_bytes(),
            max_age: rotation.effective_max_age(),
            max_files: rotation.effective_max_files(),
        };
        let sink = FileSink {
            folder: Arc::new(Mutex::new(Folder::new(folder, rotation))),
        };
        Ok(Arc::new(sink))
    }
}

/// Writes to one folder.
struct FileSink {
    folder: Arc<Mutex<Folder>>,
}

impl FileSink {
    /// Works on the folder on a thread that may wait for the disk.
    async fn with_folder<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Folder) -> Result<T, FolderError> + Send + 'static,
    ) -> Result<T, SinkError> {
        let folder = Arc::clone(&self.folder);
        let done = tokio::task::spawn_blocking(move || work(&mut folder.lock())).await;
        match done {
            Ok(worked) => worked.map_err(|error| sink_error(&error)),
            Err(error) => Err(SinkError::retryable(reason::SINK_FAULT, error)),
        }
    }
}

fn sink_error(error: &FolderError) -> SinkError {
    use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.source.kind() {
        // Space comes back by itself, or when someone makes room.
        StorageFull | QuotaExceeded => SinkError::retryable("StorageFull", error),
        PermissionDenied | ReadOnlyFilesystem => SinkError::fatal("PermissionDenied", error),
        _ => SinkError::retryable("WriteFailed", error),
    }
}

#[async_trait]
impl Sink for FileSink {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_inflight: 1,
            ..Capabilities::default()
        }
    }

    async fn deliver(&self, batch: Batch<'_>) -> Result<Vec<Delivery>, SinkError> {
        let mut lines = Vec::new();
        let written = batch
            .outputs
            .iter()
            .map(|output| match line::write(&output.record, &mut lines) {
                Ok(()) => Delivery::Delivered,
                Err(error) => Delivery::DeadLetter {
                    reason: error.to_string(),
                },
            });
        let deliveries: Vec<_> = written.collect();
        let now = jiff::Timestamp::now();
        self.with_folder(move |folder| folder.append(&lines, now)).await?;
        Ok(deliveries)
    }

    async fn probe(&self) -> Result<(), SinkError> {
        let now = jiff::Timestamp::now();
        self.with_folder(move |folder| folder.check(now)).await
    }

    async fn close(&self) {
        let folder = Arc::clone(&self.folder);
        // Everything that was acknowledged is synced already.
        drop(tokio::task::spawn_blocking(move || folder.lock().close()).await);
    }
}
