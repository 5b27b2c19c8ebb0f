//! Who signs the tokens of the cluster's service accounts, and with which keys (Kubernetes, "Service account issuer
//! discovery").
//!
//! The keys are those that the API server itself publishes, wherever its configuration says that others find them: whoever
//! can reach the API server can reach them.

use std::sync::Arc;

use foreshore_control::plan::ServiceAccountIssuerPlan;
use http::Request;
use kube_client::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;

use crate::{
    kubernetes::{Error, within},
    source::ServiceAccounts,
};

/// Where the issuer is told (OpenID Connect Discovery 1.0 section 4).
const CONFIGURATION: &str = "/.well-known/openid-configuration";

/// Where its keys are.
const KEYS: &str = "/openid/v1/jwks";

/// Longest name of an issuer, in bytes.
const MAX_ISSUER: usize = 2048;

/// Longest set of keys, in bytes.
const MAX_KEYS: usize = 256 << 10;

/// The issuer, as far as somebody wants to know it.
pub(super) struct Issuer {
    client: Client,
    wanted: bool,
    known: Option<Arc<ServiceAccountIssuerPlan>>,
    /// Why it can't be read now. What was known of it stays.
    fault: Option<String>,
}

/// What of its configuration matters.
#[derive(Deserialize)]
struct Configuration {
    issuer: String,
}

/// Its keys, of which only those who use them know what each has to be (RFC 7517 section 5).
#[derive(Deserialize)]
struct Keys {
    keys: Vec<Value>,
}

impl Issuer {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            wanted: false,
            known: None,
            fault: None,
        }
    }

    /// What is known of it; `None` where nobody wants to know.
    pub(super) fn told(&self) -> Option<ServiceAccounts> {
        let fault = || self.fault.clone().unwrap_or_default();
        self.wanted.then(|| self.known.clone().ok_or_else(fault))
    }

    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Reads it if it is wanted now and was not before.
    pub(super) async fn want(&mut self, wanted: bool) {
        let new = wanted && !self.wanted;
        self.wanted = wanted;
        if new {
            self.read().await;
        } else if !wanted {
            (self.known, self.fault) = (None, None);
        }
    }

    /// Reads it again, if it is wanted; whether anything is different.
    pub(super) async fn refresh(&mut self) -> bool {
        self.wanted && self.read().await
    }

    async fn read(&mut self) -> bool {
        match read(&self.client).await {
            Ok(read) => {
                let mended = self.fault.take().is_some();
                let same = self.known.as_deref() == Some(&read);
                if !same {
                    self.known = Some(Arc::new(read));
                }
                !same || mended
            }
            Err(error) => {
                let fault = format!("the keys of the cluster's service accounts can't be read: {error}");
                let news = self.fault.as_ref() != Some(&fault);
                if news {
                    warn!(%error, "keys of service accounts can't be read, and it is tried again");
                }
                self.fault = Some(fault);
                news
            }
        }
    }
}

async fn read(client: &Client) -> Result<ServiceAccountIssuerPlan, Error> {
    let Configuration { issuer } = get(client, CONFIGURATION).await?;
    if issuer.is_empty() || issuer.len() > MAX_ISSUER {
        let problem = format!(
            "found an issuer of {} bytes, 1 to {MAX_ISSUER} are allowed",
            issuer.len()
        );
        return Err(unusable(CONFIGURATION, problem));
    }
    let Keys { keys } = get(client, KEYS).await?;
    if keys.is_empty() {
        return Err(unusable(KEYS, "it has no key"));
    }
    let keys = json!({ "keys": keys }).to_string();
    if keys.len() > MAX_KEYS {
        let problem = format!("found {} bytes, {MAX_KEYS} are allowed", keys.len());
        return Err(unusable(KEYS, problem));
    }
    Ok(ServiceAccountIssuerPlan { issuer, keys })
}

async fn get<T: serde::de::DeserializeOwned>(client: &Client, path: &str) -> Result<T, Error> {
    let request = Request::get(path).body(Vec::new());
    let request = request.map_err(|error| unusable(path, error))?;
    let text = within(client.request_text(request)).await?;
    serde_json::from_str(&text).map_err(|error| unusable(path, error))
}

