//! The record of every command: who asked for what, and what became of it.
//!
//! A command is written down before it is sent, so that there is none without a trace; by its idempotency key a repeat
//! is recognised.

use foreshore_record::{CommandError, CommandErrorCode, CommandOutcome, CommandRequest};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use crate::{
    store::{Context, StoreError},
    times::{nanoseconds, timestamp},
};

/// Outcome of a command that succeeded.
const OK: &str = "ok";

/// Records that one transaction deletes.
const DELETED_AT_ONCE: i64 = 500;

/// A command that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Names the command.
    pub(crate) id: String,
    pub(crate) begun_at: Timestamp,
    /// The edge that has the asset; `None` when there is no such asset.
    pub(crate) edge: Option<String>,
    pub(crate) request: CommandRequest,
    /// Whether the caller chose the request's idempotency key. One of ours is never repeated.
    pub(crate) has_key: bool,
}

/// What the audit knows of a command that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Begun {
    /// It is new, or an earlier one of the same key did not take effect: it was written down.
    New,
    /// One of the same key runs.
    Running {
        /// Its id.
        id: String,
    },
    /// One of the same key has its outcome.
    Ended {
        /// Its id.
        id: String,
        /// Its outcome.
        outcome: CommandOutcome,
    },
    /// One of the same key asked for something else.
    Conflict,
}

/// A command and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AuditRow {
    pub(crate) id: String,
    pub(crate) begun_at: Timestamp,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) edge: Option<String>,
    pub(crate) request: CommandRequest,
    pub(crate) has_key: bool,
    /// `None` while it runs.
    pub(crate) outcome: Option<CommandOutcome>,
}

/// Which records to list, the newest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct AuditFilter {
    pub(crate) namespace: Option<String>,
    pub(crate) asset: Option<String>,
    /// Time and id after which the list goes on.
    pub(crate) after: Option<(i64, String)>,
    pub(crate) limit: usize,
}

const ROW: &str = "SELECT id, begun_at, ended_at, actor, edge, namespace, asset, action_group, action, input,
    idempotency_key, deadline, outcome, output, message, device_status FROM audit";

/// Writes down that a command begins, with its outcome where that is known at once.
pub(crate) fn begin(
    context: &mut Context<'_>,
    asked: &Asked,
    outcome: Option<&CommandOutcome>,
) -> Result<Begun, StoreError> {
    let Asked {
        id,
        begun_at,
        edge,
        request,
        has_key,
    } = asked;
    let connection = context.connection;
    if *has_key && let Some(earlier) = newest_of_key(connection, request)? {
        let AuditRow {
            id,
            request: then,
            outcome,
            ..
        } = earlier;
        if (&then.group, &then.action, &then.input) != (&request.group, &request.action, &request.input) {
            return Ok(Begun::Conflict);
        }
        match outcome {
            None => return Ok(Begun::Running { id }),
            Some(outcome) if is_final(&outcome) => return Ok(Begun::Ended { id, outcome }),
            Some(_) => {}
        }
    }
    connection
        .prepare_cached(
            "INSERT INTO audit (id, begun_at, actor, edge, namespace, asset, action_group, action, input,
                 idempotency_key, deadline) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute(params![
            id,
            nanoseconds(*begun_at),
            request.actor,
            edge,
            request.namespace,
            request.asset,
            request.group,
            request.action,
            request.input.to_string(),
            has_key.then_some(&request.idempotency_key),
            nanoseconds(request.deadline),
        ])?;
    if let Some(outcome) = outcome {
        end(context, id, outcome, *begun_at)?;
    }
    Ok(Begun::New)
}

/// Writes down what became of a command. A known outcome stays; only `Unknown` gives way to one that arrives late.
pub(crate) fn end(
    context: &mut Context<'_>,
    id: &str,
    outcome: &CommandOutcome,
    ended_at: Timestamp,
) -> Result<bool, StoreError> {
    let (code, output, message, device_status) = match outcome {
        Ok(output) => (OK, Some(output.to_string()), None, None),
        Err(error) => (
            error.code.as_str(),
            None,
            Some(&error.message),
            error.device_status.as_ref(),
        ),
    };
    let updated = context
        .connection
        .prepare_cached(
            "UPDATE audit SET ended_at = ?2, outcome = ?3, output = ?4, message = ?5, device_status = ?6
             WHERE id = ?1 AND (outcome IS NULL OR outcome = 'Unknown')",
        )?
        .execute(params![
            id,
            nanoseconds(ended_at),
            code,
            output,
            message,
            device_status
        ])?;
    Ok(updated == 1)
}

