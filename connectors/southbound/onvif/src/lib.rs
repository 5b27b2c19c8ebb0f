//! ONVIF connector: pictures, events and movements of cameras.
//!
//! | module | what |
//! |---|---|
//! | `client` | SOAP over HTTP with one camera, and pictures |
//! | `authentication` | HTTP Digest first, WS-UsernameToken with learned clock skew as stated fallback |
//! | `camera` | services, profiles and clock of a camera |
//! | `reach` | where the addresses that a camera tells are reached from here |
//! | `snapshot` | pictures from the camera's own JPEG address |
//! | `events` | one pull point a camera |
//! | `action` | commands: their schemas, and what a camera tells about itself |
//! | `ptz` | movements, which always end, and presets |
//! | `link`, `shared` | the tasks that ask, and what they share |
//! | `trust` | which certificates are believed |
//! | `xml` | tolerant and bounded reading |

use std::sync::Arc;

use async_trait::async_trait;
use foreshore_connector_sdk::{
    Connector, Emitter, Endpoint, Link, LinkError, Refusal,
    plan::{AssetPlan, DevicePlan},
};
use foreshore_crds::v1alpha1::asset::Action;

mod action;
mod authentication;
mod camera;
mod client;
mod events;
mod link;
mod ptz;
mod reach;
mod shared;
mod snapshot;
mod trust;
mod xml;

/// The connector for ONVIF cameras.
#[derive(Clone, Copy, Debug, Default)]
pub struct OnvifConnector;

#[async_trait]
impl Connector for OnvifConnector {
    fn protocol(&self) -> &'static str {
        "onvif"
    }

    fn check(&self, device: &DevicePlan, assets: &[Arc<AssetPlan>]) -> Result<(), Vec<Refusal>> {
        let mut refusals = Vec::new();
        if !device.address.starts_with("http://") && !device.address.starts_with("https://") {
            let reason = format!(
                "found {:?}; an address such as http://camera/onvif/device_service is allowed",
                device.address
            );
            refusals.push(Refusal::device("spec.address", reason));
        }
        for asset in assets {
            refusals.extend(check_asset(asset));
        }
        if refusals.is_empty() {
            Ok(())
        } else {
            Err(refusals)
        }
    }

    fn request_schema(&self, action: &Action) -> serde_json::Value {
        match &action.onvif {
            Some(onvif) => action::request_schema(onvif.operation),
            None => foreshore_connector_sdk::schema::default_request(action),
        }
    }

    async fn connect(&self, endpoint: Endpoint, out: Emitter) -> Result<Box<dyn Link>, LinkError> {
        let link = link::OnvifLink::connect(endpoint, out).await?;
        Ok(Box::new(link))
    }
}

fn check_asset(asset: &AssetPlan) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if !asset.spec.datasets.is_empty() {
        let reason = "found datasets; cameras have streams, events and actions";
        refusals.push(Refusal::asset(asset, "spec.datasets", reason));
    }
    for (index, stream) in asset.spec.streams.iter().enumerate() {
        if stream.snapshot.is_none() {
            let reason = "found no snapshot; clips and relays need the connector media";
            refusals.push(Refusal::asset(asset, format!("spec.streams[{index}]"), reason));
        }
    }
    for (index, group) in asset.spec.action_groups.iter().enumerate() {
        for (action_index, action) in group.actions.iter().enumerate() {
            let field = format!("spec.actionGroups[{index}].actions[{action_index}].onvif");
            if action.onvif.is_none() {
                let reason = "found none; an operation of the camera is allowed";
                refusals.push(Refusal::asset(asset, field, reason));
            }
        }
    }
    refusals
}
