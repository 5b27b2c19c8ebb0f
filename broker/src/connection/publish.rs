//! PUBLISH from the client (MQTT 5.0 section 3.3).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use foreshore_record::{Qos, SourceNumber, TopicName, topic::InvalidTopic};
use foreshore_store::{BrokerTime, Direction, Operation};

use super::{
    Connection,
    acks::{AckItem, What},
    command,
    ending::Ending,
    inbound::Relief,
};
use crate::{
    audit::Action,
    engine::{
        mailbox::Mailbox, pressure::Pressure, publish::Outbound, route::Route, shard::ShardItem,
        topics::Topic, trace::Traced,
    },
    inspect::trace,
    message::Message,
    options::Limits,
    session::Session,
    shared::Group,
    state_store,
    wire::{ReasonCode, properties, publish::Publish},
};

/// Longest time that a publisher waits for a receiver that has too much to do; then it counts as slow.
const PATIENCE: Duration = Duration::from_millis(500);

/// Topics that only the broker itself publishes to.
const RESERVED: &str = "$SYS/";

/// What a publisher waits for before its next packet is looked at.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// A receiver that has too much to do.
    receiver: Option<(Congested, Relief)>,
    /// The rate that is allowed.
    rate: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// Who has too much to do.
#[derive(Debug)]
pub(super) enum Congested {
    Session(Arc<Session>),
    Group(Arc<Group>),
    Shard(Arc<Mailbox<ShardItem>>),
}

/// Why a message is not taken in.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: ReasonCode,
    /// What a role of ours is told besides.
    pub(super) detail: Option<Arc<str>>,
}

impl From<ReasonCode> for Refused {
    fn from(reason: ReasonCode) -> Self {
        Self { reason, detail: None }
    }
}

impl Congested {
    fn pressure(&self) -> &Pressure {
        match self {
            Self::Session(session) => &session.pressure,
            Self::Group(group) => &group.pressure,
            Self::Shard(mailbox) => mailbox.pressure(),
        }
    }
}

impl Waiting {
    /// Whether there is nothing to wait for.
    pub(super) fn is_over(&self) -> bool {
        self.receiver.is_none() && self.rate.is_none()
    }

    /// Waits; tells whether that is over.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> bool {
        if let Some((who, relief)) = &mut self.receiver
            && let Poll::Ready(relieved) = relief.poll(context)
        {
            if !relieved {
                who.pressure().give_up();
            }
            self.receiver = None;
        }
        if let Some(sleep) = &mut self.rate
            && sleep.as_mut().poll(context).is_ready()
        {
            self.rate = None;
        }
        self.is_over()
    }
}

impl Connection {
    /// Takes a message in.
    pub(super) fn on_publish(&mut self, publish: &Publish<'_>) -> Result<(), Box<Ending>> {
        let Topic {
            name: topic,
            route,
            counted,
        } = self.topic_of(publish)?;
        let route = self.narrowed(route, &topic);
        // What the broker publishes to look at itself is no client's: totals and topics leave it out.
        let counted = counted.filter(|_| !self.client.principal.is_probe());
        if let Some(counted) = &counted {
            counted.count_received(publish.payload.len());
        }
        self.count_publish(publish)?;
        let traced = self.begin_trace(publish, &topic);
        if publish.qos == Qos::ExactlyOnce && !self.state.inbound.insert(publish.packet_id) {
            // It was taken in before: it is acknowledged again and not delivered again ([MQTT-4.3.3-10]).
            self.receiving.unacknowledged -= 1;
            if let Some(traced) = &traced {
                traced.record(trace::Hop::Repeated);
            }
            self.answer(publish, ReasonCode::Success.into(), None, traced);
            return Ok(());
        }
        let now = self.engine.now();
        let number = self.number_of(publish)?;
        let mut message = Message {
            traced,
            counted,
            ..self.message(publish, topic, &route, number, now)
        };
        if let Err(refused) = self.judge(&mut message) {
            self.refuse(publish, message, refused);
            return Ok(());
        }
        message.trace(|| trace::Hop::Allowed);
        if state_store::is_request(&message.topic) {
            return self.on_request(publish, message);
        }
        self.take_in(publish, Arc::new(message), route);
        Ok(())
    }

