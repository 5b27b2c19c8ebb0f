//! Where a broker is, and how the connection is secured.

use std::{sync::Arc, time::Duration};

use foreshore_control::Nack;
use foreshore_crds::v1alpha1::{
    common::{Trust, UsernamePassword, X509},
    dataflow_endpoint::{MqttEndpoint, MqttVersion},
};
use foreshore_mqtt::{Options, Security, Target, Versions, options::Credentials};
use foreshore_northbound::EndpointSetup;
use foreshore_tls::{Identity, ServerName};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use foreshore_crds::refs::{TLS_CERTIFICATE_KEY, TLS_PRIVATE_KEY_KEY};

/// How to connect.
pub(crate) struct Connection {
    pub(crate) options: Options,
}

/// An address, taken apart.
struct Address {
    host: String,
    /// With the port.
    address: String,
    encrypted: bool,
}

impl Connection {
    /// Judges an endpoint without connecting.
    pub(crate) fn check(mqtt: &MqttEndpoint, setup: &EndpointSetup) -> Result<(), Nack> {
        if let Some(broker) = &mqtt.broker_ref {
            return own_broker(&broker.name, setup).map(drop);
        }
        let address = address(mqtt)?;
        if let Some(trust) = &mqtt.trust {
            check_trust(trust)?;
        }
        let authentication = mqtt.authentication.clone().unwrap_or_default();
        if let Some(user) = &authentication.username_password {
            credentials(user, setup)?;
        }
        if authentication.x509.is_some() && !address.encrypted {
            return Err(Nack::new(
                "EndpointInvalid",
                "authentication.x509 needs an address that begins with mqtts://",
            ));
        }
        if address.encrypted {
            roots_of_secret(mqtt, setup)?;
            authentication
                .x509
                .as_ref()
                .map(|x509| certificate(x509, setup))
                .transpose()?;
        }
        Ok(())
    }

    /// Reads what a connection needs. Reads the system's authorities, so it may wait for the disk.
    ///
    /// The client is called `{prefix}-{name}`, with the endpoint's prefix.
    pub(crate) fn new(
        mqtt: &MqttEndpoint,
        endpoint: &EndpointSetup,
        name: &str,
        identity: &Identity,
    ) -> Result<Self, Nack> {
        Self::check(mqtt, endpoint)?;
        let authentication = mqtt.authentication.clone().unwrap_or_default();
        let (target, credentials) = match &mqtt.broker_ref {
            Some(broker) => (own_target(&broker.name, endpoint, identity)?, None),
            None => {
                let user = authentication.username_password.as_ref();
                let credentials = user.map(|user| credentials(user, endpoint)).transpose()?;
                (
                    foreign_target(mqtt, authentication.x509.as_ref(), endpoint)?,
                    credentials,
                )
            }
        };
        let prefix = mqtt
            .client_id_prefix
            .as_ref()
            .map_or("foreshore", |prefix| prefix.as_str());
        let mut options = Options::new(format!("{prefix}-{name}"), target);
        options.versions = match mqtt.version {
            // Ours is known.
            None if mqtt.broker_ref.is_some() => Versions::V5,
            None => Versions::V5OrV311,
            Some(MqttVersion::V5) => Versions::V5,
            Some(MqttVersion::V311) => Versions::V311,
        };
        options.credentials = credentials;
        // A client whose connection broke is given up; it should not have made another one by then.
        options.backoff_min = Duration::from_secs(1);
        options.keep_alive = mqtt.effective_keep_alive();
        options.window = u16::try_from(mqtt.effective_max_inflight())
            .unwrap_or(u16::MAX)
            .max(1);
        options.receive_maximum = options.window;
        Ok(Self { options })
    }
}

fn unsupported(found: &str, allowed: &str) -> Nack {
    Nack::new(
        "UnsupportedHere",
        format!("{found} is not supported yet, {allowed} is"),
    )
}

fn invalid(error: &dyn std::fmt::Display) -> Nack {
    Nack::new("EndpointInvalid", error.to_string())
}

// === our own broker ===

fn own_broker<'s>(
    name: &str,
    setup: &'s EndpointSetup,
) -> Result<&'s foreshore_control::plan::ConnectionPlan, Nack> {
    let missing = || Nack::new("BrokerMissing", format!("no connection to broker {name:?}"));
    setup.brokers.get(name).ok_or_else(missing)
}

fn own_target(name: &str, setup: &EndpointSetup, identity: &Identity) -> Result<Target, Nack> {
    let plan = own_broker(name, setup)?;
    let server_name = ServerName::try_from(plan.server_name.clone()).map_err(|error| invalid(&error))?;
    let security = Security::mutual(identity, server_name).map_err(|error| invalid(&error))?;
    Ok(Target {
        addresses: plan.mqtt_addresses.clone(),
        security,
    })
}

// === another broker ===

