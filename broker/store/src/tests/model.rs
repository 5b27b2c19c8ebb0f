//! Random operations against a model that is written down as plainly as possible.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use foreshore_record::{DropReason, Outcome};
use proptest::prelude::*;

use super::{Harness, message, payload_of, publish_message};
use crate::{
    Applied, BrokerTime, EntryId, Limits, Message, Operation, OverflowPolicy, ReceiverId, Settlement,
};

/// Names of receivers that come and go.
const NAMES: [&str; 4] = ["session/a", "session/b", "dataflow/c", "dataflow/d"];

#[derive(Clone, Debug)]
enum Step {
    Put {
        name: usize,
        limits: Limits,
    },
    Drop {
        name: usize,
    },
    Publish {
        names: Vec<usize>,
        length: usize,
        expires_in: Option<u64>,
        then_settle: bool,
    },
    Settle {
        name: usize,
        picks: Vec<(prop::sample::Index, Outcome)>,
        old_epoch: bool,
    },
    HandOut {
        name: usize,
        from: prop::sample::Index,
        to: prop::sample::Index,
    },
    Open {
        name: usize,
    },
    Sweep {
        name: usize,
    },
    Replay {
        from: usize,
        to: usize,
        pick: prop::sample::Index,
    },
    Wait {
        seconds: u64,
    },
    Maintain,
    Reopen {
        orderly: bool,
    },
}

#[derive(Clone, Debug, Default)]
struct ModelPath {
    id: ReceiverId,
    limits: Limits,
    epoch: u64,
    entries: BTreeMap<EntryId, ModelEntry>,
    dead: BTreeMap<EntryId, String>,
    received: u64,
    delivered: u64,
    dead_lettered: u64,
    dropped: BTreeMap<String, u64>,
    /// Ids that each opening handed out, the present one last.
    handed_out: Vec<BTreeSet<EntryId>>,
}

#[derive(Clone, Debug)]
struct ModelEntry {
    payload: String,
    size: u64,
    at: u64,
    expires_at: Option<u64>,
}

#[derive(Default)]
struct Model {
    now: u64,
    next_id: EntryId,
    paths: BTreeMap<usize, ModelPath>,
    /// Entries that ended paths received and dropped.
    ended: (u64, u64),
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Delivered),
        1 => Just(super::dead_letter("broken")),
        1 => Just(Outcome::Dropped { reason: DropReason::FILTERED }),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    let policy = prop_oneof![
        Just(OverflowPolicy::Reject),
        Just(OverflowPolicy::DropOldest),
        Just(OverflowPolicy::DropNew)
    ];
    (
        prop::option::of(40_u64..400),
        prop::option::of(5_u64..40),
        policy,
        prop::option::of(1_u8..4),
    )
        .prop_map(|(max_bytes, age, overflow, max_attempts)| Limits {
            max_bytes,
            max_age: age.map(Duration::from_secs),
            overflow,
            max_attempts,
            max_dead_letter_bytes: None,
            own_limits_only: false,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    let pick = any::<prop::sample::Index>;
    prop_oneof![
        2 => (name.clone(), limits()).prop_map(|(name, limits)| Step::Put { name, limits }),
        1 => name.clone().prop_map(|name| Step::Drop { name }),
        12 => (
            prop::collection::vec(name.clone(), 0..5),
            0_usize..60,
            prop::option::of(0_u64..20),
            prop::bool::weighted(0.2),
        ).prop_map(|(names, length, expires_in, then_settle)| {
            Step::Publish { names, length, expires_in, then_settle }
        }),
        8 => (name.clone(), prop::collection::vec((pick(), outcome()), 1..5), prop::bool::weighted(0.1))
            .prop_map(|(name, picks, old_epoch)| Step::Settle { name, picks, old_epoch }),
        3 => (name.clone(), pick(), pick()).prop_map(|(name, from, to)| Step::HandOut { name, from, to }),
        3 => name.clone().prop_map(|name| Step::Open { name }),
        1 => name.clone().prop_map(|name| Step::Sweep { name }),
        1 => (name.clone(), name, pick()).prop_map(|(from, to, pick)| Step::Replay { from, to, pick }),
        3 => (1_u64..10).prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Maintain),
        1 => any::<bool>().prop_map(|orderly| Step::Reopen { orderly }),
    ]
}

impl ModelPath {
    fn bytes(&self) -> u64 {
        self.entries.values().map(|entry| entry.size).sum()
    }

