//! Limits by topic filter: the store keeps them (see `foreshore_store::topics`), so that they hold from the first message
//! after a restart; what is here tells it of changes and tells everybody else what they come to.

use std::sync::Arc;

use foreshore_store::{MAX_TOPIC_LIMITS, Operation, StoreError, TopicLimit};

use crate::engine::Engine;

impl Engine {
    /// What makes the store's limits those that are wanted; `None` if they are.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    pub(crate) fn topic_limits_to_set(&self) -> Result<Option<Operation>, StoreError> {
        let known = self.store()?.topics()?;
        let limits = self.wanted_topic_limits();
        let same = known.iter().map(|totals| &totals.limit).eq(&limits);
        Ok((!same).then_some(Operation::SetTopicLimits { limits }))
    }

    /// Each filter once, as the store keeps them.
    fn wanted_topic_limits(&self) -> Vec<TopicLimit> {
        let mut wanted: Vec<TopicLimit> = Vec::new();
        for limit in &self.limits.load().topic_limits {
            if wanted.len() < MAX_TOPIC_LIMITS && !wanted.iter().any(|known| known.filter == limit.filter) {
                wanted.push(limit.clone());
            }
        }
        wanted
    }

    /// Tells the store of changes, for as long as the broker runs.
    pub(crate) async fn keep_topic_limits(self: Arc<Self>) {
        loop {
            self.limits_changed.notified().await;
            if let Err(error) = self.set_topic_limits().await {
                tracing::warn!(%error, "limits by topic filter could not be changed");
                return;
            }
        }
    }

    async fn set_topic_limits(self: &Arc<Self>) -> Result<(), StoreError> {
        let looking = Arc::clone(self);
        let operation = self.blocking(move |_| looking.topic_limits_to_set()).await?;
        if let Some(operation) = operation {
            self.committer.commit(vec![operation]).await?;
        }
        Ok(())
    }

    /// Shows in the metrics what the limits come to.
    pub(crate) async fn measure_topic_limits(&self) {
        if self.limits.load().topic_limits.is_empty() && self.stats.by_topic_limit.is_empty() {
            return;
        }
        // A store that can't be asked any more tells that elsewhere.
        if let Ok(totals) = self.blocking(|store| store.topics()).await {
            self.stats.by_topic_limit.show(&totals);
        }
    }
}
