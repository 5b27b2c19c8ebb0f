//! What one request may hold: the smaller of what the user allows and what the server says.

use foreshore_crds::v1alpha1::device::OpcuaLimits;
use opcua::{
    client::Session,
    types::{ReadValueId, TimestampsToReturn, VariableId, Variant},
};

/// What one request may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) items_per_call: usize,
    pub(crate) items_per_subscription: usize,
    pub(crate) paths_per_call: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(&OpcuaLimits::default())
    }
}

impl Limits {
    /// What the user allows.
    pub(crate) fn of(limits: &OpcuaLimits) -> Self {
        let size = |limit: u32| usize::try_from(limit).unwrap_or(usize::MAX).max(1);
        Self {
            items_per_call: size(limits.effective_max_monitored_items_per_call()),
            items_per_subscription: size(limits.effective_max_items_per_subscription()),
            paths_per_call: size(limits.effective_max_browse_paths_per_translate()),
        }
    }

    /// Asks the server for its operation limits (OPC 10000-5, 6.3.11); one that tells none keeps the user's.
    pub(crate) async fn ask(mut self, session: &Session) -> Self {
        let asked = [
            VariableId::Server_ServerCapabilities_OperationLimits_MaxMonitoredItemsPerCall,
            VariableId::Server_ServerCapabilities_OperationLimits_MaxNodesPerTranslateBrowsePathsToNodeIds,
        ];
        let nodes = asked.map(|id| ReadValueId::from(opcua::types::NodeId::from(id)));
        let Ok(answers) = session.read(&nodes, TimestampsToReturn::Neither, 0.0).await else {
            return self;
        };
        let told = |index: usize| match answers.get(index).and_then(|answer| answer.value.as_ref()) {
            // 0 means that there is no limit.
            Some(Variant::UInt32(limit)) if *limit > 0 => usize::try_from(*limit).unwrap_or(usize::MAX),
            _ => usize::MAX,
        };
        self.items_per_call = self.items_per_call.min(told(0));
        self.paths_per_call = self.paths_per_call.min(told(1));
        self
    }
}
