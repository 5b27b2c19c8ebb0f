//! What can be seen of a broker from outside: ledger, sessions, subscriptions.

use foreshore_record::PathLedger;
use foreshore_store::{Space, Store, StoreError};
use serde::Serialize;

use crate::{broker::Handle, error::Error, session::registry::ConnectionInfo};

/// Rows that are read at once.
const PAGE: usize = 1024;

/// A client's session.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionInfo {
    /// The client.
    pub client_id: String,
    /// Its connection, if it is connected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionInfo>,
    /// Whether the session outlives its connection.
    pub durable: bool,
}

/// A subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionInfo {
    /// Who: a client, a shared group or a path.
    pub subscriber: String,
    /// What.
    pub filter: String,
}

impl Handle {
    /// What became of every record of every path: persistent sessions, shared subscriptions, dataflows, and our own
    /// publishers. Paths that ended are summed by kind.
    ///
    /// # Errors
    /// When the store can't be read.
    pub async fn ledger(&self) -> Result<Vec<PathLedger>, Error> {
        let (namespace, name) = self.engine().identity.clone();
        let broker = format!("broker/{namespace}/{name}");
        Ok(self
            .engine()
            .blocking(move |store| ledger(store, &broker))
            .await?)
    }

    /// Free space of the disk below the store; `None` when it is kept in memory, or the system does not say.
    pub async fn space(&self) -> Option<Space> {
        // A store that can't be asked any more tells that elsewhere.
        let asked = self.engine().blocking(|store| Ok(store.space())).await;
        asked.ok().flatten()
    }

    /// Sessions, connected or not, at most so many.
    #[must_use]
    pub fn sessions(&self, max: usize) -> Vec<SessionInfo> {
        let clients = self.engine().sessions.all();
        let info = |client: &std::sync::Arc<crate::session::registry::Client>| {
            let known = client.known();
            let session = known.session.as_ref()?;
            Some(SessionInfo {
                client_id: client.id.to_string(),
                connection: known.connection.clone(),
                durable: session.receiver.is_some(),
            })
        };
        clients.iter().filter_map(info).take(max).collect()
    }

    /// Subscriptions, at most so many.
    #[must_use]
    pub fn subscriptions(&self, max: usize) -> Vec<SubscriptionInfo> {
        self.engine().router.subscriptions(max)
    }
}

fn ledger(store: &dyn Store, broker: &str) -> Result<Vec<PathLedger>, StoreError> {
    let mut lines = Vec::new();
    let mut after = 0;
    loop {
        let page = store.receivers(after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = last.id;
        for receiver in page {
            lines.extend(store.totals(receiver.id)?.map(|totals| totals.ledger));
        }
    }
    for ended in store.ended()? {
        lines.push(ended.counts.to_ledger(format!("{}/(ended)", ended.kind)));
    }
    let mut after: Option<String> = None;
    loop {
        let page = store.sources(after.as_deref(), PAGE)?;
        let Some(last) = page.last() else { break };
        after = Some(last.source.clone());
        lines.extend(
            page.iter()
                .map(|source| source.to_ledger(format!("{}->{broker}", source.source))),
        );
    }
    Ok(lines)
}
