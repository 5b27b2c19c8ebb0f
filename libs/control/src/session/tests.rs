//! The two ends against each other, over TCP.

mod harness;

mod enrolment;
mod peers;
mod plan;
mod protocol;
mod renewal;
mod reports;
mod sealed;
