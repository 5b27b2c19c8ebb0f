//! The link to one server: one session, taken up again after every interruption.
//!
//! The library's own way back after a cut loses data, and in 0.19 it never asks for data again: its publish loop
//! starts anew believing that there is no subscription, and misses the trigger that came before
//! (`SubscriptionEventLoopState::new`). So it is told to leave subscriptions alone, and [`Shared::resume`] does what
//! OPC 10000-4, 6.7 asks for: keep the subscriptions of a session that was taken up again, transfer them to a new one,
//! fetch again what was sent meanwhile, and create anew only what the server no longer has, telling the gap.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_connector_sdk::{
    Emitter, Endpoint, Gap, Health, Invocation, Link, LinkError, LinkErrorClass, Member, MemberHealth,
    Observation, health::reason, plan::AssetPlan,
};
use foreshore_crds::v1alpha1::device::OpcuaDevice;
use foreshore_record::CommandOutcome;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use jiff::Timestamp;
use opcua::{
    client::{
        Session, SessionConnectMode, SessionPollResult, SubscriptionActivity,
        custom_types::DataTypeTreeBuilder,
    },
    types::{
        ReadValueId, StatusCode, TimestampsToReturn, VariableId, Variant,
        custom::{DataTypeTree, DynamicTypeLoader},
    },
};
use parking_lot::RwLock;
use tokio::{sync::watch, task::JoinHandle};
use tracing::{debug, info, warn};

use crate::{
    action,
    connect::{self, EventStream, classify, unreachable_error},
    deliver,
    inbox::{Handles, Inbound, Inbox},
    items,
    limits::Limits,
    observed::{Observed, Rhythm, Tools, request_failed},
};

/// Most messages that are fetched again for one subscription after an interruption.
const MAX_REPUBLISH: u32 = 10_000;

/// Longest time for reading a server's data types.
const TYPES_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest time for closing a session in order.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A link to one server.
pub(crate) struct OpcUaLink {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
    ended: watch::Receiver<Option<LinkError>>,
}

/// What driver, runner and commands share.
pub(crate) struct Shared {
    pub(crate) session: Arc<Session>,
    out: Emitter,
    settings: OpcuaDevice,
    inbox: Arc<Inbox>,
    handles: Handles,
    observed: tokio::sync::Mutex<Observed>,
    types: RwLock<Option<Arc<DataTypeTree>>>,
    /// When something was last received.
    last_received: RwLock<Option<Timestamp>>,
}

// === impl OpcUaLink ===

impl OpcUaLink {
    /// Dials a server and opens a session.
    pub(crate) async fn connect(endpoint: Endpoint, out: Emitter) -> Result<Self, LinkError> {
        let settings = connect::settings(&endpoint);
        let (session, events) = connect::session(&endpoint, &settings).await?;
        let connect_timeout = settings.effective_connect_timeout();
        let shared = Arc::new(Shared {
            session,
            out,
            settings,
            inbox: Arc::new(Inbox::new()),
            handles: Handles::default(),
            observed: tokio::sync::Mutex::default(),
            types: RwLock::default(),
            last_received: RwLock::default(),
        });
        let (ended_sender, mut ended) = watch::channel(None);
        let (connected_sender, mut connected) = watch::channel(false);
        let driver = Driver {
            shared: Arc::clone(&shared),
            events,
            connected: connected_sender,
            was_connected: false,
            resuming: None,
            repair: false,
        };
        let driver = tokio::spawn(driver.run(ended_sender));
        // From here on dropping the link ends the driver, whatever happens.
        let link = Self {
            shared,
            driver,
            ended: ended.clone(),
        };
        let opened = async {
            tokio::select! {
                up = connected.wait_for(|connected| *connected) => up.is_ok(),
                _ = ended.wait_for(Option::is_some) => false,
            }
        };
        match tokio::time::timeout(connect_timeout, opened).await {
            Err(_) => return Err(unreachable_error("the session did not open in time")),
            Ok(false) => return Err(link.ended().await),
            Ok(true) => {}
        }
        let mut observed = link.shared.observed.lock().await;
        link.shared.enter_session(&mut observed).await?;
        drop(observed);
        Ok(link)
    }
}

