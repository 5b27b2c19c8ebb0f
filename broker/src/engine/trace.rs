//! Recording what happens to messages that somebody asked about.
//!
//! A message that a trace wants carries a [`Traced`] with it, and whoever works on it adds a hop. So a message that
//! nobody wants costs one relaxed load when it is published, and one when it is read back from a queue. What is recorded
//! is bounded in every respect, and whatever goes beyond is counted as left out.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use foreshore_record::{DropReason, Outcome, Qos, TopicFilter, TopicName, property, record::Properties};
use foreshore_store::{EntryId, ReceiverId, Refusal, Settlement};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::inspect::trace::hop::{Hop, TimedHop};

/// Most traces at a time.
pub(crate) const MAX_TRACES: usize = 4;

/// Most messages that are remembered, of traces that run and of those that have ended.
const MAX_MESSAGES: usize = 1024;

/// Most hops of one message.
const MAX_HOPS: usize = 1024;

/// Most hops of all messages.
const MAX_ALL_HOPS: usize = 64 << 10;

/// How long a message is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Longest CloudEvents identifier or trace context that is remembered, in bytes.
const MAX_NAME: usize = 256;

/// All traces.
#[derive(Debug, Default)]
pub(crate) struct Tracer {
    /// Whether any trace has room for a message.
    wanting: AtomicBool,
    /// Messages that are known by their entry.
    stored: AtomicUsize,
    traces: ArcSwap<Vec<Arc<Trace>>>,
    recent: Mutex<Recent>,
    shared: Arc<Shared>,
}

/// What all messages share that are traced.
#[derive(Debug, Default)]
struct Shared {
    /// Hops of all messages.
    hops: AtomicUsize,
    /// Something was recorded that a trace may have waited for.
    changed: Notify,
}

/// Messages that were traced, the oldest first.
#[derive(Debug, Default)]
struct Recent {
    messages: VecDeque<Arc<Traced>>,
    by_entry: HashMap<EntryId, Arc<Traced>>,
}

/// Somebody wants to know what happens to messages of a topic filter.
#[derive(Debug)]
pub(crate) struct Trace {
    filter: TopicFilter,
    /// Messages that it still wants.
    room: AtomicUsize,
    /// Messages that it would have wanted besides.
    pub(crate) passed_over: AtomicU64,
    messages: Mutex<Vec<Arc<Traced>>>,
}

/// A message that is traced.
#[derive(Debug)]
pub(crate) struct Traced {
    /// Where it was published.
    pub(crate) topic: TopicName,
    /// When the broker got it.
    pub(crate) received_at: Timestamp,
    /// Its CloudEvents identifier.
    pub(crate) event_id: Option<String>,
    /// Its W3C trace context.
    pub(crate) traceparent: Option<String>,
    began: Instant,
    state: Mutex<State>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct State {
    hops: Vec<TimedHop>,
    left_out: u64,
    entry: EntryId,
    /// The queues that it entered, by name.
    queues: Vec<(ReceiverId, String)>,
    submitted: Option<Instant>,
    /// It is remembered no more.
    forgotten: bool,
}

/// What is known of a traced message.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// Hops, in the order in which they were recorded.
    pub(crate) hops: Vec<TimedHop>,
    /// Hops for which there was no room.
    pub(crate) left_out: u64,
    /// Its entry; 0 if it was not stored.
    pub(crate) entry: EntryId,
    /// The durable queues that it entered.
    pub(crate) queues: Vec<(ReceiverId, String)>,
    /// Whether nothing more is expected.
    pub(crate) done: bool,
}

/// A traced message on its way to one receiver.
#[derive(Clone, Debug)]
pub(crate) struct Leg {
    traced: Arc<Traced>,
    /// Name of the receiver's path.
    pub(crate) receiver: String,
    /// The member, if the receiver is a group.
    pub(crate) client: Option<String>,
}

impl Tracer {
    /// Begins to trace a message, if somebody wants that.
    pub(crate) fn begin(
        &self,
        topic: &TopicName,
        properties: impl FnOnce() -> Properties,
        received: impl FnOnce() -> Hop,
    ) -> Option<Arc<Traced>> {
        if !self.wanting.load(Ordering::Relaxed) {
            return None;
        }
        let traces = self.traces.load();
        let wanting: Vec<_> = traces
            .iter()
            .filter(|trace| trace.filter.matches(topic.as_str()) && trace.takes())
            .collect();
        if wanting.is_empty() {
            return None;
        }
        let properties = properties();
        let named = |name| {
            let value = properties.user_property(name);
            value.filter(|value| value.len() <= MAX_NAME).map(str::to_owned)
        };
        let traced = Arc::new(Traced {
            topic: topic.clone(),
            received_at: Timestamp::now(),
            event_id: named(property::CE_ID),
            traceparent: named(property::TRACEPARENT),
            began: Instant::now(),
            state: Mutex::default(),
            shared: Arc::clone(&self.shared),
        });
        traced.record(received());
        self.remember(Arc::clone(&traced));
        for trace in wanting {
            trace.messages.lock().push(Arc::clone(&traced));
        }
        Some(traced)
    }

