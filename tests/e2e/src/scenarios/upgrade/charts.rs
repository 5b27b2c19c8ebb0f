//! The charts as a later version would have them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::cluster::Cluster;

/// A version later than every other.
pub(super) const NEW: &str = "99.0.0";

/// Packages of both charts.
pub(super) struct Charts {
    definitions: String,
    operator: String,
    _folder: TempDir,
}

impl Charts {
    /// Packs both under a later version, and with definitions that are not those of now: the API server then ends every
    /// watch of their objects, as it does in an upgrade.
    pub(super) async fn later(cluster: &Cluster) -> Result<Self> {
        let folder = tempfile::tempdir().context("folder for the charts")?;
        let definitions = folder.path().join("foreshore-crds");
        copy(&cluster.root.join("charts/foreshore-crds"), &definitions)?;
        change(&definitions.join("templates"))?;
        Ok(Self {
            definitions: pack(cluster, &definitions, folder.path()).await?,
            operator: pack(cluster, &cluster.root.join("charts/foreshore"), folder.path()).await?,
            _folder: folder,
        })
    }

    /// The chart of the definitions.
    pub(super) fn definitions(&self) -> &str {
        &self.definitions
    }

    /// The chart of the operator.
    pub(super) fn operator(&self) -> &str {
        &self.operator
    }
}

/// Gives each kind one more short name.
fn change(templates: &Path) -> Result<()> {
    for file in files(templates)? {
        let Some(kind) = file
            .file_stem()
            .filter(|_| file.extension().is_some_and(|end| end == "yaml"))
        else {
            continue;
        };
        let text = std::fs::read_to_string(&file)?;
        let later = format!("    shortNames:\n    - later-{}\n", kind.to_string_lossy());
        let changed = text.replacen("    shortNames:\n", &later, 1);
        if changed == text {
            bail!("{}: no short names", file.display());
        }
        std::fs::write(&file, changed)?;
    }
    Ok(())
}

async fn pack(cluster: &Cluster, chart: &Path, folder: &Path) -> Result<String> {
    let (chart, folder) = (chart.to_string_lossy(), folder.to_string_lossy());
    let pack = [
        "package",
        &chart,
        "--version",
        NEW,
        "--app-version",
        NEW,
        "--destination",
        &folder,
    ];
    let said = cluster.helm(&pack).await?;
    // Successfully packaged chart and saved it to: FILE
    let (_, file) = said.trim().split_once(": ").with_context(|| said.clone())?;
    Ok(file.to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for path in files(from)? {
        let name = path.file_name().context("name of a file")?;
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else {
            std::fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries.map(|entry| Ok(entry?.path())).collect()
}
