//! Where a cloud endpoint is, and how the edge is known there.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use foreshore_control::{Nack, plan::ConnectionPlan};
use foreshore_crds::{
    refs::CA_CERTIFICATE_KEY,
    v1alpha1::dataflow_endpoint::{CloudEndpoint, Compression, JOIN_TOKEN_KEY},
};
use foreshore_edgelink::Codec;
use foreshore_northbound::EndpointSetup;
use foreshore_tls::{ServerName, TrustBundle};

/// What a link is opened with.
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
    pub(crate) brokers: Arc<BTreeMap<String, ConnectionPlan>>,
}

impl Settings {
    /// Reads them from the plan; key and certificate are kept below `data_directory`.
    ///
    /// # Errors
    /// When the plan can't be carried out, with what was found and what is allowed.
    pub(crate) fn of(setup: &EndpointSetup, data_directory: Option<&Path>) -> Result<Self, Nack> {
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
        let directory = data_directory.ok_or_else(|| {
            Nack::new(
                "StorageMissing",
                "the runner has no directory for the key and certificate of the edge",
            )
        })?;
        let edge = spec
            .edge_id
            .as_ref()
            .map_or(endpoint.object.namespace.as_str(), |edge| edge.as_str());
        Ok(Self {
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
