//! The kinds of `foreshore.dev/v1alpha1`.

pub mod asset;
pub mod broker;
pub mod broker_policy;
pub mod cloud;
pub mod common;
pub mod connector;
pub mod dataflow;
pub mod dataflow_endpoint;
pub mod device;
pub mod simulator;

pub use asset::{Asset, AssetSpec, AssetStatus};
pub use broker::{Broker, BrokerSpec, BrokerStatus};
pub use broker_policy::{BrokerPolicy, BrokerPolicySpec, BrokerPolicyStatus};
pub use cloud::{Cloud, CloudSpec, CloudStatus};
pub use common::{Destination, LogLevel, Protocol, QoS};
pub use connector::{Connector, ConnectorSpec, ConnectorStatus};
pub use dataflow::{Dataflow, DataflowSpec, DataflowStatus};
pub use dataflow_endpoint::{DataflowEndpoint, DataflowEndpointSpec, DataflowEndpointStatus};
pub use device::{Device, DeviceSpec, DeviceStatus};
pub use simulator::{Simulator, SimulatorSpec, SimulatorStatus};
