//! Tests of the real binary: `foreshore up` as a process, and who speaks to it.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail like tests"
)]

mod alone;
mod cloud;
mod mosquitto;
mod plant;
mod proxy;
mod publisher;
mod site;

mod bridge;
mod broker_crash;
mod certificates;
mod commanded;
mod commands;
mod crash;
mod data;
mod disk;
mod edits;
mod encryption;
mod failing_disk;
mod flipped_bits;
mod handover;
mod opcua;
mod operator_tools;
mod outage;
mod start;
