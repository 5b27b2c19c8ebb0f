//! Where a message is: every hop of it, with times and outcome.
//!
//! A trace watches a topic filter for a while. A message that it caught, or any other, is looked for by its identifier in
//! what the store holds now. What bounds both is told in `engine::trace` and [`held`].

mod held;
pub(crate) mod hop;

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use foreshore_record::TopicFilter;
use foreshore_store::EntryId;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::{
    held::{Held, Standing},
    hop::{Hop, TimedHop},
};
use crate::{
    broker::Handle,
    engine::{
        Engine,
        trace::{MAX_TRACES, Recorded, Trace, Traced},
    },
    error::Error,
};

/// Most messages of one trace.
pub const MAX_MESSAGES: usize = 256;

/// Longest time that a trace runs.
pub const MAX_TIME: Duration = Duration::from_secs(300);

/// How long a trace lets hops come together before it looks whether all has happened.
const PAUSE: Duration = Duration::from_millis(10);

/// What a trace saw.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// Seconds that it ran.
    pub seconds: f64,
    /// Messages, in the order in which they came.
    pub messages: Vec<MessageTrace>,
    /// Messages that came when as many were traced as were wanted.
    pub more_messages: u64,
}

/// What is known of a message.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MessageTrace {
    /// Where it was published.
    pub topic: String,
    /// Its entry, the same in all queues; absent if it was not stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<EntryId>,
    /// Its CloudEvents identifier (user property `id`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// Its W3C trace context (user property `traceparent`), by which other systems know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// When the broker got it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_at: Option<Timestamp>,
    /// What happened to it, as far as it was traced.
    pub hops: Vec<TimedHop>,
    /// Hops that were left out, because there was no room for them.
    pub hops_left_out: u64,
    /// Whether nothing more is expected to happen to it.
    pub done: bool,
    /// What holds it, and what it left without a hop that was seen.
    pub held: Vec<Held>,
}

/// What names a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MessageId {
    /// Its entry in the store.
    Entry(EntryId),
    /// Its CloudEvents identifier (user property `id`).
    Event(String),
}

/// What was found of a message.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// What was looked for.
    pub id: MessageId,
    /// Messages of that name; a CloudEvents identifier is unique within its source only.
    pub messages: Vec<MessageTrace>,
    /// Whether everything was looked through; else time ran out.
    pub complete: bool,
    /// The first entry that the store has not given out.
    pub next_entry: EntryId,
}

impl FromStr for MessageId {
    type Err = std::convert::Infallible;

    /// A number is an entry, everything else a CloudEvents identifier.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let entry = text.parse().map(Self::Entry);
        Ok(entry.unwrap_or_else(|_| Self::Event(text.to_owned())))
    }
}

/// A trace that runs; it ends when nobody waits for it any more.
struct Running<'a> {
    engine: &'a Engine,
    trace: Arc<Trace>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.engine.tracer.end(&self.trace);
    }
}

impl Handle {
    /// Watches what happens to the next messages whose topic a filter matches: [`MAX_MESSAGES`] at most, and for
    /// [`MAX_TIME`] at most. Ends earlier when nothing more is expected to happen to as many messages as are wanted.
    ///
    /// # Errors
    /// When as many traces run as may, or the store can't be read.
    pub async fn trace(
        &self,
        filter: TopicFilter,
        messages: usize,
        within: Duration,
    ) -> Result<Tracing, Error> {
        let engine = self.engine();
        let began = Instant::now();
        let wanted = messages.clamp(1, MAX_MESSAGES);
        let trace = engine.tracer.start(filter, wanted);
        let trace = trace.ok_or(Error::TooManyTraces { max: MAX_TRACES })?;
        let running = Running { engine, trace };
        let end = tokio::time::sleep(within.min(MAX_TIME));
        tokio::pin!(end);
        loop {
            let changed = engine.tracer.changed();
            if running.is_done() {
                break;
            }
            tokio::select! {
                () = changed => tokio::time::sleep(PAUSE).await,
                () = &mut end => break,
            }
        }
        let traced = running.trace.messages();
        let more_messages = running.trace.passed_over.load(Ordering::Relaxed);
        drop(running);
        let now = engine.now();
        let messages = engine
            .blocking(move |store| {
                let time = (now, held::patience());
                let messages = traced.iter().map(|traced| {
                    let (message, queues) = MessageTrace::of(traced);
                    held::missing(store, time, message, &queues)
                });
                messages.collect()
            })
            .await?;
        Ok(Tracing {
            seconds: began.elapsed().as_secs_f64(),
            messages,
            more_messages,
        })
    }

