//! Reading the session's queue, and the switch to live delivery.
//!
//! When a session connects, its location is told first and its barrier is committed after that. Whoever publishes
//! submits first and looks for the location after that. So an entry that nobody feeds live was submitted before the
//! barrier, and is found by the first read; every later one is fed live, and [`Backlog`] sorts out which of those were
//! read.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use foreshore_record::{DropReason, Outcome, Qos};
use foreshore_store::{
    Direction, Entry, EntryFlags, EntryId, Operation, Page, ReadRange, ReceiverId, StoreError,
};
use tokio::task::JoinHandle;

use super::{Connection, ending::Ending};
use crate::{
    engine::{
        backlog::{AfterRead, Backlog},
        delivery::{Delivery, Origin},
    },
    inspect::trace,
    message::Message,
    session::{
        rows,
        state::{Held, InFlight, Phase, SessionState},
    },
};

/// Entries that are read at once.
const MAX_ENTRIES: usize = 256;

/// Bytes that are read at once.
const MAX_BYTES: usize = 256 << 10;

type CommitFuture = dyn Future<Output = Result<(), StoreError>>;

/// Reading of a session's queue.
pub(super) struct Drain {
    pub(super) receiver: ReceiverId,
    /// Whether the queue is read, or the session is fed live.
    pub(super) backlog: Backlog<Delivery>,
    reading: Option<JoinHandle<Result<Page, StoreError>>>,
    awaiting: Option<(EntryId, Pin<Box<CommitFuture>>)>,
    /// Entries that were in flight when the last connection ended, with packet identifier and whether they were sent.
    resume: HashMap<EntryId, (u16, bool)>,
}

impl std::fmt::Debug for Drain {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Drain")
            .field("receiver", &self.receiver)
            .finish_non_exhaustive()
    }
}

/// A message that was in flight when the last connection ended.
#[derive(Debug)]
pub(super) struct Resend {
    pub(super) packet_id: u16,
    pub(super) delivery: Delivery,
    /// Whether it was sent before.
    pub(super) dup: bool,
}

impl Drain {
    /// Reads a session's queue from its head; what was in flight is sent again under its packet identifiers.
    pub(super) fn new(receiver: ReceiverId, state: &SessionState) -> Self {
        let resume = state
            .outbound
            .iter()
            .filter_map(|(&packet_id, in_flight)| match in_flight {
                InFlight {
                    held: Held::Own(id),
                    phase: phase @ (Phase::Sent | Phase::Storing),
                    ..
                } => Some((*id, (packet_id, *phase == Phase::Sent))),
                _ => None,
            });
        Self {
            receiver,
            backlog: Backlog::draining(),
            reading: None,
            awaiting: None,
            resume: resume.collect(),
        }
    }

    /// Messages in flight that were not read back yet.
    pub(super) fn to_resume(&self) -> usize {
        self.resume.len()
    }

    /// The session's entry leaves its queue, as soon as that is stored.
    pub(super) fn settles(&mut self, entry: EntryId) {
        self.resume.remove(&entry);
        self.backlog.hold(entry);
    }
}

impl Connection {
    /// Reads on in the session's queue, if it is time to.
    pub(super) fn poll_drain(&mut self, context: &mut Context<'_>) -> Result<bool, Box<Ending>> {
        let mut progress = false;
        loop {
            let room = self.sending.queue.len() < MAX_ENTRIES / 4;
            let Some(drain) = &mut self.sending.drain else {
                return Ok(false);
            };
            if let Some(reading) = &mut drain.reading {
                let Poll::Ready(page) = Pin::new(reading).poll(context) else {
                    return Ok(progress);
                };
                drain.reading = None;
                let page = match page {
                    Ok(page) => page.map_err(|error| Ending::store_failed(&error))?,
                    Err(_) => return Err(Ending::store_failed(&StoreError::Closed).into()),
                };
                self.take_page(page);
            } else if let Some((floor, commit)) = &mut drain.awaiting {
                let Poll::Ready(committed) = commit.as_mut().poll(context) else {
                    return Ok(progress);
                };
                committed.map_err(|error| Ending::store_failed(&error))?;
                drain.backlog.resolved(*floor);
                drain.awaiting = None;
            } else if room && let Some(after) = drain.backlog.begin_read() {
                let range = ReadRange {
                    after,
                    before: None,
                    max_entries: MAX_ENTRIES,
                    max_bytes: MAX_BYTES,
                };
                drain.reading = Some(self.engine.read(drain.receiver, range));
                continue;
            } else {
                return Ok(progress);
            }
            progress = true;
        }
    }

