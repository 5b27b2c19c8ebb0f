//! Instances that do what their plans say, a source that counts, and a broker that writes down what it gets.

use std::collections::{BTreeMap, BTreeSet};

use foreshore_control::{HandOver, Resource, ResourceKey, Stage, Turn};
use foreshore_tls::{Fingerprint, RoleIdentity};

use super::{device, identity};
use crate::shards::{Duty, Holding, Holdings, Member, Shards};

/// Random numbers that are the same each time (Knuth's MMIX generator).
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides.max(1)
    }
}

/// What an instance does with a device.
#[derive(Clone, Debug, PartialEq)]
enum Doing {
    /// Not begun: what was told has to be followed.
    Nothing,
    /// Subscribed since then, and holding back.
    Waiting { since: Option<u64> },
    /// Handing over; the next value is this.
    Serving { next: u64 },
    /// Told to let go, and still handing over.
    Giving { next: u64 },
    /// Let go after this many values; `None` when that is not known any more.
    Given { upto: Option<u64> },
}

/// A device at an instance.
#[derive(Clone, Debug)]
struct Work {
    duty: Duty,
    doing: Doing,
    epoch: u64,
    /// It says so of each device that it may not take while another has it.
    refuses: bool,
}

#[derive(Debug)]
struct Instance {
    identity: RoleIdentity,
    capable: bool,
    connected: bool,
    leaving: bool,
    /// What it was told last, and has not taken up.
    told: Option<BTreeMap<ResourceKey, Duty>>,
    works: BTreeMap<ResourceKey, Work>,
    refuses: bool,
    /// How much its clock is ahead.
    skew: u64,
}

/// Everything.
pub(super) struct World {
    dice: Dice,
    shards: Shards,
    /// What the leader knows of each.
    seen: BTreeMap<RoleIdentity, BTreeMap<ResourceKey, Holding>>,
    devices: BTreeSet<ResourceKey>,
    instances: Vec<Instance>,
    time: u64,
    /// What the broker has of each device.
    log: BTreeMap<ResourceKey, Vec<u64>>,
    fence: BTreeMap<ResourceKey, u64>,
    next_uid: usize,
    moves: usize,
    leaders: u64,
    /// Whether clocks differ.
    pub(super) skews: bool,
}

