//! A disk that loses its power, fails to sync, runs full: a file system in user space, for tests of what a program has made
//! durable.
//!
//! A program that is killed leaves the page cache behind, so its death says nothing about its syncs. This file system
//! knows of every file and folder both what the system shows and what is on the disk, and a power failure leaves what is
//! on the disk. It is mounted by FUSE, since a statically linked program can't be interposed; everything is in memory.
//!
//! ```text
//! program ─ system calls ─► kernel, its page cache ─ FUSE ─► mount ─► Disk: now, pending, on the disk
//! test ── FaultDisk: cut_power, fail_sync_after, fail_writes_after, leave_free, spoil ──►┘
//! ```
//!
//! # What is modelled
//! - **Content** reaches the disk by fsync or fdatasync of its file, never by itself before. At a power failure all
//!   that was not synced is lost, or of each file a random part survives: nothing; a beginning of its changes, the
//!   last of them torn; or any of the sectors that were written, in any order. A sector of 512 bytes is old or new,
//!   never a mixture.
//! - **Names** (what is created, linked, renamed, removed) reach the disk by fsync of their folder, in order, and a
//!   rename reaches it as a whole, also from folder to folder. At a power failure the others are lost, or a random
//!   beginning of them survives. This is POSIX to the letter on file systems with a journal: ext4, XFS and btrfs also
//!   keep the name of a new file whose content is synced; whoever relies on it is caught here.
//! - **A sync that fails** answers EIO once. As with Linux, what was to be synced is shown on but no longer waits: a
//!   random part of it is on the disk, the next sync succeeds and does not write the rest. A folder's names wait on.
//! - **A disk that is full** takes what fits of a write and answers ENOSPC, and says so beforehand when asked for its
//!   free space, or fails without having said so.
//! - **A page that can't be read** answers EIO to whoever reads it, until it is written anew.
//! - **Mappings**: a shared one that is written to goes through the kernel's page cache, which hands it on as writes
//!   before a sync; until then it is lost like what was never written.
//! - After a power failure everything answers EIO until the power is back and the disk was mounted again, with nothing
//!   in the kernel's caches.
//!
//! # What is not
//! Content that is written back without a sync while the power is on and then read back from the disk; the order among
//! several files, which is random in the same way whatever was done first; permissions and times, which survive; sectors
//! that change by themselves (tests flip bits in files at rest, with [`flip_bit`]); extended attributes, symbolic links and
//! preallocation, which are answered as not supported.

mod content;
mod directory;
mod disk;
mod faults;
mod file;
mod flips;
mod mount;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc};

use parking_lot::Mutex;
use rand::{SeedableRng, rngs::StdRng};

pub use self::faults::{Loss, WriteFault};
pub use self::flips::{flip_bit, used_files};
pub use self::mount::{MountError, Mounted};

use self::disk::Disk;

/// Bytes that are written to the disk as a whole or not at all.
pub const SECTOR: usize = 512;

/// A disk; it keeps what is on it from mount to mount. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct FaultDisk {
    disk: Arc<Mutex<Disk>>,
}

impl FaultDisk {
    /// An empty disk. What it loses is chosen by a generator with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let disk = Disk::new(StdRng::seed_from_u64(seed));
        Self {
            disk: Arc::new(Mutex::new(disk)),
        }
    }

    /// Mounts the disk on an existing, empty folder, until what is returned is dropped or unmounted.
    ///
    /// # Errors
    /// When `/dev/fuse` can't be opened or the system does not let us mount; the message says what is missing.
    pub fn mount(&self, folder: &Path) -> Result<Mounted, MountError> {
        mount::mount(Arc::clone(&self.disk), folder)
    }

    /// Cuts the power: nothing reaches the disk any more, and what was not on it is lost.
    pub fn cut_power(&self, loss: Loss) {
        self.disk.lock().cut_power(loss);
    }

    /// Gives the power back. The disk has to be mounted anew: the kernel remembers what was there before.
    pub fn restore_power(&self) {
        self.disk.lock().is_on = true;
    }

    /// Lets one sync fail, after so many that succeed.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.disk.lock().faults.fail_sync_after = Some(syncs);
    }

    /// Whether a sync that was to fail has not come yet.
    #[must_use]
    pub fn is_sync_to_fail(&self) -> bool {
        self.disk.lock().faults.fail_sync_after.is_some()
    }

    /// Lets all writes fail, after so many bytes that are taken, until [`FaultDisk::mend_writes`].
    pub fn fail_writes_after(&self, bytes: u64, fault: WriteFault) {
        self.disk.lock().faults.fail_writes_after = Some((bytes, fault));
    }

    /// Lets writes succeed again.
    pub fn mend_writes(&self) {
        self.disk.lock().faults.fail_writes_after = None;
    }

    /// Makes a page of 4096 bytes of a file unreadable (EIO) until it is written anew; by its number, and that of the file
    /// (`MetadataExt::ino`). The kernel shows what it has of the file until somebody opens it again.
    pub fn spoil(&self, inode: u64, page: u64) {
        self.disk.lock().faults.unreadable.insert((inode, page));
    }

    /// Leaves so many bytes free, as if somebody else had taken the others.
    pub fn leave_free(&self, bytes: u64) {
        self.disk.lock().leave_free(bytes);
    }

    /// Frees what somebody else had taken.
    pub fn free(&self) {
        self.disk.lock().free_all();
    }

    /// How often something was synced; syncs that failed count too.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.disk.lock().faults.syncs
    }
}
