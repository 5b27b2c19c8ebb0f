//! The receiving end of the lanes: credit, and batches put together from their parts.
//!
//! Each lane of each stream has credit of its own, so a lane that is slow holds up no other. Bytes count as held from
//! their arrival until their batch is done, and the credit is what may be held; only a batch that is larger than the
//! whole credit is let through while nothing else of its lane is held.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use foreshore_edgelink::{
    lane::{from_proto, to_proto},
    proto,
};
use foreshore_record::Lane;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Unit of the memory that batches of all edges share, in bytes: permits of a semaphore are counted in 32 bits.
const BUDGET_UNIT: usize = 1024;

/// Bytes that compression may add to what can't be compressed (zstd adds less).
const COMPRESSION_SLACK: usize = 1024;

/// Memory for batches, shared by all edges. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    units: Arc<Semaphore>,
}

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        let units = (bytes / BUDGET_UNIT).clamp(1, Semaphore::MAX_PERMITS);
        Self {
            units: Arc::new(Semaphore::new(units)),
        }
    }

    fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(BUDGET_UNIT).max(1)).ok()?;
        Arc::clone(&self.units).try_acquire_many_owned(units).ok()
    }
}

/// A batch of which all parts have arrived.
#[derive(Debug)]
pub(crate) struct Complete {
    pub(crate) lane: Lane,
    /// The header, without the body that came with it.
    pub(crate) header: proto::Batch,
    pub(crate) body: Result<Body, Unreadable>,
    /// Bytes that its lane is credited with when it is done.
    pub(crate) held: u64,
}

/// The body of a batch, with the memory that it has of the budget.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) bytes: Bytes,
    pub(crate) _memory: OwnedSemaphorePermit,
}

/// Why a body was not kept while it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It would be larger than a batch may be.
    TooLarge { found: usize, allowed: usize },
    /// It is larger than its header says.
    Longer { declared: usize },
    /// Batches of other edges fill the memory.
    NoMemory,
}

/// What an edge of ours does not do; the stream ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("there is no lane {found}")]
    NoLane { found: i32 },
    #[error("lane {lane} had {granted} bytes of credit in all and sent {sent}")]
    Credit { lane: Lane, granted: u64, sent: u64 },
    #[error("a batch began on lane {lane} before the one before it had ended")]
    Unfinished { lane: Lane },
    #[error("a part came on lane {lane}, where no batch has begun")]
    NoBatch { lane: Lane },
    #[error("an empty part came on lane {lane}")]
    Empty { lane: Lane },
}

/// The lanes of one stream.
#[derive(Debug)]
pub(crate) struct Reception {
    lanes: [Receiving; Lane::COUNT],
    credit: u64,
    max_batch_bytes: usize,
    budget: Budget,
}

#[derive(Debug, Default)]
struct Receiving {
    /// All that arrived since the stream began.
    received: u64,
    /// What of it is done.
    done: u64,
    granted: u64,
    /// The batch that arrives.
    assembling: Option<Assembling>,
    /// Whether what was told last is not true any more.
    is_news: bool,
}

#[derive(Debug)]
struct Assembling {
    header: proto::Batch,
    body: Result<(BytesMut, OwnedSemaphorePermit), Unreadable>,
    held: u64,
}

impl Reception {
    pub(crate) fn new(credit: u64, max_batch_bytes: usize, budget: Budget) -> Self {
        let lane = |_| Receiving {
            granted: credit,
            ..Receiving::default()
        };
        Self {
            lanes: std::array::from_fn(lane),
            credit,
            max_batch_bytes,
            budget,
        }
    }

    /// Takes the beginning of a batch; returns the batch when that is all of it.
    pub(crate) fn begin(&mut self, mut header: proto::Batch) -> Result<Option<Complete>, Violation> {
        let lane = from_proto(header.lane).ok_or(Violation::NoLane { found: header.lane })?;
        if self.lanes[lane.index()].assembling.is_some() {
            return Err(Violation::Unfinished { lane });
        }
        let (part, more) = (std::mem::take(&mut header.body), header.more);
        let body = self.reserve(header.length as usize);
        self.lanes[lane.index()].assembling = Some(Assembling {
            header,
            body,
            held: 0,
        });
        self.take(lane, &part, more)
    }

    /// Takes another part of a batch; returns the batch when it is the last.
    pub(crate) fn part(&mut self, part: &proto::Part) -> Result<Option<Complete>, Violation> {
        let lane = from_proto(part.lane).ok_or(Violation::NoLane { found: part.lane })?;
        self.take(lane, &part.body, part.more)
    }

