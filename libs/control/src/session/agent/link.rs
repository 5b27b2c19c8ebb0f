//! The session with the operator: found, lost and found again.

mod session;

use std::{sync::Arc, time::Duration};

use foreshore_runtime::{Backoff, Shutdown};
use foreshore_tls::{Identity, Refusal, Role, ServerName};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};
use tracing::{info, warn};

use self::session::Session;
use super::{
    AgentOptions, AgentStatus, Error, InForce, LinkState, apply::Incoming, credentials::RoleCredentials,
    outbox::Outbox,
};
use crate::{
    proto::{
        self, GoodbyeReason, control_client::ControlClient, from_role::Message as FromRole,
        to_role::Message as ToRole,
    },
    session::{HELD_PIECE, LARGEST_MESSAGE, OLDEST_PROTOCOL, PROTOCOL, wire::ResourceVersion},
    transport::{self, ConnectOptions, Keepalive, channel},
};

/// Messages that wait for the connection.
const OUTBOUND: usize = 16;

/// How long the operator may take to answer a greeting: it may be waiting for the end of an earlier session.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(45);

/// Most time that an operator takes for a connection: one that hangs must not keep a role from the one that leads.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Less than the life of a leader's lease: when another one leads, roles look for it already.
const KEEPALIVE: Keepalive = Keepalive {
    interval: Duration::from_secs(3),
    timeout: Duration::from_secs(5),
};

/// A session that lived so long was a good one: the next try follows soon.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// How long a larger epoch is believed over a smaller one after its leader was last heard. A deposed leader is
/// noticed long before; an operator that was set up anew, with epochs from the start, gets its roles back then.
const EPOCH_PATIENCE: Duration = Duration::from_secs(5 * 60);

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
    /// Where the last session was: when it is lost, others are tried first.
    pub(super) last: Option<String>,
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

    /// Tries every address once. Whether a good session was had, or `None` at the end.
    async fn round(&mut self, shutdown: &Shutdown) -> Option<bool> {
        let mut targets = shutdown.or_begun(self.targets()).await?;
        targets.sort_by_key(|target| Some(&target.address) == self.last.as_ref());
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
        if changed && matches!(error, Error::Goodbye { .. }) {
            info!(
                address = target.address,
                reason = error.code(),
                "the operator ended the session"
            );
        } else if changed {
            warn!(address = target.address, reason = error.code(), %error, "no session with the operator");
        }
        let by_peer = Refusal::find(error).is_some_and(|refusal| matches!(refusal, Refusal::ByPeer { .. }));
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
        let options = ConnectOptions {
            timeout: CONNECT_TIMEOUT,
            expected_role: Some(Role::Operator),
            keepalive: KEEPALIVE,
        };
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
        self.last = Some(target.address.clone());
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

fn session_error(status: &tonic::Status) -> Error {
    match Refusal::find(status) {
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

fn message_from(message: FromRole) -> proto::FromRole {
    proto::FromRole {
        message: Some(message),
    }
}
