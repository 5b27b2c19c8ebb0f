//! What each operation does.

mod dead_letters;
mod path;
mod publish;
mod receivers;
mod topics;
pub(crate) mod upkeep;

use crate::{
    batch::{Applied, Batch, Operation, Refusal},
    entry::EntryId,
    error::StoreError,
    keys::{self, Bytes, Table},
    rows,
    transaction::Transaction,
};

impl Transaction<'_> {
    /// Applies a batch and tells what became of each of its operations.
    pub(crate) fn apply(&mut self, batch: &Batch) -> Result<Vec<Applied>, StoreError> {
        let Batch {
            now,
            first_id,
            operations,
        } = batch;
        if *first_id < self.position.next_id {
            let allowed = self.position.next_id;
            let cause = format!("first id {first_id} was given out already, {allowed} is allowed");
            return Err(StoreError::InvalidBatch { cause });
        }
        // The clock never runs backwards, whatever a caller claims.
        self.position.now = self.position.now.max(*now);
        let mut id = *first_id;
        let mut applied = Vec::with_capacity(operations.len());
        for operation in operations {
            operation.check()?;
            self.position.next_id = id;
            applied.push(self.apply_one(id, operation)?);
            id += operation.ids();
        }
        self.position.next_id = id;
        Ok(applied)
    }

    fn apply_one(&mut self, id: EntryId, operation: &Operation) -> Result<Applied, StoreError> {
        match operation {
            Operation::Publish(publish) => self.publish(id, publish),
            Operation::Refuse { number } => {
                let refusal = self.count_number(number)?;
                if refusal.is_none() {
                    self.record_number(number, false)?;
                }
                Ok(refusal.map_or(Applied::Done, Applied::Refused))
            }
            Operation::Settle {
                receiver,
                epoch,
                settlements,
            } => self.settle(*receiver, *epoch, settlements),
            Operation::HandOut {
                receiver,
                epoch,
                after,
                up_to,
                redelivered,
            } => self.hand_out(*receiver, *epoch, *after, *up_to, *redelivered),
            Operation::PutReceiver { name, limits } => self.put_receiver(name, limits),
            Operation::DropReceiver { receiver, reason } => self.drop_receiver(*receiver, reason),
            Operation::OpenPath { receiver } => self.open_path(*receiver),
            Operation::Sweep { receiver } => self.sweep(*receiver),
            Operation::SetTopicLimits { limits } => self.set_topic_limits(limits),
            Operation::Replay { from, ids, to } => self.replay(id, *from, ids, *to),
            Operation::DeleteDeadLetters { receiver, ids } => self.delete_dead_letters(*receiver, ids),
            Operation::DeleteRetained { topic } => {
                self.remove(Table::Retained, topic.as_bytes());
                Ok(Applied::Done)
            }
            Operation::PutSession { client_id, state } => self.put_blob(Table::Session, client_id, state),
            Operation::DeleteSession { client_id } => self.remove_blob(Table::Session, client_id),
            Operation::PutWill { client_id, state } => self.put_blob(Table::Will, client_id, state),
            Operation::DeleteWill { client_id } => self.remove_blob(Table::Will, client_id),
            Operation::PutState { key, value } => {
                self.put(Table::State, &key[..], rows::encode_blob(value));
                Ok(Applied::Done)
            }
            Operation::DeleteState { key } => {
                self.remove(Table::State, &key[..]);
                Ok(Applied::Done)
            }
            Operation::SetInflight { slot, state } => {
                self.put(Table::Inflight, keys::slot(*slot), rows::encode_inflight(*state));
                Ok(Applied::Done)
            }
            Operation::ClearInflight { slot } => {
                self.remove(Table::Inflight, keys::slot(*slot));
                Ok(Applied::Done)
            }
            Operation::ClearSession { session } => self.clear_session(*session),
        }
    }

    fn put_blob(&mut self, table: Table, client_id: &str, state: &[u8]) -> Result<Applied, StoreError> {
        self.put(table, client_id.as_bytes(), rows::encode_blob(state));
        Ok(Applied::Done)
    }

    fn remove_blob(&mut self, table: Table, client_id: &str) -> Result<Applied, StoreError> {
        self.remove(table, client_id.as_bytes());
        Ok(Applied::Done)
    }

    /// Keys of a table in a range, at most so many.
    fn keys(&self, table: Table, from: &[u8], to: &[u8], max: usize) -> Result<Vec<Bytes>, StoreError> {
        let mut found = Vec::new();
        self.scan(table, from, to, &mut |key, _| {
            found.push(Bytes::from(key));
            Ok(if found.len() < max {
                std::ops::ControlFlow::Continue(())
            } else {
                std::ops::ControlFlow::Break(())
            })
        })?;
        Ok(found)
    }
}

/// Shorthand for a message that was not taken in.
fn refused(refusal: Refusal) -> Result<Applied, StoreError> {
    Ok(Applied::Refused(refusal))
}
