//! One session, from its welcome to its end.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use foreshore_runtime::Shutdown;
use foreshore_tls::KeyPair;
use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Code, Streaming};
use tracing::{info, warn};

use super::{
    super::{Error, apply::Incoming, outbox::Topic},
    Link, goodbye_error, message_from, session_error,
};
use crate::{
    proto::{self, from_role::Message as FromRole, to_role::Message as ToRole},
    session::wire,
};

/// Timers stand still while a machine sleeps: the clock is looked at this often.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// How long the last reports and the leave may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// A session after its welcome.
pub(super) struct Session<'a> {
    link: &'a mut Link,
    /// The epoch of the welcome; a session never changes it.
    epoch: u64,
    inbound: Streaming<proto::ToRole>,
    outbound: mpsc::Sender<proto::FromRole>,
    /// Certificates and trust, sent before anything else; at most a few.
    urgent: VecDeque<FromRole>,
    /// Reports whose turn it is.
    batch: BTreeSet<Topic>,
    next_batch: Instant,
    /// The key of a renewal that was asked for, and when to ask again.
    renewal: Option<KeyPair>,
    next_renewal: Timestamp,
}

/// What a branch of the session woke up for.
enum Event {
    Tick,
    CanSend,
    Message(Incoming),
    Own(Own),
    End(Error),
    Shutdown,
}

/// Messages for the session itself.
enum Own {
    Renewed(proto::RenewalResponse),
    Trust(proto::Trust),
    Renew,
    Ignored,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        link: &'a mut Link,
        inbound: Streaming<proto::ToRole>,
        outbound: mpsc::Sender<proto::FromRole>,
    ) -> Self {
        let mut session = Self {
            epoch: link.seen.map_or(0, |seen| seen.epoch),
            link,
            inbound,
            outbound,
            urgent: VecDeque::new(),
            batch: BTreeSet::new(),
            next_batch: Instant::now(),
            renewal: None,
            next_renewal: Timestamp::MAX,
        };
        session.schedule_renewal();
        session
    }

    /// Runs until the connection breaks or the operator says goodbye; `Ok` at the shutdown.
    pub(super) async fn run(mut self, shutdown: &Shutdown) -> Result<(), Error> {
        loop {
            self.renew_if_due()?;
            match self.next(shutdown).await {
                Event::Tick => {}
                Event::CanSend => self.send_one()?,
                Event::Message(incoming) => {
                    // There is room, which was made sure of before the message was read; without the role there is
                    // nobody to apply it, and the next turn notices.
                    drop(self.link.changes.try_send(incoming));
                }
                Event::Own(own) => self.handle(own).await?,
                Event::End(error) => return Err(error),
                Event::Shutdown => {
                    drop(timeout(LEAVE_TIMEOUT, self.leave()).await);
                    return Ok(());
                }
            }
            if let Some(seen) = &mut self.link.seen {
                seen.at = Instant::now();
            }
        }
    }

    /// Waits for something to do. Neither direction ever waits for the other one, so that two ends that both have
    /// much to say do not stop each other.
    async fn next(&mut self, shutdown: &Shutdown) -> Event {
        let outbox = Arc::clone(&self.link.outbox);
        if self.batch.is_empty() && self.next_batch <= Instant::now() {
            self.batch = outbox.take_dirty();
            if !self.batch.is_empty() {
                self.next_batch = Instant::now() + self.link.options.report_interval;
            }
        }
        let has_outgoing = !self.urgent.is_empty() || !self.batch.is_empty() || outbox.has_answer();
        let gathering = self.batch.is_empty() && outbox.has_dirty();
        let changes = &self.link.changes;
        let (epoch, inbound) = (self.epoch, &mut self.inbound);
        let receive = async {
            // A message is read only when there is room for it.
            match changes.reserve().await {
                Ok(permit) => drop(permit),
                // The role has ended: so does the session, in order.
                Err(_) => return Event::Shutdown,
            }
            match inbound.message().await {
                Ok(Some(message)) => sort(message, epoch),
                Ok(None) => Event::End(Error::Session {
                    code: Code::Unavailable,
                    reason: "the operator closed the connection".to_owned(),
                }),
                Err(status) => Event::End(session_error(&status)),
            }
        };
        tokio::select! {
            () = shutdown.begun() => Event::Shutdown,
            event = receive => event,
            permit = self.outbound.reserve(), if has_outgoing => match permit {
                Ok(_) => Event::CanSend,
                Err(_) => Event::End(Error::Session {
                    code: Code::Unavailable,
                    reason: "the connection broke".to_owned(),
                }),
            },
            () = outbox.changed() => Event::Tick,
            () = sleep_until(self.next_batch), if gathering => Event::Tick,
            () = tokio::time::sleep(until(self.next_renewal).min(CLOCK_CHECK)) => Event::Tick,
        }
    }

    fn send_one(&mut self) -> Result<(), Error> {
        let message = match self.urgent.pop_front() {
            Some(message) => Some(message),
            None => match self.link.outbox.pop_answer() {
                Some(answer) => Some(answer),
                None => self
                    .batch
                    .pop_first()
                    .and_then(|topic| self.link.outbox.latest(topic)),
            },
        };
        let Some(message) = message else { return Ok(()) };
        // Room was made sure of, and nobody else sends.
        self.outbound
            .try_send(message_from(message))
            .map_err(|error| Error::Session {
                code: Code::Unavailable,
                reason: error.to_string(),
            })
    }

    async fn handle(&mut self, own: Own) -> Result<(), Error> {
        match own {
            Own::Renewed(answer) => self.renewed(answer).await?,
            Own::Trust(trust) => {
                let bundle = wire::from_trust(trust).map_err(Error::protocol)?;
                let ack = wire::to_trust_ack(&bundle);
                if let Err(error) = self.link.credentials.trust(bundle).await {
                    // It is in use all the same; after a restart the session tells it again.
                    warn!(%error, "trust bundle not stored");
                }
                self.urgent.push_back(FromRole::TrustAck(ack));
            }
            Own::Renew => self.next_renewal = Timestamp::now(),
            Own::Ignored => {}
        }
        Ok(())
    }

    fn renew_if_due(&mut self) -> Result<(), Error> {
        if self.next_renewal > Timestamp::now() {
            return Ok(());
        }
        let key = KeyPair::generate()?;
        let request = proto::RenewalRequest {
            request: key.request()?.into(),
        };
        self.urgent.push_back(FromRole::Renewal(request));
        self.renewal = Some(key);
        self.retry_renewal();
        Ok(())
    }

    async fn renewed(&mut self, answer: proto::RenewalResponse) -> Result<(), Error> {
        let Some(key) = self.renewal.take() else {
            return Ok(());
        };
        match answer.result {
            Some(proto::renewal_response::Result::Certificate(certificate)) => {
                let (chain, bundle) = wire::from_certificate(Some(certificate)).map_err(Error::protocol)?;
                let not_after = chain.validity().not_after;
                match self.link.credentials.adopt(chain, bundle, &key).await {
                    Ok(()) => info!(%not_after, "certificate renewed"),
                    Err(error) => warn!(%error, "renewed certificate not stored"),
                }
                self.schedule_renewal();
            }
            Some(proto::renewal_response::Result::Refused(reason)) => {
                warn!(reason, "certificate not renewed, trying again");
            }
            None => warn!("certificate not renewed: the operator's answer is not understood"),
        }
        Ok(())
    }

    fn schedule_renewal(&mut self) {
        let chain = self.link.credentials.identity().chain();
        self.next_renewal = chain.map_or(Timestamp::MAX, |chain| chain.validity().renew_at());
    }

    /// A tenth of the time that is left, for the case that no answer comes.
    fn retry_renewal(&mut self) {
        let chain = self.link.credentials.identity().chain();
        let left = chain.map_or(Duration::ZERO, |chain| {
            chain.validity().remaining(Timestamp::now())
        });
        let pause = (left / 10).clamp(Duration::from_secs(1), Duration::from_secs(600));
        self.next_renewal = Timestamp::now().checked_add(pause).unwrap_or(Timestamp::MAX);
    }

    /// The last reports, and the leave.
    async fn leave(mut self) {
        self.batch.append(&mut self.link.outbox.take_dirty());
        while let Some(topic) = self.batch.pop_first() {
            if let Some(message) = self.link.outbox.latest(topic)
                && self.outbound.send(message_from(message)).await.is_err()
            {
                return;
            }
        }
        if self
            .outbound
            .send(message_from(FromRole::Leaving(proto::Leaving {})))
            .await
            .is_err()
        {
            return;
        }
        // The operator closes the stream when it has heard it.
        while let Ok(Some(_)) = self.inbound.message().await {}
    }
}

