//! Taking up a session and what was observed in it, after the first connection and after every interruption.
//!
//! The library's own way back after a cut loses data, and in 0.19 it never asks for data again: its publish loop
//! starts anew believing that there is no subscription, and misses the trigger that came before
//! (`SubscriptionEventLoopState::new`). So it is told to leave subscriptions alone, and [`Shared::resume`] does what
//! OPC 10000-4, 6.7 asks for: keep the subscriptions of a session that was taken up again, transfer them to a new one,
//! fetch again what was sent meanwhile, and create anew only what the server no longer has, telling the gap.

use std::{sync::Arc, time::Duration};

use foreshore_connector_sdk::{LinkError, LinkErrorClass, MemberHealth};
use opcua::{
    client::{Session, custom_types::DataTypeTreeBuilder},
    types::{
        ReadValueId, StatusCode, TimestampsToReturn, TypeLoaderCollection, VariableId, Variant,
        custom::DynamicTypeLoader,
    },
};
use tracing::{debug, info, warn};

use crate::{
    connect::classify,
    inbox::{Inbound, Track, following, is_empty},
    limits::Limits,
    observed::{Observed, request_failed},
    shared::{Shared, ago},
};

/// Most messages that are fetched again for one subscription after an interruption.
const MAX_REPUBLISH: u32 = 10_000;

/// Longest time for reading a server's data types.
const TYPES_TIMEOUT: Duration = Duration::from_secs(30);

/// What is to be taken up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// The server still knew the session, or only subscriptions are to be looked after.
    SameSession,
    /// There is a new session.
    NewSession,
    /// The server has these subscriptions, and does not serve them.
    Silent(Vec<u32>),
}

impl Shared {
    /// Takes up what an interruption left: see the module.
    pub(crate) async fn resume(self: Arc<Self>, what: Resume) -> Result<(), LinkError> {
        let mut observed = self.observed.lock().await;
        let ids: Vec<u32> = observed
            .subscriptions
            .iter()
            .map(|subscription| subscription.id)
            .collect();
        let (mut lost, cause) = match what {
            Resume::SameSession => (Vec::new(), "the server no longer had the subscription"),
            Resume::NewSession => {
                self.enter_session(&mut observed).await?;
                let lost = self.transfer(&ids).await?;
                (lost, "the server no longer had the session")
            }
            Resume::Silent(silent) => (silent, "the server did not serve the subscription"),
        };
        let kept: Vec<u32> = ids.into_iter().filter(|id| !lost.contains(id)).collect();
        lost.extend(self.unknown(&kept).await?);
        for subscription in &observed.subscriptions {
            if !lost.contains(&subscription.id) {
                let track = &subscription.track;
                self.fetch(track, track.next(), None).await?;
            }
        }
        self.create_anew(&mut observed, &lost, cause).await;
        observed.reconcile(&self.tools()).await?;
        for MemberHealth { member, health } in observed.health() {
            self.out.health(&member, health);
        }
        observed
            .subscriptions
            .iter()
            .for_each(|subscription| subscription.track.listen_anew());
        if !observed.subscriptions.is_empty() {
            // The library's publish loop does not know that there is something to ask for.
            self.session.trigger_publish_now();
        }
        self.taken_up.send_modify(|times| *times += 1);
        Ok(())
    }

    /// Learns what a new session must know: namespaces, limits, structures.
    async fn enter_session(&self, observed: &mut Observed) -> Result<(), LinkError> {
        let map = self
            .session
            .read_namespace_array()
            .await
            .map_err(request_failed)?;
        self.session.set_namespaces(map);
        observed.namespaces = read_namespaces(&self.session).await?;
        let limits = self.settings.limits.clone().unwrap_or_default();
        observed.limits = Limits::of(&limits).ask(&self.session).await;
        let builder = DataTypeTreeBuilder::new(|_: &opcua::types::NodeId| true);
        match tokio::time::timeout(TYPES_TIMEOUT, builder.build(&self.session)).await {
            Ok(Ok(tree)) => {
                let tree = Arc::new(tree);
                // What an earlier session knew is in the way: the server may number its namespaces otherwise now.
                let mut loaders = TypeLoaderCollection::new();
                loaders.add(Arc::new(DynamicTypeLoader::new(Arc::clone(&tree))));
                *self.session.encoding_context().write().loaders_mut() = loaders;
                *self.types.write() = Some(tree);
            }
            Ok(Err(error)) => {
                warn!(%error, "data types of the server are not known, structures will be null");
            }
            Err(_) => warn!("the server did not tell its data types in time, structures will be null"),
        }
        Ok(())
    }

