//! What a broker that runs here holds: sessions, subscriptions, retained messages, backlogs, where a message is, and what
//! its policies say.

use std::time::Duration;

use foreshore_broker::{inspect::trace::MessageId, policy::explain::Question};
use foreshore_record::TopicFilter;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Answer;
use crate::roles::Directory;

/// Longest look at one listener.
const LONGEST_PROBE: Duration = Duration::from_secs(60);

/// Most items of one answer.
const MOST: usize = 10_000;

/// A question to a broker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BrokerRequest {
    /// Which one, as `NAMESPACE/NAME`; may be left out where one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) broker: Option<String>,
    /// What is asked.
    pub(crate) about: About,
}

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum About {
    /// Sessions, connected or not.
    Sessions {
        /// Of this client only.
        client: Option<String>,
        /// At most so many.
        max: usize,
    },
    /// Subscriptions.
    Subscriptions {
        /// Of this client only.
        client: Option<String>,
        /// At most so many.
        max: usize,
    },
    /// Retained messages.
    Retained {
        /// Whose topic this matches.
        filter: TopicFilter,
        /// At most so many.
        max: usize,
    },
    /// What waits, and whether it becomes less.
    Backlog {
        /// Of this client only.
        client: Option<String>,
        /// Milliseconds between the two looks.
        interval_ms: u64,
        /// At most so many queues, and as many connections.
        max: usize,
    },
    /// A look at every listener.
    Probe {
        /// Longest time for each, in milliseconds.
        timeout_ms: u64,
    },
    /// What the policies that are in force say to a client.
    Explain(Question),
    /// What happens to the next messages of a topic filter.
    Trace {
        /// Which messages.
        filter: TopicFilter,
        /// At most so many.
        max: usize,
        /// For so many milliseconds at most.
        within_ms: u64,
    },
    /// Where a message is.
    Message(MessageId),
}

impl About {
    /// Its name in the audit log.
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Sessions { .. } => "sessions",
            Self::Subscriptions { .. } => "subscriptions",
            Self::Retained { .. } => "retained",
            Self::Backlog { .. } => "backlog",
            Self::Probe { .. } => "probe",
            Self::Explain(_) => "explain",
            Self::Trace { .. } => "trace",
            Self::Message(_) => "message",
        }
    }
}

impl BrokerRequest {
    /// Whether it is pointless once nobody waits for the answer.
    pub(super) fn is_for_a_listener(&self) -> bool {
        matches!(self.about, About::Trace { .. })
    }

    /// Asks the broker, for a user as the operating system knows it.
    pub(super) async fn run(self, directory: &Directory, user: Option<String>) -> Answer {
        let broker = directory.broker(self.broker.as_deref())?;
        broker.tell_command(self.about.as_str(), user.as_deref());
        let failed = |error: foreshore_broker::Error| error.to_string();
        let value = match self.about {
            About::Sessions { client, max } => {
                let sessions = broker.sessions(client.as_deref(), max.min(MOST)).await;
                serde_json::to_value(sessions.map_err(failed)?)
            }
            About::Subscriptions { client, max } => {
                serde_json::to_value(broker.subscriptions(client.as_deref(), max.min(MOST)))
            }
            About::Retained { filter, max } => serde_json::to_value(broker.retained(&filter, max.min(MOST))),
            About::Backlog {
                client,
                interval_ms,
                max,
            } => {
                let interval = Duration::from_millis(interval_ms);
                serde_json::to_value(
                    broker
                        .backlog(client.as_deref(), interval, max.min(MOST))
                        .await
                        .map_err(failed)?,
                )
            }
            About::Probe { timeout_ms } => {
                let timeout = Duration::from_millis(timeout_ms).min(LONGEST_PROBE);
                serde_json::to_value(broker.probe(timeout).await)
            }
            About::Explain(question) => {
                let explanation = broker.explain(question);
                in_words(&explanation)
            }
            About::Trace {
                filter,
                max,
                within_ms,
            } => {
                let within = Duration::from_millis(within_ms);
                in_words(&broker.trace(filter, max, within).await.map_err(failed)?)
            }
            About::Message(id) => in_words(&broker.find_message(id).await.map_err(failed)?),
        };
        value.map_err(|error| error.to_string())
    }
}

/// An answer with its own words: people read those of the broker, which fit its version.
fn in_words<T: Serialize + ToString>(answer: &T) -> serde_json::Result<Value> {
    let mut value = serde_json::to_value(answer)?;
    value["text"] = Value::String(answer.to_string());
    Ok(value)
}
