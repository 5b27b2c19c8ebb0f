//! Listeners as manifests describe them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use foreshore_control::{Nack, plan::SecretValue};
use foreshore_crds::{
    conditions::reasons,
    refs::{CA_CERTIFICATE_KEY, CA_REVOCATION_KEY, TLS_CERTIFICATE_KEY, TLS_PRIVATE_KEY_KEY},
    v1alpha1::broker::{
        JwtAuthentication, Listener, ListenerAuthentication, ServiceAccountAuthentication, TlsVersion,
        WebhookAuthentication,
    },
};
use foreshore_tls::{ClientAuth, Credentials, Identity, RevocationLists, TrustBundle};
use tungstenite::http::uri::PathAndQuery;

use crate::{
    auth::{
        Issuers, Method, PasswordTable, ServiceAccountIssuer, TokenIssuer, TokenOptions, Webhook,
        WebhookOptions,
    },
    options::{ListenerOptions, Protocol},
};

/// What a listener's manifest refers to.
pub(crate) struct Surroundings<'a> {
    /// Values of Secrets, by name.
    pub(crate) secrets: &'a BTreeMap<String, BTreeMap<String, SecretValue>>,
    /// Our own certificate, for listeners that name none.
    pub(crate) identity: &'a Identity,
    /// Address to bind where the manifest names none.
    pub(crate) default_address: IpAddr,
    /// Issuers of tokens that are asked already.
    pub(crate) issuers: &'a Issuers,
    /// Who signs the tokens of the cluster's service accounts, where that was told.
    pub(crate) service_accounts: Option<&'a Arc<ServiceAccountIssuer>>,
}

/// Makes options of a manifest's listener.
///
/// # Errors
/// When it asks for what is not built in, or refers to what is missing or malformed.
pub(crate) fn options(listener: &Listener, around: &Surroundings<'_>) -> Result<ListenerOptions, Nack> {
    let refused =
        |reason, message: String| Nack::new(reason, format!("listener {}: {message}", listener.name));
    let address = match listener.bind_address.as_deref() {
        None => around.default_address,
        Some(host) => host.parse().map_err(|_| {
            refused(
                reasons::INVALID,
                format!("found address {host:?}, an IP address is allowed"),
            )
        })?,
    };
    let mut authentication = Vec::new();
    for way in &listener.authentication {
        authentication.push(method(way, around).map_err(|(reason, message)| refused(reason, message))?);
    }
    let in_listener = |(reason, message): Refusal| refused(reason, message);
    let protocol = listener.protocol;
    let tls = protocol.is_encrypted().then(|| tls(listener, around));
    let (config, clients) = tls.transpose().map_err(in_listener)?.unzip();
    let path = protocol.is_web_socket().then(|| path(listener));
    let path = path.transpose().map_err(in_listener)?;
    Ok(ListenerOptions {
        name: listener.name.to_string(),
        address: SocketAddr::new(address, listener.port),
        protocol: Protocol::new(config, path),
        authentication,
        clients: clients.flatten(),
        max_connections: listener.max_connections,
    })
}

