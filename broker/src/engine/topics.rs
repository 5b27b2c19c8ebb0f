//! Topics that a shard knows, with who gets what is published there.

use std::{collections::HashMap, sync::Arc};

use foreshore_record::TopicName;

use super::route::Route;
use crate::stats::traffic::Traffic;

/// Topics that are known at once.
const MAX_TOPICS: usize = 4096;

/// Receivers of all of them together, if there is more than one topic. Each takes some 70 bytes: where a thousand programs
/// show everything, the routes of four thousand topics would take 300 MB.
const MAX_RECEIVERS: usize = 128 << 10;

/// A topic, as a shard knows it.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    /// Its name.
    pub(crate) name: TopicName,
    /// Who gets what is published there.
    pub(crate) route: Arc<Route>,
    /// What is counted of it, if anything is.
    pub(crate) counted: Option<Arc<Traffic>>,
}

/// Topics that are known. All of them are forgotten when there is no room for another one.
#[derive(Debug, Default)]
pub(crate) struct KnownTopics {
    all: HashMap<TopicName, Topic>,
    receivers: usize,
}

impl KnownTopics {
    /// The topic of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&Topic> {
        self.all.get(name)
    }

    /// Adds a topic, or what is new of it.
    pub(crate) fn put(&mut self, topic: Topic) {
        if let Some(old) = self.all.remove(&topic.name) {
            self.receivers -= old.route.receivers();
        }
        let receivers = topic.route.receivers();
        if self.all.len() >= MAX_TOPICS || self.receivers + receivers > MAX_RECEIVERS {
            self.all.clear();
            self.receivers = 0;
        }
        self.receivers += receivers;
        self.all.insert(topic.name.clone(), topic);
    }
}

#[cfg(test)]
mod tests {
    use foreshore_record::Qos;

    use super::*;
    use crate::{
        engine::router::Leaf,
        session::{Session, Subscription},
        wire::packet::SubscribeOptions,
    };

    fn route(receivers: usize) -> Arc<Route> {
        let subscription = Subscription {
            options: SubscribeOptions::at_most(Qos::AtMostOnce),
            identifier: None,
        };
        let session = |uid| Arc::new(Session::new(uid, "c".into(), None, Arc::default()));
        let sessions = (0..receivers as u64).map(|uid| (uid, (session(uid), subscription.clone())));
        let leaf = Leaf {
            sessions: sessions.collect(),
            ..Leaf::default()
        };
        Arc::new(Route::new(1, &[&leaf]))
    }

    fn topic(index: usize, route: &Arc<Route>) -> Topic {
        Topic {
            name: TopicName::new(format!("t/{index}")).unwrap(),
            route: Arc::clone(route),
            counted: None,
        }
    }

    #[test]
    fn what_is_known_is_bounded_by_topics_and_by_receivers() {
        let mut known = KnownTopics::default();
        let widths = [0, 1000, 7, 1000, MAX_RECEIVERS + 1, 0];
        for route in widths.map(route) {
            // The last ones are there when they come again.
            for index in (0..2 * MAX_TOPICS).chain(2 * MAX_TOPICS - 50..2 * MAX_TOPICS) {
                known.put(topic(index, &route));
                assert!(known.all.len() <= MAX_TOPICS);
                assert!(known.receivers <= MAX_RECEIVERS || known.all.len() == 1);
                assert_eq!(
                    known.get(&format!("t/{index}")).unwrap().route.receivers(),
                    route.receivers()
                );
                if index % 50 == 0 {
                    let all = known.all.values();
                    let receivers: usize = all.map(|topic| topic.route.receivers()).sum();
                    assert_eq!(known.receivers, receivers);
                }
            }
        }
    }
}
