//! A cloud endpoint, as users of its API see it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{plant::SOON, site::wait_until};

/// Token of the example's JSON API.
const TOKEN: &str = "example-api-token-0123456789abcdef";

/// Most values of one answer.
const PAGE: usize = 10_000;

pub(crate) struct Cloud {
    base: String,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
}

impl Cloud {
    /// The one that answers at that port.
    pub(crate) fn at(port: u16) -> Self {
        foreshore_tls::install_provider();
        Self {
            base: format!("http://127.0.0.1:{port}/api"),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }

    /// An answer; nothing when there is none.
    pub(crate) fn get(&self, address: &str) -> Option<Value> {
        self.answer(self.client.get(format!("{}/{address}", self.base)))
    }

    /// The answer to something that is posted.
    pub(crate) fn post(&self, address: &str, body: &Value) -> Option<Value> {
        self.answer(self.client.post(format!("{}/{address}", self.base)).json(body))
    }

    fn answer(&self, request: reqwest::RequestBuilder) -> Option<Value> {
        let request = request
            .bearer_auth(TOKEN)
            .timeout(std::time::Duration::from_secs(60));
        self.runtime.block_on(async {
            let response = request.send().await.ok()?.error_for_status().ok()?;
            response.json().await.ok()
        })
    }

    /// How many outputs of a path it holds.
    pub(crate) fn committed(&self, path: &str) -> Option<u64> {
        let ledger = self.get("ledger")?;
        let line = ledger["items"]
            .as_array()?
            .iter()
            .find(|line| line["path"] == path);
        line?["committed"].as_u64()
    }

    /// What it knows about the example's edge.
    pub(crate) fn edge(&self) -> Option<Value> {
        let edges = self.get("edges")?;
        edges["items"]
            .as_array()?
            .iter()
            .find(|edge| edge["name"] == "bottling")
            .cloned()
    }

    /// A page of values; a busy endpoint may need another try.
    fn page(&self, address: &str) -> Value {
        let mut page = None;
        wait_until(SOON, || {
            page = self.get(address);
            page.is_some()
        });
        page.unwrap_or_else(|| panic!("no answer to {address}"))
    }

    /// How often it holds each number that was published on a topic.
    pub(crate) fn numbers(&self, topic: &str) -> BTreeMap<u64, usize> {
        let mut numbers = BTreeMap::new();
        let first = format!("topics/values?topic={topic}&limit={PAGE}");
        let mut address = first.clone();
        loop {
            let page = self.page(&address);
            for item in page["items"].as_array().unwrap() {
                *numbers.entry(item["value"]["n"].as_u64().unwrap()).or_default() += 1;
            }
            let Some(next) = page["next"].as_str() else {
                return numbers;
            };
            address = format!("{first}&after={next}");
        }
    }
}
