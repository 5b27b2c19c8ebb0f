//! Argo CD, built from `tests/gitops/controller`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{cached, shell};

/// Kinds of Argo CD that the scenario has, by the files of their definitions.
const DEFINITIONS: [&str; 2] = ["application-crd.yaml", "appproject-crd.yaml"];

/// Returns the folder of the programs and of the definitions that go with them; builds them unless they are there.
pub(crate) fn build() -> Result<PathBuf> {
    let module = shell::root().join("tests/gitops/controller");
    let sources = cached::go_files(&module)?;
    cached::folder(&shell::cache()?, "argocd-", &sources, |out| compile(&module, out))
}

fn compile(module: &Path, out: &Path) -> Result<()> {
    if !shell::is_installed("go") {
        bail!("found no Go; install one that tests/gitops/controller/go.mod allows");
    }
    // With the flags of the cluster's programs, so that what both link is compiled once.
    let mut build = shell::command("go", &["build", "-trimpath", "-ldflags", "-s -w", "-o"]);
    build.arg(out.join("argocd")).arg(".").current_dir(module);
    shell::run("build Argo CD", &mut build)?;
    // The server that renders calls it by this name.
    symlink("argocd", out.join("kustomize")).context("link kustomize")?;

    let mut list = shell::command("go", &["list", "-m", "-f", "{{.Dir}}"]);
    list.arg("github.com/argoproj/argo-cd/v3").current_dir(module);
    let source = shell::output(&mut list)?;
    for name in DEFINITIONS {
        let definition = Path::new(source.trim()).join("manifests/crds").join(name);
        let text = fs::read(&definition).with_context(|| format!("read {}", definition.display()))?;
        fs::write(out.join(name), text).with_context(|| format!("write {name}"))?;
    }
    Ok(())
}
