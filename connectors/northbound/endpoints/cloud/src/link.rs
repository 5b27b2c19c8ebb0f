//! The stream to a cloud endpoint: opened, kept, opened again.

use std::{sync::Arc, time::Duration};

use foreshore_edgelink::Codec;
use foreshore_northbound::{Assets, SinkError, Surroundings};
use foreshore_runtime::{Backoff, Shutdown, Task, spawn};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use crate::{
    credentials::{EdgeCredentials, Remedy},
    outbox::Outbox,
    relay::{Relay, Results},
    session::{self, Ended, Shared},
    settings::Settings,
};

/// Shortest and longest wait before the stream is opened again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Wait after a refusal that somebody has to mend.
const REFUSED_RETRY: Duration = Duration::from_secs(15);

/// How the link stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// Being opened for the first time.
    Opening,
    /// Open.
    Connected,
    /// Not open, and why.
    Away(SinkError),
}

/// A link to a cloud endpoint. Ends when dropped.
pub(crate) struct Link {
    outbox: Arc<Outbox>,
    state: watch::Receiver<State>,
    codec: Codec,
    task: Task<()>,
}

impl Link {
    /// Begins to open the stream.
    pub(crate) fn start(settings: Settings, surroundings: &Surroundings) -> Self {
        let outbox = Arc::new(Outbox::default());
        let (sender, state) = watch::channel(State::Opening);
        let codec = settings.codec;
        let (relay, results) = Relay::start(&settings, surroundings);
        let runner = Runner {
            relay,
            assets: surroundings.assets.clone(),
            settings,
            outbox: Arc::clone(&outbox),
            state: sender,
            shutdown: surroundings.shutdown.clone(),
        };
        let task = spawn("edge link", runner.run(results));
        Self {
            outbox,
            state,
            codec,
            task,
        }
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    pub(crate) fn codec(&self) -> Codec {
        self.codec
    }

    /// Waits until the link is open.
    ///
    /// # Errors
    /// Why it is not; at once when someone has to mend it.
    pub(crate) async fn connected(&self, patience: Duration) -> Result<(), SinkError> {
        let mut state = self.state.clone();
        let is_known =
            |state: &State| matches!(state, State::Connected | State::Away(SinkError::Fatal { .. }));
        // When the patience is over, the present state tells why.
        drop(tokio::time::timeout(patience, state.wait_for(is_known)).await);
        let state = self.state.borrow();
        match &*state {
            State::Connected => Ok(()),
            State::Opening => Err(SinkError::retryable(
                "Unreachable",
                "the link is still being opened",
            )),
            State::Away(error) => Err(error.clone()),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
        self.outbox.fail_all("the endpoint was changed or removed");
    }
}

struct Runner {
    settings: Settings,
    outbox: Arc<Outbox>,
    relay: Relay,
    assets: Assets,
    state: watch::Sender<State>,
    shutdown: Shutdown,
}

impl Runner {
    async fn run(self, mut results: Results) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let credentials = loop {
            match EdgeCredentials::open(&self.settings) {
                Ok(credentials) => break credentials,
                Err(error) => {
                    warn!(%error, "cloud endpoint can't be joined");
                    self.state.send_replace(State::Away(error.to_sink_error()));
                    tokio::time::sleep(REFUSED_RETRY).await;
                }
            }
        };
        let mut remedy = Remedy::Wait;
        // Batches that are on the way when the role ends are settled still, so the link outlives the beginning of the
        // end; it ends with the last sink.
        loop {
            let opened = Instant::now();
            let ended = self.open(&credentials, remedy, &mut results).await;
            if opened.elapsed() > RETRY.1 {
                backoff.reset();
            }
            remedy = ended.remedy;
            let cause = ended.error.to_string();
            let wait = match (&ended.error, remedy) {
                // What can be remedied without anyone's doing is tried soon.
                (SinkError::Fatal { .. }, Remedy::Wait) => REFUSED_RETRY,
                _ => backoff.next_delay(),
            };
            if !self.shutdown.is_begun() {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                warn!(cause, wait_ms, "no link to the cloud endpoint");
            }
            self.state.send_replace(State::Away(ended.error));
            self.outbox.fail_all(&cause);
            tokio::time::sleep(wait).await;
        }
    }

    /// One life of the stream. The certificate is renewed beside it: the cloud follows, so that data flows on.
    async fn open(&self, credentials: &EdgeCredentials, remedy: Remedy, results: &mut Results) -> Ended {
        let prepared = match remedy {
            Remedy::Wait => credentials.ensure(&self.settings, Timestamp::now()).await,
            Remedy::Renew => credentials.renew_by_possession(&self.settings).await,
            Remedy::Enroll => credentials.enroll(&self.settings).await,
        };
        if let Err(error) = prepared {
            return Ended {
                remedy: error.remedy(),
                error: error.to_sink_error(),
            };
        }
        let connected = || {
            info!(
                address = self.settings.address,
                edge = self.settings.edge,
                "linked to the cloud endpoint"
            );
            self.state.send_replace(State::Connected);
        };
        let lost = |error: &SinkError| drop(self.state.send_replace(State::Away(error.clone())));
        let shared = Shared {
            settings: &self.settings,
            credentials,
            outbox: &self.outbox,
            relay: &self.relay,
            assets: &self.assets,
        };
        tokio::select! {
            ended = session::run(&shared, results, connected, lost) => ended,
            never = credentials.keep_renewed(&self.settings) => match never {},
        }
    }
}
