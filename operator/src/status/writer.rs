//! Updates for a sink that is slow and shared, as the Kubernetes API is: only the newest of each object, and not more
//! often than the sink can bear.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use foreshore_crds::conditions::Condition;
use foreshore_runtime::{Backoff, Shutdown, due};
use futures::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use tracing::warn;

use super::ObjectStatus;
use crate::object::ObjectKey;

/// A change of a calm object, and what its role says to it a moment later, are one writing; the time between two doubles as
/// long as the object goes on changing.
pub const PACE: Pace = Pace {
    first: Duration::from_millis(50),
    least: Duration::from_millis(200),
    most: Duration::from_secs(10),
};
/// Longest that one writing may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);
/// Waits after the sink refused an object.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Objects that are written at a time.
const AT_ONCE: usize = 8;

/// How often one object may be written.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long a change of a calm object is held back.
    pub first: Duration,
    /// Least time between two writings.
    pub least: Duration,
    /// Longest time between two writings, and how long an object has to be calm until the least counts again.
    pub most: Duration,
}

/// Where statuses go.
#[async_trait]
pub trait StatusSink: Send + Sync + 'static {
    /// Writes the status of one object. It must be safe to write the same twice.
    ///
    /// # Errors
    /// For people. It is tried again, with the newest status then.
    async fn write(&self, status: &ObjectStatus) -> Result<(), String>;

    /// Gives up the conditions that an earlier leader wrote: those that did not flip keep their time.
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
    waiting: Mutex<BTreeMap<ObjectKey, Arc<ObjectStatus>>>,
    /// Objects that are gone.
    gone: Mutex<Vec<ObjectKey>>,
    changed: Notify,
}

impl StatusUpdates {
    /// Replaces what waits to be written of an object.
    pub fn update(&self, status: Arc<ObjectStatus>) {
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
    pub async fn write_to(self, sink: Arc<dyn StatusSink>, pace: Pace, shutdown: Shutdown) {
        let mut writer = Writer {
            pace,
            pending: BTreeMap::new(),
            known: BTreeMap::new(),
            times: BTreeSet::new(),
        };
        let mut writing = FuturesUnordered::new();
        loop {
            for key in std::mem::take(&mut *self.shared.gone.lock()) {
                writer.forget(&key);
            }
            for (key, status) in std::mem::take(&mut *self.shared.waiting.lock()) {
                writer.take(key, status);
            }
            while writing.len() < AT_ONCE
                && let Some(status) = writer.next(Instant::now())
            {
                writing.push(write(Arc::clone(&sink), status));
            }
            let next = writer.times.first().map(|(time, _)| *time);
            let next = next.filter(|_| writing.len() < AT_ONCE);
            tokio::select! {
                () = shutdown.begun() => return,
                Some((status, outcome)) = writing.next() => writer.written(status, outcome),
                () = due(next) => {}
                () = self.shared.changed.notified() => {}
            }
        }
    }
}

async fn write(
    sink: Arc<dyn StatusSink>,
    status: Arc<ObjectStatus>,
) -> (Arc<ObjectStatus>, Result<(), String>) {
    let outcome = timeout(WRITE_TIMEOUT, sink.write(&status)).await;
    let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {WRITE_TIMEOUT:?}")));
    (status, outcome)
}

/// What is to be written, and when it may be.
struct Writer {
    pace: Pace,
    /// The newest status of each object that is to be written.
    pending: BTreeMap<ObjectKey, Arc<ObjectStatus>>,
    /// Objects that were written a moment ago, are being written or are to be.
    known: BTreeMap<ObjectKey, Known>,
    /// When each of these may be written, or is forgotten; those that are being written have no time.
    times: BTreeSet<(Instant, ObjectKey)>,
}

struct Known {
    /// Its place in `times`; none while it is being written.
    time: Option<Instant>,
    /// How long it is held back after the next writing.
    hold: Duration,
    /// How often it was refused in a row.
    refusals: Option<Backoff>,
}

impl Writer {
    fn take(&mut self, key: ObjectKey, status: Arc<ObjectStatus>) {
        if !self.known.contains_key(&key) {
            let known = Known {
                time: None,
                hold: self.pace.least,
                refusals: None,
            };
            self.known.insert(key.clone(), known);
            self.set_time(&key, Instant::now() + self.pace.first);
        }
        self.pending.insert(key, status);
    }

    fn forget(&mut self, key: &ObjectKey) {
        self.pending.remove(key);
        if let Some(time) = self.known.get(key).and_then(|known| known.time) {
            self.times.remove(&(time, key.clone()));
            self.known.remove(key);
        }
    }

    fn set_time(&mut self, key: &ObjectKey, time: Instant) {
        if let Some(known) = self.known.get_mut(key) {
            known.time = Some(time);
            self.times.insert((time, key.clone()));
        }
    }

    /// A status that may be written now.
    fn next(&mut self, now: Instant) -> Option<Arc<ObjectStatus>> {
        loop {
            let (time, _) = self.times.first()?;
            if *time > now {
                return None;
            }
            let (time, key) = self.times.pop_first()?;
            let Some(known) = self.known.get_mut(&key) else {
                continue;
            };
            known.time = None;
            if let Some(status) = self.pending.remove(&key) {
                return Some(status);
            }
            // Calm since it was written: it is held back less and less, and then not at all.
            known.hold /= 2;
            if known.hold < self.pace.least {
                self.known.remove(&key);
            } else {
                let hold = known.hold;
                self.set_time(&key, time + hold);
            }
        }
    }