    fn dropped(&mut self, reason: &str, count: u64) {
        if count > 0 {
            *self.dropped.entry(reason.to_owned()).or_default() += count;
        }
    }

    fn attempts(&self, id: EntryId) -> u32 {
        let earlier = self.handed_out.iter().rev().skip(1);
        earlier.map(|ids| u32::from(ids.contains(&id))).sum()
    }

    fn age(&mut self, now: u64) {
        let Some(max_age) = self.limits.max_age else {
            return;
        };
        let max_age = u64::try_from(max_age.as_millis()).unwrap();
        let before = self.entries.len();
        self.entries.retain(|_, entry| now - entry.at <= max_age);
        self.dropped("age_limit", (before - self.entries.len()) as u64);
    }

    fn sweep(&mut self, now: u64) {
        self.age(now);
        while let Some(first) = self.entries.first_entry() {
            if first.get().expires_at.is_none_or(|at| at > now) {
                break;
            }
            first.remove();
            self.dropped("expired", 1);
        }
    }

    fn admit(&mut self, id: EntryId, entry: ModelEntry) {
        self.received += 1;
        if let Some(max) = self.limits.max_bytes {
            if entry.size > max {
                return self.dropped("too_large", 1);
            }
            if self.bytes() + entry.size > max && self.limits.overflow != OverflowPolicy::DropOldest {
                return self.dropped("overflow_new", 1);
            }
            while self.bytes() + entry.size > max {
                self.entries.pop_first();
                self.dropped("overflow_oldest", 1);
            }
        }
        self.entries.insert(id, entry);
    }

    fn settle(&mut self, id: EntryId, outcome: &Outcome) -> bool {
        let Some(entry) = self.entries.remove(&id) else {
            return false;
        };
        match outcome {
            Outcome::Delivered => self.delivered += 1,
            Outcome::Dropped { reason } => self.dropped(reason.as_str(), 1),
            Outcome::DeadLettered { .. } => {
                self.dead_lettered += 1;
                self.dead.insert(id, entry.payload);
            }
        }
        true
    }

    fn open(&mut self) -> u64 {
        self.epoch += 1;
        self.handed_out.push(BTreeSet::new());
        let mut buried = 0;
        if let Some(max) = self.limits.max_attempts {
            for id in self.entries.keys().copied().collect::<Vec<_>>() {
                if self.attempts(id) >= max.into() {
                    self.settle(id, &super::dead_letter("attempts"));
                    buried += 1;
                }
            }
        }
        buried
    }
}

impl Model {
    fn publish(&mut self, names: &[usize], entry: &ModelEntry) -> Option<EntryId> {
        let id = self.next_id;
        self.next_id += 1;
        let named: BTreeSet<_> = names.iter().copied().collect();
        // Receivers are asked in their order until one refuses.
        for name in names {
            let Some(path) = self.paths.get_mut(name) else {
                continue;
            };
            path.age(self.now);
            let full = path
                .limits
                .max_bytes
                .is_some_and(|max| path.bytes() + entry.size > max);
            if full && path.limits.overflow == OverflowPolicy::Reject {
                return None;
            }
        }
        for name in named {
            if let Some(path) = self.paths.get_mut(&name) {
                path.admit(id, entry.clone());
            }
        }
        Some(id)
    }
}

struct Run {
    store: Harness,
    model: Model,
    published: usize,
}

impl Run {
    fn new(store: Harness) -> Self {
        Self {
            store,
            model: Model {
                next_id: 1,
                ..Model::default()
            },
            published: 0,
        }
    }

    fn path(&mut self, name: usize) -> Option<&mut ModelPath> {
        self.model.paths.get_mut(&name)
    }

