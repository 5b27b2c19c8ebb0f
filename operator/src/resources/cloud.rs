//! `Cloud`: a role that is the cloud endpoint.

use foreshore_control::plan::CloudPlan;
use foreshore_crds::v1alpha1::CloudSpec;
use foreshore_tls::Role;

use crate::{object::Kind, plan::Planner, problem::Problem, role::RoleName};

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
