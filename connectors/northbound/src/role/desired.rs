//! From a plan's resources to the couriers that shall run.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use foreshore_control::{
    Nack, PlanResource, ResourceKey,
    plan::{ConnectionPlan, DataflowPlan, EndpointPlan, PathPlan, SecretPlan},
    queue::Paths,
};
use foreshore_crds::v1alpha1::{dataflow::Sink as SinkSpec, dataflow_endpoint::EndpointType};

use super::{Held, KnownQueues};
use crate::{
    courier::CourierPlan,
    delivery::Policy,
    factory::{EndpointSetup, Secrets, SinkFactory, SinkSetup, SourceSetup},
    parcel::Limits,
    stage::Stages,
    trip::TripPlan,
};

/// What shall run.
pub(super) struct Desired {
    pub(super) couriers: BTreeMap<String, DesiredCourier>,
    endpoints: Vec<(ResourceKey, EndpointSetup)>,
}

/// A courier that shall run, with what tells whether it changed.
#[derive(Clone)]
pub(super) struct DesiredCourier {
    pub(super) plan: CourierPlan,
    /// Everything that the plan was made from, but for the broker's queues.
    fingerprint: String,
    /// Endpoint that its records come from, instead of a broker of ours.
    pub(super) source: Option<EndpointSetup>,
}

impl DesiredCourier {
    /// Whether a courier with the other plan would do the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same_queue = self.source.is_some() || Arc::ptr_eq(&self.plan.paths, &other.plan.paths);
        self.fingerprint == other.fingerprint && same_queue
    }
}

type Factories = HashMap<EndpointType, Arc<dyn SinkFactory>>;

impl Desired {
    /// Computes what shall run.
    ///
    /// # Errors
    /// When what changed can't be run. What other changes left behind as unusable is left out, and was refused or
    /// reported then.
    pub(super) fn of(
        held: &Held,
        factories: &Factories,
        queues: &KnownQueues,
        changed: &ResourceKey,
    ) -> Result<Self, Nack> {
        let scene = Scene {
            held,
            factories,
            queues,
        };
        let mut endpoints = Vec::new();
        for (key, endpoint) in &held.endpoints {
            match scene.endpoint(endpoint) {
                Ok(setup) => endpoints.push((key.clone(), setup)),
                Err(nack) if key == changed => return Err(nack),
                Err(_) => {}
            }
        }
        let mut couriers = BTreeMap::new();
        for (key, dataflow) in &held.dataflows {
            match scene.dataflow(dataflow) {
                Ok(own) => couriers.extend(own),
                Err(nack) if key == changed => return Err(nack),
                Err(_) => {}
            }
        }
        Ok(Self { couriers, endpoints })
    }

    /// Endpoints that a change touches: the endpoint itself, and those that refer to it.
    pub(super) fn endpoints_to_set(&self, changed: &ResourceKey) -> impl Iterator<Item = &EndpointSetup> {
        let touches = move |key: &ResourceKey, setup: &EndpointSetup| {
            key == changed
                || changed.namespace == key.namespace
                    && (changed.kind == SecretPlan::KIND && setup.secrets.0.contains_key(&changed.name)
                        || changed.kind == ConnectionPlan::KIND && setup.brokers.contains_key(&changed.name))
        };
        self.endpoints
            .iter()
            .filter(move |(key, setup)| touches(key, setup))
            .map(|(_, setup)| setup)
    }
}

/// A plan's resources as they refer to each other.
struct Scene<'h> {
    held: &'h Held,
    factories: &'h Factories,
    queues: &'h KnownQueues,
}

