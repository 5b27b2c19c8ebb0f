//! Names of files and folders, and the changes of them that are not on the disk yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
};

/// Number of a file or folder.
pub(crate) type Inode = u64;

/// A folder.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    /// What is shown.
    pub(crate) now: BTreeMap<OsString, Inode>,
    /// What is on the disk.
    pub(crate) on_disk: BTreeMap<OsString, Inode>,
}

/// One name in one folder, and what it is from now on.
#[derive(Clone, Debug)]
pub(crate) struct Effect {
    pub(crate) folder: Inode,
    pub(crate) name: OsString,
    pub(crate) inode: Option<Inode>,
}

impl Effect {
    pub(crate) fn new(folder: Inode, name: &OsStr, inode: Option<Inode>) -> Self {
        Self {
            folder,
            name: name.to_owned(),
            inode,
        }
    }

    /// Carries it out on one of the two views of its folder.
    pub(crate) fn apply(&self, names: &mut BTreeMap<OsString, Inode>) {
        match self.inode {
            Some(inode) => names.insert(self.name.clone(), inode),
            None => names.remove(&self.name),
        };
    }
}

/// Changes of names in the order in which they were made; what belongs to one of them is on the disk together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pending(Vec<Vec<Effect>>);

impl Pending {
    /// Adds a change.
    pub(crate) fn push(&mut self, change: Vec<Effect>) {
        self.0.push(change);
    }

    /// How many changes wait.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes out the changes of a folder, and those of others that come before them and belong to them.
    pub(crate) fn take_of(&mut self, folder: Inode) -> Vec<Vec<Effect>> {
        let mut folders = BTreeSet::from([folder]);
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        for change in std::mem::take(&mut self.0).into_iter().rev() {
            if change.iter().any(|effect| folders.contains(&effect.folder)) {
                folders.extend(change.iter().map(|effect| effect.folder));
                taken.push(change);
            } else {
                left.push(change);
            }
        }
        left.reverse();
        taken.reverse();
        self.0 = left;
        taken
    }

    /// Takes out the first changes, and forgets the others.
    pub(crate) fn take_first(&mut self, count: usize) -> Vec<Vec<Effect>> {
        let mut changes = std::mem::take(&mut self.0);
        changes.truncate(count);
        changes
    }

    /// What the changes refer to.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = Inode> {
        self.0.iter().flatten().filter_map(|effect| effect.inode)
    }
}
