//! Commands from the cloud, relayed to the broker of their asset's namespace as MQTT 5 requests.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use foreshore_control::plan::ConnectionPlan;
use foreshore_edgelink::command::Command;
use foreshore_mqtt::{
    Client, Options, Security, Target,
    error::PublishError,
    request::{RequestError, Requester},
};
use foreshore_northbound::Surroundings;
use foreshore_record::{
    CommandError, CommandErrorCode, CommandOutcome, CommandRequest, Qos, Record, TopicName, property,
};
use foreshore_runtime::{Shutdown, spawn};
use foreshore_tls::{Identity, ServerName};
use jiff::Timestamp;
use tokio::sync::{Mutex, mpsc};
use tracing::info;

use crate::factory::Settings;

/// Reason code of a broker whose policy forbids a publish (MQTT 5.0, 2.4: Not authorized).
const NOT_AUTHORIZED: u8 = 0x87;

/// Longest wait for the broker itself, beyond the command's own deadline.
const GRACE: Duration = Duration::from_secs(1);

/// Relays commands.
pub(crate) struct Relay {
    identity: Identity,
    edge: String,
    brokers: Arc<BTreeMap<String, ConnectionPlan>>,
    /// Requesters by namespace, connected with the first command.
    requesters: Mutex<BTreeMap<String, Arc<Requester>>>,
    shutdown: Shutdown,
}

impl Relay {
    pub(crate) fn start(settings: &Settings, surroundings: &Surroundings) -> Arc<Self> {
        Arc::new(Self {
            identity: surroundings.identity.clone(),
            edge: settings.edge.clone(),
            brokers: Arc::clone(&settings.brokers),
            requesters: Mutex::default(),
            shutdown: surroundings.shutdown.clone(),
        })
    }

    /// Carries a command out in the background and sends its outcome.
    pub(crate) fn carry_out(self: &Arc<Self>, command: Command, results: mpsc::Sender<(String, CommandOutcome)>) {
        let relay = Arc::clone(self);
        let task = spawn("command", async move {
            let Command { id, request } = command;
            let asset = format!("{}/{}", request.namespace, request.asset);
            let action = format!("{}/{}", request.group, request.action);
            let outcome = relay.request(request).await;
            let error = outcome.as_ref().err().map(ToString::to_string);
            info!(id, asset, action, error, "command from the cloud endpoint");
            // The link may be gone; the cloud then asks again, or tells that the outcome is unknown.
            drop(results.send((id, outcome)).await);
        });
        task.detach();
    }

    async fn request(&self, request: CommandRequest) -> CommandOutcome {
        let left = Duration::try_from(request.deadline.duration_since(Timestamp::now())).unwrap_or_default();
        if left.is_zero() {
            return Err(CommandError::new(CommandErrorCode::DeadlineExceeded, "the deadline passed on the way"));
        }
        let unavailable = |message: String| CommandError::new(CommandErrorCode::Unavailable, message);
        let connecting = self.requester(&request.namespace);
        let requester = tokio::time::timeout(left, connecting)
            .await
            .map_err(|_| unavailable("the broker did not answer before the deadline".to_owned()))?
            .map_err(unavailable)?;
        let message = message(&request).map_err(|error| {
            CommandError::new(CommandErrorCode::InvalidInput, error.to_string())
        })?;
        match requester.request(message, left + GRACE).await {
            Ok(response) => read(&response),
            Err(RequestError::NobodyAnswers { .. }) => {
                Err(unavailable("no connector serves this action now".to_owned()))
            }
            Err(RequestError::Publish(PublishError::Refused { reason, message })) if reason.0 == NOT_AUTHORIZED => {
                let message = format!("a policy of the broker forbids it: {reason}, {message}");
                Err(CommandError::new(CommandErrorCode::Forbidden, message))
            }
            Err(error @ RequestError::Timeout { .. }) => {
                Err(CommandError::new(CommandErrorCode::Unknown, error.to_string()))
            }
            Err(error) => Err(unavailable(error.to_string())),
        }
    }

    /// The requester of a namespace's broker.
    async fn requester(&self, namespace: &str) -> Result<Arc<Requester>, String> {
        let mut requesters = self.requesters.lock().await;
        if let Some(requester) = requesters.get(namespace) {
            return Ok(Arc::clone(requester));
        }
        let known = || self.brokers.keys().cloned().collect::<Vec<_>>().join(", ");
        let connection = self
            .brokers
            .values()
            .find(|connection| connection.namespace == namespace)
            .ok_or_else(|| format!("no broker of namespace {namespace:?} is known here: {}", known()))?;
        let name = ServerName::try_from(connection.server_name.clone()).map_err(|error| error.to_string())?;
        let security = Security::mutual(&self.identity, name).map_err(|error| error.to_string())?;
        let target = Target { addresses: connection.mqtt_addresses.clone(), security };
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let options = Options::new(format!("foreshore-relay-{unique}"), target);
        let (client, service) = Client::new(options);
        spawn("command relay", service.run(self.shutdown.clone())).detach();
        let topic = TopicName::new(format!("foreshore/responses/{namespace}/{}/{unique}", self.edge));
        let topic = topic.map_err(|error| error.to_string())?;
        let requester = Requester::new(&client, topic).await.map_err(|error| error.to_string())?;
        let requester = Arc::new(requester);
        requesters.insert(namespace.to_owned(), Arc::clone(&requester));
        Ok(requester)
    }
}

/// The MQTT request of a command.
fn message(request: &CommandRequest) -> Result<Record, foreshore_record::topic::InvalidTopic> {
    let mut record = Record::new(request.topic()?, request.input.to_string().into_bytes());
    record.qos = Qos::AtLeastOnce;
    record.properties.content_type = Some("application/json".to_owned());
    record.properties.payload_is_utf8 = true;
    let left = request.deadline.duration_since(Timestamp::now()).as_secs().max(1);
    record.properties.expiry_seconds = Some(u32::try_from(left).unwrap_or(u32::MAX));
    record.properties.push_user(property::IDEMPOTENCY_KEY, &request.idempotency_key);
    record.properties.push_user(property::DEADLINE, request.deadline.to_string());
    record.properties.push_user(property::ACTOR, &request.actor);
    Ok(record)
}

/// Reads a response.
fn read(response: &Record) -> CommandOutcome {
    let unreadable = |error: serde_json::Error| {
        CommandError::new(CommandErrorCode::Unknown, format!("the connector's answer can't be read: {error}"))
    };
    if response.user_property(property::COMMAND_STATUS) == Some("ok") {
        return if response.payload.is_empty() {
            Ok(serde_json::Value::Null)
        } else {
            serde_json::from_slice(&response.payload).map_err(unreadable)
        };
    }
    Err(serde_json::from_slice::<CommandError>(&response.payload).unwrap_or_else(unreadable))
}
