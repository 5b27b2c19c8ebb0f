//! One session, from its greeting to its end.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use foreshore_runtime::Shutdown;
use foreshore_tls::{AuthorityView, CertificateChain, CertificateRequest, Fingerprint, RoleIdentity};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use super::{
    Observation, Observed, ResourceVersion, Shared,
    deltas::{Delta, Deltas},
    registry::{SessionStatus, Ticket},
};
use crate::{
    proto::{self, GoodbyeReason, from_role::Message as FromRole, to_role::Message as ToRole},
    report::{Discovered, Report, Schema},
    session::{OLDEST_PROTOCOL, PROTOCOL, negotiate, wire},
    transport::Peer,
};

/// Most capabilities of a role, and their longest name in bytes.
const MOST_CAPABILITIES: usize = 1024;
const LONGEST_CAPABILITY: usize = 128;

/// Longest name of a program, in bytes.
const LONGEST_SOFTWARE: usize = 256;

/// Timers stand still while a machine sleeps: the clock is looked at this often.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// How a session ends.
enum End {
    /// With a word from this side.
    Goodbye(GoodbyeReason, String),
    /// Refused before it began.
    Refused(Box<Status>),
    /// The role said that it would end.
    Left,
    /// The connection broke.
    Broken(String),
}

impl End {
    fn protocol(error: impl ToString) -> Self {
        Self::Goodbye(GoodbyeReason::Protocol, error.to_string())
    }

