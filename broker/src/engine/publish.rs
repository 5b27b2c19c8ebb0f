//! What a message means for store, receivers and retained messages.

use std::sync::Arc;

use foreshore_store::{Applied, EntryFlags, EntryId, Operation, ReceiverId, Slot, StoreError};

use super::{
    Engine,
    delivery::{Delivery, Origin},
    route::{Route, Target},
    shard::{Fanout, Shard, ShardItem},
};
use crate::{
    engine::trace::Traced, inspect::trace, message::Message, session::rows, shared::GroupOffer,
    wire::properties,
};

/// Why a message that is in no durable queue reaches nobody: too much waits for its receiver.
pub(crate) const NO_ROOM: &str = "no_room";

/// Why a message that is in no durable queue reaches nobody: its receiver is away.
pub(crate) const NOT_CONNECTED: &str = "not_connected";

/// A message that is about to be delivered.
#[derive(Clone, Debug)]
pub(crate) struct Outbound {
    /// The message.
    pub(crate) message: Arc<Message>,
    /// Who gets it.
    pub(crate) route: Arc<Route>,
}

impl Engine {
    /// What is to be stored of a message; `None` when nothing is.
    pub(crate) fn operation(&self, outbound: &Outbound, receipt: Option<Slot>) -> Option<Operation> {
        let Outbound { message, route } = outbound;
        let receivers = durable_receivers(route, message);
        let needed = !receivers.is_empty() || message.retain || message.number.is_some();
        needed.then(|| {
            Operation::Publish(foreshore_store::Publish {
                message: message.to_stored(),
                receivers,
                update_retained: message.retain,
                receipt,
            })
        })
    }

    /// Delivers a message to everybody who is connected; `entry` is 0 when nothing was stored. `local` is the shard that
    /// this runs on, if it runs on one.
    pub(crate) fn fan_out(self: &Arc<Self>, local: Option<&Shard>, outbound: &Outbound, entry: EntryId) {
        let Outbound { message, route } = outbound;
        if let Some(traced) = &message.traced {
            self.trace_route(traced, outbound, entry);
        }
        if message.retain {
            self.retained.put(entry, &message.without_number());
        }
        let epoch = self.router.epoch();
        let route = if route.epoch == epoch {
            Arc::clone(route)
        } else {
            Arc::new(route.relocated(epoch))
        };
        for (index, targets) in route.shards.iter().enumerate() {
            let fanout = Fanout {
                message: Arc::clone(message),
                route: Arc::clone(&route),
                index,
                entry,
            };
            match local {
                Some(shard) if shard.index == targets.shard => shard.fan_out(&fanout),
                _ => {
                    if let Some(mailbox) = self.shards.get(usize::from(targets.shard)) {
                        mailbox.send(ShardItem::Fanout(fanout), message.weight());
                    }
                }
            }
        }
        for group in &route.groups {
            let durable = message.is_queued(group.qos().min(message.qos));
            match group.offer(message, if durable { entry } else { 0 }) {
                GroupOffer::Deliver(location, delivery) => self.send(location, delivery),
                GroupOffer::Kept => {}
                GroupOffer::Dropped => {
                    self.stats.dropped_live.inc();
                    message.count_dropped();
                    message.trace(|| trace::Hop::Dropped {
                        receiver: group.path_name(),
                        reason: NO_ROOM.to_owned(),
                    });
                }
            }
            if group.begin_reading() {
                self.drain_group(Arc::clone(group));
            }
        }
    }

    /// Records who is to get a message.
    fn trace_route(&self, traced: &Arc<Traced>, Outbound { message, route }: &Outbound, entry: EntryId) {
        if entry > 0 {
            self.tracer.submitted(traced, entry);
        }
        let mut routed = 0;
        for (index, target) in route.targets.iter().enumerate() {
            if traced.is_full() {
                traced.leave_out(route.targets.len() - index);
                break;
            }
            let Some(want) = target.want(message.publisher) else {
                continue;
            };
            let qos = want.qos.min(message.qos);
            let queue = target.session.receiver.filter(|_| message.is_queued(qos));
            let connected = target.session.location().is_some();
            let receiver = rows::path_name(&target.session.client_id);
            traced.routed(receiver.clone(), qos, queue, Some(connected));
            if queue.is_none() && !connected {
                traced.record(trace::Hop::Dropped {
                    receiver,
                    reason: NOT_CONNECTED.to_owned(),
                });
            }
            routed += 1;
        }
        for group in &route.groups {
            let qos = group.qos().min(message.qos);
            let queue = group.receiver().filter(|_| message.is_queued(qos));
            traced.routed(group.path_name(), qos, queue, Some(group.is_connected()));
        }
        for path in &route.paths {
            traced.routed(path.name.clone(), message.qos, Some(path.receiver), None);
        }
        if routed + route.groups.len() + route.paths.len() == 0 {
            traced.record(trace::Hop::Unrouted);
        }
    }

