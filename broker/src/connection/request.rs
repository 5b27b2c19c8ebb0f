//! Requests to the state store: taken by the broker itself, and routed to nobody.
//!
//! A request is handled in its place among the client's messages: what came before it is submitted before it, and nothing
//! is looked at behind it until it is submitted.

use std::sync::Arc;

use foreshore_record::Qos;
use foreshore_store::Room;

use super::{
    Connection,
    acks::{AckBatch, AckItem, Durable, What},
    ending::Ending,
    inbound::Submitting,
    publish::Refused,
};
use crate::{
    engine::trace::Traced,
    inspect::trace,
    message::Message,
    state_store::{NoRequest, Request},
    wire::{ReasonCode, publish::Publish},
};

/// A request that is not submitted yet.
#[derive(Debug)]
pub(super) struct Pending {
    packet_id: u16,
    request: Request,
    traced: Option<Arc<Traced>>,
}

impl Connection {
    /// Takes a request.
    pub(super) fn on_request(&mut self, publish: &Publish<'_>, message: Message) -> Result<(), Box<Ending>> {
        match Request::read(&message) {
            Ok(request) => {
                let packet_id = publish.packet_id;
                message.trace(|| trace::Hop::Requested);
                self.receiving.request = Some(Box::new(Pending {
                    packet_id,
                    request,
                    traced: message.traced,
                }));
                Ok(())
            }
            Err(NoRequest::Refused(detail)) => {
                tracing::info!(client = %self.client.id, detail, "request to the state store refused");
                self.refuse(publish, message, Refused::from(ReasonCode::PayloadFormatInvalid));
                Ok(())
            }
            Err(NoRequest::Forbidden(detail)) => {
                Err(Ending::refused(ReasonCode::TopicNameInvalid, detail).into())
            }
        }
    }

    /// Submits the request if there is room for it, or waits for that.
    pub(super) fn submit_request(&mut self) -> Result<(), Box<Ending>> {
        let Some(pending) = &self.receiving.request else {
            return Ok(());
        };
        let weight = pending.request.weight();
        let committer = &self.engine.committer;
        match committer
            .try_reserve(weight)
            .map_err(|error| Ending::store_failed(&error))?
        {
            Some(room) => self.serve_request(room),
            None => {
                let committer = committer.clone();
                let reserve = async move { committer.reserve(weight).await };
                self.receiving.submitting = Some(Submitting::Request(Box::pin(reserve)));
                Ok(())
            }
        }
    }

    /// Takes the registrations for notifications away without the client having asked for it.
    pub(super) fn remove_watches(&mut self) {
        for operation in self.engine.state_store.forget(&self.state) {
            self.sending.operation(operation);
        }
        self.state.watches.clear();
    }

    /// Does what the request asks for.
    pub(super) fn serve_request(&mut self, room: Room) -> Result<(), Box<Ending>> {
        let Some(pending) = self.receiving.request.take() else {
            return Ok(());
        };
        let Pending {
            packet_id,
            request,
            traced,
        } = *pending;
        let answered = self.engine.serve(&mut self.state, &request, room);
        let answered = answered.map_err(|error| Ending::store_failed(&error))?;
        let what = What::Message {
            packet_id,
            qos: Qos::AtLeastOnce,
            reason: ReasonCode::Success,
            detail: None,
            delayed: None,
            route: None,
            traced,
        };
        self.receiving.acks.push(AckBatch {
            completion: Some(Durable::Request(answered)),
            items: vec![AckItem {
                operation: None,
                what,
            }],
        });
        Ok(())
    }
}
