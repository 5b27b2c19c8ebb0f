//! Values: the last ones, and all of them by time.

use std::{cmp::Reverse, collections::BinaryHeap};

use bytes::Bytes;
use rusqlite::{
    Connection, OptionalExtension, Row, Rows, ToSql, params,
    types::{ToSqlOutput, ValueRef},
};
use serde_json::Value;

use super::{Context, StoreError};
use crate::samples::{Content, Sample};

/// A value as the database keeps it: numbers and texts as themselves, the rest as JSON.
struct Stored<'a>(&'a Value);

impl ToSql for Stored<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let json = || ToSqlOutput::from(self.0.to_string().into_bytes());
        Ok(match self.0 {
            Value::Null => ToSqlOutput::from(rusqlite::types::Null),
            Value::String(text) => ToSqlOutput::from(text.as_str()),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(integer), _) => ToSqlOutput::from(integer),
                (None, Some(real)) if !number.is_u64() => ToSqlOutput::from(real),
                _ => json(),
            },
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => json(),
        })
    }
}

fn value(stored: ValueRef<'_>) -> Value {
    match stored {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(integer) => Value::from(integer),
        // Not a number and the infinities are no JSON; none was stored.
        ValueRef::Real(real) => Value::from(real),
        ValueRef::Text(text) => Value::from(String::from_utf8_lossy(text)),
        ValueRef::Blob(json) => serde_json::from_slice(json).unwrap_or_default(),
    }
}

// === writing

/// The number that the next output gets.
pub(super) fn next_receipt(context: &mut Context<'_>) -> Result<i64, StoreError> {
    if let Some(next) = context.caches.next_receipt {
        return Ok(next);
    }
    let next = context
        .connection
        .prepare_cached("SELECT value FROM numbers WHERE name = 'next_receipt'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    Ok(next.unwrap_or(1))
}

pub(super) fn set_next_receipt(context: &mut Context<'_>, next: i64) -> Result<(), StoreError> {
    context.caches.next_receipt = Some(next);
    context
        .connection
        .prepare_cached(
            "INSERT INTO numbers (name, value) VALUES ('next_receipt', ?1)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
        )?
        .execute([next])?;
    Ok(())
}

pub(super) fn insert(
    connection: &Connection,
    series: i64,
    receipt: i64,
    sample: &Sample,
) -> Result<(), StoreError> {
    let stored = match &sample.content {
        Content::Json(value) => value,
        Content::Payload {
            description,
            content_type,
            body,
        } => {
            connection
                .prepare_cached("INSERT INTO payloads (receipt, content_type, body) VALUES (?1, ?2, ?3)")?
                .execute(params![receipt, content_type, &body[..]])?;
            description
        }
    };
    connection
        .prepare_cached(
            "INSERT INTO history (series, time, receipt, value, status) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            series,
            sample.time,
            receipt,
            Stored(stored),
            sample.status
        ])?;
    Ok(())
}

/// Takes a value as the series' last one if it is the newest. A time in the future counts as the time of arrival, so
/// that one value of a clock that ran ahead does not hide all that follow.
pub(super) fn set_last(
    connection: &Connection,
    series: i64,
    receipt: i64,
    sample: &Sample,
    received_at: i64,
) -> Result<(), StoreError> {
    let (Content::Json(value)
    | Content::Payload {
        description: value, ..
    }) = &sample.content;
    connection
        .prepare_cached(
            "INSERT INTO last_values (series, time, receipt, value, status, received_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (series) DO UPDATE SET time = excluded.time, receipt = excluded.receipt,
                 value = excluded.value, status = excluded.status, received_at = excluded.received_at
             WHERE min(excluded.time, excluded.received_at) >= min(last_values.time, last_values.received_at)",
        )?
        .execute(params![series, sample.time, receipt, Stored(value), sample.status, received_at])?;
    Ok(())
}

// === reading

/// A value of the history.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Observed {
    pub(crate) place: Place,
    pub(crate) value: Value,
    pub(crate) status: u32,
}

/// Where a value stands in the order of time. Outputs of one receipt hold values of many series, often of one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) time: i64,
    pub(crate) receipt: i64,
    pub(crate) series: i64,
}

