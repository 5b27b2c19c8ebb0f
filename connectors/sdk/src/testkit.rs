//! What tests of connectors need: a [`Harness`] that runs any connector against a broker stand-in, and a scripted
//! connector.
//!
//! The broker is [`foreshore_mqtt::testing::StandIn`], which keeps nothing and says so; the operator is the test, which
//! puts plans in force one by one. Everything between is what runs in a plant, mutual TLS included.

mod fake;
mod recorder;

use std::{io, path::Path, sync::Arc};

use foreshore_control::{
    Change, Nack, PlanResource, Resource, ResourceKey, Role as _,
    plan::{AssetPlan, ConnectionPlan, DevicePlan, ObjectRef, SecretPlan, SecretValue},
};
use foreshore_mqtt::{
    Client, Options, Security, Target,
    testing::{Behaviour, StandIn},
};
use foreshore_runtime::{HealthRegistry, Metrics, Shutdown, Task, spawn};
use foreshore_tls::{
    AuthorityOptions, CertificateAuthority, ClientAuth, Identity, Role, RoleIdentity, ServerName,
};
use jiff::Timestamp;

pub use self::{fake::FakeConnector, recorder::Recorder};
use crate::{
    contract::Connector,
    runner::{Drain, Environment, Runner, RunnerOptions},
};

/// Namespace of everything that the kit makes.
pub const NAMESPACE: &str = "plant";
/// Name in the stand-in's certificate.
const SERVER_NAME: &str = "broker.test";

/// A connector that runs against a broker stand-in.
pub struct Harness {
    /// The broker stand-in.
    pub broker: StandIn,
    /// What the connector reported.
    pub reports: Arc<Recorder>,
    /// What it counted.
    pub metrics: Metrics,
    /// Whether it is connected to the broker.
    pub health: HealthRegistry,
    runner: Runner,
    drain: Drain,
    shutdown: Shutdown,
    authority: CertificateAuthority,
}

fn other(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(error.to_string())
}

fn identity(authority: &CertificateAuthority, role: Role, names: &[&str]) -> io::Result<Identity> {
    let who = RoleIdentity::new(role, NAMESPACE, "test", "u1").map_err(other)?;
    let names: Result<Vec<_>, _> = names
        .iter()
        .map(|name| ServerName::try_from((*name).to_owned()))
        .collect();
    let credentials = authority
        .issue_credentials(&who, &names.map_err(other)?, Timestamp::now())
        .map_err(other)?;
    Identity::new(&credentials, authority.bundle()).map_err(other)
}

impl Harness {
    /// Runs a connector that keeps its state in `state_dir`, connected to a broker stand-in of its own.
    ///
    /// # Errors
    /// When no port can be had, or the directory can't be used.
    pub async fn start(connector: Arc<dyn Connector>, state_dir: &Path) -> io::Result<Self> {
        Self::with(
            connector,
            RunnerOptions::new(state_dir.to_owned()),
            Behaviour::default(),
        )
        .await
    }

