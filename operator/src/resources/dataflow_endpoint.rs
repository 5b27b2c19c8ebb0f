//! `DataflowEndpoint`: how a dataflow runner reaches a system. It is planned for runners that use it.

use std::collections::BTreeMap;

use foreshore_control::plan::{EndpointPlan, SecretValue};
use foreshore_crds::{
    conditions::reasons,
    refs::{CA_CERTIFICATE_KEY, SecretRef},
    types::HostPort,
    v1alpha1::{
        DataflowEndpointSpec,
        dataflow_endpoint::{
            CloudEndpoint, EndpointType, HttpAuthentication, JOIN_TOKEN_KEY, KafkaAuthentication,
            MqttEndpoint,
        },
    },
};

use crate::{
    facts,
    object::{Kind, ObjectKey},
    plan::Planner,
    problem::Problem,
    role::RoleName,
};

use super::{Faults, Name, Scope, Version, asset, broker, cloud, enumerate, secrets::Secrets};

/// A DataflowEndpoint that dataflows can deliver to.
pub(crate) struct ValidEndpoint {
    pub(crate) version: Version<DataflowEndpointSpec>,
    pub(crate) speaks: EndpointType,
    /// A Cloud of ours, instead of an address.
    cloud: Option<Name>,
    /// A Broker of ours, instead of an address.
    broker: Option<Name>,
    secrets: Vec<Name>,
}

/// What a DataflowEndpoint refers to.
struct References {
    cloud: Option<Name>,
    broker: Option<Name>,
    secrets: Vec<Name>,
}

fn dereference(version: &Version<DataflowEndpointSpec>, scope: &Scope<'_>) -> (References, Faults) {
    let DataflowEndpointSpec {
        cloud,
        mqtt,
        file: _,
        kafka,
        http,
        postgresql,
        object_store,
    } = &*version.spec;
    let namespace = version.name.namespace.as_str();
    let mut secrets = scope.secrets(namespace);
    if let Some(CloudEndpoint {
        join_token_secret_ref,
        ca_secret_ref,
        ..
    }) = cloud
    {
        secrets.value(
            join_token_secret_ref,
            JOIN_TOKEN_KEY,
            "spec.cloud.joinTokenSecretRef",
        );
        secrets.authorities(ca_secret_ref.as_ref(), "spec.cloud.caSecretRef");
    }
    if let Some(MqttEndpoint {
        authentication,
        trust,
        ..
    }) = mqtt
    {
        secrets.authentication(authentication.as_ref(), "spec.mqtt.authentication");
        secrets.trust(trust.as_ref(), "spec.mqtt.trust");
    }
    if let Some(kafka) = kafka {
        secrets.trust(kafka.tls.as_ref(), "spec.kafka.tls");
        dereference_kafka(&mut secrets, kafka.authentication.as_ref());
    }
    if let Some(http) = http {
        secrets.trust(http.trust.as_ref(), "spec.http.trust");
        dereference_http(&mut secrets, http.authentication.as_ref());
    }
    if let Some(postgresql) = postgresql {
        secrets.username_password(Some(&postgresql.authentication), "spec.postgresql.authentication");
        secrets.trust(postgresql.tls.as_ref(), "spec.postgresql.tls");
    }
    if let Some(store) = object_store {
        let by_store = [
            (
                "s3",
                store.s3.as_ref().and_then(|store| store.secret_ref.as_ref()),
            ),
            (
                "azure",
                store.azure.as_ref().and_then(|store| store.secret_ref.as_ref()),
            ),
            (
                "gcs",
                store.gcs.as_ref().and_then(|store| store.secret_ref.as_ref()),
            ),
        ];
        for (member, reference) in by_store {
            if let Some(reference) = reference {
                secrets.all_of(reference, &format!("spec.objectStore.{member}.secretRef"));
            }
        }
    }
    let (secrets, mut faults) = secrets.finish();
    let cloud = cloud.as_ref().and_then(|cloud| cloud.cloud_ref.as_ref());
    let cloud =
        cloud.and_then(|to| faults.take(scope.find(Kind::Cloud, namespace, to, "spec.cloud.cloudRef")));
    let broker = mqtt.as_ref().and_then(|mqtt| mqtt.broker_ref.as_ref());
    let broker =
        broker.and_then(|to| faults.take(scope.find(Kind::Broker, namespace, to, "spec.mqtt.brokerRef")));
    (
        References {
            cloud,
            broker,
            secrets,
        },
        faults,
    )
}

fn dereference_kafka(secrets: &mut Secrets<'_, '_>, authentication: Option<&KafkaAuthentication>) {
    let Some(KafkaAuthentication {
        anonymous: _,
        plain,
        scram_sha256,
        scram_sha512,
        x509,
    }) = authentication
    else {
        return;
    };
    let field = "spec.kafka.authentication";
    secrets.username_password(plain.as_ref(), &format!("{field}.plain"));
    secrets.username_password(scram_sha256.as_ref(), &format!("{field}.scramSha256"));
    secrets.username_password(scram_sha512.as_ref(), &format!("{field}.scramSha512"));
    secrets.x509(x509.as_ref(), &format!("{field}.x509"));
}

