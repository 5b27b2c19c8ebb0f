//! What to send to a role: the difference between what it shall have and what it has.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use foreshore_tls::Fingerprint;

use super::{ResourceVersion, registry::Plan};
use crate::{
    plan::ResourceKey,
    resource::{Resource, phase},
    session::wire::Answer,
};

/// One message to a role.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delta {
    Set(Resource),
    Remove(ResourceKey),
    EndOfSnapshot,
}

/// A resource that the role is too old for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooOld {
    pub(super) resource: ResourceVersion,
    pub(super) missing: Vec<String>,
}

/// How the resources of a plan stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) acknowledged: usize,
    pub(super) refused: usize,
    pub(super) unsupported: usize,
}

/// How a resource stands at the role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    /// What was sent last, or what the role said that it holds.
    sent: Fingerprint,
    answer: Pending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Sent,
    Acknowledged,
    Refused,
}

/// Follows one role through its session. Pure: no clock, no I/O.
#[derive(Debug)]
pub(super) struct Deltas {
    capabilities: BTreeSet<String>,
    role: HashMap<ResourceKey, Standing>,
    plan: Option<Arc<Plan>>,
    unsupported: HashMap<ResourceKey, Fingerprint>,
    counts: Counts,
    queue: VecDeque<Delta>,
}

impl Deltas {
    /// Begins with what the role has in force.
    pub(super) fn new(capabilities: BTreeSet<String>, held: &[ResourceVersion]) -> Self {
        let role = held
            .iter()
            .map(|held| {
                (
                    held.key.clone(),
                    Standing {
                        sent: held.hash,
                        answer: Pending::Acknowledged,
                    },
                )
            })
            .collect();
        Self {
            capabilities,
            role,
            plan: None,
            unsupported: HashMap::new(),
            counts: Counts::default(),
            queue: VecDeque::new(),
        }
    }

    /// Aims at a plan, and returns what the role is too old for. What an earlier plan left in the queue is dropped.
    pub(super) fn aim(&mut self, plan: Arc<Plan>) -> Vec<TooOld> {
        self.queue.clear();
        let mut too_old = Vec::new();
        let mut unsupported = HashMap::new();
        for resource in plan.resources() {
            let missing: Vec<String> = resource
                .requires()
                .iter()
                .filter(|feature| !self.capabilities.contains(*feature))
                .cloned()
                .collect();
            if !missing.is_empty() {
                unsupported.insert(resource.key().clone(), resource.hash());
                // Told once for each content.
                if self.unsupported.get(resource.key()) != Some(&resource.hash()) {
                    too_old.push(TooOld {
                        resource: ResourceVersion::of(resource),
                        missing,
                    });
                }
                continue;
            }
            if self
                .role
                .get(resource.key())
                .is_none_or(|standing| standing.sent != resource.hash())
            {
                self.queue.push_back(Delta::Set(resource.clone()));
            }
        }
        self.unsupported = unsupported;
        self.counts = Counts::default();
        for resource in plan.resources() {
            if let Some(standing) = self.role.get(resource.key()) {
                self.counts.add(Some(resource.hash()), *standing);
            }
        }
        self.queue
            .extend(self.removals(&plan).into_iter().map(Delta::Remove));
        if !self.queue.is_empty() || self.plan.is_none() {
            self.queue.push_back(Delta::EndOfSnapshot);
        }
        self.plan = Some(plan);
        too_old
    }

    /// What the role has and the plan has not; the reverse of the order in which it was set, as far as known.
    fn removals(&self, plan: &Plan) -> Vec<ResourceKey> {
        let mut removals: Vec<(u32, ResourceKey)> = self
            .role
            .keys()
            .filter(|key| plan.get(key).is_none())
            .map(|key| {
                (
                    self.plan
                        .as_ref()
                        .and_then(|plan| plan.get(key))
                        .map_or_else(|| phase(&key.kind), Resource::phase),
                    key.clone(),
                )
            })
            .collect();
        removals.sort_unstable_by(|a, b| b.cmp(a));
        removals.into_iter().map(|(_, key)| key).collect()
    }

