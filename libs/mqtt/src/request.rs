//! Requests with a response topic (MQTT 5.0, section 4.10).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use foreshore_record::{Qos, Record, TopicFilter, TopicName};
use foreshore_runtime::{Task, spawn};
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::oneshot;

use crate::{
    client::Client,
    error::{PublishError, SubscribeError},
    reason::ReasonCode,
    subscriptions::Subscriber,
};

/// Requests that may wait for their responses at once.
const MAX_WAITING: usize = 1024;

type Waiting = Arc<Mutex<HashMap<Bytes, oneshot::Sender<Record>>>>;

/// Sends requests and finds their responses by correlation data. Cheap to share behind an [`Arc`].
#[derive(Debug)]
pub struct Requester {
    client: Client,
    response_topic: TopicName,
    waiting: Waiting,
    prefix: u64,
    next: AtomicU64,
    _receiving: Task<()>,
}

/// Why a request has no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nobody subscribes to the request's topic.
    #[error("nobody answers on {topic}")]
    NobodyAnswers {
        /// The request's topic.
        topic: TopicName,
    },
    /// The request was not published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// No response came in time. Whether the request was carried out is not known.
    #[error("no response within {} s", after.as_secs_f32())]
    Timeout {
        /// How long was waited.
        after: Duration,
    },
    /// Too many requests wait for their responses.
    #[error("{MAX_WAITING} requests wait for their responses already")]
    TooMany,
}

impl Requester {
    /// Subscribes to the response topic, which must be this requester's alone; needs a connection.
    ///
    /// # Errors
    /// When the server refuses the subscription.
    pub async fn new(client: &Client, response_topic: TopicName) -> Result<Self, SubscribeError> {
        let subscriber = client.subscriber().await.map_err(|_| SubscribeError::Ended)?;
        let filter = TopicFilter::new(response_topic.as_str()).map_err(|_| SubscribeError::Refused {
            filter: response_topic.to_string(),
            reason: ReasonCode(0x8F),
            message: String::new(),
        })?;
        subscriber.add(filter, Qos::AtLeastOnce).await?;
        let waiting = Waiting::default();
        let receiving = spawn("mqtt-responses", receive(subscriber, Arc::clone(&waiting)));
        let (client, prefix) = (client.clone(), rand::rng().random());
        Ok(Self {
            client,
            response_topic,
            waiting,
            prefix,
            next: AtomicU64::new(0),
            _receiving: receiving,
        })
    }

    /// Publishes a request and waits for its response. Response topic and correlation data are set here.
    ///
    /// # Errors
    /// When nobody answers, the request is refused, or no response comes in time.
    pub async fn request(&self, mut request: Record, within: Duration) -> Result<Record, RequestError> {
        let mut correlation = [0; 16];
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (prefix, suffix) = correlation.split_at_mut(8);
        prefix.copy_from_slice(&self.prefix.to_be_bytes());
        suffix.copy_from_slice(&number.to_be_bytes());
        let correlation = Bytes::copy_from_slice(&correlation);
        request.properties.response_topic = Some(self.response_topic.to_string());
        request.properties.correlation_data = Some(correlation.clone());

        let (reply, response) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.len() >= MAX_WAITING {
                return Err(RequestError::TooMany);
            }
            waiting.insert(correlation.clone(), reply);
        }
        // Forgets the request also when this future is dropped.
        let _forget = Forget {
            waiting: &self.waiting,
            correlation,
        };
        let exchange = async {
            let acknowledgement = self.client.publish(&request).await?.await?;
            if acknowledgement.reason == ReasonCode::NO_MATCHING_SUBSCRIBERS {
                return Err(RequestError::NobodyAnswers {
                    topic: request.topic.clone(),
                });
            }
            response
                .await
                .map_err(|_| RequestError::Publish(PublishError::Ended))
        };
        tokio::time::timeout(within, exchange)
            .await
            .unwrap_or(Err(RequestError::Timeout { after: within }))
    }
}

struct Forget<'a> {
    waiting: &'a Waiting,
    correlation: Bytes,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.correlation);
    }
}

async fn receive(mut subscriber: Subscriber, waiting: Waiting) {
    while let Some(delivery) = subscriber.next().await {
        let response = delivery.acknowledge();
        let correlation = response.properties.correlation_data.as_ref();
        let reply = correlation.and_then(|correlation| waiting.lock().remove(correlation));
        match reply {
            // The requester may have given up meanwhile.
            Some(reply) => drop(reply.send(response)),
            None => tracing::debug!(topic = %response.topic, "response to no request of ours"),
        }
    }
    // Whoever still waits learns that no response will come.
    waiting.lock().clear();
}
