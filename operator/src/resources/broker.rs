//! `Broker`: a role of its own, with the Secrets of its listeners.

use foreshore_control::plan::{BrokerPlan, ConnectionPlan};
use foreshore_crds::{
    conditions::reasons,
    v1alpha1::{
        BrokerSpec,
        broker::{
            AuditDestination, BrokerAudit, BrokerStorage, CertificateAuthentication, Encryption, JetStream,
            JwtAuthentication, Listener, ListenerAuthentication, PasswordAuthentication, StorageBackend,
            WebhookAuthentication,
        },
    },
};
use foreshore_tls::Role;

use crate::{
    facts,
    object::{Kind, ObjectKey},
    plan::Planner,
    problem::Problem,
    role::RoleName,
    workloads::{Port, Shape},
};

use super::{Faults, Name, Scope, Version, enumerate, not_built_in, ports::Claim, secrets::Secrets};

/// A Broker that can be started.
pub(crate) struct ValidBroker {
    pub(crate) version: Version<BrokerSpec>,
    secrets: Vec<Name>,
}

/// The Secrets that a Broker needs.
fn dereference(version: &Version<BrokerSpec>, scope: &Scope<'_>) -> (Vec<Name>, Faults) {
    let BrokerSpec {
        replicas: _,
        listeners,
        storage,
        limits: _,
        sys_interval: _,
        metrics: _,
        probe: _,
        audit: _,
        refusals: _,
        redirect: _,
        log_level: _,
        pod: _,
    } = &*version.spec;
    let mut secrets = scope.secrets(&version.name.namespace);
    for (index, listener) in listeners.iter().enumerate() {
        dereference_listener(&mut secrets, listener, &format!("spec.listeners[{index}]"));
    }
    if let Some(JetStream {
        credentials_secret_ref,
        ca_secret_ref,
        ..
    }) = storage.as_ref().and_then(|storage| storage.jet_stream.as_ref())
    {
        if let Some(reference) = credentials_secret_ref {
            secrets.secret(&reference.name, "spec.storage.jetStream.credentialsSecretRef");
        }
        secrets.authorities(ca_secret_ref.as_ref(), "spec.storage.jetStream.caSecretRef");
    }
    if let Some(Encryption { secret_ref, .. }) =
        storage.as_ref().and_then(|storage| storage.encryption.as_ref())
    {
        secrets.encryption_keys(secret_ref, "spec.storage.encryption.secretRef");
    }
    secrets.finish()
}

fn dereference_listener(secrets: &mut Secrets<'_, '_>, listener: &Listener, field: &str) {
    if let Some(reference) = listener.tls.as_ref().and_then(|tls| tls.secret_ref.as_ref()) {
        secrets.certificate(reference, &format!("{field}.tls.secretRef"));
    }
    for (index, way) in listener.authentication.iter().enumerate() {
        let field = format!("{field}.authentication[{index}]");
        let ListenerAuthentication {
            anonymous: _,
            username_password,
            x509,
            service_account: _,
            jwt,
            webhook,
        } = way;
        if let Some(PasswordAuthentication {
            secret_ref,
            groups: _,
        }) = username_password
        {
            secrets.all_of(secret_ref, &format!("{field}.usernamePassword.secretRef"));
        }
        if let Some(CertificateAuthentication {
            ca_secret_ref,
            username_from: _,
        }) = x509
        {
            secrets.client_authorities(ca_secret_ref, &format!("{field}.x509.caSecretRef"));
        }
        if let Some(JwtAuthentication { ca_secret_ref, .. }) = jwt {
            secrets.authorities(ca_secret_ref.as_ref(), &format!("{field}.jwt.caSecretRef"));
        }
        if let Some(WebhookAuthentication {
            ca_secret_ref,
            client_certificate_secret_ref,
            ..
        }) = webhook
        {
            secrets.authorities(ca_secret_ref.as_ref(), &format!("{field}.webhook.caSecretRef"));
            if let Some(reference) = client_certificate_secret_ref {
                secrets.certificate(reference, &format!("{field}.webhook.clientCertificateSecretRef"));
            }
        }
    }
}

pub(crate) fn validate(
    version: Version<BrokerSpec>,
    scope: &mut Scope<'_>,
) -> Result<ValidBroker, Vec<Problem>> {
    let (secrets, mut faults) = dereference(&version, scope);
    let spec = &*version.spec;
    faults.take(scope.pod(spec.pod.as_ref()));
    faults.take(check_storage(spec, scope));
    let audit = spec.audit.as_ref().map(BrokerAudit::effective_destination);
    faults.take(scope.pod_only("spec.audit.destination", audit == Some(AuditDestination::Stdout)));
    let encryption = spec
        .storage
        .as_ref()
        .and_then(|storage| storage.encryption.as_ref());
    faults.take(scope.pod_only("spec.storage.encryption", encryption.is_some()));
    if let Some(storage) = &spec.storage {
        faults.take(not_built_in("spec.storage.maxBytes", storage.max_bytes.is_some()));
        faults.take(not_built_in("spec.storage.sync", storage.sync.is_some()));
    }
    if spec.effective_replicas() > 1 {
        faults.add(
            Problem::new(
                reasons::UNSUPPORTED_HERE,
                "several replicas need the JetStream store, which is not there yet",
            )
            .field("spec.replicas")
            .found(spec.effective_replicas().to_string())
            .allowed("1"),
        );
    }
    for (index, listener) in spec.listeners.iter().enumerate() {
        let field = format!("spec.listeners[{index}]");
        faults.take(scope.pod_only(&format!("{field}.service"), listener.service.is_some()));
        for (way, authentication) in listener.authentication.iter().enumerate() {
            let field = format!("{field}.authentication[{way}].serviceAccount");
            faults.take(scope.pod_only(&field, authentication.service_account.is_some()));
        }
    }
    faults.check()?;
    scope.claim(claims(&version))?;
    Ok(ValidBroker { version, secrets })
}