fn unusable(path: &str, problem: impl ToString) -> Error {
    Error::Unusable {
        what: path.to_owned(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, convert::Infallible};

    use http::Response;
    use kube_client::client::Body;
    use parking_lot::Mutex;

    use super::*;

    /// What the API server publishes: by path, status and body.
    type Published = Arc<Mutex<BTreeMap<&'static str, (u16, String)>>>;

    fn publishing(issuer: &str, keys: Value) -> Published {
        // Keys are not always where the issuer says that they are.
        let configuration = json!({"issuer": issuer, "jwks_uri": "https://elsewhere.example.com/keys"});
        let pages = [(CONFIGURATION, configuration), (KEYS, json!({ "keys": keys }))];
        let pages = pages.map(|(path, page)| (path, (200, page.to_string())));
        Arc::new(Mutex::new(BTreeMap::from(pages)))
    }

    fn issuer(published: &Published) -> Issuer {
        let published = Arc::clone(published);
        let answer = move |request: Request<Body>| {
            let page = published.lock().get(request.uri().path()).cloned();
            let (status, body) = page.unwrap_or_else(|| (404, String::new()));
            let answer = Response::builder().status(status);
            async move { Ok::<_, Infallible>(answer.body(Body::from(body.into_bytes())).unwrap()) }
        };
        Issuer::new(Client::new(tower::service_fn(answer), "plant"))
    }

    #[tokio::test]
    async fn keys_are_read_when_a_broker_wants_them_and_again_when_they_rotate() {
        let published = publishing("https://cluster.local", json!([{"kid": "a"}]));
        let mut issuer = issuer(&published);
        assert!(!issuer.refresh().await, "nobody wants to know");
        assert_eq!(issuer.told(), None);
        issuer.want(true).await;
        let told = issuer.told().unwrap().unwrap();
        assert_eq!(
            (told.issuer.as_str(), told.keys.as_str()),
            ("https://cluster.local", r#"{"keys":[{"kid":"a"}]}"#)
        );
        assert!(!issuer.refresh().await, "nothing is different");
        let both = json!({ "keys": [{"kid": "a"}, {"kid": "b"}] });
        published.lock().insert(KEYS, (200, both.to_string()));
        assert!(issuer.refresh().await);
        assert!(issuer.told().unwrap().unwrap().keys.contains("\"b\""));
        issuer.want(false).await;
        assert_eq!(issuer.told(), None);
    }

    #[tokio::test]
    async fn what_was_known_stays_when_it_can_not_be_read_and_the_cause_is_told() {
        let published = publishing("https://cluster.local", json!([{"kid": "a"}]));
        let good = published.lock().clone();
        let refused = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
            "message": "forbidden: no right", "reason": "Forbidden"});
        let long = json!({"keys": [{"kid": "k".repeat(MAX_KEYS)}]});
        let wrong = [
            (CONFIGURATION, (403, refused.to_string()), "no right (HTTP 403)"),
            (
                CONFIGURATION,
                (200, json!({"issuer": ""}).to_string()),
                "issuer of 0 bytes",
            ),
            (CONFIGURATION, (200, "nonsense".to_owned()), "expected"),
            (KEYS, (200, json!({"keys": []}).to_string()), "no key"),
            (
                KEYS,
                (200, json!({"more": []}).to_string()),
                "missing field `keys`",
            ),
            (KEYS, (200, long.to_string()), "262144 are allowed"),
        ];
        for (path, page, words) in wrong {
            *published.lock() = good.clone();
            published.lock().insert(path, page);
            let mut issuer = issuer(&published);
            issuer.want(true).await;
            let cause = issuer.told().unwrap().unwrap_err();
            assert!(cause.contains(words), "{words}: {cause}");
            assert_eq!(issuer.fault(), Some(cause.as_str()));
            assert!(!issuer.refresh().await, "told once");
            *published.lock() = good.clone();
            assert!(issuer.refresh().await, "mended");
            assert!(issuer.fault().is_none() && issuer.told().unwrap().is_ok());
            published.lock().clear();
            assert!(issuer.refresh().await);
            assert!(issuer.fault().is_some() && issuer.told().unwrap().is_ok());
        }
    }
}
