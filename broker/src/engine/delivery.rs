//! A message on its way to one receiver.

use std::sync::Arc;

use foreshore_record::Qos;
use foreshore_store::EntryId;

use crate::{message::Message, shared::Group};

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

/// Whose queue a delivery comes from.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// The session's: durable if the session is, and there is an entry.
    Session,
    /// A shared subscription's.
    Group(Arc<Group>),
}
