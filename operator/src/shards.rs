//! Which instance of a connector serves which device, and how a device goes from one to another.
//!
//! Nothing here is stored. What the instances say that they hold is the memory: a leader that is new asks it of all of
//! them before it moves anything. Pure: who is there and what was told come as arguments.

mod assign;
mod place;

use std::collections::{BTreeMap, BTreeSet};

use foreshore_control::{HandOver, ResourceKey, Stage, TakePlan};
use foreshore_tls::{Fingerprint, RoleIdentity};

pub(crate) use self::place::{Duty, Place};
use self::{
    assign::assign,
    place::{Context, step},
};

/// Devices of one connector that are on their way at a time: each costs its server a second session and its heir a
/// buffer.
const MOST_MOVES: usize = 8;
/// More steps than can be due at once.
const MOST_STEPS: usize = 8;

/// An instance of a connector, as far as it matters who serves what.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Member {
    /// Who it is.
    pub(crate) identity: RoleIdentity,
    /// Whether it has a session now.
    pub(crate) connected: bool,
    /// Whether it had a session with this leader: what it holds is known.
    pub(crate) known: bool,
    /// Whether it is about to end.
    pub(crate) leaving: bool,
    /// Whether it can take and give devices without a gap.
    pub(crate) capable: bool,
}

/// What an instance has of a device.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Holding {
    /// Whether the device is in force there.
    pub(crate) device: bool,
    /// Whether it was told to give, and did not refuse.
    pub(crate) give: bool,
    /// The order to take that is in force.
    pub(crate) take: Option<Fingerprint>,
    /// What it said last.
    pub(crate) told: Option<HandOver>,
}

impl Holding {
    fn stage(&self) -> Option<Stage> {
        self.told.as_ref().map(|told| told.stage)
    }

    /// Whether it hands data to the broker, as far as is known.
    fn serves(&self) -> bool {
        self.device && !self.give && (self.take.is_none() || self.stage() == Some(Stage::Serving))
    }

    fn number(&self) -> u64 {
        self.told.as_ref().map_or(0, |told| told.number)
    }
}

/// What all instances have of a connector's devices, by device and instance.
pub(crate) type Holdings = BTreeMap<ResourceKey, BTreeMap<RoleIdentity, Holding>>;

/// Where the devices of one connector are.
#[derive(Debug, Default)]
pub(crate) struct Shards {
    places: BTreeMap<ResourceKey, Place>,
    /// Largest epoch that was told of each device: a successor's has to be larger, whatever its clock says.
    epochs: BTreeMap<ResourceKey, u64>,
    last_number: u64,
}

impl Shards {
    /// Begins; `seed` grows from leader to leader, so that numbers of hand-overs differ.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            last_number: seed,
            ..Self::default()
        }
    }

    /// Goes on with every device, as far as what was told allows. Where a device is that is not known yet follows from
    /// who holds it; a hand-over that an earlier leader began goes on.
    pub(crate) fn update(
        &mut self,
        devices: &BTreeSet<ResourceKey>,
        members: &[Member],
        holdings: &Holdings,
    ) -> Vec<Moved> {
        let mut moved = Vec::new();
        self.places.retain(|device, _| devices.contains(device));
        self.epochs.retain(|device, _| devices.contains(device));
        for (device, of) in holdings {
            let told = of.values().filter_map(|holding| holding.told.as_ref());
            if let Some(epoch) = told.map(|told| told.epoch).max() {
                let known = self.epochs.entry(device.clone()).or_default();
                *known = epoch.max(*known);
            }
        }
        for device in devices {
            if !self.places.contains_key(device)
                && let Some(of) = holdings.get(device)
                && let Some(place) = Place::of(of, &mut self.last_number)
            {
                self.places.insert(device.clone(), place);
            }
        }
        let able = |member: &&Member| member.connected && !member.leaving;
        let mut eligible: Vec<_> = members.iter().filter(able).map(|one| &one.identity).collect();
        if eligible.is_empty() {
            // Nobody to give to: whoever ends serves to the end, and whoever is silent is told when it is back.
            let stays = |member: &&Member| member.known && !member.leaving;
            eligible = members.iter().filter(stays).map(|one| &one.identity).collect();
        }
        let owners = self.places.iter().map(|(device, place)| (device, place.owner()));
        let staying: BTreeSet<_> = members
            .iter()
            .filter(|member| !member.leaving)
            .map(|member| &member.identity)
            .collect();
        let targets = assign(devices, &owners.collect(), &eligible, &staying);
        let nothing = BTreeMap::new();
        let mut moves = self.places.values().filter(|place| place.is_moving()).count();
        for device in devices {
            let before = self.places.get(device);
            let was_moving = before.is_some_and(Place::is_moving);
            let mut context = Context {
                device,
                members,
                holdings: holdings.get(device).unwrap_or(&nothing),
                target: targets.get(device),
                epoch: self.epochs.get(device).copied().unwrap_or_default(),
                may_move: was_moving || moves < MOST_MOVES,
                last_number: &mut self.last_number,
            };
            let mut place = before.cloned();
            // Each step follows from what was told; several may be due at once.
            for _ in 0..MOST_STEPS {
                match step(place.as_ref(), &mut context) {
                    Some(next) => place = Some(next),
                    None => break,
                }
            }
            match place {
                Some(place) => {
                    match (was_moving, place.is_moving()) {
                        (false, true) => moves += 1,
                        (true, false) => moves -= 1,
                        _ => {}
                    }
                    if before.is_some() && before != Some(&place) {
                        let device = device.clone();
                        moved.push(Moved {
                            device,
                            place: place.clone(),
                        });
                    }
                    self.places.insert(device.clone(), place);
                }
                None => drop(self.places.remove(device)),
            }
        }
        moved
    }

    /// What an instance has to do with each of its devices.
    pub(crate) fn duties(&self, identity: &RoleIdentity) -> BTreeMap<&ResourceKey, Duty> {
        let duties = self.places.iter().filter_map(|(device, place)| {
            let duty = place.duty(device, identity)?;
            Some((device, duty))
        });
        duties.collect()
    }

    /// Where a device is.
    pub(crate) fn place(&self, device: &ResourceKey) -> Option<&Place> {
        self.places.get(device)
    }
}

/// A device that is on its way, or has arrived.
#[derive(Debug)]
pub(crate) struct Moved {
    /// Which.
    pub(crate) device: ResourceKey,
    /// Where it is now.
    pub(crate) place: Place,
}

/// The order to take a device.
fn take(device: &ResourceKey, number: u64, turn: foreshore_control::Turn) -> TakePlan {
    TakePlan {
        namespace: device.namespace.clone(),
        device: device.name.clone(),
        number,
        turn,
    }
}

#[cfg(test)]
mod tests;
