//! Compiles `proto/edgelink.proto` with protox, so that no system `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/edgelink.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        // The generated dialling is called `connect`, as the method is; dialling is ours anyway, for mutual TLS.
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
