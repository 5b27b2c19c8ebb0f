//! Publishes batches and waits for the broker's acknowledgements.

use std::time::Duration;

use async_trait::async_trait;
use foreshore_mqtt::{Client, ConnectError, ConnectionState, PublishError, ReasonCode, Receipt};
use foreshore_northbound::{Batch, Capabilities, Delivery, Sink, SinkError, health::reason};
use foreshore_record::DropReason;
use foreshore_runtime::Shutdown;
use futures::future::join_all;
use jiff::Timestamp;
use tokio::sync::{Mutex, watch};

use crate::{
    ending::{EndOnDrop, GOODBYE},
    message::{NoMessage, Template},
    target::Connection,
};

/// Publishes to one broker.
pub(crate) struct MqttSink {
    connection: Connection,
    template: Template,
    shutdown: Shutdown,
    /// The client, while its connection lasts.
    client: Mutex<Option<Connected>>,
}

/// A client with its connection. When the connection breaks, the client is given up with what it still had to send:
/// the engine sends that again, and it should not arrive twice as often with every break.
#[derive(Clone)]
struct Connected {
    client: Client,
    state: watch::Receiver<ConnectionState>,
    shutdown: Shutdown,
    /// Which connection of the client.
    number: u64,
}

impl Connected {
    fn lasts(&self) -> bool {
        matches!(*self.state.borrow(), ConnectionState::Connected { number, .. } if number == self.number)
    }

    /// Resolves when the connection has ended.
    async fn ended(&self) {
        let mut state = self.state.clone();
        let number = self.number;
        // An error says that the client is gone.
        drop(
            state
                .wait_for(
                    |state| !matches!(state, ConnectionState::Connected { number: n, .. } if *n == number),
                )
                .await,
        );
    }
}

impl MqttSink {
    pub(crate) fn new(connection: Connection, template: Template, shutdown: Shutdown) -> Self {
        Self {
            connection,
            template,
            shutdown,
            client: Mutex::new(None),
        }
    }

    /// The client if its connection lasts, else a new one.
    async fn connected(&self) -> Result<Connected, SinkError> {
        let mut present = self.client.lock().await;
        if let Some(connected) = present.take_if(|connected| !connected.lasts()) {
            connected.shutdown.begin(Duration::ZERO);
        }
        if let Some(connected) = &*present {
            return Ok(connected.clone());
        }
        let connected = self.connect().await?;
        Ok(present.insert(connected).clone())
    }

    async fn connect(&self) -> Result<Connected, SinkError> {
        let (client, service) = Client::new(self.connection.options.clone());
        let shutdown = self.shutdown.child();
        // Ends the client if this is dropped before it is connected.
        let guard = EndOnDrop::new(&shutdown, Duration::ZERO);
        foreshore_runtime::spawn("mqtt sink", service.run(shutdown.clone())).detach();
        let mut state = client.state();
        let found = state.wait_for(|state| !matches!(state, ConnectionState::Connecting { failures: 0, .. }));
        let number = match found.await.as_deref() {
            Ok(ConnectionState::Connected { number, .. }) => *number,
            Ok(ConnectionState::Connecting {
                error: Some(error), ..
            }) => return Err(connect_error(error)),
            Ok(_) | Err(_) => return Err(SinkError::retryable(reason::UNREACHABLE, "no connection")),
        };
        guard.keep();
        let state = client.state();
        Ok(Connected {
            client,
            state,
            shutdown,
            number,
        })
    }

    async fn publish(&self, connected: &Connected, batch: &Batch<'_>) -> Result<Vec<Delivery>, SinkError> {
        let now = Timestamp::now();
        let mut pending = Vec::with_capacity(batch.outputs.len());
        for output in batch.outputs {
            pending.push(match self.template.message(&output.record, now) {
                Err(NoMessage::Loop) => Pending::Judged(Delivery::Dropped {
                    reason: DropReason::LOOP,
                }),
                Err(error) => Pending::Judged(Delivery::DeadLetter {
                    reason: error.to_string(),
                }),
                Ok(message) => match connected.client.publish(&message).await {
                    Ok(receipt) => Pending::Sent(receipt),
                    Err(error) => Pending::Failed(error),
                },
            });
        }
        let answers = join_all(pending.into_iter().map(Pending::answer)).await;
        answers.into_iter().collect()
    }
}

