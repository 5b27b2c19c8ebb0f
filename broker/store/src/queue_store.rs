//! The store over any back end.

use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};

use crate::{
    apply::upkeep::Upkeep,
    batch::{Applied, Batch},
    cipher::Encryption,
    clock::BrokerTime,
    engine::{Change, Engine, View},
    entry::{
        Blob, DeadLetter, Entry, EntryId, Inflight, Page, ReadRange, ReceiverId, Retained, Slot, StateEntry,
        StoreEpoch,
    },
    error::StoreError,
    keys::{self, Table},
    ledger::{EndedTotals, PathTotals, SourceTotals},
    record::{self, BodyOf, EntryRow},
    rows::{self, PathRow, PositionRow},
    sent,
    space::SpaceProbe,
    store::{Position, Receiver, Space, Store},
    topics::{TopicTable, TopicTotals},
    transaction::{Openings, Transaction},
};

/// Openings that are remembered before those are forgotten that no entry needs any more.
const MAX_OPENINGS: usize = 256;

/// Entries that a read looks at beyond those that it returns: expired or damaged ones.
const MAX_PASSED_OVER: usize = 4_096;

/// How far the clock's persisted floor may lag behind.
const FLOOR_EVERY: Duration = Duration::from_secs(60);

/// Durable queues over a back end.
pub(crate) struct QueueStore<E> {
    engine: E,
    space: Option<SpaceProbe>,
    openings: Openings,
    writer: Mutex<Writer>,
    /// Where the last commit left the store.
    position: RwLock<PositionRow>,
    /// Messages that were dropped because a queue is full.
    overflowed: AtomicU64,
}

struct Writer {
    upkeep: Upkeep,
    /// Limits by topic filter, as the last commit left them.
    topics: TopicTable,
    /// Why nothing can be committed any more.
    closed: Option<StoreError>,
}

impl<E: Engine> QueueStore<E> {
    /// Opens the queues that a back end holds and draws a new epoch.
    pub(crate) fn open(engine: E, space: Option<SpaceProbe>, epoch: StoreEpoch) -> Result<Self, StoreError> {
        let (position, mut openings, mut changes) = Self::load(&engine)?;
        let topics = topics(&engine.view())?;
        openings.retain(|(first_id, _)| *first_id != position.next_id);
        openings.push((position.next_id, epoch));
        let key = keys::meta_number(keys::OPENING, position.next_id);
        changes.push(Change {
            table: Table::Meta,
            key,
            value: Some(rows::encode_opening(epoch)),
        });
        engine.write(changes)?;
        Ok(Self {
            engine,
            space,
            openings: Openings::new(openings),
            writer: Mutex::new(Writer {
                upkeep: Upkeep::default(),
                topics,
                closed: None,
            }),
            position: RwLock::new(position),
            overflowed: AtomicU64::new(0),
        })
    }

    #[cfg(test)]
    pub(crate) fn engine(&self) -> &E {
        &self.engine
    }

    #[expect(clippy::type_complexity, reason = "read once, right above")]
    fn load(engine: &E) -> Result<(PositionRow, Vec<(EntryId, StoreEpoch)>, Vec<Change>), StoreError> {
        let view = engine.view();
        let position = match view.get(Table::Meta, keys::POSITION)? {
            Some(row) => PositionRow::decode(&row)?,
            None => PositionRow {
                next_id: 1,
                next_receiver: 1,
                ..PositionRow::default()
            },
        };
        let mut openings = Vec::new();
        let end = keys::after_prefix(keys::OPENING);
        view.scan(Table::Meta, keys::OPENING, Some(&end), &mut |key, row| {
            let first_id = key
                .strip_prefix(keys::OPENING)
                .and_then(keys::split_number)
                .unwrap_or_default();
            openings.push((first_id, rows::decode_opening(row)?));
            Ok(ControlFlow::Continue(()))
        })?;
        let mut forgotten = Vec::new();
        if openings.len() >= MAX_OPENINGS {
            let needed = oldest_entry(&view)?.unwrap_or(position.next_id);
            let first = openings
                .partition_point(|(first_id, _)| *first_id <= needed)
                .saturating_sub(1);
            forgotten.extend(openings.drain(..first).map(|(first_id, _)| Change {
                table: Table::Meta,
                key: keys::meta_number(keys::OPENING, first_id),
                value: None,
            }));
        }
        Ok((position, openings, forgotten))
    }

