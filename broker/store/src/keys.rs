//! Tables and the keys of their rows. Numbers are big-endian, so that the order of keys is the order of numbers.

use crate::entry::{Direction, EntryId, ReceiverId, Slot};

/// Bytes of a key or a value; cheap to clone.
pub(crate) type Bytes = fjall::Slice;

/// A keyspace of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Table {
    /// receiver ‖ id → how to deliver, with the record itself if it has one receiver.
    Queue,
    /// id → record, if it has several receivers.
    Body,
    /// id → references that remain, written only when one goes and others stay.
    Left,
    /// receiver → epoch, head, totals, limits.
    Path,
    /// receiver → name.
    Receiver,
    /// name → receiver.
    Name,
    /// receiver ‖ id → record with reason and stage.
    Dead,
    /// session ‖ direction ‖ packet id → state.
    Inflight,
    /// client → state.
    Session,
    /// key → entry of the state store.
    State,
    /// topic → retained message.
    Retained,
    /// client → will.
    Will,
    /// source → last number and totals.
    Source,
    /// What concerns the whole store.
    Meta,
}

impl Table {
    pub(crate) const ALL: [Self; 14] = [
        Self::Queue,
        Self::Body,
        Self::Left,
        Self::Path,
        Self::Receiver,
        Self::Name,
        Self::Dead,
        Self::Inflight,
        Self::Session,
        Self::State,
        Self::Retained,
        Self::Will,
        Self::Source,
        Self::Meta,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Body => "body",
            Self::Left => "left",
            Self::Path => "path",
            Self::Receiver => "receiver",
            Self::Name => "name",
            Self::Dead => "dead",
            Self::Inflight => "inflight",
            Self::Session => "session",
            Self::State => "state",
            Self::Retained => "retained",
            Self::Will => "will",
            Self::Source => "source",
            Self::Meta => "meta",
        }
    }

    /// Whether keys are names, such as client identifiers and topics, which an encrypted store hides.
    pub(crate) const fn is_named(self) -> bool {
        matches!(
            self,
            Self::Name | Self::Session | Self::State | Self::Retained | Self::Will | Self::Source
        )
    }

    /// Whether each key is written once, then removed at most once, but for rows that
    /// an encrypted store seals anew. Only then may a removal be weak: it vanishes
    /// together with the row as soon as compaction brings the two together.
    pub(crate) const fn written_once(self) -> bool {
        matches!(self, Self::Queue | Self::Body | Self::Dead)
    }
}

/// Key of a row that belongs to a receiver's entry: in the queue or among the dead letters.
pub(crate) fn entry(receiver: ReceiverId, id: EntryId) -> [u8; 16] {
    pair(receiver, id)
}

/// First key behind all entries of a receiver.
pub(crate) fn after_entries(receiver: ReceiverId) -> [u8; 16] {
    pair(receiver.saturating_add(1), 0)
}

fn pair(high: u64, low: u64) -> [u8; 16] {
    ((u128::from(high) << 64) | u128::from(low)).to_be_bytes()
}

/// Receiver and id of an entry's key.
pub(crate) fn split_entry(key: &[u8]) -> Option<(ReceiverId, EntryId)> {
    let both = u128::from_be_bytes(key.try_into().ok()?);
    Some(((both >> 64) as u64, both as u64))
}

/// Key of a row that belongs to a receiver or a message.
pub(crate) fn number(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

pub(crate) fn split_number(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

/// Key of a message in flight.
pub(crate) fn slot(slot: Slot) -> Bytes {
    let mut key = [0; 11];
    key[..8].copy_from_slice(&slot.session.to_be_bytes());
    key[8] = slot.direction as u8;
    key[9..].copy_from_slice(&slot.packet_id.to_be_bytes());
    key.into()
}

pub(crate) fn split_slot(key: &[u8]) -> Option<Slot> {
    let (session, rest) = key.split_first_chunk::<8>()?;
    let (direction, packet_id) = rest.split_first()?;
    let direction = match direction {
        0 => Direction::Inbound,
        1 => Direction::Outbound,
        _ => return None,
    };
    let packet_id = u16::from_be_bytes(packet_id.try_into().ok()?);
    Some(Slot {
        session: u64::from_be_bytes(*session),
        direction,
        packet_id,
    })
}

/// Row of [`Table::Meta`] with the store's position.
pub(crate) const POSITION: &[u8] = b"position";

/// Rows of [`Table::Meta`] with the epochs of openings, by the first id of each.
pub(crate) const OPENING: &[u8] = b"opening/";

/// Rows of [`Table::Meta`] with the receivers whose rows are still to be removed.
pub(crate) const GRAVE: &[u8] = b"grave/";

/// Rows of [`Table::Meta`] with the totals of paths that ended, by kind.
pub(crate) const ENDED: &[u8] = b"ended/";

/// Row of [`Table::Meta`] with the limits by topic filter and their totals.
pub(crate) const TOPICS: &[u8] = b"topics";

/// Key of a numbered row of [`Table::Meta`].
pub(crate) fn meta_number(prefix: &[u8], number: u64) -> Bytes {
    [prefix, &number.to_be_bytes()].concat().into()
}

/// Key of a named row of [`Table::Meta`].
pub(crate) fn meta_name(prefix: &[u8], name: &str) -> Bytes {
    [prefix, name.as_bytes()].concat().into()
}

/// First key behind all that begin with a prefix that does not end in 0xFF.
pub(crate) fn after_prefix(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end.into()
}

/// First key behind the given one.
pub(crate) fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_their_numbers_do() {
        assert!(entry(1, u64::MAX) < entry(2, 0));
        assert!(entry(7, u64::MAX) < after_entries(7));
        assert_eq!(split_entry(&entry(7, 9)), Some((7, 9)));
        let place = Slot {
            session: 5,
            direction: Direction::Outbound,
            packet_id: 0xABCD,
        };
        assert_eq!(split_slot(&slot(place)), Some(place));
        assert_eq!(split_slot(&[0; 10]), None);
    }

    #[test]
    fn a_prefix_ends_before_its_successor() {
        assert!(meta_number(GRAVE, u64::MAX) < after_prefix(GRAVE));
        assert!(meta_name(ENDED, "zzz") < after_prefix(ENDED));
        assert!(successor(b"a").as_ref() > b"a".as_slice());
    }
}
