//! A resource of a plan as it travels: its key, and its body as JSON with a hash.

use std::fmt;

use bytes::Bytes;
use foreshore_tls::Fingerprint;

use crate::{
    handover::{GivePlan, PeersPlan, TakePlan},
    plan::{
        AssetPlan, BrokerPlan, BrokerPolicyPlan, CloudPlan, ConnectionPlan, DataflowPlan, DevicePlan,
        EndpointPlan, PathPlan, PlanResource, ResourceKey, SecretPlan, ServiceAccountIssuerPlan,
        SimulatorPlan,
    },
};

/// The largest body of a resource, in bytes.
pub const LARGEST_BODY: usize = 1024 * 1024;

/// The longest kind, namespace or name, in bytes.
const LONGEST_KEY_PART: usize = 1024;

/// Why a resource can't travel, or can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The body is too large for one message.
    #[error("{key} has {found} bytes, allowed are {allowed}")]
    TooLarge {
        /// Which resource.
        key: ResourceKey,
        /// Size of its body in bytes.
        found: usize,
        /// The most that is accepted, in bytes.
        allowed: usize,
    },
    /// A part of the key is empty or too long.
    #[error("{part} of a resource's key has {found} bytes, allowed are 1 to {allowed}")]
    Key {
        /// Which part.
        part: &'static str,
        /// Its length in bytes.
        found: usize,
        /// The most that is accepted, in bytes.
        allowed: usize,
    },
    /// It can't be written as JSON.
    #[error("{key} can't be written as json: {reason}")]
    Encode {
        /// Which resource.
        key: ResourceKey,
        /// What the encoder says.
        reason: String,
    },
    /// The body is not what its kind should be.
    #[error("{key} can't be read: {reason}")]
    Decode {
        /// Which resource.
        key: ResourceKey,
        /// What the decoder says, with its place.
        reason: String,
    },
    /// It was asked for as another kind than it is.
    #[error("{key} was read as a {wanted}")]
    WrongKind {
        /// Which resource.
        key: ResourceKey,
        /// The kind that was asked for.
        wanted: &'static str,
    },
    /// The body does not have the hash that was announced.
    #[error("{key} was damaged on its way")]
    Damaged {
        /// Which resource.
        key: ResourceKey,
    },
}

/// A resource of a plan, ready to travel. Its `Debug` output never shows the body, which may be a secret.
///
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    key: ResourceKey,
    version: u64,
    hash: Fingerprint,
    phase: u32,
    body: Bytes,
    requires: Vec<String>,
}

impl Resource {
    /// Makes a resource of a typed one.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above [`LARGEST_BODY`], [`Error::Key`], [`Error::Encode`].
    pub fn of<T: PlanResource>(resource: &T) -> Result<Self, Error> {
        let key = resource.key();
        match serde_json::to_vec(resource) {
            // Without spare room: ten thousand are kept.
            Ok(body) => Self::new(key, 0, phase(T::KIND), body.into_boxed_slice().into()),
            Err(error) => Err(Error::Encode {
                key,
                reason: error.to_string(),
            }),
        }
    }

    /// Puts a resource together, and computes its hash.
    ///
    /// # Errors
    /// [`Error::TooLarge`] above [`LARGEST_BODY`], [`Error::Key`].
    pub(crate) fn new(key: ResourceKey, version: u64, phase: u32, body: Bytes) -> Result<Self, Error> {
        check_key(&key)?;
        if body.len() > LARGEST_BODY {
            return Err(Error::TooLarge {
                key,
                found: body.len(),
                allowed: LARGEST_BODY,
            });
        }
        let hash = Fingerprint::of(&body);
        Ok(Self {
            key,
            version,
            hash,
            phase,
            body,
            requires: Vec::new(),
        })
    }

    /// Says that a role needs a capability to understand this resource. A role without it keeps what it has, and the
    /// operator learns of it ([`Observation::Unsupported`](crate::session::server::Observation::Unsupported)).
    #[must_use]
    pub fn requiring(mut self, capability: impl Into<String>) -> Self {
        self.requires.push(capability.into());
        self
    }

    /// What it is called.
    #[must_use]
    pub fn key(&self) -> &ResourceKey {
        &self.key
    }

    /// Its number in the plan of its role, which grows with each change; 0 until it is part of a plan. Numbers of
    /// different epochs do not compare.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// SHA-256 of the body: what tells whether it changed.
    #[must_use]
    pub fn hash(&self) -> Fingerprint {
        self.hash
    }

