//! Carries records of an open path to a sink, for as long as both stay what they are.
//!
//! ```text
//!            ┌ backlog feed (before the boundary) ┐
//! open path ─┤                                    ├─ parcels ─ deliveries side by side ─► sink
//!            └ live feed (from the boundary on)   ┘                   └─► settle
//! ```
//! Live parcels go first; while several deliveries may be on their way, the backlog leaves one place to them. When the
//! sink does not work, nothing is read: what is not handed out gains no attempt. When it was away for a while, the
//! boundary moves to the end of the queue, so that what happens then goes before what piled up.

use std::{sync::Arc, time::Duration};

use foreshore_control::queue::{EntryId, Error as QueueError, OpenPath, ReadRange};
use foreshore_crds::v1alpha1::dataflow::Lane as SinkLane;
use foreshore_record::Lane;
use foreshore_runtime::Backoff;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, info};

use crate::{
    delivery::{Delivered, Way},
    feed::{Feed, Region},
    health::reason,
    observer::Observer,
    parcel::{Limits, Parcel},
    sink::{Capabilities, SinkError},
    stage::Stages,
};

/// After so long an outage the boundary moves, and what was read is forgotten.
const AWAY_LIMIT: Duration = Duration::from_secs(10);

/// How often a sink without work is asked whether it would take some.
const IDLE_PROBE: Duration = Duration::from_secs(30);

/// Waits between tries of a sink that needs someone to change its configuration.
const FATAL_BACKOFF: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// How a trip is made.
#[derive(Clone, Debug)]
pub(crate) struct TripPlan {
    pub(crate) stages: Stages,
    pub(crate) limits: Limits,
    pub(crate) lane: SinkLane,
    /// Deliveries side by side. One alone keeps the order of ids, over failures too: the backlog goes first.
    pub(crate) max_inflight: usize,
}

impl TripPlan {
    /// Keeps to what the sink can do.
    pub(crate) fn within(mut self, capabilities: &Capabilities) -> Self {
        self.max_inflight = self.max_inflight.min(capabilities.max_inflight).max(1);
        self.limits.outputs = self.limits.outputs.min(capabilities.max_outputs).max(1);
        self.limits.bytes = self.limits.bytes.min(capabilities.max_bytes);
        self
    }

    fn keeps_order(&self) -> bool {
        self.max_inflight == 1
    }
}

/// Why a trip ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TripEnd {
    /// It was told to.
    Interrupted,
    /// The path can't be read or settled any more.
    Queue(QueueError),
}

/// How the sink is.
enum Standing {
    Up,
    /// It does not work; it is tried again then.
    Down {
        until: Instant,
    },
    /// One parcel is on its way to find out.
    Trying,
    /// It is asked. Gives the end of the queue.
    Probing(BoxFuture<'static, Result<EntryId, Trouble>>),
}

enum Trouble {
    Sink(SinkError),
    Queue(QueueError),
}

/// A delivery that is done.
struct Done {
    region: Region,
    bytes: usize,
    took: Duration,
    carried: Result<Delivered, QueueError>,
}

pub(crate) struct Trip<'c> {
    way: Way,
    plan: TripPlan,
    observer: &'c Observer,
    boundary: EntryId,
    live: Feed,
    backlog: Feed,
    inflight: FuturesUnordered<BoxFuture<'static, Done>>,
    inflight_backlog: usize,
    standing: Standing,
    /// Grows from failure to failure until a delivery succeeds.
    backoff: Backoff,
    fatal_backoff: Backoff,
    queue_backoff: Backoff,
    away_since: Option<Instant>,
    /// What was read is forgotten; it is read again from a new boundary.
    discarded: bool,
    busy_at: Instant,
}

impl<'c> Trip<'c> {
    pub(crate) fn new(way: Way, plan: TripPlan, observer: &'c Observer) -> Self {
        let boundary = way.open.opening_tail();
        let now = Instant::now();
        let (shortest, longest) = way.policy.backoff;
        Self {
            live: Feed::new(Region::Live, boundary, plan.limits),
            backlog: Feed::new(Region::Backlog, boundary, plan.limits),
            boundary,
            inflight: FuturesUnordered::new(),
            inflight_backlog: 0,
            // Asked before anything is read.
            standing: Standing::Down { until: now },
            backoff: Backoff::new(shortest, longest),
            fatal_backoff: Backoff::new(FATAL_BACKOFF.0, FATAL_BACKOFF.1),
            queue_backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
            away_since: None,
            discarded: false,
            busy_at: now,
            way,
            plan,
            observer,
        }
    }

