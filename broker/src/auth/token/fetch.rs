//! The keys of an issuer as it publishes them: asked for at the beginning, every hour, and when a token names an unknown
//! key. As long as the issuer does not answer, its last good keys count.

use std::{sync::Arc, time::Duration};

use foreshore_runtime::Task;
use futures::FutureExt;
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{TokenOptions, keys::KeySet};
use crate::auth::https;

/// How often an issuer is asked.
#[derive(Clone, Copy, Debug)]
struct Rhythm {
    /// Without a cause.
    every: Duration,
    /// Shortest time between two questions, however many tokens name unknown keys.
    at_most_every: Duration,
}

const RHYTHM: Rhythm = Rhythm {
    every: Duration::from_secs(3600),
    at_most_every: Duration::from_secs(30),
};

/// Longest wait for an answer of the issuer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 256 << 10;

/// What an issuer publishes.
#[derive(Debug)]
pub(super) struct Published {
    shared: Arc<Shared>,
    rhythm: Rhythm,
    _asking: Task<()>,
}

#[derive(Debug, Default)]
struct Shared {
    state: watch::Sender<State>,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct State {
    keys: Arc<KeySet>,
    /// How often the issuer was asked, and when it was last.
    asked: u64,
    last: Option<Instant>,
}

/// Where an issuer publishes its keys.
#[derive(Debug)]
enum Source {
    /// There.
    Keys(Url),
    /// Where its configuration says, which has to name the issuer.
    Configuration { address: Url, issuer: String },
}

/// What of an issuer's configuration matters (OpenID Connect Discovery 1.0 section 3).
#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

impl Published {
    /// Begins to ask.
    pub(super) fn new(options: &TokenOptions) -> Result<Self, String> {
        let source = Arc::new(Source::new(options)?);
        let client = https::client(options.authorities.as_ref(), None, PATIENCE)?;
        let ask = move || {
            let (client, source) = (client.clone(), Arc::clone(&source));
            async move { source.ask(&client).await }
        };
        Ok(Self::asking(options.issuer.clone(), RHYTHM, ask))
    }

    fn asking<F>(issuer: String, rhythm: Rhythm, ask: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<KeySet, String>> + Send + 'static,
    {
        let shared = Arc::<Shared>::default();
        let name = format!("keys of {issuer}");
        let asking = ask_forever(Arc::clone(&shared), issuer, rhythm, ask);
        Self {
            shared,
            rhythm,
            _asking: foreshore_runtime::spawn(name, asking),
        }
    }

    /// Keys of an issuer that answered just now and is not asked again.
    #[cfg(test)]
    pub(super) fn known(keys: KeySet) -> Self {
        let shared = Arc::<Shared>::default();
        shared.state.send_modify(|state| {
            state.keys = Arc::new(keys);
            state.last = Some(Instant::now());
        });
        Self {
            shared,
            rhythm: RHYTHM,
            _asking: foreshore_runtime::spawn("nothing", async {}),
        }
    }

    /// The keys as they are known.
    pub(super) fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.shared.state.borrow().keys)
    }

    /// Asks the issuer again, unless that was done a moment ago; tells whether it was asked.
    pub(super) async fn ask_again(&self) -> bool {
        let mut state = self.shared.state.subscribe();
        let seen = {
            let state = state.borrow_and_update();
            if state
                .last
                .is_some_and(|last| last.elapsed() < self.rhythm.at_most_every)
            {
                return false;
            }
            state.asked
        };
        self.shared.wanted.notify_one();
        let answered = state.wait_for(|state| state.asked > seen);
        // Two questions, of which the first may find the configuration.
        tokio::time::timeout(PATIENCE * 2, answered)
            .await
            .is_ok_and(|answered| answered.is_ok())
    }
}

async fn ask_forever<F>(shared: Arc<Shared>, issuer: String, rhythm: Rhythm, ask: impl Fn() -> F)
where
    F: Future<Output = Result<KeySet, String>>,
{
    loop {
        let answer = ask().await;
        let answered = answer.is_ok();
        match &answer {
            Ok(keys) => tracing::debug!(issuer, keys = keys.len(), "an issuer's keys were read"),
            Err(error) => tracing::warn!(issuer, error, "an issuer's keys can't be read"),
        }
        shared.state.send_modify(|state| {
            if let Ok(keys) = answer {
                state.keys = Arc::new(keys);
            }
            state.asked += 1;
            state.last = Some(Instant::now());
        });
        // Whoever wished for it while it was under way has it now.
        let _granted = shared.wanted.notified().now_or_never();
        tokio::time::sleep(rhythm.at_most_every).await;
        if answered {
            let wished = shared.wanted.notified();
            let longest = rhythm.every.saturating_sub(rhythm.at_most_every);
            let _wished = tokio::time::timeout(longest, wished).await;
        }
    }
}