    /// What the broker publishes to look at its own listener comes back to that connection and goes to nobody else.
    fn narrowed(&self, route: Arc<Route>, topic: &TopicName) -> Arc<Route> {
        if !self.client.principal.is_probe() {
            return route;
        }
        let router = &self.engine.router;
        let own = router.route(topic.as_str()).only(self.session.uid);
        Arc::new(own.relocated(router.epoch()))
    }

    /// Begins to trace a message, if somebody wants that.
    fn begin_trace(&self, publish: &Publish<'_>, topic: &TopicName) -> Option<Arc<Traced>> {
        if self.client.principal.is_probe() {
            return None;
        }
        let properties = || {
            let mut forwarded = BytesMut::new();
            publish.properties.put_forwarded(&mut forwarded);
            properties::decode(&forwarded, None)
        };
        self.engine
            .tracer
            .begin(topic, properties, || trace::Hop::Received {
                client: Some(self.client.id.to_string()),
                listener: Some(self.client.listener.name.to_string()),
                qos: publish.qos,
                packet_id: publish.packet_id,
                dup: publish.dup,
                retain: publish.retain,
                bytes: publish.payload.len(),
            })
    }

    fn take_in(&mut self, publish: &Publish<'_>, message: Arc<Message>, route: Arc<Route>) {
        let repeated = message
            .number
            .as_ref()
            .is_some_and(|number| !self.engine.sources.advance(number));
        let reason = if route.is_empty() {
            ReasonCode::NoMatchingSubscribers
        } else {
            ReasonCode::Success
        };
        let traced = message.traced.clone();
        let outbound = Outbound { message, route };
        let receipt = match publish.qos {
            Qos::ExactlyOnce => self.state.slot(Direction::Inbound, publish.packet_id),
            _ => None,
        };
        self.find_congestion(&outbound.route);
        let burst = &mut self.receiving.burst;
        let first = burst.ids;
        let operation = self
            .engine
            .operation(&outbound, receipt)
            .map(|operation| burst.operation(operation));
        if let Some(traced) = &traced {
            if repeated {
                traced.record(trace::Hop::Repeated);
            }
            if operation.is_some() {
                traced.submits();
            }
        }
        // With quality of service 2 nobody sees a message that might still be refused and come again.
        let late = operation.is_some() && publish.qos == Qos::ExactlyOnce;
        let route =
            (operation.is_some() && !outbound.route.paths.is_empty()).then(|| Arc::clone(&outbound.route));
        let mut delayed = None;
        if late && !repeated {
            delayed = Some(outbound);
        } else if !repeated {
            burst.outbound.push((outbound, operation.map(|_| first)));
        }
        if operation.is_some() || publish.qos != Qos::AtMostOnce {
            let what = What::Message {
                packet_id: publish.packet_id,
                qos: publish.qos,
                reason,
                detail: None,
                delayed,
                route,
                traced,
            };
            burst.items.push(AckItem { operation, what });
        }
    }

    /// The topic of a message, by name or by alias, and who gets it.
    fn topic_of(&mut self, publish: &Publish<'_>) -> Result<Topic, Box<Ending>> {
        let found = if publish.topic.is_empty() {
            let known = publish.properties.alias.and_then(|alias| {
                self.receiving
                    .aliases
                    .get(usize::from(alias).checked_sub(1)?)?
                    .clone()
            });
            let Some(name) = known else {
                return Err(
                    Ending::refused(ReasonCode::TopicAliasInvalid, "topic alias is not known").into(),
                );
            };
            self.shard.topic(name.as_str())
        } else {
            self.shard.topic(publish.topic)
        };
        let topic = found.map_err(|invalid| match invalid {
            InvalidTopic::TooManyLevels { .. } => {
                Ending::refused(ReasonCode::TopicNameInvalid, "topic has too many levels")
            }
            _ => Ending::refused(ReasonCode::TopicNameInvalid, "topic name is not valid"),
        })?;
        if let Some(alias) = publish.properties.alias {
            let allowed = self.engine.limits.load().max_topic_aliases;
            if alias > allowed {
                return Err(
                    Ending::refused(ReasonCode::TopicAliasInvalid, "topic alias is too large").into(),
                );
            }
            if !publish.topic.is_empty() {
                let index = usize::from(alias) - 1;
                let aliases = &mut self.receiving.aliases;
                aliases.resize_with(aliases.len().max(index + 1), || None);
                aliases[index] = Some(topic.name.clone());
            }
        }
        Ok(topic)
    }

