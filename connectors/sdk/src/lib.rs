//! What a southbound connector implements, and what runs it.
//!
//! A protocol implements [`Connector`] and [`Link`]; see [`contract`] for who does what, and
//! `docs/guide/write-a-connector.md` for the way from an empty crate to a running connector. [`runner`] runs it as a
//! role.

mod command;
pub mod contract;
pub mod emitter;
mod ended;
pub mod endpoint;
pub mod health;
pub mod invocation;
pub mod observation;
pub mod plan;
pub mod runner;
pub mod schema;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;

pub use contract::{Connector, Link, LinkError, LinkErrorClass, Refusal, Subject};
pub use emitter::{Closed, Emitter, TryEmitError};
pub use ended::{EndSender, Ended};
pub use endpoint::{Credentials, Endpoint, TrustMaterial};
pub use health::{Health, HealthStatus, Member, MemberHealth};
pub use invocation::Invocation;
pub use observation::{DatasetValues, Event, Gap, Observation, Picture};
pub use runner::{Drain, Environment, Runner, RunnerOptions, reports::ReportSink, run};
