//! The disk: files, folders, and the difference between what is shown and what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    time::SystemTime,
};

use fuser::Errno;
use rand::{Rng, rngs::StdRng};

use crate::{
    content,
    directory::{Directory, Effect, Inode, Pending},
    faults::{Faults, Loss, WriteFault},
    file::File,
};

/// Number of the folder that is mounted, as FUSE has it.
pub(crate) const ROOT: Inode = 1;

/// Size of the disk in bytes.
pub(crate) const SIZE: u64 = 16 << 30;

/// What a number stands for.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    File(File),
    Directory(Directory),
    /// Where a process listens; nothing is kept of it but its name.
    Socket,
}

/// A file or folder with what is known of it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) permissions: u16,
    pub(crate) modified: SystemTime,
    /// Names that it has, as they are shown.
    pub(crate) links: u32,
    /// How often it is open.
    opened: u64,
}

/// A disk, and whether it works.
#[derive(Debug)]
pub(crate) struct Disk {
    nodes: BTreeMap<Inode, Node>,
    next: Inode,
    /// Changes of names that are not on the disk.
    names: Pending,
    /// What somebody else has taken.
    taken: u64,
    pub(crate) faults: Faults,
    /// Whether it has power; without, everything answers EIO.
    pub(crate) is_on: bool,
    random: StdRng,
}

impl Node {
    fn new(kind: Kind, permissions: u16) -> Self {
        Self {
            kind,
            permissions,
            modified: SystemTime::now(),
            links: 0,
            opened: 0,
        }
    }
}

