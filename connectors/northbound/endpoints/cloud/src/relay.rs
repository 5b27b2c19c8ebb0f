//! Commands from the cloud, relayed to the broker of their asset as MQTT 5 requests.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use foreshore_control::plan::{AssetSummaryPlan, ConnectionPlan};
use foreshore_edgelink::command::Command;
use foreshore_mqtt::{
    Client, Options, Security, Target,
    error::PublishError,
    request::{RequestError, Requester},
};
use foreshore_northbound::{Assets, Surroundings};
use foreshore_record::{
    CommandError, CommandErrorCode, CommandOutcome, CommandRequest, Qos, Record, TopicName, property,
};
use foreshore_runtime::{Shutdown, spawn};
use foreshore_tls::{Identity, ServerName};
use jiff::Timestamp;
use parking_lot::Mutex as Lock;

use tokio::sync::{Mutex, mpsc};
use tracing::info;

use crate::settings::Settings;

/// Reason code of a broker whose policy forbids a publish (MQTT 5.0, 2.4: Not authorized).
const NOT_AUTHORIZED: u8 = 0x87;

/// Longest wait for the broker itself, beyond the command's own deadline.
const GRACE: Duration = Duration::from_secs(1);

/// Commands that the edge takes at a time.
pub(crate) const COMMAND_CREDIT: usize = 32;

/// Commands that are remembered, those that run included.
const REMEMBERED: usize = 256;

/// Outcomes on their way to the cloud, whichever stream carries them.
pub(crate) type Results = mpsc::Receiver<(String, CommandOutcome)>;

/// Relays commands. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Relay {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    edge: String,
    namespace: String,
    endpoint: String,
    assets: Assets,
    brokers: Arc<BTreeMap<String, ConnectionPlan>>,
    /// Requesters by broker, connected with the first command.
    requesters: Mutex<BTreeMap<String, Arc<Requester>>>,
    shutdown: Shutdown,
    /// Commands by id: the cloud sends those again that were not answered before a stream broke.
    known: Lock<Known>,
    results: mpsc::Sender<(String, CommandOutcome)>,
}

/// Commands that run, without an outcome, and those that ended last.
#[derive(Default)]
struct Known {
    outcomes: HashMap<String, Option<CommandOutcome>>,
    order: VecDeque<String>,
}

/// What is known of a command.
#[derive(Debug, PartialEq)]
enum Seen {
    New,
    Running,
    Ended(CommandOutcome),
}

impl Known {
    fn begin(&mut self, id: &str) -> Seen {
        match self.outcomes.get(id) {
            Some(Some(outcome)) => return Seen::Ended(outcome.clone()),
            Some(None) => return Seen::Running,
            None => {}
        }
        // One that runs is not forgotten; there are far fewer of them than places.
        while self.order.len() >= REMEMBERED
            && let Some(oldest) = self
                .order
                .iter()
                .position(|id| matches!(self.outcomes.get(id), Some(Some(_))))
            && let Some(id) = self.order.remove(oldest)
        {
            self.outcomes.remove(&id);
        }
        self.outcomes.insert(id.to_owned(), None);
        self.order.push_back(id.to_owned());
        Seen::New
    }

    fn running(&self) -> usize {
        self.outcomes.values().filter(|outcome| outcome.is_none()).count()
    }
}

impl Relay {
    pub(crate) fn start(settings: &Settings, surroundings: &Surroundings) -> (Self, Results) {
        let (results, outcomes) = mpsc::channel(COMMAND_CREDIT);
        let inner = Inner {
            identity: surroundings.identity.clone(),
            edge: settings.edge.clone(),
            namespace: settings.namespace.clone(),
            endpoint: settings.endpoint.clone(),
            assets: surroundings.assets.clone(),
            brokers: Arc::clone(&settings.brokers),
            requesters: Mutex::default(),
            shutdown: surroundings.shutdown.clone(),
            known: Lock::default(),
            results,
        };
        (
            Self {
                inner: Arc::new(inner),
            },
            outcomes,
        )
    }

    /// Carries a command out in the background and sends its outcome; one that is known already is not carried out
    /// again.
    pub(crate) fn carry_out(&self, command: Command) {
        let Command { id, request } = command;
        let seen = {
            let mut known = self.inner.known.lock();
            let is_full = known.running() >= COMMAND_CREDIT && !known.outcomes.contains_key(&id);
            if is_full {
                let words = format!("{COMMAND_CREDIT} commands are under way already");
                Seen::Ended(Err(CommandError::new(CommandErrorCode::Unavailable, words)))
            } else {
                known.begin(&id)
            }
        };
        let inner = Arc::clone(&self.inner);
        let task = async move {
            let outcome = match seen {
                Seen::Running => return,
                Seen::Ended(outcome) => outcome,
                Seen::New => inner.carry_out(&id, request).await,
            };
            // The link may be gone; the cloud then asks again, or tells that the outcome is unknown.
            drop(inner.results.send((id, outcome)).await);
        };
        spawn("command", task).detach();
    }
}

impl Inner {
    async fn carry_out(&self, id: &str, request: CommandRequest) -> CommandOutcome {
        let asset = format!("{}/{}", request.namespace, request.asset);
        let action = format!("{}/{}", request.group, request.action);
        let outcome = self.request(request).await;
        let error = outcome.as_ref().err().map(ToString::to_string);
        info!(id, asset, action, error, "command from the cloud endpoint");
        self.known
            .lock()
            .outcomes
            .insert(id.to_owned(), Some(outcome.clone()));
        outcome
    }

