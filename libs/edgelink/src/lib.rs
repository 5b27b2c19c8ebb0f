//! EdgeLink: the one stream between an edge and its cloud endpoint.
//!
//! The protocol is `proto/edgelink.proto`; this crate is what both ends share of it beyond the generated code: the
//! lanes and intervals of [`foreshore_record::entry`] on the wire, bodies of batches with their checks ([`batch`]), records and commands as
//! messages, the proof with which an expired edge renews ([`possession`]), what an
//! edge tells of its assets ([`registry`]), and why provisioning refuses
//! ([`Refusal`]). It does no I/O.

pub mod batch;
pub mod command;
pub mod interval;
pub mod lane;
pub mod limits;
pub mod possession;
pub mod proto;
pub mod record;
pub mod refusal;
pub mod registry;

pub use batch::{Body, BodyError, Codec, Entry};
pub use interval::InvalidInterval;
pub use refusal::Refusal;