    /// The message of that entry, if it was traced.
    pub(crate) fn of(&self, entry: EntryId) -> Option<Arc<Traced>> {
        if self.stored.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.recent.lock().by_entry.get(&entry).cloned()
    }

    /// Records a hop of the message of that entry, if it was traced.
    pub(crate) fn record(&self, entry: EntryId, hop: impl FnOnce() -> Hop) {
        if let Some(traced) = self.of(entry) {
            traced.record(hop());
        }
    }

    /// A traced message was submitted to the store.
    pub(crate) fn submitted(&self, traced: &Arc<Traced>, entry: EntryId) {
        let mut recent = self.recent.lock();
        let mut state = traced.state.lock();
        state.entry = entry;
        // A message that is remembered no more is looked for by nobody.
        if !state.forgotten {
            recent.by_entry.insert(entry, Arc::clone(traced));
            self.stored.store(recent.by_entry.len(), Ordering::Relaxed);
        }
    }

    /// What settlements mean for messages that were traced.
    pub(crate) fn settled(&self, path: &str, settlements: &[Settlement]) -> Vec<(Arc<Traced>, Hop)> {
        let traced = settlements.iter().filter_map(|settlement| {
            let receiver = path.to_owned();
            let hop = |outcome: &Outcome| match outcome.clone() {
                Outcome::Delivered => Hop::Settled {
                    receiver,
                    emitted: settlement.emitted,
                },
                Outcome::DeadLettered { stage, reason } => Hop::DeadLettered {
                    receiver,
                    stage,
                    reason,
                },
                Outcome::Dropped { reason } => Hop::Dropped {
                    receiver,
                    reason: reason.to_string(),
                },
            };
            let traced = self.of(settlement.id)?;
            Some((traced, hop(&settlement.outcome)))
        });
        traced.collect()
    }

    /// Messages that are remembered, and known by that CloudEvents identifier.
    pub(crate) fn with_event_id(&self, event_id: &str) -> Vec<Arc<Traced>> {
        let recent = self.recent.lock();
        let messages = recent.messages.iter();
        let found = messages.filter(|traced| traced.event_id.as_deref() == Some(event_id));
        found.cloned().collect()
    }

    /// Begins a trace; `None` when as many run as may.
    pub(crate) fn start(&self, filter: TopicFilter, messages: usize) -> Option<Arc<Trace>> {
        let trace = Arc::new(Trace {
            filter,
            room: AtomicUsize::new(messages),
            passed_over: AtomicU64::new(0),
            messages: Mutex::default(),
        });
        // Those that change the list at the same time come one after the other.
        let _one_at_a_time = self.recent.lock();
        let running = self.traces.load();
        if running.len() >= MAX_TRACES {
            return None;
        }
        let running = running.iter().chain([&trace]).cloned().collect();
        self.traces.store(Arc::new(running));
        self.wanting.store(true, Ordering::Relaxed);
        Some(trace)
    }

    /// Ends a trace. Its messages are remembered for a while.
    pub(crate) fn end(&self, trace: &Arc<Trace>) {
        let _one_at_a_time = self.recent.lock();
        let running = self.traces.load();
        let left: Vec<_> = running
            .iter()
            .filter(|known| !Arc::ptr_eq(known, trace))
            .cloned()
            .collect();
        self.wanting.store(!left.is_empty(), Ordering::Relaxed);
        self.traces.store(Arc::new(left));
    }

    /// Resolves when something was recorded that a trace may wait for. Made before what is waited for is looked at.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.shared.changed.notified()
    }

    /// Forgets what has been remembered for long enough.
    pub(crate) fn sweep(&self) {
        let mut recent = self.recent.lock();
        let is_old = |traced: &Arc<Traced>| traced.began.elapsed() > REMEMBERED;
        while recent.messages.front().is_some_and(is_old) {
            recent.forget_oldest();
        }
        self.stored.store(recent.by_entry.len(), Ordering::Relaxed);
    }

    fn remember(&self, traced: Arc<Traced>) {
        let mut recent = self.recent.lock();
        if recent.messages.len() >= MAX_MESSAGES {
            recent.forget_oldest();
            self.stored.store(recent.by_entry.len(), Ordering::Relaxed);
        }
        recent.messages.push_back(traced);
    }
}

