//! A southbound connector: one protocol, all devices that its plan names.

use std::sync::Arc;

use foreshore_connector_onvif::OnvifConnector;
use foreshore_connector_opcua::OpcUaConnector;
use foreshore_connector_sdk::{Connector, RunnerOptions};
use foreshore_crds::{conditions::reasons, v1alpha1::Protocol};
use foreshore_operator::workloads::local::RoleError;

use super::{Assignment, Observability, Roles};

/// Runs a connector until its shutdown begins.
pub(super) async fn run(
    roles: &Roles,
    assignment: Assignment,
    observability: Observability,
    protocol: Protocol,
) -> Result<(), RoleError> {
    let connector: Arc<dyn Connector> = match protocol {
        Protocol::Opcua => Arc::new(OpcUaConnector),
        Protocol::Onvif => Arc::new(OnvifConnector),
        other => {
            let message = format!("protocol {other:?} is not built in, Opcua and Onvif are");
            return Err(RoleError {
                reason: reasons::UNSUPPORTED_HERE,
                message,
            });
        }
    };
    let agent = roles.agent(&assignment)?;
    let options = RunnerOptions::new(roles.folder(&assignment).join("state"));
    let Observability { health, metrics } = observability;
    let ended =
        foreshore_connector_sdk::run(connector, agent, options, metrics, health, assignment.shutdown).await;
    ended.map_err(RoleError::new)
}