    fn write<T>(
        &self,
        apply: impl FnOnce(&mut Transaction<'_>, &E::View<'_>, &mut Writer) -> Result<(bool, T), StoreError>,
        low_space: bool,
    ) -> Result<T, StoreError> {
        let mut writer = self.writer.lock();
        if let Some(cause) = &writer.closed {
            return Err(cause.clone());
        }
        let damage = self.engine.damage();
        let result = damage.map_or_else(|| self.write_open(&mut writer, apply, low_space), Err);
        if let Err(cause) = &result {
            // What is on disk is unknown until the store is opened again.
            writer.closed = Some(cause.clone());
        }
        result
    }

    fn write_open<T>(
        &self,
        writer: &mut Writer,
        apply: impl FnOnce(&mut Transaction<'_>, &E::View<'_>, &mut Writer) -> Result<(bool, T), StoreError>,
        low_space: bool,
    ) -> Result<T, StoreError> {
        let position = *self.position.read();
        let view = self.engine.view();
        let mut transaction = Transaction::new(&view, &self.openings, position, low_space);
        transaction.topics = writer.topics.clone();
        let (changed, result) = apply(&mut transaction, &view, writer)?;
        if !changed {
            return Ok(result);
        }
        let topics = transaction.topics_changed.then(|| transaction.topics.clone());
        let overflowed = transaction.overflowed;
        let (position, changes) = transaction.finish()?;
        drop(view);
        self.engine.write(changes)?;
        self.overflowed.fetch_add(overflowed, Ordering::Relaxed);
        if let Some(topics) = topics {
            writer.topics = topics;
        }
        *self.position.write() = position;
        Ok(result)
    }