impl Source {
    fn new(options: &TokenOptions) -> Result<Self, String> {
        if let Some(address) = &options.jwks_uri {
            return Ok(Self::Keys(https::url(address)?));
        }
        let issuer = options.issuer.clone();
        let address = format!(
            "{}/.well-known/openid-configuration",
            issuer.trim_end_matches('/')
        );
        Ok(Self::Configuration {
            address: https::url(&address)?,
            issuer,
        })
    }

    async fn ask(&self, client: &Client) -> Result<KeySet, String> {
        let address = match self {
            Self::Keys(address) => address.clone(),
            Self::Configuration { address, issuer } => {
                let found: Configuration = read(&get(client, address.clone()).await?)?;
                // Section 4.3: else another's configuration could be slipped in.
                if found.issuer != *issuer {
                    return Err(format!(
                        "the configuration at {address} is of issuer {:?}",
                        found.issuer
                    ));
                }
                https::url(&found.jwks_uri)?
            }
        };
        KeySet::parse(&get(client, address).await?).map_err(|error| error.to_string())
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

async fn get(client: &Client, address: Url) -> Result<Vec<u8>, String> {
    let (status, body) = https::ask(client.get(address.clone()), MAX_ANSWER).await?;
    if status == StatusCode::OK {
        Ok(body)
    } else {
        Err(format!("{address} answers {status}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn set(keys: usize) -> KeySet {
        let key = serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "x": "AAAA" });
        KeySet::parse(
            serde_json::json!({ "keys": vec![key; keys] })
                .to_string()
                .as_bytes(),
        )
        .unwrap()
    }

    /// An issuer that publishes one more key each time; the third question gets no answer, and the fourth keeps waiting.
    fn issuer(every: Duration, at_most_every: Duration) -> Published {
        let asked = AtomicUsize::new(0);
        let rhythm = Rhythm { every, at_most_every };
        Published::asking("issuer".to_owned(), rhythm, move || {
            let question = asked.fetch_add(1, Ordering::Relaxed) + 1;
            async move {
                match question {
                    1 | 2 => Ok(set(question)),
                    3 => Err("away".to_owned()),
                    _ => std::future::pending().await,
                }
            }
        })
    }

    const SHORT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn an_issuer_is_asked_seldom_however_many_wish_for_it() {
        let published = issuer(LONG * 2, LONG);
        // Whoever comes before the first answer waits for it.
        assert!(published.ask_again().await);
        assert_eq!(published.keys().len(), 1);
        for _ in 0..100 {
            assert!(!published.ask_again().await);
        }
        assert_eq!(published.shared.state.borrow().asked, 1);
    }

    #[tokio::test]
    async fn an_issuer_is_asked_when_somebody_wishes_for_it() {
        let published = issuer(LONG, SHORT);
        assert!(published.ask_again().await);
        while !published.ask_again().await {
            tokio::time::sleep(SHORT).await;
        }
        assert_eq!(published.keys().len(), 2);
    }

    #[tokio::test]
    async fn an_issuer_that_is_away_is_asked_again_and_nothing_is_forgotten() {
        let published = issuer(SHORT * 2, SHORT);
        let mut state = published.shared.state.subscribe();
        state.wait_for(|state| state.asked == 3).await.unwrap();
        assert_eq!(published.keys().len(), 2);
    }

    #[test]
    fn addresses_are_https_only() {
        let options = |issuer: &str, jwks_uri: Option<&str>| TokenOptions {
            issuer: issuer.to_owned(),
            jwks_uri: jwks_uri.map(str::to_owned),
            audiences: Vec::new(),
            username_claim: "sub".to_owned(),
            groups_claim: None,
            authorities: None,
        };
        let Ok(Source::Configuration { address, .. }) = Source::new(&options("https://i/realm/", None))
        else {
            panic!()
        };
        assert_eq!(
            address.as_str(),
            "https://i/realm/.well-known/openid-configuration"
        );
        assert!(Source::new(&options("http://i", None)).is_err());
        assert!(Source::new(&options("https://i", Some("http://i/keys"))).is_err());
        assert!(Source::new(&options("https://i", Some("nonsense"))).is_err());
    }
}
