//! The certificate authority, kept in a Secret of the operator's namespace.

use std::{collections::BTreeMap, sync::Arc};

use foreshore_tls::{AuthorityOptions, CertificateAuthority, TrustBundle};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube_client::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::runtime::Handle;
use tracing::info;

use super::{Error, MANAGER, within};

/// Name of the Secret.
const NAME: &str = "foreshore-authority";
/// Its key with roots and their keys.
const STATE: &str = "authority.json";
/// Its key with the bundle, for clients outside.
const BUNDLE: &str = "ca.crt";

/// Takes the authority from its Secret, or makes both. Only for the leader: two of them would overwrite each other.
///
/// # Errors
/// [`Error`]; [`Error::Unusable`] when the Secret makes no sense: it is never replaced, since the trust of every role
/// hangs on it.
pub async fn open(
    client: Client,
    namespace: &str,
    options: AuthorityOptions,
) -> Result<Arc<CertificateAuthority>, Error> {
    let unusable = |problem: &dyn std::fmt::Display| Error::Unusable {
        what: format!("Secret {NAME}"),
        problem: problem.to_string(),
    };
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let state = match within(api.get_opt(NAME)).await? {
        Some(secret) => {
            let data = secret.data.unwrap_or_default();
            let state = data
                .get(STATE)
                .ok_or_else(|| unusable(&format!("it has no key {STATE}")))?;
            state.0.clone()
        }
        None => {
            let new = CertificateAuthority::create(options.clone(), Timestamp::now());
            let new = new.map_err(|error| unusable(&error))?;
            let state = new.to_json().map_err(|error| unusable(&error))?;
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
    Ok(Arc::new(authority.map_err(|error| unusable(&error))?))
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
