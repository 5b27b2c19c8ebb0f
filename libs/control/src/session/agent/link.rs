//! The session with the operator: found, kept, lost and found again.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use foreshore_runtime::{Backoff, Shutdown};
use foreshore_tls::{Identity, KeyPair, ServerName};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};
use tracing::{info, warn};

use super::{
    AgentOptions, AgentStatus, Error, InForce, LinkState,
    apply::Incoming,
    credentials::RoleCredentials,
    outbox::{Outbox, Topic},
};
use crate::{
    proto::{
        self, GoodbyeReason, control_client::ControlClient, from_role::Message as FromRole,
        to_role::Message as ToRole,
    },
    session::{
        HELD_PIECE, LARGEST_MESSAGE, OLDEST_PROTOCOL, PROTOCOL,
        wire::{self, ResourceVersion},
    },
    transport::{self, ConnectOptions, channel},
};

/// Messages that wait for the connection.
const OUTBOUND: usize = 16;

/// How long the operator may take to answer a greeting: it may be waiting for the end of an earlier session.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(45);

/// A session that lived so long was a good one: the next try follows soon.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// How long a larger epoch is believed over a smaller one after its leader was last heard. A deposed leader is
/// noticed long before; an operator that was set up anew, with epochs from the start, gets its roles back then.
const EPOCH_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// Timers stand still while a machine sleeps: the clock is looked at this often.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// How long the last reports and the leave may take.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// The latest leader that was heard.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    epoch: u64,
    at: Instant,
}

pub(super) struct Link {
    pub(super) options: AgentOptions,
    pub(super) credentials: RoleCredentials,
    pub(super) in_force: InForce,
    pub(super) changes: mpsc::Sender<Incoming>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) status: watch::Sender<AgentStatus>,
    pub(super) seen: Option<Seen>,
}

/// Where one operator is.
#[derive(Clone)]
struct Target {
    address: String,
    name: ServerName<'static>,
}