fn dereference_http(secrets: &mut Secrets<'_, '_>, authentication: Option<&HttpAuthentication>) {
    let Some(HttpAuthentication {
        anonymous: _,
        basic,
        bearer,
        x509,
    }) = authentication
    else {
        return;
    };
    let field = "spec.http.authentication";
    secrets.username_password(basic.as_ref(), &format!("{field}.basic"));
    if let Some(bearer) = bearer {
        secrets.value(
            &bearer.secret_ref,
            JOIN_TOKEN_KEY,
            &format!("{field}.bearer.secretRef"),
        );
    }
    secrets.x509(x509.as_ref(), &format!("{field}.x509"));
}

pub(crate) fn validate(
    version: Version<DataflowEndpointSpec>,
    scope: &mut Scope<'_>,
) -> Result<ValidEndpoint, Vec<Problem>> {
    let Some(speaks) = version.spec.endpoint_type() else {
        return Err(vec![
            Problem::new(reasons::INVALID, "no system")
                .field("spec")
                .allowed("exactly one member"),
        ]);
    };
    let (
        References {
            cloud,
            broker,
            secrets,
        },
        mut faults,
    ) = dereference(&version, scope);
    if !scope.platform.endpoints.contains(&speaks) {
        let problem = Problem::new(reasons::UNSUPPORTED_HERE, "no sink for such systems is built in");
        let allowed = enumerate(scope.platform.endpoints.iter().map(|known| known.as_str()));
        faults.add(
            problem
                .field(format!("spec.{}", speaks.as_str()))
                .found(speaks.as_str())
                .allowed(allowed),
        );
    }
    faults.check()?;
    Ok(ValidEndpoint {
        version,
        speaks,
        cloud,
        broker,
        secrets,
    })
}

impl ValidEndpoint {
    /// Plans the endpoint for a role, for the sake of an object that uses it; tells whether it is in the plan.
    pub(crate) fn plan_for(&self, planner: &mut Planner<'_>, role: &RoleName, user: &ObjectKey) -> bool {
        let Self {
            version,
            speaks: _,
            cloud,
            broker,
            secrets,
        } = self;
        let object = version.name.key(Kind::DataflowEndpoint);
        let mut spec = (*version.spec).clone();
        if let (Some(cloud), Some(endpoint)) = (cloud, &mut spec.cloud)
            && !resolve_cloud(planner, role, &object, cloud, endpoint)
        {
            planner.waits(
                role,
                user,
                format!("Cloud {} has not told its address yet", cloud.name),
            );
            return false;
        }
        if let Some(broker) = broker
            && !broker::connect(planner, role, &object, broker)
        {
            planner.waits(role, user, format!("Broker {} does not answer yet", broker.name));
            return false;
        }
        planner.secrets(role, &object, secrets);
        if spec.cloud.is_some() && !planner.has::<EndpointPlan>(role, &version.name) {
            asset::plan_summaries(planner, role, &object, &version.name.namespace);
        }
        planner.add(
            role,
            &object,
            &EndpointPlan {
                object: version.object(),
                spec,
            },
        );
        true
    }
}

/// Puts the address of a Cloud of ours, and whom to trust there, in place of the reference.
fn resolve_cloud(
    planner: &mut Planner<'_>,
    role: &RoleName,
    object: &ObjectKey,
    cloud: &Name,
    endpoint: &mut CloudEndpoint,
) -> bool {
    let serving = cloud::role(cloud);
    let known = planner.facts.roles.get(&serving);
    let Some(address) = known.and_then(|facts| facts.first(facts::EDGE_LINK)) else {
        planner.waits(
            role,
            object,
            format!("Cloud {} has not told its address yet", cloud.name),
        );
        return false;
    };
    endpoint.address = Some(HostPort::from(address));
    endpoint.cloud_ref = None;
    if let Some(authority) = known.and_then(|facts| facts.authority.as_ref()) {
        let name = Name::new(&cloud.namespace, authority_secret(&cloud.name));
        let data = BTreeMap::from([(
            CA_CERTIFICATE_KEY.to_owned(),
            SecretValue(authority.as_bytes().to_vec()),
        )]);
        endpoint.ca_secret_ref = Some(SecretRef {
            name: name.name.as_str().into(),
        });
        planner.secret(role, object, &name, data);
    }
    true
}

/// Name of the Secret, in plans only, with the authority of a Cloud of ours. Names of ours never hold a dot.
fn authority_secret(cloud: &str) -> String {
    format!("{cloud}.cloud.foreshore.dev")
}