    async fn request(&self, mut request: CommandRequest) -> CommandOutcome {
        let left = Duration::try_from(request.deadline.duration_since(Timestamp::now())).unwrap_or_default();
        if left.is_zero() {
            return Err(CommandError::new(
                CommandErrorCode::DeadlineExceeded,
                "the deadline passed on the way",
            ));
        }
        let unavailable = |message: String| CommandError::new(CommandErrorCode::Unavailable, message);
        let asset = self.asset(&request)?;
        // The far end chooses who asked, and not which endpoint it came through: policies may rely on that.
        request.actor.retain(|character| !character.is_control());
        request.actor.insert_str(0, &format!("{}/", self.endpoint));
        let connecting = self.requester(&asset.broker);
        let requester = tokio::time::timeout(left, connecting)
            .await
            .map_err(|_| unavailable("the broker did not answer before the deadline".to_owned()))?
            .map_err(unavailable)?;
        let message = message(&request)
            .map_err(|error| CommandError::new(CommandErrorCode::InvalidInput, error.to_string()))?;
        match requester.request(message, left + GRACE).await {
            Ok(response) => read(&response),
            Err(RequestError::NobodyAnswers { .. }) => {
                Err(unavailable("no connector serves this action now".to_owned()))
            }
            Err(RequestError::Publish(PublishError::Refused { reason, message }))
                if reason.0 == NOT_AUTHORIZED =>
            {
                let message = format!("a policy of broker {} forbids it: {message}", asset.broker);
                Err(CommandError::new(CommandErrorCode::Forbidden, message))
            }
            Err(RequestError::Timeout { .. }) => {
                let words =
                    "the connector did not answer by the deadline; whether it took effect is not known";
                Err(CommandError::new(CommandErrorCode::Unknown, words))
            }
            Err(error) => Err(unavailable(error.to_string())),
        }
    }

    /// The asset that a command is for.
    fn asset(&self, request: &CommandRequest) -> Result<Arc<AssetSummaryPlan>, CommandError> {
        let CommandRequest { namespace, asset, .. } = request;
        let found = self.assets.get(namespace, asset);
        if let Some(found) = found.filter(|_| *namespace == self.namespace) {
            return Ok(found);
        }
        let (code, words) = if self.assets.is_complete() {
            (CommandErrorCode::NotFound, "the edge has no asset")
        } else {
            (
                CommandErrorCode::Unavailable,
                "the edge does not know yet whether it has an asset",
            )
        };
        Err(CommandError::new(code, format!("{words} {namespace}/{asset}")))
    }

    /// The requester of a broker.
    async fn requester(&self, broker: &str) -> Result<Arc<Requester>, String> {
        let mut requesters = self.requesters.lock().await;
        if let Some(requester) = requesters.get(broker) {
            return Ok(Arc::clone(requester));
        }
        let connection = self
            .brokers
            .get(broker)
            .ok_or_else(|| format!("the way to broker {broker:?} is not known yet"))?;
        let name = ServerName::try_from(connection.server_name.clone()).map_err(|error| error.to_string())?;
        let security = Security::mutual(&self.identity, name).map_err(|error| error.to_string())?;
        let target = Target {
            addresses: connection.mqtt_addresses.clone(),
            security,
        };
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let options = Options::new(format!("foreshore-relay-{unique}"), target);
        let (client, service) = Client::new(options);
        spawn("command relay", service.run(self.shutdown.clone())).detach();
        let topic = TopicName::new(format!(
            "foreshore/responses/{}/{}/{unique}",
            self.namespace, self.edge
        ));
        let topic = topic.map_err(|error| error.to_string())?;
        let requester = Requester::new(&client, topic)
            .await
            .map_err(|error| error.to_string())?;
        let requester = Arc::new(requester);
        requesters.insert(broker.to_owned(), Arc::clone(&requester));
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
    record
        .properties
        .push_user(property::IDEMPOTENCY_KEY, &request.idempotency_key);
    record
        .properties
        .push_user(property::DEADLINE, request.deadline.to_string());
    record.properties.push_user(property::ACTOR, &request.actor);
    Ok(record)
}

/// Reads a response.
fn read(response: &Record) -> CommandOutcome {
    let unreadable = |error: serde_json::Error| {
        CommandError::new(
            CommandErrorCode::Unknown,
            format!("the connector's answer can't be read: {error}"),
        )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_runs_once_and_is_answered_alike_when_it_is_sent_again() {
        let mut known = Known::default();
        assert_eq!(known.begin("a"), Seen::New);
        assert_eq!(known.begin("a"), Seen::Running);
        known.outcomes.insert("a".to_owned(), Some(Ok(1.into())));
        assert_eq!(known.begin("a"), Seen::Ended(Ok(1.into())));
        assert_eq!(known.begin("running"), Seen::New);
        for number in 0..2 * REMEMBERED {
            let id = number.to_string();
            assert_eq!(known.begin(&id), Seen::New);
            known.outcomes.insert(id, Some(Ok(2.into())));
        }
        assert_eq!(
            (known.order.len(), known.outcomes.len()),
            (REMEMBERED, REMEMBERED)
        );
        assert_eq!((known.begin("running"), known.running()), (Seen::Running, 1));
    }
}
