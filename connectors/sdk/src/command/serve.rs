//! Takes commands from the broker and carries them out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use foreshore_crds::v1alpha1::asset::{Action, ActionGroup};
use foreshore_mqtt::{Client, Delivery, Subscriber};
use foreshore_record::{CommandError, CommandErrorCode, CommandOutcome, Qos, Record, TopicFilter};
use foreshore_runtime::{Backoff, Shutdown, Task, TaskError, spawn};
use futures::{StreamExt, stream::FuturesUnordered};
use jiff::Timestamp;
use parking_lot::RwLock;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::{
    journal::{Begin, Journal, Permit},
    request::{self, Asked, Target},
    schemas::{ActionKey, SchemaBook},
};
use crate::{
    contract::Link,
    emitter::Channel,
    health::{Health, Member},
    invocation::Invocation,
    plan::AssetPlan,
    runner::{counters::ConnectorMetrics, supervisor::LinkSlot},
};

/// Commands that run at once; others wait at the broker.
const MAX_RUNNING: usize = 64;
/// Waits between tries to subscribe what the broker refused.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Where the commands of each asset go.
#[derive(Default)]
pub(crate) struct Registry {
    targets: RwLock<BTreeMap<(String, String), Reachable>>,
    changed: Notify,
}

/// An asset that commands can reach.
#[derive(Clone)]
pub(crate) struct Reachable {
    pub(crate) asset: Arc<AssetPlan>,
    pub(crate) slot: Arc<LinkSlot>,
    pub(crate) channel: Channel,
}

impl Registry {
    pub(crate) fn set(&self, reachable: Reachable) {
        let object = &reachable.asset.object;
        let key = (object.namespace.clone(), object.name.clone());
        self.targets.write().insert(key, reachable);
        self.changed.notify_one();
    }

    pub(crate) fn remove(&self, namespace: &str, asset: &str) {
        self.targets
            .write()
            .remove(&(namespace.to_owned(), asset.to_owned()));
        self.changed.notify_one();
    }

    fn get(&self, namespace: &str, asset: &str) -> Option<Reachable> {
        self.targets
            .read()
            .get(&(namespace.to_owned(), asset.to_owned()))
            .cloned()
    }

    /// The filter of each asset that has actions.
    fn filters(&self) -> BTreeMap<TopicFilter, Reachable> {
        let targets = self.targets.read();
        let with_actions = targets
            .values()
            .filter(|target| !target.asset.spec.action_groups.is_empty());
        with_actions
            .filter_map(|target| Some((request::commands_of(&target.asset)?, target.clone())))
            .collect()
    }
}

/// Carries out the commands to the assets of a connector.
#[derive(Clone)]
pub(crate) struct Commander {
    pub(crate) protocol: &'static str,
    pub(crate) client: Client,
    pub(crate) registry: Arc<Registry>,
    pub(crate) schemas: Arc<SchemaBook>,
    pub(crate) journal: Journal,
    pub(crate) metrics: ConnectorMetrics,
}

