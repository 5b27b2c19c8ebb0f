//! The table of subscriptions, read without a lock.
//!
//! There are two copies. Publishers read the one that is in use; the one writer changes the other, puts it in use, and
//! repeats the changes on the first before it changes anything again. So a change costs its own work twice, and never a
//! copy of the table.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use foreshore_record::Qos;
use parking_lot::Mutex;

use super::{
    route::Route,
    trie::{Fate, Trie},
};
use crate::{
    inspect::{First, Listing, SubscriptionInfo},
    message::SessionUid,
    path::PathQueue,
    session::{Session, Subscription},
    shared::Group,
};

/// Who subscribed to one filter.
#[derive(Debug, Default)]
pub(crate) struct Leaf {
    /// Sessions.
    pub(crate) sessions: HashMap<SessionUid, (Arc<Session>, Subscription)>,
    /// Shared subscriptions.
    pub(crate) groups: Vec<Arc<Group>>,
    /// Queues of dataflows.
    pub(crate) paths: Vec<Arc<PathQueue>>,
    /// How many of the sessions outlive their connection.
    pub(crate) durable_sessions: usize,
}

/// A change of the table.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// A session subscribes, or changes its options.
    Subscribe(Arc<str>, Arc<Session>, Subscription),
    /// A session unsubscribes.
    Unsubscribe(Arc<str>, SessionUid),
    /// A shared subscription has its first member.
    AddGroup(Arc<Group>),
    /// A shared subscription has lost its last member.
    RemoveGroup(Arc<Group>),
    /// A dataflow wants a filter.
    AddPath(Arc<str>, Arc<PathQueue>),
    /// A dataflow wants a filter no more.
    RemovePath(Arc<str>, Arc<PathQueue>),
}

/// The table of subscriptions.
#[derive(Debug)]
pub(crate) struct Router {
    in_use: ArcSwap<Trie<Leaf>>,
    /// Rises with every change of the table or of a connection that is in it.
    epoch: AtomicU64,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    spare: Arc<Trie<Leaf>>,
    /// What the spare copy lacks.
    behind: Vec<Change>,
}

impl Router {
    pub(crate) fn new() -> Self {
        Self {
            in_use: ArcSwap::default(),
            epoch: AtomicU64::new(1),
            writer: Mutex::new(Writer {
                spare: Arc::default(),
                behind: Vec::new(),
            }),
        }
    }

    /// Changes the table; publishers see all of it or nothing.
    pub(crate) fn update(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let mut writer = self.writer.lock();
        let behind = std::mem::take(&mut writer.behind);
        let mut spare = std::mem::take(&mut writer.spare);
        let table = loop {
            // Readers keep the table for the time of one match, and never across an await.
            match Arc::get_mut(&mut spare) {
                Some(table) => break table,
                None => std::thread::yield_now(),
            }
        };
        for change in behind.iter().chain(&changes) {
            change.apply(table);
        }
        writer.spare = self.in_use.swap(spare);
        writer.behind = changes;
        self.touch();
    }

