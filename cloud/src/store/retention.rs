//! Deleting history that is too old or too much, in small transactions that go after everything else.
//!
//! Deleted space is used again; the file does not become smaller. Last values stay.

use std::time::Duration;

use foreshore_runtime::Shutdown;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use tracing::{debug, warn};

use super::{Context, Priority, Store, StoreError};
use crate::times::nanoseconds;
use crate::{audit, samples::Kind};

/// Most rows that one transaction deletes of one series.
const ROWS: i64 = 5_000;

/// Series of one transaction.
const SERIES: i64 = 64;

/// Which part of the time that the history covers goes at once when it is too large, and the least time that goes.
const PORTION: i64 = 20;
const LEAST_NANOSECONDS: i64 = 60_000_000_000;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// Age of values.
    pub(crate) max_age: Duration,
    /// Bytes of the database, what is free in its file left out.
    pub(crate) max_bytes: Option<u64>,
    /// Age of the audit of commands.
    pub(crate) audit_max_age: Duration,
    /// Time between two passes.
    pub(crate) interval: Duration,
}

impl Retention {
    /// Deletes from time to time until the shutdown begins.
    pub(crate) async fn run(self, store: Store, shutdown: Shutdown) {
        while shutdown
            .or_begun(tokio::time::sleep(self.interval))
            .await
            .is_some()
        {
            match shutdown.or_begun(self.pass(&store, Timestamp::now())).await {
                Some(Err(error)) => warn!(reason = error.reason(), "history not cut back: {error}"),
                Some(Ok(deleted)) if deleted > 0 => debug!(deleted, "history cut back"),
                _ => {}
            }
        }
    }

    /// Deletes what is too much now, and returns how many values that were.
    pub(crate) async fn pass(&self, store: &Store, now: Timestamp) -> Result<u64, StoreError> {
        let before = |age: Duration| nanoseconds(now.checked_sub(age).unwrap_or(Timestamp::MIN));
        let audit_before = before(self.audit_max_age);
        while store
            .write(Priority::Upkeep, 1, move |context| {
                audit::delete_before(context, audit_before)
            })
            .await?
        {}
        let mut deleted = delete_before(store, before(self.max_age)).await?;
        let Some(max_bytes) = self.max_bytes else {
            return Ok(deleted);
        };
        while store.read(used_bytes).await? > max_bytes {
            let Some(oldest) = store.read(oldest).await? else {
                break;
            };
            let portion = nanoseconds(now).saturating_sub(oldest) / PORTION;
            let before = oldest.saturating_add(portion.max(LEAST_NANOSECONDS));
            deleted += delete_before(store, before).await?;
        }
        Ok(deleted)
    }
}

async fn delete_before(store: &Store, before: i64) -> Result<u64, StoreError> {
    let (mut after, mut total) = (0, 0);
    loop {
        let step = store
            .write(Priority::Upkeep, 1_000, move |context| {
                delete_some(context, after, before)
            })
            .await?;
        total += step.deleted;
        match step.go_on_after {
            Some(series) => after = series,
            None => return Ok(total),
        }
    }
}

struct Step {
    deleted: u64,
    go_on_after: Option<i64>,
}

/// Deletes from the next few series; a series of which more is left is taken again.
fn delete_some(context: &mut Context<'_>, after: i64, before: i64) -> Result<Step, StoreError> {
    let connection = context.connection;
    let mut statement =
        connection.prepare_cached("SELECT id, kind FROM series WHERE id > ?1 ORDER BY id LIMIT ?2")?;
    let rows = statement.query_map([after, SERIES], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut step = Step {
        deleted: 0,
        go_on_after: None,
    };
    for row in rows {
        let (series, kind): (i64, i64) = row?;
        // The bound of one transaction: the time of the first row that is not deleted by it.
        let bound = connection
            .prepare_cached(
                "SELECT time FROM history WHERE series = ?1 AND time < ?2 ORDER BY time LIMIT 1 OFFSET ?3",
            )?
            .query_row([series, before, ROWS], |row| row.get::<_, i64>(0))
            .optional()?;
        let mut until = bound.unwrap_or(before);
        let mut deleted = delete(connection, series, kind, until)?;
        if deleted == 0 && bound.is_some() {
            // More rows of one time than a transaction should delete: they go together.
            until = until.saturating_add(1);
            deleted = delete(connection, series, kind, until)?;
        }
        step.deleted += deleted;
        step.go_on_after = Some(if bound.is_some() { series - 1 } else { series });
        if bound.is_some() {
            break;
        }
    }
    Ok(step)
}

fn delete(connection: &Connection, series: i64, kind: i64, before: i64) -> Result<u64, StoreError> {
    if kind != Kind::DataPoint as i64 {
        connection
            .prepare_cached(
                "DELETE FROM payloads WHERE receipt IN
                 (SELECT receipt FROM history WHERE series = ?1 AND time < ?2)",
            )?
            .execute(params![series, before])?;
    }
    let deleted = connection
        .prepare_cached("DELETE FROM history WHERE series = ?1 AND time < ?2")?
        .execute(params![series, before])?;
    Ok(deleted as u64)
}

fn used_bytes(connection: &Connection) -> Result<u64, StoreError> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    let pages = number("page_count")?.saturating_sub(number("freelist_count")?);
    Ok(pages * number("page_size")?)
}

/// Time of the oldest value.
fn oldest(connection: &Connection) -> Result<Option<i64>, StoreError> {
    let oldest = connection.query_row(
        "SELECT min((SELECT time FROM history WHERE history.series = series.id ORDER BY time LIMIT 1)) FROM series",
        [],
        |row| row.get(0),
    )?;
    Ok(oldest)
}