impl Disk {
    pub(crate) fn new(random: StdRng) -> Self {
        let mut root = Node::new(Kind::Directory(Directory::default()), 0o755);
        root.links = 1;
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
            names: Pending::default(),
            taken: 0,
            faults: Faults::default(),
            is_on: true,
            random,
        }
    }

    // === looking

    /// What a number stands for.
    pub(crate) fn node(&self, inode: Inode) -> Result<&Node, Errno> {
        self.powered()?;
        self.nodes.get(&inode).ok_or(Errno::ENOENT)
    }

    pub(crate) fn node_mut(&mut self, inode: Inode) -> Result<&mut Node, Errno> {
        self.powered()?;
        self.nodes.get_mut(&inode).ok_or(Errno::ENOENT)
    }

    fn powered(&self) -> Result<(), Errno> {
        if self.is_on { Ok(()) } else { Err(Errno::EIO) }
    }

    pub(crate) fn names(&self, folder: Inode) -> Result<&BTreeMap<OsString, Inode>, Errno> {
        match &self.node(folder)?.kind {
            Kind::Directory(directory) => Ok(&directory.now),
            _ => Err(Errno::ENOTDIR),
        }
    }

    pub(crate) fn lookup(&self, folder: Inode, name: &OsStr) -> Result<Inode, Errno> {
        self.names(folder)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    pub(crate) fn read(&self, inode: Inode, at: u64, size: usize) -> Result<Vec<u8>, Errno> {
        match &self.node(inode)?.kind {
            Kind::File(file) => {
                let data = file.content().read(at, size);
                let is_readable = content::pages(at, data.len())
                    .all(|page| !self.faults.unreadable.contains(&(inode, page)));
                is_readable.then_some(data).ok_or(Errno::EIO)
            }
            _ => Err(Errno::EISDIR),
        }
    }

    // === names

    /// Makes something new, with a name.
    pub(crate) fn create(
        &mut self,
        folder: Inode,
        name: &OsStr,
        kind: Kind,
        permissions: u16,
    ) -> Result<Inode, Errno> {
        if self.names(folder)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let inode = self.next;
        self.next += 1;
        self.nodes.insert(inode, Node::new(kind, permissions));
        self.change(vec![Effect::new(folder, name, Some(inode))]);
        Ok(inode)
    }

    /// Gives a file one more name.
    pub(crate) fn link(&mut self, inode: Inode, folder: Inode, name: &OsStr) -> Result<(), Errno> {
        if self.names(folder)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        if matches!(self.node(inode)?.kind, Kind::Directory(_)) {
            return Err(Errno::EPERM);
        }
        self.change(vec![Effect::new(folder, name, Some(inode))]);
        Ok(())
    }

    /// Removes a name.
    pub(crate) fn remove(&mut self, folder: Inode, name: &OsStr) -> Result<(), Errno> {
        let inode = self.lookup(folder, name)?;
        if self.names(inode).is_ok_and(|names| !names.is_empty()) {
            return Err(Errno::ENOTEMPTY);
        }
        self.change(vec![Effect::new(folder, name, None)]);
        Ok(())
    }

    /// Gives something another name, in the place of what had it before.
    pub(crate) fn rename(&mut self, from: (Inode, &OsStr), to: (Inode, &OsStr)) -> Result<(), Errno> {
        let inode = self.lookup(from.0, from.1)?;
        match self.lookup(to.0, to.1) {
            Ok(same) if same == inode => return Ok(()),
            Ok(replaced) if self.names(replaced).is_ok_and(|names| !names.is_empty()) => {
                return Err(Errno::ENOTEMPTY);
            }
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
        self.change(vec![
            Effect::new(from.0, from.1, None),
            Effect::new(to.0, to.1, Some(inode)),
        ]);
        Ok(())
    }

    /// Shows a change of names, and remembers that it is not on the disk.
    fn change(&mut self, change: Vec<Effect>) {
        for effect in &change {
            let before = self.lookup(effect.folder, &effect.name).ok();
            for (inode, step) in [(before, -1), (effect.inode, 1)] {
                if let Some(node) = inode.and_then(|inode| self.nodes.get_mut(&inode)) {
                    node.links = node.links.saturating_add_signed(step);
                }
            }
            if let Some(Kind::Directory(folder)) = self.kind_mut(effect.folder) {
                effect.apply(&mut folder.now);
            }
        }
        self.names.push(change);
    }

    fn kind_mut(&mut self, inode: Inode) -> Option<&mut Kind> {
        self.nodes.get_mut(&inode).map(|node| &mut node.kind)
    }

    // === content

    /// Counts who has something open: as long as somebody has, it is there without a name.
    pub(crate) fn opened(&mut self, inode: Inode) -> Result<(), Errno> {
        self.node_mut(inode)?.opened += 1;
        Ok(())
    }

    /// The other side of [`Disk::opened`].
    pub(crate) fn released(&mut self, inode: Inode) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.opened = node.opened.saturating_sub(1);
        }
        self.forget();
    }

    /// Writes, and tells how much of it was taken.
    pub(crate) fn write(&mut self, inode: Inode, at: u64, data: &[u8]) -> Result<usize, Errno> {
        let Kind::File(file) = &self.node(inode)?.kind else {
            return Err(Errno::EISDIR);
        };
        let mut taken = data.len();
        let free = self.free();
        while file.content().needed(at, taken) > free {
            // What fits is taken, page by page.
            taken = taken.saturating_sub(content::PAGE);
            if taken == 0 {
                return Err(Errno::ENOSPC);
            }
        }
        taken = self.faults.admit(taken).map_err(|fault| match fault {
            WriteFault::NoSpace => Errno::ENOSPC,
            WriteFault::Io => Errno::EIO,
        })?;
        // A sector that is written is another one from then on.
        for page in content::pages(at, taken) {
            self.faults.unreadable.remove(&(inode, page));
        }
        let node = self.node_mut(inode)?;
        node.modified = SystemTime::now();
        if let Kind::File(file) = &mut node.kind {
            file.write(at, &data[..taken]);
        }
        Ok(taken)
    }

    pub(crate) fn set_length(&mut self, inode: Inode, length: u64) -> Result<(), Errno> {
        match &mut self.node_mut(inode)?.kind {
            Kind::File(file) => file.set_length(length),
            _ => return Err(Errno::EISDIR),
        }
        Ok(())
    }

    /// Bytes that can be written.
    pub(crate) fn free(&self) -> u64 {
        SIZE.saturating_sub(self.used()).saturating_sub(self.taken)
    }

    fn used(&self) -> u64 {
        let shown = self
            .nodes
            .values()
            .filter(|node| node.links > 0 || node.opened > 0);
        shown
            .map(|node| match &node.kind {
                Kind::File(file) => file.content().allocated(),
                _ => 0,
            })
            .sum()
    }

    pub(crate) fn leave_free(&mut self, bytes: u64) {
        self.taken = SIZE.saturating_sub(self.used()).saturating_sub(bytes);
    }

    pub(crate) fn free_all(&mut self) {
        self.taken = 0;
    }

    // === syncs, and what they are good for

    /// Brings to the disk what was done to a file, or the names of a folder.
    pub(crate) fn sync(&mut self, inode: Inode) -> Result<(), Errno> {
        self.powered()?;
        let fails = self.faults.fails_sync();
        match self.nodes.get_mut(&inode).map(|node| &mut node.kind) {
            None => return Err(Errno::ENOENT),
            Some(Kind::File(file)) if fails => file.sync_partly(&mut self.random),
            Some(Kind::File(file)) => file.sync(),
            Some(Kind::Directory(_)) if !fails => {
                let changes = self.names.take_of(inode);
                self.bring_to_disk(&changes);
                self.forget();
            }
            Some(Kind::Directory(_) | Kind::Socket) => {}
        }
        if fails { Err(Errno::EIO) } else { Ok(()) }
    }

    fn bring_to_disk(&mut self, changes: &[Vec<Effect>]) {
        for effect in changes.iter().flatten() {
            if let Some(Kind::Directory(folder)) = self.kind_mut(effect.folder) {
                effect.apply(&mut folder.on_disk);
            }
        }
    }

    /// Ends everything, and shows what is on the disk then.
    pub(crate) fn cut_power(&mut self, loss: Loss) {
        self.is_on = false;
        let kept = match loss {
            Loss::Unsynced => 0,
            Loss::Torn => self.random.random_range(0..=self.names.len()),
        };
        let changes = self.names.take_first(kept);
        self.bring_to_disk(&changes);
        for node in self.nodes.values_mut() {
            node.opened = 0;
            node.links = 0;
            match &mut node.kind {
                Kind::File(file) => file.lose(loss, &mut self.random),
                Kind::Directory(directory) => directory.now = directory.on_disk.clone(),
                Kind::Socket => {}
            }
        }
        self.count_links();
        self.forget();
    }

    fn count_links(&mut self) {
        let mut found = vec![ROOT];
        while let Some(inode) = found.pop() {
            let Some(node) = self.nodes.get_mut(&inode) else {
                continue;
            };
            node.links += 1;
            if let (Kind::Directory(directory), 1) = (&node.kind, node.links) {
                found.extend(directory.now.values());
            }
        }
    }

    /// Removes what has no name, neither shown nor on the disk nor on the way there, and is not open.
    fn forget(&mut self) {
        let mut known: BTreeSet<Inode> = self.names.inodes().collect();
        known.insert(ROOT);
        for node in self.nodes.values() {
            if let Kind::Directory(directory) = &node.kind {
                known.extend(directory.now.values().chain(directory.on_disk.values()));
            }
        }
        self.nodes
            .retain(|inode, node| node.opened > 0 || known.contains(inode));
    }
}