    /// Carries until it is interrupted or the path can't be read any more.
    pub(crate) async fn run(&mut self, interrupt: impl Future<Output = ()>) -> TripEnd {
        let mut interrupt = std::pin::pin!(interrupt);
        loop {
            self.proceed();
            let due = self.due();
            let end = tokio::select! {
                biased;
                () = &mut interrupt => return TripEnd::Interrupted,
                Some(done) = self.inflight.next(), if !self.inflight.is_empty() => self.done(done),
                asked = answer(&mut self.standing) => self.asked(asked),
                read = self.live.read() => self.read(Region::Live, read),
                read = self.backlog.read() => self.read(Region::Backlog, read),
                () = sleep_until(due) => Ok(()),
            };
            if let Err(error) = end {
                return TripEnd::Queue(error);
            }
        }
    }

    /// Lets deliveries finish that are on their way, until then.
    pub(crate) async fn drain(&mut self, deadline: Instant) {
        while let Ok(Some(done)) = timeout_at(deadline, self.inflight.next()).await {
            if self.done(done).is_err() {
                return;
            }
        }
        if !self.inflight.is_empty() {
            info!(path = %self.way.path, batches = self.inflight.len(), "batches on their way are left to be repeated");
        }
    }

    /// Does what can be done now.
    fn proceed(&mut self) {
        let now = Instant::now();
        match self.standing {
            Standing::Up => {
                self.dispatch(now);
                self.begin_reads(now);
                if self.inflight.is_empty() && now >= self.busy_at + IDLE_PROBE {
                    self.probe();
                }
            }
            Standing::Down { until } if until <= now && self.inflight.is_empty() => self.try_again(now),
            Standing::Down { .. } | Standing::Trying | Standing::Probing(_) => {}
        }
    }

    /// When something is to be done although nothing happens.
    fn due(&self) -> Instant {
        // Without a place, what is due goes when a delivery is done.
        let due = |region, feed: &Feed| feed.due().filter(|_| self.has_place(region));
        let later = Instant::now() + IDLE_PROBE;
        match self.standing {
            Standing::Up => {
                let feeds = due(Region::Live, &self.live)
                    .into_iter()
                    .chain(due(Region::Backlog, &self.backlog));
                let idle = if self.inflight.is_empty() {
                    self.busy_at + IDLE_PROBE
                } else {
                    later
                };
                feeds.min().map_or(idle, |due| due.min(idle))
            }
            Standing::Down { until } if self.inflight.is_empty() => until,
            _ => later,
        }
    }

    fn begin_reads(&mut self, now: Instant) {
        let Self {
            way,
            plan,
            live,
            backlog,
            ..
        } = self;
        backlog.begin_read(&way.open, &plan.stages, now);
        if !plan.keeps_order() || backlog.is_done() && self.inflight_backlog == 0 {
            live.begin_read(&way.open, &plan.stages, now);
        }
    }

    fn has_place(&self, region: Region) -> bool {
        let places = self.plan.max_inflight;
        let left = self.inflight.len() < places;
        // One place is the live records' own.
        left && (region == Region::Live || places == 1 || self.inflight_backlog < places - 1)
    }

    fn dispatch(&mut self, now: Instant) {
        for region in [Region::Live, Region::Backlog] {
            while self.has_place(region) {
                let Some(parcel) = self.feed(region).next_parcel(now) else {
                    break;
                };
                self.send(region, parcel);
            }
        }
    }

    fn feed(&mut self, region: Region) -> &mut Feed {
        match region {
            Region::Live => &mut self.live,
            Region::Backlog => &mut self.backlog,
        }
    }

    fn send(&mut self, region: Region, parcel: Parcel) {
        let lane = match (self.plan.lane, region) {
            (SinkLane::Alarm, _) => Lane::Alarm,
            (SinkLane::Bulk, _) => Lane::Bulk,
            (SinkLane::Live, Region::Live) => Lane::Live,
            (SinkLane::Live, Region::Backlog) => Lane::Backlog,
        };
        let (way, bytes, begun) = (self.way.clone(), parcel.bytes(), Instant::now());
        self.inflight_backlog += usize::from(region == Region::Backlog);
        self.busy_at = begun;
        self.inflight.push(Box::pin(async move {
            let carried = way.carry(parcel, lane).await;
            Done {
                region,
                bytes,
                took: begun.elapsed(),
                carried,
            }
        }));
    }

    // === what happened ===

    fn done(&mut self, done: Done) -> Result<(), QueueError> {
        let Done {
            region,
            bytes,
            took,
            carried,
        } = done;
        self.inflight_backlog -= usize::from(region == Region::Backlog);
        self.busy_at = Instant::now();
        let Delivered { settled, setback } = carried?;
        match setback {
            None => {
                self.observer.delivered(&settled, bytes, took);
                self.backoff.reset();
                self.fatal_backoff.reset();
                if self.was_away_long() && self.inflight.is_empty() {
                    // The parcel waited for the sink while more piled up: what is at the end of the queue goes first.
                    self.discard();
                    self.probe();
                } else {
                    self.recovered();
                }
            }
            Some((parcel, error)) => {
                if !settled.is_empty() {
                    self.observer
                        .delivered(&settled, bytes.saturating_sub(parcel.bytes()), took);
                }
                self.feed(region).put_back(parcel);
                // It was away already when the try began.
                self.failed(&error, self.busy_at - took);
            }
        }
        Ok(())
    }

