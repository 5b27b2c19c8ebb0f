//! A session after its greeting.

use std::time::Duration;

use foreshore_tls::{AuthorityView, CertificateChain, CertificateRequest, Fingerprint};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::{
    super::{
        Observation,
        deltas::{Delta, Deltas},
        registry::{SessionStatus, Ticket},
    },
    End, Greeting, Session, message_to, receive,
};
use crate::{
    handover::HandOver,
    proto::{self, GoodbyeReason, from_role::Message as FromRole, to_role::Message as ToRole},
    report::{Discovered, Report, Schema},
    session::wire,
};

/// Timers stand still while a machine sleeps: the clock is looked at this often.
const CLOCK_CHECK: Duration = Duration::from_secs(30);

/// A session after its greeting.
pub(super) struct Active {
    pub(super) session: Session,
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
    pub(super) fn new(session: Session, ticket: Ticket, status: SessionStatus, greeting: &Greeting) -> Self {
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

    pub(super) async fn announce(&mut self, greeting: Greeting) -> Result<(), End> {
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

    pub(super) async fn run(&mut self) -> End {
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
            FromRole::HandOver(told) => Observation::HandOver(wire::hand_over(told).map_err(End::protocol)?),
            FromRole::Facts(facts) => Observation::Facts(wire::facts(facts).map_err(End::protocol)?),
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
            | Observation::HandOver(HandOver { device: object, .. })
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

/// Waits for room in the connection; false when it is gone.
async fn has_room<T>(sender: &mpsc::Sender<T>) -> bool {
    sender.reserve().await.is_ok()
}
