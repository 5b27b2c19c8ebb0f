//! Sessions: what the broker knows of a client beyond its connection (MQTT 5.0 section 4.1).

pub(crate) mod lifecycle;
mod load;
pub(crate) mod registry;
pub(crate) mod rows;
pub(crate) mod state;

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use foreshore_store::ReceiverId;

use crate::{
    engine::pressure::{Congestion, Pressure},
    message::SessionUid,
    wire::packet::SubscribeOptions,
};

/// The part of a session that all shards see.
#[derive(Debug)]
pub(crate) struct Session {
    /// Unique in the life of this process, and never reused.
    pub(crate) uid: SessionUid,
    /// The client.
    pub(crate) client_id: Arc<str>,
    /// Its durable queue, if the session outlives its connection.
    pub(crate) receiver: Option<ReceiverId>,
    /// Whether publishers are to wait for it.
    pub(crate) pressure: Pressure,
    location: AtomicU64,
}

/// Where the connection of a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// The shard.
    pub(crate) shard: u8,
    /// The place in the shard's table.
    pub(crate) slot: u32,
    /// Which use of that place.
    pub(crate) generation: u32,
}

const OFFLINE: u64 = 0;
const SLOT_BITS: u32 = 24;

/// Most connections of one shard.
pub(crate) const MAX_SLOTS: u32 = 1 << SLOT_BITS;

impl Session {
    pub(crate) fn new(
        uid: SessionUid,
        client_id: Arc<str>,
        receiver: Option<ReceiverId>,
        total: Arc<Congestion>,
    ) -> Self {
        Self {
            uid,
            client_id,
            receiver,
            pressure: Pressure::new(total),
            location: AtomicU64::new(OFFLINE),
        }
    }

    /// Where its connection is; `None` without one.
    ///
    /// Sequentially consistent, as is [`Session::set_location`]: a publisher that submitted a message and then sees no
    /// connection submitted before the connection's own barrier (see `connection::drain`).
    pub(crate) fn location(&self) -> Option<Location> {
        Location::unpack(self.location.load(Ordering::SeqCst))
    }

    /// Says where its connection is.
    pub(crate) fn set_location(&self, location: Option<Location>) {
        self.location
            .store(location.map_or(OFFLINE, Location::pack), Ordering::SeqCst);
    }

    /// Says that this connection is gone, unless another has taken its place.
    pub(crate) fn leave(&self, location: Location) {
        // A failed exchange means that the session lives elsewhere already.
        let _elsewhere =
            self.location
                .compare_exchange(location.pack(), OFFLINE, Ordering::SeqCst, Ordering::SeqCst);
    }
}

impl Location {
    fn pack(self) -> u64 {
        ((u64::from(self.shard) + 1) << (SLOT_BITS + 32))
            | (u64::from(self.slot) << 32)
            | u64::from(self.generation)
    }

    fn unpack(packed: u64) -> Option<Self> {
        let shard = (packed >> (SLOT_BITS + 32)).checked_sub(1)?;
        Some(Self {
            shard: shard as u8,
            slot: (packed >> 32) as u32 & (MAX_SLOTS - 1),
            generation: packed as u32,
        })
    }
}

/// A subscription of a session.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Subscription {
    /// Its options.
    pub(crate) options: SubscribeOptions,
    /// The client's identifier for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identifier: Option<NonZeroU32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_survive_packing() {
        for location in [
            Location {
                shard: 0,
                slot: 0,
                generation: 0,
            },
            Location {
                shard: 254,
                slot: MAX_SLOTS - 1,
                generation: u32::MAX,
            },
        ] {
            assert_eq!(Location::unpack(location.pack()), Some(location));
        }
        assert_eq!(Location::unpack(OFFLINE), None);
    }

    #[test]
    fn a_connection_that_ends_late_does_not_hide_its_successor() {
        let session = Session::new(1, "c".into(), None, Arc::default());
        let (old, new) = (
            Location {
                shard: 0,
                slot: 1,
                generation: 1,
            },
            Location {
                shard: 1,
                slot: 7,
                generation: 3,
            },
        );
        session.set_location(Some(old));
        session.set_location(Some(new));
        session.leave(old);
        assert_eq!(session.location(), Some(new));
        session.leave(new);
        assert_eq!(session.location(), None);
    }
}
