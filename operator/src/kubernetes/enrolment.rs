//! Who a pod is: its projected ServiceAccount token, reviewed by the API server.

use async_trait::async_trait;
use foreshore_control::enroll::{AuthenticationError, Authenticator};
use foreshore_tls::{Fingerprint, RoleIdentity};
use k8s_openapi::{
    api::{
        authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube_client::{Api, Client, api::PostParams};

use super::within;
use crate::workloads::pods::{AUDIENCE, Identities};

/// Extra attributes of a token that is bound to a pod (Kubernetes, "Bound service account tokens").
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// Judges bootstrap credentials by a TokenReview.
pub struct TokenReviews {
    client: Client,
    identities: Identities,
}

impl TokenReviews {
    /// Judges with `client`; which role a ServiceAccount belongs to, `identities` knows.
    #[must_use]
    pub fn new(client: Client, identities: Identities) -> Self {
        Self { client, identities }
    }

    /// The pod itself: a token outlives its pod by minutes, and whoever may make pods could name any owner.
    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, AuthenticationError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let pod = within(api.get_opt(name)).await;
        pod.map_err(|error| unavailable(&error))
    }
}

#[async_trait]
impl Authenticator for TokenReviews {
    async fn authenticate(
        &self,
        credential: &str,
        _key: Fingerprint,
    ) -> Result<RoleIdentity, AuthenticationError> {
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: Some(credential.to_owned()),
            },
            status: None,
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let reviewed = within(api.create(&PostParams::default(), &review)).await;
        let status = reviewed
            .map_err(|error| unavailable(&error))?
            .status
            .unwrap_or_default();
        if status.authenticated != Some(true) {
            let reason = status
                .error
                .unwrap_or_else(|| "the token is not valid".to_owned());
            return Err(refused(reason));
        }
        // An API server that knows no audiences leaves them out.
        if !status
            .audiences
            .unwrap_or_default()
            .iter()
            .any(|audience| audience == AUDIENCE)
        {
            return Err(refused(format!("the token is not for the audience {AUDIENCE}")));
        }
        let bearer = Bearer::of(&status.user.unwrap_or_default())?;
        let pod = self.pod(&bearer.namespace, &bearer.pod).await?;
        let uid = pod.as_ref().and_then(|pod| pod.metadata.uid.as_deref());
        if uid != Some(&*bearer.pod_uid) {
            return Err(refused("the pod of the token is gone".to_owned()));
        }
        let Bearer {
            namespace,
            service_account,
            pod_uid,
            ..
        } = bearer;
        let role = self.identities.of(&namespace, &service_account, &pod_uid);
        role.ok_or_else(|| {
            refused(format!(
                "no workload has the ServiceAccount {namespace}/{service_account}"
            ))
        })
    }
}

/// Whose token it is.
#[derive(Debug, PartialEq)]
struct Bearer {
    namespace: String,
    service_account: String,
    pod: String,
    pod_uid: String,
}

impl Bearer {
    fn of(user: &UserInfo) -> Result<Self, AuthenticationError> {
        let name = user.username.as_deref().unwrap_or_default();
        let account = name
            .strip_prefix("system:serviceaccount:")
            .and_then(|account| account.split_once(':'));
        let Some((namespace, service_account)) = account else {
            return Err(refused("the token is not that of a ServiceAccount".to_owned()));
        };
        let extra = |attribute: &str| {
            let values = user.extra.as_ref().and_then(|extra| extra.get(attribute));
            let value = values.and_then(|values| values.first()).cloned();
            value.ok_or_else(|| refused("the token is not bound to a pod".to_owned()))
        };
        Ok(Self {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: extra(POD_NAME)?,
            pod_uid: extra(POD_UID)?,
        })
    }
}

fn refused(reason: String) -> AuthenticationError {
    AuthenticationError::Refused { reason }
}

fn unavailable(error: &super::Error) -> AuthenticationError {
    AuthenticationError::Unavailable {
        cause: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn user(name: &str, extra: &[(&str, &str)]) -> UserInfo {
        let extra = extra
            .iter()
            .map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()]));
        UserInfo {
            username: Some(name.to_owned()),
            extra: Some(extra.collect::<BTreeMap<_, _>>()),
            ..UserInfo::default()
        }
    }

    #[test]
    fn only_tokens_of_pods_are_taken() {
        let pod = [(POD_NAME, "main-broker-0"), (POD_UID, "7")];
        let bearer = Bearer::of(&user("system:serviceaccount:plant:main-broker", &pod)).unwrap();
        assert_eq!(
            (&*bearer.namespace, &*bearer.service_account),
            ("plant", "main-broker")
        );
        assert_eq!((&*bearer.pod, &*bearer.pod_uid), ("main-broker-0", "7"));
        for wrong in [
            user("admin", &pod),
            user("system:serviceaccount:plant", &pod),
            user("system:serviceaccount:plant:main-broker", &[]),
            user("system:serviceaccount:plant:main-broker", &pod[..1]),
        ] {
            assert!(Bearer::of(&wrong).is_err(), "{wrong:?}");
        }
    }
}