impl World {
    pub(super) fn new(seed: u64, devices: usize) -> Self {
        Self {
            dice: Dice(seed),
            shards: Shards::new(0),
            seen: BTreeMap::new(),
            devices: (0..devices).map(device).collect(),
            instances: Vec::new(),
            time: 0,
            log: BTreeMap::new(),
            fence: BTreeMap::new(),
            next_uid: 0,
            moves: 0,
            leaders: 0,
            skews: false,
        }
    }

    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.dice.roll(sides)
    }

    pub(super) fn moves(&self) -> usize {
        self.moves
    }

    pub(super) fn staying(&self) -> usize {
        self.instances.iter().filter(|one| !one.leaving).count()
    }

    fn join(&mut self, capable: bool) {
        self.next_uid += 1;
        let skew = if self.skews { self.dice.roll(60) as u64 } else { 0 };
        self.instances.push(Instance {
            identity: identity(&format!("i{}", self.next_uid)),
            capable,
            connected: true,
            leaving: false,
            told: None,
            works: BTreeMap::new(),
            refuses: false,
            skew,
        });
    }

    pub(super) fn add(&mut self) {
        self.join(true);
    }

    pub(super) fn add_old(&mut self) {
        self.join(false);
    }

    pub(super) fn leave(&mut self, which: usize) {
        self.instances[which].leaving = true;
    }

    fn any(&mut self) -> usize {
        let several = self.instances.len();
        self.dice.roll(several)
    }

    fn any_staying(&mut self) -> usize {
        loop {
            let which = self.any();
            if !self.instances[which].leaving {
                return which;
            }
        }
    }

    pub(super) fn leave_any(&mut self) {
        let which = self.any_staying();
        self.leave(which);
    }

    /// Its process and its node are gone.
    pub(super) fn kill_any(&mut self) {
        let which = self.any_staying();
        let gone = self.instances.remove(which);
        self.seen.remove(&gone.identity);
    }

    pub(super) fn refuse_any(&mut self) {
        let which = self.any();
        let one = &mut self.instances[which];
        one.refuses = !one.refuses;
    }

    pub(super) fn disconnect_any(&mut self) {
        let which = self.any();
        self.instances[which].connected = false;
    }

    /// Its process begins anew, with the plan that it had.
    pub(super) fn restart_any(&mut self) {
        let which = self.any();
        let (time, one) = (self.time, &mut self.instances[which]);
        for work in one.works.values_mut() {
            work.epoch = (time + one.skew).max(work.epoch + 1);
            work.doing = match (&work.duty, &work.doing) {
                (Duty::Serve, _) => Doing::Serving { next: time },
                (Duty::Give(_), _) => Doing::Given { upto: None },
                (Duty::Take(_), Doing::Serving { .. }) => Doing::Serving { next: time },
                (Duty::Take(_), _) => Doing::Waiting { since: None },
            };
        }
        one.connected = false;
    }

    /// Another leader begins with nothing but what it is told.
    pub(super) fn new_leader(&mut self) {
        self.leaders += 1;
        self.shards = Shards::new(self.leaders * 1_000_000);
        self.seen.clear();
        for one in &mut self.instances {
            one.connected = false;
            one.told = None;
        }
    }

    /// Something happens.
    pub(super) fn step(&mut self) {
        let which = self.any();
        match self.dice.roll(5) {
            0 => self.time += 1,
            1 => self.take_up(which),
            2 => self.work(which),
            3 => self.tell(which),
            _ => self.lead(),
        }
    }

    /// Everything that is due happens, until nothing is.
    pub(super) fn settle(&mut self) {
        for round in 0..400 {
            self.time += 1;
            for which in 0..self.instances.len() {
                self.take_up(which);
                self.work(which);
                self.work(which);
                self.tell(which);
            }
            self.lead();
            // One that ends waits until it has nothing left.
            self.instances.retain(|one| !one.leaving || !one.works.is_empty());
            self.assert_one_server();
            let at_rest =
                |device: &ResourceKey| self.shards.place(device).is_some_and(|place| !place.is_moving());
            let quiet = self.devices.iter().all(at_rest);
            let served = |device: &ResourceKey| self.servers(device) == 1;
            if round > 40 && quiet && self.devices.iter().all(served) {
                // What is on its way is handed over.
                for which in 0..self.instances.len() {
                    self.work(which);
                }
                return;
            }
        }
        panic!("not settled: {:#?}\n{:#?}", self.shards, self.instances);
    }

    /// The leader looks at what it knows, and says what shall be; where it may know everything.
    fn lead(&mut self) {
        let seen = &self.seen;
        if self.instances.iter().any(|one| !seen.contains_key(&one.identity)) {
            return;
        }
        let mut holdings = Holdings::new();
        let mut members = Vec::new();
        for one in &self.instances {
            for (device, holding) in &self.seen[&one.identity] {
                let of = holdings.entry(device.clone()).or_default();
                of.insert(one.identity.clone(), holding.clone());
            }
            members.push(Member {
                identity: one.identity.clone(),
                connected: one.connected,
                known: true,
                leaving: one.leaving,
                capable: one.capable,
            });
        }
        self.moves += self.shards.update(&self.devices, &members, &holdings).len();
        for one in &mut self.instances {
            let duties = self.shards.duties(&one.identity);
            let duties: BTreeMap<_, _> = duties
                .into_iter()
                .map(|(device, duty)| (device.clone(), duty))
                .collect();
            one.told = Some(duties);
        }
    }

    /// An instance takes up what it was told last, if it has a session.
    fn take_up(&mut self, which: usize) {
        let (time, one) = (self.time, &mut self.instances[which]);
        if !one.connected {
            // It comes back, and says what it holds; what it was told meanwhile reaches it later.
            one.connected = true;
            self.seen.remove(&one.identity.clone());
            self.tell(which);
            return;
        }
        let Some(told) = one.told.take() else { return };
        one.works.retain(|device, _| told.contains_key(device));
        for (device, duty) in told {
            let work = one.works.entry(device).or_insert_with(|| Work {
                duty: duty.clone(),
                doing: Doing::Nothing,
                epoch: 0,
                refuses: one.refuses,
            });
            let (before, clock) = (work.doing.clone(), time + one.skew);
            work.doing = match (&duty, work.doing.clone()) {
                (Duty::Serve, Doing::Nothing) => Doing::Serving { next: time },
                (Duty::Serve, Doing::Given { upto }) => Doing::Serving {
                    // It begins anew: what came meanwhile is missing.
                    next: upto.unwrap_or(time).max(time),
                },
                (Duty::Serve, Doing::Giving { next }) => Doing::Serving { next },
                (Duty::Serve, Doing::Waiting { since }) => Doing::Serving {
                    next: since.unwrap_or(time),
                },
                (Duty::Take(take), Doing::Nothing | Doing::Waiting { .. }) => {
                    let since = match work.doing {
                        Doing::Waiting { since } => since,
                        _ => None,
                    };
                    let from = |since: Option<u64>| since.unwrap_or(time);
                    match &take.turn {
                        Turn::Wait => Doing::Waiting { since },
                        Turn::Lost { .. } => Doing::Serving { next: from(since) },
                        Turn::After { .. } => {
                            let upto = take.turn.watermark().unwrap();
                            let upto = u64::from_be_bytes(upto.try_into().unwrap());
                            Doing::Serving {
                                next: from(since).max(upto),
                            }
                        }
                    }
                }
                (Duty::Give(_), Doing::Nothing) => Doing::Given { upto: None },
                (Duty::Give(_), Doing::Serving { next }) => Doing::Giving { next },
                (Duty::Give(_), Doing::Waiting { .. }) => Doing::Given { upto: None },
                (_, doing) => doing,
            };
            let hands_over = |doing: &Doing| matches!(doing, Doing::Serving { .. } | Doing::Giving { .. });
            if !hands_over(&before) && hands_over(&work.doing) {
                let floor = match &duty {
                    Duty::Take(take) => take.turn.epoch(),
                    Duty::Serve | Duty::Give(_) => 0,
                };
                work.epoch = clock.max(floor.max(work.epoch) + 1);
            }
            work.duty = duty;
        }
        self.tell(which);
    }

    /// An instance does what is due.
    fn work(&mut self, which: usize) {
        let (time, one) = (self.time, &mut self.instances[which]);
        for (device, work) in &mut one.works {
            match &mut work.doing {
                Doing::Waiting { since } if !work.refuses => drop(since.get_or_insert(time)),
                Doing::Serving { next } | Doing::Giving { next } => {
                    let fence = self.fence.entry(device.clone()).or_default();
                    *fence = work.epoch.max(*fence);
                    let log = self.log.entry(device.clone()).or_default();
                    if work.epoch == *fence {
                        log.extend(*next..time);
                    }
                    *next = time.max(*next);
                    if let Doing::Giving { next } = work.doing {
                        work.doing = Doing::Given { upto: Some(next) };
                    }
                }
                _ => {}
            }
        }
    }

    /// The leader hears how an instance stands.
    fn tell(&mut self, which: usize) {
        let one = &self.instances[which];
        if !one.connected {
            return;
        }
        let mut holdings = BTreeMap::new();
        for (device, work) in &one.works {
            let (give, take, number) = match &work.duty {
                Duty::Serve => (false, None, 0),
                Duty::Take(take) => (false, Some(hash(take)), take.number),
                Duty::Give(give) => (true, None, give.number),
            };
            let stage = match &work.doing {
                Doing::Serving { .. } => Some((Stage::Serving, Vec::new())),
                Doing::Waiting { since: Some(_) } => Some((Stage::Ready, Vec::new())),
                Doing::Waiting { since: None } if work.refuses => Some((Stage::Refused, Vec::new())),
                Doing::Given { upto } => {
                    let watermark = upto.map(|upto| upto.to_be_bytes().to_vec());
                    Some((Stage::Given, watermark.unwrap_or_default()))
                }
                Doing::Nothing | Doing::Waiting { .. } | Doing::Giving { .. } => None,
            };
            let told = stage.filter(|_| one.capable).map(|(stage, watermark)| HandOver {
                device: device.clone(),
                stage,
                number,
                epoch: work.epoch,
                watermark: watermark.into(),
            });
            let holding = Holding {
                device: true,
                give,
                take,
                told,
            };
            holdings.insert(device.clone(), holding);
        }
        self.seen.insert(one.identity.clone(), holdings);
    }

    fn servers(&self, device: &ResourceKey) -> usize {
        let works = self.instances.iter().filter_map(|one| one.works.get(device));
        works
            .filter(|work| matches!(work.doing, Doing::Serving { .. } | Doing::Giving { .. }))
            .count()
    }

    pub(super) fn assert_one_server(&self) {
        for device in &self.devices {
            assert!(self.servers(device) <= 1, "{device}: {:#?}", self.instances);
        }
    }

    /// How many devices each instance serves.
    pub(super) fn loads(&self) -> Vec<usize> {
        let serving = |one: &Instance| {
            let works = one.works.values();
            works
                .filter(|work| matches!(work.doing, Doing::Serving { .. }))
                .count()
        };
        self.instances.iter().map(serving).collect()
    }

    /// The broker has every value once, and in order.
    pub(super) fn assert_exact(&self) {
        for device in &self.devices {
            let log = &self.log[device];
            let first = log[0];
            let expected: Vec<_> = (first..self.time).collect();
            assert_eq!(*log, expected, "{device}");
        }
    }

    /// Devices of which something is missing or doubled.
    pub(super) fn assert_told(&self) -> usize {
        let exact = |device: &&ResourceKey| self.log[*device].windows(2).all(|pair| pair[1] == pair[0] + 1);
        for device in &self.devices {
            assert_eq!(self.servers(device), 1, "{device}");
            assert_eq!(
                *self.log[device].last().unwrap(),
                self.time - 1,
                "{device} goes on"
            );
        }
        self.devices.len() - self.devices.iter().filter(exact).count()
    }
}

fn hash(take: &foreshore_control::TakePlan) -> Fingerprint {
    Resource::of(take).unwrap().hash()
}
