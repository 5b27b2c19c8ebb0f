//! A Git repository that somebody commits to and Argo CD reads.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::process::Command;

/// The example, and the same in a namespace of its own.
const SOURCES: [&str; 2] = ["deploy/examples/bottling-line", "tests/gitops/plant"];
/// Folder of the repository that is the plant.
pub(crate) const FOLDER: &str = "plant";
/// Its branch.
pub(crate) const BRANCH: &str = "main";

/// A work tree, and the repository that it is pushed to.
pub(crate) struct Repository {
    tree: PathBuf,
    bare: PathBuf,
}

impl Repository {
    /// Makes one with these folders of the checkout.
    pub(crate) async fn new(checkout: &Path, folder: &Path) -> Result<Self> {
        let repository = Self {
            tree: folder.join("tree"),
            bare: folder.join("plant.git"),
        };
        for source in SOURCES {
            let to = repository.tree.join(source);
            fs::create_dir_all(&to)?;
            for entry in fs::read_dir(checkout.join(source)).with_context(|| source.to_owned())? {
                let entry = entry?;
                fs::copy(entry.path(), to.join(entry.file_name()))?;
            }
        }
        fs::create_dir_all(repository.plant())?;
        fs::create_dir_all(&repository.bare)?;
        git(&repository.bare, &["init", "--quiet", "--bare", "-b", BRANCH]).await?;
        git(&repository.tree, &["init", "--quiet", "-b", BRANCH]).await?;
        Ok(repository)
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("file://{}", self.bare.display())
    }

    /// The folder that is the plant, as it was committed last.
    pub(crate) fn plant(&self) -> PathBuf {
        self.tree.join(FOLDER)
    }

    /// Commits the example with these changes to it, and returns the commit.
    pub(crate) async fn commit(&self, message: &str, patches: &[Value]) -> Result<String> {
        let kustomization = json!({
            "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
            "resources": ["../tests/gitops/plant"], "patches": patches,
        });
        fs::write(
            self.plant().join("kustomization.yaml"),
            format!("{kustomization:#}\n"),
        )?;
        git(&self.tree, &["add", "--all"]).await?;
        git(&self.tree, &["commit", "--quiet", "--allow-empty", "-m", message]).await?;
        git(&self.tree, &["push", "--quiet", &self.url(), BRANCH]).await?;
        Ok(git(&self.tree, &["rev-parse", "HEAD"]).await?.trim().to_owned())
    }
}

/// Runs Git without anybody's settings, and returns what it printed.
async fn git(folder: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command
        .args(["-c", "user.name=plant", "-c", "user.email=plant@plant.example"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .kill_on_drop(true);
    let output = command.output().await.context("git did not start")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("git {}: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
