//! Asking a service of the user who a client is.
//!
//! It is asked over HTTPS with what the client shows, and answers 200 with who that is, or 403. Whatever else it answers,
//! or none in time, is no answer: the next way decides.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use foreshore_tls::{CertificateChain, TrustBundle};
use jiff::Timestamp;
use reqwest::{Client, StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::Semaphore};

use super::{Credentials, Expiry, Principal, Proof, https};

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// Most groups of an answer.
const MAX_GROUPS: usize = 256;

/// Most attributes of an answer.
const MAX_ATTRIBUTES: usize = 64;

/// Longest name of an attribute, in bytes: as policies can have it.
const MAX_ATTRIBUTE_NAME: usize = 63;

/// Longest user name, name of a group, or value of an attribute, in bytes.
const MAX_VALUE: usize = 1024;

/// Questions at a time; others wait, as long as an answer may take.
const AT_A_TIME: usize = 32;

/// Which service is asked, and how.
#[derive(Debug)]
pub struct WebhookOptions {
    /// Where it answers; `https` only.
    pub url: String,
    /// Authorities for its certificate; those of the system where it is left out.
    pub authorities: Option<TrustBundle>,
    /// What we show.
    pub credentials: Option<foreshore_tls::Credentials>,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// A service that is asked who clients are.
#[derive(Debug)]
pub struct Webhook {
    url: Url,
    client: Client,
    timeout: Duration,
    asking: Arc<Semaphore>,
    /// Where connections to the service live, whichever thread asks.
    runtime: Handle,
}

/// A service that can't be asked.
#[derive(Debug, thiserror::Error)]
#[error("webhook {url:?} can't be asked: {cause}")]
pub struct InvalidWebhook {
    /// Where it should answer.
    pub url: String,
    /// What is wrong.
    pub cause: String,
}

/// Two are the same when the same service answers.
impl PartialEq for Webhook {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl Eq for Webhook {}

/// What the service is asked.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Question<'a> {
    client_id: &'a str,
    listener: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    /// In base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    /// The client's verified chain, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
}

/// Who the client is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Known {
    username: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    expires_at: Option<Timestamp>,
}

/// What the service says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// That is who it is.
    Known(Box<Principal>),
    /// It may not come in.
    Refused,
    /// Nothing.
    Silent,
}

impl Webhook {
    /// A service. To be called in a runtime, where connections to it live.
    ///
    /// # Errors
    /// When the address is no `https` URL, or authorities or certificate can't be used.
    pub fn new(options: &WebhookOptions) -> Result<Self, InvalidWebhook> {
        let WebhookOptions {
            url,
            authorities,
            credentials,
            timeout,
        } = options;
        let invalid = |cause| InvalidWebhook {
            url: url.clone(),
            cause,
        };
        let client = https::client(authorities.as_ref(), credentials.as_ref(), *timeout);
        Ok(Self {
            url: https::url(url).map_err(invalid)?,
            client: client.map_err(invalid)?,
            timeout: *timeout,
            asking: Arc::new(Semaphore::new(AT_A_TIME)),
            runtime: Handle::current(),
        })
    }