/// Values of several series with `from <= time < to` and a place behind `after`, in order of time; at most `limit`.
///
/// Reads as many rows as it returns and one for each series, however long the histories are.
pub(crate) fn values(
    connection: &Connection,
    series: &[i64],
    from: i64,
    to: i64,
    after: Option<Place>,
    limit: usize,
) -> Result<Vec<Observed>, StoreError> {
    const SELECT: &str = "SELECT time, receipt, value, status FROM history
        WHERE series = ?1 AND (time, receipt) > (?2, ?3) AND time < ?4 ORDER BY time, receipt";
    // Before all values of that time: receipts and series begin at 1.
    let begin = Place {
        time: from,
        receipt: 0,
        series: 0,
    };
    let start = after.map_or(begin, |after| after.max(begin));
    let mut statements = series
        .iter()
        .map(|_| connection.prepare(SELECT))
        .collect::<Result<Vec<_>, _>>()?;
    let mut cursors: Vec<Rows<'_>> = Vec::with_capacity(series.len());
    for (statement, id) in statements.iter_mut().zip(series) {
        let receipt = if *id > start.series {
            start.receipt - 1
        } else {
            start.receipt
        };
        cursors.push(statement.query(params![id, start.time, receipt, to])?);
    }
    let mut heads = BinaryHeap::with_capacity(series.len());
    let mut rows: Vec<Option<Observed>> = Vec::with_capacity(series.len());
    for (column, cursor) in cursors.iter_mut().enumerate() {
        let row = next(cursor, series[column])?;
        heads.extend(row.as_ref().map(|row| Reverse((row.place, column))));
        rows.push(row);
    }
    let mut found = Vec::new();
    while found.len() < limit {
        let Some(Reverse((_, column))) = heads.pop() else {
            break;
        };
        let following = next(&mut cursors[column], series[column])?;
        heads.extend(following.as_ref().map(|row| Reverse((row.place, column))));
        found.extend(std::mem::replace(&mut rows[column], following));
    }
    Ok(found)
}

fn next(cursor: &mut Rows<'_>, series: i64) -> Result<Option<Observed>, StoreError> {
    let Some(row) = cursor.next()? else {
        return Ok(None);
    };
    let place = Place {
        time: row.get(0)?,
        receipt: row.get(1)?,
        series,
    };
    Ok(Some(Observed {
        place,
        value: value(row.get_ref(2)?),
        status: row.get(3)?,
    }))
}

/// Reads `value` and `status` of a row.
pub(super) fn value_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Value> {
    Ok(value(row.get_ref(column)?))
}

/// A payload that is no JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) time: i64,
    pub(crate) content_type: Option<String>,
    pub(crate) body: Bytes,
}

/// The newest payload of a series, at a time or before it.
pub(crate) fn payload(connection: &Connection, series: i64, at: i64) -> Result<Option<Payload>, StoreError> {
    let found = connection
        .prepare_cached(
            "SELECT time, content_type, body FROM history JOIN payloads USING (receipt)
             WHERE series = ?1 AND time <= ?2 ORDER BY time DESC, receipt DESC LIMIT 1",
        )?
        .query_row(params![series, at], |row| {
            Ok(Payload {
                time: row.get(0)?,
                content_type: row.get(1)?,
                body: row.get::<_, Vec<u8>>(2)?.into(),
            })
        })
        .optional()?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_value_comes_back_as_it_went() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE t (v ANY) STRICT").unwrap();
        for original in [
            json!(null),
            json!(true),
            json!(false),
            json!(0),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(5.0),
            json!(-0.1),
            json!(1e300),
            json!(""),
            json!("5"),
            json!("ünï"),
            json!([1, "a", null]),
            json!({ "b": 1, "a": [] }),
        ] {
            connection.execute("DELETE FROM t", []).unwrap();
            connection
                .execute("INSERT INTO t VALUES (?1)", [Stored(&original)])
                .unwrap();
            let read = connection
                .query_row("SELECT v FROM t", [], |row| value_of(row, 0))
                .unwrap();
            assert_eq!(read, original);
            assert_eq!(read.to_string(), original.to_string());
        }
    }
}
