//! The dataflow engine: durable queue to stages to sinks.

pub mod sink;

pub use sink::{Batch, Capabilities, Delivery, Interval, Lane, Output, Sink, SinkError};
