//! The kinds, one module each, and the steps that all of them take.
//!
//! 1. `dereference`: which objects and Secrets does it name, and do they exist?
//! 2. `validate`: does all of that fit together? What comes out has a type of its own (`Valid…`), and the next step
//!    takes nothing else.
//! 3. `plan`: which resources does that make for which role?
//!
//! All three are pure. Kinds are taken in the order of [`crate::object::Kind::ALL`], in which whatever can be referred
//! to comes before what refers to it.

pub(crate) mod asset;
pub(crate) mod broker;
pub(crate) mod broker_policy;
pub(crate) mod cloud;
pub(crate) mod connector;
pub(crate) mod dataflow;
pub(crate) mod dataflow_endpoint;
pub(crate) mod device;
mod faults;
mod ports;
mod references;
mod secrets;
pub(crate) mod simulator;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use foreshore_control::ObjectRef;
use foreshore_crds::{
    conditions::reasons,
    v1alpha1::{BrokerPolicySpec, CloudSpec, SimulatorSpec, common::Pod},
};

pub(crate) use faults::Faults;
use ports::Ports;

use crate::{
    judged::{Object, Secret},
    object::{Kind, Meta, ObjectKey},
    platform::Platform,
    problem::Problem,
    source::ServiceAccounts,
    workloads::Owner,
};

/// Names an object whose kind is told by where the name stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Name {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub(crate) fn of(key: &ObjectKey) -> Self {
        Self::new(&key.namespace, &key.name)
    }

    pub(crate) fn key(&self, kind: Kind) -> ObjectKey {
        ObjectKey::new(kind, &self.namespace, &self.name)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// One version of an object.
#[derive(Debug)]
pub(crate) struct Version<S> {
    pub(crate) name: Name,
    pub(crate) meta: Meta,
    pub(crate) spec: Arc<S>,
}

impl<S> Clone for Version<S> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            meta: self.meta.clone(),
            spec: Arc::clone(&self.spec),
        }
    }
}

impl<S> Version<S> {
    pub(crate) fn new(key: &ObjectKey, meta: &Meta, spec: &Arc<S>) -> Self {
        Self {
            name: Name::of(key),
            meta: meta.clone(),
            spec: Arc::clone(spec),
        }
    }

    /// How workloads name the object that they belong to.
    pub(crate) fn owner(&self, kind: Kind) -> Owner {
        Owner {
            object: self.name.key(kind),
            uid: self.meta.uid.clone(),
        }
    }

    /// How plans name the object.
    pub(crate) fn object(&self) -> ObjectRef {
        ObjectRef {
            namespace: self.name.namespace.clone(),
            name: self.name.name.clone(),
            uid: self.meta.uid.clone(),
            generation: self.meta.generation,
        }
    }
}

/// All objects that are right and fit together, each in the version that shall run.
#[derive(Default)]
pub(crate) struct Valid {
    pub(crate) config_maps: BTreeSet<Name>,
    pub(crate) secrets: BTreeMap<Name, Arc<Secret>>,
    /// Who signs the tokens of the cluster's service accounts, where that was asked for.
    pub(crate) service_accounts: Option<ServiceAccounts>,
    pub(crate) brokers: BTreeMap<Name, broker::ValidBroker>,
    pub(crate) policies: BTreeMap<Name, broker_policy::ValidPolicy>,
    pub(crate) connectors: BTreeMap<Name, connector::ValidConnector>,
    pub(crate) simulators: BTreeMap<Name, simulator::ValidSimulator>,
    pub(crate) clouds: BTreeMap<Name, cloud::ValidCloud>,
    pub(crate) endpoints: BTreeMap<Name, dataflow_endpoint::ValidEndpoint>,
    pub(crate) devices: BTreeMap<Name, device::ValidDevice>,
    pub(crate) assets: BTreeMap<Name, asset::ValidAsset>,
    pub(crate) dataflows: BTreeMap<Name, dataflow::ValidDataflow>,
}