    /// Counts a message against the client's bounds.
    fn count_publish(&mut self, publish: &Publish<'_>) -> Result<(), Box<Ending>> {
        if !self.client.principal.is_probe() {
            let stats = &self.engine.stats;
            stats.received.inc();
            stats.received_bytes.inc_by(publish.payload.len() as u64);
        }
        self.client.counted.traffic.count_received(publish.payload.len());
        let limits = self.engine.limits.load();
        if publish.qos != Qos::AtMostOnce {
            self.receiving.unacknowledged += 1;
            // Clients below version 5 were not told of it; reading pauses for them instead.
            if self.client.version.is_v5()
                && self.receiving.unacknowledged > usize::from(limits.receive_maximum)
            {
                let detail = "more messages are in flight than the receive maximum allows";
                return Err(Ending::refused(ReasonCode::ReceiveMaximumExceeded, detail).into());
            }
        }
        self.keep_pace(&limits);
        Ok(())
    }

    /// Counts a message against the rates that are allowed, and makes the client wait when it comes too early.
    fn keep_pace(&mut self, limits: &Limits) {
        let (own, total) = (limits.max_publish_rate, limits.max_total_publish_rate);
        if own.or(total).is_none() || self.client.principal.is_probe() {
            return;
        }
        let now = Instant::now();
        let own = own.and_then(|rate| self.receiving.pace.count(rate, now));
        let total = total.and_then(|rate| self.engine.pace.lock().count(rate, now));
        if let Some(until) = own.max(total) {
            self.engine.stats.publish_rate_waits.inc();
            let until = tokio::time::sleep_until(until.into());
            self.receiving.waiting.rate = Some(Box::pin(until));
        }
    }

    /// The number of a message, if it has one and its publisher is believed.
    fn number_of(&self, publish: &Publish<'_>) -> Result<Option<SourceNumber>, Box<Ending>> {
        if !publish.properties.has_user || !self.client.principal.is_own_role() {
            return Ok(None);
        }
        let mut forwarded = BytesMut::new();
        publish.properties.put_forwarded(&mut forwarded);
        SourceNumber::from_properties(&properties::decode(&forwarded, None)).map_err(|_| {
            Ending::refused(ReasonCode::ProtocolError, "the number of a record is malformed").into()
        })
    }

    fn message(
        &self,
        publish: &Publish<'_>,
        topic: TopicName,
        route: &Route,
        number: Option<SourceNumber>,
        now: BrokerTime,
    ) -> Message {
        let (properties, payload) = copy(publish);
        let limits = self.engine.limits.load();
        let longest = limits.max_message_expiry;
        let expiry = match (publish.properties.expiry, longest) {
            (Some(asked), Some(longest)) => Some(asked.min(longest)),
            (asked, longest) => asked.or(longest),
        };
        Message {
            qos: publish.qos,
            retain: publish.retain,
            expiry: publish.properties.expiry,
            expires_at: expiry.map(|seconds| now.after(Duration::from_secs(seconds.into()))),
            publisher: self.session.uid,
            number,
            queue_qos0: limits.queue_qos0,
            shared: route.is_shared(),
            ..Message::new(topic, payload, properties)
        }
    }