/// Writes down an outcome that came after its deadline, if the command was this edge's.
pub(crate) fn end_late(
    context: &mut Context<'_>,
    edge: &str,
    id: &str,
    outcome: &CommandOutcome,
    ended_at: Timestamp,
) -> Result<bool, StoreError> {
    let is_its_own = context
        .connection
        .prepare_cached("SELECT 1 FROM audit WHERE id = ?1 AND edge = ?2")?
        .exists([id, edge])?;
    if is_its_own {
        end(context, id, outcome, ended_at)
    } else {
        Ok(false)
    }
}

/// Ends what was running when the process ended.
pub(crate) fn end_interrupted(context: &mut Context<'_>, now: Timestamp) -> Result<(), StoreError> {
    context.connection.execute(
        "UPDATE audit SET ended_at = ?1, outcome = 'Unknown',
             message = 'the cloud endpoint ended before the outcome arrived' WHERE outcome IS NULL",
        [nanoseconds(now)],
    )?;
    Ok(())
}

/// Deletes records that began before a time; `true` when more are left.
pub(crate) fn delete_before(context: &mut Context<'_>, before: i64) -> Result<bool, StoreError> {
    let deleted = context.connection.execute(
        "DELETE FROM audit WHERE id IN
         (SELECT id FROM audit WHERE begun_at < ?1 AND outcome IS NOT NULL LIMIT ?2)",
        [before, DELETED_AT_ONCE],
    )?;
    Ok(deleted as i64 == DELETED_AT_ONCE)
}

/// Lists records, the newest first.
pub(crate) fn list(connection: &Connection, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
    let AuditFilter {
        namespace,
        asset,
        after,
        limit,
    } = filter;
    let (time, id) = after.clone().unwrap_or((i64::MAX, String::new()));
    let mut statement = connection.prepare_cached(&format!(
        "{ROW} WHERE (begun_at, id) < (?1, ?2) AND (?3 IS NULL OR namespace = ?3) AND (?4 IS NULL OR asset = ?4)
         ORDER BY begun_at DESC, id DESC LIMIT ?5"
    ))?;
    let limit = i64::try_from(*limit).unwrap_or(i64::MAX);
    let found = statement.query_map(params![time, id, namespace, asset, limit], row)?;
    found.map(|row| row.map_err(StoreError::from)).collect()
}

fn newest_of_key(connection: &Connection, request: &CommandRequest) -> Result<Option<AuditRow>, StoreError> {
    let found = connection
        .prepare_cached(&format!(
            "{ROW} WHERE namespace = ?1 AND asset = ?2 AND idempotency_key = ?3 ORDER BY begun_at DESC, id DESC LIMIT 1"
        ))?
        .query_row(params![request.namespace, request.asset, request.idempotency_key], row)
        .optional()?;
    Ok(found)
}

/// Whether a repeat is answered with this outcome. After the others it is tried again: the command did not begin, or
/// the connector, which remembers keys too, may know by now.
fn is_final(outcome: &CommandOutcome) -> bool {
    use CommandErrorCode as Code;
    match outcome {
        Ok(_) => true,
        Err(error) => match error.code {
            Code::NotFound | Code::InvalidInput | Code::Forbidden | Code::DeviceFailed => true,
            Code::Unavailable | Code::DeadlineExceeded | Code::Unknown | Code::Internal => false,
        },
    }
}

fn row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    let text = |column| row.get::<_, String>(column);
    let json = |text: String| serde_json::from_str::<Value>(&text).unwrap_or_default();
    let key: Option<String> = row.get(10)?;
    let outcome = match row.get::<_, Option<String>>(12)? {
        None => None,
        Some(code) if code == OK => Some(Ok(row
            .get::<_, Option<String>>(13)?
            .map(json)
            .unwrap_or_default())),
        Some(code) => Some(Err(CommandError {
            // A code of a later version is unknown to this one, in the word's own sense.
            code: serde_json::from_value(Value::from(code)).unwrap_or(CommandErrorCode::Unknown),
            message: row.get::<_, Option<String>>(14)?.unwrap_or_default(),
            device_status: row.get(15)?,
        })),
    };
    Ok(AuditRow {
        id: text(0)?,
        begun_at: timestamp(row.get(1)?),
        ended_at: row.get::<_, Option<i64>>(2)?.map(timestamp),
        edge: row.get(4)?,
        has_key: key.is_some(),
        request: CommandRequest {
            actor: text(3)?,
            namespace: text(5)?,
            asset: text(6)?,
            group: text(7)?,
            action: text(8)?,
            input: json(text(9)?),
            idempotency_key: key.unwrap_or_default(),
            deadline: timestamp(row.get(11)?),
        },
        outcome,
    })
}
