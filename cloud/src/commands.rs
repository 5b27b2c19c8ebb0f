//! Commands to assets: written down, sent over the asset's edge's stream, answered by the deadline.

use std::{collections::HashMap, sync::Arc, time::Duration};

use foreshore_edgelink::command::Command;
use foreshore_record::{CommandError, CommandErrorCode, CommandOutcome, CommandRequest};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    audit::{self, Asked, Begun},
    link::Sessions,
    metrics::LinkMetrics,
    store::{Context, Priority, Store, StoreError},
};

/// How long after the deadline an answer is waited for: the edge itself answers at the deadline.
const GRACE: Duration = Duration::from_secs(2);

/// Commands to assets. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Commands {
    shared: Arc<Shared>,
}

struct Shared {
    store: Store,
    sessions: Sessions,
    metrics: LinkMetrics,
    /// Commands that were sent, or are about to be, by id.
    pending: Mutex<HashMap<String, Pending>>,
}

struct Pending {
    edge: i64,
    command: Command,
    /// Whether it is written down and may be sent.
    begun: bool,
    outcome: watch::Sender<Option<CommandOutcome>>,
}

/// The edge that has an asset.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) id: i64,
    pub(crate) name: String,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    /// Names the command in the audit.
    pub(crate) id: String,
    pub(crate) outcome: CommandOutcome,
    /// Whether an earlier command of the same key is answered with.
    pub(crate) repeated: bool,
}

/// Why a command was not even tried.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTried {
    #[error("the idempotency key was used for another command to this asset")]
    Conflict,
    /// What can't be audited is not done.
    #[error("the command can't be written to the audit: {0}")]
    Store(#[from] StoreError),
}