impl Link {
    /// Dials until the shutdown begins.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let mut backoff = Backoff::new(self.options.retry.0, self.options.retry.1);
        while !shutdown.is_begun() {
            let Some(good) = self.round(&shutdown).await else {
                return;
            };
            if good {
                backoff.reset();
            }
            if shutdown
                .or_begun(tokio::time::sleep(backoff.next_delay()))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    /// Tries every address once, the last good one first. Whether a good session was had, or `None` at the end.
    async fn round(&mut self, shutdown: &Shutdown) -> Option<bool> {
        let targets = shutdown.or_begun(self.targets()).await?;
        for target in targets {
            let began = Instant::now();
            let outcome = self.visit(&target, shutdown).await;
            if shutdown.is_begun() {
                return None;
            }
            let Err(error) = outcome else { return None };
            self.lost(&target, &error);
            if began.elapsed() >= GOOD_SESSION {
                return Some(true);
            }
        }
        Some(false)
    }

    fn lost(&mut self, target: &Target, error: &Error) {
        let state = LinkState::Disconnected {
            reason: error.code(),
            message: format!("{}: {error}", target.address),
        };
        // The same trouble each time is told once.
        let changed = self.status.send_if_modified(|status| {
            let changed = status.link != state;
            status.link = state;
            changed
        });
        if changed {
            warn!(address = target.address, reason = error.code(), %error, "no session with the operator");
        }
        let by_peer = foreshore_tls::Refusal::find(error)
            .is_some_and(|refusal| matches!(refusal, foreshore_tls::Refusal::ByPeer { .. }));
        let unauthenticated = matches!(
            error,
            Error::Session {
                code: Code::Unauthenticated,
                ..
            }
        );
        let expired = matches!(
            error,
            Error::Goodbye {
                reason: "Expired",
                ..
            }
        );
        if by_peer || unauthenticated || expired {
            self.credentials.set_refused();
        }
    }

    /// Every address behind every name: a service of several operators answers with all of them, and only one leads.
    async fn targets(&self) -> Vec<Target> {
        let mut targets: Vec<Target> = Vec::new();
        for address in &self.options.addresses {
            let host = address
                .rsplit_once(':')
                .map_or(address.as_str(), |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let name = match &self.options.server_name {
                Some(name) => name.clone(),
                None => match ServerName::try_from(host.to_owned()) {
                    Ok(name) => name,
                    Err(error) => {
                        warn!(address, %error, "address can't be used");
                        continue;
                    }
                },
            };
            match timeout(Duration::from_secs(10), tokio::net::lookup_host(address)).await {
                Ok(Ok(found)) => targets.extend(found.map(|address| Target {
                    address: address.to_string(),
                    name: name.clone(),
                })),
                // Dialling gives the error that people see.
                Ok(Err(_)) | Err(_) => targets.push(Target {
                    address: address.clone(),
                    name,
                }),
            }
        }
        targets
    }

    /// Enrolls if needed, and has a session. `Ok` only at the shutdown.
    async fn visit(&mut self, target: &Target, shutdown: &Shutdown) -> Result<(), Error> {
        let options = ConnectOptions::default();
        if self.credentials.must_enroll() {
            let anonymous = Identity::anonymous(self.credentials.identity().bundle())?;
            let enrolling = async {
                let channel = channel(&target.address, &anonymous, target.name.clone(), &options).await?;
                self.credentials.enroll(channel).await
            };
            match shutdown.or_begun(enrolling).await {
                None => return Ok(()),
                Some(enrolled) => enrolled?,
            }
        }
        let connecting = async {
            let identity = self.credentials.identity();
            let channel = channel(&target.address, identity, target.name.clone(), &options).await?;
            self.greet(channel).await
        };
        let (inbound, outbound) = match shutdown.or_begun(connecting).await {
            None => return Ok(()),
            Some(connected) => connected?,
        };
        info!(address = target.address, "session with the operator");
        let connected = LinkState::Connected {
            address: target.address.clone(),
            since: Timestamp::now(),
        };
        self.status.send_modify(|status| status.link = connected);
        self.outbox.connect();
        let outcome = Session::new(self, inbound, outbound).run(shutdown).await;
        self.outbox.disconnect();
        outcome
    }

    /// Says what this role is capable of and what it has in force, and waits to be welcome.
    async fn greet(
        &mut self,
        channel: Channel,
    ) -> Result<(Streaming<proto::ToRole>, mpsc::Sender<proto::FromRole>), Error> {
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let mut client = ControlClient::new(channel)
            .max_decoding_message_size(LARGEST_MESSAGE)
            .max_encoding_message_size(LARGEST_MESSAGE);
        let greeting = self.greeting();
        let greet = async {
            let send = async {
                for message in greeting {
                    if outbound.send(message_from(message)).await.is_err() {
                        break;
                    }
                }
            };
            let (answer, ()) = tokio::join!(client.session(ReceiverStream::new(messages)), send);
            let mut inbound = answer.map_err(|status| session_error(&status))?.into_inner();
            match inbound.message().await {
                Ok(Some(proto::ToRole {
                    message: Some(ToRole::Welcome(welcome)),
                })) => Ok((inbound, welcome)),
                Ok(Some(proto::ToRole {
                    message: Some(ToRole::Goodbye(goodbye)),
                })) => Err(goodbye_error(&goodbye)),
                Ok(_) => Err(Error::protocol("it begins without a welcome")),
                Err(status) => Err(session_error(&status)),
            }
        };
        let answered = timeout(WELCOME_TIMEOUT, greet).await;
        let (inbound, welcome) = answered.unwrap_or_else(|_| {
            Err(Error::Session {
                code: Code::DeadlineExceeded,
                reason: "no welcome in time".to_owned(),
            })
        })?;
        let believed = self.believed_epoch();
        if welcome.epoch < believed {
            return Err(Error::Session {
                code: Code::Unavailable,
                reason: format!("it leads in epoch {}, epoch {believed} was seen", welcome.epoch),
            });
        }
        self.seen = Some(Seen {
            epoch: welcome.epoch,
            at: Instant::now(),
        });
        Ok((inbound, outbound))
    }

    fn greeting(&self) -> Vec<FromRole> {
        let mut messages = vec![FromRole::Hello(proto::Hello {
            oldest_protocol: OLDEST_PROTOCOL,
            newest_protocol: PROTOCOL,
            software: self.options.software.clone(),
            capabilities: self.options.capabilities.iter().cloned().collect(),
            seen_epoch: self.believed_epoch(),
        })];
        let held: Vec<proto::ResourceVersion> = self
            .in_force
            .lock()
            .iter()
            .map(|(key, (version, hash))| {
                ResourceVersion {
                    key: key.clone(),
                    version: *version,
                    hash: *hash,
                }
                .into()
            })
            .collect();
        let mut pieces = held.chunks(HELD_PIECE).peekable();
        if pieces.peek().is_none() {
            messages.push(FromRole::Held(proto::Held {
                resources: Vec::new(),
                complete: true,
            }));
        }
        while let Some(piece) = pieces.next() {
            let complete = pieces.peek().is_none();
            messages.push(FromRole::Held(proto::Held {
                resources: piece.to_vec(),
                complete,
            }));
        }
        messages
    }

    /// The epoch below which a leader is not believed.
    fn believed_epoch(&self) -> u64 {
        self.seen
            .filter(|seen| seen.at.elapsed() < EPOCH_PATIENCE)
            .map_or(0, |seen| seen.epoch)
    }
}

/// A session after its welcome.
struct Session<'a> {
    link: &'a mut Link,
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
    fn new(
        link: &'a mut Link,
        inbound: Streaming<proto::ToRole>,
        outbound: mpsc::Sender<proto::FromRole>,
    ) -> Self {
        let mut session = Self {
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
    async fn run(mut self, shutdown: &Shutdown) -> Result<(), Error> {
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
        let inbound = &mut self.inbound;
        let receive = async {
            // A message is read only when there is room for it.
            match changes.reserve().await {
                Ok(permit) => drop(permit),
                // The role has ended: so does the session, in order.
                Err(_) => return Event::Shutdown,
            }
            match inbound.message().await {
                Ok(Some(message)) => sort(message),
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
fn sort(message: proto::ToRole) -> Event {
    match message.message {
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

fn session_error(status: &tonic::Status) -> Error {
    match foreshore_tls::Refusal::find(status) {
        Some(refusal) => Error::Transport(transport::Error::Refused {
            address: "the operator".to_owned(),
            refusal,
        }),
        None => Error::Session {
            code: status.code(),
            reason: status.message().to_owned(),
        },
    }
}

fn goodbye_error(goodbye: &proto::Goodbye) -> Error {
    let reason = match goodbye.reason() {
        GoodbyeReason::Standby => "Standby",
        GoodbyeReason::Replaced => "Replaced",
        GoodbyeReason::Removed => "Removed",
        GoodbyeReason::Shutdown => "OperatorShutdown",
        GoodbyeReason::Expired => "Expired",
        GoodbyeReason::Protocol => "ProtocolError",
        GoodbyeReason::Unspecified => "Goodbye",
    };
    Error::Goodbye {
        reason,
        message: goodbye.message.clone(),
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

fn message_from(message: FromRole) -> proto::FromRole {
    proto::FromRole {
        message: Some(message),
    }
}
