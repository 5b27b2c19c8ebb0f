//! What the tests need beyond the Rust toolchain: named, installed when missing, kept outside the checkout.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Debian packages by the program that shows that they are installed.
const DEBIAN: &[(&str, &str)] = &[
    ("mosquitto", "mosquitto"),
    ("mosquitto_pub", "mosquitto-clients"),
    ("cmake", "cmake"),
    ("lighttpd", "lighttpd"),
];

/// Python peers that others wrote, each pinned to the version that the tests were written against.
const PYTHON: &[&str] = &[
    "asyncua==2.1.0",
    "ipycam==1.3.0",
    "paho-mqtt==2.1.0",
    "onvif-zeep-async==4.2.1",
];

/// Node.js peers that others wrote.
const NODE: &[&str] = &["node-opcua@2.186.4"];

/// Version of cargo-deny that `deny.toml` was written for.
const CARGO_DENY: &str = "0.20.2";

/// Installs the Debian packages that are missing.
pub(crate) fn debian() -> Result<()> {
    let missing: Vec<&str> = DEBIAN
        .iter()
        .filter(|(program, _)| !installed_anywhere(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !shell::is_installed("apt-get") {
        bail!(
            "these programs are needed, please install them: {}",
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
        shell::command("apt-get", &arguments).env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn installed_anywhere(program: &str) -> bool {
    shell::is_installed(program) || PathBuf::from("/usr/sbin").join(program).is_file()
}

/// Makes the Python environment of the test peers and returns its interpreter.
pub(crate) fn python() -> Result<PathBuf> {
    let environment = shell::cache()?.join("python");
    let stamp = environment.join(".installed");
    let interpreter = environment.join("bin/python");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == PYTHON.join("\n")) {
        return Ok(interpreter);
    }
    let directory = environment.to_string_lossy().into_owned();
    shell::run(
        "python environment",
        &mut shell::command("python3", &["-m", "venv", &directory]),
    )?;
    let mut arguments = vec!["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    arguments.extend(PYTHON);
    shell::run(
        "python peers",
        &mut shell::command(&interpreter.to_string_lossy(), &arguments),
    )?;
    fs::write(&stamp, PYTHON.join("\n")).context("python environment: stamp")?;
    Ok(interpreter)
}

/// Installs the Node.js peers and returns the directory that holds `node_modules`.
pub(crate) fn node() -> Result<PathBuf> {
    let directory = shell::cache()?.join("node");
    let stamp = directory.join(".installed");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == NODE.join("\n")) {
        return Ok(directory);
    }
    fs::create_dir_all(&directory).context("node peers: directory")?;
    let prefix = directory.to_string_lossy().into_owned();
    let mut arguments = vec![
        "install",
        "--no-audit",
        "--no-fund",
        "--silent",
        "--prefix",
        &prefix,
    ];
    arguments.extend(NODE);
    shell::run("node peers", &mut shell::command("npm", &arguments))?;
    fs::write(&stamp, NODE.join("\n")).context("node peers: stamp")?;
    Ok(directory)
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

/// Builds the judge of manifests that is made of Kubernetes' own libraries, and returns the program.
pub(crate) fn oracle() -> Result<PathBuf> {
    let program = shell::cache()?.join("oracle");
    let path = program.to_string_lossy().into_owned();
    let mut build = shell::command("go", &["build", "-o", &path, "."]);
    build.current_dir(shell::root().join("tests/oracle"));
    shell::run("build the oracle", &mut build)?;
    Ok(program)
}