    fn refused(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// What a role said in its greeting.
struct Greeting {
    protocol: u32,
    software: String,
    capabilities: BTreeSet<String>,
    held: Vec<ResourceVersion>,
}

pub(super) struct Session {
    shared: Arc<Shared>,
    shutdown: Shutdown,
    role: RoleIdentity,
    peer: Peer,
    epoch: u64,
    inbound: Streaming<proto::FromRole>,
    outbound: mpsc::Sender<Result<proto::ToRole, Status>>,
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        shutdown: Shutdown,
        (role, peer): (RoleIdentity, Peer),
        epoch: u64,
        inbound: Streaming<proto::FromRole>,
        outbound: mpsc::Sender<Result<proto::ToRole, Status>>,
    ) -> Self {
        Self {
            shared,
            shutdown,
            role,
            peer,
            epoch,
            inbound,
            outbound,
        }
    }

    /// Runs until the role leaves, the connection breaks or the operator ends it.
    pub(super) async fn run(mut self) {
        let greeted = timeout(self.shared.options.hello_timeout, self.greet()).await;
        let greeting = match greeted {
            Ok(Ok(greeting)) => greeting,
            Ok(Err(end)) => return self.end(&end).await,
            Err(_) => return self.end(&End::protocol("no greeting in time")).await,
        };
        let ticket = self.shared.registry.begin(&self.role);
        if let Some(predecessor) = &ticket.predecessor {
            // So that the end of the earlier session is observed before the beginning of this one.
            predecessor.cancelled().await;
        }
        info!(role = %self.role, address = %self.peer.address, software = greeting.software, "role connected");
        let status = SessionStatus::new(self.peer.address, greeting.software.clone());
        let mut active = Active::new(self, ticket, status, &greeting);
        let end = match active.announce(greeting).await {
            Ok(()) => active.run().await,
            Err(end) => end,
        };
        active.session.end(&end).await;
        let (reason, on_purpose) = match end {
            End::Goodbye(reason, message) => (format!("{}: {message}", reason.as_str_name()), false),
            End::Refused(status) => (status.message().to_owned(), false),
            End::Left => ("the role ended".to_owned(), true),
            End::Broken(reason) => (reason, false),
        };
        info!(role = %active.session.role, reason, "role disconnected");
        let disconnected = Observation::Disconnected { reason, on_purpose };
        active.session.observe(disconnected).await;
    }

    async fn greet(&mut self) -> Result<Greeting, End> {
        let Some(FromRole::Hello(hello)) = receive(&mut self.inbound).await? else {
            return Err(End::protocol("the first message must be a hello"));
        };
        let protocol = negotiate(hello.oldest_protocol, hello.newest_protocol).ok_or_else(|| {
            End::refused(Status::failed_precondition(format!(
                "this operator speaks protocol {OLDEST_PROTOCOL} to {PROTOCOL}, the role {} to {}",
                hello.oldest_protocol, hello.newest_protocol
            )))
        })?;
        if hello.seen_epoch > self.epoch {
            warn!(role = %self.role, epoch = self.epoch, seen = hello.seen_epoch, "the role knows a later leader");
            return Err(End::refused(Status::unavailable(
                "standby: the role knows a later leader",
            )));
        }
        let too_long = hello
            .capabilities
            .iter()
            .any(|name| name.len() > LONGEST_CAPABILITY);
        if hello.capabilities.len() > MOST_CAPABILITIES || too_long || hello.software.len() > LONGEST_SOFTWARE
        {
            return Err(End::protocol("the hello is too large"));
        }
        let held = self.receive_held().await?;
        let capabilities = hello.capabilities.into_iter().collect();
        Ok(Greeting {
            protocol,
            software: hello.software,
            capabilities,
            held,
        })
    }

    async fn receive_held(&mut self) -> Result<Vec<ResourceVersion>, End> {
        let mut held = Vec::new();
        loop {
            let piece = match receive(&mut self.inbound).await? {
                Some(FromRole::Held(piece)) => piece,
                None => continue,
                Some(_) => return Err(End::protocol("a hello must be followed by what the role holds")),
            };
            if held.len() + piece.resources.len() > self.shared.options.max_resources {
                return Err(End::protocol("the role holds too many resources"));
            }
            for resource in piece.resources {
                held.push(wire::resource_version(resource).map_err(End::protocol)?);
            }
            if piece.complete {
                return Ok(held);
            }
        }
    }

    /// Tells the operator, however long it takes to listen, unless the session is to end anyway.
    async fn observe(&self, what: Observation) {
        let observed = Observed {
            role: self.role.clone(),
            what,
        };
        if self.shared.events.send(observed).await.is_err() {
            debug!(role = %self.role, "nobody observes");
        }
    }

    /// The last word, if the connection takes it at once.
    async fn end(&self, end: &End) {
        let last = match end {
            End::Goodbye(reason, message) => {
                let goodbye = proto::Goodbye {
                    reason: (*reason).into(),
                    message: message.clone(),
                };
                Ok(message_to(ToRole::Goodbye(goodbye)))
            }
            End::Refused(status) => Err(Status::clone(status)),
            End::Left | End::Broken(_) => return,
        };
        // A peer that takes nothing does not take this either; the stream's end tells it then.
        drop(timeout(Duration::from_secs(1), self.outbound.send(last)).await);
    }
}

/// A session after its greeting.
struct Active {
    session: Session,
    ticket: Ticket,
    status: SessionStatus,
    deltas: Deltas,
    authority: watch::Receiver<AuthorityView>,
    /// The root that signed when it was last looked at.
    issuer: Fingerprint,
    leadership: watch::Receiver<Option<u64>>,
    /// When the role's certificate ends, and with it the session.
    certificate_ends: Timestamp,
    /// What is to be sent before deltas: at most one of each, the latest counts.
    answer: Option<proto::RenewalResponse>,
    trust: Option<proto::Trust>,
    renew: bool,
}

impl Active {
    fn new(session: Session, ticket: Ticket, status: SessionStatus, greeting: &Greeting) -> Self {
        let shared = &session.shared;
        let authority = shared.authority.certificates().subscribe();
        let leadership = shared.leadership.subscribe();
        let chain = CertificateChain::from_der(session.peer.chain.to_vec());
        let certificate_ends = chain.map_or(Timestamp::UNIX_EPOCH, |chain| chain.validity().not_after);
        let renew = session
            .peer
            .chain
            .first()
            .is_some_and(|leaf| !shared.authority.certificates().issued_by_current(leaf));
        let deltas = Deltas::new(greeting.capabilities.clone(), &greeting.held);
        let issuer = authority.borrow().issuer;
        Self {
            session,
            ticket,
            status,
            deltas,
            authority,
            issuer,
            leadership,
            certificate_ends,
            answer: None,
            trust: None,
            renew,
        }
    }

    async fn announce(&mut self, greeting: Greeting) -> Result<(), End> {
        let session = &self.session;
        let welcome = proto::Welcome {
            protocol: greeting.protocol,
            epoch: session.epoch,
            software: session.shared.options.software.clone(),
        };
        self.ticket.publish(&self.status);
        let connected = Observation::Connected {
            software: greeting.software,
            capabilities: greeting.capabilities,
            address: session.peer.address,
        };
        session.observe(connected).await;
        session
            .observe(Observation::Holds {
                resources: greeting.held,
            })
            .await;
        self.trust = Some(wire::to_trust(&self.authority.borrow_and_update().bundle));
        self.ticket.plan.mark_changed();
        let sent = session
            .outbound
            .send(Ok(message_to(ToRole::Welcome(welcome))))
            .await;
        sent.map_err(|_| End::Broken("the role closed the connection".to_owned()))
    }

