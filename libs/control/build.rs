//! Compiles every protocol in `proto/` with protox, so that no system `protoc` is needed.

use std::{error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut files = Vec::new();
    for entry in fs::read_dir("proto")? {
        let path: PathBuf = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        // Secrets are in them: `src/proto.rs` writes their `Debug` by hand.
        .skip_debug([
            "foreshore.control.v1alpha1.EnrollRequest",
            "foreshore.control.v1alpha1.Resource",
        ])
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