fn check_storage(spec: &BrokerSpec, scope: &Scope<'_>) -> Result<(), Problem> {
    let backend = spec
        .storage
        .as_ref()
        .map_or(StorageBackend::Fjall, BrokerStorage::effective_backend);
    if scope.platform.storage.contains(&backend) {
        return Ok(());
    }
    let allowed = enumerate(
        scope
            .platform
            .storage
            .iter()
            .map(|backend| format!("{backend:?}")),
    );
    Err(
        Problem::new(reasons::UNSUPPORTED_HERE, "a store that is not there")
            .field("spec.storage.backend")
            .found(format!("{backend:?}"))
            .allowed(allowed),
    )
}

fn claims(version: &Version<BrokerSpec>) -> Vec<Claim> {
    let claim = |(index, listener): (usize, &Listener)| Claim {
        object: version.name.key(Kind::Broker),
        field: format!("spec.listeners[{index}].port"),
        bind: listener.bind_address.as_ref().map(ToString::to_string),
        port: listener.port,
    };
    version.spec.listeners.iter().enumerate().map(claim).collect()
}

/// The role that a Broker is.
pub(crate) fn role(broker: &Name) -> RoleName {
    RoleName::new(Role::Broker, &broker.namespace, &broker.name)
}

impl ValidBroker {
    /// What its pod needs.
    pub(crate) fn shape(&self) -> Shape {
        let BrokerSpec {
            listeners,
            storage,
            log_level,
            pod,
            ..
        } = &*self.version.spec;
        let ports = listeners.iter().map(|listener| Port {
            name: listener.name.to_string(),
            number: listener.port,
            service: Some(listener.service.clone().unwrap_or_default()),
        });
        let volume = storage.as_ref().and_then(|storage| storage.volume.clone());
        let encryption = storage.as_ref().and_then(|storage| storage.encryption.as_ref());
        Shape {
            owners: vec![self.version.owner(Kind::Broker)],
            replicas: 1,
            pod: pod.clone(),
            log_level: *log_level,
            volume: Some(volume.unwrap_or_default()),
            encryption_keys: encryption.map(|encryption| encryption.secret_ref.name.to_string()),
            ports: ports.collect(),
        }
    }

    pub(crate) fn plan(&self, planner: &mut Planner<'_>) {
        let Self { version, secrets } = self;
        let (role, object) = (role(&version.name), version.name.key(Kind::Broker));
        planner.add(
            &role,
            &object,
            &BrokerPlan {
                object: version.object(),
                spec: (*version.spec).clone(),
            },
        );
        planner.secrets(&role, &object, secrets);
        let mut ways = version
            .spec
            .listeners
            .iter()
            .flat_map(|listener| &listener.authentication);
        if ways.any(|way| way.service_account.is_some()) {
            service_accounts(planner, &role, &object);
        }
    }
}

/// Tells a broker who signs the tokens of the cluster's service accounts.
fn service_accounts(planner: &mut Planner<'_>, role: &RoleName, object: &ObjectKey) {
    let unknown = "the keys of the cluster's service accounts are not known yet";
    match &planner.valid.service_accounts {
        Some(Ok(issuer)) => planner.add(role, object, &**issuer),
        Some(Err(cause)) => planner.waits(role, object, format!("{unknown}: {cause}")),
        None => planner.waits(role, object, unknown),
    }
}

/// Tells a role where a broker is; tells whether that is known.
pub(crate) fn connect(planner: &mut Planner<'_>, role: &RoleName, object: &ObjectKey, broker: &Name) -> bool {
    let serving = self::role(broker);
    let mqtt_addresses = planner.facts.all(&serving, facts::MQTT).to_vec();
    let queue_addresses = planner.facts.all(&serving, facts::QUEUE).to_vec();
    if mqtt_addresses.is_empty() || queue_addresses.is_empty() {
        planner.waits(role, object, format!("Broker {broker} does not answer yet"));
        return false;
    }
    let Name { namespace, name } = broker.clone();
    let known = planner.valid.brokers.get(broker);
    let uid = known.map_or_else(String::new, |known| known.version.object().uid);
    let server_name = serving.server_name();
    planner.add(
        role,
        object,
        &ConnectionPlan {
            namespace,
            broker: name,
            uid,
            mqtt_addresses,
            queue_addresses,
            server_name,
        },
    );
    true
}
