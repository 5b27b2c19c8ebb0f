//! The programs of the cluster, built from `tests/cluster` when that changes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::layout::Layout;
use crate::{cached, shell};

/// Name of the program that is the first process of a machine.
pub(crate) const INIT: &str = "foreshore-init";
/// Beginning of the names of the directories that hold programs.
const FOLDER: &str = "bin-";

/// Where the programs are.
pub(crate) struct Programs {
    /// Their directory; `kubectl` and `helm` are there under these names.
    pub(crate) folder: PathBuf,
}

impl Programs {
    /// All components of Kubernetes.
    pub(crate) fn kubernetes(&self) -> PathBuf {
        self.folder.join("kubernetes")
    }

    /// The first process of machines and pods.
    pub(crate) fn init(&self) -> PathBuf {
        self.folder.join(INIT)
    }
}

/// Builds the programs unless those of these sources are there, and removes older ones.
pub(crate) fn build(layout: &Layout) -> Result<Programs> {
    let sources = shell::root().join("tests/cluster");
    let mut files = cached::go_files(&sources)?;
    files.push(sources.join("init/init.c"));
    let folder = cached::folder(layout.folder(), FOLDER, &files, |out| compile(&sources, out))?;
    Ok(Programs { folder })
}

fn compile(sources: &Path, out: &Path) -> Result<()> {
    if !shell::is_installed("go") {
        bail!("found no Go; install one that tests/cluster/go.mod allows");
    }
    let modules = fs::read_to_string(sources.join("go.mod")).context("read tests/cluster/go.mod")?;
    eprintln!(
        "    The cluster's programs are built; the first time that takes some ten minutes on two cores."
    );
    let go = |what: &str, name: &str, flags: String, package: &str| {
        let out = out.join(name);
        let mut build = shell::command("go", &["build", "-trimpath", "-ldflags", &flags, "-o"]);
        build.arg(out).arg(package).current_dir(sources);
        shell::run(what, &mut build)
    };
    go("build Kubernetes", "kubernetes", kubernetes_flags(&modules)?, ".")?;
    go(
        "build Helm",
        "helm",
        helm_flags(&modules)?,
        "helm.sh/helm/v3/cmd/helm",
    )?;
    let mut init = shell::command("gcc", &["-static", "-Os", "-s", "-Wall", "-Wextra", "-o"]);
    init.arg(out.join(INIT)).arg(sources.join("init/init.c"));
    shell::run("build the first process", &mut init)?;
    // So that what runs in the cluster's network finds it by its usual name.
    std::os::unix::fs::symlink("kubernetes", out.join("kubectl")).context("link kubectl")
}

/// What makes each component say its version, as a release build does: charts and clients ask for it.
fn kubernetes_flags(modules: &str) -> Result<String> {
    let version = version(modules, "k8s.io/kubernetes")?;
    let (major, minor) = major_minor(version)?;
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [
            ("gitVersion", version),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
        ] {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    Ok(flags)
}

/// What makes Helm say its version, and the version of the cluster where it is asked without one.
fn helm_flags(modules: &str) -> Result<String> {
    let (major, minor) = major_minor(version(modules, "k8s.io/kubernetes")?)?;
    let helm = version(modules, "helm.sh/helm/v3")?;
    let mut flags = format!("-s -w -X helm.sh/helm/v3/internal/version.version={helm}");
    for package in ["pkg/chartutil", "pkg/lint/rules"] {
        flags.push_str(&format!(" -X helm.sh/helm/v3/{package}.k8sVersionMajor={major}"));
        flags.push_str(&format!(" -X helm.sh/helm/v3/{package}.k8sVersionMinor={minor}"));
    }
    Ok(flags)
}

/// The version of a module that `go.mod` requires, with its `v`.
fn version<'a>(modules: &'a str, module: &str) -> Result<&'a str> {
    modules
        .lines()
        .find_map(|line| {
            let mut words = line.split_whitespace().skip_while(|word| *word == "require");
            (words.next() == Some(module)).then(|| words.next()).flatten()
        })
        .filter(|version| version.starts_with('v'))
        .with_context(|| format!("tests/cluster/go.mod names no version of {module}"))
}

fn major_minor(version: &str) -> Result<(&str, &str)> {
    let mut numbers = version.trim_start_matches('v').split('.');
    numbers
        .next()
        .zip(numbers.next())
        .with_context(|| format!("found version {version:?}; allowed: one such as v1.34.4"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULES: &str = "module foreshore.dev/tests/cluster\n\nrequire (\n\tk8s.io/kubernetes v1.34.4\n)\n\
        require (\n\thelm.sh/helm/v3 v3.19.5 // indirect\n)\n\
        replace (\n\tk8s.io/kubectl => k8s.io/kubectl v0.34.4\n)\n";

    #[test]
    fn reads_versions_from_the_module_file() {
        assert_eq!(version(MODULES, "k8s.io/kubernetes").unwrap(), "v1.34.4");
        assert_eq!(version(MODULES, "helm.sh/helm/v3").unwrap(), "v3.19.5");
        let error = version(MODULES, "k8s.io/kubectl").unwrap_err().to_string();
        assert_eq!(error, "tests/cluster/go.mod names no version of k8s.io/kubectl");
    }

    #[test]
    fn links_the_version_in() {
        let flags = kubernetes_flags(MODULES).unwrap();
        assert!(
            flags.contains("-X k8s.io/component-base/version.gitVersion=v1.34.4"),
            "{flags}"
        );
        assert!(
            flags.contains("-X k8s.io/client-go/pkg/version.gitMinor=34"),
            "{flags}"
        );
        let flags = helm_flags(MODULES).unwrap();
        assert!(flags.contains("version.version=v3.19.5"), "{flags}");
        assert!(flags.contains("pkg/chartutil.k8sVersionMinor=34"), "{flags}");
    }

    #[test]
    fn the_module_file_names_what_the_build_asks_for() {
        let modules = fs::read_to_string(shell::root().join("tests/cluster/go.mod")).unwrap();
        kubernetes_flags(&modules).unwrap();
        helm_flags(&modules).unwrap();
    }
}
