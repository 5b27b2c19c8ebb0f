//! From an address to a session: choosing the server's endpoint, judging its certificate, opening the session.

use std::{sync::Arc, time::Duration};

use foreshore_connector_sdk::{Credentials, Endpoint, LinkError, LinkErrorClass};
use foreshore_crds::v1alpha1::device::{OpcuaDevice, OpcuaSecurityMode, OpcuaSecurityPolicy};
use futures::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use opcua::{
    client::{Client, ClientBuilder, IdentityToken, Session, SessionPollResult},
    crypto::{PrivateKey, SecurityPolicy, X509},
    types::{EndpointDescription, MessageSecurityMode, StatusCode, UserTokenType},
};

use crate::{certificate, transport::Cutter};

/// Application URI that we show to servers.
pub(crate) const APPLICATION_URI: &str = "urn:foreshore:connector:opcua";

/// Longest wait between two tries of the library to take up a lost session, whatever the Device allows: what the
/// server queues covers only so much.
const MAX_RECONNECT_WAIT: Duration = Duration::from_secs(2);

/// What the library tells while it drives a session; nothing happens unless it is polled.
pub(crate) type EventStream = BoxStream<'static, Result<SessionPollResult, StatusCode>>;

/// Settings of a device that the user left out.
pub(crate) fn settings(endpoint: &Endpoint) -> OpcuaDevice {
    endpoint.spec.opcua.clone().unwrap_or_default()
}

/// Chooses an endpoint and makes a session that is not connected yet.
pub(crate) async fn session(
    endpoint: &Endpoint,
    settings: &OpcuaDevice,
    cutter: &Cutter,
) -> Result<(Arc<Session>, EventStream), LinkError> {
    let client = client(endpoint, settings)?;
    let found = tokio::time::timeout(
        settings.effective_connect_timeout(),
        client.get_server_endpoints_from_url(endpoint.address.as_str()),
    )
    .await
    .map_err(|_| unreachable_error("the server did not list its endpoints in time"))?
    .map_err(|error| {
        classify(error.status(), "the server did not list its endpoints").with_evidence(&error)
    })?;
    let mut chosen = choose(found, settings, endpoint)?;
    let der = chosen.server_certificate.value.clone().unwrap_or_default();
    certificate::refuse_chain(&der).map_err(|error| configuration_error(error.to_string()))?;
    let secret = !matches!(endpoint.credentials, Credentials::Anonymous);
    let open = chosen.security_mode == MessageSecurityMode::None;
    if secret && chosen.security_mode != MessageSecurityMode::SignAndEncrypt {
        keep_secure_tokens(&mut chosen)?;
    }
    // What is encrypted, is encrypted for whoever has that certificate's key: messages, or at least the password.
    if secret || !open {
        let uri = chosen.server.application_uri.as_ref();
        certificate::judge(&der, uri, &endpoint.trust, Timestamp::now())
            .map_err(|error| LinkError::new(LinkErrorClass::Untrusted, error.to_string()))?;
    }
    check_application(&chosen, settings)?;
    // Servers tell the host name they believe they have; we know one that works.
    chosen.endpoint_url = endpoint.address.as_str().into();
    let token = token(&endpoint.credentials)?;
    client
        .session_builder()
        .with_connector(cutter.clone())
        .connect_to_endpoint_directly(chosen)
        .and_then(|builder| {
            builder
                .user_identity_token(token)
                .build(Arc::clone(client.certificate_store()))
        })
        .map(|(session, events)| (session, events.enter().boxed()))
        .map_err(|error| configuration_error("the session could not be made").with_evidence(error))
}