impl Commands {
    pub(crate) fn new(store: Store, sessions: Sessions, metrics: LinkMetrics) -> Self {
        let shared = Shared {
            store,
            sessions,
            metrics,
            pending: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Sends a command and waits for its outcome. Goes on to the end, the audit included, when the caller goes away.
    pub(crate) async fn invoke(
        &self,
        target: Option<Target>,
        request: CommandRequest,
        has_key: bool,
    ) -> Result<Answer, NotTried> {
        let commands = self.clone();
        let (reply, answer) = tokio::sync::oneshot::channel();
        let run = async move {
            // The caller may have gone.
            drop(reply.send(commands.run(target, request, has_key).await));
        };
        foreshore_runtime::spawn("command", run).detach();
        answer.await.unwrap_or(Err(NotTried::Store(StoreError::Closed)))
    }

    async fn run(
        &self,
        target: Option<Target>,
        request: CommandRequest,
        has_key: bool,
    ) -> Result<Answer, NotTried> {
        let id = Uuid::now_v7().to_string();
        let edge = target.as_ref().map(|target| target.name.clone());
        let asked = Asked {
            id: id.clone(),
            begun_at: Timestamp::now(),
            edge,
            request: request.clone(),
            has_key,
        };
        let command = Command {
            id: id.clone(),
            request,
        };
        // Known before it is written down, so that whoever finds it running finds it here.
        let reserved = self.reserve(target.as_ref(), &command);
        let known = reserved.as_ref().err().cloned().map(Err);
        let begin = {
            let known = known.clone();
            move |context: &mut Context<'_>| audit::begin(context, &asked, known.as_ref())
        };
        let begun = self.shared.store.write(Priority::Control, 1, begin).await?;
        let guard = reserved.ok();
        match (begun, guard, known) {
            (Begun::Conflict, ..) => Err(NotTried::Conflict),
            (Begun::Ended { id, outcome }, ..) => Ok(Answer {
                id,
                outcome,
                repeated: true,
            }),
            (Begun::Running { id }, ..) => Ok(self.follow(id, command.request.deadline).await),
            (Begun::New, _, Some(outcome)) => Ok(self.answer(id, outcome)),
            (Begun::New, Some(reserved), None) => {
                let outcome = reserved.carry_out(&command).await;
                let (ended, result) = (id.clone(), outcome.clone());
                let end =
                    move |context: &mut Context<'_>| audit::end(context, &ended, &result, Timestamp::now());
                if let Err(error) = self.shared.store.write(Priority::Control, 1, end).await {
                    warn!(
                        command = id,
                        reason = error.reason(),
                        "outcome of a command not kept: {error}"
                    );
                }
                Ok(self.answer(id, outcome))
            }
            // A command without a reservation has an outcome already.
            (Begun::New, None, None) => Err(NotTried::Store(StoreError::Closed)),
        }
    }

    fn answer(&self, id: String, outcome: CommandOutcome) -> Answer {
        let word = outcome
            .as_ref()
            .map_or_else(|error| error.code.as_str(), |_| "ok");
        self.shared.metrics.command(word);
        info!(command = id, outcome = word, "command answered");
        Answer {
            id,
            outcome,
            repeated: false,
        }
    }

    /// A place among the commands under way, or why there is none.
    fn reserve(&self, target: Option<&Target>, command: &Command) -> Result<Reserved, CommandError> {
        let request = &command.request;
        let Some(target) = target else {
            let words = format!("no edge has an asset {}/{}", request.namespace, request.asset);
            return Err(CommandError::new(CommandErrorCode::NotFound, words));
        };
        let unavailable = |words: String| Err(CommandError::new(CommandErrorCode::Unavailable, words));
        let Some(connected) = self.shared.sessions.connected(target.id) else {
            return unavailable(format!("edge {:?} is not connected", target.name));
        };
        let mut pending = self.shared.pending.lock();
        let under_way = pending
            .values()
            .filter(|pending| pending.edge == target.id)
            .count();
        if under_way >= connected.command_credit {
            return unavailable(format!(
                "edge {:?} has {under_way} commands under way",
                target.name
            ));
        }
        let outcome = watch::Sender::new(None);
        let waiting = Pending {
            edge: target.id,
            command: command.clone(),
            begun: false,
            outcome,
        };
        pending.insert(command.id.clone(), waiting);
        Ok(Reserved {
            commands: self.clone(),
            edge: target.id,
            id: command.id.clone(),
        })
    }

    /// Waits for a command of the same key that runs.
    async fn follow(&self, id: String, deadline: Timestamp) -> Answer {
        let following = self
            .shared
            .pending
            .lock()
            .get(&id)
            .map(|pending| pending.outcome.subscribe());
        let outcome = match following {
            Some(outcome) => wait(outcome, deadline).await,
            None => Err(unknown(
                "the command of this key has just ended; ask again for its outcome",
            )),
        };
        Answer {
            id,
            outcome,
            repeated: true,
        }
    }

    /// Commands that an edge has not answered and that may still begin.
    pub(crate) fn pending(&self, edge: i64) -> Vec<Command> {
        let now = Timestamp::now();
        let pending = self.shared.pending.lock();
        let begun = pending
            .values()
            .filter(|pending| pending.edge == edge && pending.begun);
        begun
            .map(|pending| pending.command.clone())
            .filter(|command| command.request.deadline > now)
            .collect()
    }

    /// Takes an edge's answer. One that comes after the deadline still corrects the audit.
    pub(crate) fn answered(&self, edge: i64, edge_name: &str, id: String, outcome: CommandOutcome) {
        {
            let pending = self.shared.pending.lock();
            if let Some(pending) = pending.get(&id) {
                // Another edge has no say in it.
                if pending.edge == edge {
                    pending.outcome.send_replace(Some(outcome));
                }
                return;
            }
        }
        let (store, edge) = (self.shared.store.clone(), edge_name.to_owned());
        let correct = async move {
            let end = move |context: &mut Context<'_>| {
                audit::end_late(context, &edge, &id, &outcome, Timestamp::now())
            };
            if let Err(error) = store.write(Priority::Control, 1, end).await {
                warn!(
                    reason = error.reason(),
                    "late outcome of a command not kept: {error}"
                );
            }
        };
        foreshore_runtime::spawn("late outcome", correct).detach();
    }
}

/// A place among the commands under way; free again when dropped.
struct Reserved {
    commands: Commands,
    edge: i64,
    id: String,
}

impl Reserved {
    async fn carry_out(&self, command: &Command) -> CommandOutcome {
        let outcome = {
            let mut pending = self.commands.shared.pending.lock();
            pending.get_mut(&self.id).map(|pending| {
                pending.begun = true;
                pending.outcome.subscribe()
            })
        };
        let Some(outcome) = outcome else {
            return Err(CommandError::new(
                CommandErrorCode::Internal,
                "the command lost its place",
            ));
        };
        if !self.commands.shared.sessions.send(self.edge, command.clone()) {
            let words = "the edge went away, or takes no more commands";
            return Err(CommandError::new(CommandErrorCode::Unavailable, words));
        }
        wait(outcome, command.request.deadline).await
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.commands.shared.pending.lock().remove(&self.id);
    }
}

async fn wait(mut outcome: watch::Receiver<Option<CommandOutcome>>, deadline: Timestamp) -> CommandOutcome {
    let left = Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or_default();
    match timeout(left + GRACE, outcome.wait_for(Option::is_some)).await {
        Ok(Ok(outcome)) => outcome.clone().unwrap_or_else(|| Err(unknown("no outcome"))),
        Ok(Err(_)) => Err(unknown("the command ended without an outcome")),
        Err(_) => Err(unknown(
            "the edge did not answer by the deadline; whether it took effect is not known",
        )),
    }
}

fn unknown(words: &str) -> CommandError {
    CommandError::new(CommandErrorCode::Unknown, words)
}