    fn take_page(&mut self, mut page: Page) {
        let Some(drain) = &mut self.sending.drain else {
            return;
        };
        let (receiver, after) = (drain.receiver, drain.backlog.end_read(&mut page));
        for (ids, reason) in [
            (&page.expired, DropReason::EXPIRED),
            (&page.damaged, DropReason::CORRUPT),
        ] {
            for &id in ids {
                self.entry_is_gone(receiver, id, reason.clone());
            }
        }
        for entry in page.entries {
            self.take_entry(entry);
        }
        let Some(drain) = &mut self.sending.drain else {
            return;
        };
        match after {
            AfterRead::More => {}
            AfterRead::AwaitCommit(floor) => {
                let committer = self.engine.committer.clone();
                let commit = async move { committer.commit(Vec::new()).await.map(drop) };
                drain.awaiting = Some((floor, Box::pin(commit)));
            }
            AfterRead::Live(noted) => {
                let vanished = std::mem::take(&mut drain.resume);
                for (packet_id, _) in vanished.into_values() {
                    self.forget(packet_id);
                }
                for delivery in noted {
                    self.sending.push(delivery);
                }
            }
        }
    }

    fn take_entry(&mut self, entry: Entry) {
        let Some(drain) = &mut self.sending.drain else {
            return;
        };
        let resumed = drain.resume.remove(&entry.id);
        if resumed.is_some() {
            drain.backlog.hold(entry.id);
        }
        let message = Arc::new(Message {
            traced: self.engine.tracer.of(entry.id),
            ..Message::from_record(&entry.record, entry.expires_at)
        });
        let delivery = delivery(message, entry.id, &entry.flags);
        match resumed {
            Some((packet_id, dup)) => self.sending.push_resend(Resend {
                packet_id,
                delivery,
                dup,
            }),
            None if !self.client.may_receive(&delivery.message.topic) => {
                self.give_up(delivery, DropReason::other("not_authorized"));
            }
            None => self.sending.push(delivery),
        }
    }

    /// An entry can't be delivered any more.
    fn entry_is_gone(&mut self, receiver: ReceiverId, id: EntryId, reason: DropReason) {
        let resumed = self
            .sending
            .drain
            .as_mut()
            .and_then(|drain| drain.resume.remove(&id));
        if let Some((packet_id, _)) = resumed {
            self.forget(packet_id);
        }
        self.engine.tracer.record(id, || trace::Hop::Dropped {
            receiver: rows::path_name(&self.client.id),
            reason: reason.to_string(),
        });
        self.sending
            .settle(receiver, None, id, Outcome::Dropped { reason });
    }

    /// A message in flight is given up.
    fn forget(&mut self, packet_id: u16) {
        let known = self.state.outbound.remove(&packet_id);
        if known.is_some_and(|in_flight| in_flight.qos == Qos::ExactlyOnce)
            && let Some(slot) = self.state.slot(Direction::Outbound, packet_id)
        {
            self.sending.operation(Operation::ClearInflight { slot });
        }
    }

    /// Sends again what was in flight and is not in the session's own queue ([MQTT-4.4.0-1]).
    pub(super) fn resume(&mut self, resend: Vec<Resend>) {
        let released = |in_flight: &InFlight| matches!(in_flight.phase, Phase::Releasing | Phase::Released);
        let all = self.state.outbound.iter();
        let releases: Vec<u16> = all
            .filter(|(_, in_flight)| released(in_flight))
            .map(|(id, _)| *id)
            .collect();
        for message in resend {
            self.sending.push_resend(message);
        }
        for packet_id in releases {
            self.release(packet_id);
        }
    }
}

/// A delivery from a session's own queue.
pub(super) fn delivery(message: Arc<Message>, entry: EntryId, flags: &EntryFlags) -> Delivery {
    let identifiers = &flags.subscription_identifiers;
    Delivery {
        message,
        entry,
        qos: flags.qos,
        retain: flags.retain,
        identifiers: (!identifiers.is_empty()).then(|| identifiers.as_slice().into()),
        origin: Origin::Session,
    }
}
