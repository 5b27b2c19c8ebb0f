//! From what links saw to messages that the broker has: numbered, in order, within a window.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use foreshore_crds::conditions::reasons;
use foreshore_mqtt::{Acknowledgement, Client, PublishError, ReasonCode, Receipt};
use foreshore_record::{Qos, Record};
use foreshore_runtime::{Backoff, Shutdown};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{error, warn};

use super::{
    book::{Book, Route},
    counters::Counters,
    frames::{Frame, Framer},
    message::Sender,
    number::Numbers,
    turn::Entry,
    watermark::{RecentEvents, Verdict, Watermark},
};
use crate::{
    emitter::{Channel, Held, Item, Share},
    health::{Health, Member},
    observation::{DatasetValues, Event, Gap, Observation, Picture},
};

/// Messages of one device that the broker has not acknowledged.
const WINDOW: usize = 512;
/// Shortest and longest wait before a broker that refused for want of room is asked again.
const FULL_RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The books of a device's assets, by name.
pub(crate) type Books = Arc<BTreeMap<Arc<str>, Arc<Book>>>;

/// Publishes what the links of one device saw.
pub(crate) struct Publisher {
    pub(crate) items: mpsc::Receiver<Item>,
    pub(crate) books: watch::Receiver<Books>,
    pub(crate) client: watch::Receiver<Option<Client>>,
    pub(crate) numbers: Numbers,
    pub(crate) counters: Arc<Counters>,
    pub(crate) channel: Channel,
    /// URI of the source where the link names none: the address.
    pub(crate) address: watch::Receiver<Arc<str>>,
    /// How to go on where another instance let go.
    pub(crate) entry: Option<Arc<Entry>>,
}

/// A message and what it takes to settle it.
struct Pending {
    record: Record,
    member: Member,
    values: usize,
    /// Kept until every message of the observation is settled.
    _share: Option<Arc<Share>>,
    /// When the message is worth nothing any more.
    expires: Option<Instant>,
}

type Settled = (Pending, Result<Acknowledgement, PublishError>);

/// A publisher at work.
struct Work {
    books: watch::Receiver<Books>,
    client: Client,
    numbers: Numbers,
    counters: Arc<Counters>,
    channel: Channel,
    address: watch::Receiver<Arc<str>>,
    source: Option<Arc<str>>,
    /// Whether a link is up: without one, last values are old ones.
    linked: bool,
    framers: HashMap<(Arc<str>, Arc<str>), Framer>,
    /// No key frame is due before this time without a value.
    due: Option<Instant>,
    in_flight: FuturesUnordered<BoxFuture<'static, Settled>>,
    /// Refused for want of room; nothing else is sent until the broker takes them again.
    refused: VecDeque<Pending>,
    retry: Backoff,
    /// Messages whose fate is not known because the client ended.
    abandoned: u64,
    /// What another instance has handed over, and is not sent again.
    before: Watermark,
    /// Whether points go on where another instance let go, rather than begin.
    goes_on: bool,
    /// Datasets of which a gap at the hand-over was told.
    gaps: BTreeSet<(Arc<str>, Arc<str>)>,
    /// Events that were sent, for the next instance.
    events: RecentEvents,
}

