//! `Cloud`: a role that is the cloud endpoint.

use foreshore_control::plan::CloudPlan;
use foreshore_crds::v1alpha1::CloudSpec;
use foreshore_tls::Role;

use crate::{
    facts,
    object::Kind,
    plan::Planner,
    problem::Problem,
    role::RoleName,
    workloads::{Port, Shape, ports},
};

use super::{CloudVersion, Faults, Name, Scope, ports::Claim};

/// A Cloud that can be started.
pub(crate) struct ValidCloud {
    pub(crate) version: CloudVersion,
    secrets: Vec<Name>,
}

fn dereference(version: &CloudVersion, scope: &Scope<'_>) -> (Vec<Name>, Faults) {
    let CloudSpec {
        edge_link,
        http,
        join_tokens_secret_ref,
        api_token_secret_ref,
        certificates: _,
        volume: _,
        history: _,
        commands: _,
        log_level: _,
        pod: _,
    } = &*version.spec;
    let mut secrets = scope.secrets(&version.name.namespace);
    secrets.all_of(join_tokens_secret_ref, "spec.joinTokensSecretRef");
    secrets.one_or_all(api_token_secret_ref, "spec.apiTokenSecretRef");
    if let Some(reference) = &edge_link.tls_secret_ref {
        secrets.certificate(reference, "spec.edgeLink.tlsSecretRef");
    }
    if let Some(reference) = &http.tls_secret_ref {
        secrets.certificate(reference, "spec.http.tlsSecretRef");
    }
    secrets.finish()
}

pub(crate) fn validate(version: CloudVersion, scope: &mut Scope<'_>) -> Result<ValidCloud, Vec<Problem>> {
    let (secrets, mut faults) = dereference(&version, scope);
    faults.take(scope.pod(version.spec.pod.as_ref()));
    faults.check()?;
    let CloudSpec { edge_link, http, .. } = &*version.spec;
    let claims = [
        ("edgeLink", edge_link.port, &edge_link.bind_address),
        ("http", http.port, &http.bind_address),
    ];
    let claims = claims.map(|(member, port, bind)| Claim {
        object: version.name.key(Kind::Cloud),
        field: format!("spec.{member}.port"),
        bind: bind.as_ref().map(ToString::to_string),
        port,
    });
    scope.claim(claims.to_vec())?;
    Ok(ValidCloud { version, secrets })
}

/// The role that a Cloud is.
pub(crate) fn role(cloud: &Name) -> RoleName {
    RoleName::new(Role::Cloud, &cloud.namespace, &cloud.name)
}

impl ValidCloud {
    /// What its pod needs.
    pub(crate) fn shape(&self) -> Shape {
        let CloudSpec {
            edge_link,
            http,
            volume,
            log_level,
            pod,
            ..
        } = &*self.version.spec;
        let port = |name: &str, number: u16, usual: u16| Port {
            name: name.to_owned(),
            number: if number == 0 { usual } else { number },
            service: None,
        };
        // Without a certificate the API answers within the pod only.
        let http = http
            .tls_secret_ref
            .as_ref()
            .map(|_| port(facts::HTTP, http.port, ports::CLOUD_API));
        Shape {
            owners: vec![self.version.owner(Kind::Cloud)],
            replicas: 1,
            pod: pod.clone(),
            log_level: *log_level,
            volume: Some(volume.clone().unwrap_or_default()),
            encryption_keys: None,
            ports: [port(facts::EDGE_LINK, edge_link.port, ports::EDGE_LINK)]
                .into_iter()
                .chain(http)
                .collect(),
        }
    }

    pub(crate) fn plan(&self, planner: &mut Planner<'_>) {
        let Self { version, secrets } = self;
        let (role, object) = (role(&version.name), version.name.key(Kind::Cloud));
        planner.add(
            &role,
            &object,
            &CloudPlan {
                object: version.object(),
                spec: (*version.spec).clone(),
            },
        );
        planner.secrets(&role, &object, secrets);
    }
}
