//! `cargo xtask arm64`: the program for 64-bit ARM machines, built here and started under emulation.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{shell, tools};

/// Its target.
const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Compiler and linker of its C parts.
const C_COMPILER: &str = "aarch64-linux-gnu-gcc";
/// A compiler with the standard library of both machines, for who has it not: the newest that Debian builds.
const COMPILER_PACKAGES: [&str; 5] = [
    "rustc-web",
    "libstd-rust-web-dev:amd64",
    "libstd-rust-web-dev:arm64",
    // The compiler as a library, and what it needs.
    "libstd-rust-web-1.96:amd64",
    "libllvm22:amd64",
];
/// What the program is given to judge.
const MANIFESTS: &str = "deploy/examples/bottling-line";

/// Builds the program, tells that it is one for that machine, and lets it judge the manifests of the example.
pub(crate) fn run() -> Result<()> {
    tools::debian(tools::ARM64)?;
    let target = shell::cache()?.join("target-arm64");
    let mut build = shell::cargo(&[
        "build",
        "--locked",
        "--quiet",
        "--bin",
        "foreshore",
        "--target",
        TARGET,
    ]);
    build
        .env("CARGO_TARGET_DIR", &target)
        // Nobody debugs it.
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", C_COMPILER)
        // The mathematical functions of Debian's C library can't address the table of offsets that the unoptimised
        // program has where it may lie anywhere.
        .env(
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
            "-C relocation-model=static",
        )
        .env("CC_aarch64_unknown_linux_gnu", C_COMPILER);
    if let Some(compiler) = compiler()? {
        build
            .env("RUSTC", compiler.join("usr/bin/rustc"))
            .env("LD_LIBRARY_PATH", compiler.join("usr/lib/x86_64-linux-gnu"));
    }
    shell::run("build for arm64", &mut build)?;

    let program = target.join(TARGET).join("debug/foreshore");
    let mut judge = shell::command("qemu-aarch64", &[]);
    judge.arg(&program).args(["check", MANIFESTS]);
    shell::run("start it under emulation", &mut judge)
}

/// Where a compiler for the target is unpacked; nothing when the one in use has its standard library.
fn compiler() -> Result<Option<PathBuf>> {
    let own = shell::output(&mut shell::command(
        "rustc",
        &["--print", "target-libdir", "--target", TARGET],
    ))?;
    if PathBuf::from(own.trim()).is_dir() {
        return Ok(None);
    }
    let folder = shell::cache()?.join("rust-arm64");
    let architectures = ["amd64", "arm64"];
    tools::unpacked(&folder, &COMPILER_PACKAGES, &architectures)
        .context("no standard library for arm64; with rustup: rustup target add aarch64-unknown-linux-gnu")?;
    Ok(Some(folder))
}
