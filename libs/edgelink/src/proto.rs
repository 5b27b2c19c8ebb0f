//! The protocol as compiled from `proto/edgelink.proto`.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]

tonic::include_proto!("foreshore.edgelink.v1alpha1");