impl Scene<'_> {
    fn factory(&self, endpoint: &EndpointPlan) -> Result<&Arc<dyn SinkFactory>, Nack> {
        let kind = endpoint.spec.endpoint_type();
        kind.and_then(|kind| self.factories.get(&kind)).ok_or_else(|| {
            let mut known: Vec<_> = self.factories.keys().map(|kind| kind.as_str()).collect();
            known.sort_unstable();
            let found = kind.map_or("nothing", EndpointType::as_str);
            let message = format!(
                "endpoint {:?} is of type {found}, this runner knows {}",
                endpoint.object.name,
                known.join(", ")
            );
            Nack::new("EndpointUnsupported", message)
        })
    }

    /// An endpoint with what it refers to.
    fn endpoint(&self, endpoint: &EndpointPlan) -> Result<EndpointSetup, Nack> {
        let factory = self.factory(endpoint)?;
        let namespace = endpoint.object.namespace.as_str();
        let document = serde_json::to_value(&endpoint.spec)
            .map_err(|error| Nack::new("InvalidResource", error.to_string()))?;
        let names = references(&document, &|field| field.ends_with("ecretRef"));
        let secrets = names.into_iter().filter_map(|name| {
            let secret =
                self.held
                    .secrets
                    .get(&ResourceKey::new(SecretPlan::KIND, namespace, name.clone()))?;
            Some((name, secret.clone()))
        });
        let in_namespace = |plan: &&ConnectionPlan| plan.namespace == namespace;
        let brokers = self.held.connections.values().filter(in_namespace);
        let named = references(&document, &|field| field == "brokerRef");
        // A link to a cloud brings commands to the assets of any broker of the namespace.
        let all = endpoint.spec.cloud.is_some();
        let brokers = brokers.filter(|plan| all || named.contains(&plan.broker));
        let setup = EndpointSetup {
            endpoint: endpoint.clone(),
            secrets: Secrets(Arc::new(secrets.collect())),
            brokers: Arc::new(brokers.map(|plan| (plan.broker.clone(), plan.clone())).collect()),
        };
        factory.check_endpoint(&setup)?;
        Ok(setup)
    }

    fn dataflow(&self, dataflow: &DataflowPlan) -> Result<BTreeMap<String, DesiredCourier>, Nack> {
        let source = self.source(dataflow)?;
        let mut couriers = BTreeMap::new();
        for sink in &dataflow.spec.sinks {
            let courier = self.courier(dataflow, sink, &source)?;
            couriers.insert(courier.plan.setup.path.clone(), courier);
        }
        // A dataflow that is switched off is judged all the same.
        if !dataflow.spec.effective_enabled() {
            couriers.clear();
        }
        Ok(couriers)
    }

    /// Where the records of a dataflow come from.
    fn source(&self, dataflow: &DataflowPlan) -> Result<Source<'_>, Nack> {
        match &dataflow.spec.source.endpoint_ref {
            None => self.queues_of(dataflow),
            Some(reference) => {
                let endpoint = self.named_endpoint(dataflow, &reference.name, "source names")?;
                let setup = self.endpoint(endpoint)?;
                Ok(Source::Endpoint(self.factory(endpoint)?, Box::new(setup)))
            }
        }
    }

    /// Queues of the broker that a dataflow reads from: the named one, or the only one of the namespace.
    fn queues_of(&self, dataflow: &DataflowPlan) -> Result<Source<'_>, Nack> {
        let namespace = &dataflow.object.namespace;
        let wanted = dataflow
            .spec
            .source
            .broker_ref
            .as_ref()
            .map(|broker| broker.name.as_str());
        let mut fitting = self.queues.values().filter(|(connection, _)| {
            connection.namespace == *namespace && wanted.is_none_or(|name| connection.broker == name)
        });
        match (fitting.next(), fitting.next()) {
            (Some((connection, paths)), None) => Ok(Source::Broker(connection, paths)),
            (None, _) => {
                let broker = wanted.map_or_else(|| "a broker".to_owned(), |name| format!("broker {name:?}"));
                Err(Nack::new(
                    "BrokerMissing",
                    format!("no connection to {broker} in namespace {namespace:?}"),
                ))
            }
            (Some(_), Some(_)) => {
                let message =
                    format!("namespace {namespace:?} has several brokers, source.brokerRef has to name one");
                Err(Nack::new("Ambiguous", message))
            }
        }
    }

    fn named_endpoint(&self, dataflow: &DataflowPlan, name: &str, who: &str) -> Result<&EndpointPlan, Nack> {
        let key = ResourceKey::new(EndpointPlan::KIND, &dataflow.object.namespace, name);
        self.held.endpoints.get(&key).ok_or_else(|| {
            Nack::new(
                "EndpointMissing",
                format!("{who} endpoint {name:?}, which is not there"),
            )
        })
    }

    fn courier(
        &self,
        dataflow: &DataflowPlan,
        sink: &SinkSpec,
        source: &Source<'_>,
    ) -> Result<DesiredCourier, Nack> {
        let object = &dataflow.object;
        let who = format!("sink {:?} leads to", sink.name.as_str());
        let endpoint = self.named_endpoint(dataflow, &sink.endpoint_ref.name, &who)?;
        let path = dataflow.paths.get(sink.name.as_str()).cloned();
        let path = path.unwrap_or_else(|| PathPlan::name(&object.namespace, &object.name, &sink.name));
        let (origin, paths, source) = match source {
            Source::Broker(connection, paths) => (connection.uid.clone(), Arc::clone(paths), None),
            Source::Endpoint(factory, endpoint) => {
                let setup = SourceSetup {
                    dataflow: object.clone(),
                    sink: sink.name.clone(),
                    path: path.clone(),
                    topics: dataflow.spec.source.topics.clone(),
                    endpoint: (**endpoint).clone(),
                };
                let origin = endpoint.endpoint.object.uid.clone();
                (origin, factory.source(&setup)?, Some(setup.endpoint))
            }
        };
        let setup = SinkSetup {
            dataflow: object.clone(),
            sink: sink.clone(),
            delivery: dataflow.spec.delivery_of(sink),
            path,
            endpoint: self.endpoint(endpoint)?,
            origin,
        };
        let factory = Arc::clone(self.factory(endpoint)?);
        factory.check_sink(&setup)?;
        let stages = Stages::compile(&dataflow.spec, sink)
            .map_err(|error| Nack::new("ExpressionInvalid", error.to_string()))?;
        let fingerprint = fingerprint(dataflow, &setup, source.as_ref())?;
        let trip = trip_plan(&setup, stages, source.is_some());
        let policy = Arc::new(policy(&setup));
        let plan = CourierPlan {
            setup,
            factory,
            paths,
            trip,
            policy,
        };
        Ok(DesiredCourier {
            plan,
            fingerprint,
            source,
        })
    }
}

