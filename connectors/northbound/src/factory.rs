//! How sinks are made: what an endpoint's crate registers with the runner.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use foreshore_control::{
    Nack, Reporter, ResourceKey,
    plan::{ConnectionPlan, EndpointPlan, ObjectRef, SecretPlan, SecretValue},
    queue::Paths,
};
use foreshore_crds::{
    types::{ItemName, TopicFilter},
    v1alpha1::{
        dataflow::{Delivery, Sink as SinkSpec},
        dataflow_endpoint::EndpointType,
    },
};
use foreshore_runtime::{Metrics, Shutdown};
use foreshore_tls::Identity;

use crate::{
    assets::Assets,
    sink::{Sink, SinkError},
};

/// What sinks share with the runner that they belong to.
#[derive(Clone)]
pub struct Surroundings {
    /// Who the runner is; mutual TLS with roles of ours is made from it.
    pub identity: Identity,
    /// Directory for what a sink keeps. `None` where the runner has no disk.
    pub data_directory: Option<PathBuf>,
    /// Metrics of the process.
    pub metrics: Metrics,
    /// Assets of the plan. Who may want to tell of them follows their changes.
    pub assets: Assets,
    /// Tells the operator how things are.
    pub reporter: Option<Reporter>,
    /// Ends with the runner.
    pub shutdown: Shutdown,
}

/// An endpoint with everything that it refers to.
#[derive(Clone)]
pub struct EndpointSetup {
    /// The endpoint.
    pub endpoint: EndpointPlan,
    /// Secrets of its namespace, by name.
    pub secrets: Secrets,
    /// Brokers of its namespace, by name.
    pub brokers: Arc<BTreeMap<String, ConnectionPlan>>,
}

/// What a sink is made from.
#[derive(Clone)]
pub struct SinkSetup {
    /// The dataflow.
    pub dataflow: ObjectRef,
    /// The sink as the user wrote it.
    pub sink: SinkSpec,
    /// How messages are handed over: the sink's members over the dataflow's.
    pub delivery: Delivery,
    /// Name of its path.
    pub path: String,
    /// Where it leads.
    pub endpoint: EndpointSetup,
    /// UID of the Broker, or of the endpoint, that its records come from.
    pub origin: String,
}

/// What the queue of a sink is made from, where the source is an endpoint.
#[derive(Clone)]
pub struct SourceSetup {
    /// The dataflow.
    pub dataflow: ObjectRef,
    /// Name of the sink that the queue is for.
    pub sink: ItemName,
    /// Name of its path.
    pub path: String,
    /// Topic filters.
    pub topics: Vec<TopicFilter>,
    /// Where messages come from.
    pub endpoint: EndpointSetup,
}

/// Secrets of a namespace, by name. Its `Debug` output shows names only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets(pub Arc<BTreeMap<String, SecretPlan>>);

impl Secrets {
    /// A value.
    ///
    /// # Errors
    /// Names the Secret or the key that is missing.
    pub fn value(&self, secret: &str, key: &str) -> Result<&SecretValue, Nack> {
        let missing = |what: String| Nack::new("SecretMissing", what);
        let plan = self
            .0
            .get(secret)
            .ok_or_else(|| missing(format!("secret {secret:?} is not there")))?;
        plan.data.get(key).ok_or_else(|| {
            let keys = plan
                .data
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            missing(format!("secret {secret:?} has no key {key:?}, but {keys}"))
        })
    }

    /// A value that is text.
    ///
    /// # Errors
    /// As [`Secrets::value`], and when the value is not UTF-8.
    pub fn text(&self, secret: &str, key: &str) -> Result<&str, Nack> {
        let value = self.value(secret, key)?;
        value.as_text().ok_or_else(|| {
            Nack::new(
                "SecretInvalid",
                format!("key {key:?} of secret {secret:?} is not text in utf-8"),
            )
        })
    }
}

/// Makes the sinks of one type of endpoint. Lives as long as the runner, so it may keep what sinks share, such as one
/// link for all sinks that lead to the same cloud.
#[async_trait]
pub trait SinkFactory: Send + Sync + 'static {
    /// Which type of endpoint it is for.
    fn endpoint_type(&self) -> EndpointType;

    /// Judges an endpoint when the runner's plan changes, whether a dataflow leads to it or not.
    ///
    /// # Errors
    /// What this program can't do, or what is missing; the earlier version of the endpoint stays in force.
    fn check_endpoint(&self, setup: &EndpointSetup) -> Result<(), Nack>;

    /// Judges a sink when the runner's plan changes.
    ///
    /// # Errors
    /// What this program can't do, or what is missing; the earlier version of the dataflow stays in force.
    fn check_sink(&self, setup: &SinkSetup) -> Result<(), Nack>;

    /// Makes the queue that a sink reads where the source of its dataflow is an endpoint. Nothing is connected before the
    /// queue is opened.
    ///
    /// # Errors
    /// What this program can't do, or what is missing; the earlier version of the dataflow stays in force.
    fn source(&self, setup: &SourceSetup) -> Result<Arc<dyn Paths>, Nack> {
        let (name, kind) = (
            &setup.endpoint.endpoint.object.name,
            self.endpoint_type().as_str(),
        );
        let message = format!("endpoint {name:?} is of type {kind}, a source is of type mqtt");
        Err(Nack::new("UnsupportedHere", message))
    }

    /// An endpoint, or what it refers to, is in force from now on. It comes before the sinks that lead to it, which are
    /// made anew.
    async fn endpoint_set(&self, setup: &EndpointSetup) {
        let _ = setup;
    }

    /// An endpoint is no more. Its sinks were closed.
    async fn endpoint_removed(&self, endpoint: &ResourceKey) {
        let _ = endpoint;
    }

    /// Makes a sink.
    ///
    /// # Errors
    /// When it can't be made now; it is tried again, as a delivery would be.
    async fn create(&self, setup: &SinkSetup) -> Result<Arc<dyn Sink>, SinkError>;
}
