//! OPC UA connector: one session for each endpoint, data that survives every interruption, writes, reads and methods.
//!
//! | module | what |
//! |---|---|
//! | `address` | node ids and browse paths as a manifest writes them |
//! | `items` | what is to be observed, from the plans (pure) |
//! | `connect` | choosing the endpoint, judging its certificate, opening the session |
//! | `observed` | what is observed, made equal to what is asked for |
//! | `link`, `driver` | the link, and what drives its session |
//! | `shared` | the session, and what is known of it |
//! | `resume` | taking up what an interruption left |
//! | `transport` | the library's connection, put right |
//! | `inbox`, `deliver` | from the server's messages to observations |
//! | `action` | writes, reads and method calls |
//! | `event`, `value`, `certificate`, `limits` | parts of the above |

use std::sync::Arc;

use async_trait::async_trait;
use foreshore_connector_sdk::{
    Connector, Emitter, Endpoint, Link, LinkError, Refusal,
    plan::{AssetPlan, DevicePlan},
};

mod action;
mod address;
mod certificate;
mod connect;
mod deliver;
mod driver;
mod event;
mod inbox;
mod items;
mod limits;
mod link;
mod observed;
mod resume;
mod shared;
mod transport;
mod value;

/// The connector for OPC UA (opc.tcp).
#[derive(Clone, Copy, Debug, Default)]
pub struct OpcUaConnector;

#[async_trait]
impl Connector for OpcUaConnector {
    fn protocol(&self) -> &'static str {
        "opcua"
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn check(&self, device: &DevicePlan, assets: &[Arc<AssetPlan>]) -> Result<(), Vec<Refusal>> {
        let mut refusals = Vec::new();
        if !device.address.starts_with("opc.tcp://") {
            let reason = format!(
                "found {:?}; an address such as opc.tcp://host:4840 is allowed",
                device.address
            );
            refusals.push(Refusal::device("spec.address", reason));
        }
        refusals.extend(assets.iter().flat_map(|asset| items::check(asset)));
        if refusals.is_empty() {
            Ok(())
        } else {
            Err(refusals)
        }
    }

    async fn connect(&self, endpoint: Endpoint, out: Emitter) -> Result<Box<dyn Link>, LinkError> {
        let link = link::OpcUaLink::connect(endpoint, out).await?;
        Ok(Box::new(link))
    }
}