impl Recent {
    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.messages.pop_front() {
            self.by_entry.remove(&oldest.forget());
        }
    }
}

impl Trace {
    /// Whether it takes one more message; then it has.
    fn takes(&self) -> bool {
        let taken = self
            .room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| room.checked_sub(1));
        if taken.is_err() {
            self.passed_over.fetch_add(1, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    /// Whether it wants no further message.
    pub(crate) fn is_full(&self) -> bool {
        self.room.load(Ordering::Relaxed) == 0
    }

    /// Its messages.
    pub(crate) fn messages(&self) -> Vec<Arc<Traced>> {
        self.messages.lock().clone()
    }
}

impl Traced {
    /// Records a hop, if there is room for it.
    pub(crate) fn record(&self, hop: Hop) {
        let after_micros = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let of_interest = hop.may_be_last();
        let mut state = self.state.lock();
        if state.forgotten || state.hops.len() >= MAX_HOPS || !self.shared.has_room() {
            state.left_out += 1;
            return;
        }
        state.hops.push(TimedHop { after_micros, hop });
        drop(state);
        if of_interest {
            self.shared.changed.notify_waiters();
        }
    }

    /// It is on its way to the store.
    pub(crate) fn submits(&self) {
        self.state.lock().submitted = Some(Instant::now());
    }

    /// The commit that holds it is durable.
    pub(crate) fn stored(&self, entry: EntryId) {
        let submitted = self.state.lock().submitted.take();
        let took = submitted.map_or(Duration::ZERO, |submitted| submitted.elapsed());
        self.record(Hop::Stored {
            entry,
            commit_micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        });
    }

    /// The store did not take it.
    pub(crate) fn not_stored(&self, refusal: &Refusal) {
        let mut state = self.state.lock();
        state.submitted = None;
        let reason = match refusal {
            Refusal::Repeated => "it was taken in before".to_owned(),
            Refusal::Fenced { epoch } => format!("a later life of its source has published: {epoch}"),
            Refusal::QueueFull { receiver } => match state.queue_name(*receiver) {
                Some(name) => format!("the queue of {name} is full"),
                None => "a queue is full".to_owned(),
            },
            Refusal::NoSpace => "free space of the disk is below the watermark".to_owned(),
        };
        drop(state);
        self.record(Hop::NotStored { reason });
    }

    /// Somebody is to get it, out of that durable queue if there is one.
    pub(crate) fn routed(
        &self,
        receiver: String,
        qos: Qos,
        queue: Option<ReceiverId>,
        connected: Option<bool>,
    ) {
        if let Some(queue) = queue {
            let mut state = self.state.lock();
            if state.queues.len() < MAX_HOPS {
                state.queues.push((queue, receiver.clone()));
            }
        }
        let queued = queue.is_some();
        self.record(Hop::Routed {
            receiver,
            qos,
            queued,
            connected,
        });
    }

    /// Whether it has no room for further hops.
    pub(crate) fn is_full(&self) -> bool {
        self.state.lock().hops.len() >= MAX_HOPS
    }

    /// So many hops are not even tried.
    pub(crate) fn leave_out(&self, hops: usize) {
        self.state.lock().left_out += hops as u64;
    }

    /// These queues did not take it.
    pub(crate) fn passed_over(&self, receivers: &[(ReceiverId, DropReason)]) {
        for (receiver, reason) in receivers {
            let name = self.state.lock().queue_name(*receiver);
            if let Some(receiver) = name {
                let reason = reason.to_string();
                self.record(Hop::Dropped { receiver, reason });
            }
        }
    }

    /// What is known of it.
    pub(crate) fn recorded(&self) -> Recorded {
        let state = self.state.lock();
        Recorded {
            hops: state.hops.clone(),
            left_out: state.left_out,
            entry: state.entry,
            queues: state.queues.clone(),
            done: state.is_done(),
        }
    }

    /// Whether nothing more is expected to happen to it.
    pub(crate) fn is_done(&self) -> bool {
        self.state.lock().is_done()
    }

    /// Gives up what it has recorded; returns its entry.
    fn forget(&self) -> EntryId {
        let mut state = self.state.lock();
        let hops = std::mem::take(&mut state.hops).len();
        self.shared.hops.fetch_sub(hops, Ordering::Relaxed);
        state.left_out += hops as u64;
        state.queues = Vec::new();
        state.forgotten = true;
        state.entry
    }
}

impl State {
    /// Name of a queue that it entered.
    fn queue_name(&self, receiver: ReceiverId) -> Option<String> {
        let found = self.queues.iter().find(|(known, _)| *known == receiver);
        found.map(|(_, name)| name.clone())
    }

    fn is_done(&self) -> bool {
        let mut open = Vec::new();
        let (mut routed, mut ended, mut unanswered) = (false, false, false);
        for TimedHop { hop, .. } in &self.hops {
            ended |= hop.ends_all();
            unanswered |= hop.asks_for_an_answer();
            unanswered &= !hop.is_answer();
            if let Hop::Routed { receiver, .. } = hop {
                routed = true;
                open.push(receiver.as_str());
            }
            if let Some(receiver) = hop.ends() {
                open.retain(|open| *open != receiver);
            }
        }
        self.submitted.is_none() && !unanswered && (ended || (routed && open.is_empty()))
    }
}

impl Shared {
    /// Takes the room for a hop, if there is some.
    fn has_room(&self) -> bool {
        let taken = self
            .hops
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |hops| {
                (hops < MAX_ALL_HOPS).then_some(hops + 1)
            });
        taken.is_ok()
    }
}

impl Leg {
    pub(crate) fn new(traced: &Arc<Traced>, receiver: String, client: Option<String>) -> Self {
        Self {
            traced: Arc::clone(traced),
            receiver,
            client,
        }
    }