    /// As [`start`](Self::start), with options and a behaviour of the broker.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn with(
        connector: Arc<dyn Connector>,
        options: RunnerOptions,
        behaviour: Behaviour,
    ) -> io::Result<Self> {
        foreshore_tls::install_provider();
        let authority =
            CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).map_err(other)?;
        let server = identity(&authority, Role::Broker, &[SERVER_NAME])?;
        let tls = Some(Arc::new(
            server.server_config(ClientAuth::Required).map_err(other)?,
        ));
        let broker = StandIn::start(Behaviour { tls, ..behaviour }).await?;
        let (reports, metrics) = (Arc::new(Recorder::default()), Metrics::new());
        let (health, shutdown) = (HealthRegistry::new(), Shutdown::new());
        let environment = Environment {
            identity: identity(&authority, Role::Connector, &[])?,
            reports: Arc::clone(&reports) as Arc<_>,
            metrics: metrics.clone(),
            health: health.clone(),
            shutdown: shutdown.clone(),
        };
        let (runner, drain) = Runner::new(connector, options, environment)
            .await
            .map_err(other)?;
        let mut harness = Self {
            broker,
            reports,
            metrics,
            health,
            runner,
            drain,
            shutdown,
            authority,
        };
        let connection = ConnectionPlan {
            namespace: NAMESPACE.to_owned(),
            broker: "stand-in".to_owned(),
            uid: "uid-stand-in".to_owned(),
            mqtt_addresses: vec![harness.broker.address().to_owned()],
            queue_addresses: Vec::new(),
            server_name: SERVER_NAME.to_owned(),
        };
        harness.set(&connection).await.map_err(other)?;
        Ok(harness)
    }

    /// Puts a resource in force.
    ///
    /// # Errors
    /// The connector's refusal.
    pub async fn set<T: PlanResource>(&mut self, resource: &T) -> Result<(), Nack> {
        let resource = Resource::of(resource)?;
        self.runner.apply(Change::Set(resource)).await
    }

    /// Takes a resource away.
    ///
    /// # Errors
    /// The connector's refusal.
    pub async fn remove<T: PlanResource>(&mut self, resource: &T) -> Result<(), Nack> {
        let key: ResourceKey = resource.key();
        self.runner.apply(Change::Remove(key)).await
    }

    /// Another client of the stand-in, for sending commands and reading what is published.
    ///
    /// # Errors
    /// When it gets no certificate.
    pub fn client(&self, name: &str) -> io::Result<(Client, Task<()>)> {
        let identity = identity(&self.authority, Role::Dataflow, &[])?;
        let server_name = ServerName::try_from(SERVER_NAME).map_err(other)?;
        let security = Security::mutual(&identity, server_name).map_err(other)?;
        let target = Target {
            addresses: vec![self.broker.address().to_owned()],
            security,
        };
        let (client, service) = Client::new(Options::new(name, target));
        Ok((client, spawn("test-client", service.run(Shutdown::new()))))
    }

    /// Ends the connector in order, and gives back the stand-in with what it recorded.
    pub async fn stop(self, within: std::time::Duration) -> StandIn {
        self.shutdown.begin(within);
        drop(self.runner);
        self.drain.wait().await;
        self.broker
    }
}

fn object(name: &str, generation: i64) -> ObjectRef {
    ObjectRef {
        namespace: NAMESPACE.to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        generation,
    }
}

/// A Device of the connector under test.
///
/// # Errors
/// When the text is no Device's spec.
pub fn device(name: &str, address: &str, spec: serde_json::Value) -> Result<DevicePlan, serde_json::Error> {
    let (connector, address) = ("test".to_owned(), address.to_owned());
    Ok(DevicePlan {
        object: object(name, 1),
        connector,
        address,
        spec: serde_json::from_value(spec)?,
    })
}

/// An Asset on a Device; `deviceRef` is added to its spec.
///
/// # Errors
/// When the text is no Asset's spec.
pub fn asset(name: &str, device: &str, mut spec: serde_json::Value) -> Result<AssetPlan, serde_json::Error> {
    if let Some(members) = spec.as_object_mut() {
        members.insert("deviceRef".to_owned(), serde_json::json!({ "name": device }));
    }
    Ok(AssetPlan {
        object: object(name, 1),
        device: device.to_owned(),
        spec: serde_json::from_value(spec)?,
    })
}

/// A Secret.
#[must_use]
pub fn secret(name: &str, data: &[(&str, &str)]) -> SecretPlan {
    let value = |(key, value): &(&str, &str)| ((*key).to_owned(), SecretValue(value.as_bytes().to_vec()));
    SecretPlan {
        namespace: NAMESPACE.to_owned(),
        name: name.to_owned(),
        data: data.iter().map(value).collect(),
    }
}
