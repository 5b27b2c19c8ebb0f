//! Who may ask: HTTP Digest (RFC 7616) and WS-UsernameToken (password digest).

use axum::{
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use md5::{Digest as _, Md5};
use sha1::Sha1;

use super::soap::{Fault, UsernameToken};

/// How far `Created` of a WS-UsernameToken may be from the camera's clock.
const MAX_SKEW_SECONDS: i64 = 30;

/// How the user may be proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// HTTP Digest only.
    Digest,
    /// WS-UsernameToken only, and HTTP Digest for snapshots.
    UsernameToken,
    /// Either.
    Both,
}

/// Checks credentials.
pub(super) struct Verifier {
    user: Option<(String, String)>,
    accepted: Accepted,
    nonce: String,
}

/// What an unproved client is told.
pub(super) struct Refusal {
    challenge: Option<String>,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self.challenge {
            // A client of either kind finds what it looks for (ONVIF Core, 5.9.2).
            Some(challenge) => {
                ([(header::WWW_AUTHENTICATE, challenge)], Fault::not_authorized()).into_response()
            }
            None => Fault::not_authorized().into_response(),
        }
    }
}

impl Verifier {
    pub(super) fn new(user: Option<(String, String)>, accepted: Accepted) -> Self {
        Self {
            user,
            accepted,
            nonce: uuid::Uuid::new_v4().simple().to_string(),
        }
    }

    /// Checks one request.
    pub(super) fn verify(
        &self,
        method: &str,
        path: &str,
        headers: &HeaderMap,
        token: Option<&UsernameToken>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let Some((user, password)) = &self.user else {
            return Ok(());
        };
        // A snapshot is plain HTTP and has no other way than Digest.
        let digest = self.accepted != Accepted::UsernameToken || method == "GET";
        if digest {
            let header = headers
                .get(header::AUTHORIZATION)
                .and_then(|value| value.to_str().ok());
            if header.is_some_and(|header| self.digest_fits(header, method, path, user, password)) {
                return Ok(());
            }
        }
        if self.accepted != Accepted::Digest
            && token.is_some_and(|token| token_fits(token, user, password, now))
        {
            return Ok(());
        }
        let challenge = digest.then(|| {
            format!(
                "Digest realm=\"camera\", qop=\"auth\", algorithm=MD5, nonce=\"{}\"",
                self.nonce
            )
        });
        Err(Refusal { challenge })
    }

    fn digest_fits(&self, header: &str, method: &str, path: &str, user: &str, password: &str) -> bool {
        let Some(parameters) = header.strip_prefix("Digest ") else {
            return false;
        };
        let get = |name: &str| {
            parameters.split(',').find_map(|parameter| {
                let (key, value) = parameter.trim().split_once('=')?;
                (key == name).then(|| value.trim_matches('"'))
            })
        };
        let field = |name| get(name).unwrap_or_default();
        let uri = field("uri");
        // A client that came through a proxy may name the whole address.
        if field("username") != user || field("nonce") != self.nonce || !uri.ends_with(path) {
            return false;
        }
        let first = hex::encode(Md5::digest(format!("{user}:camera:{password}")));
        let second = hex::encode(Md5::digest(format!("{method}:{uri}")));
        let expected = Md5::digest(format!(
            "{first}:{}:{}:{}:{}:{second}",
            self.nonce,
            field("nc"),
            field("cnonce"),
            field("qop")
        ));
        hex::encode(expected) == field("response")
    }
}

fn token_fits(token: &UsernameToken, user: &str, password: &str, now: Timestamp) -> bool {
    let Ok(created) = token.created.parse::<Timestamp>() else {
        return false;
    };
    if (now.as_second() - created.as_second()).abs() > MAX_SKEW_SECONDS || token.username != user {
        return false;
    }
    let Ok(nonce) = STANDARD.decode(&token.nonce) else {
        return false;
    };
    let mut digest = Sha1::new();
    digest.update(nonce);
    digest.update(token.created.as_bytes());
    digest.update(password.as_bytes());
    STANDARD.encode(digest.finalize()) == token.password
}
