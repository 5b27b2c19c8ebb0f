//! What the store knows when the broker starts: sessions, subscriptions, wills, retained messages, sources, and the keys
//! of the state store.
//!
//! Nothing here looks at queued messages: their number does not matter for how long a start takes.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use foreshore_record::{DropReason, Qos, TopicFilter};
use foreshore_store::{BrokerTime, Inflight, Operation, StoreError, committer::TrySubmitError};

use super::{
    Session, Subscription,
    registry::Client,
    rows::{self, Row, SessionRow},
    state::{SessionState, Subscribed},
};
use crate::{
    engine::{Engine, router::Change, timers::Due},
    message::Message,
    shared, will,
};

/// Rows that are read at once.
const PAGE: usize = 1024;

/// A session as its rows tell it.
#[derive(Default)]
struct Stored {
    row: Option<SessionRow>,
    subscriptions: Vec<(String, Subscription)>,
    watches: Vec<Bytes>,
}

impl Engine {
    /// Takes over what the store knows. Waits for the disk.
    ///
    /// # Errors
    /// When the disk or the engine fails.
    pub(crate) fn load(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut operations = Vec::new();
        self.load_retained()?;
        self.load_sources()?;
        self.load_state()?;
        self.load_sessions(&mut operations)?;
        self.load_wills()?;
        self.drop_orphans(&mut operations)?;
        operations.extend(self.topic_limits_to_set()?);
        while !operations.is_empty() {
            let rest = operations.split_off(operations.len().min(PAGE));
            // Nobody else submits yet, so that there is room.
            let submitted = self
                .committer
                .try_submit(operations)
                .map_err(|error| match error {
                    TrySubmitError::Full(_) => StoreError::Closed,
                    TrySubmitError::Failed(error) => error,
                })?;
            submitted.completion.wait()?;
            operations = rest;
        }
        Ok(())
    }

    fn load_retained(&self) -> Result<(), StoreError> {
        let mut after: Option<String> = None;
        loop {
            let page = self.store()?.retained(after.as_deref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.record.topic.to_string());
            for retained in page {
                let message = Arc::new(Message::from_record(&retained.record, retained.expires_at));
                self.retained.put(retained.id, &message.without_number());
            }
        }
    }

    fn load_sources(&self) -> Result<(), StoreError> {
        let mut after: Option<String> = None;
        loop {
            let page = self.store()?.sources(after.as_deref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.source.clone());
            self.sources.load(page);
        }
    }

