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
    Emitter, Ended, Endpoint, Invocation, Link, LinkError, LinkErrorClass, MemberHealth, plan::AssetPlan,
};
use foreshore_record::CommandOutcome;
use opcua::client::Session;
use parking_lot::RwLock;
use tokio::{sync::watch, task::JoinHandle};
use tracing::debug;

use crate::{
    action,
    connect::{self, unreachable_error},
    driver::Driver,
    inbox::Handles,
    items,
    shared::Shared,
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