#[async_trait]
impl Link for OpcUaLink {
    async fn observe(&self, assets: &[Arc<AssetPlan>]) -> Result<Vec<MemberHealth>, LinkError> {
        let mut observed = self.shared.observed.lock().await;
        observed.desired = items::plan(assets);
        observed.reconcile(&self.shared.tools()).await?;
        Ok(observed.health())
    }

    async fn ended(&self) -> LinkError {
        let mut ended = self.ended.clone();
        let error = ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|error| error.clone());
        error.unwrap_or_else(|| unreachable_error("the session's task ended"))
    }

    async fn request_schema(
        &self,
        asset: &Arc<AssetPlan>,
        group: &str,
        action: &str,
    ) -> Option<serde_json::Value> {
        action::request_schema(&self.shared, asset, group, action).await
    }

    async fn invoke(&self, invocation: Invocation) -> CommandOutcome {
        action::invoke(&self.shared, invocation).await
    }

    async fn close(&self) {
        if tokio::time::timeout(CLOSE_TIMEOUT, self.shared.session.disconnect())
            .await
            .is_err()
        {
            debug!("the server did not confirm that the session is closed");
        }
        self.driver.abort();
    }
}

impl Drop for OpcUaLink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

// === impl Shared ===

impl Shared {
    fn tools(&self) -> Tools<'_> {
        let rhythm = Rhythm {
            keep_alive: self.settings.effective_keep_alive_interval(),
            lifetime: self.settings.effective_subscription_lifetime(),
        };
        Tools {
            session: &self.session,
            handles: &self.handles,
            inbox: &self.inbox,
            rhythm,
        }
    }

    /// The server's namespaces in this session.
    pub(crate) async fn namespaces(&self) -> Vec<String> {
        self.observed.lock().await.namespaces.clone()
    }

    /// The server's structures.
    pub(crate) fn types(&self) -> Option<Arc<DataTypeTree>> {
        self.types.read().clone()
    }

    /// Learns what a new session must know: namespaces, limits, structures.
    async fn enter_session(&self, observed: &mut Observed) -> Result<(), LinkError> {
        let map = self
            .session
            .read_namespace_array()
            .await
            .map_err(request_failed)?;
        self.session.set_namespaces(map);
        observed.namespaces = read_namespaces(&self.session).await?;
        let limits = self.settings.limits.clone().unwrap_or_default();
        observed.limits = Limits::of(&limits).ask(&self.session).await;
        let builder = DataTypeTreeBuilder::new(|_: &opcua::types::NodeId| true);
        match tokio::time::timeout(TYPES_TIMEOUT, builder.build(&self.session)).await {
            Ok(Ok(tree)) => {
                let tree = Arc::new(tree);
                self.session
                    .add_type_loader(Arc::new(DynamicTypeLoader::new(Arc::clone(&tree))));
                *self.types.write() = Some(tree);
            }
            Ok(Err(error)) => {
                warn!(%error, "data types of the server are not known, structures will be null")
            }
            Err(_) => warn!("the server did not tell its data types in time, structures will be null"),
        }
        Ok(())
    }

    /// Takes up what an interruption left: see the module.
    async fn resume(self: Arc<Self>, mode: Resume) -> Result<(), LinkError> {
        let mut observed = self.observed.lock().await;
        let ids: Vec<u32> = observed
            .subscriptions
            .iter()
            .map(|subscription| subscription.id)
            .collect();
        let mut lost = Vec::new();
        if mode == Resume::NewSession {
            self.enter_session(&mut observed).await?;
            if !ids.is_empty() {
                lost = self.transfer(&ids).await;
            }
        }
        for subscription in &observed.subscriptions {
            if lost.contains(&subscription.id) {
                continue;
            }
            if !self
                .republish(subscription.id, subscription.next_sequence())
                .await?
            {
                lost.push(subscription.id);
            }
        }
        if !lost.is_empty() {
            info!(
                subscriptions = lost.len(),
                "the server forgot subscriptions, creating them anew"
            );
            // Also removes them from the library's books, whatever the server answers.
            if let Err(error) = self.session.delete_subscriptions(&lost).await {
                debug!(%error, "subscriptions that the server forgot could not be deleted");
            }
            observed.forget(&lost, &self.handles);
            let since = self.last_received.read().unwrap_or_else(Timestamp::now);
            let cause = "the server no longer had the subscription".to_owned();
            self.inbox.push(Inbound::Gap { since, cause });
        }
        observed.reconcile(&self.tools()).await?;
        for MemberHealth { member, health } in observed.health() {
            self.out.health(&member, health);
        }
        // The library's publish loop does not know that there is something to ask for.
        self.inbox.listen_anew();
        self.session.trigger_publish_now();
        Ok(())
    }

    /// Moves subscriptions to the new session; returns those that the server refused.
    async fn transfer(&self, ids: &[u32]) -> Vec<u32> {
        match self.session.transfer_subscriptions(ids, false).await {
            Ok(results) => {
                let refused = ids
                    .iter()
                    .zip(results)
                    .filter(|(_, result)| !result.status_code.is_good());
                refused.map(|(id, _)| *id).collect()
            }
            Err(error) => {
                debug!(%error, "the server does not transfer subscriptions");
                ids.to_vec()
            }
        }
    }

    /// Fetches messages again from a sequence number on; `false` when the server has no such subscription.
    async fn republish(&self, subscription: u32, mut sequence: u32) -> Result<bool, LinkError> {
        for _ in 0..MAX_REPUBLISH {
            match self.session.republish(subscription, sequence).await {
                Ok(message) => self.inbox.push(Inbound::Message(message)),
                Err(error) => {
                    return match error.status() {
                        StatusCode::BadMessageNotAvailable => Ok(true),
                        StatusCode::BadSubscriptionIdInvalid
                        | StatusCode::BadNoSubscription
                        | StatusCode::BadServiceUnsupported => Ok(false),
                        status => {
                            Err(classify(status, "messages could not be fetched again").with_evidence(&error))
                        }
                    };
                }
            }
            sequence = sequence.wrapping_add(1).max(1);
        }
        Ok(true)
    }

    /// Tries again what the server did not know.
    async fn retry(self: Arc<Self>) -> Result<(), LinkError> {
        let mut observed = self.observed.lock().await;
        if observed.has_failures() {
            observed.reconcile(&self.tools()).await?;
            for MemberHealth { member, health } in observed.health() {
                self.out.health(&member, health);
            }
        }
        Ok(())
    }
}

