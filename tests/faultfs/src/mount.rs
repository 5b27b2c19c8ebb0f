//! The disk as a file system: FUSE's requests, answered by the disk.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use nix::mount::MntFlags;
use parking_lot::Mutex;

use crate::{
    content::PAGE,
    directory::{Directory, Inode},
    disk::{Disk, Kind, SIZE},
    file::File,
};

/// How long the kernel may believe what it was told: nobody else changes the disk while it is mounted.
const BELIEVED: Duration = Duration::from_secs(3600);

/// Type of a socket in the mode of a new file (`S_IFSOCK`), and the bits of types (`S_IFMT`).
const SOCKET: u32 = 0o140_000;
const TYPES: u32 = 0o170_000;

/// What FUSE needs of the system.
const DEVICE: &str = "/dev/fuse";

/// A disk that is mounted; unmounted when this is dropped.
#[derive(Debug)]
pub struct Mounted {
    session: Option<BackgroundSession>,
    folder: PathBuf,
}

/// Why a disk can't be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is no FUSE, or not for us.
    #[error(
        "can't open {DEVICE}: tests on a failing disk need FUSE in the kernel (module fuse), and root: {0}"
    )]
    Device(#[source] io::Error),
    /// The system does not let us mount.
    #[error("can't mount on {folder:?}: tests on a failing disk need root with CAP_SYS_ADMIN: {cause}")]
    Mount {
        /// Where.
        folder: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
}

pub(crate) fn mount(disk: Arc<Mutex<Disk>>, folder: &Path) -> Result<Mounted, MountError> {
    let device = fs::File::options().read(true).write(true).open(DEVICE);
    drop(device.map_err(MountError::Device)?);
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("faultfs".to_owned())];
    let session =
        fuser::spawn_mount(Served { disk }, folder, &config).map_err(|cause| MountError::Mount {
            folder: folder.to_owned(),
            cause,
        })?;
    Ok(Mounted {
        session: Some(session),
        folder: folder.to_owned(),
    })
}

impl Mounted {
    /// Where the disk is mounted.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Unmounts the disk; nobody may use it any more.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn unmount(mut self) -> io::Result<()> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        // The kernel closes files some time after those who had them open, and the disk is busy until then; threads of who
        // was dropped may even hold some for longer. The force ends the connection, so that nobody is waited for. Nothing
        // is lost by that: what was written was written through.
        nix::mount::umount2(&self.folder, MntFlags::MNT_DETACH | MntFlags::MNT_FORCE)?;
        match session.join() {
            // What the thread that answers may read last, when a request was on its way.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            ended => ended,
        }
    }
}

/// What answers the kernel.
struct Served {
    disk: Arc<Mutex<Disk>>,
}

impl Served {
    /// What is known of a file or folder, as the kernel wants it.
    fn attributes(disk: &Disk, inode: Inode) -> Result<FileAttr, Errno> {
        let node = disk.node(inode)?;
        let (kind, size, allocated) = match &node.kind {
            Kind::File(file) => {
                let content = file.content();
                (FileType::RegularFile, content.length(), content.allocated())
            }
            Kind::Directory(_) => (FileType::Directory, PAGE as u64, PAGE as u64),
            Kind::Socket => (FileType::Socket, 0, 0),
        };
        Ok(FileAttr {
            ino: INodeNo(inode),
            size,
            blocks: allocated / 512,
            atime: node.modified,
            mtime: node.modified,
            ctime: node.modified,
            crtime: node.modified,
            kind,
            perm: node.permissions,
            nlink: node.links,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PAGE as u32,
            flags: 0,
        })
    }

    fn create(&self, folder: Inode, name: &OsStr, kind: Kind, mode: u32) -> Result<FileAttr, Errno> {
        let mut disk = self.disk.lock();
        let inode = disk.create(folder, name, kind, permissions(mode))?;
        Self::attributes(&disk, inode)
    }