    pub(super) fn has_next(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next message, which counts as sent.
    pub(super) fn pop(&mut self) -> Option<Delta> {
        let delta = self.queue.pop_front()?;
        match &delta {
            Delta::Set(resource) => {
                let standing = Standing {
                    sent: resource.hash(),
                    answer: Pending::Sent,
                };
                self.stand(resource.key().clone(), Some(standing));
            }
            Delta::Remove(key) => self.stand(key.clone(), None),
            Delta::EndOfSnapshot => {}
        }
        Some(delta)
    }

    /// Takes note of an answer. One to an older version than the last that was sent changes nothing.
    pub(super) fn answered(&mut self, answer: &Answer) {
        let key = &answer.resource.key;
        let sent = match self.role.get(key) {
            Some(standing) if !answer.removed && standing.sent == answer.resource.hash => standing.sent,
            _ => return,
        };
        let answer = if answer.refused.is_some() {
            Pending::Refused
        } else {
            Pending::Acknowledged
        };
        self.stand(key.clone(), Some(Standing { sent, answer }));
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            unsupported: self.unsupported.len(),
            ..self.counts
        }
    }

    /// Changes how a resource stands, and the counts with it: they are asked for after each answer, and going through
    /// a whole plan each time would cost its square.
    fn stand(&mut self, key: ResourceKey, standing: Option<Standing>) {
        let wanted = self
            .plan
            .as_ref()
            .and_then(|plan| plan.get(&key))
            .map(Resource::hash);
        let before = match standing {
            Some(standing) => {
                self.counts.add(wanted, standing);
                self.role.insert(key, standing)
            }
            None => self.role.remove(&key),
        };
        if let Some(before) = before {
            self.counts.subtract(wanted, before);
        }
    }
}

impl Counts {
    fn add(&mut self, wanted: Option<Fingerprint>, standing: Standing) {
        if let Some(count) = self.of(wanted, standing) {
            *count += 1;
        }
    }

    fn subtract(&mut self, wanted: Option<Fingerprint>, standing: Standing) {
        if let Some(count) = self.of(wanted, standing) {
            *count -= 1;
        }
    }

