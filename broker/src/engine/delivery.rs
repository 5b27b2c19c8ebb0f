//! A message on its way to one receiver.

use std::sync::Arc;

use foreshore_record::Qos;
use foreshore_store::EntryId;

use super::trace::Leg;
use crate::{
    inspect::trace::Hop,
    message::Message,
    session::{Session, rows},
    shared::Group,
};

/// A message on its way to one receiver.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    /// The message.
    pub(crate) message: Arc<Message>,
    /// Its entry in the durable queue that it comes from; 0 if it is in none.
    pub(crate) entry: EntryId,
    /// Quality of service of the delivery.
    pub(crate) qos: Qos,
    /// RETAIN flag of the delivery.
    pub(crate) retain: bool,
    /// Subscription identifiers.
    pub(crate) identifiers: Option<Arc<[u32]>>,
    /// Whose queue it comes from.
    pub(crate) origin: Origin,
}

impl Delivery {
    /// Its way to a session, if somebody asked about the message.
    pub(crate) fn leg(&self, session: &Session) -> Option<Leg> {
        let traced = self.message.traced.as_ref()?;
        Some(match &self.origin {
            Origin::Session => Leg::new(traced, rows::path_name(&session.client_id), None),
            Origin::Group(group) => Leg::new(traced, group.path_name(), Some(session.client_id.to_string())),
        })
    }

    /// It does not reach a session; if it is in no durable queue, that is its end.
    pub(crate) fn misses(&self, session: &Session, reason: &str) {
        if let Some(leg) = self.leg(session) {
            leg.record(|receiver, _| match self.entry {
                0 => Hop::Dropped {
                    receiver,
                    reason: reason.to_owned(),
                },
                _ => Hop::LeftToQueue { receiver },
            });
        }
    }
}

/// Whose queue a delivery comes from.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// The session's: durable if the session is, and there is an entry.
    Session,
    /// A shared subscription's.
    Group(Arc<Group>),
}
