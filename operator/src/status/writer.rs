//! Updates for a sink that is slow and shared, as the Kubernetes API is: only the newest of each object, and not more
//! often than the sink can bear.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_runtime::{Backoff, Shutdown, due};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tracing::warn;

use super::ObjectStatus;
use crate::object::ObjectKey;

/// Time between two writings of one object.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// Longest that one writing may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Waits after the sink failed.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Where statuses go.
#[async_trait]
pub trait StatusSink: Send + Sync + 'static {
    /// Writes the status of one object. It must be safe to write the same twice.
    ///
    /// # Errors
    /// For people. It is tried again, with the newest status then.
    async fn write(&self, status: &ObjectStatus) -> Result<(), String>;

    /// Forgets an object that is gone.
    fn forget(&self, _key: &ObjectKey) {}

    /// Conditions that stand there already, from an earlier leader: those that did not flip keep their time.
    fn present(&self) -> BTreeMap<ObjectKey, Vec<Condition>> {
        BTreeMap::new()
    }
}

/// Takes updates from the operator. Cheap to clone; never blocks.
#[derive(Clone, Default)]
pub struct StatusUpdates {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    waiting: Mutex<BTreeMap<ObjectKey, ObjectStatus>>,
    /// Objects that are gone.
    gone: Mutex<Vec<ObjectKey>>,
    changed: Notify,
}

impl StatusUpdates {
    /// Replaces what waits to be written of an object.
    pub fn update(&self, status: ObjectStatus) {
        self.shared.waiting.lock().insert(status.key.clone(), status);
        self.shared.changed.notify_one();
    }

    /// Forgets what waits to be written of an object that is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.shared.waiting.lock().remove(key);
        self.shared.gone.lock().push(key.clone());
        self.shared.changed.notify_one();
    }

    /// Writes updates into `sink` until the shutdown begins.
    pub async fn write_to(self, sink: Arc<dyn StatusSink>, interval: Duration, shutdown: Shutdown) {
        let mut written: BTreeMap<ObjectKey, Instant> = BTreeMap::new();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while !shutdown.is_begun() {
            for key in std::mem::take(&mut *self.shared.gone.lock()) {
                sink.forget(&key);
            }
            let now = Instant::now();
            written.retain(|_, last| now.duration_since(*last) < interval);
            let next = match self.due(&written, interval, now) {
                Due::Now(status) => {
                    let outcome = timeout(WRITE_TIMEOUT, sink.write(&status)).await;
                    match outcome.unwrap_or_else(|_| Err(format!("no answer within {WRITE_TIMEOUT:?}"))) {
                        Ok(()) => {
                            backoff.reset();
                            written.insert(status.key.clone(), Instant::now());
                            continue;
                        }
                        Err(error) => {
                            warn!(object = %status.key, error, "status can't be written");
                            // A newer one that came meanwhile counts.
                            self.shared
                                .waiting
                                .lock()
                                .entry(status.key.clone())
                                .or_insert(*status);
                            Some(Instant::now() + backoff.next_delay())
                        }
                    }
                }
                Due::At(time) => Some(time),
                Due::Never => None,
            };
            // After a failure nothing new is of use before the wait is over.
            let wakes = backoff.tries() == 0;
            tokio::select! {
                () = shutdown.begun() => return,
                () = due(next) => {}
                () = self.shared.changed.notified(), if wakes => {}
            }
        }
    }

    fn due(&self, written: &BTreeMap<ObjectKey, Instant>, interval: Duration, now: Instant) -> Due {
        let mut waiting = self.shared.waiting.lock();
        let free = |key: &ObjectKey| written.get(key).map_or(now, |last| *last + interval);
        let Some(key) = waiting.keys().find(|key| free(key) <= now) else {
            return waiting.keys().map(free).min().map_or(Due::Never, Due::At);
        };
        let key = key.clone();
        waiting
            .remove(&key)
            .map_or(Due::Never, |status| Due::Now(Box::new(status)))
    }
}

enum Due {
    Now(Box<ObjectStatus>),
    At(Instant),
    Never,
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tokio::sync::mpsc;

    use super::*;
    use crate::object::{Kind, Meta};

    struct Sink {
        written: mpsc::Sender<(String, i64)>,
        failures: Mutex<u32>,
    }

    #[async_trait]
    impl StatusSink for Sink {
        async fn write(&self, status: &ObjectStatus) -> Result<(), String> {
            {
                let mut failures = self.failures.lock();
                if *failures > 0 {
                    *failures -= 1;
                    return Err("throttled".to_owned());
                }
            }
            self.written
                .send((status.key.name.clone(), status.declared.generation))
                .await
                .map_err(|e| e.to_string())
        }
    }

    fn status(name: &str, generation: i64) -> ObjectStatus {
        ObjectStatus {
            key: ObjectKey::new(Kind::Device, "plant", name),
            declared: Meta {
                uid: "1".into(),
                generation,
                created: Timestamp::UNIX_EPOCH,
            },
            running: None,
            place: None,
            conditions: Vec::new(),
            evidence: None,
            details: Default::default(),
        }
    }

    /// Shorter than in earnest.
    const PACE: Duration = Duration::from_millis(300);

    fn start(failures: u32) -> (StatusUpdates, mpsc::Receiver<(String, i64)>, Shutdown) {
        let (written, received) = mpsc::channel(16);
        let sink = Arc::new(Sink {
            written,
            failures: Mutex::new(failures),
        });
        let (updates, shutdown) = (StatusUpdates::default(), Shutdown::new());
        let writing = updates.clone().write_to(sink, PACE, shutdown.clone());
        foreshore_runtime::spawn("writer", writing).detach();
        (updates, received, shutdown)
    }

    #[tokio::test]
    async fn an_object_is_written_once_in_an_interval_and_then_as_it_is_then() {
        let (updates, mut received, shutdown) = start(0);
        let began = Instant::now();
        updates.update(status("a", 1));
        assert_eq!(received.recv().await.unwrap(), ("a".to_owned(), 1));
        for generation in 2..100 {
            updates.update(status("a", generation));
        }
        updates.update(status("b", 1));
        // Another object does not wait for it.
        assert_eq!(received.recv().await.unwrap(), ("b".to_owned(), 1));
        assert_eq!(received.recv().await.unwrap(), ("a".to_owned(), 99));
        assert!(began.elapsed() >= PACE);
        updates.update(status("a", 100));
        updates.forget(&status("a", 0).key);
        assert!(timeout(PACE * 3, received.recv()).await.is_err());
        shutdown.begin(Duration::ZERO);
    }

    #[tokio::test]
    async fn a_sink_that_fails_gets_the_newest_later() {
        let (updates, mut received, shutdown) = start(3);
        updates.update(status("a", 1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        updates.update(status("a", 2));
        assert_eq!(received.recv().await.unwrap(), ("a".to_owned(), 2));
        shutdown.begin(Duration::ZERO);
    }
}
