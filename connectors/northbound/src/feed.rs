//! Reads a part of a queue, takes it through the stages and puts it together to parcels.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use foreshore_control::queue::{Entry, EntryId, Error as QueueError, OpenPath, ReadRange};
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    parcel::{Assembly, Limits, Parcel},
    stage::{Processed, Stages},
};

/// Which part of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Region {
    /// From the boundary on: what happens now.
    Live,
    /// Before the boundary: what waited.
    Backlog,
}

/// How long a read waits for something new.
const LIVE_WAIT: Duration = Duration::from_secs(10);

/// Longest time that stages work without letting others of the thread work.
const WORK_SLICE: Duration = Duration::from_millis(2);

/// What one read gave, after the stages.
type Read = Result<Vec<(Entry, Processed)>, QueueError>;

/// One part of a queue, read in order of id.
pub(crate) struct Feed {
    region: Region,
    after: EntryId,
    before: Option<EntryId>,
    limits: Limits,
    assembly: Assembly,
    ready: VecDeque<Parcel>,
    /// Nothing more will come.
    at_end: bool,
    reading: Option<BoxFuture<'static, Read>>,
    /// Not before: the broker did not answer.
    retry_at: Option<Instant>,
}

impl Feed {
    /// The part of the queue before or from `boundary` on.
    pub(crate) fn new(region: Region, boundary: EntryId, limits: Limits) -> Self {
        let mut feed = Self {
            region,
            after: 0,
            before: None,
            limits,
            assembly: Assembly::new(limits),
            ready: VecDeque::new(),
            at_end: false,
            reading: None,
            retry_at: None,
        };
        feed.rewind(boundary);
        feed
    }

    /// Begins again with what is not settled yet, with that boundary. Nothing may be on its way.
    pub(crate) fn rewind(&mut self, boundary: EntryId) {
        (self.after, self.before) = match self.region {
            Region::Live => (boundary.saturating_sub(1), None),
            Region::Backlog => (0, Some(boundary)),
        };
        self.at_end = false;
        self.discard();
    }

    /// Forgets what was read; it is read again after a rewind.
    pub(crate) fn discard(&mut self) {
        self.assembly = Assembly::new(self.limits);
        self.ready.clear();
        self.reading = None;
        self.retry_at = None;
    }

    /// Whether all of it has been read and handed on.
    pub(crate) fn is_done(&self) -> bool {
        self.at_end && self.ready.is_empty() && self.assembly.due().is_none()
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Begins a read if there is room for what it gives. One parcel is kept ahead.
    pub(crate) fn begin_read(&mut self, open: &Arc<dyn OpenPath>, stages: &Stages, now: Instant) {
        let wanted = self.reading.is_none() && self.ready.is_empty() && !self.at_end;
        if !wanted || self.retry_at.is_some_and(|at| at > now) {
            return;
        }
        self.retry_at = None;
        let range = ReadRange {
            after: self.after,
            before: self.before,
            max_entries: u32::try_from(self.limits.outputs).unwrap_or(u32::MAX),
            max_bytes: u32::try_from(self.limits.bytes).unwrap_or(u32::MAX),
            wait: if self.region == Region::Live {
                LIVE_WAIT
            } else {
                Duration::ZERO
            },
        };
        let (open, stages) = (Arc::clone(open), stages.clone());
        self.reading = Some(Box::pin(async move {
            let batch = open.read(range).await?;
            Ok(process(batch.entries, &stages).await)
        }));
    }

    /// What the read that was begun gives; never resolves when none was.
    pub(crate) async fn read(&mut self) -> Read {
        match &mut self.reading {
            None => std::future::pending().await,
            Some(reading) => {
                let read = reading.await;
                self.reading = None;
                read
            }
        }
    }

    /// Takes in what a read gave.
    pub(crate) fn take_in(&mut self, entries: Vec<(Entry, Processed)>) {
        if entries.is_empty() && self.region == Region::Backlog {
            self.at_end = true;
        }
        for (entry, processed) in entries {
            self.after = self.after.max(entry.id);
            let complete = self.assembly.add(&entry, processed);
            self.ready.extend(complete);
            if self.assembly.is_full() {
                self.ready.extend(self.assembly.take());
            }
        }
    }

    /// Reads again only after a while.
    pub(crate) fn retry_at(&mut self, at: Instant) {
        self.retry_at = Some(at);
    }

    /// The next parcel, if one is complete or has waited long enough.
    pub(crate) fn next_parcel(&mut self, now: Instant) -> Option<Parcel> {
        if self.ready.is_empty() && (self.at_end || self.assembly.due().is_some_and(|due| due <= now)) {
            self.ready.extend(self.assembly.take());
        }
        self.ready.pop_front()
    }

    /// Takes back what could not be delivered.
    pub(crate) fn put_back(&mut self, parcel: Parcel) {
        let at = self
            .ready
            .partition_point(|ready| ready.first_id() < parcel.first_id());
        self.ready.insert(at, parcel);
    }

    /// When something is to be done here although nothing arrives.
    pub(crate) fn due(&self) -> Option<Instant> {
        if !self.ready.is_empty() {
            return None;
        }
        let retry = self.retry_at.filter(|_| self.reading.is_none());
        self.assembly.due().into_iter().chain(retry).min()
    }
}

/// Takes entries through the stages, in slices of time.
async fn process(entries: Vec<Entry>, stages: &Stages) -> Vec<(Entry, Processed)> {
    let mut processed = Vec::with_capacity(entries.len());
    let mut slice = Instant::now();
    for entry in entries {
        let result = stages.process(&entry.record);
        processed.push((entry, result));
        if slice.elapsed() > WORK_SLICE {
            tokio::task::yield_now().await;
            slice = Instant::now();
        }
    }
    processed
}
