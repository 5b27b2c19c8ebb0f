//! One link for each endpoint, shared by all of its sinks.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use foreshore_control::{Nack, PlanResource, ResourceKey};
use foreshore_crds::v1alpha1::dataflow_endpoint::EndpointType;
use foreshore_northbound::{EndpointSetup, Sink, SinkError, SinkFactory, SinkSetup, Surroundings};
use parking_lot::Mutex;

use crate::{link::Link, settings::Settings, sink::CloudSink};

/// Makes sinks to cloud endpoints.
pub struct CloudSinkFactory {
    surroundings: Surroundings,
    links: Mutex<HashMap<ResourceKey, (Settings, Arc<Link>)>>,
}

impl CloudSinkFactory {
    /// Makes a factory; links live as long as it does.
    #[must_use]
    pub fn new(surroundings: Surroundings) -> Self {
        Self {
            surroundings,
            links: Mutex::default(),
        }
    }

    pub(crate) fn settings(&self, setup: &EndpointSetup) -> Result<Settings, Nack> {
        Settings::of(setup, self.surroundings.data_directory.as_deref())
    }

    /// The link of an endpoint; another one when the endpoint has changed.
    fn link(&self, setup: &EndpointSetup) -> Result<Arc<Link>, Nack> {
        let settings = self.settings(setup)?;
        let mut links = self.links.lock();
        let key = setup.endpoint.key();
        if let Some((known, link)) = links.get(&key)
            && *known == settings
        {
            return Ok(Arc::clone(link));
        }
        let link = Arc::new(Link::start(settings.clone(), &self.surroundings));
        links.insert(key, (settings, Arc::clone(&link)));
        Ok(link)
    }
}

#[async_trait]
impl SinkFactory for CloudSinkFactory {
    fn endpoint_type(&self) -> EndpointType {
        EndpointType::Cloud
    }

    fn check_endpoint(&self, setup: &EndpointSetup) -> Result<(), Nack> {
        self.settings(setup).map(drop)
    }

    fn check_sink(&self, setup: &SinkSetup) -> Result<(), Nack> {
        self.settings(&setup.endpoint).map(drop)
    }

    async fn endpoint_set(&self, setup: &EndpointSetup) {
        // Commands come down the link even where no dataflow sends anything up.
        if let Err(nack) = self.link(setup) {
            tracing::warn!(reason = %nack.reason, message = nack.message, "cloud endpoint can't be used");
        }
    }

    async fn endpoint_removed(&self, endpoint: &ResourceKey) {
        self.links.lock().remove(endpoint);
    }

    async fn create(&self, setup: &SinkSetup) -> Result<Arc<dyn Sink>, SinkError> {
        let link = self.link(&setup.endpoint).map_err(|nack| SinkError::Fatal {
            reason: "Invalid",
            cause: nack.message,
        })?;
        Ok(Arc::new(CloudSink::new(link)))
    }
}
