//! History.

use std::collections::HashMap;

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, Problem, find_asset, page_size};
use crate::{
    samples::{AssetKey, Kind},
    store::{
        StoreError,
        history::{self, Observed, Place},
        registry::{self, SeriesFilter, SeriesRow},
    },
    times::{nanoseconds, timestamp},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ValuesQuery {
    /// First time; the beginning where it is left out.
    from: Option<Timestamp>,
    /// First time that is not included; the end where it is left out.
    to: Option<Timestamp>,
    /// Only this dataset, event or stream.
    member: Option<String>,
    /// Only this data point.
    point: Option<String>,
    limit: Option<usize>,
    /// `next` of the answer before.
    after: Option<String>,
    edge: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TopicQuery {
    topic: String,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    limit: Option<usize>,
    after: Option<String>,
    edge: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PictureQuery {
    /// The newest picture that is not newer.
    at: Option<Timestamp>,
    edge: Option<String>,
}

struct Range {
    from: i64,
    to: i64,
    after: Option<Place>,
    limit: usize,
}

impl Range {
    fn new(
        from: Option<Timestamp>,
        to: Option<Timestamp>,
        after: Option<String>,
        limit: Option<usize>,
    ) -> Result<Self, Problem> {
        if let (Some(from), Some(to)) = (from, to)
            && to < from
        {
            return Err(Problem::bad_request(format!("to ({to}) is before from ({from})")));
        }
        let from = from.map_or(i64::MIN, nanoseconds);
        let to = to.map_or(i64::MAX, nanoseconds);
        let after = after.as_deref().map(read_cursor).transpose()?;
        Ok(Self {
            from,
            to,
            after,
            limit: page_size(limit)?,
        })
    }
}

pub(super) async fn of_asset(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
    query: Result<Query<ValuesQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(ValuesQuery {
        from,
        to,
        member,
        point,
        limit,
        after,
        edge,
    }) = query?;
    let range = Range::new(from, to, after, limit)?;
    let limit = range.limit;
    let asset = find_asset(&api.store, AssetKey { namespace, name }, edge.as_deref()).await?;
    let read = api.store.read(move |connection| {
        let filter = SeriesFilter {
            kind: None,
            member,
            point,
        };
        let series = registry::series_of(connection, asset.id, &filter)?;
        let ids: Vec<i64> = series.iter().map(|series| series.id).collect();
        let values = history::values(connection, &ids, range.from, range.to, range.after, range.limit)?;
        Ok::<_, StoreError>((series, values))
    });
    let (series, values) = read.await?;
    let series: HashMap<i64, SeriesRow> = series.into_iter().map(|series| (series.id, series)).collect();
    Ok(page(values, limit, |value| {
        let series = series.get(&value.place.series);
        let name = |name: fn(&SeriesRow) -> &String| series.map(name);
        json!({
            "kind": series.map(|series| series.kind),
            "member": name(|series| &series.member),
            "point": name(|series| &series.point),
        })
    }))
}

pub(super) async fn of_topic(
    State(api): State<Api>,
    query: Result<Query<TopicQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(TopicQuery {
        topic,
        from,
        to,
        limit,
        after,
        edge,
    }) = query?;
    let range = Range::new(from, to, after, limit)?;
    let limit = range.limit;
    let read = api.store.read(move |connection| {
        let mut series = registry::series_of_topic(connection, &topic)?;
        series.retain(|(_, name)| edge.as_ref().is_none_or(|edge| edge == name));
        let ids: Vec<i64> = series.iter().map(|(id, _)| *id).collect();
        let values = history::values(connection, &ids, range.from, range.to, range.after, range.limit)?;
        Ok::<_, StoreError>((series.into_iter().collect::<HashMap<_, _>>(), values))
    });
    let (edges, values) = read.await?;
    Ok(page(
        values,
        limit,
        |value| json!({ "edge": edges.get(&value.place.series) }),
    ))
}

pub(super) async fn picture(
    State(api): State<Api>,
    Path((namespace, name, stream)): Path<(String, String, String)>,
    query: Result<Query<PictureQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(PictureQuery { at, edge }) = query?;
    let asset = find_asset(&api.store, AssetKey { namespace, name }, edge.as_deref()).await?;
    let none = Problem::new(
        StatusCode::NOT_FOUND,
        "NotFound",
        format!("stream {stream:?} has no picture"),
    );
    let found = api.store.read(move |connection| {
        let filter = SeriesFilter {
            kind: Some(Kind::Stream),
            member: Some(stream),
            point: None,
        };
        match registry::series_of(connection, asset.id, &filter)?.first() {
            Some(series) => history::payload(connection, series.id, at.map_or(i64::MAX, nanoseconds)),
            None => Ok(None),
        }
    });
    let payload = found.await?.ok_or(none)?;
    // What a camera calls its picture is shown, but never run: a browser must not take it for a page.
    let is_picture = |kind: &&String| kind.starts_with("image/");
    let content_type = payload
        .content_type
        .as_ref()
        .filter(is_picture)
        .map_or("application/octet-stream", String::as_str);
    let headers = [
        (header::CONTENT_TYPE, content_type.to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::CONTENT_SECURITY_POLICY, "sandbox".to_owned()),
        (
            header::HeaderName::from_static("foreshore-captured-at"),
            timestamp(payload.time).to_string(),
        ),
    ];
    Ok((headers, payload.body).into_response())
}

fn page(values: Vec<Observed>, limit: usize, describe: impl Fn(&Observed) -> Value) -> Json<Value> {
    let next = values.last().filter(|_| values.len() == limit);
    let next = next.map(|value| cursor(value.place));
    let items: Vec<Value> = values
        .into_iter()
        .map(|value| {
            let mut item = describe(&value);
            item["time"] = json!(timestamp(value.place.time));
            item["value"] = value.value;
            item["statusCode"] = json!(value.status);
            item
        })
        .collect();
    Json(json!({ "items": items, "next": next }))
}

fn cursor(
    Place {
        time,
        receipt,
        series,
    }: Place,
) -> String {
    format!("{time}.{receipt}.{series}")
}

fn read_cursor(text: &str) -> Result<Place, Problem> {
    let numbers: Option<Vec<i64>> = text.split('.').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[time, receipt, series]) if receipt > 0 => Ok(Place {
            time,
            receipt,
            series,
        }),
        _ => Err(Problem::bad_request("after is not a `next` of an earlier answer")),
    }
}
