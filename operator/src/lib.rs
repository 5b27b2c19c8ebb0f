//! The operator: manifests in, plans, workloads and status out.

pub mod object;
pub mod problem;
pub mod source;
pub mod vault;
