//! Sink to an MQTT broker: another one, or our own under another topic.
//!
//! A record is delivered when the broker has acknowledged it (PUBACK or PUBCOMP; with quality of service 0, when it was
//! written). Properties travel with it; its number does not, since that is its first publisher's. What is left of its
//! expiry is passed on.

mod message;
mod sink;
mod target;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use foreshore_control::Nack;
use foreshore_crds::v1alpha1::dataflow_endpoint::{EndpointType, MqttEndpoint};
use foreshore_northbound::{EndpointSetup, Sink, SinkError, SinkFactory, SinkSetup, Surroundings};

use crate::{message::Template, sink::MqttSink, target::Connection};

/// Makes sinks to MQTT brokers.
#[derive(Clone)]
pub struct MqttSinks {
    surroundings: Surroundings,
}

impl MqttSinks {
    /// Sinks of a runner: brokers of ours are spoken to with its certificate.
    #[must_use]
    pub const fn new(surroundings: Surroundings) -> Self {
        Self { surroundings }
    }
}

fn block(setup: &EndpointSetup) -> Result<&MqttEndpoint, Nack> {
    let mqtt = setup.endpoint.spec.mqtt.as_ref();
    mqtt.ok_or_else(|| Nack::new("InvalidResource", "endpoint has no block `mqtt`"))
}

#[async_trait]
impl SinkFactory for MqttSinks {
    fn endpoint_type(&self) -> EndpointType {
        EndpointType::Mqtt
    }

    fn check_endpoint(&self, setup: &EndpointSetup) -> Result<(), Nack> {
        Connection::check(block(setup)?, setup)
    }

    fn check_sink(&self, setup: &SinkSetup) -> Result<(), Nack> {
        Template::new(setup).map(drop)
    }

    async fn create(&self, setup: &SinkSetup) -> Result<Arc<dyn Sink>, SinkError> {
        let invalid = |nack: Nack| SinkError::fatal("EndpointInvalid", nack);
        let template = Template::new(setup).map_err(invalid)?;
        let identity = self.surroundings.identity.clone();
        let owned = setup.clone();
        // The system's authorities are read from files.
        let made =
            tokio::task::spawn_blocking(move || Connection::new(block(&owned.endpoint)?, &owned, &identity));
        let connection = made
            .await
            .map_err(|error| SinkError::retryable("SinkFault", error))?;
        let connection = connection.map_err(invalid)?;
        let shutdown = self.surroundings.shutdown.child();
        Ok(Arc::new(MqttSink::new(connection, template, shutdown)))
    }
}
