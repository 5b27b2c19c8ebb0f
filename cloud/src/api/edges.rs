//! Edges.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde_json::{Value, json};

use super::{Api, Problem};
use crate::{store::edges, times::timestamp};

pub(super) async fn list(State(api): State<Api>) -> Result<Json<Value>, Problem> {
    let rows = api.store.read(edges::all).await?;
    let items: Vec<Value> = rows
        .into_iter()
        .map(|row| {
            let connected = api.sessions.connected(row.id);
            let mut item = json!({
                "name": row.name,
                "connected": connected.is_some(),
                "admittedAt": timestamp(row.admitted_at),
                "certificateEndsAt": timestamp(row.certificate_ends_at),
            });
            for (member, time) in [("lastSeenAt", row.last_seen_at), ("revokedAt", row.revoked_at)] {
                if let Some(time) = time {
                    item[member] = json!(timestamp(time));
                }
            }
            if let Some(connected) = connected {
                item["connectedAt"] = json!(connected.since);
                item["address"] = json!(connected.address.to_string());
                item["software"] = json!(connected.software);
            }
            item
        })
        .collect();
    Ok(Json(json!({ "items": items })))
}

pub(super) async fn revoke(State(api): State<Api>, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    if api.directory.revoke(&name).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("there is no edge {name:?}"),
        ))
    }
}
