//! The sending end of the lanes: which part goes next.
//!
//! The most urgent lane that may send goes first. A lane may send as far as the cloud has granted; the lanes below the
//! alarms also keep little on the way, since what is in the network's buffers can't be overtaken any more.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use foreshore_edgelink::{
    lane::{from_proto, to_proto},
    limits::PART_BYTES,
    proto,
};
use foreshore_record::Lane;
use proto::edge_frame::Frame;

use crate::outbox::{Outgoing, Reply};

/// How long a part should take to arrive. Longer means that buffers fill up before it.
const TARGET: Duration = Duration::from_millis(300);

/// Least and most bytes of a lane that are on the way at a time.
const LEAST: u64 = 2 * PART_BYTES as u64;
const MOST: u64 = 4 << 20;

/// The lanes of one stream.
#[derive(Default)]
pub(crate) struct Sending {
    lanes: [LaneState; Lane::COUNT],
    next_number: u64,
}

#[derive(Default)]
struct LaneState {
    sent: u64,
    granted: u64,
    pace: Pace,
    current: Option<Current>,
}

/// A batch of which parts are left.
struct Current {
    outgoing: Outgoing,
    number: u64,
    begun: bool,
}

/// A part that goes now.
pub(crate) struct Next {
    pub(crate) frame: Frame,
    /// Number of the batch that is complete with it, and whoever waits for its answer.
    pub(crate) complete: Option<(u64, tokio::sync::oneshot::Sender<Reply>)>,
}

impl Sending {
    /// Takes what the cloud tells about a lane.
    pub(crate) fn flow(&mut self, flow: &proto::Flow, now: Instant) {
        let Some(lane) = from_proto(flow.lane) else {
            return;
        };
        let state = &mut self.lanes[lane.index()];
        state.granted = state.granted.max(flow.granted);
        state.pace.arrived(flow.received, now);
    }

    /// Whether a part may go; lanes without a batch get one from `take`.
    pub(crate) fn is_ready(&mut self, mut take: impl FnMut(Lane) -> Option<Outgoing>) -> bool {
        for lane in Lane::ALL {
            let state = &mut self.lanes[lane.index()];
            if state.current.is_none()
                && let Some(outgoing) = take(lane)
            {
                self.next_number += 1;
                state.current = Some(Current {
                    outgoing,
                    number: self.next_number,
                    begun: false,
                });
            }
        }
        self.ready().is_some()
    }

    fn ready(&self) -> Option<Lane> {
        Lane::ALL
            .into_iter()
            .find(|lane| self.lanes[lane.index()].may_send(*lane))
    }

    /// The part that goes next, if one may.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Next> {
        let lane = self.ready()?;
        let state = &mut self.lanes[lane.index()];
        let mut current = state.current.take()?;
        let body = current.outgoing.parts.pop_front()?;
        let more = !current.outgoing.parts.is_empty();
        state.sent += body.len() as u64;
        state.pace.sent(state.sent, now);
        let number = current.number;
        let frame = if current.begun {
            Frame::Part(proto::Part {
                lane: to_proto(lane),
                body,
                more,
            })
        } else {
            let header = std::mem::take(&mut current.outgoing.header);
            Frame::Batch(proto::Batch {
                number,
                body,
                more,
                ..header
            })
        };
        current.begun = true;
        if more {
            state.current = Some(current);
            return Some(Next {
                frame,
                complete: None,
            });
        }
        Some(Next {
            frame,
            complete: Some((number, current.outgoing.reply)),
        })
    }

    /// Gives up the batches of which parts are left.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = tokio::sync::oneshot::Sender<Reply>> {
        self.lanes
            .iter_mut()
            .filter_map(|state| state.current.take())
            .map(|current| current.outgoing.reply)
    }
}

impl LaneState {
    fn may_send(&self, lane: Lane) -> bool {
        let part = self
            .current
            .as_ref()
            .and_then(|current| current.outgoing.parts.front());
        let Some(length) = part.map(Bytes::len) else {
            return false;
        };
        let until = self.sent + length as u64;
        until <= self.granted && (lane == Lane::Alarm || self.pace.allows(until))
    }
}

/// How much of a lane is on the way. It grows while parts arrive in time and halves when they do not.
struct Pace {
    window: u64,
    /// Bytes that have arrived.
    received: u64,
    /// What was sent and has not arrived: bytes up to its end, and when it went.
    on_the_way: VecDeque<(u64, Instant)>,
    /// Parts up to here were sent under the window before the last cut, and do not count against this one.
    cut_at: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            window: 8 * PART_BYTES as u64,
            received: 0,
            on_the_way: VecDeque::new(),
            cut_at: 0,
        }
    }
}

