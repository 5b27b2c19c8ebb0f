//! What is planned, under the names that connectors use.

pub use foreshore_control::plan::{AssetPlan, DevicePlan, ObjectRef};
