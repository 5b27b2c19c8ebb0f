//! Images of the nodes. Nothing is pulled: what a pod needs is given to each node beforehand.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{binary::Programs, layout::Layout, machine::Machine};
use crate::image::oci;

/// The image of each pod's first process, which holds the pod's namespaces.
pub(crate) const PAUSE: &str = "localhost/pause:1";

/// Writes the image of the pods' first process: the one that machines have too.
pub(crate) fn write_pause(layout: &Layout, programs: &Programs) -> Result<PathBuf> {
    let image = oci::Image {
        names: vec![PAUSE.to_owned()],
        architecture: oci::architecture(),
        entrypoint: vec!["/pause".to_owned()],
        user: "65535:65535".to_owned(),
        labels: BTreeMap::new(),
        files: vec![oci::File {
            path: "/pause".to_owned(),
            content: oci::Content::From(programs.init()),
            mode: 0o755,
        }],
    };
    let out = layout.config("pause.tar");
    if let Some(directory) = out.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    oci::write(&image, &out)?;
    Ok(out)
}

/// Gives an image to a node.
pub(crate) fn load(machine: &Machine<'_>, archive: &Path) -> Result<()> {
    // As standard input, since the node does not see every directory of this machine.
    let file = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let mut import = machine.command(Path::new("ctr"));
    let output = import
        .args(["--namespace", "k8s.io", "images", "import", "-"])
        .stdin(file)
        .output()
        .with_context(|| format!("{import:?} did not start"))?;
    if !output.status.success() {
        bail!(
            "{} is not taken: {}",
            archive.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