    fn read_named<T>(
        &self,
        table: Table,
        after: Option<&str>,
        max: usize,
        mut decode: impl FnMut(&str, &[u8]) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let view = self.engine.view();
        let from = after.map(|after| view.behind(table, after.as_bytes()));
        let from = from.unwrap_or_default();
        let mut found = Vec::new();
        view.scan(table, &from, None, &mut |key, row| {
            if found.len() >= max {
                return Ok(ControlFlow::Break(()));
            }
            // A row that can't be read is told of and passed over: the others are still good.
            let decoded = std::str::from_utf8(key)
                .map_err(|error| StoreError::Damaged {
                    what: "a name",
                    cause: error.to_string(),
                })
                .and_then(|name| decode(name, row));
            match decoded {
                Ok(row) => found.push(row),
                Err(error) => tracing::error!(table = table.name(), %error, "a row is passed over"),
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }
}

/// Reads the entry of a queue that a row tells of, with its record wherever that is.
pub(crate) fn read_entry(
    view: &impl View,
    id: EntryId,
    row: &[u8],
    path: &PathRow,
    openings: &Openings,
) -> Result<Entry, StoreError> {
    let EntryRow {
        flags,
        size,
        ingested_at,
        expires_at,
        body,
    } = EntryRow::decode(row)?;
    let record = match body {
        BodyOf::Inline(record) => record,
        BodyOf::Shared { .. } => {
            let body = view.get(Table::Body, &keys::number(id))?;
            let body = body.ok_or_else(|| StoreError::Damaged {
                what: "an entry",
                cause: "its record is missing".to_owned(),
            })?;
            Arc::new(record::decode_body(&body)?)
        }
    };
    Ok(Entry {
        id,
        store_epoch: openings.epoch_of(id),
        attempt: path.attempts.of(id),
        flags,
        record,
        ingested_at,
        expires_at,
        size,
    })
}

/// Limits by topic filter. What can't be read is told of, and counts as none until they are set anew.
fn topics(view: &impl View) -> Result<TopicTable, StoreError> {
    let row = view.get(Table::Meta, keys::TOPICS)?;
    let table = row.map(|row| TopicTable::decode(&row)).transpose();
    Ok(table
        .unwrap_or_else(|error| {
            tracing::error!(%error, "limits by topic filter are lost");
            None
        })
        .unwrap_or_default())
}

/// The lowest id that waits anywhere.
fn oldest_entry(view: &impl View) -> Result<Option<EntryId>, StoreError> {
    let mut oldest: Option<EntryId> = None;
    view.scan(Table::Path, &[], None, &mut |_, row| {
        let path = PathRow::decode(row)?;
        if path.counts.waiting() > 0 {
            oldest = Some(oldest.map_or(path.head, |oldest| oldest.min(path.head)));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(oldest)
}

impl<E: Engine> Store for QueueStore<E> {
    fn commit(&self, group: &[Batch]) -> Result<Vec<Vec<Applied>>, StoreError> {
        let low_space = self.space().is_some_and(Space::is_low);
        self.write(
            |transaction, _, _| {
                let applied = group.iter().map(|batch| transaction.apply(batch));
                Ok((true, applied.collect::<Result<_, _>>()?))
            },
            low_space,
        )
    }

    fn position(&self) -> Position {
        let PositionRow { next_id, now, .. } = *self.position.read();
        Position {
            next_id,
            now,
            epoch: self.openings.current(),
        }
    }

    fn maintain(&self, now: BrokerTime) -> Result<bool, StoreError> {
        let more = self.write(
            |transaction, view, writer| {
                // Without commits, the floor would lag behind and give messages time back at a restart.
                writer.upkeep.floor_due = now.since(transaction.position.now) >= FLOOR_EVERY;
                transaction.position.now = transaction.position.now.max(now);
                transaction.keep_up(view, &mut writer.upkeep)
            },
            false,
        )?;
        if self.space().is_some_and(Space::is_low) {
            return Ok(more);
        }
        let mut writer = self.writer.lock();
        if let Some(cause) = &writer.closed {
            return Err(cause.clone());
        }
        let kept_up = self.engine.keep_up();
        if let Err(cause) = &kept_up {
            writer.closed.get_or_insert_with(|| cause.clone());
        }
        Ok(kept_up? || more)
    }

    fn read(&self, receiver: ReceiverId, range: ReadRange, now: BrokerTime) -> Result<Page, StoreError> {
        let ReadRange {
            after,
            before,
            max_entries,
            max_bytes,
        } = range;
        let view = self.engine.view();
        let mut page = Page {
            resume_after: after,
            tail: self.tail(&view)?,
            ..Page::default()
        };
        let Some(path) = view.get(Table::Path, &keys::number(receiver))? else {
            page.at_end = true;
            return Ok(page);
        };
        let path = PathRow::decode(&path)?;
        let from = keys::entry(receiver, after.saturating_add(1).max(path.head));
        let to = before.map_or_else(
            || keys::after_entries(receiver),
            |before| keys::entry(receiver, before),
        );
        let mut bytes = 0;
        page.at_end = true;
        view.scan(Table::Queue, &from, Some(&to), &mut |key, row| {
            let passed_over = page.expired.len() + page.damaged.len();
            let full = page.entries.len() >= max_entries || (bytes >= max_bytes && !page.entries.is_empty());
            if full || passed_over >= MAX_PASSED_OVER {
                page.at_end = false;
                return Ok(ControlFlow::Break(()));
            }
            let Some((_, id)) = keys::split_entry(key) else {
                return Ok(ControlFlow::Continue(()));
            };
            match read_entry(&view, id, row, &path, &self.openings) {
                Ok(entry) if entry.expires_at.is_some_and(|expires_at| expires_at <= now) => {
                    page.expired.push(id);
                }
                Ok(entry) => {
                    let size = entry.size as usize;
                    if bytes + size > max_bytes && !page.entries.is_empty() {
                        page.at_end = false;
                        return Ok(ControlFlow::Break(()));
                    }
                    bytes += size;
                    page.entries.push(entry);
                }
                Err(StoreError::Damaged { what, cause }) => {
                    tracing::error!(receiver, id, what, cause, "an entry can't be read");
                    page.damaged.push(id);
                }
                Err(error) => return Err(error),
            }
            page.resume_after = id;
            Ok(ControlFlow::Continue(()))
        })?;
        if !page.expired.is_empty() {
            let sent = sent::entries(receiver, |from, to, visit| {
                view.scan(Table::Inflight, from, Some(to), visit)
            })?;
            for id in page.expired.extract_if(.., |id| sent.contains(id)) {
                let row = view.get(Table::Queue, &keys::entry(receiver, id))?;
                let entry = row.map(|row| read_entry(&view, id, &row, &path, &self.openings));
                page.entries.extend(entry.transpose()?);
            }
            page.entries.sort_by_key(|entry| entry.id);
        }
        Ok(page)
    }

    fn totals(&self, receiver: ReceiverId) -> Result<Option<PathTotals>, StoreError> {
        let view = self.engine.view();
        let key = keys::number(receiver);
        let Some(path) = view.get(Table::Path, &key)? else {
            return Ok(None);
        };
        let name = view
            .get(Table::Receiver, &key)?
            .map(|row| rows::decode_name(&row))
            .transpose()?;
        Ok(Some(
            PathRow::decode(&path)?.totals(receiver, &name.unwrap_or_default()),
        ))
    }

    fn ended(&self) -> Result<Vec<EndedTotals>, StoreError> {
        let mut found = Vec::new();
        let end = keys::after_prefix(keys::ENDED);
        self.engine
            .view()
            .scan(Table::Meta, keys::ENDED, Some(&end), &mut |key, row| {
                let kind = key.strip_prefix(keys::ENDED).unwrap_or_default();
                found.push(rows::decode_ended(&String::from_utf8_lossy(kind), row)?);
                Ok(ControlFlow::Continue(()))
            })?;
        Ok(found)
    }

    fn topics(&self) -> Result<Vec<TopicTotals>, StoreError> {
        Ok(topics(&self.engine.view())?.0)
    }

    fn find_receiver(&self, name: &str) -> Result<Option<ReceiverId>, StoreError> {
        let row = self.engine.view().get(Table::Name, name.as_bytes())?;
        row.map(|row| rows::decode_number(&row)).transpose()
    }

    fn receivers(&self, after: ReceiverId, max: usize) -> Result<Vec<Receiver>, StoreError> {
        let view = self.engine.view();
        let mut found = Vec::new();
        let from = keys::number(after.saturating_add(1));
        view.scan(Table::Receiver, &from, None, &mut |key, row| {
            if found.len() >= max {
                return Ok(ControlFlow::Break(()));
            }
            let id = keys::split_number(key).unwrap_or_default();
            if let Some(path) = view.get(Table::Path, key)? {
                let limits = PathRow::decode(&path)?.limits;
                found.push(Receiver {
                    id,
                    name: rows::decode_name(row)?,
                    limits,
                });
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    fn dead_letters(
        &self,
        receiver: ReceiverId,
        after: EntryId,
        max: usize,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        let view = self.engine.view();
        let Some(path) = view.get(Table::Path, &keys::number(receiver))? else {
            return Ok(Vec::new());
        };
        let head = PathRow::decode(&path)?.dead_letter_head;
        let from = keys::entry(receiver, after.saturating_add(1).max(head));
        let mut found = Vec::new();
        view.scan(
            Table::Dead,
            &from,
            Some(&keys::after_entries(receiver)),
            &mut |key, row| {
                if found.len() >= max {
                    return Ok(ControlFlow::Break(()));
                }
                let id = keys::split_entry(key).map_or(0, |(_, id)| id);
                match record::decode_dead_letter(id, row) {
                    Ok(letter) => found.push(letter),
                    Err(error) => tracing::error!(receiver, id, %error, "a dead letter is passed over"),
                }
                Ok(ControlFlow::Continue(()))
            },
        )?;
        Ok(found)
    }

    fn retained(&self, after: Option<&str>, max: usize) -> Result<Vec<Retained>, StoreError> {
        self.read_named(Table::Retained, after, max, |_, row| record::decode_retained(row))
    }

    fn retained_message(&self, topic: &str) -> Result<Option<Retained>, StoreError> {
        let row = self.engine.view().get(Table::Retained, topic.as_bytes())?;
        row.map(|row| record::decode_retained(&row)).transpose()
    }

    fn sessions(&self, after: Option<&str>, max: usize) -> Result<Vec<Blob>, StoreError> {
        self.read_named(Table::Session, after, max, rows::decode_blob)
    }

    fn wills(&self, after: Option<&str>, max: usize) -> Result<Vec<Blob>, StoreError> {
        self.read_named(Table::Will, after, max, rows::decode_blob)
    }

    fn state(&self, after: Option<&[u8]>, max_bytes: usize) -> Result<Vec<StateEntry>, StoreError> {
        let view = self.engine.view();
        let from = after.map(|after| view.behind(Table::State, after));
        let from = from.unwrap_or_default();
        let (mut found, mut bytes) = (Vec::new(), 0);
        view.scan(Table::State, &from, None, &mut |key, row| {
            match rows::decode_state(key, row) {
                Ok(entry) => {
                    bytes += entry.key.len() + entry.value.len();
                    if bytes > max_bytes && !found.is_empty() {
                        return Ok(ControlFlow::Break(()));
                    }
                    found.push(entry);
                }
                Err(error) => tracing::error!(%error, "an entry of the state store is passed over"),
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    fn inflight(&self, session: ReceiverId) -> Result<Vec<(Slot, Inflight)>, StoreError> {
        let (from, to) = (keys::number(session), keys::number(session.saturating_add(1)));
        let mut found = Vec::new();
        self.engine
            .view()
            .scan(Table::Inflight, &from, Some(&to), &mut |key, row| {
                if let Some(slot) = keys::split_slot(key) {
                    found.push((slot, rows::decode_inflight(row)?));
                }
                Ok(ControlFlow::Continue(()))
            })?;
        Ok(found)
    }

    fn source(&self, source: &str) -> Result<Option<SourceTotals>, StoreError> {
        let row = self.engine.view().get(Table::Source, source.as_bytes())?;
        row.map(|row| rows::decode_source(source, &row)).transpose()
    }

    fn sources(&self, after: Option<&str>, max: usize) -> Result<Vec<SourceTotals>, StoreError> {
        self.read_named(Table::Source, after, max, rows::decode_source)
    }

    fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    fn encryption(&self) -> Option<Encryption> {
        self.engine.encryption()
    }

    fn space(&self) -> Option<Space> {
        self.space.as_ref().and_then(SpaceProbe::look)
    }

    fn close(&self) -> Result<(), StoreError> {
        let mut writer = self.writer.lock();
        if writer.closed.is_some() {
            return Ok(());
        }
        writer.closed = Some(StoreError::Closed);
        self.engine.close(self.position.read().commits)
    }
}

impl<E: Engine> QueueStore<E> {
    /// First id that was not given out when the view was taken.
    fn tail(&self, view: &E::View<'_>) -> Result<EntryId, StoreError> {
        let row = view.get(Table::Meta, keys::POSITION)?;
        Ok(row
            .map(|row| PositionRow::decode(&row))
            .transpose()?
            .map_or(1, |position| position.next_id))
    }
}
