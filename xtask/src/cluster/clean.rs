//! Removes a cluster, or what is left of one, whatever has become of it.

use std::{fs, io};

use anyhow::{Context, Result, bail};

use super::{
    cgroups,
    layout::{Layout, MOST_NODES},
    network, node, processes,
};

/// Ends a machine at once, as a power cut would; its disk stays.
pub(crate) fn power_off(machine: u8) -> Result<()> {
    processes::kill(machine)?;
    network::disconnect(machine)?;
    cgroups::remove(machine)
}

/// Removes all of it.
///
/// # Errors
/// Also when it is the cluster of another cache, which somebody may be using: there is only one on a machine.
pub(crate) fn all(layout: &Layout) -> Result<()> {
    for machine in 0..=MOST_NODES {
        if let Some(other) = processes::cluster(machine)?
            && other != layout.run()
            && other.is_dir()
        {
            bail!(
                "found the cluster of {}; allowed: none but that of {}; remove it with its own FORESHORE_CACHE",
                other.display(),
                layout.run().display()
            );
        }
    }
    for machine in (0..=MOST_NODES).rev() {
        power_off(machine).with_context(|| format!("machine {machine}"))?;
    }
    network::forget_namespaces();
    remove(fs::remove_dir_all(layout.run())).with_context(|| format!("remove {}", layout.run().display()))?;
    // Made where a node shows its own; those that hold something are somebody else's.
    for (_, shown) in node::OWN {
        drop(fs::remove_dir(shown));
    }
    Ok(())
}

fn remove(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
