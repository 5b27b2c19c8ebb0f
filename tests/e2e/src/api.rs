//! The API server itself, for what would be hundreds of kubectls.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::Value;

use crate::forward::Forward;

/// An API server that can be asked with the rights of kubectl.
pub(crate) struct Api {
    proxy: Forward,
    client: reqwest::Client,
}

/// An answer: the object, or the Status that says what is wrong.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
}

impl Api {
    /// Reaches it.
    pub(crate) async fn reach() -> Result<Self> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .build()?;
        Ok(Self {
            proxy: Forward::start(&["proxy", "--port=0"]).await?,
            client,
        })
    }

    /// Sends a request, with an object where one is needed.
    pub(crate) async fn send(&self, method: Method, path: &str, object: Option<&Value>) -> Result<Answer> {
        let mut request = self
            .client
            .request(method.clone(), format!("http://{}{path}", self.proxy.address()));
        if let Some(object) = object {
            request = request.json(object);
        }
        let response = request.send().await?;
        let code = response.status().as_u16();
        let body = response.json().await;
        Ok(Answer {
            code,
            body: body.with_context(|| format!("{method} {path}: {code}"))?,
        })
    }
}

impl Answer {
    /// Whether the object was taken.
    pub(crate) fn is_taken(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// What a user reads.
    pub(crate) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}
