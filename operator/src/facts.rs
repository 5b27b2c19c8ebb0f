//! What running roles told about themselves.

use std::collections::BTreeMap;

pub use foreshore_control::facts::*;

use crate::role::RoleName;

/// What all roles told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// By role.
    pub roles: BTreeMap<RoleName, RoleFacts>,
}

impl Facts {
    /// The addresses that a role told; none before it did.
    #[must_use]
    pub fn all(&self, role: &RoleName, name: &str) -> &[String] {
        self.roles.get(role).map_or(&[], |facts| facts.all(name))
    }

    /// The first of them.
    #[must_use]
    pub fn first(&self, role: &RoleName, name: &str) -> Option<&str> {
        self.all(role, name).first().map(String::as_str)
    }
}