    /// Looks for a message in all queues, dead letters and retained messages, and among those that were traced within the
    /// last ten minutes.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn find_message(&self, id: MessageId) -> Result<Found, Error> {
        let engine = self.engine();
        let traced: Vec<_> = match &id {
            MessageId::Entry(entry) => engine.tracer.of(*entry).into_iter().collect(),
            MessageId::Event(event) => engine.tracer.with_event_id(event),
        };
        let known: Vec<_> = traced.iter().map(|traced| MessageTrace::of(traced).0).collect();
        let (wanted, now) = (id.clone(), engine.now());
        let found = engine.blocking(move |store| held::find(store, now, &wanted, known));
        let (messages, complete, next_entry) = found.await?;
        Ok(Found {
            id,
            messages,
            complete,
            next_entry,
        })
    }
}

impl Running<'_> {
    /// Whether all that is wanted has happened.
    fn is_done(&self) -> bool {
        self.trace.is_full() && self.trace.messages().iter().all(|traced| traced.is_done())
    }
}

impl MessageTrace {
    /// What was recorded of a message, and the queues that it entered.
    fn of(traced: &Traced) -> (Self, Vec<held::Queue>) {
        let Recorded {
            hops,
            left_out,
            entry,
            queues,
            done,
        } = traced.recorded();
        let message = Self {
            topic: traced.topic.to_string(),
            entry: (entry > 0).then_some(entry),
            event_id: traced.event_id.clone(),
            traceparent: traced.traceparent.clone(),
            received_at: Some(traced.received_at),
            hops,
            hops_left_out: left_out,
            done,
            held: Vec::new(),
        };
        (message, queues)
    }
}

impl fmt::Display for MessageTrace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.topic)?;
        if let Some(entry) = self.entry {
            write!(formatter, ", entry {entry}")?;
        }
        if let Some(received_at) = self.received_at {
            write!(formatter, ", received {received_at}")?;
        }
        writeln!(formatter)?;
        if let Some(event_id) = &self.event_id {
            writeln!(formatter, "  CloudEvents id {event_id}")?;
        }
        if let Some(traceparent) = &self.traceparent {
            writeln!(formatter, "  traceparent {traceparent}")?;
        }
        for hop in &self.hops {
            writeln!(formatter, "{hop}")?;
        }
        if self.hops_left_out > 0 {
            writeln!(formatter, "  {} hops were left out", self.hops_left_out)?;
        }
        for held in &self.held {
            writeln!(formatter, "  {held}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Tracing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for message in &self.messages {
            write!(formatter, "{message}")?;
        }
        let (count, seconds) = (self.messages.len(), self.seconds);
        write!(formatter, "{count} messages in {seconds:.1} s")?;
        if self.more_messages > 0 {
            write!(formatter, ", {} more were not traced", self.more_messages)?;
        }
        writeln!(formatter)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for message in &self.messages {
            write!(formatter, "{message}")?;
            if message.held.is_empty() && self.complete {
                writeln!(formatter, "  no queue holds it any more")?;
            }
        }
        match &self.id {
            _ if !self.complete => writeln!(formatter, "time ran out before everything was looked through")?,
            _ if !self.messages.is_empty() => {}
            MessageId::Entry(entry) if *entry >= self.next_entry => {
                let last = self.next_entry.saturating_sub(1);
                writeln!(
                    formatter,
                    "there was no entry {entry} yet: the last one is {last}"
                )?;
            }
            MessageId::Entry(entry) => writeln!(
                formatter,
                "no queue holds entry {entry}: everybody who was to get it has settled it"
            )?,
            MessageId::Event(event) => writeln!(
                formatter,
                "nothing holds a message with CloudEvents id {event:?}: it was never stored here, or everybody has settled it"
            )?,
        }
        Ok(())
    }
}