impl Pace {
    fn allows(&self, until: u64) -> bool {
        until - self.received <= self.window
    }

    fn sent(&mut self, until: u64, now: Instant) {
        self.on_the_way.push_back((until, now));
    }

    fn arrived(&mut self, received: u64, now: Instant) {
        while let Some(&(until, sent_at)) = self.on_the_way.front()
            && until <= received
        {
            self.on_the_way.pop_front();
            if now.duration_since(sent_at) <= TARGET {
                self.window = (self.window + PART_BYTES as u64).min(MOST);
            } else if until > self.cut_at {
                self.window = (self.window / 2).max(LEAST);
                self.cut_at = self.on_the_way.back().map_or(until, |(last, _)| *last);
            }
        }
        self.received = self.received.max(received);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn batch(lane: Lane, parts: usize) -> Outgoing {
        let header = proto::Batch {
            lane: to_proto(lane),
            ..proto::Batch::default()
        };
        let parts = (0..parts).map(|_| Bytes::from(vec![0; PART_BYTES])).collect();
        Outgoing {
            header,
            parts,
            reply: oneshot::channel().0,
        }
    }

    fn granted(bytes: usize) -> Sending {
        let mut sending = Sending::default();
        for lane in Lane::ALL {
            let flow = proto::Flow {
                lane: to_proto(lane),
                received: 0,
                granted: bytes as u64,
            };
            sending.flow(&flow, Instant::now());
        }
        sending
    }

    fn lane_of(next: &Next) -> Lane {
        let lane = match &next.frame {
            Frame::Batch(batch) => batch.lane,
            Frame::Part(part) => part.lane,
            other => panic!("{other:?}"),
        };
        from_proto(lane).unwrap()
    }

    #[test]
    fn an_alarm_goes_between_the_parts_of_a_backlog() {
        let (mut sending, now) = (granted(1 << 20), Instant::now());
        assert!(sending.is_ready(|lane| (lane == Lane::Backlog).then(|| batch(lane, 3))));
        assert_eq!(lane_of(&sending.next(now).unwrap()), Lane::Backlog);
        assert!(sending.is_ready(|lane| (lane == Lane::Alarm).then(|| batch(lane, 1))));
        let alarm = sending.next(now).unwrap();
        assert_eq!(lane_of(&alarm), Lane::Alarm);
        assert_eq!(alarm.complete.map(|(number, _)| number), Some(2));
        assert!(sending.next(now).unwrap().complete.is_none());
        assert_eq!(
            sending.next(now).unwrap().complete.map(|(number, _)| number),
            Some(1)
        );
        assert!(!sending.is_ready(|_| None));
    }

    #[test]
    fn nothing_is_sent_beyond_what_was_granted() {
        let (mut sending, now) = (granted(PART_BYTES), Instant::now());
        assert!(sending.is_ready(|lane| (lane == Lane::Bulk).then(|| batch(lane, 3))));
        assert!(sending.next(now).is_some());
        assert!(sending.next(now).is_none());
        let part = PART_BYTES as u64;
        let flow = proto::Flow {
            lane: to_proto(Lane::Bulk),
            received: part,
            granted: 2 * part,
        };
        sending.flow(&flow, now);
        assert!(sending.next(now).is_some());
        assert!(sending.next(now).is_none());
    }

    #[test]
    fn a_slow_uplink_has_little_of_a_backlog_on_the_way_and_a_fast_one_much() {
        let part = PART_BYTES as u64;
        for (seconds_a_part, least, most) in [(0.5, 2, 3), (0.001, 60, 128)] {
            let (mut pace, mut sent, mut received, begin) = (Pace::default(), 0, 0, Instant::now());
            for step in 1..=400_u32 {
                let now = begin + Duration::from_secs_f64(seconds_a_part * f64::from(step));
                while pace.allows(sent + part) {
                    sent += part;
                    pace.sent(sent, now);
                }
                // The uplink carries one part a step.
                received = (received + part).min(sent);
                pace.arrived(received, now);
            }
            let on_the_way = (sent - received) / part;
            assert!(
                (least..=most).contains(&(on_the_way + 1)),
                "{on_the_way} parts at {seconds_a_part} s a part"
            );
        }
    }
}