    fn reserve(&self, length: usize) -> Result<(BytesMut, OwnedSemaphorePermit), Unreadable> {
        let allowed = self.max_batch_bytes;
        if length > allowed {
            return Err(Unreadable::TooLarge {
                found: length,
                allowed,
            });
        }
        self.budget
            .take(length)
            .map(|memory| (BytesMut::new(), memory))
            .ok_or(Unreadable::NoMemory)
    }

    fn take(&mut self, lane: Lane, part: &Bytes, more: bool) -> Result<Option<Complete>, Violation> {
        let receiving = &mut self.lanes[lane.index()];
        let Some(mut assembling) = receiving.assembling.take() else {
            return Err(Violation::NoBatch { lane });
        };
        if part.is_empty() {
            return Err(Violation::Empty { lane });
        }
        receiving.received += part.len() as u64;
        if receiving.received > receiving.granted {
            let (granted, sent) = (receiving.granted, receiving.received);
            return Err(Violation::Credit { lane, granted, sent });
        }
        assembling.add(part);
        receiving.is_news = true;
        if more {
            // Nothing else of the lane is held: the rest must be let through, or it would wait for itself.
            if receiving.received - receiving.done == assembling.held {
                receiving.granted = receiving.granted.max(receiving.received + self.credit);
            }
            receiving.assembling = Some(assembling);
            return Ok(None);
        }
        let Assembling { header, body, held } = assembling;
        let body = body.map(|(bytes, memory)| Body {
            bytes: bytes.freeze(),
            _memory: memory,
        });
        Ok(Some(Complete {
            lane,
            header,
            body,
            held,
        }))
    }

    /// Notes that a batch is done, committed or not: what it held is free.
    pub(crate) fn done(&mut self, lane: Lane, held: u64) {
        let receiving = &mut self.lanes[lane.index()];
        receiving.done += held;
        let granted = receiving.done + self.credit;
        if granted > receiving.granted {
            receiving.granted = granted;
            receiving.is_news = true;
        }
    }

    /// What the edge should be told about its lanes; each news once.
    pub(crate) fn news(&mut self) -> Vec<proto::Flow> {
        let lanes = Lane::ALL.into_iter().zip(&mut self.lanes);
        let news = lanes.filter_map(|(lane, receiving)| {
            std::mem::take(&mut receiving.is_news).then(|| receiving.flow(lane))
        });
        news.collect()
    }

    /// The credit that the stream begins with.
    pub(crate) fn opening(&self) -> Vec<proto::Flow> {
        Lane::ALL
            .into_iter()
            .zip(&self.lanes)
            .map(|(lane, receiving)| receiving.flow(lane))
            .collect()
    }
}

impl Receiving {
    fn flow(&self, lane: Lane) -> proto::Flow {
        proto::Flow {
            lane: to_proto(lane),
            received: self.received,
            granted: self.granted,
        }
    }
}