    fn step(&mut self, step: &Step) {
        let now = self.model.now;
        match step {
            Step::Put { name, limits } => {
                let id = self.store.receiver(NAMES[*name], limits.clone());
                let path = self.model.paths.entry(*name).or_insert_with(|| ModelPath {
                    id,
                    handed_out: vec![BTreeSet::new()],
                    ..ModelPath::default()
                });
                assert_eq!(path.id, id);
                path.limits = limits.clone();
            }
            Step::Drop { name } => {
                let Some(path) = self.model.paths.remove(name) else {
                    return;
                };
                let reason = DropReason::SESSION_ENDED;
                self.store.one(Operation::DropReceiver {
                    receiver: path.id,
                    reason,
                });
                self.model.ended.0 += path.received;
                self.model.ended.1 += path.dropped.values().sum::<u64>() + path.entries.len() as u64;
            }
            Step::Publish {
                names,
                length,
                expires_in,
                then_settle,
            } => {
                self.publish(names, *length, *expires_in, *then_settle);
            }
            Step::Settle {
                name,
                picks,
                old_epoch,
            } => self.settle(*name, picks, *old_epoch),
            Step::HandOut { name, from, to } => {
                let next_id = self.model.next_id;
                let Some(path) = self.path(*name) else { return };
                let (after, up_to) = (
                    from.index(next_id as usize) as u64,
                    to.index(next_id as usize) as u64,
                );
                path.handed_out.last_mut().unwrap().extend(after + 1..=up_to);
                let (receiver, epoch) = (path.id, path.epoch);
                self.store.one(Operation::HandOut {
                    receiver,
                    epoch,
                    after,
                    up_to,
                    redelivered: 0,
                });
            }
            Step::Open { name } => {
                let Some(path) = self.path(*name) else { return };
                let (buried, receiver, epoch) = (path.open(), path.id, path.epoch);
                let opening = self.store.open_path(receiver);
                assert_eq!((opening.epoch, opening.dead_lettered), (epoch, buried));
            }
            Step::Sweep { name } => {
                let Some(path) = self.path(*name) else { return };
                path.sweep(now);
                let receiver = path.id;
                self.store.one(Operation::Sweep { receiver });
            }
            Step::Replay { from, to, pick } => self.replay(*from, *to, pick),
            Step::Wait { seconds } => {
                self.store.wait(*seconds);
                self.model.now += seconds * 1000;
            }
            Step::Maintain => {
                self.model.paths.values_mut().for_each(|path| path.sweep(now));
                self.store.maintain();
            }
            Step::Reopen { orderly } => self.store.reopen(*orderly),
        }
    }

    fn publish(&mut self, names: &[usize], length: usize, expires_in: Option<u64>, then_settle: bool) {
        self.published += 1;
        let payload = format!("{}{}", self.published, "x".repeat(length));
        let expires_at = expires_in.map(|seconds| self.model.now + seconds * 1000);
        let text = message(&payload);
        let size = crate::record::weight(&text.record) as u64;
        let entry = ModelEntry {
            payload,
            size,
            at: self.model.now,
            expires_at,
        };
        let receivers: Vec<_> = names
            .iter()
            .map(|name| self.model.paths.get(name).map_or(999, |path| path.id))
            .collect();
        let expected_id = self.model.next_id;
        let settled = names
            .first()
            .and_then(|name| self.model.paths.get(name))
            .filter(|_| then_settle);
        let settled = settled.map(|path| (path.id, path.epoch));
        let mut operations = vec![publish_message(
            Message {
                expires_at: expires_at.map(BrokerTime),
                ..text
            },
            &receivers,
        )];
        if let Some((receiver, epoch)) = settled {
            let settlements = vec![Settlement::delivered(expected_id)];
            operations.push(Operation::Settle {
                receiver,
                epoch,
                settlements,
            });
        }
        let applied = self.store.commit(operations);
        match self.model.publish(names, &entry) {
            Some(id) => assert!(matches!(applied[0], Applied::Published { id: got, .. } if got == id)),
            None => assert!(matches!(applied[0], Applied::Refused(_)), "{applied:?}"),
        }
        if settled.is_some() {
            let path = self.path(names[0]).unwrap();
            let was_there = path.settle(expected_id, &Outcome::Delivered);
            let settled = u64::from(was_there);
            assert_eq!(
                applied[1],
                Applied::Settled {
                    settled,
                    unknown: 1 - settled
                }
            );
        }
    }

    fn settle(&mut self, name: usize, picks: &[(prop::sample::Index, Outcome)], old_epoch: bool) {
        let next_id = self.model.next_id;
        let Some(path) = self.path(name) else { return };
        let (receiver, epoch) = (path.id, path.epoch);
        // Mostly what is there, now and then what is not.
        let mut ids: Vec<EntryId> = path.entries.keys().copied().collect();
        ids.push(next_id / 2);
        let settlements: Vec<_> = picks
            .iter()
            .map(|(pick, outcome)| Settlement {
                id: *pick.get(&ids),
                emitted: 0,
                outcome: outcome.clone(),
            })
            .collect();
        if old_epoch && epoch > 0 {
            let settle = Operation::Settle {
                receiver,
                epoch: epoch - 1,
                settlements,
            };
            assert_eq!(self.store.one(settle), Applied::Fenced { epoch });
            return;
        }
        let settled: u64 = settlements
            .iter()
            .map(|settlement| u64::from(path.settle(settlement.id, &settlement.outcome)))
            .sum();
        let unknown = settlements.len() as u64 - settled;
        let applied = self.store.one(Operation::Settle {
            receiver,
            epoch,
            settlements,
        });
        assert_eq!(applied, Applied::Settled { settled, unknown });
    }

