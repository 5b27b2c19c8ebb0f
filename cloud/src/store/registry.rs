//! Assets, and what of them has a history.

use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use super::{Context, StoreError, caches::Totals, history};
use crate::samples::{AssetKey, Kind, SeriesKey};

/// Most assets of an edge, those included that it has no longer. Records of one more are refused.
const MAX_ASSETS: i64 = 2 * foreshore_edgelink::limits::MAX_ASSETS as i64;

/// Most series of an edge. Records with one more are refused.
const MAX_SERIES: i64 = 1_000_000;

// === writing

/// Row ids of series, made where there is none; or why there can be none.
pub(super) fn series_ids(
    context: &mut Context<'_>,
    edge: i64,
    series: &[SeriesKey],
    now: i64,
) -> Result<Vec<Result<i64, String>>, StoreError> {
    series
        .iter()
        .map(|key| series_id(context, edge, key, now))
        .collect()
}

fn series_id(
    context: &mut Context<'_>,
    edge: i64,
    key: &SeriesKey,
    now: i64,
) -> Result<Result<i64, String>, StoreError> {
    let cached = (edge, key.clone());
    if let Some(id) = context.caches.series.get(&cached) {
        return Ok(Ok(*id));
    }
    let asset = match &key.asset {
        None => 0,
        Some(asset) => match asset_id(context, edge, asset, now)? {
            Ok(id) => id,
            Err(reason) => return Ok(Err(reason)),
        },
    };
    let SeriesKey {
        asset: _,
        kind,
        member,
        point,
    } = key;
    let found = context
        .connection
        .prepare_cached(
            "SELECT id FROM series WHERE edge = ?1 AND asset = ?2 AND kind = ?3 AND member = ?4 AND point = ?5",
        )?
        .query_row(params![edge, asset, *kind as i64, member, point], |row| row.get(0))
        .optional()?;
    let id = match found {
        Some(id) => id,
        None => {
            let mut totals = totals(context, edge)?;
            if totals.series >= MAX_SERIES {
                return Ok(Err(format!(
                    "the edge has {MAX_SERIES} series already, which is the most it may have"
                )));
            }
            context
                .connection
                .prepare_cached(
                    "INSERT INTO series (edge, asset, kind, member, point) VALUES (?1, ?2, ?3, ?4, ?5)",
                )?
                .execute(params![edge, asset, *kind as i64, member, point])?;
            totals.series += 1;
            context.caches.totals.insert(edge, totals);
            context.connection.last_insert_rowid()
        }
    };
    context.caches.series.insert(cached, id);
    Ok(Ok(id))
}

fn asset_id(
    context: &mut Context<'_>,
    edge: i64,
    asset: &AssetKey,
    now: i64,
) -> Result<Result<i64, String>, StoreError> {
    let AssetKey { namespace, name } = asset;
    let found = context
        .connection
        .prepare_cached("SELECT id FROM assets WHERE namespace = ?1 AND name = ?2 AND edge = ?3")?
        .query_row(params![namespace, name, edge], |row| row.get(0))
        .optional()?;
    if let Some(id) = found {
        return Ok(Ok(id));
    }
    let mut totals = totals(context, edge)?;
    if totals.assets >= MAX_ASSETS {
        return Ok(Err(format!(
            "the edge has {MAX_ASSETS} assets already, which is the most it may have"
        )));
    }
    context
        .connection
        .prepare_cached("INSERT INTO assets (edge, namespace, name, first_seen_at) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![edge, namespace, name, now])?;
    totals.assets += 1;
    context.caches.totals.insert(edge, totals);
    Ok(Ok(context.connection.last_insert_rowid()))
}

fn totals(context: &Context<'_>, edge: i64) -> Result<Totals, StoreError> {
    if let Some(totals) = context.caches.totals.get(&edge) {
        return Ok(*totals);
    }
    let count = |sql: &str| context.connection.query_row(sql, [edge], |row| row.get(0));
    Ok(Totals {
        assets: count("SELECT count(*) FROM assets WHERE edge = ?1")?,
        series: count("SELECT count(*) FROM series WHERE edge = ?1")?,
    })
}

/// Marks the assets that own these series as seen.
pub(super) fn saw_assets_of<'a>(
    connection: &Connection,
    series: impl Iterator<Item = &'a i64>,
    now: i64,
) -> Result<(), StoreError> {
    let mut owner = connection.prepare_cached("SELECT asset FROM series WHERE id = ?1")?;
    let mut assets = series
        .map(|id| owner.query_row([id], |row| row.get(0)))
        .collect::<Result<Vec<i64>, _>>()?;
    assets.sort_unstable();
    assets.dedup();
    let mut saw = connection.prepare_cached("UPDATE assets SET last_seen_at = ?2 WHERE id = ?1")?;
    for asset in assets {
        saw.execute([asset, now])?;
    }
    Ok(())
}

