//! Lanes of batches on the wire. Every lane has its own queue and its own credit on both ends.

use foreshore_record::Lane;

use crate::proto;

/// The lane as a message's field.
#[must_use]
pub const fn to_proto(lane: Lane) -> i32 {
    match lane {
        Lane::Alarm => proto::Lane::Alarm as i32,
        Lane::Live => proto::Lane::Live as i32,
        Lane::Backlog => proto::Lane::Backlog as i32,
        Lane::Bulk => proto::Lane::Bulk as i32,
    }
}

/// The lane of a message's field; `None` when there is no such lane.
#[must_use]
pub fn from_proto(lane: i32) -> Option<Lane> {
    match proto::Lane::try_from(lane).ok()? {
        proto::Lane::Unspecified => None,
        proto::Lane::Alarm => Some(Lane::Alarm),
        proto::Lane::Live => Some(Lane::Live),
        proto::Lane::Backlog => Some(Lane::Backlog),
        proto::Lane::Bulk => Some(Lane::Bulk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_survive_the_wire() {
        for lane in Lane::ALL {
            assert_eq!(from_proto(to_proto(lane)), Some(lane));
        }
        assert_eq!((from_proto(0), from_proto(99)), (None, None));
    }
}
