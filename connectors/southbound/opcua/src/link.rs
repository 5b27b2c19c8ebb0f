//! The link to one server: one session, taken up again after every interruption.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use foreshore_connector_sdk::{
    Emitter, Ended, Endpoint, Gap, Health, Invocation, Link, LinkError, LinkErrorClass, Member, MemberHealth,
    plan::AssetPlan,
};
use foreshore_crds::v1alpha1::device::OpcuaDevice;
use foreshore_record::CommandOutcome;
use jiff::{SignedDuration, Timestamp};
use opcua::{client::Session, types::custom::DataTypeTree};
use parking_lot::RwLock;
use tokio::{sync::watch, task::JoinHandle};
use tracing::debug;

use crate::{
    action,
    connect::{self, unreachable_error},
    driver::Driver,
    inbox::{Handles, Inbox},
    items,
    observed::{Observed, Rhythm, Tools},
    transport::Cutter,
};

/// Longest time for closing a session in order.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A link to one server.
pub(crate) struct OpcUaLink {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
    ended: Ended,
}

/// What driver, runner and commands share.
pub(crate) struct Shared {
    pub(crate) session: Arc<Session>,
    pub(crate) cutter: Cutter,
    pub(crate) out: Emitter,
    pub(crate) settings: OpcuaDevice,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) handles: Handles,
    pub(crate) observed: tokio::sync::Mutex<Observed>,
    pub(crate) types: RwLock<Option<Arc<DataTypeTree>>>,
    /// How often the session and what is observed in it was taken up; 0 until commands and observing make sense.
    pub(crate) taken_up: watch::Sender<u64>,
    /// The link ends because nobody wants it any more.
    pub(crate) closing: AtomicBool,
}

// === impl OpcUaLink ===

impl OpcUaLink {
    /// Dials a server, opens a session and learns what it must know.
    pub(crate) async fn connect(endpoint: Endpoint, out: Emitter) -> Result<Self, LinkError> {
        let settings = connect::settings(&endpoint);
        let cutter = Cutter::new(settings.effective_connect_timeout());
        let (session, events) = connect::session(&endpoint, &settings, &cutter).await?;
        let connect_timeout = settings.effective_connect_timeout();
        let shared = Arc::new(Shared {
            session,
            cutter,
            out,
            settings,
            inbox: Arc::default(),
            handles: Handles::default(),
            observed: tokio::sync::Mutex::default(),
            types: RwLock::default(),
            taken_up: watch::Sender::new(0),
            closing: AtomicBool::new(false),
        });
        let (end, ended) = Ended::channel();
        let (connected_sender, mut connected) = watch::channel(false);
        let driver = Driver::new(Arc::clone(&shared), events, connected_sender);
        let link = Self {
            shared,
            driver: tokio::spawn(driver.run(end)),
            ended,
        };
        // From here on dropping the link ends what it began, whatever happens.
        let opened = link.unless_ended(connected.wait_for(|connected| *connected));
        match tokio::time::timeout(connect_timeout, opened).await {
            Err(_) => return Err(unreachable_error("the session did not open in time")),
            Ok(opened) => drop(opened?),
        }
        let mut taken_up = link.shared.taken_up.subscribe();
        drop(link.unless_ended(taken_up.wait_for(|times| *times > 0)).await?);
        Ok(link)
    }

    async fn unless_ended<T>(&self, wanted: impl Future<Output = T>) -> Result<T, LinkError> {
        tokio::select! {
            // An end says why; the driver's death only that it is no more.
            biased;
            error = self.ended() => Err(error),
            got = wanted => Ok(got),
        }
    }
}

#[async_trait]
impl Link for OpcUaLink {
    async fn observe(&self, assets: &[Arc<AssetPlan>]) -> Result<Vec<MemberHealth>, LinkError> {
        self.shared.observed.lock().await.desired = items::plan(assets);
        let mut taken_up = self.shared.taken_up.subscribe();
        loop {
            let mut observed = self.shared.observed.lock().await;
            taken_up.mark_unchanged();
            match observed.reconcile(&self.shared.tools()).await {
                Ok(()) => return Ok(observed.health()),
                Err(error) if error.class != LinkErrorClass::Unreachable => return Err(error),
                Err(error) => {
                    debug!(%error, "interrupted while observing, going on with the next connection")
                }
            }
            drop(observed);
            // Whatever is interrupted is taken up; a server that was only slow is asked again.
            let wait = tokio::time::timeout(
                self.shared.settings.effective_request_timeout(),
                taken_up.changed(),
            );
            drop(self.unless_ended(wait).await?);
        }
    }

