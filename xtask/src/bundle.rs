//! `cargo xtask bundle`: everything that an installation without internet needs, in one archive.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{
    charts::{self, ProgramOptions, Programs},
    shell,
};

/// The guide, which is the archive's README too.
const GUIDE: &str = "docs/guide/air-gapped.md";

/// Folders of the repository that are in the archive as they are, and their names there.
const FOLDERS: &[(&str, &str)] = &[
    ("deploy/alerts", "alerts"),
    ("deploy/dashboards", "dashboards"),
    ("deploy/examples", "examples"),
    ("docs/runbooks", "runbooks"),
];

/// What to pack.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    programs: ProgramOptions,
    /// The image, as `cargo xtask image` writes it.
    #[arg(long)]
    image: PathBuf,
    /// The archive to write.
    #[arg(long, default_value = "foreshore-bundle.tar")]
    out: PathBuf,
}

/// Packs, and says what came of it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let scratch = Scratch::new()?;
    let folder = gather(&options.programs.find()?, &options.image, &scratch.0)?;
    pack(&folder, &options.out)?;
    let bytes = fs::metadata(&options.out)?.len();
    println!("{} holds {} MB", options.out.display(), bytes / 1_000_000);
    Ok(())
}

/// Puts everything into one folder below `into`, and returns it.
fn gather(programs: &Programs, image: &Path, into: &Path) -> Result<PathBuf> {
    is_image(image)?;
    let version = env!("CARGO_PKG_VERSION");
    let folder = into.join(format!("foreshore-{version}"));
    fs::create_dir_all(folder.join("kustomize"))?;
    fs::copy(image, folder.join("foreshore.tar")).with_context(|| format!("copy {}", image.display()))?;
    charts::package(&programs.helm, &folder)?;
    // Written out: the base of the repository refers to definitions outside of its folder.
    fs::write(
        folder.join("kustomize/foreshore.yaml"),
        charts::kustomize_base(&programs.kubectl)?,
    )?;
    fs::write(
        folder.join("kustomize/kustomization.yaml"),
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n- foreshore.yaml\n",
    )?;
    for (from, to) in FOLDERS {
        copy(&shell::root().join(from), &folder.join(to))?;
    }
    let guide = fs::read_to_string(shell::root().join(GUIDE)).context(GUIDE)?;
    fs::write(folder.join("README.md"), guide.replace("VERSION", version))?;
    let mut sums = String::new();
    sum(&folder, &folder, &mut sums)?;
    fs::write(folder.join("SHA256SUMS"), sums)?;
    Ok(folder)
}

/// Fails when a file is no archive of an OCI image, which would be noticed beside the machine only.
fn is_image(image: &Path) -> Result<()> {
    let listing = shell::command("tar", &["--list", "--file"])
        .arg(absolute(image)?)
        .output()
        .context("tar did not start")?;
    let names = String::from_utf8_lossy(&listing.stdout);
    let holds = |name: &str| names.lines().any(|line| line.trim_start_matches("./") == name);
    if !listing.status.success() || !holds("oci-layout") || !holds("index.json") {
        bail!("{} is no archive of an OCI image", image.display());
    }
    Ok(())
}

/// An archive of the folder under its own name. Times and owners are those of nobody.
fn pack(folder: &Path, out: &Path) -> Result<()> {
    let (parent, name) = folder
        .parent()
        .zip(folder.file_name())
        .context("a folder without a name")?;
    let mut tar = shell::command(
        "tar",
        &[
            "--create",
            "--sort=name",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "--mtime=@0",
        ],
    );
    tar.arg("--file")
        .arg(absolute(out)?)
        .arg("--directory")
        .arg(parent)
        .arg(name);
    shell::run("pack", &mut tar)
}

/// Lines as sha256sum reads them, by name.
fn sum(folder: &Path, root: &Path, sums: &mut String) -> Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sum(&path, root, sums)?;
        } else {
            let digest = hex::encode(Sha256::digest(fs::read(&path)?));
            let name = path.strip_prefix(root)?.display();
            sums.push_str(&format!("{digest}  {name}\n"));
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

/// A folder that goes with its owner.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("foreshore-bundle-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}

/// Packs a bundle around an image without layers, unpacks it, and holds it against what was packed.
pub(crate) fn check(programs: &Programs) -> Result<()> {
    let scratch = Scratch::new()?;
    let layout = scratch.0.join("layout");
    fs::create_dir_all(&layout)?;
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
    let image = scratch.0.join("image.tar");
    let archive = |names: &[&str]| {
        let mut tar = shell::command("tar", &["--create", "--file"]);
        tar.arg(&image).arg("--directory").arg(&layout).args(names);
        charts::succeed(tar)
    };
    archive(&["oci-layout"])?;
    if is_image(&image).is_ok() {
        bail!("an archive without an index passes for an image");
    }
    fs::write(
        layout.join("index.json"),
        "{\"schemaVersion\":2,\"manifests\":[]}",
    )?;
    archive(&["oci-layout", "index.json"])?;

    let packed = scratch.0.join("bundle.tar");
    let folder = gather(programs, &image, &scratch.0.join("packed"))?;
    pack(&folder, &packed)?;
    let unpacked = scratch.0.join("unpacked");
    fs::create_dir_all(&unpacked)?;
    let mut unpack = shell::command("tar", &["--extract", "--file"]);
    unpack.arg(&packed).arg("--directory").arg(&unpacked);
    charts::succeed(unpack)?;
    let bundle = unpacked.join(folder.file_name().context("a folder without a name")?);
    let mut sums = shell::command("sha256sum", &["--check", "--strict", "--quiet", "SHA256SUMS"]);
    sums.current_dir(&bundle);
    charts::succeed(sums)?;
    charts::same_when_packaged(programs, &bundle)
}
