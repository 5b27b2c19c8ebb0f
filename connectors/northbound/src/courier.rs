//! Carries the records of one path to one sink: from the plan to the end of the dataflow.
//!
//! A courier opens its path, makes its sink and makes trips. It goes on by itself after every failure. When its plan
//! changes, deliveries on their way are given time to finish, and the next trip begins with what is not settled; as long
//! as the queue is the same, its opening is kept, so that an edit costs no entry an attempt.

use std::{sync::Arc, time::Duration};

use foreshore_control::queue::{Error as QueueError, OpenPath, Paths};
use foreshore_runtime::{Backoff, Shutdown};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    delivery::{Policy, Way},
    factory::{SinkFactory, SinkSetup},
    health::reason,
    observer::Observer,
    sink::{Sink, SinkError},
    trip::{Trip, TripEnd, TripPlan},
};

/// How long deliveries on their way may take when the plan changes or the runner ends.
const DRAIN: Duration = Duration::from_secs(5);

/// How long a sink may take to close.
const CLOSE: Duration = Duration::from_secs(5);

/// Waits between tries to open a path.
const OPEN_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Tries after which a queue that can't be opened is told.
const HEARD: u32 = 3;

/// What a courier needs to do its work.
#[derive(Clone)]
pub(crate) struct CourierPlan {
    pub(crate) setup: SinkSetup,
    pub(crate) factory: Arc<dyn SinkFactory>,
    pub(crate) paths: Arc<dyn Paths>,
    pub(crate) trip: TripPlan,
    pub(crate) policy: Arc<Policy>,
}

pub(crate) struct Courier {
    path: Arc<str>,
    plan: watch::Receiver<Arc<CourierPlan>>,
    observer: Observer,
    shutdown: Shutdown,
    /// The opening, with the queues that it is of.
    open: Option<(Arc<dyn OpenPath>, Arc<dyn Paths>)>,
}

/// Something else is to be done now.
struct Interrupted;

impl Courier {
    pub(crate) fn new(
        plan: watch::Receiver<Arc<CourierPlan>>,
        observer: Observer,
        shutdown: Shutdown,
    ) -> Self {
        let path = plan.borrow().setup.path.as_str().into();
        Self {
            path,
            plan,
            observer,
            shutdown,
            open: None,
        }
    }

    /// Works until the shutdown begins, the dataflow is removed, or another runner takes over.
    pub(crate) async fn run(mut self) {
        loop {
            let plan = Arc::clone(&self.plan.borrow_and_update());
            let go_on = self.follow(&plan).await;
            // The plan's sender is gone when the dataflow is.
            if !go_on || self.shutdown.is_begun() || self.plan.has_changed().is_err() {
                break;
            }
        }
        self.observer.forget();
    }

    /// Works by a plan until it changes. Returns whether there is something to go on with.
    async fn follow(&mut self, plan: &CourierPlan) -> bool {
        let Ok(sink) = self.make_sink(plan).await else {
            return true;
        };
        let fenced = self.work(plan, &sink).await;
        if timeout(CLOSE, sink.close()).await.is_err() {
            warn!(path = %self.path, "sink did not close in time");
        }
        !fenced
    }