/// Where the records of a dataflow come from.
enum Source<'s> {
    /// A broker of ours, with its queues.
    Broker(&'s ConnectionPlan, &'s Arc<dyn Paths>),
    /// An endpoint, with what makes its queues.
    Endpoint(&'s Arc<dyn SinkFactory>, Box<EndpointSetup>),
}

/// Text that differs when a courier has to change. It holds hashes of secrets, not secrets.
fn fingerprint(
    dataflow: &DataflowPlan,
    setup: &SinkSetup,
    source: Option<&EndpointSetup>,
) -> Result<String, Nack> {
    let invalid = |error: serde_json::Error| Nack::new("InvalidResource", error.to_string());
    let of_endpoint = |setup: &EndpointSetup| {
        let EndpointSetup {
            endpoint,
            secrets,
            brokers,
        } = setup;
        let secrets: BTreeMap<&String, String> = secrets
            .0
            .iter()
            .map(|(name, secret)| {
                let bytes = serde_json::to_vec(secret).unwrap_or_default();
                (name, foreshore_tls::Fingerprint::of(&bytes).to_string())
            })
            .collect();
        serde_json::to_value((&endpoint.object.uid, &endpoint.spec, secrets, brokers.as_ref()))
            .map_err(invalid)
    };
    // What a queue of the broker takes is for the broker.
    let source = source.map(of_endpoint).transpose()?;
    let source = source.map(|endpoint| (&dataflow.spec.source.topics, endpoint));
    let parts = (
        (
            &dataflow.object.uid,
            &dataflow.spec.stages,
            &setup.sink,
            &setup.delivery,
            &setup.origin,
        ),
        of_endpoint(&setup.endpoint)?,
        source,
    );
    serde_json::to_string(&parts).map_err(invalid)
}

fn trip_plan(setup: &SinkSetup, stages: Stages, from_endpoint: bool) -> TripPlan {
    let delivery = &setup.delivery;
    let batch = delivery.batch.clone().unwrap_or_default();
    TripPlan {
        stages,
        limits: Limits {
            outputs: batch.effective_max_records().max(1) as usize,
            bytes: usize::try_from(batch.effective_max_bytes()).unwrap_or(usize::MAX),
            // Another broker sends few at a time and waits for their acknowledgement.
            delay: match batch.max_delay {
                None if from_endpoint => Duration::ZERO,
                _ => batch.effective_max_delay(),
            },
        },
        lane: setup.sink.effective_lane(),
        max_inflight: delivery.effective_max_inflight().max(1) as usize,
    }
}

fn policy(setup: &SinkSetup) -> Policy {
    let delivery = &setup.delivery;
    let backoff = delivery.backoff.clone().unwrap_or_default();
    Policy {
        max_attempts: delivery.effective_max_attempts().max(1),
        timeout: delivery.effective_timeout(),
        backoff: (backoff.effective_initial(), backoff.effective_maximum()),
    }
}

/// Names that references of a kind give, wherever they stand in a document.
fn references(document: &serde_json::Value, is_reference: &dyn Fn(&str) -> bool) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    match document {
        serde_json::Value::Object(members) => {
            for (field, value) in members {
                if is_reference(field)
                    && let Some(name) = value.get("name").and_then(serde_json::Value::as_str)
                {
                    names.insert(name.to_owned());
                }
                names.append(&mut references(value, is_reference));
            }
        }
        serde_json::Value::Array(elements) => {
            for element in elements {
                names.append(&mut references(element, is_reference));
            }
        }
        _ => {}
    }
    names
}
