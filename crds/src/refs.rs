//! References between objects. They hold names only: what is referred to lies in the same namespace.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::types::{ObjectName, SecretKey, SecretName};

/// Names one of our objects in the same namespace; the field tells its kind.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct LocalRef {
    /// Name of the object.
    pub name: ObjectName,
}

impl From<&str> for LocalRef {
    fn from(name: &str) -> Self {
        Self { name: name.into() }
    }
}

/// Names a Secret in the same namespace; the field tells which keys are read.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    pub name: SecretName,
}

/// Names one key of a Secret in the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    pub name: SecretName,
    /// Key to read; left out, the field tells which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretKey>,
}

impl SecretKeyRef {
    /// The key to read, `default` where it was left out.
    #[must_use]
    pub fn effective_key<'a>(&'a self, default: &'a str) -> &'a str {
        self.key.as_deref().unwrap_or(default)
    }
}

/// Names a Secret that holds a user name and a password, and their keys where they are not
/// `username` and `password`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsSecretRef {
    /// Name of the Secret.
    pub name: SecretName,
    /// Key of the user name; `username` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username_key: Option<SecretKey>,
    /// Key of the password; `password` where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_key: Option<SecretKey>,
}

impl CredentialsSecretRef {
    /// Key of the user name.
    #[must_use]
    pub fn effective_username_key(&self) -> &str {
        self.username_key.as_deref().unwrap_or("username")
    }

    /// Key of the password.
    #[must_use]
    pub fn effective_password_key(&self) -> &str {
        self.password_key.as_deref().unwrap_or("password")
    }
}

/// Key of a Secret of type `kubernetes.io/tls` that holds the certificate chain.
pub const TLS_CERTIFICATE_KEY: &str = "tls.crt";
/// Key of a Secret of type `kubernetes.io/tls` that holds the private key.
pub const TLS_PRIVATE_KEY_KEY: &str = "tls.key";
/// Key of a Secret that holds certificates to trust.
pub const CA_CERTIFICATE_KEY: &str = "ca.crt";
/// Key of a Secret that holds lists of certificates that those authorities have revoked.
pub const CA_REVOCATION_KEY: &str = "ca.crl";

/// Key of a Secret with encryption keys that holds the name of the one in use.
pub const ENCRYPTION_ACTIVE_KEY: &str = "active";

/// Length of an encryption key, in bytes.
pub const ENCRYPTION_KEY_LEN: usize = 32;
