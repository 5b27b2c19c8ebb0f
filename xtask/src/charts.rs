//! The charts: what of them is generated, and whether what they render is sound.
//!
//! | part | what |
//! |---|---|
//! | [`definitions`] | the CRDs as templates, and the list of kinds, from `crds/manifests` |
//! | [`render`] | Helm: lint, snapshots, the Kustomize base |
//! | [`rules`] | what every rendered object keeps |
//! | [`values`] | values, their schema and their uses agree; wrong values are refused with a message that helps |
//! | [`size`] | a release fits its Secret |
//! | [`promql`] | alerts are raised by what should raise them; dashboards ask in PromQL |
//! | [`kustomize`] | the Kustomize base, the example and the Argo CD component build |

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{bundle, cluster, generate::Generated, shell, tools};

mod definitions;
mod kustomize;
mod promql;
mod render;
mod rules;
mod size;
mod values;

pub(crate) use render::succeed;

/// The chart of the operator.
const OPERATOR: &str = "charts/foreshore";
/// The chart of the definitions.
const DEFINITIONS: &str = "charts/foreshore-crds";

/// What to do with the charts.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    programs: ProgramOptions,
    /// Write what is rendered from the charts before checking it.
    #[arg(long)]
    write: bool,
}

/// Which programs render.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ProgramOptions {
    /// Helm, of version 3.
    #[arg(long, env = "FORESHORE_HELM")]
    helm: Option<PathBuf>,
    /// kubectl.
    #[arg(long, env = "FORESHORE_KUBECTL")]
    kubectl: Option<PathBuf>,
}

impl ProgramOptions {
    /// The programs that are named, or else those of the path, or else those of the test cluster.
    pub(crate) fn find(&self) -> Result<Programs> {
        let find = |named: &Option<PathBuf>, name: &str| -> Result<PathBuf> {
            match named {
                Some(program) => Ok(program.clone()),
                None if shell::is_installed(name) => Ok(PathBuf::from(name)),
                // That of the test cluster, built the first time that it is needed.
                None => Ok(cluster::programs_folder()?.join(name)),
            }
        };
        Ok(Programs {
            helm: find(&self.helm, "helm")?,
            kubectl: find(&self.kubectl, "kubectl")?,
        })
    }
}

/// The programs that render.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) helm: PathBuf,
    pub(crate) kubectl: PathBuf,
}

impl Programs {
    /// Those of the test cluster.
    pub(crate) fn of_cluster() -> Result<Self> {
        let folder = cluster::programs_folder()?;
        Ok(Self {
            helm: folder.join("helm"),
            kubectl: folder.join("kubectl"),
        })
    }
}

/// `cargo xtask charts`: the charts alone, without a build of the product.
pub(crate) fn run(options: &Options) -> Result<()> {
    let programs = options.programs.find()?;
    let manifests = committed_manifests()?;
    if options.write {
        write(generated(&manifests)?)?;
        write(rendered(&programs.helm)?)?;
    } else {
        compare(generated(&manifests)?)?;
    }
    check(&programs)
}

/// Files of the charts that are made of other files: the CRDs' templates, and copies of alerts and dashboards, since a
/// chart reads no file outside of its folder. `manifests` are paths and texts of the definitions.
pub(crate) fn generated(manifests: &[(String, String)]) -> Result<Vec<Generated>> {
    let mut files = definitions::generated(manifests)?;
    for folder in ["alerts", "dashboards"] {
        let from = shell::root().join("deploy").join(folder);
        for (name, text) in texts(&from)? {
            files.push(Generated {
                path: shell::root().join(OPERATOR).join("files").join(folder).join(name),
                text,
            });
        }
    }
    Ok(files)
}

/// Files that Helm renders from the charts as they lie on the disk: snapshots and the Kustomize base.
pub(crate) fn rendered(helm: &Path) -> Result<Vec<Generated>> {
    render::generated(helm)
}

/// Fails when a chart is not sound, or renders something else than what is committed.
pub(crate) fn check(programs: &Programs) -> Result<()> {
    eprintln!("==> charts");
    let helm = &programs.helm;
    render::lint(helm)?;
    compare(rendered(helm)?)?;
    definitions::check(helm)?;
    rules::check(helm)?;
    values::check(helm)?;
    size::check(helm)?;
    kustomize::check(&programs.kubectl)?;
    promql::check(&tools::promtool()?)?;
    bundle::check(programs)
}

/// Writes both charts as archives into a folder.
pub(crate) fn package(helm: &Path, into: &Path) -> Result<()> {
    for chart in [DEFINITIONS, OPERATOR] {
        let mut package = shell::command(&helm.to_string_lossy(), &["package", chart, "--destination"]);
        package.arg(into);
        succeed(package)?;
    }
    Ok(())
}

/// The Kustomize base as one text.
pub(crate) fn kustomize_base(kubectl: &Path) -> Result<String> {
    kustomize::text(kubectl, kustomize::BASE)
}

/// Fails when what was packaged renders something else than the checkout.
pub(crate) fn same_when_packaged(programs: &Programs, bundle: &Path) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    for (chart, name) in [(DEFINITIONS, "foreshore-crds"), (OPERATOR, "foreshore")] {
        let archive = bundle.join(format!("{name}-{version}.tgz")).display().to_string();
        if render::template(&programs.helm, &archive, &[])? != render::template(&programs.helm, chart, &[])? {
            bail!("the packaged {chart} renders something else");
        }
    }
    let folder = bundle.join("kustomize").display().to_string();
    if kustomize::text(&programs.kubectl, &folder)? != kustomize_base(&programs.kubectl)? {
        bail!("the packaged kustomization builds something else");
    }
    Ok(())
}

/// Writes files that differ.
pub(crate) fn write(files: Vec<Generated>) -> Result<()> {
    for Generated { path, text } in files {
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            continue;
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

/// Fails when a committed file differs.
pub(crate) fn compare(files: Vec<Generated>) -> Result<()> {
    let different: Vec<String> = files
        .into_iter()
        .filter(|Generated { path, text }| fs::read_to_string(path).map_or(true, |old| old != *text))
        .map(|file| file.path.display().to_string())
        .collect();
    if different.is_empty() {
        return Ok(());
    }
    bail!(
        "generated files differ, run `cargo xtask generate`: {}",
        different.join(", ")
    )
}

/// The definitions as they are committed: paths and texts.
fn committed_manifests() -> Result<Vec<(String, String)>> {
    let manifests = texts(&shell::root().join(definitions::FOLDER))?;
    Ok(manifests
        .into_iter()
        .map(|(name, text)| (format!("{}/{name}", definitions::FOLDER), text))
        .collect())
}

/// Names and texts of the files in a folder, by name.
fn texts(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_file() {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            files.push((name, text));
        }
    }
    files.sort();
    Ok(files)
}
