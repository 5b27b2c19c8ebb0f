//! `cargo xtask image`: the product's container image.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{arrows, shell};

mod elf;
pub(crate) mod oci;

/// Name of the image without its tag.
const NAME: &str = "localhost/foreshore";
/// User and group that a container runs as: nobody that a node knows.
const USER: u32 = 65532;
/// Largest image of a release build, in bytes.
pub(crate) const LARGEST: u64 = 60_000_000;
/// The certificate authorities of Debian's `ca-certificates`.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How to build the image, and where to write it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build profile of the program.
    #[arg(long, default_value = "release", value_parser = ["dev", "release"])]
    profile: String,
    /// Pack this program instead of building one.
    #[arg(long, conflicts_with = "profile")]
    program: Option<PathBuf>,
    /// The archive to write; without it `foreshore-PROFILE.oci.tar` in the target directory.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Builds the program and writes an image of it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let program = match &options.program {
        Some(program) => program.clone(),
        None => build(&options.profile)?,
    };
    let out = match &options.out {
        Some(out) => out.clone(),
        None => arrows::target_directory()?.join(format!("foreshore-{}.oci.tar", options.profile)),
    };
    let image = write(&program, env!("CARGO_PKG_VERSION"), &out)?;
    let size = fs::metadata(&out)
        .with_context(|| format!("read {}", out.display()))?
        .len();
    if options.profile == "release" && size > LARGEST {
        bail!(
            "{}: found {size} bytes; allowed: {LARGEST}, since it is fetched over slow links",
            out.display()
        );
    }
    println!("{} holds {}", out.display(), image.names.join(" and "));
    Ok(())
}

/// Writes an image of a program that is built already, and tells where.
pub(crate) fn of_program(program: &Path) -> Result<PathBuf> {
    let out = arrows::target_directory()?.join("foreshore-test.oci.tar");
    eprintln!("==> image of {}", program.display());
    write(program, env!("CARGO_PKG_VERSION"), &out)?;
    Ok(out)
}

/// A line of what cargo prints with `--message-format json`; of most lines all of this lacks.
#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

/// Builds the program and returns where cargo put it, which depends on its settings.
fn build(profile: &str) -> Result<PathBuf> {
    let mut build = shell::cargo(&["build", "--locked", "--bin", "foreshore", "--profile", profile]);
    build.args(["--message-format", "json-render-diagnostics"]);
    eprintln!("==> build foreshore ({profile})");
    executable(&shell::output(&mut build)?)
}

fn executable(messages: &str) -> Result<PathBuf> {
    let mut found = None;
    for line in messages.lines() {
        let message: Message =
            serde_json::from_str(line).with_context(|| format!("cargo build printed {line}"))?;
        found = message.executable.or(found);
    }
    found.context("cargo build named no executable")
}

/// Writes an image that holds a program, what it needs to trust the world, and nothing else: no shell, no libraries.
fn write(program: &Path, version: &str, out: &Path) -> Result<oci::Image> {
    let architecture = elf::static_program(program)?;
    if !Path::new(AUTHORITIES).is_file() {
        bail!("found no {AUTHORITIES}; install ca-certificates");
    }
    let stripped = out.with_extension("program");
    strip(program, architecture, &stripped)?;
    let file = |path: &str, content: oci::Content, mode: u32| oci::File {
        path: path.to_owned(),
        content,
        mode,
    };
    let passwd = format!("root:x:0:0::/:\nforeshore:x:{USER}:{USER}::/:\n");
    let group = format!("root:x:0:\nforeshore:x:{USER}:\n");
    let image = oci::Image {
        names: vec![format!("{NAME}:dev"), format!("{NAME}:{version}")],
        architecture: architecture.to_owned(),
        entrypoint: vec!["/foreshore".to_owned()],
        user: format!("{USER}:{USER}"),
        labels: BTreeMap::from([
            (
                "org.opencontainers.image.title".to_owned(),
                "foreshore".to_owned(),
            ),
            ("org.opencontainers.image.version".to_owned(), version.to_owned()),
            (
                "org.opencontainers.image.licenses".to_owned(),
                env!("CARGO_PKG_LICENSE").to_owned(),
            ),
        ]),
        files: vec![
            file("/foreshore", oci::Content::From(stripped.clone()), 0o755),
            file(AUTHORITIES, oci::Content::From(PathBuf::from(AUTHORITIES)), 0o644),
            file("/etc/passwd", oci::Content::Bytes(passwd.into_bytes()), 0o644),
            file("/etc/group", oci::Content::Bytes(group.into_bytes()), 0o644),
            file("/tmp", oci::Content::Directory, 0o1777),
        ],
    };
    let written = oci::write(&image, out);
    fs::remove_file(&stripped).with_context(|| format!("remove {}", stripped.display()))?;
    written?;
    Ok(image)
}

/// Copies a program without its symbols.
fn strip(program: &Path, architecture: &str, out: &Path) -> Result<()> {
    let tool = match architecture {
        ours if ours == oci::architecture() => "strip",
        "arm64" => "aarch64-linux-gnu-strip",
        _ => "x86_64-linux-gnu-strip",
    };
    let mut strip = Command::new(tool);
    strip.arg("-o").arg(out).arg(program).stdin(Stdio::null());
    let status = strip
        .status()
        .with_context(|| format!("{tool} did not start; install binutils"))?;
    if !status.success() {
        bail!("{strip:?} ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_executable_from_what_cargo_prints() {
        let messages = r#"{"reason":"compiler-artifact","executable":null}
{"reason":"compiler-artifact","executable":"/target/some/dev/foreshore"}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(
            executable(messages).unwrap(),
            Path::new("/target/some/dev/foreshore")
        );
        assert!(executable("").unwrap_err().to_string().contains("no executable"));
    }
}