impl Publisher {
    /// Runs until the items end and everything is settled, at the latest until the drain deadline. Gives back what was
    /// handed over, if everything was settled.
    pub(crate) async fn run(mut self, shutdown: Shutdown) -> Option<Watermark> {
        let client = async {
            match self.client.wait_for(Option::is_some).await {
                Ok(client) => client.clone(),
                Err(_) => None,
            }
        };
        // Links fill the budget meanwhile, and then wait.
        let client = shutdown.or_deadline(client).await.flatten()?;
        let before = self.entry.as_ref().and_then(|entry| entry.watermark.clone());
        let work = Work {
            books: self.books,
            client,
            numbers: self.numbers,
            counters: self.counters,
            channel: self.channel,
            address: self.address,
            source: None,
            linked: false,
            framers: HashMap::new(),
            due: None,
            in_flight: FuturesUnordered::new(),
            refused: VecDeque::new(),
            retry: Backoff::new(FULL_RETRY.0, FULL_RETRY.1),
            abandoned: 0,
            goes_on: before.is_some(),
            before: before.unwrap_or_default(),
            gaps: BTreeSet::new(),
            events: RecentEvents::default(),
        };
        if self.entry.is_some() && !work.goes_on {
            let now = Timestamp::now();
            work.gap(&Gap {
                member: Member::Device,
                since: now,
                until: now,
                cause: "another instance had the device, and what it handed over last is not known"
                    .to_owned(),
            });
        }
        let handed_over = shutdown.or_deadline(Box::pin(work.run(self.items))).await;
        if handed_over.is_none() {
            warn!("ended before the broker had everything");
        }
        handed_over
    }
}

impl Work {
    async fn run(mut self, mut items: mpsc::Receiver<Item>) -> Watermark {
        let mut open = true;
        while open || !self.in_flight.is_empty() || !self.refused.is_empty() {
            if !self.refused.is_empty() && self.in_flight.is_empty() {
                self.ask_again().await;
                continue;
            }
            let may_take = open && self.refused.is_empty() && self.in_flight.len() < WINDOW;
            let tick = self.due.filter(|_| self.linked);
            tokio::select! {
                item = items.recv(), if may_take => match item {
                    Some(Item::End) | None => open = false,
                    Some(item) => self.take(item).await,
                },
                Some(settled) = self.in_flight.next() => self.settle(settled),
                Ok(()) = self.books.changed() => self.replan(),
                () = tokio::time::sleep_until(tick.unwrap_or_else(Instant::now)), if tick.is_some() && may_take => {
                    self.tick().await;
                }
            }
            self.counters.in_flight(self.in_flight.len());
        }
        if self.abandoned > 0 {
            warn!(
                messages = self.abandoned,
                "ended before the broker acknowledged everything"
            );
        }
        self.watermark()
    }

    /// What the broker has: everything that is still to be told apart from what the next instance sees.
    fn watermark(self) -> Watermark {
        // What nobody has seen in this life was handed over before it.
        let mut watermark = self.before;
        for ((asset, dataset), framer) in &self.framers {
            for (point, value) in framer.last() {
                watermark.set(asset, dataset, point, value);
            }
        }
        watermark.set_events(&self.events);
        watermark
    }

    async fn take(&mut self, item: Item) {
        match item {
            Item::LinkUp(source) => {
                (self.linked, self.source) = (true, source);
                self.framers.values_mut().for_each(Framer::restart);
            }
            Item::LinkDown | Item::End => self.linked = false,
            Item::Seen(Held { observation, share }) => match observation {
                Observation::Dataset(values) => self.dataset(values, share).await,
                Observation::Event(event) => self.event(event, share).await,
                Observation::Picture(picture) => self.picture(picture, share).await,
                Observation::Gap(gap) => self.gap(&gap),
            },
        }
    }

    async fn dataset(&mut self, seen: DatasetValues, share: Share) {
        // The plan may have changed while it was on its way: what is no longer planned has no topic.
        let Some(book) = self.book(&seen.asset) else {
            return;
        };
        let Some(page) = book.datasets.get(&seen.dataset) else {
            return;
        };
        let key = (Arc::clone(&seen.asset), Arc::clone(&seen.dataset));
        let (now, goes_on) = (Instant::now(), self.goes_on);
        let framer = self.framers.entry(key.clone()).or_insert_with(|| match goes_on {
            true => Framer::going_on(Arc::clone(page), now),
            false => Framer::new(Arc::clone(page)),
        });
        framer.replan(page);
        let (mut values, mut gap) = (seen.values, None);
        values.retain(
            |(point, value)| match self.before.judge(&seen.asset, &seen.dataset, point, value) {
                Verdict::New => true,
                Verdict::Repeat => {
                    framer.know(point, value);
                    false
                }
                Verdict::AfterGap => {
                    gap.get_or_insert_with(|| value.source_timestamp.unwrap_or_else(Timestamp::now));
                    true
                }
            },
        );
        let frames = framer.take(values, now);
        let due = framer.due_at();
        if let Some(until) = gap
            && self.gaps.insert(key)
        {
            let (asset, dataset) = (Arc::clone(&seen.asset), Arc::clone(&seen.dataset));
            self.gap(&Gap {
                member: Member::Dataset { asset, dataset },
                since: until,
                until,
                cause: "the device was let go before this instance had subscribed".to_owned(),
            });
        }
        self.due = earlier(self.due, due);
        let share = Arc::new(share);
        for frame in frames {
            self.frame(&book, &seen.dataset, &page.route, &frame, Some(&share))
                .await;
        }
    }

