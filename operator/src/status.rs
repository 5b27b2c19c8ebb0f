//! What people and GitOps tools see: is it in force, is it healthy, what is wrong, and what to do about it.
//!
//! | module | what |
//! |---|---|
//! | [`index`] | verdicts, workloads and sessions to conditions; pure |
//! | [`table`] | all of it as one value, JSON and text: the local sink |
//! | [`remedy`] | what each reason means, and what to do |
//! | [`writer`] | updates for a slow sink: the newest only, and not too often |

pub mod index;
pub mod remedy;
pub mod table;
pub mod writer;

pub use index::{Index, ObjectStatus};
pub use table::StatusTable;
