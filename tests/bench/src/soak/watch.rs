//! What the broker takes during a soak: memory, and room on its disk.

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Duration};

use anyhow::Result;
use tokio::time::Instant;

use crate::process;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// Bytes that the system counts as one block, whatever a disk's own are (stat(2)).
const BLOCK: u64 = 512;

/// One look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Since the beginning of the load.
    pub(super) at: Duration,
    /// Resident bytes.
    pub(super) memory: u64,
    /// Bytes of its directory on the disk; what is reserved and not written does not count.
    pub(super) disk: u64,
}

/// Looks every second, and never ends by itself.
pub(super) async fn watch(process: u32, folder: &Path, samples: &mut Vec<Sample>) -> Result<()> {
    let began = Instant::now();
    let mut every = tokio::time::interval(EVERY);
    loop {
        every.tick().await;
        samples.push(Sample {
            at: began.elapsed(),
            memory: process::memory(process)?.resident,
            disk: size(folder),
        });
    }
}

/// Bytes of a folder on the disk. Files come and go meanwhile: what is gone has no size.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let sizes = entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.blocks() * BLOCK,
            Err(_) => 0,
        });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_as_large_as_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(size(&folder.path().join("nowhere")), 0);
        fs::create_dir(folder.path().join("below")).unwrap();
        for name in ["one", "below/two"] {
            fs::write(folder.path().join(name), vec![1; 100 << 10]).unwrap();
        }
        let found = size(folder.path());
        assert!((150 << 10..1 << 20).contains(&found), "{found}");
    }
}