    /// Tells the readers of dataflows' queues that an entry is durable.
    pub(crate) fn committed(&self, route: &Route, entry: EntryId) {
        for path in &route.paths {
            path.committed(entry);
        }
    }

    /// Publishes a message that comes from no connection, together with other operations, and waits until all of it is
    /// durable.
    ///
    /// # Errors
    /// When nothing can be committed any more.
    pub(crate) async fn publish(
        self: &Arc<Self>,
        message: Message,
        also: Vec<Operation>,
    ) -> Result<(), StoreError> {
        let route = Arc::new(self.router.route(message.topic.as_str()));
        let properties = || properties::decode(&message.properties, None);
        let traced = self
            .tracer
            .begin(&message.topic, properties, || trace::Hop::Received {
                client: None,
                listener: None,
                qos: message.qos,
                packet_id: 0,
                dup: false,
                retain: message.retain,
                bytes: message.payload.len(),
            });
        let message = Message {
            shared: route.is_shared(),
            traced: traced.clone(),
            ..message
        };
        let outbound = Outbound {
            message: Arc::new(message),
            route,
        };
        let stored = self.operation(&outbound, None);
        let is_stored = stored.is_some();
        let operations: Vec<_> = stored.into_iter().chain(also).collect();
        let (mut entry, mut applied) = (0, Vec::new());
        if !operations.is_empty() {
            // What comes from no connection has nobody who could repeat it: it is delivered when it is durable.
            if let Some(traced) = traced.as_ref().filter(|_| is_stored) {
                traced.submits();
            }
            let submitted = self.committer.submit(operations).await?;
            entry = if is_stored { submitted.first_id } else { 0 };
            applied = submitted.completion.await?;
            if let Some(Applied::Refused(refusal)) = applied.first() {
                if let Some(traced) = &traced {
                    traced.not_stored(refusal);
                }
                tracing::warn!(topic = %outbound.message.topic, ?refusal, "message of the broker was refused");
                self.stats.refused.inc();
                return Ok(());
            }
        }
        if let Some(traced) = traced.as_ref().filter(|_| is_stored) {
            traced.stored(entry);
        }
        self.fan_out(None, &outbound, entry);
        if let (Some(traced), Some(Applied::Published { passed_over, .. })) = (&traced, applied.first()) {
            traced.passed_over(passed_over);
        }
        self.committed(&outbound.route, entry);
        Ok(())
    }
}

impl Target {
    /// How the session gets a message, if it wants it.
    pub(crate) fn delivery(&self, message: &Arc<Message>, entry: EntryId) -> Option<Delivery> {
        let want = self.want(message.publisher)?;
        let qos = want.qos.min(message.qos);
        let durable = message.is_queued(qos) && self.session.receiver.is_some();
        Some(Delivery {
            message: Arc::clone(message),
            entry: if durable { entry } else { 0 },
            qos,
            retain: want.retain_as_published && message.retain,
            identifiers: want.identifiers.clone(),
            origin: Origin::Session,
        })
    }
}

/// The durable queues that a message enters.
fn durable_receivers(route: &Route, message: &Arc<Message>) -> Vec<(ReceiverId, EntryFlags)> {
    let mut receivers = Vec::new();
    if message.is_queued(message.qos) {
        for target in &route.targets {
            let (Some(receiver), Some(want)) = (target.session.receiver, target.want(message.publisher))
            else {
                continue;
            };
            let qos = want.qos.min(message.qos);
            if message.is_queued(qos) {
                let identifiers = want.identifiers.as_deref().unwrap_or_default().to_vec();
                let retain = want.retain_as_published && message.retain;
                receivers.push((
                    receiver,
                    EntryFlags {
                        qos,
                        retain,
                        subscription_identifiers: identifiers,
                    },
                ));
            }
        }
        for group in &route.groups {
            let qos = group.qos().min(message.qos);
            if let (Some(receiver), true) = (group.receiver(), message.is_queued(qos)) {
                let flags = EntryFlags {
                    qos,
                    retain: message.retain,
                    ..EntryFlags::default()
                };
                receivers.push((receiver, flags));
            }
        }
    }
    // A dataflow keeps whatever is published, however it was published: its user asked for the topic.
    for path in &route.paths {
        let flags = EntryFlags {
            qos: message.qos,
            retain: message.retain,
            ..EntryFlags::default()
        };
        receivers.push((path.receiver, flags));
    }
    receivers
}
