//! `Simulator`: a role that plays a device.

use foreshore_control::plan::SimulatorPlan;
use foreshore_crds::v1alpha1::{
    Protocol, SimulatorSpec,
    simulator::{OnvifSimulator, OpcuaSimulator},
};
use foreshore_tls::Role;

use crate::{
    facts,
    object::Kind,
    plan::Planner,
    problem::Problem,
    role::RoleName,
    workloads::{Port, Shape, ports},
};

use super::{Faults, Name, Scope, SimulatorVersion, ports::Claim};

/// A Simulator that can be started.
pub(crate) struct ValidSimulator {
    pub(crate) version: SimulatorVersion,
    /// What the simulated device speaks.
    pub(crate) protocol: Protocol,
    secrets: Vec<Name>,
}

fn dereference(version: &SimulatorVersion, scope: &Scope<'_>) -> (Vec<Name>, Faults) {
    let SimulatorSpec {
        seed: _,
        bind_address: _,
        port: _,
        faults: _,
        opcua,
        onvif,
        log_level: _,
        pod: _,
    } = &*version.spec;
    let mut secrets = scope.secrets(&version.name.namespace);
    if let Some(OpcuaSimulator {
        user_secret_ref: Some(reference),
        ..
    }) = opcua
    {
        secrets.credentials(reference, "spec.opcua.userSecretRef");
    }
    if let Some(OnvifSimulator {
        user_secret_ref: Some(reference),
        ..
    }) = onvif
    {
        secrets.credentials(reference, "spec.onvif.userSecretRef");
    }
    secrets.finish()
}

pub(crate) fn validate(
    version: SimulatorVersion,
    scope: &mut Scope<'_>,
) -> Result<ValidSimulator, Vec<Problem>> {
    let (secrets, mut faults) = dereference(&version, scope);
    faults.take(scope.pod(version.spec.pod.as_ref()));
    faults.check()?;
    let protocol = if version.spec.onvif.is_some() {
        Protocol::Onvif
    } else {
        Protocol::Opcua
    };
    scope.claim(vec![Claim {
        object: version.name.key(Kind::Simulator),
        field: "spec.port".to_owned(),
        bind: version.spec.bind_address.as_ref().map(ToString::to_string),
        port: version.spec.effective_port(),
    }])?;
    Ok(ValidSimulator {
        version,
        protocol,
        secrets,
    })
}

/// The role that a Simulator is.
pub(crate) fn role(simulator: &Name) -> RoleName {
    RoleName::new(Role::Simulator, &simulator.namespace, &simulator.name)
}

impl ValidSimulator {
    /// What its pod needs.
    pub(crate) fn shape(&self) -> Shape {
        let spec = &*self.version.spec;
        let usual = match self.protocol {
            Protocol::Onvif => ports::ONVIF,
            _ => ports::OPCUA,
        };
        Shape {
            owners: vec![self.version.owner(Kind::Simulator)],
            replicas: 1,
            pod: spec.pod.clone(),
            log_level: spec.log_level,
            volume: None,
            encryption_keys: None,
            ports: vec![Port {
                name: facts::DEVICE.to_owned(),
                number: spec.port.filter(|port| *port != 0).unwrap_or(usual),
                service: None,
            }],
        }
    }

    pub(crate) fn plan(&self, planner: &mut Planner<'_>) {
        let Self {
            version,
            protocol: _,
            secrets,
        } = self;
        let (role, object) = (role(&version.name), version.name.key(Kind::Simulator));
        planner.add(
            &role,
            &object,
            &SimulatorPlan {
                object: version.object(),
                spec: (*version.spec).clone(),
            },
        );
        planner.secrets(&role, &object, secrets);
    }
}