impl Assembling {
    fn add(&mut self, part: &Bytes) {
        self.held += part.len() as u64;
        let Ok((body, _)) = &mut self.body else { return };
        let declared = self.header.length as usize;
        if body.len() + part.len() > declared + declared / 128 + COMPRESSION_SLACK {
            self.body = Err(Unreadable::Longer { declared });
        } else {
            body.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDIT: u64 = 1000;

    fn reception() -> Reception {
        Reception::new(CREDIT, 100_000, Budget::new(200_000))
    }

    fn begin(lane: Lane, length: usize, part: usize, more: bool) -> proto::Batch {
        let body = Bytes::from(vec![7; part]);
        proto::Batch {
            lane: to_proto(lane),
            length: length as u32,
            body,
            more,
            ..proto::Batch::default()
        }
    }

    fn part(lane: Lane, part: usize, more: bool) -> proto::Part {
        proto::Part {
            lane: to_proto(lane),
            body: vec![7; part].into(),
            more,
        }
    }

    fn length(complete: Option<Complete>) -> usize {
        complete.unwrap().body.unwrap().bytes.len()
    }

    #[test]
    fn parts_of_lanes_interleave() {
        let mut reception = reception();
        assert!(
            reception
                .begin(begin(Lane::Backlog, 900, 300, true))
                .unwrap()
                .is_none()
        );
        assert_eq!(
            length(reception.begin(begin(Lane::Alarm, 50, 50, false)).unwrap()),
            50
        );
        assert!(reception.part(&part(Lane::Backlog, 300, true)).unwrap().is_none());
        assert_eq!(
            length(reception.part(&part(Lane::Backlog, 300, false)).unwrap()),
            900
        );
        let news = reception.news();
        let received: Vec<u64> = news.iter().map(|flow| flow.received).collect();
        assert_eq!(received, [50, 900]);
        assert!(reception.news().is_empty());
    }

    #[test]
    fn credit_comes_back_when_a_batch_is_done() {
        let mut reception = reception();
        for _ in 0..2 {
            assert_eq!(
                length(reception.begin(begin(Lane::Live, 500, 500, false)).unwrap()),
                500
            );
        }
        reception.done(Lane::Live, 500);
        let news = reception.news();
        assert_eq!((news[0].received, news[0].granted), (1000, 1500));
        assert_eq!(
            length(reception.begin(begin(Lane::Live, 500, 500, false)).unwrap()),
            500
        );
        let error = reception.begin(begin(Lane::Live, 1, 1, false)).unwrap_err();
        assert_eq!(
            error,
            Violation::Credit {
                lane: Lane::Live,
                granted: 1500,
                sent: 1501
            }
        );
    }

    #[test]
    fn a_batch_larger_than_the_credit_goes_through_alone() {
        let mut reception = reception();
        assert!(
            reception
                .begin(begin(Lane::Bulk, 10_000, 1000, true))
                .unwrap()
                .is_none()
        );
        for number in 2..=10_u64 {
            assert_eq!(reception.news()[0].granted, (number - 1) * 1000 + CREDIT);
            let complete = reception.part(&part(Lane::Bulk, 1000, number < 10)).unwrap();
            assert_eq!(complete.is_some(), number == 10);
        }
        // Behind it, nothing is let through until it is done.
        let mut granted = reception.opening()[Lane::Bulk.index()].granted;
        assert_eq!(granted, 10_000);
        reception.done(Lane::Bulk, 10_000);
        granted = reception.opening()[Lane::Bulk.index()].granted;
        assert_eq!(granted, 11_000);

        // With another batch held before it, it waits for that one.
        assert_eq!(
            length(reception.begin(begin(Lane::Bulk, 400, 400, false)).unwrap()),
            400
        );
        assert!(
            reception
                .begin(begin(Lane::Bulk, 5000, 600, true))
                .unwrap()
                .is_none()
        );
        assert_eq!(reception.opening()[Lane::Bulk.index()].granted, 11_000);
        reception.done(Lane::Bulk, 400);
        assert_eq!(reception.opening()[Lane::Bulk.index()].granted, 11_400);
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let mut reception = reception();
        let complete = reception
            .begin(begin(Lane::Live, 100_001, 10, false))
            .unwrap()
            .unwrap();
        assert_eq!(
            complete.body.unwrap_err(),
            Unreadable::TooLarge {
                found: 100_001,
                allowed: 100_000
            }
        );
        reception.done(Lane::Live, complete.held);

        assert!(
            reception
                .begin(begin(Lane::Live, 10, 900, true))
                .unwrap()
                .is_none()
        );
        let complete = reception.part(&part(Lane::Live, 900, false)).unwrap().unwrap();
        assert_eq!(complete.body.unwrap_err(), Unreadable::Longer { declared: 10 });
        assert_eq!(complete.held, 1800);

        let hogs = [Lane::Alarm, Lane::Backlog].map(|lane| {
            reception
                .begin(begin(lane, 99_000, 1, false))
                .unwrap()
                .unwrap()
                .body
                .unwrap()
        });
        let complete = reception
            .begin(begin(Lane::Bulk, 90_000, 1, false))
            .unwrap()
            .unwrap();
        assert_eq!(complete.body.unwrap_err(), Unreadable::NoMemory);
        drop(hogs);
        let complete = reception
            .begin(begin(Lane::Bulk, 90_000, 1, false))
            .unwrap()
            .unwrap();
        assert!(complete.body.is_ok());
    }

    #[test]
    fn the_order_of_frames_is_held() {
        let mut reception = reception();
        assert_eq!(
            reception.part(&part(Lane::Live, 1, false)).unwrap_err(),
            Violation::NoBatch { lane: Lane::Live }
        );
        assert!(reception.begin(begin(Lane::Live, 9, 1, true)).unwrap().is_none());
        let error = reception.begin(begin(Lane::Live, 9, 1, true)).unwrap_err();
        assert_eq!(error, Violation::Unfinished { lane: Lane::Live });
        let strange = proto::Part {
            lane: 99,
            ..part(Lane::Live, 1, true)
        };
        assert_eq!(
            reception.part(&strange).unwrap_err(),
            Violation::NoLane { found: 99 }
        );
        assert_eq!(
            reception.part(&part(Lane::Live, 0, true)).unwrap_err(),
            Violation::Empty { lane: Lane::Live }
        );
    }
}