fn client(endpoint: &Endpoint, settings: &OpcuaDevice) -> Result<Client, LinkError> {
    let limits = settings.limits.clone().unwrap_or_default();
    let reconnect = endpoint.spec.reconnect.clone().unwrap_or_default();
    let object = &endpoint.object;
    let name = settings
        .session_name
        .as_deref()
        .map_or_else(|| format!("foreshore/{object}"), ToOwned::to_owned);
    let max_message = usize::try_from(limits.effective_max_message_size()).unwrap_or(16 << 20);
    let session_timeout = u32::try_from(settings.effective_session_timeout().as_millis()).unwrap_or(60_000);
    let builder = ClientBuilder::new()
        .application_name("Foreshore")
        .application_uri(APPLICATION_URI)
        .product_uri("urn:foreshore")
        .pki_dir(endpoint.state_dir.join("pki"))
        .create_sample_keypair(true)
        // We judge the server's certificate ourselves: `certificate`.
        .trust_server_certs(true)
        .verify_server_certs(false)
        .session_name(name)
        .session_timeout(session_timeout)
        .session_retry_limit(-1)
        .session_retry_initial(reconnect.effective_initial().min(MAX_RECONNECT_WAIT))
        .session_retry_max(reconnect.effective_maximum().min(MAX_RECONNECT_WAIT))
        .keep_alive_interval(settings.effective_keep_alive_interval())
        // The library would close the session; `Driver` connects again and keeps it.
        .max_failed_keep_alive_count(0)
        .request_timeout(settings.effective_request_timeout())
        .publish_timeout(settings.effective_keep_alive_interval() * 3 + settings.effective_request_timeout())
        .min_publish_interval(Duration::from_millis(10))
        // It would shift times; `transport` minds the clocks.
        .ignore_clock_skew(false)
        // The library forgets what was under way; `resume` does it.
        .recreate_subscriptions(false)
        .max_array_length(200_000)
        .max_string_length(max_message)
        .max_byte_string_length(max_message)
        .max_message_size(max_message)
        .max_chunk_count(max_message.div_ceil(8192).max(1));
    builder.client().map_err(|errors| {
        configuration_error("the client could not be made").with_evidence(errors.join(", "))
    })
}

/// How we prove who we are.
fn token(credentials: &Credentials) -> Result<IdentityToken, LinkError> {
    Ok(match credentials {
        Credentials::Anonymous => IdentityToken::Anonymous,
        Credentials::UsernamePassword { username, password } => {
            IdentityToken::new_user_name(username.clone(), password.clone())
        }
        Credentials::Certificate { certificate, key } => {
            let unreadable = |what: &str| configuration_error(format!("the user's {what} cannot be read"));
            let certificate = X509::from_pem(certificate)
                .map_err(|error| unreadable("certificate").with_evidence(error))?;
            // Never the error: it may hold what it could not read.
            let key = PrivateKey::from_pem(key).map_err(|_| unreadable("key"))?;
            IdentityToken::new_x509(certificate, key)
        }
    })
}

/// Over a channel that does not encrypt only what the server has encrypted or signed for itself is sent.
fn keep_secure_tokens(chosen: &mut EndpointDescription) -> Result<(), LinkError> {
    let mut tokens = chosen.user_identity_tokens.take().unwrap_or_default();
    let channel = chosen.security_policy_uri.clone();
    tokens.retain(|token| {
        let own = Some(&token.security_policy_uri).filter(|uri| !uri.is_empty());
        matches!(
            SecurityPolicy::from_uri(own.unwrap_or(&channel).as_ref()),
            SecurityPolicy::Basic256Sha256
                | SecurityPolicy::Aes128Sha256RsaOaep
                | SecurityPolicy::Aes256Sha256RsaPss
        )
    });
    if tokens.is_empty() {
        return Err(configuration_error(
            "credentials are not sent in the clear: the server neither secures the channel nor has them encrypted",
        ));
    }
    chosen.user_identity_tokens = Some(tokens);
    Ok(())
}

fn check_application(chosen: &EndpointDescription, settings: &OpcuaDevice) -> Result<(), LinkError> {
    let found = chosen.server.application_uri.as_ref();
    match settings.application_uri.as_deref() {
        Some(expected) if expected != found => Err(configuration_error(format!(
            "the server is {found:?}, the Device asks for {expected:?}"
        ))),
        _ => Ok(()),
    }
}

/// Chooses the most secure endpoint that fits.
fn choose(
    found: Vec<EndpointDescription>,
    settings: &OpcuaDevice,
    endpoint: &Endpoint,
) -> Result<EndpointDescription, LinkError> {
    let (credentials, address) = (&endpoint.credentials, endpoint.address.as_str());
    let wanted = match credentials {
        Credentials::Anonymous => UserTokenType::Anonymous,
        Credentials::UsernamePassword { .. } => UserTokenType::UserName,
        Credentials::Certificate { .. } => UserTokenType::Certificate,
    };
    let offers = |endpoint: &EndpointDescription| {
        endpoint
            .user_identity_tokens
            .iter()
            .flatten()
            .any(|policy| policy.token_type == wanted)
    };
    let offered: Vec<String> = found
        .iter()
        .map(|endpoint| {
            let policy = SecurityPolicy::from_uri(endpoint.security_policy_uri.as_ref());
            format!("{policy} {:?}", endpoint.security_mode)
        })
        .collect();
    let fitting = found
        .into_iter()
        .filter_map(|endpoint| rank(&endpoint, settings).map(|rank| (rank, endpoint)));
    let mut fitting: Vec<_> = fitting.collect();
    if fitting.is_empty() {
        return Err(configuration_error(
            "the server offers no endpoint with the Device's security policy and mode",
        )
        .with_evidence(format!("offered: {}", offered.join(", "))));
    }
    fitting.retain(|(_, endpoint)| offers(endpoint));
    // A server with several addresses has endpoints for each, with names of their own for the kinds of users. One that
    // does not know the address that we dial takes its first.
    let same = |url: &str| url.trim_end_matches('/') == address.trim_end_matches('/');
    fitting
        .into_iter()
        .rev()
        .max_by_key(|(rank, endpoint)| (*rank, same(endpoint.endpoint_url.as_ref())))
        .map(|(_, endpoint)| endpoint)
        .ok_or_else(|| {
            LinkError::new(
                LinkErrorClass::AuthenticationRefused,
                format!("the server does not accept {wanted:?} users there"),
            )
        })
}

