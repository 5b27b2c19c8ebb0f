//! For tests: queues in memory, and the suite that every implementation of [`Paths`] has to pass.

mod memory;
mod suite;

pub use memory::{MemoryPaths, Settled};
pub use suite::{Fixture, run_suite};