async fn read_namespaces(session: &Session) -> Result<Vec<String>, LinkError> {
    let node = ReadValueId::from(opcua::types::NodeId::from(VariableId::Server_NamespaceArray));
    let answer = session
        .read(&[node], TimestampsToReturn::Neither, 0.0)
        .await
        .map_err(request_failed)?;
    let value = answer.into_iter().next().and_then(|answer| answer.value);
    let Some(Variant::Array(array)) = value else {
        return Err(LinkError::new(
            LinkErrorClass::Protocol,
            "the server has no NamespaceArray",
        ));
    };
    Ok(array.values.iter().map(ToString::to_string).collect())
}

/// How an interruption ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resume {
    /// The server still knew the session, or only a subscription is to be looked after.
    SameSession,
    /// There is a new session.
    NewSession,
}

// === impl Driver ===

/// Drives the session and hands over what it brings.
struct Driver {
    shared: Arc<Shared>,
    events: EventStream,
    connected: watch::Sender<bool>,
    was_connected: bool,
    /// Work that needs the session to be driven meanwhile.
    resuming: Option<BoxFuture<'static, Result<(), LinkError>>>,
    /// The server ended a subscription.
    repair: bool,
}

impl Driver {
    async fn run(mut self, ended: watch::Sender<Option<LinkError>>) {
        let error = self.drive().await;
        debug!(%error, "session ended");
        ended.send_replace(Some(error));
    }

