//! Names, addresses and files of the cluster.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Most nodes that a cluster may have.
pub(crate) const MOST_NODES: u8 = 3;
/// Where the API server and the name server are reached.
pub(crate) const CONTROL_PLANE: &str = "172.30.0.1";
/// Port of the API server.
pub(crate) const API_PORT: u16 = 6443;
/// Network of the machines.
pub(crate) const MACHINES: &str = "172.30.0.0/24";
/// Network of all pods.
pub(crate) const PODS: &str = "10.244.0.0/16";
/// Network of Services.
pub(crate) const SERVICES: &str = "10.96.0.0/16";
/// The API server's Service address: the first of [`SERVICES`].
pub(crate) const API_SERVICE: &str = "10.96.0.1";
/// Domain of the names of Services.
pub(crate) const DOMAIN: &str = "cluster.local";

/// Where network namespaces are named.
pub(crate) const NAMESPACES: &str = "/run/netns";

/// Name of a machine's network namespace and of its control groups; machine 0 holds the control plane.
pub(crate) fn namespace(machine: u8) -> String {
    format!("foreshore-{machine}")
}

/// File that holds a machine's network namespace.
pub(crate) fn namespace_file(machine: u8) -> PathBuf {
    Path::new(NAMESPACES).join(namespace(machine))
}

/// Name of a node.
pub(crate) fn node(machine: u8) -> String {
    format!("node-{machine}")
}

/// Address of a node.
pub(crate) fn address(machine: u8) -> String {
    format!("172.30.0.{}", 10 + machine)
}

/// Network of a node's pods.
pub(crate) fn pods(machine: u8) -> String {
    format!("10.244.{machine}.0/24")
}

/// Where the files of the cluster are: programs, which stay, and everything of a running cluster, which doesn't.
pub(crate) struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// Returns the layout below the cache.
    pub(crate) fn new() -> Result<Self> {
        let folder = std::path::absolute(shell::cache()?.join("cluster")).context("FORESHORE_CACHE")?;
        // A node has these directories to itself, and so can't see what the machine has there.
        if ["/run", "/var/log"]
            .iter()
            .any(|hidden| folder.starts_with(hidden))
        {
            bail!(
                "FORESHORE_CACHE: found {}; allowed: a directory outside /run and /var/log",
                folder.display()
            );
        }
        Ok(Self { folder })
    }

    /// Directory of everything.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Directory of a running cluster.
    pub(crate) fn run(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// Held while somebody changes the cluster.
    pub(crate) fn lock(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// What runs.
    pub(crate) fn state(&self) -> PathBuf {
        self.run().join("state.json")
    }

    /// Directory of the logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.run().join("logs")
    }

    /// A component's log.
    pub(crate) fn log(&self, component: &str) -> PathBuf {
        self.logs().join(format!("{component}.log"))
    }

    /// A certificate, a key, or another file that proves who somebody is.
    pub(crate) fn pki(&self, file: &str) -> PathBuf {
        self.run().join("pki").join(file)
    }

    /// How somebody reaches the API server; `admin` may do everything.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.run().join(format!("{user}.kubeconfig"))
    }

    /// A component's configuration.
    pub(crate) fn config(&self, file: &str) -> PathBuf {
        self.run().join("config").join(file)
    }

    /// Directory with a directory for each node, named like it: what is on its disk.
    pub(crate) fn disks(&self) -> PathBuf {
        self.run().join("nodes")
    }

    /// A node's disk.
    pub(crate) fn disk(&self, machine: u8) -> PathBuf {
        self.disks().join(node(machine))
    }
}

/// Writes a file, and the directories above it.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}
