//! Who a certificate speaks for.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Error;

/// The trust domain of our identities (SPIFFE ID, section 2.1).
const TRUST_DOMAIN: &str = "foreshore";

/// The longest part of an identity, that of a Kubernetes object name.
const LONGEST_PART: usize = 253;

/// The roles that a process, or a task of `foreshore up`, can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Role {
    /// Reconciles manifests and serves the control session.
    Operator,
    /// The MQTT broker.
    Broker,
    /// A southbound connector.
    Connector,
    /// The northbound runner.
    Dataflow,
    /// The cloud endpoint.
    Cloud,
    /// A simulated asset.
    Simulator,
    /// A whole edge, as its cloud endpoint sees it.
    Edge,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 7] = [
        Self::Operator,
        Self::Broker,
        Self::Connector,
        Self::Dataflow,
        Self::Cloud,
        Self::Simulator,
        Self::Edge,
    ];

    /// The name used in certificates, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Broker => "broker",
            Self::Connector => "connector",
            Self::Dataflow => "dataflow",
            Self::Cloud => "cloud",
            Self::Simulator => "simulator",
            Self::Edge => "edge",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == name)
            .ok_or_else(|| Error::RoleIdentity {
                field: "role",
                found: shorten(name),
                allowed: "operator, broker, connector, dataflow, cloud, simulator, edge",
            })
    }
}

/// Who a certificate speaks for: one running instance of a role that one object declares.
///
/// It stands in the certificate as a SPIFFE ID, the only URI of that trust domain among its subject
/// alternative names: `spiffe://foreshore/{role}/{namespace}/{name}/{uid}`. The parts keep to the characters
/// that a SPIFFE ID path may have (section 2.2: letters, digits, `.`, `-`, `_`), which all Kubernetes names do.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoleIdentity {
    role: Role,
    namespace: String,
    name: String,
    uid: String,
}

impl RoleIdentity {
    /// Puts an identity together.
    ///
    /// `namespace` and `name` are those of the object that declares the role (a `Connector`, a `Broker`, …);
    /// `uid` tells the running instances of it apart (a pod's UID, or one that the parent process made).
    ///
    /// # Errors
    /// [`Error::RoleIdentity`] when a part is empty, longer than 253 bytes, `.`, `..`, or has other characters
    /// than letters, digits, `.`, `-` and `_`.
    pub fn new(
        role: Role,
        namespace: impl Into<String>,
        name: impl Into<String>,
        uid: impl Into<String>,
    ) -> Result<Self, Error> {
        Ok(Self {
            role,
            namespace: checked("namespace", namespace.into())?,
            name: checked("name", name.into())?,
            uid: checked("uid", uid.into())?,
        })
    }

    /// The kind of process.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Namespace of the object that declares the role.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Name of the object that declares the role.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The running instance.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The SPIFFE ID, as it stands in a certificate.
    #[must_use]
    pub fn to_uri(&self) -> String {
        format!(
            "spiffe://{TRUST_DOMAIN}/{}/{}/{}/{}",
            self.role, self.namespace, self.name, self.uid
        )
    }

    /// Whether a URI claims to be one of ours, well formed or not.
    pub(crate) fn is_ours(uri: &str) -> bool {
        uri.strip_prefix("spiffe://").is_some_and(|rest| {
            rest.split('/')
                .next()
                .is_some_and(|domain| domain.eq_ignore_ascii_case(TRUST_DOMAIN))
        })
    }

    /// Reads a SPIFFE ID of ours.
    ///
    /// # Errors
    /// [`Error::RoleIdentity`] for everything that [`to_uri`](Self::to_uri) would not have written.
    pub fn from_uri(uri: &str) -> Result<Self, Error> {
        let malformed = || Error::RoleIdentity {
            field: "uri",
            found: shorten(uri),
            allowed: "spiffe://foreshore/{role}/{namespace}/{name}/{uid}",
        };
        let path = uri
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.strip_prefix(TRUST_DOMAIN))
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(malformed)?;
        let parts: Vec<&str> = path.splitn(5, '/').collect();
        let [role, namespace, name, uid] = parts[..] else {
            return Err(malformed());
        };
        Self::new(role.parse()?, namespace, name, uid)
    }
}

impl fmt::Display for RoleIdentity {
    /// `role/namespace/name/uid`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.role, self.namespace, self.name, self.uid)
    }
}

impl fmt::Debug for RoleIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for RoleIdentity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_uri())
    }
}

impl<'de> Deserialize<'de> for RoleIdentity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let uri = String::deserialize(deserializer)?;
        Self::from_uri(&uri).map_err(serde::de::Error::custom)
    }
}

fn checked(field: &'static str, part: String) -> Result<String, Error> {
    let characters = part
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    if part.is_empty() || part.len() > LONGEST_PART || part == "." || part == ".." || !characters {
        return Err(Error::RoleIdentity {
            field,
            found: shorten(&part),
            allowed: "1 to 253 letters, digits, '.', '-' and '_', but not '.' or '..'",
        });
    }
    Ok(part)
}

/// Error texts quote what was found, but never megabytes of it.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_and_uri_are_each_others_inverse() {
        for role in Role::ALL {
            let identity = RoleIdentity::new(role, "plant-1", "line.a_b", "5f0e").unwrap();
            assert_eq!(RoleIdentity::from_uri(&identity.to_uri()).unwrap(), identity);
        }
        let identity = RoleIdentity::new(Role::Connector, "plant", "opcua", "u1").unwrap();
        assert_eq!(identity.to_uri(), "spiffe://foreshore/connector/plant/opcua/u1");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for uri in [
            "",
            "spiffe://foreshore",
            "spiffe://foreshore/connector/plant/opcua",
            "spiffe://foreshore/connector/plant/opcua/u1/more",
            "spiffe://foreshore/connector/plant//u1",
            "spiffe://foreshore/connector/plant/../u1",
            "spiffe://foreshore/connector/plant/a%2Fb/u1",
            "spiffe://foreshore/root/plant/opcua/u1",
            "spiffe://foreshore.example/connector/plant/opcua/u1",
            "https://foreshore/connector/plant/opcua/u1",
        ] {
            assert!(RoleIdentity::from_uri(uri).is_err(), "{uri}");
        }
        assert!(RoleIdentity::new(Role::Edge, "a/b", "c", "d").is_err());
        assert!(RoleIdentity::new(Role::Edge, "a", "c".repeat(254), "d").is_err());
    }
}
