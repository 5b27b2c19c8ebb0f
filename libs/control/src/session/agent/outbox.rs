//! What waits to be told to the operator: the latest about each thing, never a backlog.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use crate::{
    facts::RoleFacts,
    handover::{HandOver, LARGEST_WATERMARK},
    plan::ResourceKey,
    proto::{self, from_role::Message as FromRole},
    report::{Aspect, Discovered, LARGEST_DOCUMENT, LONGEST_NAME, Report, Schema},
    resource::check_key,
    session::wire::Answer,
};

/// How much may be current at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

/// What something is about; of each there is one latest word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    Report(ResourceKey, Aspect),
    Schema(ResourceKey, Aspect),
    Discovered(ResourceKey, String),
    HandOver(ResourceKey),
    Facts,
}

impl Topic {
    /// The operator ends a session in which something unbounded is said.
    fn can_travel(&self) -> bool {
        match self {
            Self::Report(object, aspect) | Self::Schema(object, aspect) => {
                check_key(object).is_ok()
                    && aspect.name.len() <= LONGEST_NAME
                    && aspect.kind.as_str().len() <= LONGEST_NAME
            }
            Self::Discovered(scan, id) => check_key(scan).is_ok() && id.len() <= LONGEST_NAME,
            Self::HandOver(device) => check_key(device).is_ok(),
            Self::Facts => true,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Report(Report),
    Schema(Schema),
    Discovered(Discovered),
    HandOver(HandOver),
    Facts(RoleFacts),
}

/// Shared by reporters and the session.
pub(super) struct Outbox {
    state: Mutex<State>,
    changed: Notify,
    limits: Limits,
}

#[derive(Default)]
struct State {
    /// All that is so. It is told anew to each operator.
    current: BTreeMap<Topic, Word>,
    bytes: usize,
    /// Topics whose latest word the operator of this session does not have.
    dirty: BTreeSet<Topic>,
    /// Answers to resources, told at once.
    answers: BTreeMap<ResourceKey, Answer>,
    connected: bool,
    dropped: u64,
}

/// Tells the operator how things are. Cheap to clone, never blocks.
///
/// Of each part of each object the latest report counts: a slow or absent operator costs no memory. When a session
/// begins, everything current is told anew.
#[derive(Clone)]
pub struct Reporter {
    outbox: Arc<Outbox>,
}

impl Reporter {
    pub(super) fn new(outbox: Arc<Outbox>) -> Self {
        Self { outbox }
    }

    /// Says how a part of an object is. An unchanged report costs nothing.
    pub fn report(&self, report: Report) {
        let mut report = report.bounded();
        let topic = Topic::Report(report.object.clone(), report.aspect.clone());
        self.outbox.say(topic, |earlier| {
            report.since = match earlier {
                Some(Word::Report(earlier))
                    if earlier.health == report.health && earlier.reason == report.reason =>
                {
                    earlier.since
                }
                _ => Timestamp::now(),
            };
            Word::Report(report)
        });
    }

    /// Says that a part of an object is no more; its schema goes too.
    pub fn retract(&self, object: &ResourceKey, aspect: &Aspect) {
        self.outbox.forget(|topic| match topic {
            Topic::Report(about, part) | Topic::Schema(about, part) => about == object && part == aspect,
            Topic::Discovered(..) | Topic::HandOver(_) | Topic::Facts => false,
        });
    }

    /// Says that an object is no more, or no longer this role's affair.
    pub fn retract_object(&self, object: &ResourceKey) {
        self.outbox.forget(|topic| match topic {
            Topic::Report(about, _) | Topic::Schema(about, _) | Topic::Discovered(about, _) => {
                about == object
            }
            Topic::HandOver(_) | Topic::Facts => false,
        });
    }

    /// Publishes the schema of a part of an object.
    pub fn schema(&self, schema: Schema) {
        if schema.document.len() > LARGEST_DOCUMENT {
            warn!(object = %schema.object, aspect = %schema.aspect, bytes = schema.document.len(),
                "schema is too large and not published");
            return;
        }
        let topic = Topic::Schema(schema.object.clone(), schema.aspect.clone());
        self.outbox.say(topic, |_| Word::Schema(schema));
    }

    /// Publishes something that a scan found.
    pub fn discovered(&self, discovered: Discovered) {
        if discovered.document.len() > LARGEST_DOCUMENT {
            warn!(scan = %discovered.scan, bytes = discovered.document.len(), "find is too large and not published");
            return;
        }
        let topic = Topic::Discovered(discovered.scan.clone(), discovered.id.clone());
        self.outbox.say(topic, |_| Word::Discovered(discovered));
    }

    /// Says where this role stands with a device that it serves, takes or gives.
    pub fn hand_over(&self, mut hand_over: HandOver) {
        if hand_over.watermark.len() > LARGEST_WATERMARK {
            warn!(device = %hand_over.device, bytes = hand_over.watermark.len(), "watermark is too large and not told");
            hand_over.watermark.clear();
        }
        let topic = Topic::HandOver(hand_over.device.clone());
        self.outbox.say(topic, |_| Word::HandOver(hand_over));
    }

    /// Has nothing more to say of a device.
    pub fn forget_hand_over(&self, device: &ResourceKey) {
        self.outbox
            .forget(|topic| matches!(topic, Topic::HandOver(about) if about == device));
    }

    /// Tells where this role answers, and whom to trust there, in place of what was told before.
    pub fn tell(&self, facts: RoleFacts) {
        if !facts.is_bounded() {
            warn!(?facts, "facts are too large and not told");
            return;
        }
        self.outbox.say(Topic::Facts, |_| Word::Facts(facts));
    }

    /// How many words were dropped because too much is current already: a number that should stay 0.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.outbox.state.lock().dropped
    }
}

impl Outbox {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            state: Mutex::default(),
            changed: Notify::new(),
            limits,
        }
    }

    fn say(&self, topic: Topic, word: impl FnOnce(Option<&Word>) -> Word) {
        let mut state = self.state.lock();
        if !topic.can_travel() {
            state.dropped += 1;
            warn!(?topic, "name is too long to be reported");
            return;
        }
        let earlier = state.current.get(&topic);
        let word = word(earlier);
        if earlier == Some(&word) {
            return;
        }
        let (before, after) = (earlier.map_or(0, |word| size(&topic, word)), size(&topic, &word));
        let bytes = state.bytes - before + after;
        if bytes > self.limits.bytes || (before == 0 && state.current.len() >= self.limits.entries) {
            state.dropped += 1;
            if state.dropped.is_power_of_two() {
                warn!(dropped = state.dropped, ?topic, "too much to report at a time");
            }
            return;
        }
        state.bytes = bytes;
        state.current.insert(topic.clone(), word);
        if state.connected {
            state.dirty.insert(topic);
            drop(state);
            self.changed.notify_one();
        }
    }

    fn forget(&self, which: impl Fn(&Topic) -> bool) {
        let mut state = self.state.lock();
        let gone: Vec<Topic> = state
            .current
            .keys()
            .filter(|topic| which(topic))
            .cloned()
            .collect();
        for topic in gone {
            if let Some(word) = state.current.remove(&topic) {
                state.bytes -= size(&topic, &word);
            }
            // Finds have no retraction: a scan's end says that they are over. Beyond the bound the operator learns of
            // it in the next session.
            if state.connected && state.dirty.len() < 2 * self.limits.entries {
                state.dirty.insert(topic);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn answer(&self, answer: Answer) {
        let mut state = self.state.lock();
        // Without a session there is nobody to answer; the next one begins with what is held.
        if state.connected {
            state.answers.insert(answer.resource.key.clone(), answer);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// A session begins: everything current has to be told.
    pub(super) fn connect(&self) {
        let mut state = self.state.lock();
        state.connected = true;
        state.answers.clear();
        state.dirty = state.current.keys().cloned().collect();
    }

    pub(super) fn disconnect(&self) {
        let mut state = self.state.lock();
        state.connected = false;
        state.answers.clear();
        state.dirty.clear();
    }

    /// Resolves after something was said, answered or retracted.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn pop_answer(&self) -> Option<FromRole> {
        self.state
            .lock()
            .answers
            .pop_first()
            .map(|(_, answer)| answer.into())
    }

    pub(super) fn has_answer(&self) -> bool {
        !self.state.lock().answers.is_empty()
    }

    pub(super) fn has_dirty(&self) -> bool {
        !self.state.lock().dirty.is_empty()
    }

    /// Takes all topics that have news. What is said of them until they are sent is sent with them.
    pub(super) fn take_dirty(&self) -> BTreeSet<Topic> {
        std::mem::take(&mut self.state.lock().dirty)
    }

    /// The latest word on a topic; a retraction when there is none any more.
    pub(super) fn latest(&self, topic: Topic) -> Option<FromRole> {
        let word = {
            let mut state = self.state.lock();
            state.dirty.remove(&topic);
            state.current.get(&topic).cloned()
        };
        match (word, topic) {
            (Some(Word::Report(report)), _) => Some(FromRole::Report(report.into())),
            (Some(Word::Schema(schema)), _) => Some(FromRole::Schema(schema.into())),
            (Some(Word::Discovered(discovered)), _) => Some(FromRole::Discovered(discovered.into())),
            (Some(Word::HandOver(hand_over)), _) => Some(FromRole::HandOver(hand_over.into())),
            (Some(Word::Facts(facts)), _) => Some(FromRole::Facts(facts.into())),
            (None, Topic::Report(object, aspect)) => {
                let (object, aspect) = (Some(object.into()), Some(aspect.into()));
                Some(FromRole::Retraction(proto::Retraction { object, aspect }))
            }
            (None, Topic::Schema(..) | Topic::Discovered(..) | Topic::HandOver(_) | Topic::Facts) => None,
        }
    }
}

/// About what an entry weighs, in bytes.
fn size(topic: &Topic, word: &Word) -> usize {
    const OVERHEAD: usize = 128;
    let key = |key: &ResourceKey| key.kind.len() + key.namespace.len() + key.name.len();
    let topic = match topic {
        Topic::Report(object, aspect) | Topic::Schema(object, aspect) => key(object) + aspect.name.len(),
        Topic::Discovered(scan, id) => key(scan) + id.len(),
        Topic::HandOver(device) => key(device),
        Topic::Facts => 0,
    };
    let word = match word {
        Word::Report(report) => {
            let counters: usize = report.counters.keys().map(|name| name.len() + 8).sum();
            report.reason.len() + report.message.len() + report.evidence.len() + counters
        }
        Word::Schema(schema) => schema.document.len(),
        Word::HandOver(hand_over) => hand_over.watermark.len(),
        Word::Discovered(discovered) => discovered.document.len(),
        Word::Facts(RoleFacts { addresses, authority }) => {
            let addresses = addresses.values().flatten().map(String::len);
            addresses.sum::<usize>() + authority.as_ref().map_or(0, String::len)
        }
    };
    OVERHEAD + 2 * topic + word
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::ObjectRef,
        report::{AspectKind, Health},
    };

    fn outbox(entries: usize) -> (Arc<Outbox>, Reporter) {
        let outbox = Arc::new(Outbox::new(Limits {
            entries,
            bytes: 1024 * 1024,
        }));
        (Arc::clone(&outbox), Reporter::new(outbox))
    }

    fn report(dataset: &str, health: Health, message: &str) -> Report {
        let object = ObjectRef {
            namespace: "p".into(),
            name: "line".into(),
            uid: "1".into(),
            generation: 2,
        };
        Report::new(
            "Asset",
            &object,
            Aspect::new(AspectKind::Dataset, dataset),
            health,
            "Because",
        )
        .message(message)
    }

    fn sent(outbox: &Outbox) -> Vec<FromRole> {
        outbox
            .take_dirty()
            .into_iter()
            .filter_map(|topic| outbox.latest(topic))
            .collect()
    }

    #[test]
    fn the_latest_word_counts_and_costs_no_memory() {
        let (outbox, reporter) = outbox(10);
        outbox.connect();
        for number in 0..10_000 {
            reporter.report(report("a", Health::Degraded, &number.to_string()));
        }
        let messages = sent(&outbox);
        assert_eq!(messages.len(), 1);
        assert!(matches!(&messages[0], FromRole::Report(report) if report.message == "9999"));
        reporter.report(report("a", Health::Degraded, "9999"));
        assert!(sent(&outbox).is_empty(), "an unchanged report was sent again");
    }

    #[test]
    fn since_tells_when_it_became_so() {
        let (outbox, reporter) = outbox(10);
        outbox.connect();
        let since = |outbox: &Outbox| match &sent(outbox)[..] {
            [FromRole::Report(report)] => report.since_ms,
            other => panic!("{other:?}"),
        };
        reporter.report(report("a", Health::Degraded, "one"));
        let first = since(&outbox);
        std::thread::sleep(std::time::Duration::from_millis(5));
        reporter.report(report("a", Health::Degraded, "two"));
        assert_eq!(since(&outbox), first);
        reporter.report(report("a", Health::Available, "two"));
        assert!(since(&outbox) > first);
    }

    #[test]
    fn each_session_is_told_everything_and_retractions_reach_the_present_one() {
        let (outbox, reporter) = outbox(10);
        reporter.report(report("a", Health::Available, ""));
        reporter.report(report("b", Health::Available, ""));
        assert!(!outbox.has_dirty(), "something waits for nobody");
        outbox.connect();
        assert_eq!(sent(&outbox).len(), 2);
        let object = ResourceKey::new("Asset", "p", "line");
        reporter.retract(&object, &Aspect::new(AspectKind::Dataset, "a"));
        let messages = sent(&outbox);
        assert!(matches!(&messages[..], [FromRole::Retraction(_)]), "{messages:?}");
        outbox.disconnect();
        reporter.retract_object(&object);
        outbox.connect();
        assert!(sent(&outbox).is_empty());
        assert_eq!(outbox.state.lock().bytes, 0);
    }

    #[test]
    fn too_much_is_dropped_and_counted_but_updates_go_through() {
        let (outbox, reporter) = outbox(2);
        outbox.connect();
        for name in ["a", "b", "c"] {
            reporter.report(report(name, Health::Available, ""));
        }
        assert_eq!(reporter.dropped(), 1);
        reporter.report(report("a", Health::Unavailable, "down"));
        assert_eq!(reporter.dropped(), 1);
        reporter.retract_object(&ResourceKey::new("Asset", "p", "line"));
        reporter.report(report("c", Health::Available, ""));
        assert_eq!(reporter.dropped(), 1);
        reporter.report(report(&"n".repeat(5000), Health::Available, ""));
        assert_eq!(reporter.dropped(), 2);
    }
}
