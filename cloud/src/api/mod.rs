//! The HTTP JSON API. Errors are problem details (RFC 9457) with a `code`.
//!
//! | request | answer |
//! |---|---|
//! | `GET /api/edges` | edges, whether they are connected |
//! | `POST /api/edges/{name}/revoke` | revokes an edge's certificate |
//! | `GET /api/assets` | assets, page by page |
//! | `GET /api/assets/{namespace}/{name}` | one asset with its last values |
//! | `GET /api/assets/{namespace}/{name}/values` | its history |
//! | `GET /api/assets/{namespace}/{name}/streams/{stream}` | the newest picture |
//! | `POST /api/assets/{namespace}/{name}/commands/{group}/{action}` | a command and its outcome |
//! | `GET /api/topics/values` | history of a topic that belongs to no asset |
//! | `GET /api/ledger` | counts of every path |
//! | `GET /api/audit` | commands and their outcomes |

mod assets;
mod commands;
mod edges;
mod ledger;
mod listen;
mod tokens;
mod values;

use axum::{
    Json, Router,
    extract::rejection::QueryRejection,
    http::{StatusCode, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Map, Value, json};

pub(crate) use listen::serve;
pub(crate) use tokens::Tokens;

use crate::{
    commands::Commands,
    directory::Directory,
    link::Sessions,
    options::CommandOptions,
    samples::AssetKey,
    store::{
        Store, StoreError,
        registry::{AssetRow, assets_named},
    },
};

/// Most bytes of a request's body.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// Items of a page where the request does not say, and the most that it may ask for.
const DEFAULT_LIMIT: usize = 1_000;
const MAX_LIMIT: usize = 10_000;

/// What requests are answered from.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) directory: Directory,
    pub(crate) sessions: Sessions,
    pub(crate) commands: Commands,
    pub(crate) command_options: CommandOptions,
    pub(crate) tokens: Tokens,
}

/// All routes, behind the tokens.
pub(crate) fn router(api: Api) -> Router {
    Router::new()
        .route("/api/edges", get(edges::list))
        .route("/api/edges/{name}/revoke", post(edges::revoke))
        .route("/api/assets", get(assets::list))
        .route("/api/assets/{namespace}/{name}", get(assets::show))
        .route("/api/assets/{namespace}/{name}/values", get(values::of_asset))
        .route(
            "/api/assets/{namespace}/{name}/streams/{*stream}",
            get(values::picture),
        )
        .route(
            "/api/assets/{namespace}/{name}/commands/{group}/{action}",
            post(commands::invoke),
        )
        .route("/api/topics/values", get(values::of_topic))
        .route("/api/ledger", get(ledger::show))
        .route("/api/audit", get(commands::audit))
        .fallback(async || {
            Problem::new(
                StatusCode::NOT_FOUND,
                "NotFound",
                "there is nothing at this address",
            )
        })
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "the address takes another method",
            )
        })
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(api.clone(), tokens::authorize))
        .with_state(api)
}

/// Why a request has no other answer (RFC 9457).
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    more: Map<String, Value>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            more: Map::new(),
        }
    }

    pub(crate) fn bad_request(detail: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidRequest", detail.to_string())
    }

    /// Adds a member.
    pub(crate) fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.more.insert(member.to_owned(), value.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self {
            status,
            code,
            detail,
            mut more,
        } = self;
        more.insert("type".to_owned(), json!("about:blank"));
        more.insert("title".to_owned(), json!(status.canonical_reason()));
        more.insert("status".to_owned(), json!(status.as_u16()));
        more.insert("code".to_owned(), json!(code));
        more.insert("detail".to_owned(), json!(detail));
        let mut response = (status, Json(more)).into_response();
        let problem = header::HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, problem);
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.reason(), error.to_string())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

/// How many items a page has.
fn page_size(limit: Option<usize>) -> Result<usize, Problem> {
    match limit.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        found => Err(Problem::bad_request(format!(
            "limit is {found}, 1 to {MAX_LIMIT} are allowed"
        ))),
    }
}

/// The one asset that a request names; of several edges that have one, the one that it says.
async fn find_asset(store: &Store, key: AssetKey, edge: Option<&str>) -> Result<AssetRow, Problem> {
    let named = format!("{}/{}", key.namespace, key.name);
    let mut found = store
        .read(move |connection| assets_named(connection, &key))
        .await?;
    if let Some(edge) = edge {
        found.retain(|asset| asset.edge == edge);
    }
    match found.len() {
        0 => Err(Problem::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("there is no asset {named}"),
        )),
        1 => Ok(found.remove(0)),
        _ => {
            let edges: Vec<Value> = found.into_iter().map(|asset| json!(asset.edge)).collect();
            let detail = format!(
                "several edges have an asset {named}: the query parameter `edge` says which is meant"
            );
            Err(Problem::new(StatusCode::CONFLICT, "Ambiguous", detail).with("edges", edges))
        }
    }
}
