//! What goes wrong, and when.

use std::collections::BTreeSet;

use crate::directory::Inode;

/// What a power failure costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Everything that was not synced.
    Unsynced,
    /// A random part of what was not synced; the rest survives, torn at the bounds of sectors.
    Torn,
}

/// How a write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// There is no space (ENOSPC).
    NoSpace,
    /// The disk does not take it (EIO).
    Io,
}

/// What is to go wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Syncs so far.
    pub(crate) syncs: u64,
    /// Syncs that succeed before one that does not.
    pub(crate) fail_sync_after: Option<u64>,
    /// Bytes that are written before writes fail.
    pub(crate) fail_writes_after: Option<(u64, WriteFault)>,
    /// Pages of files that can't be read.
    pub(crate) unreadable: BTreeSet<(Inode, u64)>,
}

impl Faults {
    /// Counts a sync, and tells whether it is to fail.
    pub(crate) fn fails_sync(&mut self) -> bool {
        self.syncs += 1;
        match self.fail_sync_after.take() {
            Some(0) => true,
            later => {
                self.fail_sync_after = later.map(|syncs| syncs - 1);
                false
            }
        }
    }

    /// How many bytes of a write are taken.
    pub(crate) fn admit(&mut self, size: usize) -> Result<usize, WriteFault> {
        match &mut self.fail_writes_after {
            None => Ok(size),
            Some((0, fault)) => Err(*fault),
            Some((left, _)) => {
                let taken = size.min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                Ok(taken)
            }
        }
    }
}
