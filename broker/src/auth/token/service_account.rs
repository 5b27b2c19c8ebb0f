//! Tokens of Kubernetes service accounts ("ServiceAccount token volume projection").
//!
//! The API server signs them and publishes its keys to whoever has the right to read them. A broker has no right in the
//! cluster: the operator reads the keys and tells them with the plan, anew when they rotate.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use serde_json::{Map, Value};

use super::{InvalidIssuer, keys::KeySet};

/// What user names of service accounts begin with.
const USER_PREFIX: &str = "system:serviceaccount:";

/// The group of all service accounts.
const GROUP: &str = "system:serviceaccounts";

/// Who signs the tokens of a cluster's service accounts, with its keys as they were told last.
#[derive(Debug)]
pub struct ServiceAccountIssuer {
    name: String,
    keys: ArcSwap<KeySet>,
}

impl ServiceAccountIssuer {
    /// An issuer by what its tokens have as `iss`, and its keys: a JSON Web Key Set (RFC 7517 section 5).
    ///
    /// # Errors
    /// When the keys are no such set, or none of them is for signatures that are known.
    pub fn new(name: impl Into<String>, keys: &str) -> Result<Self, InvalidIssuer> {
        let name = name.into();
        let keys = ArcSwap::from_pointee(read(&name, keys)?);
        Ok(Self { name, keys })
    }

    /// What its tokens have as `iss`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts other keys in the place of those that are known; clients that are connected stay.
    ///
    /// # Errors
    /// As [`Self::new`]; then the known ones stay.
    pub fn rotate(&self, keys: &str) -> Result<(), InvalidIssuer> {
        self.keys.store(Arc::new(read(&self.name, keys)?));
        Ok(())
    }

    pub(super) fn keys(&self) -> Arc<KeySet> {
        self.keys.load_full()
    }
}

fn read(name: &str, keys: &str) -> Result<KeySet, InvalidIssuer> {
    let invalid = |cause| InvalidIssuer {
        issuer: name.to_owned(),
        cause,
    };
    let keys = KeySet::parse(keys.as_bytes()).map_err(|error| invalid(error.to_string()))?;
    if keys.len() == 0 {
        return Err(invalid("it has no key for signatures that are known".to_owned()));
    }
    Ok(keys)
}

/// What is known of a service account.
#[derive(Debug)]
pub(super) struct Account {
    /// Its groups, as the API server tells them (Kubernetes, "Using RBAC authorization").
    pub(super) groups: Vec<String>,
    /// `namespace`, `serviceAccount` and, of a token that is bound to a pod, `pod` and `node`.
    pub(super) attributes: BTreeMap<String, String>,
}

impl Account {
    /// Reads the user name of a token, and its claims (Kubernetes, "Bound service account tokens").
    ///
    /// # Errors
    /// When the user is no service account.
    pub(super) fn read(username: &str, claims: &Map<String, Value>) -> Result<Self, String> {
        let account = username.strip_prefix(USER_PREFIX);
        let account = account.and_then(|account| account.split_once(':'));
        let account = account
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains(':'));
        let Some((namespace, name)) = account else {
            return Err("the token is not that of a service account".to_owned());
        };
        let mut attributes = BTreeMap::from([
            ("namespace".to_owned(), namespace.to_owned()),
            ("serviceAccount".to_owned(), name.to_owned()),
        ]);
        for what in ["pod", "node"] {
            let bound = claims.get("kubernetes.io").and_then(|bound| bound.get(what));
            let name = bound.and_then(|bound| bound.get("name")).and_then(Value::as_str);
            attributes.extend(name.map(|name| (what.to_owned(), name.to_owned())));
        }
        Ok(Self {
            groups: vec![GROUP.to_owned(), format!("{GROUP}:{namespace}")],
            attributes,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = r#"{ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "AAAA" }] }"#;

    #[test]
    fn a_service_account_has_the_groups_that_the_api_server_gives_it() {
        let read = |user: &str, claims: Value| Account::read(user, claims.as_object().unwrap());
        let bound = json!({ "kubernetes.io": {
            "namespace": "ignored", "pod": { "name": "press-0", "uid": "u" }, "node": { "name": 7 },
        }});
        let account = read("system:serviceaccount:plant:press", bound).unwrap();
        assert_eq!(
            account.groups,
            ["system:serviceaccounts", "system:serviceaccounts:plant"]
        );
        let attributes: Vec<_> = account
            .attributes
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            attributes,
            ["namespace=plant", "pod=press-0", "serviceAccount=press"]
        );
        for user in [
            "alice",
            "system:serviceaccount:plant",
            "system:serviceaccount::press",
            "system:serviceaccount:plant:",
            "system:serviceaccount:plant:press:more",
            "system:node:plant:press",
        ] {
            assert!(read(user, json!({})).is_err(), "{user}");
        }
    }

    #[test]
    fn keys_that_are_of_no_use_replace_none() {
        let issuer = ServiceAccountIssuer::new("i", KEY).unwrap();
        for wrong in [
            "",
            "[]",
            r#"{ "keys": [] }"#,
            r#"{ "keys": [{ "kty": "oct", "k": "AAAA" }] }"#,
        ] {
            assert!(ServiceAccountIssuer::new("i", wrong).is_err(), "{wrong}");
            let error = issuer.rotate(wrong).unwrap_err();
            assert!(error.to_string().contains("\"i\""), "{error}");
        }
        let other = KEY.replace("\"a\"", "\"b\"");
        let before = issuer.keys();
        issuer.rotate(&other).unwrap();
        assert_ne!(before, issuer.keys());
    }
}
