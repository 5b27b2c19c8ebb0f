//! Where devices are, as far as statuses tell of it.

use std::collections::BTreeMap;

use foreshore_control::{Resource, ResourceKey};
use foreshore_tls::{Fingerprint, RoleIdentity};

use crate::{
    role::RoleName,
    shards::{Place, Shards},
};

/// What the instances of connectors shall have, and where the devices are.
#[derive(Debug, Default)]
pub(super) struct Placed {
    by_role: BTreeMap<RoleName, OfRole>,
}

/// One connector.
#[derive(Debug, Default, PartialEq)]
struct OfRole {
    /// What each instance that was told something shall have, by hash.
    instances: BTreeMap<RoleIdentity, BTreeMap<ResourceKey, Fingerprint>>,
    devices: BTreeMap<ResourceKey, Place>,
}

impl Placed {
    /// Takes what is so now; whether it differs.
    pub(super) fn set<'a>(
        &mut self,
        role: &RoleName,
        devices: impl Iterator<Item = &'a ResourceKey>,
        identities: impl Iterator<Item = &'a RoleIdentity>,
        shards: Option<&Shards>,
        planned: &BTreeMap<RoleIdentity, BTreeMap<ResourceKey, Resource>>,
    ) -> bool {
        let place = |device: &ResourceKey| Some((device.clone(), shards?.place(device)?.clone()));
        let hashes = |plan: &BTreeMap<ResourceKey, Resource>| {
            let hashes = plan.iter().map(|(key, resource)| (key.clone(), resource.hash()));
            hashes.collect::<BTreeMap<_, _>>()
        };
        let new = OfRole {
            instances: identities
                .filter_map(|identity| Some((identity.clone(), hashes(planned.get(identity)?))))
                .collect(),
            devices: devices.filter_map(place).collect(),
        };
        let changed = self.by_role.get(role) != Some(&new);
        self.by_role.insert(role.clone(), new);
        changed
    }

    /// The version of a resource that an instance shall have, where instances are told different things: `None` for
    /// an instance that was told nothing yet, and `Some(None)` for one that shall not have it.
    pub(super) fn of(
        &self,
        role: &RoleName,
        identity: &RoleIdentity,
        key: &ResourceKey,
    ) -> Option<Option<Fingerprint>> {
        let plan = self.by_role.get(role)?.instances.get(identity)?;
        Some(plan.get(key).copied())
    }

    /// Where a device is.
    pub(super) fn place(&self, role: &RoleName, device: &ResourceKey) -> Option<&Place> {
        self.by_role.get(role)?.devices.get(device)
    }

    /// Devices of a connector that are on their way.
    pub(super) fn moving(&self, role: &RoleName) -> impl Iterator<Item = (&ResourceKey, &Place)> {
        let devices = self.by_role.get(role).into_iter().flat_map(|of| &of.devices);
        devices.filter(|(_, place)| place.is_moving())
    }
}
