//! The end of a connection, and what it means for the session and the will (MQTT 5.0 sections 3.1.2.5 and 4.13).

use std::{borrow::Cow, collections::BTreeMap, future::poll_fn, sync::Arc, time::Duration};

use foreshore_record::{DropReason, Outcome, Qos};
use foreshore_store::StoreError;

use super::{ClientFacts, Connection, outgoing::Outgoing, transport::Transport};
use crate::{
    engine::{
        delivery::{Delivery, Origin},
        publish::NOT_CONNECTED,
    },
    inspect::trace,
    options::Redirect,
    session::state::{Held, Phase},
    shared::Group,
    wire::{ReasonCode, WireError, encode},
};

/// Longest time that a farewell may take to be sent.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// What the client is told; `None` when there is nobody to tell.
    pub(crate) reason: Option<ReasonCode>,
    /// Why, for the log and the reason string.
    pub(crate) detail: Cow<'static, str>,
    /// Whether the will is published.
    pub(crate) with_will: bool,
}

impl Ending {
    /// The broker ends the connection.
    pub(crate) fn refused(reason: ReasonCode, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason: Some(reason),
            detail: detail.into(),
            with_will: true,
        }
    }

    /// The connection broke.
    pub(crate) fn lost(detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            reason: None,
            detail: detail.into(),
            with_will: true,
        }
    }

    /// The client said good-bye.
    pub(crate) fn goodbye(with_will: bool) -> Self {
        Self {
            reason: None,
            detail: "the client disconnected".into(),
            with_will,
        }
    }

    /// The client connects anew.
    pub(crate) fn taken_over() -> Self {
        Self::refused(ReasonCode::SessionTakenOver, "the client has connected again")
    }

    /// The client is sent to another server.
    pub(crate) fn redirected(redirect: &Redirect) -> Self {
        Self::refused(redirect.reason(), redirect.server_reference.clone())
    }

    /// Nothing can be committed any more.
    pub(crate) fn store_failed(error: &StoreError) -> Self {
        Self::refused(
            ReasonCode::ServerUnavailable,
            format!("the store failed: {error}"),
        )
    }
}

impl From<WireError> for Ending {
    fn from(error: WireError) -> Self {
        Self::refused(error.reason, error.detail)
    }
}

impl From<WireError> for Box<Ending> {
    fn from(error: WireError) -> Self {
        Self::new(error.into())
    }
}

impl Connection {
    /// Ends the connection in every respect.
    pub(super) async fn end(mut self, ending: Ending) {
        tracing::debug!(
            client = %self.client.id,
            peer = %self.client.peer,
            reason = ending.reason.map(ReasonCode::text),
            detail = %ending.detail,
            "connection ends"
        );
        self.audit_end(&ending);
        if let Some(reason) = ending.reason {
            let ClientFacts {
                version,
                maximum_packet_size,
                ..
            } = self.client;
            encode::disconnect(
                version,
                reason,
                &ending.detail,
                maximum_packet_size,
                self.out.tail(),
            );
        }
        // From here on nothing new arrives.
        self.session.leave(self.location);
        self.session.pressure.clear();
        if !self.state.subscriptions.is_empty() {
            self.engine.router.touch();
        }
        self.finish_receiving().await;
        let persists = self.state.expiry > 0;
        self.return_to_groups(persists);
        self.finish_sending().await;
        let had_will = self.client.will.is_some();
        let will = self
            .client
            .will
            .take()
            .filter(|_| ending.with_will)
            .map(|will| *will);
        self.engine
            .disconnected(&self.client, had_will, self.state, will)
            .await;
        // An end of the broker must not wait for its clients.
        let unexpected = ending
            .reason
            .is_some_and(|reason| reason != ReasonCode::ServerShuttingDown);
        say_farewell(self.out, self.transport, unexpected).await;
    }

