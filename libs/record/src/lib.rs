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
//! | [`entry`] | a record in a durable queue: its id, its lane, how it leaves |
//! | [`command`] | commands to an asset and their outcomes |
//! | [`spelling`] | the name that somebody probably meant |

pub mod command;
pub mod entry;
pub mod ledger;
pub mod number;
pub mod property;
pub mod record;
pub mod spelling;
pub mod topic;
pub mod value;

pub use command::{CommandError, CommandErrorCode, CommandOutcome, CommandRequest};
pub use entry::{EntryId, Interval, Lane, Settlement, StoreEpoch};
pub use ledger::{DropReason, Outcome, PathLedger};
pub use number::SourceNumber;
pub use record::{Qos, Record};
pub use spelling::nearest;
pub use topic::{TopicFilter, TopicName};
pub use value::DataValue;
