//! Receivers: how they come and how they go.

use foreshore_record::DropReason;

use crate::{
    batch::Applied,
    entry::{EntryId, ReceiverId},
    error::StoreError,
    keys::{self, Table},
    ledger::EndedTotals,
    limits::Limits,
    rows::{self, PathRow},
    transaction::Transaction,
};

/// Messages in flight that one session can have: as many packet identifiers in each direction.
const MAX_INFLIGHT: usize = 2 * 65_535;

impl Transaction<'_> {
    pub(super) fn put_receiver(&mut self, name: &str, limits: &Limits) -> Result<Applied, StoreError> {
        if let Some(row) = self.get(Table::Name, name.as_bytes())? {
            let receiver = rows::decode_number(&row)?;
            if let Some(place) = self.find_path(receiver)? {
                self.path(place).row.limits = limits.clone();
                return Ok(Applied::Receiver {
                    receiver,
                    created: false,
                });
            }
        }
        let receiver = self.position.next_receiver;
        self.position.next_receiver += 1;
        self.put(Table::Name, name.as_bytes(), rows::encode_number(receiver));
        self.put(Table::Receiver, keys::number(receiver), rows::encode_name(name));
        let head = self.position.next_id;
        let row = PathRow {
            head,
            oldest: self.now(),
            dead_letter_head: EntryId::MAX,
            limits: limits.clone(),
            ..PathRow::default()
        };
        self.add_path(receiver, row);
        Ok(Applied::Receiver {
            receiver,
            created: true,
        })
    }

    pub(super) fn drop_receiver(
        &mut self,
        receiver: ReceiverId,
        reason: &DropReason,
    ) -> Result<Applied, StoreError> {
        let Some(place) = self.find_path(receiver)? else {
            return Ok(Applied::UnknownReceiver);
        };
        self.settle_head(place)?;
        self.take_shares(place);
        let name = self.get(Table::Receiver, &keys::number(receiver))?;
        let name = name
            .map(|row| rows::decode_name(&row))
            .transpose()?
            .unwrap_or_default();
        let path = self.path(place);
        path.ended = true;
        let (mut counts, head) = (path.row.counts.clone(), path.row.head);
        counts.drop_entries(reason, counts.waiting());

        let kind = name.split('/').next().unwrap_or_default();
        let key = keys::meta_name(keys::ENDED, kind);
        let ended = self.get(Table::Meta, &key)?;
        let mut ended = match ended {
            Some(row) => rows::decode_ended(kind, &row)?,
            None => EndedTotals {
                kind: kind.to_owned(),
                paths: 0,
                counts: crate::Counts::default(),
            },
        };
        ended.paths += 1;
        ended.counts.add(&counts);
        self.put(Table::Meta, key, rows::encode_ended(&ended));
        self.remove(Table::Name, name.as_bytes());
        self.remove(Table::Receiver, keys::number(receiver));
        self.put(
            Table::Meta,
            keys::meta_number(keys::GRAVE, receiver),
            rows::encode_number(head),
        );
        Ok(Applied::Affected {
            count: 1,
            more: false,
        })
    }

    pub(super) fn clear_session(&mut self, session: ReceiverId) -> Result<Applied, StoreError> {
        let from = keys::number(session);
        let to = keys::number(session.saturating_add(1));
        let slots = self.keys(Table::Inflight, &from, &to, MAX_INFLIGHT)?;
        let count = slots.len() as u64;
        for key in slots {
            self.remove(Table::Inflight, key);
        }
        Ok(Applied::Affected { count, more: false })
    }
}