/// Takes what an edge says about its assets, in the place of what it said before. Of assets that it does not name any more
/// the history stays, and those without any are forgotten.
pub(crate) fn describe(
    context: &mut Context<'_>,
    edge: i64,
    version: &[u8],
    assets: &[(AssetKey, Value)],
    now: i64,
) -> Result<(), StoreError> {
    let connection = context.connection;
    connection.execute("UPDATE assets SET description = NULL WHERE edge = ?1", [edge])?;
    for (asset, description) in assets {
        // One asset too many has no description; its records are refused with the reason.
        if let Ok(id) = asset_id(context, edge, asset, now)? {
            connection
                .prepare_cached("UPDATE assets SET description = ?2 WHERE id = ?1")?
                .execute(params![id, description.to_string()])?;
        }
    }
    let mut totals = totals(context, edge)?;
    totals.assets -= connection.execute(
        "DELETE FROM assets WHERE edge = ?1 AND description IS NULL
         AND NOT EXISTS (SELECT 1 FROM series WHERE series.edge = ?1 AND series.asset = assets.id)",
        [edge],
    )? as i64;
    context.caches.totals.insert(edge, totals);
    connection.execute(
        "UPDATE edges SET registry_version = ?2 WHERE id = ?1",
        params![edge, version],
    )?;
    Ok(())
}

// === reading

/// Version of the registry that an edge told last; empty when it told none.
pub(crate) fn version(connection: &Connection, edge: i64) -> Result<Vec<u8>, StoreError> {
    let found: Option<Option<Vec<u8>>> = connection
        .prepare_cached("SELECT registry_version FROM edges WHERE id = ?1")?
        .query_row([edge], |row| row.get(0))
        .optional()?;
    Ok(found.flatten().unwrap_or_default())
}

/// An asset of an edge.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AssetRow {
    pub(crate) id: i64,
    pub(crate) edge: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) description: Option<Value>,
    /// Whether the edge has it still, as far as it tells.
    pub(crate) declared: bool,
    pub(crate) first_seen_at: i64,
    pub(crate) last_seen_at: Option<i64>,
}

/// Which assets to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct AssetFilter {
    pub(crate) edge: Option<String>,
    pub(crate) namespace: Option<String>,
    /// Namespace, name and edge after which the list goes on.
    pub(crate) after: Option<(String, String, String)>,
    pub(crate) limit: usize,
}

const ASSET: &str = "SELECT assets.id, edges.name, namespace, assets.name, description, first_seen_at,
    assets.last_seen_at, description IS NOT NULL OR registry_version IS NULL FROM assets JOIN edges ON edges.id = assets.edge";

fn asset(row: &Row<'_>) -> rusqlite::Result<AssetRow> {
    let description: Option<String> = row.get(4)?;
    Ok(AssetRow {
        id: row.get(0)?,
        edge: row.get(1)?,
        namespace: row.get(2)?,
        name: row.get(3)?,
        description: description.and_then(|text| serde_json::from_str(&text).ok()),
        first_seen_at: row.get(5)?,
        last_seen_at: row.get(6)?,
        declared: row.get(7)?,
    })
}