    /// The JSON.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Resources of a lower phase are set before, and removed after, those of a higher one: what others refer to
    /// comes first.
    #[must_use]
    pub fn phase(&self) -> u32 {
        self.phase
    }

    /// Capabilities that a role needs to understand it.
    #[must_use]
    pub fn requires(&self) -> &[String] {
        &self.requires
    }

    /// Reads the body.
    ///
    /// # Errors
    /// [`Error::WrongKind`], [`Error::Decode`].
    pub fn decode<T: PlanResource>(&self) -> Result<T, Error> {
        if self.key.kind != T::KIND {
            return Err(Error::WrongKind {
                key: self.key.clone(),
                wanted: T::KIND,
            });
        }
        serde_json::from_slice(&self.body).map_err(|error| Error::Decode {
            key: self.key.clone(),
            reason: error.to_string(),
        })
    }

    pub(crate) fn set_version(&mut self, version: u64) {
        self.version = version;
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource")
            .field("key", &format_args!("{}", self.key))
            .field("version", &self.version)
            .field("hash", &self.hash)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

pub(crate) fn check_key(key: &ResourceKey) -> Result<(), Error> {
    let check = |part, text: &str, least| {
        let found = text.len();
        if (least..=LONGEST_KEY_PART).contains(&found) {
            Ok(())
        } else {
            Err(Error::Key {
                part,
                found,
                allowed: LONGEST_KEY_PART,
            })
        }
    };
    check("kind", &key.kind, 1)?;
    check("namespace", &key.namespace, 0)?;
    check("name", &key.name, 1)
}

/// What others refer to comes first: values, then ways to reach something, then what uses them.
pub(crate) fn phase(kind: &str) -> u32 {
    match kind {
        SecretPlan::KIND | ServiceAccountIssuerPlan::KIND => 0,
        ConnectionPlan::KIND | EndpointPlan::KIND | PeersPlan::KIND => 1,
        // Before the device, which must not begin otherwise than it shall, and gone after it.
        TakePlan::KIND | GivePlan::KIND => 1,
        BrokerPlan::KIND | CloudPlan::KIND | DevicePlan::KIND | SimulatorPlan::KIND => 2,
        AssetPlan::KIND | BrokerPolicyPlan::KIND | PathPlan::KIND => 3,
        DataflowPlan::KIND => 4,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::plan::SecretValue;

    fn secret(value: &[u8]) -> SecretPlan {
        SecretPlan {
            namespace: "plant".to_owned(),
            name: "plc".to_owned(),
            data: BTreeMap::from([("password".to_owned(), SecretValue(value.to_vec()))]),
        }
    }

    #[test]
    fn a_resource_comes_back_as_it_went() {
        let resource = Resource::of(&secret(b"hunter2")).unwrap();
        assert_eq!(resource.key(), &ResourceKey::new("Secret", "plant", "plc"));
        assert_eq!(resource.decode::<SecretPlan>().unwrap(), secret(b"hunter2"));
        assert_eq!(resource.hash(), Resource::of(&secret(b"hunter2")).unwrap().hash());
        assert_ne!(resource.hash(), Resource::of(&secret(b"hunter3")).unwrap().hash());
        let error = resource.decode::<PathPlan>().unwrap_err();
        assert_eq!(error.to_string(), "Secret/plant/plc was read as a Path");
    }

    #[test]
    fn no_secret_in_debug_output() {
        let resource = Resource::of(&secret(b"hunter2")).unwrap();
        let shown = format!("{resource:?}");
        assert!(
            !shown.contains("aHVudGVyMg") && !shown.contains("hunter2"),
            "{shown}"
        );
        assert!(shown.contains("Secret/plant/plc"), "{shown}");
    }

    #[test]
    fn bodies_are_bounded() {
        let body = |size| Bytes::from(vec![b' '; size]);
        let key = ResourceKey::new("Asset", "plant", "line");
        assert!(Resource::new(key.clone(), 1, 0, body(LARGEST_BODY)).is_ok());
        let error = Resource::new(key, 1, 0, body(LARGEST_BODY + 1)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Asset/plant/line has 1048577 bytes, allowed are 1048576"
        );
        assert!(
            Resource::of(&secret(&vec![0; LARGEST_BODY])).is_err(),
            "base64 makes it larger than the limit"
        );
        let long = ResourceKey::new("Asset", "plant", "n".repeat(1025));
        assert!(matches!(
            Resource::new(long, 1, 0, body(1)),
            Err(Error::Key { part: "name", .. })
        ));
    }
}
