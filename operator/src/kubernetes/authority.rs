//! The certificate authority, kept in a Secret of the operator's namespace.
//!
//! Its roots are its own, or come from a Secret that somebody else looks after, such as cert-manager. A new one there is
//! the next root, which signs when every role trusts it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use foreshore_runtime::Shutdown;
use foreshore_tls::{AuthorityOptions, CertificateAuthority, TrustBundle};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube_client::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::{Error, MANAGER, within};

/// Name of the Secret.
const NAME: &str = "foreshore-authority";
/// Its key with roots and their keys.
const STATE: &str = "authority.json";
/// Its key with the bundle, for clients outside.
const BUNDLE: &str = "ca.crt";

/// Keys of a Secret of the type `kubernetes.io/tls`.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Time between two looks for a Secret that is not there yet.
const WAIT: Duration = Duration::from_secs(2);

/// Time between two looks at a Secret that somebody else looks after.
const LOOK: Duration = Duration::from_secs(60);

/// Takes the authority from its Secret, or makes both: with a root from the Secret `given`, where one is named. Only for
/// the leader: two of them would overwrite each other.
///
/// # Errors
/// [`Error`]; [`Error::Unusable`] when a Secret makes no sense: it is never replaced, since the trust of every role
/// hangs on it.
pub async fn open(
    client: Client,
    namespace: &str,
    options: AuthorityOptions,
    given: Option<&str>,
) -> Result<Arc<CertificateAuthority>, Error> {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let state = match within(api.get_opt(NAME)).await? {
        Some(secret) => {
            let data = secret.data.unwrap_or_default();
            let state = data
                .get(STATE)
                .ok_or_else(|| unusable(NAME, &format!("it has no key {STATE}")))?;
            state.0.clone()
        }
        None => {
            let new = match given {
                Some(name) => {
                    let Given { certificate, key } = Given::wait(&api, name).await?;
                    CertificateAuthority::given(options.clone(), &certificate, &key)
                        .map_err(|error| unusable(name, &error))?
                }
                None => CertificateAuthority::create(options.clone(), Timestamp::now())
                    .map_err(|error| unusable(NAME, &error))?,
            };
            let state = new.to_json().map_err(|error| unusable(NAME, &error))?;
            let secret = secret(namespace, &state, &new.bundle());
            within(api.create(&PostParams::default(), &secret)).await?;
            info!(secret = NAME, "a new authority was made");
            state.into_bytes()
        }
    };
    let runtime = Handle::current();
    // Called from a thread that may block.
    let keep = move |state: &str, bundle: &TrustBundle| {
        let data = data(state, bundle);
        let data: BTreeMap<_, _> = data.into_iter().collect();
        let patch = Patch::Merge(json!({ "data": data }));
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let written = runtime.block_on(within(api.patch(NAME, &params, &patch)));
        written.map(drop).map_err(|error| error.to_string())
    };
    let authority = CertificateAuthority::with_keeper(&state, options, keep);
    Ok(Arc::new(authority.map_err(|error| unusable(NAME, &error))?))
}

/// Offers an authority each root that stands in a Secret, until the end begins. What can't be taken is told, and the
/// present root signs on.
pub async fn follow(
    client: Client,
    namespace: String,
    secret: String,
    authority: Arc<CertificateAuthority>,
    shutdown: Shutdown,
) {
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let mut told = None;
    loop {
        let offered = offer(&api, &secret, &authority).await;
        if matches!(offered, Ok(true)) {
            info!(%secret, "a new root is handed out to every role");
        }
        let problem = offered.err().map(|error| error.to_string());
        if let Some(problem) = &problem
            && told.as_ref() != Some(problem)
        {
            warn!(%problem, "the given root can't be taken, the present one signs on");
        }
        told = problem;
        if shutdown.or_begun(tokio::time::sleep(LOOK)).await.is_none() {
            return;
        }
    }
}

async fn offer(
    api: &Api<Secret>,
    secret: &str,
    authority: &Arc<CertificateAuthority>,
) -> Result<bool, Error> {
    let Given { certificate, key } = Given::read(api, secret).await?;
    let authority = Arc::clone(authority);
    // It is kept before it takes effect, which blocks.
    let offered = tokio::task::spawn_blocking(move || authority.offer(&certificate, &key)).await;
    offered
        .map_err(|error| unusable(secret, &error))?
        .map_err(|error| unusable(secret, &error))
}

/// A root that somebody else made, in PEM.
struct Given {
    certificate: String,
    key: String,
}

impl Given {
    /// Reads it, once it is there: whoever makes it may begin after the operator.
    async fn wait(api: &Api<Secret>, name: &str) -> Result<Self, Error> {
        let mut told = false;
        loop {
            match Self::read(api, name).await {
                Err(Error::Unusable { what, problem }) => {
                    if !std::mem::replace(&mut told, true) {
                        warn!(%what, %problem, "no authority is given yet, and no role starts before");
                    }
                    tokio::time::sleep(WAIT).await;
                }
                read => return read,
            }
        }
    }

    async fn read(api: &Api<Secret>, name: &str) -> Result<Self, Error> {
        let Some(secret) = within(api.get_opt(name)).await? else {
            return Err(unusable(name, &"there is none yet"));
        };
        let mut data = secret.data.unwrap_or_default();
        let mut text = |key: &str| {
            let value = data
                .remove(key)
                .ok_or_else(|| unusable(name, &format!("it has no key {key}")))?;
            String::from_utf8(value.0).map_err(|_| unusable(name, &format!("{key} is not text")))
        };
        Ok(Self {
            certificate: text(CERTIFICATE)?,
            key: text(KEY)?,
        })
    }
}

fn unusable(secret: &str, problem: &dyn fmt::Display) -> Error {
    Error::Unusable {
        what: format!("Secret {secret}"),
        problem: problem.to_string(),
    }
}

fn secret(namespace: &str, state: &str, bundle: &TrustBundle) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([(
                "app.kubernetes.io/managed-by".to_owned(),
                MANAGER.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        type_: Some("Opaque".to_owned()),
        data: Some(data(state, bundle)),
        ..Secret::default()
    }
}

fn data(state: &str, bundle: &TrustBundle) -> BTreeMap<String, ByteString> {
    let entries = [(STATE, state.to_owned()), (BUNDLE, bundle.to_pem())];
    entries
        .map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes())))
        .into()
}
