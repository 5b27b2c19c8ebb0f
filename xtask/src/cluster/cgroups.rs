//! Control groups of the nodes: one below the root for each node, so that kubelets don't meet.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::layout::namespace;

/// Where the hierarchies are.
const ROOT: &str = "/sys/fs/cgroup";
/// How long groups whose processes have ended may still count as busy.
const EMPTY: Duration = Duration::from_secs(10);

/// Makes a node's groups, and lets them have what the machine has.
pub(crate) fn make(node: u8) -> Result<()> {
    for hierarchy in hierarchies()? {
        // Version 2: a group only gets those controllers that the one above passes on. Which ones there are, differs.
        for controller in ["+cpuset", "+cpu", "+io", "+memory", "+pids"] {
            drop(fs::write(hierarchy.join("cgroup.subtree_control"), controller));
        }
        let group = hierarchy.join(namespace(node));
        fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
        // Version 1: a new set of processors is empty, and takes no process.
        for set in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read(hierarchy.join(set)) {
                fs::write(group.join(set), all).with_context(|| format!("{set} of {}", group.display()))?;
            }
        }
    }
    Ok(())
}

/// Removes a node's groups, whose processes have ended.
pub(crate) fn remove(node: u8) -> Result<()> {
    for hierarchy in hierarchies()? {
        let group = hierarchy.join(namespace(node));
        let start = Instant::now();
        while let Err(error) = remove_with_children(&group) {
            if start.elapsed() > EMPTY {
                return Err(error).with_context(|| format!("remove {}", group.display()));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// A group can only be removed after those in it; its files go by themselves.
fn remove_with_children(group: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_with_children(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// The root of version 2, or the roots of version 1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.procs").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("read {ROOT}"))? {
        let path = entry?.path();
        if !path.is_symlink() && path.join("cgroup.procs").exists() {
            found.push(path);
        }
    }
    Ok(found)
}
