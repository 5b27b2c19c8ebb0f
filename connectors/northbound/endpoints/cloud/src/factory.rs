//! One link for each endpoint, shared by all of its sinks.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_control::{Nack, PlanResource, ResourceKey};
use foreshore_crds::{
    refs::CA_CERTIFICATE_KEY,
    v1alpha1::dataflow_endpoint::{CloudEndpoint, Compression, EndpointType, JOIN_TOKEN_KEY},
};
use foreshore_edgelink::Codec;
use foreshore_northbound::{EndpointSetup, Sink, SinkError, SinkFactory, SinkSetup, Surroundings};
use foreshore_tls::{ServerName, TrustBundle};
use parking_lot::Mutex;

use crate::{link::Link, sink::CloudSink};

/// Makes sinks to cloud endpoints.
pub struct CloudSinkFactory {
    surroundings: Surroundings,
    links: Mutex<HashMap<ResourceKey, (Settings, Arc<Link>)>>,
}

/// Where a cloud endpoint is and how the edge is known there.
#[derive(Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) namespace: String,
    /// Name of the endpoint.
    pub(crate) endpoint: String,
    /// Name of the edge.
    pub(crate) edge: String,
    /// `host:port`.
    pub(crate) address: String,
    pub(crate) server_name: ServerName<'static>,
    /// Whom to trust until the edge has enrolled.
    pub(crate) trust: TrustBundle,
    pub(crate) join_token: String,
    pub(crate) codec: Codec,
    pub(crate) keep_alive: Duration,
    /// Where key and certificate are kept.
    pub(crate) directory: PathBuf,
    /// Brokers to which commands go, by name.
    pub(crate) brokers: Arc<std::collections::BTreeMap<String, foreshore_control::plan::ConnectionPlan>>,
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
        let EndpointSetup {
            endpoint,
            secrets,
            brokers,
        } = setup;
        let invalid = |message: String| Nack::new("Invalid", message);
        let spec = endpoint
            .spec
            .cloud
            .as_ref()
            .ok_or_else(|| invalid("spec.cloud is missing".to_owned()))?;
        let address = spec.address.as_ref().map(|address| address.as_str().to_owned());
        let address = address.ok_or_else(|| invalid("spec.cloud.address is missing".to_owned()))?;
        let server_name = server_name(spec, &address)?;
        let token = &spec.join_token_secret_ref;
        let join_token = secrets
            .text(token.name.as_str(), token.effective_key(JOIN_TOKEN_KEY))?
            .to_owned();
        let trust = match &spec.ca_secret_ref {
            Some(reference) => {
                let pem = secrets.value(reference.name.as_str(), CA_CERTIFICATE_KEY)?;
                TrustBundle::from_pem(&pem.0)
                    .map_err(|error| Nack::new("SecretInvalid", error.to_string()))?
            }
            None => {
                return Err(invalid(
                    "spec.cloud.caSecretRef is missing: nobody to trust there".to_owned(),
                ));
            }
        };
        let directory = self.surroundings.data_directory.clone().ok_or_else(|| {
            Nack::new(
                "StorageMissing",
                "the runner has no directory for the key and certificate of the edge",
            )
        })?;
        let edge = spec
            .edge_id
            .as_ref()
            .map_or(endpoint.object.namespace.as_str(), |edge| edge.as_str());
        Ok(Settings {
            namespace: endpoint.object.namespace.clone(),
            endpoint: endpoint.object.name.clone(),
            edge: edge.to_owned(),
            address,
            server_name,
            trust,
            join_token,
            codec: match spec.effective_compression() {
                Compression::None => Codec::None,
                Compression::Zstd => Codec::Zstd,
                Compression::Gzip => {
                    return Err(invalid(
                        "spec.cloud.compression is Gzip, None and Zstd are allowed".to_owned(),
                    ));
                }
            },
            keep_alive: spec.effective_keep_alive(),
            directory: directory.join("edge").join(&endpoint.object.name),
            brokers: Arc::clone(brokers),
        })
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

fn server_name(spec: &CloudEndpoint, address: &str) -> Result<ServerName<'static>, Nack> {
    let host = address
        .rsplit_once(':')
        .map_or(address, |(host, _)| host)
        .trim_matches(['[', ']']);
    let name = spec.server_name.as_ref().map_or(host, |name| name.as_str());
    ServerName::try_from(name.to_owned()).map_err(|_| {
        Nack::new(
            "Invalid",
            format!("found server name {name:?}; a host name or address is allowed"),
        )
    })
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