/// How secure an endpoint is; `None` when the Device forbids it or we do not know its policy.
fn rank(endpoint: &EndpointDescription, settings: &OpcuaDevice) -> Option<(u8, u8)> {
    let policy = SecurityPolicy::from_uri(endpoint.security_policy_uri.as_ref());
    let strength = match policy {
        SecurityPolicy::None => 0,
        SecurityPolicy::Basic256Sha256 => 1,
        SecurityPolicy::Aes128Sha256RsaOaep => 2,
        SecurityPolicy::Aes256Sha256RsaPss => 3,
        // Broken or unknown ones are never chosen.
        _ => return None,
    };
    let policy_fits = match settings.effective_security_policy() {
        OpcuaSecurityPolicy::Auto => true,
        OpcuaSecurityPolicy::None => policy == SecurityPolicy::None,
        OpcuaSecurityPolicy::Basic256Sha256 => policy == SecurityPolicy::Basic256Sha256,
        OpcuaSecurityPolicy::Aes128Sha256RsaOaep => policy == SecurityPolicy::Aes128Sha256RsaOaep,
        OpcuaSecurityPolicy::Aes256Sha256RsaPss => policy == SecurityPolicy::Aes256Sha256RsaPss,
    };
    let (mode, mode_fits) = match (endpoint.security_mode, settings.effective_security_mode()) {
        (MessageSecurityMode::None, wanted) => (
            0,
            matches!(wanted, OpcuaSecurityMode::Auto | OpcuaSecurityMode::None),
        ),
        (MessageSecurityMode::Sign, wanted) => (
            1,
            matches!(wanted, OpcuaSecurityMode::Auto | OpcuaSecurityMode::Sign),
        ),
        (MessageSecurityMode::SignAndEncrypt, wanted) => (
            2,
            matches!(
                wanted,
                OpcuaSecurityMode::Auto | OpcuaSecurityMode::SignAndEncrypt
            ),
        ),
        _ => return None,
    };
    (policy_fits && mode_fits).then_some((mode, strength))
}

/// What kind of trouble a status code tells of.
pub(crate) fn classify(status: StatusCode, message: &str) -> LinkError {
    let class = match status {
        StatusCode::BadIdentityTokenRejected
        | StatusCode::BadIdentityTokenInvalid
        | StatusCode::BadUserAccessDenied
        | StatusCode::BadUserSignatureInvalid => LinkErrorClass::AuthenticationRefused,
        StatusCode::BadCertificateUntrusted
        | StatusCode::BadCertificateInvalid
        | StatusCode::BadCertificateUriInvalid
        | StatusCode::BadCertificateHostNameInvalid
        | StatusCode::BadCertificateTimeInvalid
        | StatusCode::BadCertificateRevoked
        | StatusCode::BadSecurityChecksFailed
        | StatusCode::BadApplicationSignatureInvalid => LinkErrorClass::Untrusted,
        StatusCode::BadSecurityPolicyRejected
        | StatusCode::BadSecurityModeRejected
        | StatusCode::BadTcpEndpointUrlInvalid
        | StatusCode::BadTooManySessions => LinkErrorClass::Configuration,
        StatusCode::BadDecodingError
        | StatusCode::BadEncodingError
        | StatusCode::BadUnknownResponse
        | StatusCode::BadProtocolVersionUnsupported => LinkErrorClass::Protocol,
        _ => LinkErrorClass::Unreachable,
    };
    LinkError::new(class, message).with_evidence(status)
}

pub(crate) fn unreachable_error(message: impl Into<String>) -> LinkError {
    LinkError::new(LinkErrorClass::Unreachable, message)
}

pub(crate) fn configuration_error(message: impl Into<String>) -> LinkError {
    LinkError::new(LinkErrorClass::Configuration, message)
}
