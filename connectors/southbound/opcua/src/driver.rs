//! Drives the session of a link: nothing happens unless its events are polled.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use foreshore_connector_sdk::{
    EndSender, Gap, Health, LinkError, LinkErrorClass, Member, Observation, health::reason,
};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use jiff::Timestamp;
use opcua::{
    client::{SessionActivity, SessionConnectMode, SessionPollResult, SubscriptionActivity},
    types::{NotificationMessage, StatusCode},
};
use tokio::{sync::watch, time::Instant};
use tracing::{debug, info, trace, warn};

use crate::{
    connect::{EventStream, classify, unreachable_error},
    deliver,
    inbox::{Inbound, Track, Turn},
    resume::Resume,
    shared::Shared,
};

/// How often in a row taking up may fail before another link is tried.
const MAX_FAILURES: u32 = 5;

type Work = BoxFuture<'static, Result<(), LinkError>>;

/// Drives the session and hands over what it brings.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    events: EventStream,
    connected: watch::Sender<bool>,
    was_connected: bool,
    /// Since when there is no connection.
    down: Option<Instant>,
    /// Work that needs the session to be driven meanwhile.
    work: Option<Work>,
    /// How often in a row work failed.
    failures: u32,
    /// The server ended a subscription.
    repair: bool,
}

impl Driver {
    pub(crate) fn new(shared: Arc<Shared>, events: EventStream, connected: watch::Sender<bool>) -> Self {
        Self {
            shared,
            events,
            connected,
            was_connected: false,
            down: Some(Instant::now()),
            work: None,
            failures: 0,
            repair: false,
        }
    }

    /// Runs until the link is lost for good, and says why.
    pub(crate) async fn run(mut self, end: EndSender) {
        let error = self.drive().await;
        debug!(%error, "session ended");
        let Self {
            shared,
            events,
            was_connected,
            work,
            ..
        } = self;
        // Both may hold what others wait for, and nothing drives them any more.
        drop((events, work));
        if was_connected && !shared.closing.load(Ordering::Relaxed) {
            let gap = shared.interrupted(&error.message);
            if shared.out.emit(Observation::Gap(gap)).await.is_err() {
                debug!("nobody wants to hear of the gap any more");
            }
        }
        end.send(error);
    }

    async fn drive(&mut self) -> LinkError {
        let mut retry = tokio::time::interval(self.shared.settings.effective_retry_unknown_addresses());
        retry.reset();
        let mut watchdog = tokio::time::interval(Duration::from_secs(1));
        loop {
            if let Err(error) = self.hand_over().await {
                return error;
            }
            let idle = self.work.is_none() && self.down.is_none();
            if self.repair && idle {
                self.repair = false;
                self.begin(Resume::SameSession);
            }
            tokio::select! {
                event = self.events.next() => match event {
                    None => return unreachable_error("the session was closed"),
                    Some(Err(status)) => return classify(status, "the session ended"),
                    Some(Ok(event)) => if let Some(error) = self.handle(event) { return error },
                },
                done = finished(&mut self.work) => if let Some(error) = self.worked(done) { return error },
                _ = retry.tick(), if idle => self.work = Some(Arc::clone(&self.shared).retry().boxed()),
                _ = watchdog.tick(), if idle => {
                    let silent = self.shared.silent();
                    if !silent.is_empty() {
                        warn!(subscriptions = ?silent, "the server answers, and is silent on subscriptions");
                        self.begin(Resume::Silent(silent));
                    }
                }
            }
        }
    }

    fn begin(&mut self, what: Resume) {
        debug!(?what, "taking up");
        self.work = Some(Arc::clone(&self.shared).resume(what).boxed());
    }

    /// Judges what became of work.
    fn worked(&mut self, done: Result<(), LinkError>) -> Option<LinkError> {
        self.work = None;
        let Err(error) = done else {
            self.failures = 0;
            self.shared.out.health(&Member::Device, Health::healthy());
            return None;
        };
        self.failures += 1;
        if error.class != LinkErrorClass::Unreachable || self.failures == MAX_FAILURES {
            return Some(error);
        }
        // It begins anew with the next connection; session and subscriptions wait at the server.
        let LinkError {
            message, evidence, ..
        } = &error;
        warn!(
            message,
            evidence, "what was to be taken up was not, connecting again"
        );
        self.shared.cutter.cut();
        None
    }