    async fn ended(&self) -> LinkError {
        let why = self.ended.why().await;
        why.unwrap_or_else(|| unreachable_error("the session's task ended"))
    }

    async fn request_schema(
        &self,
        asset: &Arc<AssetPlan>,
        group: &str,
        action: &str,
    ) -> Option<serde_json::Value> {
        action::request_schema(&self.shared, asset, group, action).await
    }

    fn source_uri(&self) -> Option<String> {
        let server = &self.shared.session.endpoint_info().endpoint.server;
        let uri = server.application_uri.as_ref();
        (!uri.is_empty()).then(|| uri.to_owned())
    }

    async fn invoke(&self, invocation: Invocation) -> CommandOutcome {
        action::invoke(&self.shared, invocation).await
    }

    async fn close(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        close(&self.shared.session).await;
        self.driver.abort();
    }
}

impl Drop for OpcUaLink {
    /// A link that is given up halfway leaves no session behind either.
    fn drop(&mut self) {
        let driver = self.driver.abort_handle();
        let runtime = tokio::runtime::Handle::try_current();
        match runtime {
            Ok(runtime) if !self.shared.closing.swap(true, Ordering::Relaxed) && !driver.is_finished() => {
                let session = Arc::clone(&self.shared.session);
                runtime.spawn(async move {
                    close(&session).await;
                    driver.abort();
                });
            }
            _ => driver.abort(),
        }
    }
}

/// Closes the session and its subscriptions, if the server answers.
async fn close(session: &Session) {
    if tokio::time::timeout(CLOSE_TIMEOUT, session.disconnect())
        .await
        .is_err()
    {
        debug!("the server did not confirm that the session is closed");
    }
}

// === impl Shared ===

impl Shared {
    pub(crate) fn tools(&self) -> Tools<'_> {
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

    /// Subscriptions on which the server has been silent for longer than it promised: its connection and session live,
    /// and yet no data would ever come.
    pub(crate) fn silent(&self) -> Vec<u32> {
        let Ok(observed) = self.observed.try_lock() else {
            return Vec::new();
        };
        let promised = self.session.subscription_state().lock();
        let silent = observed.subscriptions.iter().filter(|subscription| {
            let Some(promise) = promised.get(subscription.id) else {
                return false;
            };
            let keep_alive = promise
                .publishing_interval()
                .saturating_mul(promise.max_keep_alive_count());
            let patience = keep_alive
                .saturating_mul(3)
                .saturating_add(self.settings.effective_request_timeout());
            subscription.track.heard().elapsed() > patience
        });
        silent.map(|subscription| subscription.id).collect()
    }

    /// Says that nothing works for now.
    pub(crate) fn tell_down(&self, health: &Health) {
        self.out.health(&Member::Device, health.clone());
        // Whoever holds it tells health when done.
        if let Ok(observed) = self.observed.try_lock() {
            for member in observed.members() {
                self.out.health(member, health.clone());
            }
        }
    }

    /// The interruption that begins with the end of the link.
    pub(crate) fn interrupted(&self, cause: &str) -> Gap {
        // Whoever has it is only about to begin observing.
        let heard = self.observed.try_lock().ok().and_then(|observed| {
            let heard = observed
                .subscriptions
                .iter()
                .map(|subscription| subscription.track.heard());
            heard.min().map(|heard| heard.elapsed())
        });
        Gap {
            member: Member::Device,
            since: ago(heard.unwrap_or_default()),
            until: Timestamp::now(),
            cause: cause.to_owned(),
        }
    }
}

/// The time that was so long ago.
pub(crate) fn ago(elapsed: Duration) -> Timestamp {
    let elapsed = SignedDuration::try_from(elapsed).unwrap_or_default();
    Timestamp::now()
        .checked_sub(elapsed)
        .unwrap_or(Timestamp::UNIX_EPOCH)
}