    /// Says that a session which is in the table has connected or disconnected.
    pub(crate) fn touch(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// State of the table and of the connections in it; a route of another state is to be worked out again.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// Works out who gets what is published to a topic.
    pub(crate) fn route(&self, topic: &str) -> Route {
        // The epoch is read first: a change in between makes the route look older than it is, never newer.
        let epoch = self.epoch();
        let table = self.in_use.load();
        let mut leaves = Vec::new();
        table.matching(topic, |leaf| leaves.push(leaf));
        Route::new(epoch, &leaves)
    }

    /// Who subscribes to what, in order of filter and subscriber; only what concerns one client, if one is given.
    pub(crate) fn subscriptions(&self, client: Option<&str>, max: usize) -> Listing<SubscriptionInfo> {
        let mut first = First::new(max);
        let mut add = |subscriber: &str, filter: &str, qos: Option<Qos>| {
            let key = (filter, subscriber);
            if first
                .takes(|(filter, subscriber): &(String, String)| key < (filter.as_str(), subscriber.as_str()))
            {
                let info = SubscriptionInfo {
                    subscriber: subscriber.to_owned(),
                    filter: filter.to_owned(),
                    qos,
                };
                first.add((filter.to_owned(), subscriber.to_owned()), info);
            }
        };
        self.in_use.load().for_each(&mut |filter, leaf| {
            for (session, subscription) in leaf.sessions.values() {
                if client.is_none_or(|client| *session.client_id == *client) {
                    add(&session.client_id, filter, Some(subscription.options.qos));
                }
            }
            for group in &leaf.groups {
                if client.is_none_or(|client| group.has_member(client)) {
                    add(&group.path_name(), filter, None);
                }
            }
            if client.is_none() {
                leaf.paths.iter().for_each(|path| add(&path.name, filter, None));
            }
        });
        first.listing()
    }

    /// How many durable receivers a filter has.
    pub(crate) fn durable_receivers(&self, filter: &str) -> usize {
        self.in_use.load().get(filter).map_or(0, Leaf::durable_receivers)
    }
}

impl Change {
    fn apply(&self, table: &mut Trie<Leaf>) {
        match self {
            Self::Subscribe(filter, session, subscription) => {
                let leaf = table.entry(filter);
                let known = leaf
                    .sessions
                    .insert(session.uid, (Arc::clone(session), subscription.clone()));
                leaf.durable_sessions += usize::from(known.is_none() && session.receiver.is_some());
            }
            Self::Unsubscribe(filter, uid) => table.change(filter, |leaf| {
                if let Some((session, _)) = leaf.sessions.remove(uid) {
                    leaf.durable_sessions -= usize::from(session.receiver.is_some());
                }
                leaf.fate()
            }),
            Self::AddGroup(group) => table.entry(group.filter.as_str()).groups.push(Arc::clone(group)),
            Self::RemoveGroup(group) => table.change(group.filter.as_str(), |leaf| {
                leaf.groups.retain(|known| !Arc::ptr_eq(known, group));
                leaf.fate()
            }),
            Self::AddPath(filter, path) => table.entry(filter).paths.push(Arc::clone(path)),
            Self::RemovePath(filter, path) => table.change(filter, |leaf| {
                leaf.paths.retain(|known| !Arc::ptr_eq(known, path));
                leaf.fate()
            }),
        }
    }
}

impl Leaf {
    fn durable_receivers(&self) -> usize {
        self.durable_sessions + self.groups.len() + self.paths.len()
    }

    fn fate(&self) -> Fate {
        let empty = self.sessions.is_empty() && self.groups.is_empty() && self.paths.is_empty();
        if empty { Fate::Remove } else { Fate::Keep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::packet::SubscribeOptions;

    fn session(uid: u64, durable: bool) -> Arc<Session> {
        Arc::new(Session::new(
            uid,
            "c".into(),
            durable.then_some(uid),
            Arc::default(),
        ))
    }

    fn subscribe(filter: &str, session: &Arc<Session>) -> Change {
        let options = SubscribeOptions::at_most(Qos::AtLeastOnce);
        Change::Subscribe(
            filter.into(),
            Arc::clone(session),
            Subscription {
                options,
                identifier: None,
            },
        )
    }

    #[test]
    fn both_copies_get_every_change() {
        let router = Router::new();
        let sessions: Vec<_> = (1..=4).map(|uid| session(uid, uid % 2 == 0)).collect();
        for session in &sessions {
            router.update(vec![subscribe("a/+", session)]);
        }
        assert_eq!(router.route("a/b").targets.len(), 4);
        assert_eq!(router.durable_receivers("a/+"), 2);
        router.update(vec![subscribe("a/+", &sessions[1])]);
        assert_eq!(router.durable_receivers("a/+"), 2);
        let before = router.epoch();
        for session in &sessions {
            router.update(vec![Change::Unsubscribe("a/+".into(), session.uid)]);
        }
        assert!(router.route("a/b").is_empty() && router.epoch() > before);
        assert_eq!(router.durable_receivers("a/+"), 0);
    }

    #[test]
    fn readers_and_the_writer_do_not_wait_for_each_other_for_long() {
        let router = Arc::new(Router::new());
        let reader = Arc::clone(&router);
        let reading = std::thread::spawn(move || {
            let mut most = 0;
            while most < 200 {
                most = most.max(reader.route("a/b").targets.len());
            }
        });
        for uid in 1..=200 {
            router.update(vec![subscribe("a/+", &session(uid, false))]);
        }
        reading.join().unwrap();
    }
}
