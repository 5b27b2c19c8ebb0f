//! Assets and their last values.

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, Problem, find_asset, page_size};
use crate::{
    samples::AssetKey,
    store::{
        StoreError,
        registry::{self, AssetFilter, AssetRow, SeriesFilter},
    },
    times::timestamp,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    edge: Option<String>,
    namespace: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

/// Which edge's asset is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EdgeQuery {
    edge: Option<String>,
}

pub(super) async fn list(
    State(api): State<Api>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(ListQuery {
        edge,
        namespace,
        limit,
        after,
    }) = query?;
    let limit = page_size(limit)?;
    let after = after.as_deref().map(read_cursor).transpose()?;
    let filter = AssetFilter {
        edge,
        namespace,
        after,
        limit,
    };
    let rows = api
        .store
        .read(move |connection| registry::assets(connection, &filter))
        .await?;
    let next = rows.last().filter(|_| rows.len() == limit);
    let next = next.map(|row| format!("{}/{}/{}", row.namespace, row.name, row.edge));
    let items: Vec<Value> = rows.iter().map(describe).collect();
    Ok(Json(json!({ "items": items, "next": next })))
}

pub(super) async fn show(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
    query: Result<Query<EdgeQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(EdgeQuery { edge }) = query?;
    let asset = find_asset(&api.store, AssetKey { namespace, name }, edge.as_deref()).await?;
    let id = asset.id;
    let points = api.store.read(move |connection| {
        let series = registry::series_of(connection, id, &SeriesFilter::default())?;
        let mut points = Vec::with_capacity(series.len());
        for series in series {
            let mut point = json!({ "kind": series.kind, "member": series.member, "point": series.point });
            if let Some(last) = registry::last_value(connection, series.id)? {
                point["time"] = json!(timestamp(last.time));
                point["receivedAt"] = json!(timestamp(last.received_at));
                point["value"] = last.value;
                point["statusCode"] = json!(last.status);
            }
            points.push(point);
        }
        Ok::<_, StoreError>(points)
    });
    let mut answer = describe(&asset);
    answer["points"] = Value::Array(points.await?);
    Ok(Json(answer))
}

fn describe(asset: &AssetRow) -> Value {
    let mut item = json!({
        "namespace": asset.namespace,
        "name": asset.name,
        "edge": asset.edge,
        "declared": asset.declared,
        "firstSeenAt": timestamp(asset.first_seen_at),
    });
    if let Some(time) = asset.last_seen_at {
        item["lastSeenAt"] = json!(timestamp(time));
    }
    if let Some(description) = &asset.description {
        item["description"] = description.clone();
    }
    item
}

/// Names of edges have no slash, nor have those of assets and namespaces that our own connectors write.
fn read_cursor(after: &str) -> Result<(String, String, String), Problem> {
    let parts: Vec<&str> = after.split('/').collect();
    let [namespace, name, edge] = parts[..] else {
        return Err(Problem::bad_request("after is not a `next` of an earlier answer"));
    };
    Ok((namespace.to_owned(), name.to_owned(), edge.to_owned()))
}
