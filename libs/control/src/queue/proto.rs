//! The queue protocol, as compiled from `proto/queue.proto`.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction
)]

tonic::include_proto!("foreshore.queue.v1alpha1");