    /// Moves subscriptions to the new session; returns those that the server refused.
    async fn transfer(&self, ids: &[u32]) -> Result<Vec<u32>, LinkError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        match self.session.transfer_subscriptions(ids, false).await {
            Ok(results) => {
                // Nothing to do: the session has it.
                let moved = |status: StatusCode| status.is_good() || status == StatusCode::BadNothingToDo;
                let refused = ids
                    .iter()
                    .zip(results)
                    .filter(|(_, result)| !moved(result.status_code));
                Ok(refused.map(|(id, _)| *id).collect())
            }
            Err(error) if is_answer(error.status()) => {
                debug!(%error, "the server does not transfer subscriptions");
                Ok(ids.to_vec())
            }
            Err(error) => Err(request_failed(error)),
        }
    }

    /// Those of the subscriptions that the server does not have in this session.
    ///
    /// Republish tells it as well, but not on every server: that of asyncua answers it for any number with an empty
    /// message.
    async fn unknown(&self, ids: &[u32]) -> Result<Vec<u32>, LinkError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        match self.session.set_publishing_mode(ids, true).await {
            Ok(results) => {
                let unknown = ids.iter().zip(results).filter(|(_, status)| status.is_bad());
                Ok(unknown.map(|(id, _)| *id).collect())
            }
            Err(error) => match error.status() {
                StatusCode::BadSubscriptionIdInvalid | StatusCode::BadNoSubscription => Ok(ids.to_vec()),
                status if is_answer(status) => Ok(Vec::new()),
                _ => Err(request_failed(error)),
            },
        }
    }

    /// Fetches messages again from a number on: those before `end`, or without one as many as the server has.
    pub(crate) async fn fetch(
        &self,
        track: &Arc<Track>,
        mut number: u32,
        end: Option<u32>,
    ) -> Result<(), LinkError> {
        let subscription = track.subscription();
        for _ in 0..MAX_REPUBLISH {
            if end == Some(number) {
                break;
            }
            match self.session.republish(subscription, number).await {
                Ok(message) if !is_empty(&message) && message.sequence_number == number => {
                    debug!(subscription, number, "fetched a message again");
                    self.inbox.insert(track, message);
                }
                Err(error) if !is_answer(error.status()) => {
                    return Err(
                        classify(error.status(), "messages could not be fetched again").with_evidence(&error)
                    );
                }
                // The server does not have it; some say so with an empty message.
                _ if end.is_none() => return Ok(()),
                _ => {}
            }
            number = following(number);
        }
        if let Some(end) = end {
            track.give_up(end);
        }
        Ok(())
    }

    /// Forgets subscriptions that are lost, so that they are created anew, and tells the gap.
    async fn create_anew(&self, observed: &mut Observed, lost: &[u32], cause: &str) {
        if lost.is_empty() {
            return;
        }
        info!(subscriptions = lost.len(), cause, "creating subscriptions anew");
        // Also removes them from the library's books, whatever the server answers.
        if let Err(error) = self.session.delete_subscriptions(lost).await {
            debug!(%error, "subscriptions that are lost could not be deleted");
        }
        let tracks = observed.subscriptions.iter();
        let heard = tracks
            .filter(|subscription| lost.contains(&subscription.id))
            .map(|subscription| subscription.track.heard().elapsed())
            .max();
        observed.forget(lost, &self.handles);
        let since = ago(heard.unwrap_or_default());
        let cause = cause.to_owned();
        self.inbox.push(Inbound::Gap { since, cause });
    }

    /// Tries again what the server did not know.
    pub(crate) async fn retry(self: Arc<Self>) -> Result<(), LinkError> {
        let mut observed = self.observed.lock().await;
        if observed.has_failures() {
            observed.reconcile(&self.tools()).await?;
            for MemberHealth { member, health } in observed.health() {
                self.out.health(&member, health);
            }
        }
        Ok(())
    }
}

/// Whether a status is the server's answer, in contrast to a connection that is lost or silent.
fn is_answer(status: StatusCode) -> bool {
    use StatusCode as Status;
    !matches!(
        status,
        Status::BadTimeout
            | Status::BadConnectionClosed
            | Status::BadNotConnected
            | Status::BadCommunicationError
            | Status::BadSecureChannelClosed
            | Status::BadSecureChannelIdInvalid
            | Status::BadSessionClosed
            | Status::BadSessionIdInvalid
            | Status::BadSessionNotActivated
            | Status::BadServerHalted
            | Status::BadShutdown
    )
}

async fn read_namespaces(session: &Session) -> Result<Vec<String>, LinkError> {
    let node = ReadValueId::from(opcua::types::NodeId::from(VariableId::Server_NamespaceArray));
    let answer = session
        .read(&[node], TimestampsToReturn::Neither, 0.0)
        .await
        .map_err(request_failed)?;
    let value = answer.into_iter().next().and_then(|answer| answer.value);
    let Some(Variant::Array(array)) = value else {
        return Err(LinkError::new(
            LinkErrorClass::Protocol,
            "the server has no NamespaceArray",
        ));
    };
    Ok(array.values.iter().map(ToString::to_string).collect())
}