    /// Which count a resource belongs to, if what was sent is what is wanted.
    fn of(&mut self, wanted: Option<Fingerprint>, standing: Standing) -> Option<&mut usize> {
        match standing.answer {
            _ if wanted != Some(standing.sent) => None,
            Pending::Sent => None,
            Pending::Acknowledged => Some(&mut self.acknowledged),
            Pending::Refused => Some(&mut self.refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::report::Nack;

    fn key(name: &str) -> ResourceKey {
        ResourceKey::new("Asset", "plant", name)
    }

    fn resource(name: &str, body: &str) -> Resource {
        Resource::new(key(name), 0, 3, Bytes::from(body.to_owned())).unwrap()
    }

    fn secret(name: &str) -> Resource {
        Resource::new(ResourceKey::new("Secret", "plant", name), 0, 0, Bytes::new()).unwrap()
    }

    fn plan(resources: Vec<Resource>) -> Arc<Plan> {
        Arc::new(Plan::new(resources, None).unwrap())
    }

    fn drain(deltas: &mut Deltas) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(delta) = deltas.pop() {
            texts.push(match delta {
                Delta::Set(resource) => format!("set {}", resource.key().name),
                Delta::Remove(key) => format!("remove {}", key.name),
                Delta::EndOfSnapshot => "end".to_owned(),
            });
        }
        texts
    }

    fn answer(resource: &Resource, refused: Option<Nack>) -> Answer {
        Answer {
            resource: ResourceVersion::of(resource),
            removed: false,
            refused,
        }
    }

    #[test]
    fn only_what_differs_is_sent_and_references_come_first() {
        let held = [
            ResourceVersion::of(&resource("same", "1")),
            ResourceVersion::of(&resource("old", "1")),
        ];
        let mut deltas = Deltas::new(BTreeSet::new(), &held);
        let wanted = plan(vec![resource("same", "1"), resource("new", "1"), secret("pw")]);
        assert!(deltas.aim(Arc::clone(&wanted)).is_empty());
        assert_eq!(drain(&mut deltas), ["set pw", "set new", "remove old", "end"]);
        deltas.aim(wanted);
        assert_eq!(
            drain(&mut deltas),
            Vec::<String>::new(),
            "an unchanged plan was sent again"
        );
        deltas.aim(plan(vec![resource("same", "2")]));
        assert_eq!(drain(&mut deltas), ["set same", "remove new", "remove pw", "end"]);
    }

    #[test]
    fn a_first_plan_ends_its_snapshot_even_when_nothing_differs() {
        let mut deltas = Deltas::new(BTreeSet::new(), &[]);
        deltas.aim(plan(vec![]));
        assert_eq!(drain(&mut deltas), ["end"]);
    }

    #[test]
    fn a_newer_plan_supersedes_what_still_waits() {
        let mut deltas = Deltas::new(BTreeSet::new(), &[]);
        deltas.aim(plan(vec![resource("a", "1"), resource("b", "1")]));
        assert!(matches!(deltas.pop(), Some(Delta::Set(sent)) if sent.key().name == "a"));
        deltas.aim(plan(vec![resource("b", "2")]));
        assert_eq!(drain(&mut deltas), ["set b", "remove a", "end"]);
    }

    #[test]
    fn a_refused_version_is_not_sent_again_but_another_one_is() {
        let mut deltas = Deltas::new(BTreeSet::new(), &[]);
        let (one, two) = (resource("a", "1"), resource("a", "2"));
        deltas.aim(plan(vec![one.clone()]));
        drain(&mut deltas);
        deltas.answered(&answer(&one, None));
        deltas.aim(plan(vec![two.clone()]));
        drain(&mut deltas);
        deltas.answered(&answer(&one, None));
        assert_eq!(
            deltas.counts(),
            Counts::default(),
            "an old answer counted for the new version"
        );
        deltas.answered(&answer(&two, Some(Nack::new("Bad", ""))));
        assert_eq!(
            deltas.counts(),
            Counts {
                refused: 1,
                ..Counts::default()
            }
        );
        deltas.aim(plan(vec![two]));
        assert_eq!(drain(&mut deltas), Vec::<String>::new());
        deltas.aim(plan(vec![one.clone()]));
        assert_eq!(drain(&mut deltas), ["set a", "end"]);
        deltas.answered(&answer(&one, None));
        assert_eq!(
            deltas.counts(),
            Counts {
                acknowledged: 1,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn a_role_that_is_too_old_keeps_what_it_has_and_it_is_told_once() {
        let held = [ResourceVersion::of(&resource("a", "1"))];
        let mut deltas = Deltas::new(BTreeSet::from(["ledger".to_owned()]), &held);
        let newer = resource("a", "2").requiring("ledger").requiring("windows");
        let too_old = deltas.aim(plan(vec![newer.clone()]));
        assert_eq!(too_old.len(), 1);
        assert_eq!(too_old[0].missing, ["windows"]);
        assert_eq!(drain(&mut deltas), ["end"], "neither sent nor removed");
        assert!(deltas.aim(plan(vec![newer, resource("b", "1")])).is_empty());
        assert_eq!(drain(&mut deltas), ["set b", "end"]);
        assert_eq!(deltas.counts().unsupported, 1);
    }

    /// Counts are kept up to date step by step; here they are compared with a count of everything.
    #[test]
    fn counts_agree_with_a_recount_whatever_happens() {
        use rand::{Rng, SeedableRng, rngs::StdRng};
        let mut random = StdRng::seed_from_u64(7);
        let mut deltas = Deltas::new(BTreeSet::new(), &[ResourceVersion::of(&resource("r0", "0"))]);
        let mut sent: Vec<Resource> = Vec::new();
        for _ in 0..5_000 {
            match random.random_range(0..10) {
                0 => {
                    let wanted = (0..random.random_range(0..8))
                        .map(|name| resource(&format!("r{name}"), &random.random_range(0..3).to_string()))
                        .collect();
                    deltas.aim(plan(wanted));
                }
                1..5 => {
                    if let Some(Delta::Set(resource)) = deltas.pop() {
                        sent.push(resource);
                    }
                }
                _ if !sent.is_empty() => {
                    let resource = sent.swap_remove(random.random_range(0..sent.len()));
                    let refused = random.random_bool(0.3).then(|| Nack::new("Bad", ""));
                    deltas.answered(&answer(&resource, refused));
                }
                _ => {}
            }
            let mut recount = Counts::default();
            for resource in deltas.plan.iter().flat_map(|plan| plan.resources()) {
                match deltas.role.get(resource.key()) {
                    Some(standing) if standing.sent == resource.hash() => match standing.answer {
                        Pending::Acknowledged => recount.acknowledged += 1,
                        Pending::Refused => recount.refused += 1,
                        Pending::Sent => {}
                    },
                    _ => {}
                }
            }
            assert_eq!(deltas.counts(), recount);
        }
    }
}