impl Commander {
    /// Runs until the shutdown begins; then finishes what was begun, until the drain deadline.
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let Ok(subscriber) = self.client.subscriber().await else {
            return;
        };
        let subscribing = spawn(
            "command-filters",
            self.clone()
                .keep_subscribed(subscriber.filters(), shutdown.clone()),
        );
        let mut running = FuturesUnordered::new();
        self.take(subscriber, &mut running, &shutdown).await;
        drop(subscribing);
        let finish = async { while running.next().await.is_some() {} };
        if shutdown.or_deadline(finish).await.is_none() {
            warn!(commands = running.len(), "ended before these commands did");
        }
    }

    async fn take(
        &self,
        mut subscriber: Subscriber,
        running: &mut FuturesUnordered<Task<()>>,
        shutdown: &Shutdown,
    ) {
        loop {
            tokio::select! {
                delivery = subscriber.next(), if running.len() < MAX_RUNNING => match delivery {
                    Some(delivery) => running.push(spawn("command", self.clone().handle(delivery))),
                    None => return,
                },
                // A panic has been reported; who asked has been answered.
                Some(_) = running.next() => {}
                () = shutdown.begun() => return,
            }
        }
    }

    /// Keeps the subscriptions equal to the assets that have actions.
    async fn keep_subscribed(self, filters: foreshore_mqtt::Filters, shutdown: Shutdown) {
        let mut present = BTreeSet::new();
        let mut retry = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let wanted = self.registry.filters();
            let mut complete = true;
            for (filter, target) in &wanted {
                if present.contains(filter) {
                    continue;
                }
                let result = filters.add(filter.clone(), Qos::AtLeastOnce).await;
                let trouble = result.as_ref().err().map(|error| {
                    Health::unhealthy("SubscriptionRefused", error.to_string())
                        .with_next_step("let a BrokerPolicy allow the connector to subscribe to commands")
                });
                tell(target, trouble);
                match result {
                    Ok(()) => drop(present.insert(filter.clone())),
                    Err(error) => {
                        warn!(%filter, %error, "commands can't be received");
                        complete = false;
                    }
                }
            }
            let gone: Vec<TopicFilter> = present
                .iter()
                .filter(|filter| !wanted.contains_key(*filter))
                .cloned()
                .collect();
            for filter in gone {
                present.remove(&filter);
                if filters.remove(filter).await.is_err() {
                    return;
                }
            }
            if complete {
                retry.reset();
            }
            let wait = if complete {
                Duration::MAX
            } else {
                retry.next_delay()
            };
            tokio::select! {
                () = self.registry.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
                () = shutdown.begun() => return,
            }
        }
    }

    /// Carries out one command and answers it.
    async fn handle(self, delivery: Delivery) {
        let record = &delivery.record;
        let Some(target) = Target::of(&record.topic) else {
            delivery.acknowledge();
            return;
        };
        let (topic, outcome) = match request::response_topic(record) {
            Ok(topic) => (topic, self.outcome(&target, record).await),
            Err(error) => (None, Err(error)),
        };
        self.tell_outcome(&target, record, &outcome);
        if let Some(topic) = topic {
            let response = request::response(record, topic, &outcome);
            let published = async { self.client.publish(&response).await?.await };
            if let Err(error) = published.await {
                warn!(topic = %response.topic, %error, "response to a command is not published");
            }
        }
        // Not before: a command that is not answered yet counts against what the broker sends.
        delivery.acknowledge();
    }

    /// The audit line and the count of a command.
    fn tell_outcome(&self, target: &Target, record: &Record, outcome: &CommandOutcome) {
        let Target {
            namespace,
            asset,
            group,
            action,
        } = target;
        let actor: String = record
            .user_property(foreshore_record::property::ACTOR)
            .unwrap_or("unknown")
            .chars()
            .take(256)
            .collect();
        let status = outcome
            .as_ref()
            .map_or_else(|error| error.code.as_str(), |_| "ok");
        match outcome {
            Ok(_) => info!(namespace, asset, group, action, actor, status, "command"),
            Err(error) => {
                let (message, device_status) = (&error.message, error.device_status.as_deref());
                info!(
                    namespace,
                    asset, group, action, actor, status, message, device_status, "command"
                );
            }
        }
        // Names of assets that do not exist are a stranger's to choose, and must not become labels.
        let known = self.registry.get(namespace, asset).is_some();
        self.metrics
            .command(self.protocol, namespace, if known { asset } else { "" }, status);
    }

    async fn outcome(&self, target: &Target, record: &Record) -> CommandOutcome {
        let Target {
            namespace,
            asset,
            group,
            action,
        } = target;
        let not_found = |message: String| CommandError::new(CommandErrorCode::NotFound, message);
        let reachable = self
            .registry
            .get(namespace, asset)
            .ok_or_else(|| not_found(format!("no asset {namespace}/{asset} at this connector")))?;
        let plan = Arc::clone(&reachable.asset);
        let (group_plan, action_plan) = find(&plan, group, action).ok_or_else(|| {
            let known = plan.spec.action_groups.iter();
            let known = known.flat_map(|group| {
                group
                    .actions
                    .iter()
                    .map(move |action| format!("{}/{}", group.name, action.name))
            });
            let known = known.take(20).collect::<Vec<_>>().join(", ");
            not_found(format!(
                "asset {asset} has no action {group}/{action}, it has {known}"
            ))
        })?;
        let timeout = group_plan.timeout_of(action_plan);
        let asked = Asked::of(record, Timestamp::now(), timeout)?;
        in_time(asked.deadline)?;
        let key = ActionKey {
            namespace: namespace.clone(),
            asset: asset.clone(),
            group: group.clone(),
            action: action.clone(),
        };
        if let Some(schema) = self.schemas.get(&key) {
            schema
                .check(&asked.input)
                .map_err(|faults| CommandError::new(CommandErrorCode::InvalidInput, faults))?;
        }
        let call = Call {
            target,
            asked,
            plan: &plan,
            timeout,
            reachable: &reachable,
        };
        let Some(idempotency_key) = call.asked.idempotency_key.clone() else {
            return call.carry_out().await;
        };
        let key = format!("{namespace}/{asset}/{group}/{action}/{idempotency_key}");
        self.once(key, &record.payload, action_plan.effective_idempotent(), call)
            .await
    }

    /// Carries a command out unless it was carried out before.
    async fn once(&self, key: String, payload: &[u8], idempotent: bool, call: Call<'_>) -> CommandOutcome {
        let deadline = call.asked.deadline;
        // What may be done twice needs no record on disk: in this life it is remembered in memory.
        let ready = || call.link().and_then(|_| in_time(deadline));
        let begun = self
            .journal
            .begin(key, payload, deadline, !idempotent, ready)
            .await;
        let unknown = || {
            let message = "it was begun before the connector restarted, and its outcome is not known";
            CommandError::new(CommandErrorCode::Unknown, message)
        };
        match begun {
            Ok(Begin::New(permit)) => permitted(permit, call).await,
            Ok(Begin::Orphan(permit)) if idempotent => permitted(permit, call).await,
            Ok(Begin::Orphan(_)) => Err(unknown()),
            Ok(Begin::Repeat(outcome)) => outcome.get().await.unwrap_or_else(|| Err(unknown())),
            Ok(Begin::NotReady(error)) => Err(error),
            Ok(Begin::Taken) => Err(CommandError::new(
                CommandErrorCode::InvalidInput,
                "the idempotency key belongs to a command with another input",
            )),
            Ok(Begin::Full) => Err(CommandError::new(
                CommandErrorCode::Unavailable,
                "too many commands are remembered; try again later",
            )),
            Err(error) => Err(CommandError::new(
                CommandErrorCode::Unavailable,
                format!("the command can't be recorded and was not begun: {error}"),
            )),
        }
    }
}