    /// Records a hop of this message to this receiver.
    pub(crate) fn record(&self, hop: impl FnOnce(String, Option<String>) -> Hop) {
        self.traced
            .record(hop(self.receiver.clone(), self.client.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(tracer: &Tracer, topic: &str) -> Option<Arc<Traced>> {
        tracer.begin(&TopicName::new(topic).unwrap(), Properties::default, || {
            Hop::Allowed
        })
    }

    fn start(tracer: &Tracer, messages: usize) -> Arc<Trace> {
        tracer.start(TopicFilter::new("a/#").unwrap(), messages).unwrap()
    }

    #[test]
    fn a_message_is_traced_if_somebody_wants_it() {
        let tracer = Tracer::default();
        assert!(begin(&tracer, "a/b").is_none());
        let trace = start(&tracer, 1);
        assert!(begin(&tracer, "b").is_none());
        let traced = begin(&tracer, "a/b").unwrap();
        assert!(trace.is_full() && Arc::ptr_eq(&trace.messages()[0], &traced));
        assert!(begin(&tracer, "a/b").is_none());
        assert_eq!(trace.passed_over.load(Ordering::Relaxed), 1);
        tracer.end(&trace);
        assert!(!tracer.wanting.load(Ordering::Relaxed));
    }

    #[test]
    fn traces_messages_and_hops_are_bounded() {
        let tracer = Tracer::default();
        let traces: Vec<_> = (0..MAX_TRACES).map(|_| start(&tracer, usize::MAX)).collect();
        assert!(tracer.start(TopicFilter::new("#").unwrap(), 1).is_none());
        tracer.end(&traces[0]);
        let first = begin(&tracer, "a").unwrap();
        tracer.submitted(&first, 7);
        assert!(tracer.of(7).is_some());
        for _ in 0..MAX_HOPS + 4 {
            first.record(Hop::Allowed);
        }
        let recorded = first.recorded();
        assert_eq!((recorded.hops.len(), recorded.left_out), (MAX_HOPS, 5));
        // What is remembered makes room for what is new, and gives its hops back.
        for _ in 0..MAX_MESSAGES {
            begin(&tracer, "a").unwrap();
        }
        assert!(tracer.of(7).is_none() && first.recorded().hops.is_empty());
        assert_eq!(tracer.recent.lock().messages.len(), MAX_MESSAGES);
        assert_eq!(tracer.shared.hops.load(Ordering::Relaxed), MAX_MESSAGES);
        first.record(Hop::Allowed);
        assert!(first.recorded().hops.is_empty());
        for traced in &traces[1].messages() {
            for _ in 0..MAX_HOPS {
                traced.record(Hop::Allowed);
            }
        }
        assert_eq!(tracer.shared.hops.load(Ordering::Relaxed), MAX_ALL_HOPS);
    }

    #[test]
    fn a_message_is_done_when_nothing_more_is_expected() {
        let tracer = Tracer::default();
        let _trace = start(&tracer, 1);
        let traced = begin(&tracer, "a").unwrap();
        let routed = |receiver: &str| Hop::Routed {
            receiver: receiver.to_owned(),
            qos: Qos::AtLeastOnce,
            queued: true,
            connected: Some(true),
        };
        let ended = |receiver: &str| Hop::Settled {
            receiver: receiver.to_owned(),
            emitted: 1,
        };
        traced.submits();
        traced.record(routed("x"));
        traced.record(routed("y"));
        traced.record(ended("x"));
        traced.stored(1);
        assert!(!traced.is_done());
        traced.record(ended("y"));
        assert!(traced.is_done());
        traced.submits();
        assert!(!traced.is_done());
    }
}