    /// What was taken in goes its way, though nobody is left to be told.
    async fn finish_receiving(&mut self) {
        while let Some(mut submitting) = self.receiving.submitting.take() {
            let outcome = poll_fn(|context| submitting.poll(context)).await;
            if self.found_room(outcome).and_then(|()| self.submit()).is_err() {
                // Nothing can be committed any more: nothing of it was taken in.
                break;
            }
        }
        let acks = std::mem::take(&mut self.receiving.acks);
        if acks.len() > 0 {
            let engine = Arc::clone(&self.engine);
            self.engine
                .spawn(format!("acknowledge {}", self.client.id), acks.finish(engine));
        }
    }

    /// Hands back what belongs to groups.
    fn return_to_groups(&mut self, persists: bool) {
        let mut returned: BTreeMap<*const Group, (Arc<Group>, Vec<Delivery>)> = BTreeMap::new();
        let mut give_back = |group: Arc<Group>, delivery: Delivery| {
            returned
                .entry(Arc::as_ptr(&group))
                .or_insert_with(|| (group, Vec::new()))
                .1
                .push(delivery);
        };
        let outbound = std::mem::take(&mut self.state.outbound);
        for (packet_id, mut in_flight) in outbound {
            let Held::Group(delivery, group) = in_flight.held else {
                if !persists && matches!(in_flight.phase, Phase::Storing | Phase::Sent) {
                    in_flight.trace(|receiver, _| trace::Hop::Dropped {
                        receiver,
                        reason: DropReason::SESSION_ENDED.to_string(),
                    });
                }
                self.state.outbound.insert(packet_id, in_flight);
                continue;
            };
            let receiver = group.receiver().filter(|_| delivery.entry != 0);
            match (in_flight.qos, receiver) {
                // [MQTT-4.8.2-4]: it is completed with this client, when it returns.
                (Qos::ExactlyOnce, Some(receiver)) if persists && self.session.receiver.is_some() => {
                    in_flight.held = Held::GroupQueue(receiver, delivery.entry);
                    self.state.outbound.insert(packet_id, in_flight);
                }
                // [MQTT-4.8.2-5]: nobody else may get what this client may have.
                (Qos::ExactlyOnce, receiver) if in_flight.phase == Phase::Sent => {
                    if let Some(leg) = &in_flight.leg {
                        leg.record(|receiver, _| trace::Hop::Dropped {
                            receiver,
                            reason: DropReason::SESSION_ENDED.to_string(),
                        });
                    }
                    if let Some(receiver) = receiver {
                        let outcome = Outcome::Dropped {
                            reason: DropReason::SESSION_ENDED,
                        };
                        self.sending
                            .settle(receiver, Some(group), delivery.entry, outcome);
                    }
                }
                _ => give_back(group, *delivery),
            }
        }
        let waiting = self
            .shard
            .leave(self.location)
            .into_iter()
            .chain(self.sending.take_waiting());
        for delivery in waiting {
            match delivery.origin.clone() {
                Origin::Group(group) => give_back(group, delivery),
                Origin::Session => delivery.misses(&self.session, NOT_CONNECTED),
            }
        }
        for subscribed in self.state.subscriptions.values() {
            if let Some(group) = &subscribed.group {
                group.disconnected(self.session.uid);
            }
        }
        for (group, deliveries) in returned.into_values() {
            for (location, delivery) in group.take_back(deliveries) {
                self.engine.send(location, delivery);
            }
        }
    }

    /// Settlements and packet identifiers that are not stored yet.
    async fn finish_sending(&mut self) {
        if let Err(error) = self.sending.finish(&self.engine).await {
            tracing::warn!(client = %self.client.id, %error, "settlements are lost, messages will be repeated");
        }
    }
}

/// Sends what is left to be sent. If the client does not expect the end, what it still sends is read and forgotten for a
/// while: closing at once would make its system discard what it has not read, our farewell included.
async fn say_farewell(mut out: Outgoing, mut transport: Transport, unexpected: bool) {
    let farewell = async {
        poll_fn(|context| out.poll_write(context, &mut transport)).await?;
        poll_fn(|context| transport.poll_shutdown(context)).await?;
        let mut forgotten = [0; 1024];
        while unexpected && poll_fn(|context| transport.poll_read(context, &mut forgotten)).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(FAREWELL, farewell).await {
        tracing::trace!(%error, "farewell was not sent");
    }
}