/// Tells what is for the role from what is for the session. A message of a newer version is ignored.
fn sort(message: proto::ToRole, epoch: u64) -> Event {
    match message.message {
        Some(
            ToRole::Set(proto::Set { epoch: other, .. })
            | ToRole::Remove(proto::Remove { epoch: other, .. })
            | ToRole::EndOfSnapshot(proto::EndOfSnapshot { epoch: other }),
        ) if other != epoch => Event::End(Error::protocol(format!(
            "epoch {other} in a session of epoch {epoch}"
        ))),
        Some(ToRole::Set(set)) => match wire::resource(set.resource) {
            Ok(received) => Event::Message(Incoming::Set(received)),
            Err(error) => Event::End(Error::protocol(error)),
        },
        Some(ToRole::Remove(remove)) => match wire::key("remove.key", remove.key) {
            Ok(key) => Event::Message(Incoming::Remove(key)),
            Err(error) => Event::End(Error::protocol(error)),
        },
        Some(ToRole::EndOfSnapshot(_)) => Event::Message(Incoming::SnapshotComplete),
        Some(ToRole::Renewal(answer)) => Event::Own(Own::Renewed(answer)),
        Some(ToRole::Trust(trust)) => Event::Own(Own::Trust(trust)),
        Some(ToRole::Renew(_)) => Event::Own(Own::Renew),
        Some(ToRole::Goodbye(goodbye)) => Event::End(goodbye_error(&goodbye)),
        Some(ToRole::Welcome(_)) | None => Event::Own(Own::Ignored),
    }
}

fn until(moment: Timestamp) -> Duration {
    let left = moment.duration_since(Timestamp::now());
    if left.is_positive() {
        left.unsigned_abs()
    } else {
        Duration::ZERO
    }
}
