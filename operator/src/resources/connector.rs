//! `Connector`: a role that dials devices of one protocol.

use foreshore_crds::{
    conditions::reasons,
    v1alpha1::{ConnectorSpec, Protocol},
};
use foreshore_tls::Role;

use crate::{object::Kind, plan::Planner, problem::Problem, role::RoleName, workloads::Shape};

use super::{Faults, Name, Scope, Version, broker, enumerate, not_built_in};

/// A Connector that can be started.
pub(crate) struct ValidConnector {
    pub(crate) version: Version<ConnectorSpec>,
    pub(crate) broker: Name,
}

fn dereference(version: &Version<ConnectorSpec>, scope: &Scope<'_>) -> Result<Name, Problem> {
    let reference = version.spec.broker_ref.as_ref();
    scope.find_or_only(
        Kind::Broker,
        &version.name.namespace,
        reference,
        "spec.brokerRef",
        |_, _| true,
    )
}

pub(crate) fn validate(
    version: Version<ConnectorSpec>,
    scope: &mut Scope<'_>,
) -> Result<ValidConnector, Vec<Problem>> {
    let mut faults = Faults::default();
    let broker = faults.take(dereference(&version, scope));
    let ConnectorSpec {
        protocol,
        broker_ref: _,
        replicas: _,
        high_availability,
        log_level: _,
        limits,
        pod,
        custom: _,
    } = &*version.spec;
    faults.take(check_protocol(*protocol, scope));
    faults.take(scope.pod(pod.as_ref()));
    faults.take(scope.pod_only("spec.highAvailability", high_availability.is_some()));
    faults.take(not_built_in("spec.limits", limits.is_some()));
    faults.check()?;
    match broker {
        Some(broker) => Ok(ValidConnector { version, broker }),
        None => Err(Vec::new()),
    }
}

fn check_protocol(protocol: Protocol, scope: &Scope<'_>) -> Result<(), Problem> {
    let own = protocol == Protocol::Custom && scope.platform.pods;
    if own || scope.platform.protocols.contains(&protocol) {
        return Ok(());
    }
    let message = match protocol {
        Protocol::Custom => "a connector of your own is an image, and needs a cluster",
        Protocol::Opcua | Protocol::Onvif => "no connector for the protocol is built in",
    };
    Err(Problem::new(reasons::UNSUPPORTED_HERE, message)
        .field("spec.protocol")
        .found(protocol.as_str())
        .allowed(enumerate(&scope.platform.protocols)))
}

/// The role that a Connector is.
pub(crate) fn role(connector: &Name) -> RoleName {
    RoleName::new(Role::Connector, &connector.namespace, &connector.name)
}

impl ValidConnector {
    /// What its pods need.
    pub(crate) fn shape(&self) -> Shape {
        let spec = &*self.version.spec;
        Shape {
            owners: vec![self.version.owner(Kind::Connector)],
            replicas: spec.effective_replicas(),
            pod: spec.pod.clone(),
            log_level: spec.log_level,
            ..Shape::default()
        }
    }

    pub(crate) fn plan(&self, planner: &mut Planner<'_>) {
        let Self { version, broker } = self;
        let (role, object) = (role(&version.name), version.name.key(Kind::Connector));
        planner.role(&role, &object);
        broker::connect(planner, &role, &object, broker);
        if version.spec.effective_replicas() == 0 {
            planner.disabled(&object, "it has no replicas");
        }
    }
}
