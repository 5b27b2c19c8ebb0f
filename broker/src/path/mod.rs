//! Queues of dataflows: the broker's side of a path.
//!
//! A path's topics are stored with its queue, so that nothing is missed between a restart and the moment at which the
//! operator says again what is wanted.

mod reader;

use std::{collections::BTreeMap, sync::Arc};

use foreshore_record::{DropReason, Outcome, TopicFilter};
use foreshore_store::{Applied, EntryId, Limits, Operation, Page, ReceiverId, Settlement, StoreError};
use parking_lot::RwLock;
use tokio::sync::watch;

pub use self::reader::BrokerPaths;
use crate::{
    engine::{Engine, router::Change},
    session::rows,
};

/// The durable queue of one path.
#[derive(Debug)]
pub(crate) struct PathQueue {
    /// Name of the path, such as `dataflow/bottling/telemetry->cloud`.
    pub(crate) name: String,
    /// Its queue in the store.
    pub(crate) receiver: ReceiverId,
    /// The last entry that is known to be durable; readers wait for it to rise.
    committed: watch::Sender<EntryId>,
}

/// All paths, by name.
#[derive(Debug, Default)]
pub(crate) struct PathRegistry(RwLock<BTreeMap<String, Known>>);

/// A path and what it wants.
type Known = (Arc<PathQueue>, Vec<TopicFilter>);

impl PathQueue {
    fn new(name: String, receiver: ReceiverId) -> Self {
        Self {
            name,
            receiver,
            committed: watch::Sender::new(0),
        }
    }

    /// An entry has become durable.
    pub(crate) fn committed(&self, entry: EntryId) {
        self.committed.send_if_modified(|last| {
            let newer = entry > *last;
            *last = entry.max(*last);
            newer
        });
    }

    fn watch(&self) -> watch::Receiver<EntryId> {
        self.committed.subscribe()
    }
}

impl PathRegistry {
    /// The path of that name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<PathQueue>> {
        self.0.read().get(name).map(|(path, _)| Arc::clone(path))
    }

    /// All paths.
    fn all(&self) -> Vec<Arc<PathQueue>> {
        self.0.read().values().map(|(path, _)| Arc::clone(path)).collect()
    }

    /// Names of all paths.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.read().keys().cloned().collect()
    }

    /// Says what a path wants, and what that changes in the table of subscriptions.
    fn set(&self, name: &str, receiver: ReceiverId, topics: Vec<TopicFilter>) -> Vec<Change> {
        let mut paths = self.0.write();
        let known = paths.remove(name);
        // A queue that was deleted and made again under its name is another one.
        let same = known.as_ref().filter(|(path, _)| path.receiver == receiver);
        let path = same.map_or_else(
            || Arc::new(PathQueue::new(name.to_owned(), receiver)),
            |(path, _)| Arc::clone(path),
        );
        let mut changes: Vec<_> = topics
            .iter()
            .map(|topic| Change::AddPath(topic.as_str().into(), Arc::clone(&path)))
            .collect();
        if let Some((old, old_topics)) = known {
            let kept = |topic: &&TopicFilter| Arc::ptr_eq(&old, &path) && topics.contains(topic);
            let gone = old_topics.iter().filter(|topic| !kept(topic));
            changes.extend(gone.map(|topic| Change::RemovePath(topic.as_str().into(), Arc::clone(&old))));
        }
        paths.insert(name.to_owned(), (path, topics));
        changes
    }

    fn remove(&self, name: &str) -> Option<Known> {
        self.0.write().remove(name)
    }
}

impl Engine {
    /// Makes the queue of a path, or changes what it wants or may hold.
    ///
    /// # Errors
    /// When nothing can be committed any more.
    pub(crate) async fn put_path(
        &self,
        name: &str,
        topics: Vec<TopicFilter>,
        limits: Limits,
    ) -> Result<(), StoreError> {
        let operations = vec![
            rows::put_path(name, &topics),
            Operation::PutReceiver {
                name: name.to_owned(),
                limits,
            },
        ];
        let applied = self.committer.commit(operations).await?;
        let Some(Applied::Receiver { receiver, .. }) = applied.last() else {
            return Err(StoreError::InvalidBatch {
                cause: format!("a receiver was asked for, {applied:?} came"),
            });
        };
        self.router.update(self.paths.set(name, *receiver, topics));
        Ok(())
    }

    /// Takes a path over that the store knows.
    pub(crate) fn restore_path(&self, name: &str, receiver: ReceiverId, topics: Vec<TopicFilter>) {
        self.router.update(self.paths.set(name, receiver, topics));
    }

    /// Releases the queue of a path; what waits there is dropped.
    ///
    /// # Errors
    /// When nothing can be committed any more.
    pub(crate) async fn remove_path(&self, name: &str) -> Result<(), StoreError> {
        let Some((path, topics)) = self.paths.remove(name) else {
            return Ok(());
        };
        let removals = topics
            .iter()
            .map(|topic| Change::RemovePath(topic.as_str().into(), Arc::clone(&path)));
        self.router.update(removals.collect());
        let reason = DropReason::RELEASED;
        let drop_receiver = Operation::DropReceiver {
            receiver: path.receiver,
            reason,
        };
        self.committer
            .commit(vec![rows::delete_path(name), drop_receiver])
            .await?;
        // Readers that wait find out.
        path.committed(EntryId::MAX);
        Ok(())
    }
}

/// How entries leave that a read found expired or damaged.
pub(crate) fn unreadable(page: &Page) -> Vec<Settlement> {
    let gone = |ids: &[EntryId], reason: DropReason| {
        let outcome = Outcome::Dropped { reason };
        ids.iter()
            .map(|&id| Settlement {
                id,
                emitted: 0,
                outcome: outcome.clone(),
            })
            .collect::<Vec<_>>()
    };
    let mut settlements = gone(&page.expired, DropReason::EXPIRED);
    settlements.extend(gone(&page.damaged, DropReason::CORRUPT));
    settlements
}