    /// Asks who a client is.
    pub(super) async fn ask(self: &Arc<Self>, shown: &Credentials<'_>) -> Verdict {
        let question = Question {
            client_id: shown.client_id,
            listener: shown.listener,
            username: shown.username,
            password: shown.password.map(|password| STANDARD.encode(password)),
            certificate: pem(shown),
        };
        let request = self.client.post(self.url.clone()).json(&question);
        let asking = Arc::clone(&self.asking);
        let ask = async move {
            let _permit = asking.acquire().await.map_err(|error| error.to_string())?;
            https::ask(request, MAX_ANSWER).await
        };
        let timeout = self.timeout;
        let asked = self
            .runtime
            .spawn(async move { tokio::time::timeout(timeout, ask).await });
        let answer = match asked.await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err("no answer in time".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let verdict = answer.and_then(|(status, body)| self.read(status, &body));
        verdict.unwrap_or_else(|error| {
            tracing::warn!(url = %self.url, client = shown.client_id, error, "a webhook gives no answer");
            Verdict::Silent
        })
    }

    fn read(self: &Arc<Self>, status: StatusCode, body: &[u8]) -> Result<Verdict, String> {
        match status {
            StatusCode::FORBIDDEN => return Ok(Verdict::Refused),
            StatusCode::OK => {}
            _ => return Err(format!("it answers {status}")),
        }
        let Known {
            username,
            groups,
            attributes,
            expires_at,
        } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if username.is_empty() || username.contains('\0') {
            return Err("it answers with no user name".to_owned());
        }
        check(&username, &groups, &attributes)?;
        let expiry = expires_at.map(|at| Expiry {
            at: SystemTime::from(at),
            detail: "what the webhook answered has expired",
        });
        if expiry.is_some_and(|expiry| expiry.at <= SystemTime::now()) {
            return Err("it answers with what has expired".to_owned());
        }
        Ok(Verdict::Known(Box::new(Principal {
            username: Some(username),
            groups,
            attributes,
            proof: Proof::Webhook(Arc::clone(self)),
            expiry,
            ..Principal::default()
        })))
    }
}

/// Holds an answer to its bounds. Nothing is cut: what is left out might be what a policy refuses somebody for.
fn check(username: &str, groups: &[String], attributes: &BTreeMap<String, String>) -> Result<(), String> {
    let bound = |what: &str, found: usize, max: usize| {
        if found > max {
            return Err(format!("it answers with {what} {found}, {max} are allowed"));
        }
        Ok(())
    };
    bound("a user name whose bytes are", username.len(), MAX_VALUE)?;
    bound("groups whose number is", groups.len(), MAX_GROUPS)?;
    for group in groups {
        bound("a group whose bytes are", group.len(), MAX_VALUE)?;
    }
    bound("attributes whose number is", attributes.len(), MAX_ATTRIBUTES)?;
    for (name, value) in attributes {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if name.is_empty() || name.len() > MAX_ATTRIBUTE_NAME || !name.bytes().all(allowed) {
            let found: String = name.chars().take(MAX_ATTRIBUTE_NAME).collect();
            return Err(format!(
                "it answers with the attribute {found:?}, letters, digits, _, - and . are allowed, at most {MAX_ATTRIBUTE_NAME}"
            ));
        }
        bound(
            &format!("a value of {name} whose bytes are"),
            value.len(),
            MAX_VALUE,
        )?;
    }
    Ok(())
}

fn pem(shown: &Credentials<'_>) -> Option<String> {
    let own = shown.certificates.iter().map(|der| der.clone().into_owned());
    let chain = CertificateChain::from_der(own.collect()).ok()?;
    Some(chain.to_pem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_are_read_as_they_are_meant() {
        let options = |url: &str| WebhookOptions {
            url: url.to_owned(),
            authorities: None,
            credentials: None,
            timeout: Duration::from_secs(1),
        };
        let webhook = Arc::new(Webhook::new(&options("https://w.invalid/login")).unwrap());
        let read = |status, body: &str| webhook.read(status, body.as_bytes());
        let good = r#"{ "username": "u", "groups": ["g"], "attributes": { "site": "north" },
            "expiresAt": "9999-01-01T00:00:00Z", "more": 1 }"#;
        let Ok(Verdict::Known(principal)) = read(StatusCode::OK, good) else {
            panic!()
        };
        assert_eq!(
            (principal.username.as_deref(), &principal.groups[..]),
            (Some("u"), &["g".to_owned()][..])
        );
        assert_eq!(principal.attributes["site"], "north");
        let expected = SystemTime::from("9999-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
        assert_eq!(principal.expiry.unwrap().at, expected);
        assert_eq!(read(StatusCode::FORBIDDEN, good), Ok(Verdict::Refused));
        for (status, body) in [
            (StatusCode::UNAUTHORIZED, good),
            (StatusCode::FOUND, good),
            (StatusCode::NO_CONTENT, good),
            (StatusCode::OK, ""),
            (StatusCode::OK, "{}"),
            (StatusCode::OK, r#"{ "username": "" }"#),
            (
                StatusCode::OK,
                r#"{ "username": "u", "expiresAt": "2001-01-01T00:00:00Z" }"#,
            ),
        ] {
            assert!(read(status, body).is_err(), "{status} {body}");
        }
        assert!(Webhook::new(&options("http://w.invalid")).is_err());
    }

    #[test]
    fn answers_are_held_to_their_bounds() {
        let long = |length| "x".repeat(length);
        let groups = |count| vec!["g".to_owned(); count];
        let attributes =
            |count| -> BTreeMap<_, _> { (0..count).map(|n| (format!("a{n}"), long(1))).collect() };
        let one = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let none = BTreeMap::new();
        assert_eq!(check(&long(1024), &groups(256), &attributes(64)), Ok(()));
        assert_eq!(check("u", &[long(1024)], &one(&long(63), &long(1024))), Ok(()));
        for (checked, words) in [
            (
                check(&long(1025), &[], &none),
                "a user name whose bytes are 1025, 1024 are allowed",
            ),
            (
                check("u", &groups(257), &none),
                "groups whose number is 257, 256 are allowed",
            ),
            (check("u", &[long(1025)], &none), "a group whose bytes are 1025"),
            (
                check("u", &[], &attributes(65)),
                "attributes whose number is 65, 64 are allowed",
            ),
            (
                check("u", &[], &one("a", &long(1025))),
                "a value of a whose bytes are 1025",
            ),
            (check("u", &[], &one("", "v")), "the attribute \"\", letters"),
            (check("u", &[], &one(&long(64), "v")), "letters, digits"),
            (check("u", &[], &one("a b", "v")), "the attribute \"a b\""),
            (check("u", &[], &one("a/b", "v")), "the attribute \"a/b\""),
        ] {
            let error = checked.unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