    async fn frame(
        &mut self,
        book: &Book,
        dataset: &Arc<str>,
        route: &Route,
        frame: &Frame,
        share: Option<&Arc<Share>>,
    ) {
        let source = self.source();
        let sender = Sender {
            asset: &book.plan,
            source: &source,
        };
        let asset = Arc::from(book.plan.object.name.as_str());
        let member = Member::Dataset {
            asset,
            dataset: Arc::clone(dataset),
        };
        match sender.dataset(dataset, route, frame, Timestamp::now()) {
            Ok(record) => {
                self.publish(record, member, frame.values.len(), share.cloned())
                    .await
            }
            Err(error) => self.unwritable(&member, &error),
        }
    }

    async fn event(&mut self, event: Event, share: Share) {
        if self.before.has(&event) {
            return;
        }
        self.events.push(&event);
        let Some(book) = self.book(&event.asset) else {
            return;
        };
        let Some(route) = book
            .events
            .get(&(Arc::clone(&event.group), Arc::clone(&event.event)))
        else {
            return;
        };
        let source = self.source();
        let record = Sender {
            asset: &book.plan,
            source: &source,
        }
        .event(route, &event);
        let Event {
            asset, group, event, ..
        } = event;
        let member = Member::Event { asset, group, event };
        match record {
            Ok(record) => self.publish(record, member, 1, Some(Arc::new(share))).await,
            Err(error) => self.unwritable(&member, &error),
        }
    }

    async fn picture(&mut self, picture: Picture, share: Share) {
        let Some(book) = self.book(&picture.asset) else {
            return;
        };
        let Some(route) = book.streams.get(&picture.stream) else {
            return;
        };
        let source = self.source();
        let record = Sender {
            asset: &book.plan,
            source: &source,
        }
        .picture(route, &picture);
        let member = Member::Stream {
            asset: picture.asset,
            stream: picture.stream,
        };
        self.publish(record, member, 1, Some(Arc::new(share))).await;
    }

    fn gap(&self, gap: &Gap) {
        warn!(member = %gap.member, since = %gap.since, until = %gap.until, cause = gap.cause, "gap at the source");
        self.counters.gap(&gap.member);
    }

    fn unwritable(&self, member: &Member, error: &serde_json::Error) {
        error!(%member, %error, "message can't be written");
        self.counters.refused(member, "unwritable");
    }

