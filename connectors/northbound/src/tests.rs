//! The engine from the plan to the ledger, over queues in memory and a sink that does as it is told.

mod balance;
mod carrying;
mod plans;
mod plant;
