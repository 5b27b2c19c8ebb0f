//! Counts of every path: what the cloud holds must equal what the edge's ledger says it acknowledged.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use super::{Context, StoreError};
use crate::times::timestamp;

/// What is known of one path of one edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PathCounts {
    /// Name of the edge.
    pub(crate) edge: String,
    /// Ledger name of the path, such as `dataflow/bottling/telemetry->cloud`.
    pub(crate) path: String,
    /// Outputs that arrived, repeats included: `committed + repeated + refused`.
    pub(crate) received: u64,
    /// Outputs that are kept, each once. Equals `emitted` in the edge's ledger once nothing is on the way.
    pub(crate) committed: u64,
    /// Outputs that arrived again and were recognised.
    pub(crate) repeated: u64,
    /// Outputs that were refused for good; dead letters at the edge.
    pub(crate) refused: u64,
    /// Epoch of the opening that delivered last.
    pub(crate) path_epoch: u64,
    /// When something was kept last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) last_committed_at: Option<Timestamp>,
}

/// A path as the writer knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathRow {
    pub(super) id: i64,
    pub(super) epoch: u64,
    pub(super) boot: i64,
}

/// What a batch adds to a path's counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) committed: u64,
    pub(super) repeated: u64,
    pub(super) refused: u64,
}

/// A path that a newer opening has taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path was opened by a newer process, under epoch {present}")]
pub(crate) struct Fenced {
    /// Epoch of that opening.
    pub(crate) present: u64,
}

/// The path, marked as delivered by this process under this epoch.
///
/// An older process that delivers under an older epoch is fenced. The epoch alone does not tell: it begins anew with a
/// path that was released and declared again, or with a new disk of the edge, and then a newer process, or the same
/// one, delivers under a smaller epoch.
pub(super) fn claim(
    context: &mut Context<'_>,
    edge: i64,
    name: &str,
    epoch: u64,
    boot: i64,
) -> Result<Result<i64, Fenced>, StoreError> {
    let key = (edge, name.to_owned());
    let known = match context.caches.paths.get(&key) {
        Some(known) => Some(*known),
        None => find(context.connection, edge, name)?,
    };
    let row = match known {
        Some(known) if epoch < known.epoch && boot < known.boot => {
            return Ok(Err(Fenced { present: known.epoch }));
        }
        Some(known) if (known.epoch, known.boot) == (epoch, boot) => known,
        Some(known) => {
            context
                .connection
                .prepare_cached("UPDATE paths SET epoch = ?2, boot = ?3 WHERE id = ?1")?
                .execute(params![known.id, epoch.cast_signed(), boot])?;
            PathRow { epoch, boot, ..known }
        }
        None => {
            context
                .connection
                .prepare_cached("INSERT INTO paths (edge, name, epoch, boot) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![edge, name, epoch.cast_signed(), boot])?;
            PathRow {
                id: context.connection.last_insert_rowid(),
                epoch,
                boot,
            }
        }
    };
    context.caches.paths.insert(key, row);
    Ok(Ok(row.id))
}

fn find(connection: &Connection, edge: i64, name: &str) -> Result<Option<PathRow>, StoreError> {
    let row = connection
        .prepare_cached("SELECT id, epoch, boot FROM paths WHERE edge = ?1 AND name = ?2")?
        .query_row(params![edge, name], |row| {
            Ok(PathRow {
                id: row.get(0)?,
                epoch: row.get::<_, i64>(1)?.cast_unsigned(),
                boot: row.get(2)?,
            })
        })
        .optional()?;
    Ok(row)
}

/// Adds to a path's counts.
pub(super) fn count(
    connection: &Connection,
    path: i64,
    counted: Counted,
    received_at: i64,
) -> Result<(), StoreError> {
    let Counted {
        committed,
        repeated,
        refused,
    } = counted;
    connection
        .prepare_cached(
            "UPDATE paths SET committed = committed + ?2, repeated = repeated + ?3, refused = refused + ?4,
             last_committed_at = CASE WHEN ?2 > 0 THEN ?5 ELSE last_committed_at END WHERE id = ?1",
        )?
        .execute(params![
            path,
            committed.cast_signed(),
            repeated.cast_signed(),
            refused.cast_signed(),
            received_at
        ])?;
    Ok(())
}

/// Counts of all paths, or of one edge's, by edge and name.
pub(crate) fn counts(connection: &Connection, edge: Option<&str>) -> Result<Vec<PathCounts>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT edges.name, paths.name, committed, repeated, refused, epoch, last_committed_at
         FROM paths JOIN edges ON edges.id = paths.edge WHERE ?1 IS NULL OR edges.name = ?1
         ORDER BY edges.name, paths.name",
    )?;
    let rows = statement.query_map([edge], |row| {
        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        let (committed, repeated, refused) = (number(2)?, number(3)?, number(4)?);
        Ok(PathCounts {
            edge: row.get(0)?,
            path: row.get(1)?,
            received: committed + repeated + refused,
            committed,
            repeated,
            refused,
            path_epoch: number(5)?,
            last_committed_at: row.get::<_, Option<i64>>(6)?.map(timestamp),
        })
    })?;
    rows.map(|row| row.map_err(StoreError::from)).collect()
}
