//! SUBSCRIBE and UNSUBSCRIBE (MQTT 5.0 sections 3.8 and 3.10).

use std::{num::NonZeroU32, sync::Arc};

use foreshore_record::{Qos, TopicFilter};

use super::{
    Connection,
    acks::{AckItem, What},
    ending::Ending,
};
use crate::{
    audit::Action,
    engine::router::Change,
    session::{Subscription, rows, state::Subscribed},
    wire::{
        ReasonCode,
        packet::{RetainHandling, Subscribe, SubscribeOptions, Unsubscribe},
    },
};

impl Connection {
    /// Subscribes.
    pub(super) fn on_subscribe(&mut self, subscribe: Subscribe) -> Result<(), Box<Ending>> {
        let mut reasons = Vec::with_capacity(subscribe.filters.len());
        for (filter, options) in &subscribe.filters {
            reasons.push(match self.subscribe(filter, *options, subscribe.identifier)? {
                Ok(granted) => granted_code(granted),
                Err(reason) => reason,
            });
        }
        // The last operation of the batch is as durable as all of them.
        let operation = self.receiving.burst.operations.len().checked_sub(1);
        let what = What::Subscribed(subscribe.packet_id, reasons);
        self.receiving.burst.items.push(AckItem { operation, what });
        Ok(())
    }

    /// Adds one subscription: the granted quality of service or why not. The outer error ends the connection.
    fn subscribe(
        &mut self,
        text: &str,
        options: SubscribeOptions,
        identifier: Option<NonZeroU32>,
    ) -> Result<Result<Qos, ReasonCode>, Box<Ending>> {
        let Ok(shared) = TopicFilter::parse_shared(text) else {
            return Ok(Err(ReasonCode::TopicFilterInvalid));
        };
        if shared.is_some() && options.no_local {
            // [MQTT-3.8.3-4]
            let detail = "no local is set on a shared subscription";
            return Err(Ending::refused(ReasonCode::ProtocolError, detail).into());
        }
        let (group, filter) = match shared {
            Some((group, filter)) => (Some(group), filter),
            None => match TopicFilter::new(text) {
                Ok(filter) => (None, filter),
                Err(_) => return Ok(Err(ReasonCode::TopicFilterInvalid)),
            },
        };
        Ok(self.judge_subscription(text, &filter).map(|allowed| {
            let options = SubscribeOptions {
                qos: options.qos.min(allowed),
                ..options
            };
            let subscription = Subscription { options, identifier };
            let is_new = self.add_subscription(text, group.as_deref(), &filter, subscription.clone());
            let wants_retained = match options.retain_handling {
                RetainHandling::AtSubscribe => true,
                RetainHandling::IfNew => is_new,
                RetainHandling::Never => false,
            };
            if wants_retained && group.is_none() {
                self.replay_retained(filter, subscription);
            }
            options.qos
        }))
    }

    fn judge_subscription(&self, text: &str, filter: &TopicFilter) -> Result<Qos, ReasonCode> {
        let limits = self.engine.limits.load();
        if filter.levels().count() > limits.max_topic_levels || text.len() > rows::MAX_FILTER {
            return Err(ReasonCode::TopicFilterInvalid);
        }
        let allowed = self.client.permissions.may_subscribe(filter).map_err(|denied| {
            tracing::info!(
                client = %self.client.id,
                user = self.client.principal.username,
                filter = text,
                rule = denied.rule(),
                "subscription refused"
            );
            self.audit_denied(Action::Subscribe, text, denied.rule(), None);
            self.policy_refusal()
        })?;
        // Subscriptions that wait for what is retained count as well, also those that are asked for again and again.
        if self.sending.replays.len() >= limits.max_subscriptions {
            return Err(ReasonCode::QuotaExceeded);
        }
        if self.state.subscriptions.contains_key(text) {
            return Ok(allowed);
        }
        let durable = self.session.receiver.is_some();
        let total = limits
            .max_total_subscriptions
            .filter(|_| !self.client.principal.is_ours());
        if self.state.subscriptions.len() >= limits.max_subscriptions
            || total.is_some_and(|max| self.engine.subscriptions.get() >= max)
            || durable
                && self.engine.router.durable_receivers(filter.as_str()) >= limits.max_durable_receivers
        {
            return Err(ReasonCode::QuotaExceeded);
        }
        Ok(allowed)
    }