    async fn run(&mut self) -> End {
        loop {
            if let Some(end) = self.must_end() {
                return end;
            }
            let has_outgoing = self.has_outgoing();
            let session = &mut self.session;
            let certificate_left =
                u64::try_from(self.certificate_ends.duration_since(Timestamp::now()).as_secs());
            let check = Duration::from_secs(certificate_left.unwrap_or(0) + 1).min(CLOCK_CHECK);
            tokio::select! {
                changed = self.leadership.changed() => drop(changed),
                changed = self.ticket.end.changed() => drop(changed),
                () = session.shutdown.begun() => {}
                () = tokio::time::sleep(check) => {}
                changed = self.authority.changed() => {
                    if changed.is_ok() {
                        self.authority_changed();
                    }
                }
                changed = self.ticket.plan.changed() => {
                    if changed.is_ok() {
                        self.plan_changed().await;
                    }
                }
                has_room = has_room(&session.outbound), if has_outgoing => {
                    // Nobody else sends, so the room is still there.
                    if !has_room || !self.send_one() {
                        return End::Broken("the role closed the connection".to_owned());
                    }
                }
                message = receive(&mut session.inbound) => {
                    let handled = match message {
                        Ok(Some(message)) => self.handle(message).await,
                        Ok(None) => Ok(()),
                        Err(end) => Err(end),
                    };
                    if let Err(end) = handled {
                        return end;
                    }
                }
            }
        }
    }

    fn must_end(&mut self) -> Option<End> {
        let goodbye = |reason, message: &str| Some(End::Goodbye(reason, message.to_owned()));
        if let Some(reason) = *self.ticket.end.borrow_and_update() {
            return match reason {
                GoodbyeReason::Replaced => goodbye(reason, "another session of this role began"),
                _ => goodbye(reason, "the role is no longer wanted"),
            };
        }
        if *self.leadership.borrow_and_update() != Some(self.session.epoch) {
            return goodbye(GoodbyeReason::Standby, "another instance leads");
        }
        if self.session.shutdown.is_begun() {
            return goodbye(GoodbyeReason::Shutdown, "the operator ends");
        }
        if self.certificate_ends < Timestamp::now() {
            return goodbye(GoodbyeReason::Expired, "the role's certificate has expired");
        }
        None
    }

    fn has_outgoing(&self) -> bool {
        self.answer.is_some() || self.trust.is_some() || self.renew || self.deltas.has_next()
    }

    fn send_one(&mut self) -> bool {
        match self.next_outgoing() {
            Some(message) => self.session.outbound.try_send(Ok(message_to(message))).is_ok(),
            None => true,
        }
    }

    /// Certificates and trust before resources.
    fn next_outgoing(&mut self) -> Option<ToRole> {
        if let Some(answer) = self.answer.take() {
            return Some(ToRole::Renewal(answer));
        }
        if let Some(trust) = self.trust.take() {
            return Some(ToRole::Trust(trust));
        }
        if std::mem::take(&mut self.renew) {
            return Some(ToRole::Renew(proto::Renew {}));
        }
        let epoch = self.session.epoch;
        Some(match self.deltas.pop()? {
            Delta::Set(resource) => ToRole::Set(proto::Set {
                epoch,
                resource: Some(resource.into()),
            }),
            Delta::Remove(key) => ToRole::Remove(proto::Remove {
                epoch,
                key: Some(key.into()),
            }),
            Delta::EndOfSnapshot => ToRole::EndOfSnapshot(proto::EndOfSnapshot { epoch }),
        })
    }

    fn authority_changed(&mut self) {
        let view = self.authority.borrow_and_update();
        self.trust = Some(wire::to_trust(&view.bundle));
        self.renew |= view.issuer != self.issuer;
        self.issuer = view.issuer;
    }

    async fn plan_changed(&mut self) {
        let Some(plan) = self.ticket.plan.borrow_and_update().clone() else {
            return;
        };
        for too_old in self.deltas.aim(plan) {
            warn!(role = %self.session.role, key = %too_old.resource.key, missing = ?too_old.missing,
                "the role is too old for a resource");
            let unsupported = Observation::Unsupported {
                resource: too_old.resource,
                missing: too_old.missing,
            };
            self.session.observe(unsupported).await;
        }
        self.publish();
    }

    fn publish(&mut self) {
        self.status.count(self.deltas.counts());
        self.ticket.publish(&self.status);
    }