fn address(mqtt: &MqttEndpoint) -> Result<Address, Nack> {
    let url = mqtt.address.as_ref().map_or("", |address| address.as_str());
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (encrypted, port) = match scheme {
        "mqtt" => (false, 1883),
        "mqtts" => (true, 8883),
        _ => {
            return Err(unsupported(
                &format!("address {url:?}"),
                "mqtt://host:port or mqtts://host:port",
            ));
        }
    };
    let authority = rest.trim_end_matches('/');
    let malformed = || {
        Nack::new(
            "EndpointInvalid",
            format!("address {url:?} is not of the form {scheme}://host:port"),
        )
    };
    if authority.is_empty() || authority.contains(['/', '?', '#', '@']) {
        return Err(malformed());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, tail) = rest.split_once(']').ok_or_else(malformed)?;
            (
                host,
                tail.strip_prefix(':')
                    .map(str::to_owned)
                    .unwrap_or_else(|| port.to_string()),
            )
        }
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.to_owned()),
            None => (authority, port.to_string()),
        },
    };
    port.parse::<u16>().map_err(|_| malformed())?;
    let address = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    Ok(Address {
        host: host.to_owned(),
        address,
        encrypted,
    })
}

fn check_trust(trust: &Trust) -> Result<(), Nack> {
    if trust.effective_accept_untrusted() {
        return Err(unsupported(
            "trust.acceptUntrusted for mqtt",
            "trust.certificatesSecretRef",
        ));
    }
    if trust.effective_accept_other_host_names() {
        return Err(unsupported(
            "trust.acceptOtherHostNames for mqtt",
            "a certificate for the address",
        ));
    }
    Ok(())
}

fn credentials(user: &UsernamePassword, setup: &EndpointSetup) -> Result<Credentials, Nack> {
    let secret = &user.secret_ref;
    let username = setup
        .secrets
        .text(&secret.name, secret.effective_username_key())?
        .to_owned();
    let password = setup
        .secrets
        .value(&secret.name, secret.effective_password_key())?;
    let password = password
        .as_text()
        .map_or_else(|| password.0.clone(), |text| text.as_bytes().to_vec());
    Ok(Credentials { username, password })
}

fn foreign_target(mqtt: &MqttEndpoint, x509: Option<&X509>, setup: &EndpointSetup) -> Result<Target, Nack> {
    let Address {
        host,
        address,
        encrypted,
    } = address(mqtt)?;
    let security = if encrypted {
        let config = Arc::new(client_config(mqtt, x509, setup)?);
        let server_name = ServerName::try_from(host).map_err(|error| invalid(&error))?;
        Security::Tls { config, server_name }
    } else {
        Security::Plain
    };
    Ok(Target {
        addresses: vec![address],
        security,
    })
}

fn client_config(
    mqtt: &MqttEndpoint,
    x509: Option<&X509>,
    setup: &EndpointSetup,
) -> Result<ClientConfig, Nack> {
    let roots = match roots_of_secret(mqtt, setup)? {
        Some(roots) => roots,
        None => roots_of_system()?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid(&error))?;
    let builder = builder.with_root_certificates(roots);
    match x509 {
        None => Ok(builder.with_no_client_auth()),
        Some(x509) => {
            let (chain, key) = certificate(x509, setup)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| invalid(&error))
        }
    }
}

/// Certificates that the endpoint's own Secret gives; `None` when it names none.
fn roots_of_secret(mqtt: &MqttEndpoint, setup: &EndpointSetup) -> Result<Option<RootCertStore>, Nack> {
    let Some(secret) = mqtt
        .trust
        .as_ref()
        .and_then(|trust| trust.certificates_secret_ref.as_ref())
    else {
        return Ok(None);
    };
    let missing = || {
        Nack::new(
            "SecretMissing",
            format!("secret {:?} is not there", secret.name.as_str()),
        )
    };
    let plan = setup.secrets.0.get(secret.name.as_str()).ok_or_else(missing)?;
    let mut roots = RootCertStore::empty();
    for (key, value) in plan
        .data
        .iter()
        .filter(|(key, _)| key.ends_with(".crt") || key.ends_with(".pem"))
    {
        let unusable = |error: &dyn std::fmt::Display| {
            let name = secret.name.as_str();
            Nack::new(
                "SecretInvalid",
                format!("key {key:?} of secret {name:?} is no certificate: {error}"),
            )
        };
        for certificate in CertificateDer::pem_slice_iter(&value.0) {
            let certificate = certificate.map_err(|error| unusable(&error))?;
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
    }
    if roots.is_empty() {
        let message = format!(
            "secret {:?} holds no certificate in a key that ends in .crt or .pem",
            secret.name.as_str()
        );
        return Err(Nack::new("SecretInvalid", message));
    }
    Ok(Some(roots))
}

fn roots_of_system() -> Result<RootCertStore, Nack> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let message = "the system has no certificate authorities, trust.certificatesSecretRef can name some";
        return Err(Nack::new("EndpointInvalid", message));
    }
    Ok(roots)
}

fn certificate(
    x509: &X509,
    setup: &EndpointSetup,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Nack> {
    let name = &x509.secret_ref.name;
    let unusable = |key: &str, error: &dyn std::fmt::Display| {
        let name = name.as_str();
        Nack::new(
            "SecretInvalid",
            format!("key {key:?} of secret {name:?} can't be used: {error}"),
        )
    };
    let chain = setup.secrets.value(name, TLS_CERTIFICATE_KEY)?;
    let chain = CertificateDer::pem_slice_iter(&chain.0).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| unusable(TLS_CERTIFICATE_KEY, &error))?;
    let key = setup.secrets.value(name, TLS_PRIVATE_KEY_KEY)?;
    let key = PrivateKeyDer::from_pem_slice(&key.0).map_err(|error| unusable(TLS_PRIVATE_KEY_KEY, &error))?;
    Ok((chain, key))
}