type Refusal = (&'static str, String);

fn method(way: &ListenerAuthentication, around: &Surroundings<'_>) -> Result<Method, Refusal> {
    if way.anonymous.is_some() {
        return Ok(Method::Anonymous);
    }
    if let Some(passwords) = &way.username_password {
        let name = passwords.secret_ref.name.as_str();
        let secret = secret(around, name)?;
        let users = secret.iter().map(|(user, value)| (user.clone(), value.0.clone()));
        let table = PasswordTable::new(users, &passwords.groups)
            .map_err(|error| (reasons::SECRET_INVALID, format!("secret {name:?}: {error}")))?;
        return Ok(Method::Passwords(Arc::new(table)));
    }
    if let Some(certificate) = &way.x509 {
        return Ok(Method::Certificate(certificate.effective_username_from()));
    }
    if let Some(tokens) = &way.jwt {
        return jwt(tokens, around);
    }
    if let Some(service) = &way.webhook {
        return webhook(service, around);
    }
    if let Some(accounts) = &way.service_account {
        return service_account(accounts, around);
    }
    let message = "a way of authentication that is not known here; anonymous, usernamePassword, x509, serviceAccount, jwt and webhook are";
    Err((reasons::UNSUPPORTED_HERE, message.to_owned()))
}

fn service_account(
    accounts: &ServiceAccountAuthentication,
    around: &Surroundings<'_>,
) -> Result<Method, Refusal> {
    let ServiceAccountAuthentication { audiences } = accounts;
    let Some(issuer) = around.service_accounts else {
        let message = "the keys of the cluster's service accounts are not known yet";
        return Err((reasons::NOT_YET_KNOWN, message.to_owned()));
    };
    let audiences = audiences.iter().map(ToString::to_string).collect();
    let issuer = TokenIssuer::of_service_accounts(Arc::clone(issuer), audiences);
    Ok(Method::Jwt(Arc::new(issuer)))
}

fn jwt(tokens: &JwtAuthentication, around: &Surroundings<'_>) -> Result<Method, Refusal> {
    let JwtAuthentication {
        issuer,
        jwks_uri,
        audiences,
        username_claim,
        groups_claim,
        ca_secret_ref,
    } = tokens;
    let options = TokenOptions {
        issuer: issuer.to_string(),
        jwks_uri: jwks_uri.as_ref().map(ToString::to_string),
        audiences: audiences.iter().map(ToString::to_string).collect(),
        username_claim: username_claim
            .as_ref()
            .map_or_else(|| "sub".to_owned(), ToString::to_string),
        groups_claim: groups_claim.as_ref().map(ToString::to_string),
        authorities: ca_secret_ref
            .as_ref()
            .map(|secret| authorities(around, secret.name.as_str()))
            .transpose()?,
    };
    let issuer = around.issuers.get(options);
    let issuer = issuer.map_err(|error| (reasons::INVALID, error.to_string()))?;
    Ok(Method::Jwt(issuer))
}

fn webhook(service: &WebhookAuthentication, around: &Surroundings<'_>) -> Result<Method, Refusal> {
    let WebhookAuthentication {
        url,
        ca_secret_ref,
        client_certificate_secret_ref,
        timeout: _,
    } = service;
    let options = WebhookOptions {
        url: url.to_string(),
        authorities: ca_secret_ref
            .as_ref()
            .map(|secret| authorities(around, secret.name.as_str()))
            .transpose()?,
        credentials: client_certificate_secret_ref
            .as_ref()
            .map(|secret| credentials(around, secret.name.as_str()))
            .transpose()?,
        timeout: service.effective_timeout(),
    };
    let webhook = Webhook::new(&options).map_err(|error| (reasons::INVALID, error.to_string()))?;
    Ok(Method::Webhook(Arc::new(webhook)))
}

fn credentials(around: &Surroundings<'_>, name: &str) -> Result<Credentials, Refusal> {
    let chain = value(around, name, TLS_CERTIFICATE_KEY)?;
    let key = value(around, name, TLS_PRIVATE_KEY_KEY)?;
    Credentials::from_pem(chain, key).map_err(|error| invalid(name, error))
}

/// The path of a WebSocket, if it is one that a client can ask for.
fn path(listener: &Listener) -> Result<Arc<str>, Refusal> {
    let path = listener.effective_path();
    match path.parse::<PathAndQuery>() {
        Ok(parsed) if parsed.as_str() == path && parsed.query().is_none() => Ok(path.into()),
        _ => {
            let message = format!("found path {path:?}, the path of a URL is allowed, without a query");
            Err((reasons::INVALID, message))
        }
    }
}

/// How it encrypts, and what the certificates of its clients are verified by if they have any.
type Encryption = (Arc<rustls::ServerConfig>, Option<Identity>);

fn tls(listener: &Listener, around: &Surroundings<'_>) -> Result<Encryption, Refusal> {
    let tls = listener.tls.clone().unwrap_or_default();
    if tls.effective_min_version() == TlsVersion::Tls13 {
        let message = "minVersion Tls13 is not built in yet, Tls12 is";
        return Err((reasons::UNSUPPORTED_HERE, message.to_owned()));
    }
    let authority = listener.authentication.iter().find_map(|way| way.x509.as_ref());
    let client_auth = match authority {
        None => ClientAuth::None,
        // Whoever shows no certificate may have another way in.
        Some(_) if listener.authentication.len() > 1 => ClientAuth::Optional,
        Some(_) => ClientAuth::Required,
    };
    let bundle = match authority {
        None => around.identity.bundle(),
        Some(certificate) => authorities(around, certificate.ca_secret_ref.name.as_str())?,
    };
    let identity = match (&tls.secret_ref, authority) {
        (Some(secret), _) => {
            let name = secret.name.as_str();
            Identity::new(&credentials(around, name)?, bundle).map_err(|error| invalid(name, error))?
        }
        (None, None) => around.identity.clone(),
        (None, Some(_)) => {
            let message = "x509 without tls.secretRef is not built in yet";
            return Err((reasons::UNSUPPORTED_HERE, message.to_owned()));
        }
    };
    let config = identity
        .server_config(client_auth)
        .map_err(|error| (reasons::INVALID, error.to_string()))?;
    Ok((Arc::new(config), authority.map(|_| identity)))
}

/// The authorities of clients, and the certificates that they have revoked.
fn authorities(around: &Surroundings<'_>, name: &str) -> Result<TrustBundle, Refusal> {
    let bundle = TrustBundle::from_pem(value(around, name, CA_CERTIFICATE_KEY)?);
    let bundle = bundle.map_err(|error| invalid(name, error))?;
    match secret(around, name)?.get(CA_REVOCATION_KEY) {
        None => Ok(bundle),
        Some(lists) => RevocationLists::from_pem(&lists.0)
            .and_then(|lists| bundle.revoking(lists))
            .map_err(|error| invalid(name, format!("key {CA_REVOCATION_KEY:?}: {error}"))),
    }
}

fn secret<'a>(around: &Surroundings<'a>, name: &str) -> Result<&'a BTreeMap<String, SecretValue>, Refusal> {
    let missing = || {
        (
            reasons::SECRET_NOT_FOUND,
            format!("secret {name:?} was not received"),
        )
    };
    around.secrets.get(name).ok_or_else(missing)
}

fn value<'a>(around: &Surroundings<'a>, name: &str, key: &str) -> Result<&'a [u8], Refusal> {
    let missing = || {
        (
            reasons::SECRET_KEY_MISSING,
            format!("secret {name:?} has no key {key:?}"),
        )
    };
    secret(around, name)?
        .get(key)
        .map(|value| value.0.as_slice())
        .ok_or_else(missing)
}

fn invalid(name: &str, error: impl std::fmt::Display) -> Refusal {
    (reasons::SECRET_INVALID, format!("secret {name:?}: {error}"))
}
