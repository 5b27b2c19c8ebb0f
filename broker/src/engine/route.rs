//! Who gets what is published to one topic, worked out once and kept until subscriptions or connections change.

use std::{collections::HashMap, sync::Arc};

use foreshore_record::Qos;

use super::router::Leaf;
use crate::{
    message::SessionUid,
    path::PathQueue,
    session::{Session, Subscription},
    shared::Group,
};

/// Receivers of one topic.
#[derive(Debug, Default)]
pub(crate) struct Route {
    /// State of the router that it was worked out from.
    pub(crate) epoch: u64,
    /// Sessions, each once, however many of its filters match.
    pub(crate) targets: Vec<Target>,
    /// The connected ones by shard.
    pub(crate) shards: Vec<ShardTargets>,
    /// Shared subscriptions: one member of each gets the message.
    pub(crate) groups: Vec<Arc<Group>>,
    /// Queues of dataflows.
    pub(crate) paths: Vec<Arc<PathQueue>>,
}

/// A session and how it wants messages of this topic.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The session.
    pub(crate) session: Arc<Session>,
    /// How it wants messages of others.
    others: Want,
    /// How it wants its own.
    own: Own,
}

/// How a session wants a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Want {
    /// Highest quality of service.
    pub(crate) qos: Qos,
    /// Whether RETAIN is sent on as published.
    pub(crate) retain_as_published: bool,
    /// Identifiers of all subscriptions that match.
    pub(crate) identifiers: Option<Arc<[u32]>>,
}

#[derive(Clone, Debug)]
enum Own {
    AsOthers,
    NotWanted,
    Otherwise(Want),
}

/// Targets that are connected on one shard.
#[derive(Clone, Debug)]
pub(crate) struct ShardTargets {
    /// The shard.
    pub(crate) shard: u8,
    /// Index of the target, place and use of the place.
    pub(crate) targets: Vec<LiveTarget>,
}

/// A connected target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LiveTarget {
    /// Which of the route's targets.
    pub(crate) target: u32,
    /// The place in the shard's table.
    pub(crate) slot: u32,
    /// Which use of that place.
    pub(crate) generation: u32,
}

impl Route {
    /// Works the receivers out from the leaves of all filters that match.
    pub(crate) fn new(epoch: u64, leaves: &[&Leaf]) -> Self {
        let mut route = Self {
            epoch,
            ..Self::default()
        };
        match leaves {
            [leaf] => {
                route
                    .targets
                    .extend(leaf.sessions.values().map(|(session, subscription)| {
                        Target::merge(session, std::slice::from_ref(&subscription))
                    }));
            }
            _ => route.targets = overlapping(leaves),
        }
        for leaf in leaves {
            route.groups.extend(leaf.groups.iter().cloned());
            for path in &leaf.paths {
                if !route.paths.iter().any(|known| known.receiver == path.receiver) {
                    route.paths.push(Arc::clone(path));
                }
            }
        }
        route.locate();
        route
    }

    /// One session of them and nobody else; without connections, see [`Route::relocated`].
    pub(crate) fn only(mut self, session: SessionUid) -> Self {
        self.targets.retain(|target| target.session.uid == session);
        Self {
            epoch: self.epoch,
            targets: self.targets,
            ..Self::default()
        }
    }

    /// One session and nobody else: as it subscribed, or with quality of service 1 if it did not.
    pub(crate) fn only_to(self, session: &Arc<Session>) -> Self {
        let mut route = self.only(session.uid);
        if route.targets.is_empty() {
            route.targets.push(Target {
                session: Arc::clone(session),
                others: Want {
                    qos: Qos::AtLeastOnce,
                    retain_as_published: false,
                    identifiers: None,
                },
                own: Own::AsOthers,
            });
        }
        route
    }

    /// The same receivers, with their connections as they are now.
    pub(crate) fn relocated(&self, epoch: u64) -> Self {
        let mut route = Self {
            epoch,
            targets: self.targets.clone(),
            shards: Vec::new(),
            groups: self.groups.clone(),
            paths: self.paths.clone(),
        };
        route.locate();
        route
    }

    fn locate(&mut self) {
        for (index, target) in self.targets.iter().enumerate() {
            let Some(location) = target.session.location() else {
                continue;
            };
            let live = LiveTarget {
                target: index as u32,
                slot: location.slot,
                generation: location.generation,
            };
            match self.shards.iter_mut().find(|shard| shard.shard == location.shard) {
                Some(shard) => shard.targets.push(live),
                None => self.shards.push(ShardTargets {
                    shard: location.shard,
                    targets: vec![live],
                }),
            }
        }
    }

    /// How many receivers it has.
    pub(crate) fn receivers(&self) -> usize {
        self.targets.len() + self.groups.len() + self.paths.len()
    }

    /// Whether nobody at all gets the topic's messages.
    pub(crate) fn is_empty(&self) -> bool {
        self.receivers() == 0
    }

    /// How many receivers may share one encoding.
    pub(crate) fn is_shared(&self) -> bool {
        self.shards.iter().map(|shard| shard.targets.len()).sum::<usize>() > 1
    }
}

impl Target {
    fn merge(session: &Arc<Session>, subscriptions: &[&Subscription]) -> Self {
        let local = subscriptions
            .iter()
            .filter(|subscription| !subscription.options.no_local);
        let own = match local.clone().count() {
            0 => Own::NotWanted,
            count if count == subscriptions.len() => Own::AsOthers,
            _ => Own::Otherwise(Want::of(local.copied())),
        };
        Self {
            session: Arc::clone(session),
            others: Want::of(subscriptions.iter().copied()),
            own,
        }
    }