    async fn handle(&mut self, message: FromRole) -> Result<(), End> {
        if let Some(observation) = self.judge(message)? {
            self.session.observe(observation).await;
        }
        Ok(())
    }

    fn judge(&mut self, message: FromRole) -> Result<Option<Observation>, End> {
        let observation = match message {
            FromRole::Ack(ack) => self.answered(wire::ack(ack).map_err(End::protocol)?),
            FromRole::Nack(nack) => self.answered(wire::nack(nack).map_err(End::protocol)?),
            FromRole::Report(report) => Observation::Report(wire::report(report).map_err(End::protocol)?),
            FromRole::Retraction(retraction) => Observation::Retracted {
                object: wire::key("retraction.object", retraction.object).map_err(End::protocol)?,
                aspect: wire::aspect(retraction.aspect).map_err(End::protocol)?,
            },
            FromRole::Schema(schema) => Observation::Schema(wire::schema(schema).map_err(End::protocol)?),
            FromRole::Discovered(discovered) => {
                Observation::Discovered(wire::discovered(discovered).map_err(End::protocol)?)
            }
            FromRole::TrustAck(ack) => {
                let bundle = wire::trust_ack(&ack).map_err(End::protocol)?;
                self.status.trusts = Some(bundle);
                self.publish();
                Observation::Trusts { bundle }
            }
            FromRole::Renewal(renewal) => return Ok(self.issue(&renewal)),
            FromRole::Leaving(_) => return Err(End::Left),
            FromRole::Hello(_) | FromRole::Held(_) => {
                return Err(End::protocol("a session has one greeting"));
            }
        };
        Ok(self.is_its_own(&observation).then_some(observation))
    }

    /// A role speaks of objects of its own namespace only; which of them are its own is for the operator to judge.
    fn is_its_own(&self, observation: &Observation) -> bool {
        let object = match observation {
            Observation::Report(Report { object, .. })
            | Observation::Retracted { object, .. }
            | Observation::Schema(Schema { object, .. })
            | Observation::Discovered(Discovered { scan: object, .. }) => object,
            _ => return true,
        };
        let role = &self.session.role;
        let own = object.namespace == role.namespace();
        if !own {
            warn!(%role, %object, "ignored what a role says of an object in another namespace");
        }
        own
    }

    fn answered(&mut self, answer: wire::Answer) -> Observation {
        self.deltas.answered(&answer);
        self.publish();
        match answer.refused {
            Some(nack) => {
                warn!(role = %self.session.role, key = %answer.resource.key, %nack, "the role refused a resource");
                Observation::Nack {
                    resource: answer.resource,
                    nack,
                }
            }
            None if answer.removed => Observation::Removed {
                key: answer.resource.key,
            },
            None => Observation::Ack {
                resource: answer.resource,
            },
        }
    }

    fn issue(&mut self, renewal: &proto::RenewalRequest) -> Option<Observation> {
        let (authority, role) = (&self.session.shared.authority, &self.session.role);
        let issued = CertificateRequest::from_der(&renewal.request)
            .and_then(|request| authority.issue(&request, role));
        let (result, observation) = match issued {
            Ok(chain) => {
                let validity = chain.validity();
                info!(%role, not_after = %validity.not_after, "certificate renewed");
                self.certificate_ends = validity.not_after;
                let certificate = wire::to_certificate(&chain, &authority.certificates().bundle());
                let result = proto::renewal_response::Result::Certificate(certificate);
                (result, Some(Observation::Renewed { validity }))
            }
            Err(error) => {
                warn!(%role, %error, "certificate not renewed");
                (proto::renewal_response::Result::Refused(error.to_string()), None)
            }
        };
        self.answer = Some(proto::RenewalResponse { result: Some(result) });
        observation
    }
}

/// The next message; `None` within is one of a newer version, to be ignored.
async fn receive(inbound: &mut Streaming<proto::FromRole>) -> Result<Option<FromRole>, End> {
    match inbound.message().await {
        Ok(Some(message)) => Ok(message.message),
        Ok(None) => Err(End::Broken("the role closed the connection".to_owned())),
        Err(status) => Err(End::Broken(format!("connection lost: {}", status.message()))),
    }
}

/// Waits for room in the connection; false when it is gone.
async fn has_room<T>(sender: &mpsc::Sender<T>) -> bool {
    sender.reserve().await.is_ok()
}

fn message_to(message: ToRole) -> proto::ToRole {
    proto::ToRole {
        message: Some(message),
    }
}
