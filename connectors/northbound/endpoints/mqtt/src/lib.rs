//! Sink to an MQTT broker, another one or our own under another topic, and source from another one.
//!
//! A record is delivered when the broker has acknowledged it (PUBACK or PUBCOMP; with quality of service 0, when it was
//! written). Properties travel with it; its number does not, since that is its first publisher's. What is left of its
//! expiry is passed on. The queue of a sink whose source is another broker is a session there: a message is acknowledged to
//! it when the sink has acknowledged it.

mod ending;
mod message;
mod sink;
mod source;
mod target;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use foreshore_control::{Nack, queue::Paths};
use foreshore_crds::v1alpha1::dataflow_endpoint::{EndpointType, MqttEndpoint};
use foreshore_northbound::{
    EndpointSetup, Sink, SinkError, SinkFactory, SinkSetup, SourceSetup, Surroundings,
};

use crate::{
    message::Template,
    sink::MqttSink,
    source::{KnownFilters, SessionQueue},
    target::Connection,
};

/// Makes sinks to MQTT brokers, and sources from them.
#[derive(Clone)]
pub struct MqttSinks {
    surroundings: Surroundings,
    known: KnownFilters,
}

impl MqttSinks {
    /// Sinks of a runner: brokers of ours are spoken to with its certificate.
    #[must_use]
    pub fn new(surroundings: Surroundings) -> Self {
        let known = KnownFilters::default();
        Self { surroundings, known }
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

    fn source(&self, setup: &SourceSetup) -> Result<Arc<dyn Paths>, Nack> {
        let queue = SessionQueue::new(setup.clone(), &self.surroundings, &self.known)?;
        Ok(Arc::new(queue))
    }

    async fn create(&self, setup: &SinkSetup) -> Result<Arc<dyn Sink>, SinkError> {
        let invalid = |nack: Nack| SinkError::fatal("EndpointInvalid", nack);
        let template = Template::new(setup).map_err(invalid)?;
        let identity = self.surroundings.identity.clone();
        let endpoint = setup.endpoint.clone();
        let SinkSetup { dataflow, sink, .. } = setup;
        let name = format!("{}-{}-{}", dataflow.namespace, dataflow.name, sink.name);
        // The system's authorities are read from files.
        let made = tokio::task::spawn_blocking(move || {
            Connection::new(block(&endpoint)?, &endpoint, &name, &identity)
        });
        let connection = made
            .await
            .map_err(|error| SinkError::retryable("SinkFault", error))?;
        let connection = connection.map_err(invalid)?;
        let shutdown = self.surroundings.shutdown.child();
        Ok(Arc::new(MqttSink::new(connection, template, shutdown)))
    }
}