    fn read(
        &mut self,
        region: Region,
        read: Result<Vec<(foreshore_control::queue::Entry, crate::stage::Processed)>, QueueError>,
    ) -> Result<(), QueueError> {
        match read {
            Ok(entries) => {
                if self.queue_backoff.tries() > 0 {
                    self.queue_backoff.reset();
                    self.observer.delivering();
                }
                self.feed(region).take_in(entries);
                Ok(())
            }
            Err(error) => {
                let (reason, cause) = passing(&error).ok_or(error)?;
                let wait = self.queue_backoff.next_delay();
                self.observer.unavailable(reason, &cause);
                self.feed(region).retry_at(Instant::now() + wait);
                Ok(())
            }
        }
    }

    fn asked(&mut self, answer: Result<EntryId, Trouble>) -> Result<(), QueueError> {
        match answer {
            Ok(tail) => {
                if std::mem::take(&mut self.discarded) {
                    if !self.plan.keeps_order() {
                        self.boundary = tail;
                    }
                    self.live.rewind(self.boundary);
                    self.backlog.rewind(self.boundary);
                }
                self.busy_at = Instant::now();
                self.observer.delivering();
                self.recovered();
                Ok(())
            }
            Err(Trouble::Sink(error)) => {
                self.failed(&error, Instant::now());
                Ok(())
            }
            Err(Trouble::Queue(error)) => {
                let (reason, cause) = passing(&error).ok_or(error)?;
                self.observer.unavailable(reason, &cause);
                self.standing = Standing::Down {
                    until: Instant::now() + self.queue_backoff.next_delay(),
                };
                Ok(())
            }
        }
    }

    fn recovered(&mut self) {
        if let Some(since) = self.away_since.take() {
            info!(path = %self.way.path, away_seconds = since.elapsed().as_secs_f64(), "sink works again");
        }
        self.standing = Standing::Up;
    }

    fn failed(&mut self, error: &SinkError, since: Instant) {
        let now = Instant::now();
        self.away_since.get_or_insert(since);
        let wait = match error {
            SinkError::Retryable { after, .. } => self.backoff.next_delay().max(after.unwrap_or_default()),
            SinkError::Fatal { .. } | SinkError::Rejected { .. } => self.fatal_backoff.next_delay(),
        };
        self.observer.failed(error);
        self.standing = Standing::Down { until: now + wait };
    }

    // === an outage ===

    fn try_again(&mut self, now: Instant) {
        if self.was_away_long() {
            self.discard();
        }
        let region = if self.live.has_ready() {
            Region::Live
        } else {
            Region::Backlog
        };
        match self.feed(region).next_parcel(now) {
            Some(parcel) => {
                self.standing = Standing::Trying;
                self.send(region, parcel);
            }
            None => self.probe(),
        }
    }

    /// Whether what was read is to be forgotten, and was not yet.
    fn was_away_long(&self) -> bool {
        !self.discarded && self.away_since.is_some_and(|since| since.elapsed() > AWAY_LIMIT)
    }

    fn discard(&mut self) {
        debug!(path = %self.way.path, "what was read is read again when the sink works");
        self.live.discard();
        self.backlog.discard();
        self.discarded = true;
    }

    fn probe(&mut self) {
        let way = self.way.clone();
        self.standing = Standing::Probing(Box::pin(async move {
            match timeout(way.policy.timeout, way.sink.probe()).await {
                Ok(Ok(())) => end_of_queue(&way.open).await.map_err(Trouble::Queue),
                Ok(Err(error)) => Err(Trouble::Sink(error)),
                Err(_) => {
                    let cause = format!("no answer within {} s", way.policy.timeout.as_secs_f64());
                    Err(Trouble::Sink(SinkError::retryable(reason::TIMEOUT, cause)))
                }
            }
        }));
    }
}

/// Why a queue can't be read that may be read later, as health tells it.
fn passing(error: &QueueError) -> Option<(&'static str, String)> {
    match error {
        QueueError::Unavailable { cause } => Some((reason::QUEUE_UNAVAILABLE, cause.clone())),
        QueueError::Refused { cause } => Some((reason::QUEUE_FORBIDDEN, cause.clone())),
        _ => None,
    }
}

async fn answer(standing: &mut Standing) -> Result<EntryId, Trouble> {
    match standing {
        Standing::Probing(asking) => asking.await,
        _ => std::future::pending().await,
    }
}

/// The first id that is not in the queue yet.
async fn end_of_queue(open: &Arc<dyn OpenPath>) -> Result<EntryId, QueueError> {
    let nothing = ReadRange {
        after: EntryId::MAX,
        before: None,
        max_entries: 1,
        max_bytes: 1,
        wait: Duration::ZERO,
    };
    open.read(nothing).await.map(|batch| batch.tail)
}
