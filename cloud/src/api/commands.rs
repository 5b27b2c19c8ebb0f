//! Commands and their audit.

use std::time::Duration;

use axum::{
    Extension, Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
};
use foreshore_edgelink::limits::MAX_NAME_LEN;
use foreshore_record::{CommandErrorCode, CommandRequest};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Api, Problem, page_size, tokens::Caller};
use crate::{
    audit::{self, AuditFilter, AuditRow},
    commands::{NotTried, Target},
    samples::AssetKey,
    store::registry::assets_named,
    times::nanoseconds,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct InvokeBody {
    /// Input of the action.
    #[serde(default)]
    input: Value,
    /// Seconds until the deadline.
    timeout: Option<f64>,
    /// A repeat with the same key is answered with the first one's outcome.
    idempotency_key: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InvokeQuery {
    edge: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    namespace: Option<String>,
    asset: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

pub(super) async fn invoke(
    State(api): State<Api>,
    Extension(Caller(caller)): Extension<Caller>,
    Path((namespace, name, group, action)): Path<(String, String, String, String)>,
    query: Result<Query<InvokeQuery>, QueryRejection>,
    body: Result<Json<InvokeBody>, JsonRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(InvokeQuery { edge }) = query?;
    let Json(body) = body.map_err(|rejection| Problem::bad_request(rejection.body_text()))?;
    let timeout = deadline(&api, body.timeout)?;
    let names = [
        ("namespace", &namespace),
        ("asset", &name),
        ("group", &group),
        ("action", &action),
    ];
    for (field, text) in names
        .into_iter()
        .chain(body.idempotency_key.iter().map(|key| ("idempotencyKey", key)))
    {
        if text.is_empty() || text.len() > MAX_NAME_LEN || text.contains(['/', '+', '#', '\0']) {
            let allowed = format!("1 to {MAX_NAME_LEN} bytes without '/', '+' and '#' are allowed");
            return Err(Problem::bad_request(format!("{field} is {text:?}, {allowed}")));
        }
    }
    let target = target(&api, &namespace, &name, edge.as_deref()).await?;
    let has_key = body.idempotency_key.is_some();
    let now = Timestamp::now();
    let request = CommandRequest {
        namespace,
        asset: name,
        group,
        action,
        input: body.input,
        deadline: now.checked_add(timeout).unwrap_or(now),
        idempotency_key: body.idempotency_key.unwrap_or_else(|| Uuid::now_v7().to_string()),
        actor: caller,
    };
    let answer = api
        .commands
        .invoke(target, request, has_key)
        .await
        .map_err(|error| match error {
            NotTried::Conflict => {
                Problem::new(StatusCode::CONFLICT, "IdempotencyKeyReused", error.to_string())
            }
            NotTried::Store(ref cause) => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, cause.reason(), error.to_string())
            }
        })?;
    match answer.outcome {
        Ok(output) => Ok(Json(
            json!({ "id": answer.id, "outcome": "ok", "output": output, "repeated": answer.repeated }),
        )),
        Err(error) => {
            let problem = Problem::new(status_of(error.code), error.code.as_str(), error.message)
                .with("id", answer.id)
                .with("outcome", error.code.as_str())
                .with("repeated", answer.repeated);
            Err(match error.device_status {
                Some(status) => problem.with("deviceStatus", status),
                None => problem,
            })
        }
    }
}

/// The edge that has the asset; `None` when none has, or none has it any more.
async fn target(
    api: &Api,
    namespace: &str,
    name: &str,
    edge: Option<&str>,
) -> Result<Option<Target>, Problem> {
    let key = AssetKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let mut found = api
        .store
        .read(move |connection| assets_named(connection, &key))
        .await?;
    found.retain(|asset| asset.declared);
    if let Some(edge) = edge {
        found.retain(|asset| asset.edge == edge);
    }
    if found.len() > 1 {
        let edges: Vec<Value> = found.into_iter().map(|asset| json!(asset.edge)).collect();
        let detail = "several edges have this asset: the query parameter `edge` says which is meant";
        return Err(Problem::new(StatusCode::CONFLICT, "Ambiguous", detail).with("edges", edges));
    }
    let row = found.pop().and_then(|asset| api.directory.row(&asset.edge));
    Ok(row.map(|row| Target {
        id: row.id,
        name: row.name,
    }))
}

fn deadline(api: &Api, seconds: Option<f64>) -> Result<Duration, Problem> {
    let longest = api.command_options.max_timeout;
    let Some(seconds) = seconds else {
        return Ok(api.command_options.timeout.min(longest));
    };
    let timeout = Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|timeout| !timeout.is_zero() && *timeout <= longest);
    timeout.ok_or_else(|| {
        let allowed = longest.as_secs_f64();
        Problem::bad_request(format!(
            "timeout is {seconds} s, more than 0 and at most {allowed} are allowed"
        ))
    })
}

fn status_of(code: CommandErrorCode) -> StatusCode {
    use CommandErrorCode as Code;
    match code {
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::InvalidInput => StatusCode::UNPROCESSABLE_ENTITY,
        Code::Forbidden => StatusCode::FORBIDDEN,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded | Code::Unknown => StatusCode::GATEWAY_TIMEOUT,
        Code::DeviceFailed => StatusCode::BAD_GATEWAY,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

pub(super) async fn audit(
    State(api): State<Api>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(AuditQuery {
        namespace,
        asset,
        limit,
        after,
    }) = query?;
    let limit = page_size(limit)?;
    let after = after.as_deref().map(read_cursor).transpose()?;
    let filter = AuditFilter {
        namespace,
        asset,
        after,
        limit,
    };
    let rows = api
        .store
        .read(move |connection| audit::list(connection, &filter))
        .await?;
    let next = rows.last().filter(|_| rows.len() == limit);
    let next = next.map(|row| format!("{}.{}", nanoseconds(row.begun_at), row.id));
    let items: Vec<Value> = rows.into_iter().map(describe).collect();
    Ok(Json(json!({ "items": items, "next": next })))
}

fn describe(row: AuditRow) -> Value {
    let AuditRow {
        id,
        begun_at,
        ended_at,
        edge,
        request,
        has_key,
        outcome,
    } = row;
    let mut item = json!({
        "id": id,
        "begunAt": begun_at,
        "actor": request.actor,
        "namespace": request.namespace,
        "asset": request.asset,
        "group": request.group,
        "action": request.action,
        "input": request.input,
        "deadline": request.deadline,
    });
    let mut set = |member: &str, value: Option<Value>| {
        if let Some(value) = value {
            item[member] = value;
        }
    };
    set("edge", edge.map(Value::from));
    set("endedAt", ended_at.map(|time| json!(time)));
    set(
        "idempotencyKey",
        has_key.then(|| Value::from(request.idempotency_key)),
    );
    match outcome {
        None => set("outcome", Some(json!("running"))),
        Some(Ok(output)) => {
            set("outcome", Some(json!("ok")));
            set("output", Some(output));
        }
        Some(Err(error)) => {
            set("outcome", Some(json!(error.code)));
            set("message", Some(json!(error.message)));
            set("deviceStatus", error.device_status.map(Value::from));
        }
    }
    item
}

fn read_cursor(text: &str) -> Result<(i64, String), Problem> {
    let parts = text
        .split_once('.')
        .and_then(|(time, id)| Some((time.parse().ok()?, id.to_owned())));
    parts.ok_or_else(|| Problem::bad_request("after is not a `next` of an earlier answer"))
}