    fn load_sessions(self: &Arc<Self>, operations: &mut Vec<Operation>) -> Result<(), StoreError> {
        let mut stored: HashMap<String, Stored> = HashMap::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store()?.sessions(after.as_deref(), PAGE)?;
            let Some(last) = page.last() else { break };
            after = Some(last.client_id.clone());
            for blob in &page {
                match rows::read(blob) {
                    Row::Session(client, row) => stored.entry(client).or_default().row = Some(row),
                    Row::Subscription(client, filter, subscription) => {
                        stored
                            .entry(client)
                            .or_default()
                            .subscriptions
                            .push((filter, subscription));
                    }
                    Row::Watch(client, key) => stored.entry(client).or_default().watches.push(key),
                    Row::Path(name, topics) => self.load_path(&name, topics)?,
                    Row::Damaged(client, cause) => {
                        tracing::error!(client, cause, "part of a session is damaged and left out");
                    }
                }
            }
        }
        let now = self.now();
        let mut changes = Vec::new();
        for (client_id, session) in stored {
            self.load_session(&client_id, session, now, &mut changes, operations)?;
        }
        self.router.update(changes);
        Ok(())
    }

    fn load_session(
        self: &Arc<Self>,
        client_id: &str,
        stored: Stored,
        now: BrokerTime,
        changes: &mut Vec<Change>,
        operations: &mut Vec<Operation>,
    ) -> Result<(), StoreError> {
        let receiver = self.store()?.find_receiver(&rows::path_name(client_id))?;
        let (Some(row), Some(receiver)) = (stored.row, receiver) else {
            operations.push(rows::delete(client_id));
            let filters = stored.subscriptions.iter();
            operations.extend(filters.map(|(filter, _)| rows::delete_subscription(client_id, filter)));
            let watches = stored.watches.iter();
            operations.extend(watches.map(|key| rows::delete_watch(client_id, key)));
            return Ok(());
        };
        let client = self.sessions.client(client_id);
        let total = Arc::clone(&self.congestion);
        let session = Arc::new(Session::new(
            self.new_uid(),
            Arc::clone(&client.id),
            Some(receiver),
            total,
        ));
        let mut state = SessionState::new(Arc::clone(&session), row.expiry);
        state.restored = false;
        for (text, subscription) in stored.subscriptions {
            self.load_subscription(&mut state, &text, subscription, changes)?;
        }
        for key in stored.watches {
            self.state_store.restore_watch(&key, &session);
            state.watches.insert(key);
        }
        self.hold_for_groups(&state)?;
        let ends_at = row.ends_at(now);
        if row.disconnected_at.is_none() {
            // Its connection died with the last process: its time counts from now.
            operations.push(
                SessionRow {
                    disconnected_at: Some(now.0),
                    ..row
                }
                .put(client_id),
            );
        }
        self.park(&client, state, ends_at);
        Ok(())
    }

    fn load_subscription(
        self: &Arc<Self>,
        state: &mut SessionState,
        text: &str,
        subscription: Subscription,
        changes: &mut Vec<Change>,
    ) -> Result<(), StoreError> {
        let session = Arc::clone(&state.session);
        let group = match TopicFilter::parse_shared(text) {
            Ok(Some((name, filter))) => {
                let (group, consequences) =
                    self.groups
                        .join(self, &name, &filter, &session, subscription.clone());
                let queue = self
                    .store()?
                    .find_receiver(&shared::path_name(&name, filter.as_str()))?;
                if let Some(receiver) = queue {
                    group.restore(receiver);
                }
                changes.extend(consequences.changes);
                Some(group)
            }
            Ok(None) if TopicFilter::new(text).is_ok() => {
                changes.push(Change::Subscribe(text.into(), session, subscription.clone()));
                None
            }
            _ => {
                tracing::error!(filter = text, client = %session.client_id, "a stored filter is not valid");
                return Ok(());
            }
        };
        let subscribed = self.subscriptions.count(subscription, group);
        if state.subscriptions.insert(text.into(), subscribed).is_none() {
            state.filter_bytes += text.len();
        }
        Ok(())
    }

    /// What a session has in flight from groups is not handed to other members.
    fn hold_for_groups(&self, state: &SessionState) -> Result<(), StoreError> {
        let shares = |subscribed: &Subscribed| {
            subscribed.group.is_some() && subscribed.subscription.options.qos == Qos::ExactlyOnce
        };
        let Some(own) = state
            .session
            .receiver
            .filter(|_| state.subscriptions.values().any(shares))
        else {
            return Ok(());
        };
        for (_, inflight) in self.store()?.inflight(own)? {
            let Inflight::Sent { receiver, id } = inflight else {
                continue;
            };
            let groups = state
                .subscriptions
                .values()
                .filter_map(|known| known.group.as_ref());
            for group in groups.filter(|group| group.receiver() == Some(receiver)) {
                group.hold(id);
            }
        }
        Ok(())
    }

    fn park(&self, client: &Arc<Client>, state: SessionState, ends_at: Option<BrokerTime>) {
        let mut known = client.known();
        known.session = Some(Arc::clone(&state.session));
        known.state = Some(Box::new(state));
        known.ends_at = ends_at;
        drop(known);
        if let Some(at) = ends_at {
            self.timers.add(at, Due::Session(Arc::clone(&client.id)));
        }
    }

    fn load_wills(&self) -> Result<(), StoreError> {
        let now = self.now();
        let mut after: Option<String> = None;
        loop {
            let page = self.store()?.wills(after.as_deref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.client_id.clone());
            for blob in page {
                let (will, due) = match will::read(&blob) {
                    Ok(read) => read,
                    Err(error) => {
                        tracing::error!(client = blob.client_id, %error, "a will is damaged and left out");
                        continue;
                    }
                };
                // Without a time its client was connected when the last process died.
                let delay = std::time::Duration::from_secs(will.delay.into());
                let due = due.unwrap_or_else(|| now.after(delay));
                let client = self.sessions.client(&blob.client_id);
                client.known().will = Some((due, will));
                self.timers.add(due, Due::Will(Arc::clone(&client.id)));
            }
        }
    }

    fn load_path(&self, name: &str, topics: Vec<TopicFilter>) -> Result<(), StoreError> {
        if let Some(receiver) = self.store()?.find_receiver(name)? {
            self.restore_path(name, receiver, topics);
        }
        Ok(())
    }

    /// Ends queues that no session and no group has: a crash came between the queue and what it was made for.
    fn drop_orphans(&self, operations: &mut Vec<Operation>) -> Result<(), StoreError> {
        let mut known: Vec<String> = self.groups.all().iter().map(|group| group.path_name()).collect();
        known.sort_unstable();
        let mut after = 0;
        loop {
            let page = self.store()?.receivers(after, PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id;
            for receiver in page {
                let (orphan, reason) = match receiver.name.split_once('/') {
                    Some(("session", client)) => (!self.sessions.is_known(client), DropReason::SESSION_ENDED),
                    Some(("shared", _)) => (
                        known.binary_search(&receiver.name).is_err(),
                        DropReason::SESSION_ENDED,
                    ),
                    _ => (self.paths.get(&receiver.name).is_none(), DropReason::RELEASED),
                };
                if orphan {
                    operations.push(Operation::DropReceiver {
                        receiver: receiver.id,
                        reason,
                    });
                }
            }
        }
    }
}
