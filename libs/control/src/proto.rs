//! The control protocol, as compiled from `proto/control.proto`.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]

tonic::include_proto!("foreshore.control.v1alpha1");
