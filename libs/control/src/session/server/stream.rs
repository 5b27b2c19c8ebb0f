//! One session: its greeting, and its last word.

mod active;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use foreshore_runtime::Shutdown;
use foreshore_tls::RoleIdentity;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use self::active::Active;
use super::{Observation, Observed, ResourceVersion, Shared, registry::SessionStatus};
use crate::{
    proto::{self, GoodbyeReason, from_role::Message as FromRole, to_role::Message as ToRole},
    session::{OLDEST_PROTOCOL, PROTOCOL, negotiate, wire},
    transport::Peer,
};

/// Most capabilities of a role, and their longest name in bytes.
const MOST_CAPABILITIES: usize = 1024;
const LONGEST_CAPABILITY: usize = 128;

/// Longest name of a program, in bytes.
const LONGEST_SOFTWARE: usize = 256;

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

/// The next message; `None` within is one of a newer version, to be ignored.
async fn receive(inbound: &mut Streaming<proto::FromRole>) -> Result<Option<FromRole>, End> {
    match inbound.message().await {
        Ok(Some(message)) => Ok(message.message),
        Ok(None) => Err(End::Broken("the role closed the connection".to_owned())),
        Err(status) => Err(End::Broken(format!("connection lost: {}", status.message()))),
    }
}

fn message_to(message: ToRole) -> proto::ToRole {
    proto::ToRole {
        message: Some(message),
    }
}
