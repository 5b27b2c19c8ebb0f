//! The Kubernetes API as the operator uses it: manifests and Secrets in, statuses and events out, one leader.
//!
//! Every call has a time limit of its own.

pub mod access;
pub mod authority;
mod enrolment;
mod events;
pub mod lease;
pub(crate) mod listing;
mod metrics;
mod references;
mod revisions;
pub mod source;
mod standing;
mod status;

use std::time::Duration;

use foreshore_crds::conditions::reasons;
use kube_client::{
    Api, Config, Resource,
    core::{ApiResource, DynamicResourceScope, GroupVersionKind},
};
use tokio::time::timeout;

pub use enrolment::TokenReviews;
pub use kube_client::Client;
pub use metrics::OperatorMetrics;
pub use revisions::Revisions;
pub use source::KubernetesSource;
pub use status::KubernetesStatus;

use crate::object::Kind;

/// Field manager of everything that the operator makes.
pub const MANAGER: &str = "foreshore-operator";
/// Longest that one call may take.
const CALL: Duration = Duration::from_secs(10);

/// The namespaces that an operator looks after.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// These; all where there are none.
    pub namespaces: Vec<String>,
}

impl Scope {
    /// One of something for each namespace, or one for all.
    pub(crate) fn each<T>(&self, make: impl Fn(Option<&str>) -> T) -> Vec<T> {
        if self.namespaces.is_empty() {
            return vec![make(None)];
        }
        let namespaces = self.namespaces.iter();
        namespaces.map(|namespace| make(Some(namespace))).collect()
    }

    /// One interface for each namespace, or one for all.
    pub(crate) fn apis<K>(&self, client: &Client, resource: &ApiResource) -> Vec<Api<K>>
    where
        K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
    {
        self.each(|namespace| match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
            None => Api::all_with(client.clone(), resource),
        })
    }
}

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused it, or can't be reached.
    #[error("{}", brief(.0))]
    Api(#[from] kube_client::Error),
    /// It did not answer in time.
    #[error("the Kubernetes API did not answer within {} s", CALL.as_secs())]
    TimedOut,
    /// It answered something that makes no sense.
    #[error("{what}: {problem}")]
    Unusable {
        /// What was read.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    /// Whether the object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(kube_client::Error::Api(status)) if status.is_not_found())
    }

    /// Whether the object contradicts itself, as it would be.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        matches!(self, Self::Api(kube_client::Error::Api(status)) if status.is_invalid())
    }

    /// Whether the namespace is being deleted, so that nothing can be made in it.
    #[must_use]
    pub fn is_namespace_gone(&self) -> bool {
        let Self::Api(kube_client::Error::Api(status)) = self else {
            return false;
        };
        let details = status.details.as_ref();
        details.is_some_and(|details| {
            details
                .causes
                .iter()
                .any(|cause| cause.reason == "NamespaceTerminating")
        })
    }

    /// Whether somebody else changed the object meanwhile.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(kube_client::Error::Api(status)) if status.is_conflict() || status.is_already_exists())
    }
}

/// What the API server said, without all the fields in which it says it again.
fn brief(error: &kube_client::Error) -> String {
    match error {
        kube_client::Error::Api(status) => format!("{} (HTTP {})", status.message, status.code),
        other => other.to_string(),
    }
}

/// The client of the API server: by the pod's ServiceAccount in a cluster, by the user's kubeconfig elsewhere.
///
/// It repeats nothing by itself: after a minute of refusals its waits are minutes, in which a watch tells nothing and says
/// nothing. Whoever calls has waits of its own, of which the longest is known.
///
/// # Errors
/// When there is neither.
pub async fn client() -> Result<Client, Error> {
    let config = Config::infer().await;
    let mut config = config.map_err(kube_client::Error::InferConfig)?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// Gives a call its time.
pub(crate) async fn within<T>(call: impl Future<Output = Result<T, kube_client::Error>>) -> Result<T, Error> {
    match timeout(CALL, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Error::TimedOut),
    }
}

/// How the API calls a kind.
fn resource(kind: Kind) -> ApiResource {
    let (group, version) = kind
        .api_version()
        .split_once('/')
        .unwrap_or_else(|| ("", kind.api_version()));
    let name = GroupVersionKind::gvk(group, version, kind.as_str());
    ApiResource::from_gvk_with_plural(&name, plural(kind))
}

/// Plurals as the definitions have them.
const fn plural(kind: Kind) -> &'static str {
    match kind {
        Kind::ConfigMap => "configmaps",
        Kind::Secret => "secrets",
        Kind::Broker => "brokers",
        Kind::BrokerPolicy => "brokerpolicies",
        Kind::Connector => "connectors",
        Kind::Simulator => "simulators",
        Kind::Cloud => "clouds",
        Kind::DataflowEndpoint => "dataflowendpoints",
        Kind::Device => "devices",
        Kind::Asset => "assets",
        Kind::Dataflow => "dataflows",
    }
}

/// What is told about an API that can't be read now.
fn unreadable(what: impl std::fmt::Display) -> crate::Problem {
    crate::Problem::new(reasons::NOT_YET_KNOWN, format!("{what}"))
}