    fn replay(&mut self, from: usize, to: usize, pick: &prop::sample::Index) {
        if !self.model.paths.contains_key(&to) {
            return;
        }
        let Some(path) = self.path(from) else { return };
        let dead: Vec<_> = path.dead.keys().copied().collect();
        if dead.is_empty() {
            return;
        }
        let id = *pick.get(&dead);
        let (source, payload) = (path.id, path.dead.remove(&id).unwrap());
        let (new_id, at) = (self.model.next_id, self.model.now);
        self.model.next_id += 1;
        let size = crate::record::weight(&message(&payload).record) as u64;
        let path = self.path(to).unwrap();
        path.received += 1;
        path.entries.insert(
            new_id,
            ModelEntry {
                payload,
                size,
                at,
                expires_at: None,
            },
        );
        let target = path.id;
        let applied = self.store.one(Operation::Replay {
            from: source,
            ids: vec![id],
            to: target,
        });
        assert_eq!(
            applied,
            Applied::Affected {
                count: 1,
                more: false
            }
        );
    }

    fn compare(&self) {
        let now = self.model.now;
        for path in self.model.paths.values() {
            let page = self.store.page(path.id);
            assert!(page.damaged.is_empty());
            let live = path
                .entries
                .iter()
                .filter(|(_, entry)| entry.expires_at.is_none_or(|at| at > now));
            let expected: Vec<_> = live
                .map(|(id, entry)| (*id, entry.payload.clone(), path.attempts(*id)))
                .collect();
            let found: Vec<_> = page
                .entries
                .iter()
                .map(|entry| (entry.id, payload_of(entry), entry.attempt))
                .collect();
            assert_eq!(found, expected);
            assert_eq!(found.len() + page.expired.len(), path.entries.len());

            let totals = self.store.totals(path.id);
            assert_eq!(totals.ledger.received, path.received);
            assert_eq!(totals.ledger.delivered, path.delivered);
            assert_eq!(totals.ledger.dead_lettered, path.dead_lettered);
            assert_eq!(totals.ledger.dropped, path.dropped);
            assert_eq!(totals.ledger.waiting, path.entries.len() as u64);
            assert_eq!((totals.waiting_bytes, totals.epoch), (path.bytes(), path.epoch));
            if let Some((id, entry)) = path.entries.first_key_value() {
                assert_eq!((totals.head, totals.oldest), (*id, Some(BrokerTime(entry.at))));
            }
            let letters = self.store.store().dead_letters(path.id, 0, usize::MAX).unwrap();
            assert_eq!(
                letters.iter().map(|letter| letter.id).collect::<Vec<_>>(),
                path.dead.keys().copied().collect::<Vec<_>>()
            );
        }
        let ended = self.store.store().ended().unwrap();
        let sum =
            |count: fn(&crate::Counts) -> u64| ended.iter().map(|ended| count(&ended.counts)).sum::<u64>();
        assert_eq!(
            (
                sum(|counts| counts.received),
                sum(|counts| counts.dropped.values().sum())
            ),
            self.model.ended
        );
        assert_eq!(self.store.store().position().next_id, self.model.next_id);
    }
}

fn run(store: Harness, steps: &[Step]) {
    let mut run = Run::new(store);
    for step in steps {
        run.step(step);
        run.compare();
    }
    // In the end, ended receivers leave no row behind.
    run.step(&Step::Maintain);
    run.step(&Step::Reopen { orderly: true });
    run.compare();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn memory_agrees_with_the_model(steps in prop::collection::vec(step(), 1..60)) {
        run(Harness::memory(), &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn disk_agrees_with_the_model(steps in prop::collection::vec(step(), 20..80)) {
        run(Harness::disk(), &steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn encrypted_disk_with_changing_keys_agrees_with_the_model(steps in prop::collection::vec(step(), 20..80)) {
        run(Harness::encrypted(), &steps);
    }
}
