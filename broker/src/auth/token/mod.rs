//! JSON Web Tokens (RFC 7519) of one issuer.
//!
//! The issuer signs, the broker only verifies: nothing that is asked for here is a secret of ours. Where a token has no
//! key among those that are known, the issuer is asked again ([`fetch`]), seldom. The keys of a cluster's service accounts
//! come with the plan instead ([`service_account`]).

mod fetch;
mod keys;
mod service_account;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use foreshore_tls::TrustBundle;
use parking_lot::Mutex;
use serde_json::{Map, Value};

pub use self::service_account::ServiceAccountIssuer;
use self::{
    fetch::Published,
    keys::{Algorithm, Key, KeySet},
    service_account::Account,
};
use super::{Checks, Expiry, Principal, Proof, Rejected};
use crate::wire::ReasonCode;

/// Name of the method by which a token is shown with AUTH.
pub(super) const NAME: &str = "JWT";

/// Name of the method by which a token of a Kubernetes service account is shown with AUTH: clients of Azure IoT Operations
/// use it (its SDKs' `MqttConnectionSettings`).
pub(super) const SERVICE_ACCOUNT_NAME: &str = "K8S-SAT";

/// Longest token, in bytes.
const MAX_TOKEN: usize = 16 << 10;

/// Most groups that are taken from a token.
const MAX_GROUPS: usize = 256;

/// How far the issuer's clock may be from ours (RFC 7519 section 4.1.4).
const LEEWAY: Duration = Duration::from_secs(60);

/// The end of the year 9999: later than any token means.
const LATEST: f64 = 253_402_300_799.0;

/// Whose tokens are believed, and what they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOptions {
    /// What tokens must have as `iss`.
    pub issuer: String,
    /// Where the issuer publishes its keys; found through the issuer (OpenID Connect Discovery 1.0) where it is left out.
    pub jwks_uri: Option<String>,
    /// What tokens may have in `aud`; one must match.
    pub audiences: Vec<String>,
    /// Claim that becomes the user name.
    pub username_claim: String,
    /// Claim that holds the groups.
    pub groups_claim: Option<String>,
    /// Authorities for the issuer's own certificate; those of the system where it is left out.
    pub authorities: Option<TrustBundle>,
}

/// An issuer of tokens, with its keys as they are published now.
#[derive(Debug)]
pub struct TokenIssuer {
    options: TokenOptions,
    keys: Keys,
}

/// Where the keys of an issuer come from.
#[derive(Debug)]
enum Keys {
    /// It publishes them.
    Published(Published),
    /// The plan tells them: it issues tokens of service accounts.
    Told(Arc<ServiceAccountIssuer>),
}

/// An issuer whose keys can't be had.
#[derive(Debug, thiserror::Error)]
#[error("the keys of issuer {issuer:?} can't be had: {cause}")]
pub struct InvalidIssuer {
    /// The issuer.
    pub issuer: String,
    /// What is wrong.
    pub cause: String,
}

/// The issuers that are asked now: a listener that is made anew, because something else changed, goes on with the keys
/// that are known.
#[derive(Debug, Default)]
pub(crate) struct Issuers(Mutex<Vec<Weak<TokenIssuer>>>);

impl Issuers {
    /// The issuer with these options.
    ///
    /// # Errors
    /// As [`TokenIssuer::new`].
    pub(crate) fn get(&self, options: TokenOptions) -> Result<Arc<TokenIssuer>, InvalidIssuer> {
        let mut known = self.0.lock();
        known.retain(|issuer| issuer.strong_count() > 0);
        let same = known
            .iter()
            .filter_map(Weak::upgrade)
            .find(|issuer| issuer.options == options);
        if let Some(issuer) = same {
            return Ok(issuer);
        }
        let issuer = Arc::new(TokenIssuer::new(options)?);
        known.push(Arc::downgrade(&issuer));
        Ok(issuer)
    }
}

/// Two are the same when they are asked for the same; what they answered does not count.
impl PartialEq for TokenIssuer {
    fn eq(&self, other: &Self) -> bool {
        (&self.options, self.is_of_service_accounts()) == (&other.options, other.is_of_service_accounts())
    }
}

impl Eq for TokenIssuer {}