/// A command that may be carried out.
struct Call<'a> {
    target: &'a Target,
    asked: Asked,
    plan: &'a Arc<AssetPlan>,
    timeout: Duration,
    reachable: &'a Reachable,
}

impl Call<'_> {
    fn link(&self) -> Result<Arc<dyn Link>, CommandError> {
        self.reachable.slot.get().ok_or_else(|| {
            let health = self.reachable.channel.board().get(&Member::Device);
            let why = health
                .map(|health| format!(": {}: {}", health.reason, health.evidence))
                .unwrap_or_default();
            CommandError::new(
                CommandErrorCode::Unavailable,
                format!("the device is not connected{why}"),
            )
        })
    }

    async fn carry_out(self) -> CommandOutcome {
        let link = self.link()?;
        // Recording may have taken its time.
        in_time(self.asked.deadline)?;
        let invocation = Invocation {
            asset: Arc::clone(self.plan),
            group: self.target.group.clone(),
            action: self.target.action.clone(),
            input: self.asked.input,
            deadline: self.asked.deadline,
            actor: self.asked.actor,
        };
        // A task of its own: a panic of the protocol becomes an answer.
        let invoke = spawn("invoke", async move { link.invoke(invocation).await });
        match tokio::time::timeout(self.timeout, invoke).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error @ (TaskError::Panicked { .. } | TaskError::Aborted { .. }))) => {
                Err(CommandError::new(
                    CommandErrorCode::Unknown,
                    format!("the connector failed: {error}"),
                ))
            }
            Err(_) => Err(CommandError::new(
                CommandErrorCode::Unknown,
                format!(
                    "no answer within {} s; whether it took effect is not known",
                    self.timeout.as_secs_f32()
                ),
            )),
        }
    }
}

async fn permitted(permit: Permit, call: Call<'_>) -> CommandOutcome {
    let outcome = call.carry_out().await;
    permit.finish(outcome.clone()).await;
    outcome
}

fn in_time(deadline: Timestamp) -> Result<(), CommandError> {
    let now = Timestamp::now();
    if now < deadline {
        return Ok(());
    }
    Err(CommandError::new(
        CommandErrorCode::DeadlineExceeded,
        format!("deadline was {deadline}, now is {now}"),
    ))
}

fn find<'a>(asset: &'a AssetPlan, group: &str, action: &str) -> Option<(&'a ActionGroup, &'a Action)> {
    let group = asset
        .spec
        .action_groups
        .iter()
        .find(|candidate| candidate.name.as_str() == group)?;
    Some((
        group,
        group
            .actions
            .iter()
            .find(|candidate| candidate.name.as_str() == action)?,
    ))
}

fn tell(target: &Reachable, trouble: Option<Health>) {
    let asset: Arc<str> = Arc::from(target.asset.object.name.as_str());
    for group in &target.asset.spec.action_groups {
        for action in &group.actions {
            let member = Member::Action {
                asset: Arc::clone(&asset),
                group: Arc::from(group.name.as_str()),
                action: Arc::from(action.name.as_str()),
            };
            target.channel.board().trouble(&member, trouble.clone());
        }
    }
}
