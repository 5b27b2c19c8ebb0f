//! What an installation can do: what a manifest asks for beyond it is answered with `UnsupportedHere`.

use foreshore_crds::v1alpha1::{Protocol, broker::StorageBackend, dataflow_endpoint::EndpointType};

/// What an installation can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Whether roles run as pods, which have images, nodes, Services and replicas; otherwise as tasks of one process
    /// on one machine.
    pub pods: bool,
    /// Protocols that a connector is there for.
    pub protocols: Vec<Protocol>,
    /// Systems that a dataflow can deliver to.
    pub endpoints: Vec<EndpointType>,
    /// What a broker can keep messages in.
    pub storage: Vec<StorageBackend>,
}

impl Platform {
    /// Pods in a cluster, of one image with everything that is built in.
    #[must_use]
    pub fn cluster() -> Self {
        Self {
            pods: true,
            ..Self::standalone()
        }
    }

    /// One process on one machine, with everything that is built in.
    #[must_use]
    pub fn standalone() -> Self {
        Self {
            pods: false,
            protocols: vec![Protocol::Opcua, Protocol::Onvif],
            endpoints: vec![EndpointType::Cloud, EndpointType::Mqtt, EndpointType::File],
            storage: vec![StorageBackend::Fjall, StorageBackend::Memory],
        }
    }
}
