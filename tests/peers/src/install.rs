//! Installs peers into the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use ring::digest;

/// A Python interpreter that has every package of `requirements.txt`.
///
/// # Panics
/// When it can't be installed.
#[must_use]
pub fn python() -> PathBuf {
    let requirements = folder().join("requirements.txt");
    let asked = fs::read(&requirements).expect("the list of packages can be read");
    let environment = installed("python", &asked, |environment| {
        run(Command::new("python3").args(["-m", "venv"]).arg(environment));
        run(Command::new(environment.join("bin/python"))
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "-r",
            ])
            .arg(&requirements));
    });
    environment.join("bin/python")
}

/// A folder with the `node_modules` of `package.json`: the working directory of scripts for Node.
///
/// # Panics
/// When they can't be installed.
#[must_use]
pub fn node() -> PathBuf {
    let package = folder().join("package.json");
    let asked = fs::read(&package).expect("the list of packages can be read");
    installed("node", &asked, |environment| {
        fs::create_dir_all(environment).expect("the cache can be written");
        fs::copy(&package, environment.join("package.json")).expect("the cache can be written");
        run(Command::new("npm")
            .args([
                "install",
                "--no-package-lock",
                "--no-audit",
                "--no-fund",
                "--silent",
            ])
            .current_dir(environment));
    })
}

/// The mock camera of the crate oxvif: the example `mock_server`, compiled at its first use.
///
/// It is no dependency of a test, since it would bring another random number generator, another TLS and their C code into
/// this workspace.
///
/// # Panics
/// When it can't be compiled.
#[must_use]
pub fn oxvif_camera() -> PathBuf {
    const VERSION: &str = "0.17.0";
    let environment = installed("oxvif", VERSION.as_bytes(), |environment| {
        let target = environment.join("target");
        run(
            Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
                .args([
                    "install",
                    "oxvif",
                    "--version",
                    VERSION,
                    "--locked",
                    "--quiet",
                    "--debug",
                ])
                .args(["--example", "mock_server", "--features", "mock-server", "--root"])
                .arg(environment)
                .env("CARGO_TARGET_DIR", &target)
                .env("CARGO_PROFILE_DEV_DEBUG", "0"),
        );
        fs::remove_dir_all(&target).expect("the cache can be written");
    });
    environment.join("bin/mock_server")
}

/// A client of the SDK of Azure IoT Operations in Go: the program of `aio/`, compiled at its first use. Its one argument is
/// the port of a broker on the loopback address.
///
/// # Panics
/// When it can't be compiled.
#[must_use]
pub fn aio_client() -> PathBuf {
    let source = folder().join("aio");
    let asked = ["go.mod", "go.sum", "main.go"]
        .map(|file| fs::read(source.join(file)).expect("the program can be read"))
        .concat();
    let environment = installed("aio", &asked, |environment| {
        run(Command::new("go")
            .args(["build", "-o"])
            .arg(environment.join("client"))
            .arg(".")
            .current_dir(&source));
    });
    environment.join("client")
}

/// The path of a script in `scripts/`.
#[must_use]
pub fn script(name: &str) -> PathBuf {
    folder().join("scripts").join(name)
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of what is asked for; installed under a lock, since tests of several crates may come at once.
fn installed(kind: &str, asked: &[u8], install: impl FnOnce(&Path)) -> PathBuf {
    let name = hex::encode(&digest::digest(&digest::SHA256, asked).as_ref()[..6]);
    let cache = std::env::var_os("FORESHORE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("a home directory")).join(".cache/foreshore"),
        PathBuf::from,
    );
    let environment = cache.join(format!("{kind}-peers-{name}"));
    let ready = environment.join("ready");
    fs::create_dir_all(&cache).expect("the cache can be written");
    let lock = fs::File::create(cache.join(format!("{kind}-peers.lock"))).expect("the cache can be written");
    lock.lock().expect("the cache can be locked");
    if !ready.exists() {
        eprintln!("    installing peers of tests: {kind}");
        // What an interrupted installation left is not trusted.
        if environment.exists() {
            fs::remove_dir_all(&environment).expect("the cache can be written");
        }
        install(&environment);
        fs::write(&ready, "").expect("the cache can be written");
    }
    environment
}

fn run(command: &mut Command) {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