/// What an object is looked at against: what is declared, what of it is valid, and what can be done here.
pub(crate) struct Scope<'a> {
    pub(crate) platform: &'a Platform,
    pub(crate) declared: &'a BTreeSet<ObjectKey>,
    pub(crate) valid: Valid,
    ports: Ports,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(platform: &'a Platform, declared: &'a BTreeSet<ObjectKey>) -> Self {
        Self {
            platform,
            declared,
            valid: Valid::default(),
            ports: Ports::default(),
        }
    }

    /// Takes a version in if it is right and fits.
    pub(crate) fn admit(
        &mut self,
        key: &ObjectKey,
        meta: &Meta,
        object: &Object,
    ) -> Result<(), Vec<Problem>> {
        let name = Name::of(key);
        match object {
            Object::ConfigMap => drop(self.valid.config_maps.insert(name)),
            Object::Secret(secret) => drop(self.valid.secrets.insert(name, Arc::clone(secret))),
            Object::Broker(spec) => {
                let valid = broker::validate(Version::new(key, meta, spec), self)?;
                self.valid.brokers.insert(name, valid);
            }
            Object::BrokerPolicy(spec) => {
                let valid = broker_policy::validate(Version::new(key, meta, spec), self)?;
                self.valid.policies.insert(name, valid);
            }
            Object::Connector(spec) => {
                let valid = connector::validate(Version::new(key, meta, spec), self)?;
                self.valid.connectors.insert(name, valid);
            }
            Object::Simulator(spec) => {
                let valid = simulator::validate(Version::new(key, meta, spec), self)?;
                self.valid.simulators.insert(name, valid);
            }
            Object::Cloud(spec) => {
                let valid = cloud::validate(Version::new(key, meta, spec), self)?;
                self.valid.clouds.insert(name, valid);
            }
            Object::DataflowEndpoint(spec) => {
                let valid = dataflow_endpoint::validate(Version::new(key, meta, spec), self)?;
                self.valid.endpoints.insert(name, valid);
            }
            Object::Device(spec) => {
                let valid = device::validate(Version::new(key, meta, spec), self)?;
                self.valid.devices.insert(name, valid);
            }
            Object::Asset(spec) => {
                let valid = asset::validate(Version::new(key, meta, spec), self)?;
                self.valid.assets.insert(name, valid);
            }
            Object::Dataflow(spec) => {
                let valid = dataflow::validate(Version::new(key, meta, spec), self)?;
                self.valid.dataflows.insert(name, valid);
            }
        }
        Ok(())
    }

    /// Whether an object was taken in.
    fn has(&self, kind: Kind, name: &Name) -> bool {
        let Valid {
            config_maps,
            secrets,
            service_accounts: _,
            brokers,
            policies,
            connectors,
            simulators,
            clouds,
            endpoints,
            devices,
            assets,
            dataflows,
        } = &self.valid;
        match kind {
            Kind::ConfigMap => config_maps.contains(name),
            Kind::Secret => secrets.contains_key(name),
            Kind::Broker => brokers.contains_key(name),
            Kind::BrokerPolicy => policies.contains_key(name),
            Kind::Connector => connectors.contains_key(name),
            Kind::Simulator => simulators.contains_key(name),
            Kind::Cloud => clouds.contains_key(name),
            Kind::DataflowEndpoint => endpoints.contains_key(name),
            Kind::Device => devices.contains_key(name),
            Kind::Asset => assets.contains_key(name),
            Kind::Dataflow => dataflows.contains_key(name),
        }
    }

    /// Refuses a field that only pods can have, where there are none.
    fn pod_only(&self, field: &str, present: bool) -> Result<(), Problem> {
        if !present || self.platform.pods {
            return Ok(());
        }
        Err(Problem::new(
            reasons::UNSUPPORTED_HERE,
            "needs a cluster: there are no pods here",
        )
        .field(field)
        .allowed("this field in a cluster only"))
    }

    /// Refuses `spec.pod` where there are no pods.
    fn pod(&self, pod: Option<&Pod>) -> Result<(), Problem> {
        self.pod_only("spec.pod", pod.is_some())
    }
}

/// Refuses a field that nothing carries out yet: what a manifest asks for is never passed over in silence.
fn not_built_in(field: &str, present: bool) -> Result<(), Problem> {
    if !present {
        return Ok(());
    }
    Err(Problem::new(reasons::UNSUPPORTED_HERE, "not built in yet")
        .field(field)
        .allowed("a manifest without this field"))
}

/// The text of a list in a message.
pub(crate) fn enumerate<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() {
        "none is declared".to_owned()
    } else {
        items.join(", ")
    }
}

/// Roles of objects that stand for themselves.
pub(crate) type SimulatorVersion = Version<SimulatorSpec>;
pub(crate) type CloudVersion = Version<CloudSpec>;
pub(crate) type PolicyVersion = Version<BrokerPolicySpec>;
