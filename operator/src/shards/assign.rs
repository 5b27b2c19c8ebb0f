//! Devices to instances: who has one keeps it, unless it ends or has too many.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use foreshore_control::ResourceKey;
use foreshore_tls::RoleIdentity;

/// Who shall serve each device. Loads of those who can take devices differ by one at most; no more devices move than
/// that asks for. A device whose owner is silent, and neither ends nor is gone, stays with it.
pub(super) fn assign(
    devices: &BTreeSet<ResourceKey>,
    owners: &BTreeMap<&ResourceKey, &RoleIdentity>,
    eligible: &[&RoleIdentity],
    staying: &BTreeSet<&RoleIdentity>,
) -> BTreeMap<ResourceKey, RoleIdentity> {
    let mut loads: BTreeMap<&RoleIdentity, BTreeSet<&ResourceKey>> =
        eligible.iter().map(|one| (*one, BTreeSet::new())).collect();
    let mut targets = BTreeMap::new();
    let mut free = Vec::new();
    for device in devices {
        match owners.get(device) {
            Some(owner) if loads.contains_key(*owner) => {
                loads.entry(*owner).or_default().insert(device);
            }
            Some(owner) if staying.contains(*owner) => {
                targets.insert(device.clone(), (*owner).clone());
            }
            _ => free.push(device),
        }
    }
    for device in free {
        // Of the least loaded the one that the device's name prefers: the same whoever asks.
        let least = loads
            .iter()
            .min_by_key(|(one, load)| (load.len(), weight(device, one)));
        let least = least.map(|(one, _)| *one);
        if let Some(load) = least.and_then(|one| loads.get_mut(one)) {
            load.insert(device);
        }
    }
    while let Some((from, to, device)) = excess(&loads) {
        if let Some(load) = loads.get_mut(from) {
            load.remove(device);
        }
        loads.entry(to).or_default().insert(device);
    }
    for (one, load) in loads {
        targets.extend(load.into_iter().map(|device| (device.clone(), one.clone())));
    }
    targets
}

/// A device of the most loaded that the least loaded shall have.
fn excess<'a>(
    loads: &BTreeMap<&'a RoleIdentity, BTreeSet<&'a ResourceKey>>,
) -> Option<(&'a RoleIdentity, &'a RoleIdentity, &'a ResourceKey)> {
    let (from, most) = loads.iter().max_by_key(|(_, load)| load.len())?;
    let (to, least) = loads.iter().min_by_key(|(_, load)| load.len())?;
    if most.len() <= least.len() + 1 {
        return None;
    }
    let device = most.iter().min_by_key(|device| weight(device, to))?;
    Some((*from, *to, *device))
}

fn weight(device: &ResourceKey, instance: &RoleIdentity) -> u64 {
    let mut hasher = DefaultHasher::new();
    (device, instance.uid()).hash(&mut hasher);
    hasher.finish()
}