    /// Numbers a message and sends it. Waits while the client has no place for it.
    async fn publish(
        &mut self,
        mut record: Record,
        member: Member,
        values: usize,
        share: Option<Arc<Share>>,
    ) {
        // What is not acknowledged is not numbered: its loss would look like an interruption of the count.
        record.number = (record.qos != Qos::AtMostOnce).then(|| self.numbers.next());
        let expiry = record.properties.expiry_seconds;
        let expires = expiry.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()));
        self.send(Pending {
            record,
            member,
            values,
            _share: share,
            expires,
        })
        .await;
    }

    async fn send(&mut self, pending: Pending) {
        match self.client.publish(&pending.record).await {
            Ok(receipt) => self.in_flight.push(settled(pending, receipt).boxed()),
            Err(error) => self.settle((pending, Err(error))),
        }
    }

    fn settle(&mut self, (pending, result): Settled) {
        let member = &pending.member;
        let error = match result {
            Ok(_) => {
                self.counters.published(
                    member,
                    pending.values,
                    pending.record.payload.len(),
                    Timestamp::now(),
                );
                self.channel.board().trouble(member, None);
                return;
            }
            Err(error) => error,
        };
        match &error {
            PublishError::Refused {
                reason: ReasonCode::QUOTA_EXCEEDED,
                ..
            } => {
                let trouble = Health::degraded(reasons::BACKLOG, error.to_string()).with_next_step(
                    "make room at the broker: its disk or a queue is full; nothing is lost meanwhile",
                );
                self.channel.board().trouble(&Member::Device, Some(trouble));
                self.refused.push_back(pending);
            }
            // The role ends: whether the broker has it is not known, and nobody is left to send it again.
            PublishError::Ended => self.abandoned += 1,
            _ => self.refused_finally(&pending, &error),
        }
    }

    fn refused_finally(&self, pending: &Pending, error: &PublishError) {
        let Pending { record, member, .. } = pending;
        let reason = match error {
            PublishError::Refused { reason, .. } => reason.name(),
            PublishError::TooLarge { .. } => "too large",
            PublishError::NotSupported { .. } => "not supported",
            _ => "unwritable",
        };
        self.counters.refused(member, reason);
        if self.counters.of(member).refused.is_power_of_two() {
            warn!(%member, topic = %record.topic, %error, "message refused");
        }
        let evidence = format!("on topic {}: {error}", record.topic);
        let trouble = Health::unhealthy("PublishRefused", evidence)
            .with_next_step("change the BrokerPolicy, or the destination of the member");
        self.channel.board().trouble(member, Some(trouble));
    }

    /// Sends again what the broker refused for want of room, each under a new number since a refusal is final for its
    /// number: first one, and when it is taken, the others.
    async fn ask_again(&mut self) {
        tokio::time::sleep(self.retry.next_delay()).await;
        let mut waiting = std::mem::take(&mut self.refused);
        waiting
            .make_contiguous()
            .sort_by_key(|pending| pending.record.number.as_ref().map(|number| number.sequence));
        while let Some(mut pending) = waiting.pop_front() {
            if pending.expires.is_some_and(|expires| expires <= Instant::now()) {
                self.counters.expired(&pending.member);
                continue;
            }
            pending.record.number = pending.record.number.map(|_| self.numbers.next());
            self.send(pending).await;
            let Some(settled) = self.in_flight.next().await else {
                continue;
            };
            self.settle(settled);
            if !self.refused.is_empty() {
                // Still full: the others keep their places behind it.
                self.refused.append(&mut waiting);
                return;
            }
        }
        self.retry.reset();
        self.channel.board().trouble(&Member::Device, None);
    }

    async fn tick(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self
            .framers
            .iter_mut()
            .filter_map(|(key, framer)| framer.tick(now).map(|frame| (key.clone(), frame)))
            .collect();
        self.due = self.framers.values().filter_map(Framer::due_at).min();
        for ((asset, dataset), frame) in due {
            let Some(book) = self.book(&asset) else { continue };
            let Some(page) = book.datasets.get(&dataset) else {
                continue;
            };
            self.frame(&book, &dataset, &page.route, &frame, None).await;
        }
    }

    fn replan(&mut self) {
        let books = Arc::clone(&self.books.borrow_and_update());
        self.framers.retain(|(asset, dataset), framer| {
            let page = books.get(asset).and_then(|book| book.datasets.get(dataset));
            page.map(|page| framer.replan(page)).is_some()
        });
    }

    fn book(&self, asset: &str) -> Option<Arc<Book>> {
        self.books.borrow().get(asset).map(Arc::clone)
    }

    fn source(&self) -> Arc<str> {
        self.source
            .clone()
            .unwrap_or_else(|| Arc::clone(&self.address.borrow()))
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

async fn settled(pending: Pending, receipt: Receipt) -> Settled {
    let result = receipt.await;
    (pending, result)
}
