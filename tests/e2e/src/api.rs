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

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.proxy.address())
    }

    /// Sends a request, with an object where one is needed.
    pub(crate) async fn send(&self, method: Method, path: &str, object: Option<&Value>) -> Result<Answer> {
        let mut request = self.client.request(method.clone(), self.url(path));
        if let Some(object) = object {
            request = request.json(object);
        }
        answer(request.send().await?)
            .await
            .with_context(|| format!("{method} {path}"))
    }

    /// Merges a change into an object (RFC 7396).
    pub(crate) async fn merge(&self, path: &str, change: &Value) -> Result<Answer> {
        let request = self
            .client
            .patch(self.url(path))
            .header("content-type", "application/merge-patch+json")
            .body(change.to_string());
        answer(request.send().await?)
            .await
            .with_context(|| format!("PATCH {path}"))
    }

    /// Asks for something that is no object.
    pub(crate) async fn text(&self, path: &str) -> Result<String> {
        let request = self.client.get(self.url(path));
        Ok(request.send().await?.error_for_status()?.text().await?)
    }

    /// Begins a watch.
    pub(crate) async fn watch(&self, path: &str) -> Result<Events> {
        let request = self.client.get(self.url(path));
        Ok(Events {
            response: request.send().await?.error_for_status()?,
            rest: Vec::new(),
        })
    }
}

async fn answer(response: reqwest::Response) -> Result<Answer> {
    let code = response.status().as_u16();
    let body = response.json().await;
    Ok(Answer {
        code,
        body: body.with_context(|| code.to_string())?,
    })
}

/// What a watch tells.
pub(crate) struct Events {
    response: reqwest::Response,
    /// What has arrived of the next line.
    rest: Vec<u8>,
}

impl Events {
    /// The next event; `None` when the watch has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            match self.response.chunk().await? {
                Some(chunk) => self.rest.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
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
