//! Figures under `$SYS`, as other brokers name them.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use foreshore_record::TopicName;
use foreshore_store::StoreError;

use crate::{engine::Engine, message::Message};

/// Publishes the figures, for as long as the broker runs.
pub(crate) async fn publish(engine: Arc<Engine>, interval: Duration) {
    let began = std::time::Instant::now();
    let mut every = tokio::time::interval(interval);
    loop {
        every.tick().await;
        let figures = [
            ("version", format!("foreshore {}", env!("CARGO_PKG_VERSION"))),
            ("uptime", format!("{} seconds", began.elapsed().as_secs())),
            ("clients/connected", engine.stats.connections.get().to_string()),
            ("clients/total", engine.sessions.len().to_string()),
            ("messages/received", engine.stats.received.get().to_string()),
            ("messages/sent", engine.stats.sent.get().to_string()),
            (
                "publish/messages/dropped",
                engine.stats.dropped_live.get().to_string(),
            ),
            ("retained messages/count", engine.retained.size().0.to_string()),
            ("subscriptions/count", engine.subscriptions.get().to_string()),
        ];
        for (name, value) in figures {
            if let Err(error) = publish_one(&engine, name, value).await {
                tracing::debug!(%error, "figures are published no more");
                return;
            }
        }
    }
}

/// Figures are kept as retained messages in memory only: nobody needs yesterday's.
async fn publish_one(engine: &Arc<Engine>, name: &str, value: String) -> Result<(), StoreError> {
    let Ok(topic) = TopicName::new(format!("$SYS/broker/{name}")) else {
        return Ok(());
    };
    let message = || Message::new(topic.clone(), Bytes::from(value.clone()), Bytes::new());
    engine.retained.put(0, &Arc::new(message()));
    engine.publish(message(), Vec::new()).await
}
