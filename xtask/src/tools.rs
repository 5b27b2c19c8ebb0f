//! What the tests need beyond the Rust toolchain: named, installed when missing, kept outside the checkout.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Debian packages of the tests, by the program that shows that they are installed.
pub(crate) const TESTS: &[(&str, &str)] = &[
    ("faketime", "faketime"),
    ("lighttpd", "lighttpd"),
    // The interpreter of Argo CD's health checks.
    ("lua5.4", "lua5.4"),
    ("mosquitto", "mosquitto"),
    ("mosquitto_pub", "mosquitto-clients"),
];

/// Debian packages of the test cluster, by the program that shows that they are installed.
pub(crate) const CLUSTER: &[(&str, &str)] = &[
    ("/usr/lib/cni/ptp", "containernetworking-plugins"),
    ("containerd", "containerd"),
    ("gcc", "gcc"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("mount", "mount"),
    ("runc", "runc"),
    ("sysctl", "procps"),
    ("unshare", "util-linux"),
];

/// Debian packages to build for arm64 and to start what was built, by a file that shows that they are installed.
pub(crate) const ARM64: &[(&str, &str)] = &[
    ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    ("/usr/aarch64-linux-gnu/lib/libc.a", "libc6-dev-arm64-cross"),
    ("qemu-aarch64", "qemu-user"),
];

/// Version of cargo-deny that `deny.toml` was written for.
const CARGO_DENY: &str = "0.20.2";

/// Installs those Debian packages that are missing.
pub(crate) fn debian(packages: &[(&str, &'static str)]) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|(program, _)| !installed_anywhere(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !shell::is_installed("apt-get") || !shell::is_root() {
        bail!(
            "these packages are needed, and only root can install them, on Debian; please do: {}",
            missing.join(", ")
        );
    }
    eprintln!("    installing from Debian: {}", missing.join(", "));
    shell::run(
        "apt-get update",
        shell::command("apt-get", &["update", "-qq"]).env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(&missing);
    shell::run(
        "apt-get install",
        // At this run level no package starts its service: nothing here wants one.
        shell::command("apt-get", &arguments)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("RUNLEVEL", "1"),
    )
}

/// Fails, saying what is missing, where no file system in user space can be had: the broker's durability is tested on one
/// that loses its power.
pub(crate) fn fuse() -> Result<()> {
    let device = fs::File::options().read(true).write(true).open("/dev/fuse");
    device.map(drop).context(
        "/dev/fuse can't be opened: please load the kernel's module fuse, and run the tests as root with CAP_SYS_ADMIN",
    )
}

fn installed_anywhere(program: &str) -> bool {
    shell::is_installed(program) || PathBuf::from("/usr/sbin").join(program).is_file()
}

/// Builds cargo-deny into the cache and returns the program.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    let directory = shell::cache()?.join(format!("cargo-deny-{CARGO_DENY}"));
    let program = directory.join("bin/cargo-deny");
    if !program.is_file() {
        let root = directory.to_string_lossy().into_owned();
        let target = shell::cache()?.join("target-tools");
        let arguments = [
            "install",
            "cargo-deny",
            "--locked",
            "--version",
            CARGO_DENY,
            "--root",
            &root,
            "--debug",
            "--quiet",
        ];
        shell::run(
            "build cargo-deny",
            shell::cargo(&arguments).env("CARGO_TARGET_DIR", &target),
        )?;
        fs::remove_dir_all(&target).context("cargo-deny: build directory")?;
    }
    Ok(program)
}

/// Unpacks Prometheus' judge of rules from its Debian package, and returns the program. The package is not installed: it
/// brings a server and what its pages need.
pub(crate) fn promtool() -> Result<PathBuf> {
    if shell::is_installed("promtool") {
        return Ok(PathBuf::from("promtool"));
    }
    let folder = shell::cache()?.join("prometheus");
    unpacked(&folder, &["prometheus"], &[]).context("promtool is needed, please install Prometheus")?;
    Ok(folder.join("usr/bin/promtool"))
}

/// Unpacks Debian packages into a folder, unless they are there already; none of them is installed.
///
/// `architectures` are those of the packages, where they are not all of this machine's.
pub(crate) fn unpacked(folder: &Path, packages: &[&str], architectures: &[&str]) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if !shell::is_installed("apt-get") {
        bail!("found no apt-get to fetch {} with", packages.join(", "));
    }
    let part = folder.with_extension("part");
    if part.is_dir() {
        // Of a run that was interrupted.
        fs::remove_dir_all(&part).with_context(|| format!("remove {}", part.display()))?;
    }
    let (lists, files, root) = (part.join("lists"), part.join("files"), part.join("root"));
    for made in [&lists.join("partial"), &files, &root] {
        fs::create_dir_all(made).with_context(|| format!("create {}", made.display()))?;
    }
    let apt = |what: &[&str]| {
        let mut command = shell::command("apt-get", &["-qq", "-o", "APT::Sandbox::User=root"]);
        // Lists of its own: the system's are not told of other architectures.
        command
            .arg("-o")
            .arg(format!("Dir::State::lists={}", lists.display()))
            .args(["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]);
        for architecture in architectures {
            command
                .arg("-o")
                .arg(format!("APT::Architectures::={architecture}"));
        }
        command.args(what).current_dir(&files);
        command
    };
    shell::run("apt-get update", &mut apt(&["update"]))?;
    shell::run(
        &format!("apt-get download {}", packages.join(" ")),
        &mut apt(&[&["download"], packages].concat()),
    )?;
    for entry in fs::read_dir(&files)? {
        let mut unpack = shell::command("dpkg", &["--extract"]);
        unpack.arg(entry?.path()).arg(&root);
        shell::output(&mut unpack)?;
    }
    fs::rename(&root, folder).with_context(|| format!("create {}", folder.display()))?;
    fs::remove_dir_all(&part).with_context(|| format!("remove {}", part.display()))
}

/// Builds the judge of manifests that is made of Kubernetes' own libraries, and returns the program.
pub(crate) fn oracle() -> Result<PathBuf> {
    let program = shell::cache()?.join("oracle");
    let path = program.to_string_lossy().into_owned();
    let mut build = shell::command("go", &["build", "-o", &path, "."]);
    build.current_dir(shell::root().join("tests/oracle"));
    shell::run("build the oracle", &mut build)?;
    Ok(program)
}