    async fn drive(&mut self) -> LinkError {
        let mut retry = tokio::time::interval(self.shared.settings.effective_retry_unknown_addresses());
        retry.reset();
        let mut watchdog = tokio::time::interval(Duration::from_secs(1));
        loop {
            if let Err(error) = self.hand_over().await {
                return error;
            }
            if self.repair && self.resuming.is_none() {
                self.repair = false;
                self.resuming = Some(Arc::clone(&self.shared).resume(Resume::SameSession).boxed());
            }
            tokio::select! {
                event = self.events.next() => match event {
                    None => return unreachable_error("the session was closed"),
                    Some(Err(status)) => return classify(status, "the session ended"),
                    Some(Ok(event)) => if let Some(error) = self.handle(event) { return error },
                },
                done = resumed(&mut self.resuming) => match done {
                    Ok(()) => {
                        self.resuming = None;
                        self.shared.out.health(&Member::Device, Health::healthy());
                    }
                    Err(error) => return error,
                },
                _ = retry.tick(), if self.was_connected && self.resuming.is_none() => {
                    self.resuming = Some(Arc::clone(&self.shared).retry().boxed());
                }
                _ = watchdog.tick() => if let Some(error) = self.silent().await { return error },
            }
        }
    }

    fn handle(&mut self, event: SessionPollResult) -> Option<LinkError> {
        match event {
            SessionPollResult::Reconnected(mode) if self.was_connected => {
                let mode = match mode {
                    SessionConnectMode::NewSession(_) => Resume::NewSession,
                    SessionConnectMode::ReactivatedSession(_) => Resume::SameSession,
                };
                info!(?mode, "connected again");
                self.resuming = Some(Arc::clone(&self.shared).resume(mode).boxed());
            }
            SessionPollResult::Reconnected(_) => {
                self.was_connected = true;
                self.connected.send_replace(true);
            }
            SessionPollResult::ConnectionLost(status) => {
                warn!(%status, "connection lost");
                // What was under way needs the connection; it begins anew with the next one.
                self.resuming = None;
                let health = Health::unhealthy(reason::RECONNECTING, format!("connection lost: {status}"))
                    .with_next_step("none while the server is away; data resumes by itself");
                self.shared.out.health(&Member::Device, health);
            }
            SessionPollResult::ReconnectFailed(status) => {
                let error = classify(status, "the session did not open");
                if !self.was_connected || error.class != LinkErrorClass::Unreachable {
                    return Some(error);
                }
            }
            SessionPollResult::Subscription(SubscriptionActivity::PublishFailed(
                StatusCode::BadNoSubscription | StatusCode::BadSubscriptionIdInvalid,
            )) => {
                // Also told when there is none on purpose; looking costs little.
                self.repair = self.was_connected;
            }
            _ => {}
        }
        None
    }

    /// Hands over what was received; waits while the runner does not take it.
    async fn hand_over(&mut self) -> Result<(), LinkError> {
        while let Some(inbound) = self.shared.inbox.take() {
            let now = Timestamp::now();
            let observations = match inbound {
                Inbound::Message(message) => {
                    let types = self.shared.types();
                    let delivery = deliver::read(message, &self.shared.handles, types.as_deref());
                    if let Some(status) = delivery.ended {
                        warn!(%status, "the server ended a subscription");
                        self.repair = true;
                    }
                    *self.shared.last_received.write() = Some(now);
                    delivery.observations
                }
                Inbound::Gap { since, cause } => {
                    vec![Observation::Gap(Gap {
                        member: Member::Device,
                        since,
                        until: now,
                        cause,
                    })]
                }
            };
            for observation in observations {
                let closed = |_| unreachable_error("the link is no longer wanted");
                self.shared.out.emit(observation).await.map_err(closed)?;
            }
        }
        Ok(())
    }

    /// A server that holds its connection but says nothing any more must not pass for a quiet one.
    async fn silent(&mut self) -> Option<LinkError> {
        let settings = &self.shared.settings;
        let patience = settings.effective_keep_alive_interval() * 3 + settings.effective_request_timeout();
        let observing = self
            .shared
            .observed
            .try_lock()
            .is_ok_and(|observed| !observed.subscriptions.is_empty());
        let silence = self.shared.inbox.heard().elapsed();
        let connected = self.was_connected && self.resuming.is_none() && self.shared.session_is_up();
        (observing && connected && silence > patience).then(|| {
            unreachable_error("the server keeps the connection but sends neither data nor keep-alives")
                .with_evidence(format!("silent for {} s", silence.as_secs()))
        })
    }
}

impl Shared {
    fn session_is_up(&self) -> bool {
        !self.session.server_session_id().is_null()
    }
}

async fn resumed(resuming: &mut Option<BoxFuture<'static, Result<(), LinkError>>>) -> Result<(), LinkError> {
    match resuming {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
