//! `Device`: an endpoint that a connector's role dials.

use foreshore_control::{PlanResource, plan::DevicePlan};
use foreshore_crds::{
    conditions::reasons,
    v1alpha1::{ConnectorSpec, DeviceSpec, Protocol},
};

use crate::{facts, object::Kind, plan::Planner, problem::Problem};

use super::{Faults, Name, Scope, Version, connector, not_built_in, simulator};

/// A Device that can be dialled.
pub(crate) struct ValidDevice {
    pub(crate) version: Version<DeviceSpec>,
    pub(crate) protocol: Protocol,
    pub(crate) connector: Name,
    secrets: Vec<Name>,
}

/// What a Device refers to.
struct References {
    connector: Option<Name>,
    secrets: Vec<Name>,
}

fn dereference(version: &Version<DeviceSpec>, protocol: Protocol, scope: &Scope<'_>) -> (References, Faults) {
    let DeviceSpec {
        enabled: _,
        connector_ref,
        address: _,
        simulator_ref,
        authentication,
        trust,
        reconnect: _,
        opcua: _,
        onvif: _,
        custom: _,
    } = &*version.spec;
    let namespace = version.name.namespace.as_str();
    let mut secrets = scope.secrets(namespace);
    secrets.authentication(authentication.as_ref(), "spec.authentication");
    secrets.trust(trust.as_ref(), "spec.trust");
    let (secrets, mut faults) = secrets.finish();

    let speaks = |scope: &Scope<'_>, name: &Name| {
        scope
            .valid
            .connectors
            .get(name)
            .is_some_and(|connector| fits(&connector.version.spec, &version.spec))
    };
    let field = "spec.connectorRef";
    let connector = scope.find_or_only(Kind::Connector, namespace, connector_ref.as_ref(), field, speaks);
    let connector = faults.take(connector);
    if let Some(connector) = connector
        .as_ref()
        .and_then(|name| scope.valid.connectors.get(name))
        && !fits(&connector.version.spec, &version.spec)
    {
        let message = format!("Connector {} speaks another protocol", connector.version.name);
        let problem = Problem::new(reasons::PROTOCOL_MISMATCH, message).field(format!("{field}.name"));
        faults.add(
            problem
                .found(connector.version.spec.protocol.as_str())
                .allowed(protocol.as_str()),
        );
    }

    if let Some(reference) = simulator_ref {
        let field = "spec.simulatorRef";
        let found = faults.take(scope.find(Kind::Simulator, namespace, reference, field));
        if let Some(simulator) = found.and_then(|name| scope.valid.simulators.get(&name))
            && simulator.protocol != protocol
        {
            let message = format!(
                "Simulator {} plays a device of another protocol",
                simulator.version.name
            );
            let problem = Problem::new(reasons::PROTOCOL_MISMATCH, message).field(format!("{field}.name"));
            faults.add(
                problem
                    .found(simulator.protocol.as_str())
                    .allowed(protocol.as_str()),
            );
        }
    }
    (References { connector, secrets }, faults)
}

/// Whether a connector can dial a device.
fn fits(connector: &ConnectorSpec, device: &DeviceSpec) -> bool {
    let own = |connector: &ConnectorSpec| connector.custom.as_ref().map(|custom| custom.type_.to_string());
    device.protocol() == Some(connector.protocol)
        && device
            .custom
            .as_ref()
            .is_none_or(|custom| own(connector).as_deref() == Some(custom.type_.as_str()))
}

pub(crate) fn validate(
    version: Version<DeviceSpec>,
    scope: &mut Scope<'_>,
) -> Result<ValidDevice, Vec<Problem>> {
    let Some(protocol) = version.spec.protocol() else {
        let problem = Problem::new(reasons::INVALID, "no protocol").field("spec");
        return Err(vec![problem.allowed("exactly one of opcua, onvif and custom")]);
    };
    let (References { connector, secrets }, mut faults) = dereference(&version, protocol, scope);
    let limits = version
        .spec
        .opcua
        .as_ref()
        .and_then(|opcua| opcua.limits.as_ref());
    faults.take(not_built_in(
        "spec.opcua.limits.maxPublishRequests",
        limits.is_some_and(|limits| limits.max_publish_requests.is_some()),
    ));
    faults.check()?;
    match connector {
        Some(connector) => Ok(ValidDevice {
            version,
            protocol,
            connector,
            secrets,
        }),
        None => Err(Vec::new()),
    }
}

impl ValidDevice {
    pub(crate) fn plan(&self, planner: &mut Planner<'_>) {
        let Self {
            version,
            protocol: _,
            connector,
            secrets,
        } = self;
        let (role, object) = (connector::role(connector), version.name.key(Kind::Device));
        if !version.spec.effective_enabled() {
            planner.disabled(&object, "switched off by enabled: false");
            return;
        }
        planner.role(&role, &object);
        let Some(address) = self.address(planner) else {
            let simulator = version
                .spec
                .simulator_ref
                .as_ref()
                .map(|reference| reference.name.to_string());
            let simulator = simulator.unwrap_or_default();
            planner.waits(
                &role,
                &object,
                format!("Simulator {simulator} has not told its address yet"),
            );
            return;
        };
        let plan = DevicePlan {
            object: version.object(),
            connector: connector.name.clone(),
            address,
            spec: (*version.spec).clone(),
        };
        planner.add(&role, &object, &plan);
        planner.secrets(&role, &object, secrets);
        planner.unit(&role, &plan.key(), &object);
    }

    /// Where it answers, a simulator's address included.
    pub(crate) fn address(&self, planner: &Planner<'_>) -> Option<String> {
        if let Some(address) = &self.version.spec.address {
            return Some(address.to_string());
        }
        let simulator = self.version.spec.simulator_ref.as_ref()?;
        let role = simulator::role(&Name::new(&self.version.name.namespace, simulator.name.as_str()));
        planner.facts.first(&role, facts::DEVICE).map(ToOwned::to_owned)
    }
}