    fn entry(reply: ReplyEntry, found: Result<FileAttr, Errno>) {
        match found {
            Ok(attributes) => reply.entry(&BELIEVED, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn empty(reply: ReplyEmpty, done: Result<(), Errno>) {
        match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn attr(reply: ReplyAttr, found: Result<FileAttr, Errno>) {
        match found {
            Ok(attributes) => reply.attr(&BELIEVED, &attributes),
            Err(error) => reply.error(error),
        }
    }
}

fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let disk = self.disk.lock();
        let found = disk
            .lookup(parent.0, name)
            .and_then(|inode| Self::attributes(&disk, inode));
        Self::entry(reply, found);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        Self::attr(reply, Self::attributes(&self.disk.lock(), inode.0));
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut disk = self.disk.lock();
        let change = |disk: &mut Disk| {
            if let Some(size) = size {
                disk.set_length(inode.0, size)?;
            }
            let node = disk.node_mut(inode.0)?;
            if let Some(mode) = mode {
                node.permissions = permissions(mode);
            }
            match modified {
                Some(TimeOrNow::SpecificTime(time)) => node.modified = time,
                Some(TimeOrNow::Now) => node.modified = SystemTime::now(),
                None => {}
            }
            Self::attributes(disk, inode.0)
        };
        Self::attr(reply, change(&mut disk));
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let kind = match mode & TYPES {
            SOCKET => Kind::Socket,
            _ => return reply.error(Errno::EPERM),
        };
        Self::entry(reply, self.create(parent.0, name, kind, mode));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let kind = Kind::Directory(Directory::default());
        Self::entry(reply, self.create(parent.0, name, kind, mode));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        Self::empty(reply, self.disk.lock().remove(parent.0, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        Self::empty(reply, self.disk.lock().remove(parent.0, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut disk = self.disk.lock();
        let refused = if flags.is_empty() {
            None
        } else if flags != RenameFlags::RENAME_NOREPLACE {
            Some(Errno::EINVAL)
        } else {
            disk.lookup(new_parent.0, new_name).ok().map(|_| Errno::EEXIST)
        };
        let renamed = refused.map_or_else(|| disk.rename((parent.0, name), (new_parent.0, new_name)), Err);
        Self::empty(reply, renamed);
    }

    fn link(&self, _: &Request, inode: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut disk = self.disk.lock();
        let linked = disk
            .link(inode.0, parent.0, name)
            .and_then(|()| Self::attributes(&disk, inode.0));
        Self::entry(reply, linked);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let created = self.create(parent.0, name, Kind::File(File::default()), mode);
        let opened = created.and_then(|attributes| {
            self.disk.lock().opened(attributes.ino.0)?;
            Ok(attributes)
        });
        match opened {
            Ok(attributes) => reply.created(
                &BELIEVED,
                &attributes,
                Generation(0),
                FileHandle(0),
                FopenFlags::empty(),
            ),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.disk.lock().opened(inode.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.disk.lock().released(inode.0);
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        at: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk.lock().read(inode.0, at, size as usize) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.disk.lock().write(inode.0, at, data) {
            // A request of FUSE is far smaller than 4 GiB.
            Ok(written) => reply.written(written as u32),
            Err(error) => reply.error(error),
        }
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        Self::empty(reply, self.disk.lock().sync(inode.0));
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        Self::empty(reply, self.disk.lock().sync(inode.0));
    }

    fn readdir(&self, _: &Request, inode: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let disk = self.disk.lock();
        let names = match disk.names(inode.0) {
            Ok(names) => names,
            Err(error) => return reply.error(error),
        };
        // Numbers of files grow with each new one: a file that is removed while the folder is read hides no other.
        let mut entries: Vec<_> = names.iter().map(|(name, inode)| (*inode, name)).collect();
        entries.sort_unstable();
        for (child, name) in entries.into_iter().filter(|(child, _)| *child > offset) {
            let kind = match disk.node(child).map(|node| &node.kind) {
                Ok(Kind::Directory(_)) => FileType::Directory,
                Ok(Kind::Socket) => FileType::Socket,
                Ok(Kind::File(_)) | Err(_) => FileType::RegularFile,
            };
            if reply.add(INodeNo(child), child, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let disk = self.disk.lock();
        if !disk.is_on {
            return reply.error(Errno::EIO);
        }
        let block = PAGE as u64;
        let free = disk.free() / block;
        reply.statfs(
            SIZE / block,
            free,
            free,
            1 << 20,
            1 << 20,
            PAGE as u32,
            255,
            PAGE as u32,
        );
    }
}