    /// How the session wants a message of that publisher; `None` if it does not.
    pub(crate) fn want(&self, publisher: SessionUid) -> Option<&Want> {
        match &self.own {
            _ if publisher != self.session.uid => Some(&self.others),
            Own::AsOthers => Some(&self.others),
            Own::NotWanted => None,
            Own::Otherwise(want) => Some(want),
        }
    }
}

impl Want {
    fn of<'a>(subscriptions: impl Iterator<Item = &'a Subscription>) -> Self {
        let mut want = Self {
            qos: Qos::AtMostOnce,
            retain_as_published: false,
            identifiers: None,
        };
        let mut identifiers = Vec::new();
        for subscription in subscriptions {
            want.qos = want.qos.max(subscription.options.qos);
            want.retain_as_published |= subscription.options.retain_as_published;
            identifiers.extend(subscription.identifier.map(std::num::NonZeroU32::get));
        }
        identifiers.sort_unstable();
        identifiers.dedup();
        want.identifiers = (!identifiers.is_empty()).then(|| identifiers.into());
        want
    }
}

fn overlapping(leaves: &[&Leaf]) -> Vec<Target> {
    let mut by_session: HashMap<SessionUid, (&Arc<Session>, Vec<&Subscription>)> = HashMap::new();
    for (session, subscription) in leaves.iter().flat_map(|leaf| leaf.sessions.values()) {
        by_session
            .entry(session.uid)
            .or_insert_with(|| (session, Vec::new()))
            .1
            .push(subscription);
    }
    by_session
        .into_values()
        .map(|(session, subscriptions)| Target::merge(session, &subscriptions))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::{session::Location, wire::packet::SubscribeOptions};

    fn subscription(qos: Qos, no_local: bool, identifier: u32) -> Subscription {
        let options = SubscribeOptions {
            no_local,
            ..SubscribeOptions::at_most(qos)
        };
        Subscription {
            options,
            identifier: NonZeroU32::new(identifier),
        }
    }

    fn leaf(session: &Arc<Session>, subscription: Subscription) -> Leaf {
        let sessions = HashMap::from([(session.uid, (Arc::clone(session), subscription))]);
        Leaf {
            sessions,
            ..Leaf::default()
        }
    }

    #[test]
    fn overlapping_filters_give_one_delivery_with_all_identifiers() {
        let session = Arc::new(Session::new(7, "c".into(), None, Arc::default()));
        let first = leaf(&session, subscription(Qos::AtMostOnce, false, 3));
        let second = leaf(&session, subscription(Qos::ExactlyOnce, true, 1));
        let route = Route::new(1, &[&first, &second]);
        let [target] = &route.targets[..] else {
            panic!("one target")
        };
        let want = target.want(0).unwrap();
        assert_eq!(
            (want.qos, want.identifiers.as_deref()),
            (Qos::ExactlyOnce, Some(&[1, 3][..]))
        );
        let own = target.want(7).unwrap();
        assert_eq!(
            (own.qos, own.identifiers.as_deref()),
            (Qos::AtMostOnce, Some(&[3][..]))
        );
        assert!(Route::new(1, &[&second]).targets[0].want(7).is_none());
    }

    #[test]
    fn a_route_can_be_narrowed_to_one_session() {
        let sessions: Vec<_> = (1..=3)
            .map(|uid| Arc::new(Session::new(uid, "c".into(), None, Arc::default())))
            .collect();
        let location = Location {
            shard: 1,
            slot: 4,
            generation: 2,
        };
        sessions[1].set_location(Some(location));
        let leaves: Vec<_> = sessions
            .iter()
            .map(|session| leaf(session, subscription(Qos::AtMostOnce, false, 0)))
            .collect();
        let route = || Route::new(1, &leaves.iter().collect::<Vec<_>>());
        let narrowed = route().only(2).relocated(2);
        assert_eq!((narrowed.targets.len(), narrowed.targets[0].session.uid), (1, 2));
        assert_eq!(
            (narrowed.shards.len(), narrowed.shards[0].targets[0].target),
            (1, 0)
        );
        let qos = |session| route().only_to(session).targets[0].want(0).unwrap().qos;
        assert_eq!(qos(&sessions[0]), Qos::AtMostOnce);
        let stranger = Arc::new(Session::new(9, "s".into(), None, Arc::default()));
        assert_eq!(qos(&stranger), Qos::AtLeastOnce);
        assert!(route().only(9).is_empty());
    }

    #[test]
    fn connections_are_found_by_shard() {
        let sessions: Vec<_> = (1..=3)
            .map(|uid| Arc::new(Session::new(uid, "c".into(), None, Arc::default())))
            .collect();
        sessions[1].set_location(Some(Location {
            shard: 1,
            slot: 4,
            generation: 2,
        }));
        let leaves: Vec<_> = sessions
            .iter()
            .map(|session| leaf(session, subscription(Qos::AtMostOnce, false, 0)))
            .collect();
        let route = Route::new(1, &leaves.iter().collect::<Vec<_>>());
        assert_eq!(route.targets.len(), 3);
        assert_eq!((route.shards.len(), route.shards[0].shard), (1, 1));
        assert!(!route.is_shared());
        sessions[0].set_location(Some(Location {
            shard: 1,
            slot: 5,
            generation: 0,
        }));
        assert!(route.relocated(2).is_shared());
    }
}