/// The parts of a token (RFC 7515 section 7.1), of which nothing is verified.
struct Parts {
    header: Map<String, Value>,
    claims: Map<String, Value>,
    /// What is signed.
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl TokenIssuer {
    /// Begins to ask the issuer for its keys. To be called in a runtime, where that goes on as long as this lives.
    ///
    /// # Errors
    /// When an address is no `https` URL, or the authorities can't be used.
    pub fn new(options: TokenOptions) -> Result<Self, InvalidIssuer> {
        let published = Published::new(&options).map_err(|cause| InvalidIssuer {
            issuer: options.issuer.clone(),
            cause,
        })?;
        let keys = Keys::Published(published);
        Ok(Self { options, keys })
    }

    /// The tokens of a cluster's service accounts, for any of these audiences.
    #[must_use]
    pub fn of_service_accounts(issuer: Arc<ServiceAccountIssuer>, audiences: Vec<String>) -> Self {
        let options = TokenOptions {
            issuer: issuer.name().to_owned(),
            jwks_uri: None,
            audiences,
            username_claim: "sub".to_owned(),
            groups_claim: None,
            authorities: None,
        };
        let keys = Keys::Told(issuer);
        Self { options, keys }
    }

    /// Whether it issues tokens of service accounts.
    pub(super) fn is_of_service_accounts(&self) -> bool {
        matches!(self.keys, Keys::Told(_))
    }

    /// Whether a text is a token that says to be of this issuer.
    pub(super) fn is_named_by(&self, token: &[u8]) -> bool {
        Parts::read(token).is_some_and(|parts| {
            parts.claims.get("iss").and_then(Value::as_str) == Some(&self.options.issuer)
        })
    }

    /// Finds out who shows a token.
    ///
    /// # Errors
    /// When it is not valid, or not yet, or no longer, or not for us.
    pub(super) async fn verify(
        self: &Arc<Self>,
        token: &[u8],
        checks: &Checks,
    ) -> Result<Principal, Rejected> {
        let rejected = |detail: &str| Rejected::new(ReasonCode::NotAuthorized, detail.to_owned());
        let Some(parts) = Parts::read(token) else {
            return Err(rejected("it is not a JSON Web Token"));
        };
        let Parts {
            header,
            claims,
            signed,
            signature,
        } = parts;
        let name = header.get("alg").and_then(Value::as_str).unwrap_or_default();
        let Some(algorithm) = Algorithm::named(name) else {
            let (found, allowed) = (name.chars().take(16).collect::<String>(), Algorithm::NAMES);
            return Err(rejected(&format!(
                "the token's algorithm is {found:?}, {allowed} are allowed"
            )));
        };
        // RFC 7515 section 4.1.11: what must be understood and is not.
        if header.contains_key("crit") {
            return Err(rejected("the token has critical extensions, which are not known"));
        }
        let id = header.get("kid").and_then(Value::as_str);
        let keys = self.keys(algorithm, id).await;
        if keys.is_empty() && self.known().len() == 0 {
            let detail = "the keys of the token's issuer are not known yet";
            return Err(Rejected::new(ReasonCode::ServerUnavailable, detail));
        }
        if keys.is_empty() {
            return Err(rejected("the token's issuer publishes no such key"));
        }
        let verify = move || {
            keys.iter()
                .any(|key| key.verifies(algorithm, &signed, &signature))
        };
        if checks.work(verify).await != Some(true) {
            return Err(rejected("the token's signature is wrong"));
        }
        self.judge(&claims, SystemTime::now())
            .map_err(|detail| rejected(&detail))
    }

    async fn keys(&self, algorithm: Algorithm, id: Option<&str>) -> Vec<Key> {
        let known = self.known().fitting(algorithm, id);
        if let Keys::Published(published) = &self.keys
            && known.is_empty()
            && published.ask_again().await
        {
            return published.keys().fitting(algorithm, id);
        }
        known
    }

    /// The keys as they are known.
    fn known(&self) -> Arc<KeySet> {
        match &self.keys {
            Keys::Published(published) => published.keys(),
            Keys::Told(issuer) => issuer.keys(),
        }
    }

    /// What the claims of a token come to whose signature is right.
    fn judge(self: &Arc<Self>, claims: &Map<String, Value>, now: SystemTime) -> Result<Principal, String> {
        let TokenOptions {
            issuer,
            audiences,
            username_claim,
            groups_claim,
            ..
        } = &self.options;
        if claims.get("iss").and_then(Value::as_str) != Some(issuer) {
            return Err("the token is another issuer's".to_owned());
        }
        let for_us = |audience: &str| audiences.iter().any(|own| own == audience);
        if !texts(claims.get("aud")).any(for_us) {
            return Err("the token is for another audience".to_owned());
        }
        let expires = claims.get("exp").and_then(moment);
        let expires = expires.ok_or("the token does not say when it expires")? + LEEWAY;
        if expires <= now {
            return Err("the token has expired".to_owned());
        }
        if let Some(begins) = claims.get("nbf") {
            let begins = moment(begins).ok_or("the token's nbf is no time")?;
            if begins > now + LEEWAY {
                return Err("the token is not valid yet".to_owned());
            }
        }
        let username = claims.get(username_claim).and_then(Value::as_str);
        let username = username.filter(|name| !name.is_empty() && !name.contains('\0'));
        let username = username.ok_or_else(|| format!("the token has no user name in {username_claim:?}"))?;
        let (groups, attributes) = if self.is_of_service_accounts() {
            let account = Account::read(username, claims)?;
            (account.groups, account.attributes)
        } else {
            let groups = groups_claim.as_ref().and_then(|claim| claims.get(claim));
            let groups = texts(groups).take(MAX_GROUPS).map(str::to_owned).collect();
            (groups, BTreeMap::new())
        };
        Ok(Principal {
            username: Some(username.to_owned()),
            groups,
            attributes,
            proof: Proof::Token(Arc::clone(self)),
            expiry: Some(Expiry {
                at: expires,
                detail: "the token has expired",
            }),
            ..Principal::default()
        })
    }
}

impl Parts {
    fn read(token: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(token)
            .ok()
            .filter(|text| text.len() <= MAX_TOKEN)?;
        let (signed, signature) = text.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let object = |part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        Some(Self {
            header: object(header)?,
            claims: object(claims)?,
            signed: signed.as_bytes().to_owned(),
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }
}

/// One text or several.
fn texts(value: Option<&Value>) -> impl Iterator<Item = &str> {
    let several = value.and_then(Value::as_array).into_iter().flatten();
    value
        .into_iter()
        .filter(|value| value.is_string())
        .chain(several)
        .filter_map(Value::as_str)
}

/// A `NumericDate` (RFC 7519 section 2).
fn moment(value: &Value) -> Option<SystemTime> {
    let seconds = value.as_f64()?.clamp(0.0, LATEST);
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds).ok()?)
}
