//! Who may use the JSON API: tokens with names, which stand in the audit.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use foreshore_tls::Fingerprint;
use parking_lot::RwLock;
use subtle::ConstantTimeEq;

use super::{Api, Problem};
use crate::options::ApiToken;

/// Header in which the local command line says for whom it asks.
const ACTOR_HEADER: &str = "foreshore-actor";

/// Longest name of an actor, in bytes.
const MAX_ACTOR_LEN: usize = 128;

/// Who asks, for the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller(pub(crate) String);

/// The tokens that are in force. Cheap to clone; all clones see a change at once.
#[derive(Clone)]
pub(crate) struct Tokens {
    known: Arc<RwLock<Vec<Known>>>,
}

#[derive(Clone)]
struct Known {
    name: String,
    /// SHA-256 of the token: hashes are of one length, so that comparing them tells nothing.
    hash: Fingerprint,
    speaks_for_others: bool,
}

impl Tokens {
    pub(crate) fn new(tokens: &[ApiToken]) -> Self {
        let made = Self {
            known: Arc::default(),
        };
        made.set(tokens);
        made
    }

    /// Takes a set of tokens in the place of the present one.
    pub(crate) fn set(&self, tokens: &[ApiToken]) {
        let known = tokens.iter().map(|token| Known {
            name: token.name.clone(),
            hash: Fingerprint::of(token.token.expose().as_bytes()),
            speaks_for_others: token.speaks_for_others,
        });
        *self.known.write() = known.collect();
    }

    /// Whose token it is. Takes as long for each token, whether it is known or not.
    fn find(&self, token: &str) -> Option<Known> {
        let shown = Fingerprint::of(token.as_bytes());
        self.known.read().iter().fold(None, |found, known| {
            let is_it = bool::from(shown.as_bytes().ct_eq(known.hash.as_bytes()));
            if is_it { Some(known.clone()) } else { found }
        })
    }
}

/// Lets in whoever shows a token, and notes who it is.
pub(super) async fn authorize(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    match caller(&api.tokens, &request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(response) => *response,
    }
}

fn caller(tokens: &Tokens, request: &Request) -> Result<Caller, Box<Response>> {
    let header = |name| {
        request
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let shown = header(header::AUTHORIZATION.as_str()).and_then(|value| value.strip_prefix("Bearer "));
    let Some(known) = tokens.find(shown.unwrap_or_default().trim()) else {
        let detail = "a bearer token is required, and the one of this request is missing or wrong";
        let mut response = Problem::new(StatusCode::UNAUTHORIZED, "Unauthorized", detail).into_response();
        response.headers_mut().insert(
            header::WWW_AUTHENTICATE,
            header::HeaderValue::from_static("Bearer"),
        );
        return Err(Box::new(response));
    };
    match header(ACTOR_HEADER) {
        None => Ok(Caller(known.name)),
        Some(actor) if known.speaks_for_others && (1..=MAX_ACTOR_LEN).contains(&actor.len()) => {
            Ok(Caller(actor.to_owned()))
        }
        Some(_) => {
            let detail = format!(
                "the token {:?} tells who asks; {ACTOR_HEADER} is not for it",
                known.name
            );
            Err(Box::new(
                Problem::new(StatusCode::FORBIDDEN, "Forbidden", detail).into_response(),
            ))
        }
    }
}
