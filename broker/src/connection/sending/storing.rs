//! What deliveries have to store, and what follows when it is stored.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use foreshore_record::Outcome;
use foreshore_store::{
    EntryId, Operation, ReceiverId, Settlement, StoreError, Submitted, committer::TrySubmitError,
};

use super::Sending;
use crate::{
    connection::{Connection, ending::Ending},
    engine::{Engine, delivery::Delivery},
    session::state::Phase,
    shared::Group,
};
pub(super) struct Submit(Pin<Box<dyn Future<Output = Result<Submitted, StoreError>>>>);

impl std::fmt::Debug for Submit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Submit")
    }
}

/// What follows when operations are stored.
#[derive(Debug)]
pub(super) enum After {
    /// An entry of a group is settled for good.
    Settled(Arc<Group>, EntryId),
    /// An entry of the session's queue is settled for good.
    SettledOwn(EntryId),
    /// A packet identifier is durable, or with quality of service 0, whose identifier is 0, the end of the entry: the
    /// message is sent.
    Publish(u16, Delivery),
    /// The reception is durable: the message is released.
    Release(u16),
    /// A retained message is in the session's queue; it is delivered as soon as it has its id, the one after so many.
    Replayed(u64, Delivery),
}

impl Sending {
    /// Adds something that is to be stored.
    pub(in crate::connection) fn operation(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// An entry leaves its queue.
    pub(in crate::connection) fn settle(
        &mut self,
        receiver: ReceiverId,
        group: Option<Arc<Group>>,
        id: EntryId,
        outcome: Outcome,
    ) {
        let emitted = u32::from(outcome == Outcome::Delivered);
        let settlement = Settlement { id, emitted, outcome };
        match self.settlements.iter_mut().find(|(known, _)| *known == receiver) {
            Some((_, settlements)) => settlements.push(settlement),
            None => self.settlements.push((receiver, vec![settlement])),
        }
        if let Some(group) = group {
            self.after.push(After::Settled(group, id));
        } else if let Some(drain) = self.drain.as_mut().filter(|drain| drain.receiver == receiver) {
            drain.settles(id);
            self.after.push(After::SettledOwn(id));
        }
    }

    /// All operations that wait, settlements first.
    pub(in crate::connection) fn take_operations(&mut self) -> Vec<Operation> {
        let settlements = std::mem::take(&mut self.settlements).into_iter();
        let mut operations: Vec<_> = settlements
            .map(|(receiver, settlements)| Operation::Settle {
                receiver,
                epoch: 0,
                settlements,
            })
            .collect();
        operations.append(&mut self.operations);
        operations
    }

    /// Stores what is not stored yet, and lets groups know when their entries are settled for good.
    pub(in crate::connection) async fn finish(&mut self, engine: &Arc<Engine>) -> Result<(), StoreError> {
        if let Some((Submit(submit), after)) = self.submitting.take() {
            self.storing.push_back((submit.await?.completion, after));
        }
        let operations = self.take_operations();
        if !operations.is_empty() {
            let submitted = engine.committer.submit(operations).await?;
            self.storing
                .push_back((submitted.completion, std::mem::take(&mut self.after)));
        }
        let of_groups = |after: After| match after {
            After::Settled(group, entry) => Some((group, entry)),
            _ => None,
        };
        let storing = std::mem::take(&mut self.storing).into_iter();
        let storing: Vec<_> = storing
            .map(|(completion, after)| {
                (
                    completion,
                    after.into_iter().filter_map(of_groups).collect::<Vec<_>>(),
                )
            })
            .filter(|(_, settled)| !settled.is_empty())
            .collect();
        if !storing.is_empty() {
            engine.spawn("settle".to_owned(), async move {
                for (completion, settled) in storing {
                    if completion.await.is_ok() {
                        for (group, entry) in settled {
                            group.settled(entry);
                        }
                    }
                }
            });
        }
        Ok(())
    }
}

impl Connection {
    /// Stores what waits to be stored. Progress means that there is a completion to be polled, which wakes nobody before.
    pub(super) fn store(&mut self) -> Result<bool, Box<Ending>> {
        if self.sending.submitting.is_some() {
            return Ok(false);
        }
        let operations = self.sending.take_operations();
        if operations.is_empty() {
            return Ok(false);
        }
        let after = std::mem::take(&mut self.sending.after);
        match self.engine.committer.try_submit(operations) {
            Ok(submitted) => self.stored(submitted, after),
            Err(TrySubmitError::Full(operations)) => {
                let committer = self.engine.committer.clone();
                let submit = async move { committer.submit(operations).await };
                self.sending.submitting = Some((Submit(Box::pin(submit)), after));
            }
            Err(TrySubmitError::Failed(error)) => return Err(Ending::store_failed(&error).into()),
        }
        Ok(true)
    }

    fn stored(&mut self, submitted: Submitted, after: Vec<After>) {
        let (replayed, after): (Vec<_>, Vec<_>) = after
            .into_iter()
            .partition(|after| matches!(after, After::Replayed(..)));
        self.sending.storing.push_back((submitted.completion, after));
        for after in replayed {
            if let After::Replayed(ordinal, delivery) = after {
                self.offer(Delivery {
                    entry: submitted.first_id + ordinal,
                    ..delivery
                });
            }
        }
    }

    /// Does what follows from operations that are durable.
    pub(super) fn poll_stored(&mut self, context: &mut Context<'_>) -> Result<bool, Box<Ending>> {
        let mut progress = false;
        if let Some((Submit(submit), _)) = &mut self.sending.submitting
            && let Poll::Ready(submitted) = submit.as_mut().poll(context)
        {
            let submitted = submitted.map_err(|error| Ending::store_failed(&error))?;
            let after = self
                .sending
                .submitting
                .take()
                .map(|(_, after)| after)
                .unwrap_or_default();
            self.stored(submitted, after);
            progress = true;
        }
        while let Some((completion, _)) = self.sending.storing.front_mut()
            && let Poll::Ready(applied) = Pin::new(completion).poll(context)
        {
            // One that has resolved must not be polled again, whatever it says.
            let after = self
                .sending
                .storing
                .pop_front()
                .map(|(_, after)| after)
                .unwrap_or_default();
            applied.map_err(|error| Ending::store_failed(&error))?;
            for after in after {
                self.follow(after);
            }
            progress = true;
        }
        Ok(progress)
    }

    fn follow(&mut self, after: After) {
        match after {
            After::SettledOwn(entry) => {
                if let Some(drain) = &mut self.sending.drain {
                    drain.backlog.settled(entry);
                }
            }
            After::Settled(group, entry) => group.settled(entry),
            After::Publish(0, delivery) => self.write(&delivery, 0, false),
            After::Publish(packet_id, delivery) => {
                if let Some(in_flight) = self.state.outbound.get_mut(&packet_id) {
                    in_flight.phase = Phase::Sent;
                    self.write(&delivery, packet_id, false);
                }
            }
            After::Release(packet_id) => self.release(packet_id),
            After::Replayed(..) => {}
        }
    }
}
