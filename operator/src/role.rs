//! Roles: what the operator makes run, and by which names it is reached.

use std::{fmt, ops::Deref, sync::Arc};

use foreshore_tls::{Role, RoleIdentity};
use serde::{Serialize, Serializer};

/// Names a workload: one role that one object declares. Its instances have identities of their own. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleName(Arc<RoleParts>);

/// The parts of a [`RoleName`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleParts {
    /// What it does.
    pub role: Role,
    /// Namespace of the object that declares it.
    pub namespace: String,
    /// Name of that object.
    pub name: String,
}

impl RoleName {
    /// Puts a name together.
    #[must_use]
    pub fn new(role: Role, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self(Arc::new(RoleParts {
            role,
            namespace: namespace.into(),
            name: name.into(),
        }))
    }

    /// The workload that an instance belongs to.
    #[must_use]
    pub fn of(identity: &RoleIdentity) -> Self {
        Self::new(identity.role(), identity.namespace(), identity.name())
    }

    /// The DNS name that the certificates of its instances carry, and by which clients of ours know them, wherever
    /// they dial: addresses of tasks and pods change.
    #[must_use]
    pub fn server_name(&self) -> String {
        format!(
            "{}.{}.{}.foreshore.internal",
            self.name, self.namespace, self.role
        )
    }
}

impl Deref for RoleName {
    type Target = RoleParts;

    fn deref(&self) -> &RoleParts {
        &self.0
    }
}

impl fmt::Display for RoleName {
    /// `broker/bottling/main`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}/{}", self.role, self.namespace, self.name)
    }
}

impl Serialize for RoleName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Name of the one dataflow runner of a namespace.
pub const DATAFLOW_RUNNER: &str = "dataflows";
