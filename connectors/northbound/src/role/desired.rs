//! From a plan's resources to the couriers that shall run.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
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
    factory::{EndpointSetup, Secrets, SinkFactory, SinkSetup},
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
    /// Everything that the plan was made from, but for the queues.
    fingerprint: String,
}

impl DesiredCourier {
    /// Whether a courier with the other plan would do the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint && Arc::ptr_eq(&self.plan.paths, &other.plan.paths)
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
        let paths = self.queues_of(dataflow)?;
        let mut couriers = BTreeMap::new();
        for sink in &dataflow.spec.sinks {
            let courier = self.courier(dataflow, sink, &paths)?;
            couriers.insert(courier.plan.setup.path.clone(), courier);
        }
        // A dataflow that is switched off is judged all the same.
        if !dataflow.spec.effective_enabled() {
            couriers.clear();
        }
        Ok(couriers)
    }

    /// Queues of the broker that a dataflow reads from: the named one, or the only one of the namespace.
    fn queues_of(&self, dataflow: &DataflowPlan) -> Result<Arc<dyn Paths>, Nack> {
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
            (Some((_, paths)), None) => Ok(Arc::clone(paths)),
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

    fn courier(
        &self,
        dataflow: &DataflowPlan,
        sink: &SinkSpec,
        paths: &Arc<dyn Paths>,
    ) -> Result<DesiredCourier, Nack> {
        let object = &dataflow.object;
        let key = ResourceKey::new(
            EndpointPlan::KIND,
            &object.namespace,
            sink.endpoint_ref.name.as_str(),
        );
        let missing = || {
            let (name, endpoint) = (sink.name.as_str(), sink.endpoint_ref.name.as_str());
            Nack::new(
                "EndpointMissing",
                format!("sink {name:?} leads to endpoint {endpoint:?}, which is not there"),
            )
        };
        let endpoint = self.held.endpoints.get(&key).ok_or_else(missing)?;
        let path = dataflow.paths.get(sink.name.as_str()).cloned();
        let path = path.unwrap_or_else(|| PathPlan::name(&object.namespace, &object.name, &sink.name));
        let setup = SinkSetup {
            dataflow: object.clone(),
            sink: sink.clone(),
            delivery: dataflow.spec.delivery_of(sink),
            path,
            endpoint: self.endpoint(endpoint)?,
        };
        let factory = Arc::clone(self.factory(endpoint)?);
        factory.check_sink(&setup)?;
        let stages = Stages::compile(&dataflow.spec, sink)
            .map_err(|error| Nack::new("ExpressionInvalid", error.to_string()))?;
        let fingerprint = fingerprint(dataflow, &setup)?;
        let (trip, policy) = (trip_plan(&setup, stages), Arc::new(policy(&setup)));
        let plan = CourierPlan {
            setup,
            factory,
            paths: Arc::clone(paths),
            trip,
            policy,
        };
        Ok(DesiredCourier { plan, fingerprint })
    }
}

/// Text that differs when a courier has to change. It holds hashes of secrets, not secrets.
fn fingerprint(dataflow: &DataflowPlan, setup: &SinkSetup) -> Result<String, Nack> {
    let EndpointSetup {
        endpoint,
        secrets,
        brokers,
    } = &setup.endpoint;
    let secrets: BTreeMap<&String, String> = secrets
        .0
        .iter()
        .map(|(name, secret)| {
            let bytes = serde_json::to_vec(secret).unwrap_or_default();
            (name, foreshore_tls::Fingerprint::of(&bytes).to_string())
        })
        .collect();
    let parts = (
        (
            &dataflow.object.uid,
            &dataflow.spec.stages,
            &setup.sink,
            &setup.delivery,
        ),
        (&endpoint.object.uid, &endpoint.spec, secrets, brokers.as_ref()),
    );
    serde_json::to_string(&parts).map_err(|error| Nack::new("InvalidResource", error.to_string()))
}

fn trip_plan(setup: &SinkSetup, stages: Stages) -> TripPlan {
    let delivery = &setup.delivery;
    let batch = delivery.batch.clone().unwrap_or_default();
    let max_inflight = delivery.effective_max_inflight().max(1) as usize;
    TripPlan {
        stages,
        limits: Limits {
            outputs: batch.effective_max_records().max(1) as usize,
            bytes: usize::try_from(batch.effective_max_bytes()).unwrap_or(usize::MAX),
            delay: batch.effective_max_delay(),
        },
        lane: setup.sink.effective_lane(),
        max_inflight,
        strict_order: max_inflight == 1,
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