    fn handle(&mut self, event: SessionPollResult) -> Option<LinkError> {
        match event {
            SessionPollResult::Reconnected(mode) => {
                self.down = None;
                let what = match mode {
                    SessionConnectMode::NewSession(_) => Resume::NewSession,
                    SessionConnectMode::ReactivatedSession(_) => Resume::SameSession,
                };
                if std::mem::replace(&mut self.was_connected, true) {
                    info!(?what, "connected again");
                }
                self.connected.send_replace(true);
                // A session that was lost before it was entered is entered now.
                let entered = *self.shared.taken_up.borrow() > 0;
                self.begin(if entered { what } else { Resume::NewSession });
            }
            SessionPollResult::ConnectionLost(status) => {
                warn!(%status, "connection lost");
                // What was under way needs the connection; it begins anew with the next one.
                self.work = None;
                self.down.get_or_insert_with(Instant::now);
                let health = Health::unhealthy(reason::RECONNECTING, format!("connection lost: {status}"))
                    .with_next_step("none while the server is away; data resumes by itself");
                self.shared.tell_down(&health);
            }
            SessionPollResult::ReconnectFailed(status) => {
                let error = classify(status, "the session did not open");
                if !self.was_connected || error.class != LinkErrorClass::Unreachable || self.forgotten() {
                    return Some(error);
                }
            }
            SessionPollResult::SessionActivity(SessionActivity::KeepAliveFailed(status)) => match status {
                // It answers: what it says of its own state is no reason to leave it.
                StatusCode::BadServerHalted | StatusCode::BadUnknownResponse => {
                    debug!(%status, "the server does not say that it runs");
                }
                _ => {
                    warn!(%status, "the server does not answer, connecting again");
                    self.shared.cutter.cut();
                }
            },
            SessionPollResult::Subscription(SubscriptionActivity::PublishFailed(
                StatusCode::BadNoSubscription | StatusCode::BadSubscriptionIdInvalid,
            )) => {
                // Also told when there is none on purpose; looking costs little.
                self.repair = true;
            }
            _ => {}
        }
        None
    }

    /// Whether the server was away for so long that it has forgotten session and subscriptions: then nothing is lost
    /// by beginning anew, with what its endpoints are now.
    fn forgotten(&self) -> bool {
        let settings = &self.shared.settings;
        let kept = settings
            .effective_session_timeout()
            .max(settings.effective_subscription_lifetime());
        self.down.is_some_and(|since| since.elapsed() > kept)
    }

    /// Hands over what was received, in order; waits while the runner does not take it, and for what is missing.
    async fn hand_over(&mut self) -> Result<(), LinkError> {
        while let Some(inbound) = self.shared.inbox.take() {
            let (track, number) = match &inbound {
                Inbound::Message(track, message) => (track, message.sequence_number),
                Inbound::Next(track, number) => (track, *number),
                Inbound::Gap { since, cause } => {
                    self.gap(*since, cause.clone()).await?;
                    continue;
                }
            };
            let turn = track.turn(number);
            if let Turn::Missing(from) = turn {
                if self.work.is_none() && self.down.is_none() {
                    let (shared, track) = (Arc::clone(&self.shared), Arc::clone(track));
                    let fetch = async move { shared.fetch(&track, from, Some(number)).await };
                    self.work = Some(fetch.boxed());
                }
                self.shared.inbox.put_back(inbound);
                return Ok(());
            }
            let Inbound::Message(track, message) = inbound else {
                continue;
            };
            match turn {
                Turn::Past => debug!(number, "message came twice"),
                Turn::Lost => {
                    let cause = "messages of the server were lost, and it no longer has them".to_owned();
                    self.gap(Timestamp::now(), cause).await?;
                    self.message(&track, message).await?;
                }
                _ => self.message(&track, message).await?,
            }
        }
        Ok(())
    }

    async fn message(&mut self, track: &Track, message: NotificationMessage) -> Result<(), LinkError> {
        trace!(subscription = track.subscription(), message = ?message, "handing over");
        track.handed_over(message.sequence_number);
        let types = self.shared.types();
        let delivery = deliver::read(message, &self.shared.handles, types.as_deref());
        if let Some(status) = delivery.ended {
            warn!(%status, "the server ended a subscription");
            self.repair = true;
        }
        for observation in delivery.observations {
            self.emit(observation).await?;
        }
        Ok(())
    }

    async fn gap(&mut self, since: Timestamp, cause: String) -> Result<(), LinkError> {
        self.emit(Observation::Gap(Gap {
            member: Member::Device,
            since,
            until: Timestamp::now(),
            cause,
        }))
        .await
    }

    async fn emit(&mut self, observation: Observation) -> Result<(), LinkError> {
        let closed = |_| unreachable_error("the link is no longer wanted");
        self.shared.out.emit(observation).await.map_err(closed)
    }
}

async fn finished(work: &mut Option<Work>) -> Result<(), LinkError> {
    match work {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