/// An output on its way.
enum Pending {
    Sent(Receipt),
    Failed(PublishError),
    Judged(Delivery),
}

impl Pending {
    async fn answer(self) -> Result<Delivery, SinkError> {
        match self {
            Self::Sent(receipt) => receipt.await.map(|_| Delivery::Delivered).or_else(judge),
            Self::Failed(error) => judge(error),
            Self::Judged(delivery) => Ok(delivery),
        }
    }
}

/// Whether a refusal is final, passes by itself, or needs someone to act.
fn judge(error: PublishError) -> Result<Delivery, SinkError> {
    match &error {
        PublishError::Refused { reason: code, .. } => match *code {
            ReasonCode::NOT_AUTHORIZED => Err(SinkError::fatal("NotAuthorized", error)),
            ReasonCode::TOPIC_NAME_INVALID | ReasonCode::PACKET_TOO_LARGE | PAYLOAD_FORMAT_INVALID => {
                Ok(Delivery::DeadLetter {
                    reason: error.to_string(),
                })
            }
            ReasonCode::QUOTA_EXCEEDED => Err(SinkError::retryable("QuotaExceeded", error)),
            _ => Err(SinkError::retryable("Refused", error)),
        },
        PublishError::TooLarge { .. } | PublishError::Encode { .. } => Ok(Delivery::DeadLetter {
            reason: error.to_string(),
        }),
        PublishError::NotSupported { .. } => Err(SinkError::fatal("NotSupported", error)),
        _ => Err(SinkError::retryable(reason::UNREACHABLE, error)),
    }
}

/// MQTT 5.0, section 3.4.2.1.
const PAYLOAD_FORMAT_INVALID: ReasonCode = ReasonCode(0x99);

fn connect_error(error: &ConnectError) -> SinkError {
    match error {
        ConnectError::Tls { refusal, .. } => SinkError::fatal(refusal.code(), error),
        ConnectError::Refused { reason: code, .. } => match *code {
            ReasonCode::BAD_USER_NAME_OR_PASSWORD | ReasonCode::NOT_AUTHORIZED => {
                SinkError::fatal("AuthenticationFailed", error)
            }
            _ => SinkError::retryable("Refused", error),
        },
        ConnectError::Protocol { .. } => SinkError::fatal("ProtocolUnsupported", error),
        ConnectError::Timeout { .. } => SinkError::retryable(reason::TIMEOUT, error),
        _ => SinkError::retryable(reason::UNREACHABLE, error),
    }
}

#[async_trait]
impl Sink for MqttSink {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // What is on its way when a connection breaks is sent again, and no more than that.
            max_outputs: usize::from(self.connection.options.window),
            // Messages of a topic stay in order (MQTT 5.0, section 4.6), over failures too: what is retained must not
            // become older.
            max_inflight: 1,
            ..Capabilities::default()
        }
    }

    async fn deliver(&self, batch: Batch<'_>) -> Result<Vec<Delivery>, SinkError> {
        let connected = self.connected().await?;
        // A batch that is given up must not be sent on behind the engine's back, while it sends it again.
        let guard = EndOnDrop::new(&connected.shutdown, Duration::ZERO);
        tokio::select! {
            biased;
            deliveries = self.publish(&connected, &batch) => {
                guard.keep();
                deliveries
            }
            () = connected.ended() => Err(SinkError::retryable("ConnectionLost", "the connection broke")),
        }
    }

    async fn probe(&self) -> Result<(), SinkError> {
        self.connected().await.map(drop)
    }

    async fn close(&self) {
        if let Some(connected) = self.client.lock().await.take() {
            connected.shutdown.begin(GOODBYE);
        }
    }
}
