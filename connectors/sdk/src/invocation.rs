//! A command on its way to a device.

use std::sync::Arc;

use jiff::Timestamp;

use crate::plan::AssetPlan;

/// A command whose action exists, whose input fits and whose deadline is not past.
#[derive(Clone, Debug, PartialEq)]
pub struct Invocation {
    /// The asset as planned when the command came.
    pub asset: Arc<AssetPlan>,
    /// Name of the action group.
    pub group: String,
    /// Name of the action in the group.
    pub action: String,
    /// Input, as the action's request schema describes it.
    pub input: serde_json::Value,
    /// After this time nobody waits for the outcome any more.
    pub deadline: Timestamp,
    /// Who asked, for audit logs of the device.
    pub actor: String,
}