    fn written(&mut self, status: Arc<ObjectStatus>, outcome: Result<(), String>) {
        let key = status.key.clone();
        let Some(known) = self.known.get_mut(&key) else {
            return;
        };
        let wait = match outcome {
            Ok(()) => {
                known.refusals = None;
                let hold = known.hold;
                known.hold = (hold * 2).min(self.pace.most);
                hold
            }
            Err(error) => {
                let delay = known
                    .refusals
                    .get_or_insert_with(|| Backoff::new(RETRY.0, RETRY.1))
                    .next_delay();
                warn!(object = %key, error, retry_seconds = delay.as_secs_f64(), "status can't be written");
                // A newer one that came meanwhile counts.
                self.pending.entry(key.clone()).or_insert(status);
                delay
            }
        };
        self.set_time(&key, Instant::now() + wait);
    }
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

    fn status(name: &str, generation: i64) -> Arc<ObjectStatus> {
        Arc::new(ObjectStatus {
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
            instance: None,
        })
    }

    /// Other than in earnest.
    const PACE: Pace = Pace {
        first: Duration::ZERO,
        least: Duration::from_millis(300),
        most: Duration::from_millis(300),
    };

    fn start(pace: Pace, failures: u32) -> (StatusUpdates, mpsc::Receiver<(String, i64)>, Shutdown) {
        let (written, received) = mpsc::channel(16);
        let sink = Arc::new(Sink {
            written,
            failures: Mutex::new(failures),
        });
        let (updates, shutdown) = (StatusUpdates::default(), Shutdown::new());
        let writing = updates.clone().write_to(sink, pace, shutdown.clone());
        foreshore_runtime::spawn("writer", writing).detach();
        (updates, received, shutdown)
    }

    #[tokio::test]
    async fn an_object_is_written_once_in_an_interval_and_then_as_it_is_then() {
        let (updates, mut received, shutdown) = start(PACE, 0);
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
        assert!(began.elapsed() >= PACE.least);
        updates.update(status("a", 100));
        updates.forget(&status("a", 0).key);
        assert!(timeout(PACE.least * 3, received.recv()).await.is_err());
        shutdown.begin(Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_goes_on_changing_is_held_back_longer_until_it_is_calm() {
        let pace = Pace {
            first: Duration::ZERO,
            least: Duration::from_secs(1),
            most: Duration::from_secs(4),
        };
        let (updates, mut received, shutdown) = start(pace, 0);
        let mut waits = Vec::new();
        for generation in 0..5 {
            let began = Instant::now();
            updates.update(status("a", generation));
            received.recv().await.unwrap();
            waits.push(began.elapsed().as_secs());
        }
        assert_eq!(waits, [0, 1, 2, 4, 4]);
        tokio::time::sleep(Duration::from_secs(9)).await;
        let began = Instant::now();
        updates.update(status("a", 9));
        received.recv().await.unwrap();
        assert_eq!(began.elapsed().as_secs(), 0);
        shutdown.begin(Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_and_what_follows_at_once_are_one_writing() {
        let (updates, mut received, shutdown) = start(super::PACE, 0);
        updates.update(status("a", 1));
        tokio::time::sleep(super::PACE.first / 2).await;
        updates.update(status("a", 2));
        assert_eq!(received.recv().await.unwrap(), ("a".to_owned(), 2));
        assert!(
            timeout(super::PACE.most, received.recv()).await.is_err(),
            "nothing else is written"
        );
        shutdown.begin(Duration::ZERO);
    }

    #[tokio::test]
    async fn an_object_that_is_refused_keeps_nobody_waiting() {
        struct Picky(mpsc::Sender<String>);
        #[async_trait]
        impl StatusSink for Picky {
            async fn write(&self, status: &ObjectStatus) -> Result<(), String> {
                if status.key.name == "a" {
                    return Err("malformed".to_owned());
                }
                let name = status.key.name.clone();
                self.0.send(name).await.map_err(|error| error.to_string())
            }
        }
        let (written, mut received) = mpsc::channel(100);
        let (updates, shutdown) = (StatusUpdates::default(), Shutdown::new());
        let writing = updates
            .clone()
            .write_to(Arc::new(Picky(written)), PACE, shutdown.clone());
        foreshore_runtime::spawn("writer", writing).detach();
        updates.update(status("a", 1));
        for number in 0..50 {
            updates.update(status(&format!("b{number}"), 1));
        }
        for _ in 0..50 {
            assert!(received.recv().await.unwrap().starts_with('b'));
        }
        shutdown.begin(Duration::ZERO);
    }

    #[tokio::test]
    async fn a_sink_that_fails_gets_the_newest_later() {
        let (updates, mut received, shutdown) = start(PACE, 3);
        updates.update(status("a", 1));
        tokio::time::sleep(Duration::from_millis(1)).await;
        updates.update(status("a", 2));
        assert_eq!(received.recv().await.unwrap(), ("a".to_owned(), 2));
        shutdown.begin(Duration::ZERO);
    }
}
