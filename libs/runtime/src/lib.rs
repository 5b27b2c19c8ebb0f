//! What every role shares: shutdown, named tasks, health, metrics, logs and waiting between tries.
//!
//! | module | what |
//! |---|---|
//! | [`shutdown`] | a tree of tokens that ends a role within a deadline |
//! | [`task`] | tasks with names, whose panics are reported and not swallowed |
//! | [`health`] | which components work, and why others do not |
//! | [`metrics`] | the metrics of a process, shared by all its roles |
//! | [`http`] | `/metrics` and `/healthz` |
//! | [`logging`] | logs for humans or as JSON |
//! | [`due`](mod@due) | waiting for a time that there may be none of |
//! | [`backoff`] | waiting between tries, with jitter |
//! | [`memory`] | how much of it the process may use |

pub mod backoff;
pub mod due;
pub mod health;
pub mod http;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod shutdown;
pub mod task;

pub use backoff::Backoff;
pub use due::due;
pub use health::{HealthHandle, HealthRegistry};
pub use http::serve_http;
pub use metrics::Metrics;
pub use shutdown::Shutdown;
pub use task::{Task, TaskError, spawn};
