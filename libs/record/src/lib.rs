//! The vocabulary of the data path: the [`Record`] that every hop carries, its topic, its numbers and its ledger.
//!
//! This crate is pure: no I/O, no clock, no runtime. Whoever needs the time passes it in.
//!
//! | module | what |
//! |---|---|
//! | [`record`] | one message with everything that travels with it |
//! | [`topic`] | topic names, topic filters, matching, templates |
//! | [`value`] | the payload of datasets: OPC UA PubSub JSON DataValues |
//! | [`property`] | names of MQTT 5 user properties (CloudEvents, trace context, our numbers) |
//! | [`number`] | how our own publishers number their records, so that a repeat is discarded |
//! | [`ledger`] | what became of every record of a path |
//! | [`command`] | commands to an asset and their outcomes |

pub mod command;
pub mod ledger;
pub mod number;
pub mod property;
pub mod record;
pub mod topic;
pub mod value;

pub use command::{CommandError, CommandErrorCode, CommandOutcome, CommandRequest};
pub use ledger::{DropReason, Outcome, PathLedger};
pub use number::SourceNumber;
pub use record::{Qos, Record};
pub use topic::{TopicFilter, TopicName};
pub use value::DataValue;
