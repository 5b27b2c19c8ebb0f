//! Free space of the disk.

use std::{fmt, path::PathBuf};

use crate::store::Space;

/// Looks at the free space below a directory.
pub(crate) struct SpaceProbe {
    watermark: u64,
    free: Box<dyn Fn() -> Option<u64> + Send + Sync>,
}

impl fmt::Debug for SpaceProbe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SpaceProbe")
            .field("watermark", &self.watermark)
            .finish_non_exhaustive()
    }
}

impl SpaceProbe {
    /// Looks at the file system of a directory.
    pub(crate) fn of_directory(directory: PathBuf, watermark: u64) -> Self {
        let free = move || match rustix::fs::statvfs(&directory) {
            Ok(found) => Some(found.f_bavail.saturating_mul(found.f_frsize)),
            Err(error) => {
                tracing::warn!(%error, "free space is not known");
                None
            }
        };
        Self {
            watermark,
            free: Box::new(free),
        }
    }

    /// Asks a function, for tests.
    #[cfg(test)]
    pub(crate) fn of_function(
        watermark: u64,
        free: impl Fn() -> Option<u64> + Send + Sync + 'static,
    ) -> Self {
        Self {
            watermark,
            free: Box::new(free),
        }
    }

    /// Free space now; `None` if the system does not say.
    pub(crate) fn look(&self) -> Option<Space> {
        (self.free)().map(|free| Space {
            free,
            watermark: self.watermark,
        })
    }
}
