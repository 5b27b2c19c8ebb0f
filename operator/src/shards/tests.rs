//! The assignment alone, and hand-overs in a world of instances that do what they are told, each at its own pace.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use foreshore_control::{PlanResource, ResourceKey, plan::DevicePlan};
use foreshore_tls::{Role, RoleIdentity};

use self::world::{Dice, World};
use super::assign::assign;

fn identity(uid: &str) -> RoleIdentity {
    RoleIdentity::new(Role::Connector, "plant", "opcua", uid).unwrap()
}

fn device(number: usize) -> ResourceKey {
    ResourceKey::new(DevicePlan::KIND, "plant", format!("d{number}"))
}

type Owners = BTreeMap<ResourceKey, RoleIdentity>;

fn assigned(devices: usize, owners: &Owners, eligible: &[RoleIdentity], silent: &[RoleIdentity]) -> Owners {
    let devices: BTreeSet<_> = (0..devices).map(device).collect();
    let owners = owners.iter().collect();
    let eligible: Vec<_> = eligible.iter().collect();
    let staying = eligible.iter().copied().chain(silent).collect();
    assign(&devices, &owners, &eligible, &staying)
}

fn loads(owners: &Owners) -> Vec<usize> {
    let mut loads: BTreeMap<&RoleIdentity, usize> = BTreeMap::new();
    for owner in owners.values() {
        *loads.entry(owner).or_default() += 1;
    }
    loads.into_values().collect()
}

fn moved(before: &Owners, after: &Owners) -> usize {
    before
        .iter()
        .filter(|(device, owner)| after.get(*device) != Some(*owner))
        .count()
}

#[test]
fn who_has_a_device_keeps_it_unless_the_balance_asks_for_it() {
    let [a, b, c] = ["a", "b", "c"].map(identity);
    let one = assigned(9, &Owners::new(), std::slice::from_ref(&a), &[]);
    assert_eq!(loads(&one), [9]);
    let three = assigned(9, &one, &[a.clone(), b.clone(), c.clone()], &[]);
    assert_eq!((loads(&three), moved(&one, &three)), (vec![3, 3, 3], 6));
    assert_eq!(
        assigned(9, &three, &[a.clone(), b.clone(), c.clone()], &[]),
        three
    );
    // One more device, or one less, moves nothing.
    let ten = assigned(10, &three, &[a.clone(), b.clone(), c.clone()], &[]);
    assert_eq!(moved(&three, &ten), 0);
    // Only what the one that is gone had moves.
    let two = assigned(9, &three, &[a.clone(), b.clone()], &[]);
    assert_eq!(moved(&three, &two), 3);
    assert!(loads(&two).iter().all(|load| (4..=5).contains(load)));
    // One that is silent keeps what it has, and gets nothing.
    let silent = assigned(12, &three, &[a, b], std::slice::from_ref(&c));
    assert_eq!(moved(&three, &silent), 0);
    assert_eq!(silent.values().filter(|owner| **owner == c).count(), 3);
}

#[test]
fn every_device_has_one_instance_and_loads_differ_by_one_at_most() {
    let mut dice = Dice(11);
    for _ in 0..2_000 {
        let instances: Vec<_> = (0..1 + dice.roll(7))
            .map(|number| identity(&format!("i{number}")))
            .collect();
        let devices = dice.roll(40);
        let mut owners = Owners::new();
        for number in 0..devices + 3 {
            // Some have no owner, some one that is gone.
            let owner = dice.roll(9);
            if owner < 8 {
                owners.insert(device(number), identity(&format!("i{owner}")));
            }
        }
        let assigned_now = assigned(devices, &owners, &instances, &[]);
        assert_eq!(assigned_now.len(), devices, "each once, and none forgotten");
        assert!(assigned_now.values().all(|owner| instances.contains(owner)));
        let of = |one: &RoleIdentity| assigned_now.values().filter(|owner| *owner == one).count();
        let loads: Vec<_> = instances.iter().map(of).collect();
        assert!(
            loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1,
            "{loads:?}"
        );
        assert_eq!(assigned(devices, &assigned_now, &instances, &[]), assigned_now);
        // No more moves than devices whose owner is gone or has more than its share.
        let share = devices / instances.len();
        let free = |number: &usize| {
            owners
                .get(&device(*number))
                .is_none_or(|owner| !instances.contains(owner))
        };
        let free = (0..devices).filter(free).count();
        let had = |one: &RoleIdentity| {
            (0..devices)
                .filter(|number| owners.get(&device(*number)) == Some(one))
                .count()
        };
        let excess: usize = instances.iter().map(|one| had(one).saturating_sub(share)).sum();
        let owned: Owners = owners
            .into_iter()
            .filter(|(key, owner)| instances.contains(owner) && assigned_now.contains_key(key))
            .collect();
        assert!(moved(&owned, &assigned_now) <= excess, "{free} free");
    }
}

#[test]
fn one_to_three_to_one_loses_nothing_and_doubles_nothing() {
    let mut world = World::new(7, 6);
    world.add();
    world.settle();
    world.add();
    world.add();
    world.settle();
    assert_eq!(world.loads(), [2, 2, 2]);
    world.leave(1);
    world.leave(2);
    world.settle();
    assert_eq!(world.loads(), [6]);
    world.assert_exact();
    assert!(world.moves() >= 8, "{}", world.moves());
}

#[test]
fn whatever_the_pace_nothing_is_lost_or_doubled_while_nobody_dies() {
    for seed in 0..400 {
        let mut world = World::new(seed, 5);
        world.skews = true;
        world.add();
        for _ in 0..120 {
            match world.roll(30) {
                0 if world.staying() < 4 => world.add(),
                1 if world.staying() > 1 => world.leave_any(),
                2 => world.new_leader(),
                3 => world.disconnect_any(),
                _ => world.step(),
            }
            world.assert_one_server();
        }
        world.settle();
        world.assert_exact();
    }
}

#[test]
fn whoever_dies_whenever_every_device_is_served_by_one_again() {
    let mut lost = 0;
    for seed in 0..600 {
        let mut world = World::new(seed, 5);
        world.add();
        for _ in 0..120 {
            match world.roll(30) {
                0 if world.staying() < 4 => world.add(),
                1 if world.staying() > 1 => world.leave_any(),
                2 => world.new_leader(),
                3 if world.staying() > 1 => world.kill_any(),
                4 => world.refuse_any(),
                5 => world.disconnect_any(),
                6 => world.restart_any(),
                _ => world.step(),
            }
            world.assert_one_server();
        }
        world.settle();
        lost += world.assert_told();
    }
    assert!(lost > 0, "nothing was put to the test");
}

#[test]
fn an_instance_that_is_too_old_is_let_go_of_first() {
    let mut world = World::new(3, 4);
    world.add_old();
    world.settle();
    world.add();
    world.settle();
    assert_eq!(world.loads(), [2, 2]);
    world.assert_told();
    world.add_old();
    world.settle();
    world.leave(0);
    world.settle();
    world.assert_told();
    assert_eq!(world.loads(), [2, 2]);
}
