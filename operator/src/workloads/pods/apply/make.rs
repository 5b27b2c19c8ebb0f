//! Makes one object as it shall be.

use kube_client::{
    Client,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tracing::info;

use super::{Version, api};
use crate::{
    kubernetes::{Error, MANAGER, within},
    workloads::pods::build::{ChildKey, ChildKind},
};

/// Where the annotations of an object's pods are (RFC 6901).
const ANNOTATIONS: &str = "/spec/template/metadata/annotations";
/// Annotation of a pod with the identity of its ServiceAccount: pods of an account that was made anew are replaced,
/// since the token that they hold proves nothing any more.
const ACCOUNT_KEY: &str = "foreshore.dev/service-account-uid";

/// What the API says of an object that was made.
pub(super) struct Answer {
    pub(super) version: Version,
    pub(super) uid: String,
}

/// Makes an object, or what differs of it; `account` is the identity of the ServiceAccount of its pods.
pub(super) async fn make(
    client: &Client,
    key: &ChildKey,
    manifest: &Value,
    account: Option<&str>,
) -> Result<Answer, Error> {
    let manifest = complete(key, manifest, account);
    let api = api(client, key);
    let params = PatchParams::apply(MANAGER).force();
    let apply = async || within(api.patch(&key.name, &params, &Patch::Apply(&manifest))).await;
    let made = match apply().await {
        // Others set a field that contradicts ours, as maxUnavailable beside minAvailable.
        Err(error) if error.is_invalid() && key.kind.is_only_its_spec() => {
            info!(object = %key, %error, "object can't be mended, and is made anew");
            within(api.delete(&key.name, &DeleteParams::default())).await?;
            apply().await?
        }
        made => made?,
    };
    Ok(Answer {
        version: Version::of(&made.metadata),
        uid: made.metadata.uid.unwrap_or_default(),
    })
}

fn complete(key: &ChildKey, manifest: &Value, account: Option<&str>) -> Value {
    let mut manifest = manifest.clone();
    let resource = key.kind.resource();
    if let Value::Object(members) = &mut manifest {
        members.insert("apiVersion".to_owned(), resource.api_version.into());
        members.insert("kind".to_owned(), resource.kind.into());
    }
    if let Some(account) = account {
        match manifest.pointer_mut(ANNOTATIONS) {
            Some(Value::Object(annotations)) => {
                drop(annotations.insert(ACCOUNT_KEY.to_owned(), account.into()))
            }
            _ => {
                if let Some(metadata) = manifest.pointer_mut("/spec/template/metadata") {
                    metadata["annotations"] = json!({ ACCOUNT_KEY: account });
                }
            }
        }
    }
    manifest
}

impl ChildKind {
    /// Whether nothing depends on which object of its name it is, so that it can be deleted and made anew.
    fn is_only_its_spec(self) -> bool {
        matches!(self, Self::PodDisruptionBudget | Self::NetworkPolicy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_carry_the_identity_of_their_account() {
        let key = ChildKey {
            kind: ChildKind::Deployment,
            namespace: "plant".to_owned(),
            name: "opcua-connector".to_owned(),
        };
        let account = |template: Value| {
            let manifest = json!({ "spec": { "template": { "metadata": template } } });
            complete(&key, &manifest, Some("1-2"))["spec"]["template"]["metadata"]["annotations"].clone()
        };
        assert_eq!(account(json!({})), json!({ ACCOUNT_KEY: "1-2" }));
        assert_eq!(
            account(json!({ "annotations": { "a": "b" } })),
            json!({ "a": "b", ACCOUNT_KEY: "1-2" })
        );
    }
}