    /// Whether a message may be taken in.
    fn judge(&self, message: &mut Message) -> Result<(), Refused> {
        let reserved = message.topic.as_str().starts_with(RESERVED) && !self.client.principal.is_probe();
        if reserved || state_store::is_reserved(&message.topic) {
            return Err(ReasonCode::NotAuthorized.into());
        }
        if command::is_command(&message.topic) {
            self.judge_command(message)?;
        }
        if let Err(denied) = self
            .client
            .permissions
            .may_publish(&message.topic, message.qos, message.retain)
        {
            message.trace(|| trace::Hop::Denied {
                rule: denied.rule().to_owned(),
            });
            tracing::info!(
                client = %self.client.id,
                user = self.client.principal.username,
                topic = %message.topic,
                rule = denied.rule(),
                "publish refused"
            );
            self.audit_denied(Action::Publish, message.topic.as_str(), denied.rule(), None);
            return Err(self.policy_refusal().into());
        }
        let limits = self.engine.limits.load();
        if message.retain
            && !message.payload.is_empty()
            && !self.engine.retained.has_room(message, limits.retained())
        {
            return Err(ReasonCode::QuotaExceeded.into());
        }
        Ok(())
    }

    /// Refuses a message; for one of ours the refusal is final for its number.
    pub(super) fn refuse(&mut self, publish: &Publish<'_>, message: Message, refused: Refused) {
        self.engine.stats.refused.inc();
        self.client.counted.traffic.count_refused();
        if let Some(counted) = &message.counted {
            counted.count_refused();
        }
        message.trace(|| trace::Hop::Refused {
            reason: refused.reason.text(),
        });
        let traced = message.traced;
        let operation = message.number.map(|number| {
            self.engine.sources.advance(&number);
            self.receiving.burst.operation(Operation::Refuse { number })
        });
        self.answer(publish, refused, operation, traced);
    }

    /// Answers a message that is not delivered.
    fn answer(
        &mut self,
        publish: &Publish<'_>,
        refused: Refused,
        operation: Option<usize>,
        traced: Option<Arc<Traced>>,
    ) {
        if publish.qos == Qos::AtMostOnce && operation.is_none() {
            return;
        }
        let Publish { packet_id, qos, .. } = *publish;
        let what = What::Message {
            packet_id,
            qos,
            reason: refused.reason,
            detail: refused.detail,
            delayed: None,
            route: None,
            traced,
        };
        self.receiving.burst.items.push(AckItem { operation, what });
    }

    /// Remembers to wait if somebody who gets the message has too much to do.
    fn find_congestion(&mut self, route: &Route) {
        if !self.engine.congestion.any() || self.receiving.waiting.receiver.is_some() {
            return;
        }
        let shards = route
            .shards
            .iter()
            .filter_map(|targets| self.engine.shards.get(usize::from(targets.shard)));
        let mut candidates = shards
            .map(|mailbox| Congested::Shard(Arc::clone(mailbox)))
            .chain(
                // Whoever waits for itself waits in vain.
                route
                    .targets
                    .iter()
                    .filter(|target| target.session.uid != self.session.uid)
                    .map(|target| Congested::Session(Arc::clone(&target.session))),
            )
            .chain(
                route
                    .groups
                    .iter()
                    .map(|group| Congested::Group(Arc::clone(group))),
            );
        self.receiving.waiting.receiver = candidates.find_map(|who| {
            let relieved = who.pressure().relieved()?;
            Some((who, Relief::new(relieved, PATIENCE)))
        });
    }
}

/// Copies what is kept of a packet out of the input, into one allocation.
fn copy(publish: &Publish<'_>) -> (Bytes, Bytes) {
    let forwarded = publish.properties.forwarded_len();
    let mut copy = BytesMut::with_capacity(forwarded + publish.payload.len());
    publish.properties.put_forwarded(&mut copy);
    copy.put_slice(publish.payload);
    let mut properties = copy.freeze();
    let payload = properties.split_off(forwarded);
    (properties, payload)
}