/// Assets by namespace, name and edge.
pub(crate) fn assets(connection: &Connection, filter: &AssetFilter) -> Result<Vec<AssetRow>, StoreError> {
    let AssetFilter {
        edge,
        namespace,
        after,
        limit,
    } = filter;
    let (after_namespace, after_name, after_edge) = after.clone().unwrap_or_default();
    let mut statement = connection.prepare_cached(&format!(
        "{ASSET} WHERE (namespace, assets.name, edges.name) > (?1, ?2, ?3)
         AND (?4 IS NULL OR edges.name = ?4) AND (?5 IS NULL OR namespace = ?5)
         ORDER BY namespace, assets.name, edges.name LIMIT ?6"
    ))?;
    let limit = i64::try_from(*limit).unwrap_or(i64::MAX);
    let found = statement.query_map(
        params![after_namespace, after_name, after_edge, edge, namespace, limit],
        asset,
    )?;
    found.map(|row| row.map_err(StoreError::from)).collect()
}

/// The assets of that name; several when several edges have one.
pub(crate) fn assets_named(connection: &Connection, key: &AssetKey) -> Result<Vec<AssetRow>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "{ASSET} WHERE namespace = ?1 AND assets.name = ?2 ORDER BY edges.name"
    ))?;
    let found = statement.query_map(params![key.namespace, key.name], asset)?;
    found.map(|row| row.map_err(StoreError::from)).collect()
}

/// What has a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeriesRow {
    pub(crate) id: i64,
    pub(crate) kind: Kind,
    pub(crate) member: String,
    pub(crate) point: String,
}

/// Which series of an asset to read.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeriesFilter {
    pub(crate) kind: Option<Kind>,
    pub(crate) member: Option<String>,
    pub(crate) point: Option<String>,
}

/// Series of an asset, by kind, member and point.
pub(crate) fn series_of(
    connection: &Connection,
    asset: i64,
    filter: &SeriesFilter,
) -> Result<Vec<SeriesRow>, StoreError> {
    let SeriesFilter { kind, member, point } = filter;
    let mut statement = connection.prepare_cached(
        "SELECT id, kind, member, point FROM series WHERE asset = ?1 AND (?2 IS NULL OR kind = ?2)
         AND (?3 IS NULL OR member = ?3) AND (?4 IS NULL OR point = ?4) ORDER BY kind, member, point",
    )?;
    let found = statement.query_map(
        params![asset, kind.map(|kind| kind as i64), member, point],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
    )?;
    let mut series = Vec::new();
    for row in found {
        let (id, kind, member, point): (i64, i64, String, String) = row?;
        // A kind of a later version is not shown by this one.
        series.extend(Kind::from_number(kind).map(|kind| SeriesRow {
            id,
            kind,
            member,
            point,
        }));
    }
    Ok(series)
}

/// Series of a topic that belongs to no asset; one for each edge, with the edge's name.
pub(crate) fn series_of_topic(
    connection: &Connection,
    topic: &str,
) -> Result<Vec<(i64, String)>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT series.id, edges.name FROM edges CROSS JOIN series ON series.edge = edges.id
         AND series.asset = 0 AND kind = ?1 AND member = ?2 AND point = '' ORDER BY edges.name",
    )?;
    let found = statement.query_map(params![Kind::Topic as i64, topic], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    found.map(|row| row.map_err(StoreError::from)).collect()
}

/// The last value of a series.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LastValue {
    pub(crate) time: i64,
    pub(crate) value: Value,
    pub(crate) status: u32,
    pub(crate) received_at: i64,
}

/// The last value of a series; `None` after its row was lost to a limit.
pub(crate) fn last_value(connection: &Connection, series: i64) -> Result<Option<LastValue>, StoreError> {
    let found = connection
        .prepare_cached("SELECT time, value, status, received_at FROM last_values WHERE series = ?1")?
        .query_row([series], |row| {
            Ok(LastValue {
                time: row.get(0)?,
                value: history::value_of(row, 1)?,
                status: row.get(2)?,
                received_at: row.get(3)?,
            })
        })
        .optional()?;
    Ok(found)
}
