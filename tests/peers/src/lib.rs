//! Programs that others wrote, as peers of tests.
//!
//! What PyPI and npm have is installed at its first use into the cache outside the checkout, in a folder that is named by what
//! was asked for: `requirements.txt` and `package.json` beside this crate. Scripts that make a library a server are in
//! `scripts/`. What the crates registry and the Go module proxy have is compiled there.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

mod install;
mod program;

pub use install::{aio_client, node, oxvif_camera, python, script};
pub use program::{Program, free_port};