    /// Adds a subscription, or changes its options; tells whether it is new.
    fn add_subscription(
        &mut self,
        text: &str,
        group: Option<&str>,
        filter: &TopicFilter,
        subscription: Subscription,
    ) -> bool {
        if self.session.receiver.is_some() {
            let row = rows::put_subscription(&self.client.id, text, &subscription);
            self.receiving.burst.operation(row);
        }
        let joined = group.map(|name| {
            let session = Arc::clone(&self.session);
            self.engine
                .groups
                .join(&self.engine, name, filter, &session, subscription.clone())
        });
        let group = match joined {
            Some((group, consequences)) => {
                for operation in consequences.operations {
                    let operation = Some(self.receiving.burst.operation(operation));
                    let what = What::GroupQueue(Arc::clone(&group));
                    self.receiving.burst.items.push(AckItem { operation, what });
                }
                self.engine.router.update(consequences.changes);
                Some(group)
            }
            None => {
                let filter = filter.as_str().into();
                let session = Arc::clone(&self.session);
                self.engine
                    .router
                    .update(vec![Change::Subscribe(filter, session, subscription.clone())]);
                None
            }
        };
        let member_of = group.clone();
        let known = self
            .state
            .subscriptions
            .insert(text.into(), self.engine.subscriptions.count(subscription, group));
        if let Some(group) = member_of {
            self.serve_group(&group);
        }
        if known.is_none() {
            self.state.filter_bytes += text.len();
        }
        known.is_none()
    }

    /// Unsubscribes.
    pub(super) fn on_unsubscribe(&mut self, unsubscribe: Unsubscribe) -> Result<(), Box<Ending>> {
        let mut reasons = Vec::with_capacity(unsubscribe.filters.len());
        for filter in &unsubscribe.filters {
            let known = self.state.subscriptions.remove(filter.as_str());
            if known.is_some() {
                self.state.filter_bytes -= filter.len();
            }
            reasons.push(match known {
                Some(subscribed) => {
                    for operation in self.engine.unsubscribe(&self.session, filter, &subscribed) {
                        self.receiving.burst.operation(operation);
                    }
                    ReasonCode::Success
                }
                None => ReasonCode::NoSubscriptionExisted,
            });
        }
        let operation = self.receiving.burst.operations.len().checked_sub(1);
        let what = What::Unsubscribed(unsubscribe.packet_id, reasons);
        self.receiving.burst.items.push(AckItem { operation, what });
        Ok(())
    }

    /// Subscriptions that the client may not have any more.
    pub(super) fn forbidden_subscriptions(&self) -> Vec<Arc<str>> {
        let forbidden = |text: &str| {
            let filter = match TopicFilter::parse_shared(text) {
                Ok(Some((_, filter))) => Ok(filter),
                _ => TopicFilter::new(text),
            };
            filter.is_ok_and(|filter| self.client.permissions.may_subscribe(&filter).is_err())
        };
        self.state
            .subscriptions
            .keys()
            .filter(|text| forbidden(text))
            .cloned()
            .collect()
    }

    /// Removes subscriptions without the client having asked for it.
    pub(super) fn remove_subscriptions(&mut self, filters: &[Arc<str>]) {
        let mut operations = Vec::new();
        for filter in filters {
            if let Some(subscribed) = self.state.subscriptions.remove(filter) {
                self.state.filter_bytes -= filter.len();
                operations.extend(self.engine.unsubscribe(&self.session, filter, &subscribed));
            }
        }
        for operation in operations {
            self.sending.operation(operation);
        }
    }
}

impl crate::engine::Engine {
    /// Takes a subscription out of the table and tells what is to be stored.
    pub(crate) fn unsubscribe(
        &self,
        session: &Arc<crate::session::Session>,
        filter: &str,
        subscribed: &Subscribed,
    ) -> Vec<foreshore_store::Operation> {
        let mut operations = Vec::new();
        match &subscribed.group {
            Some(group) => {
                let consequences = self.groups.leave(group, session.uid);
                self.router.update(consequences.changes);
                operations = consequences.operations;
            }
            None => self
                .router
                .update(vec![Change::Unsubscribe(filter.into(), session.uid)]),
        }
        if session.receiver.is_some() {
            operations.push(rows::delete_subscription(&session.client_id, filter));
        }
        operations
    }
}

fn granted_code(granted: Qos) -> ReasonCode {
    match granted {
        Qos::AtMostOnce => ReasonCode::Success,
        Qos::AtLeastOnce => ReasonCode::GrantedQos1,
        Qos::ExactlyOnce => ReasonCode::GrantedQos2,
    }
}
