//! Counts of every path.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, Problem};
use crate::store::ledger;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LedgerQuery {
    edge: Option<String>,
}

pub(super) async fn show(
    State(api): State<Api>,
    query: Result<Query<LedgerQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(LedgerQuery { edge }) = query?;
    let counts = api
        .store
        .read(move |connection| ledger::counts(connection, edge.as_deref()))
        .await?;
    Ok(Json(json!({ "items": counts })))
}