    /// Makes trips until the plan changes. Returns whether another runner took over.
    async fn work(&mut self, plan: &CourierPlan, sink: &Arc<dyn Sink>) -> bool {
        let mut reopening = Backoff::new(OPEN_BACKOFF.0, OPEN_BACKOFF.1);
        loop {
            let Ok(open) = self.open_path(plan).await else {
                return false;
            };
            let way = Way {
                path: Arc::clone(&self.path),
                open,
                sink: Arc::clone(sink),
                policy: Arc::clone(&plan.policy),
            };
            let begun = Instant::now();
            let trip_plan = plan.trip.clone().within(&sink.capabilities());
            let mut trip = Trip::new(way, trip_plan, &self.observer);
            let interrupt = interrupted(&mut self.plan, &self.shutdown);
            match trip.run(interrupt).await {
                TripEnd::Interrupted => {
                    let deadline = self.shutdown.deadline().unwrap_or_else(|| Instant::now() + DRAIN);
                    trip.drain(deadline.min(Instant::now() + DRAIN)).await;
                    return false;
                }
                TripEnd::Queue(QueueError::Fenced { .. }) => {
                    self.observer
                        .unavailable(reason::FENCED, "another runner has opened the queue");
                    return true;
                }
                TripEnd::Queue(error) => {
                    drop(trip);
                    info!(path = %self.path, %error, "queue is opened again");
                    self.open = None;
                    // An opening that ends at once must not be tried without a pause.
                    if begun.elapsed() > OPEN_BACKOFF.1 {
                        reopening.reset();
                    }
                    let pause = sleep(reopening.next_delay());
                    if self.unless_interrupted(pause).await.is_err() {
                        return false;
                    }
                }
            }
        }
    }

    async fn make_sink(&mut self, plan: &CourierPlan) -> Result<Arc<dyn Sink>, Interrupted> {
        let mut backoff = Backoff::new(plan.policy.backoff.0, plan.policy.backoff.1);
        loop {
            let made = self
                .unless_interrupted(timeout(plan.policy.timeout, plan.factory.create(&plan.setup)))
                .await?;
            let error = match made {
                Ok(Ok(sink)) => return Ok(sink),
                Ok(Err(error)) => error,
                Err(_) => SinkError::retryable(reason::TIMEOUT, "sink was not made in time"),
            };
            self.observer.failed(&error);
            self.unless_interrupted(sleep(backoff.next_delay())).await?;
        }
    }

    /// The opening that there is, or a new one.
    async fn open_path(&mut self, plan: &CourierPlan) -> Result<Arc<dyn OpenPath>, Interrupted> {
        if let Some((open, paths)) = &self.open
            && Arc::ptr_eq(paths, &plan.paths)
        {
            return Ok(Arc::clone(open));
        }
        // Of two openings of the same session the other broker would end one.
        self.open = None;
        let mut backoff = Backoff::new(OPEN_BACKOFF.0, OPEN_BACKOFF.1);
        loop {
            let path = Arc::clone(&self.path);
            let (reason, error) = match self.unless_interrupted(plan.paths.open(&path)).await? {
                Ok(open) => {
                    let open: Arc<dyn OpenPath> = Arc::from(open);
                    self.open = Some((Arc::clone(&open), Arc::clone(&plan.paths)));
                    return Ok(open);
                }
                Err(error @ QueueError::NotFound { .. }) => (reason::QUEUE_MISSING, error),
                Err(error @ (QueueError::Forbidden { .. } | QueueError::Refused { .. })) => {
                    (reason::QUEUE_FORBIDDEN, error)
                }
                Err(error) => (reason::QUEUE_UNAVAILABLE, error),
            };
            // The broker may hear of the path a moment later than its runner.
            if backoff.tries() >= HEARD {
                self.observer.unavailable(reason, &error.to_string());
            }
            self.unless_interrupted(sleep(backoff.next_delay())).await?;
        }
    }

    async fn unless_interrupted<F: Future>(&mut self, future: F) -> Result<F::Output, Interrupted> {
        tokio::select! {
            biased;
            () = interrupted(&mut self.plan, &self.shutdown) => Err(Interrupted),
            output = future => Ok(output),
        }
    }
}

/// Resolves when the plan has changed or is gone, or the shutdown begins. Whoever is interrupted takes up the plan anew.
async fn interrupted(plan: &mut watch::Receiver<Arc<CourierPlan>>, shutdown: &Shutdown) {
    tokio::select! {
        biased;
        () = shutdown.begun() => {}
        // An error says that the sender is gone.
        _ = plan.changed() => {}
    }
}
