//! What policies come to for one client.

use std::sync::Arc;

use foreshore_crds::v1alpha1::broker_policy::PolicyEffect;
use foreshore_record::{Qos, TopicFilter, TopicName};

use super::Rule;
use crate::auth::Principal;

/// What one client may do.
#[derive(Debug)]
pub(crate) struct Permissions {
    everything: bool,
    connect: Grants<()>,
    publish: Grants<Scope>,
    subscribe: Grants<Scope>,
}

#[derive(Debug)]
struct Grants<T> {
    denied: Vec<(Arc<str>, T)>,
    allowed: Vec<(Arc<str>, T)>,
}

/// Where a rule applies.
#[derive(Debug)]
struct Scope {
    /// `None` for everywhere.
    filters: Option<Vec<TopicFilter>>,
    max_qos: Qos,
    retain: bool,
    /// Whether it is about the writing of a filter, and not about messages.
    literal: bool,
}

/// A refusal, with the rule that refuses; none when no rule allows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denied(pub(crate) Option<Arc<str>>);

impl<T> Default for Grants<T> {
    fn default() -> Self {
        Self {
            denied: Vec::new(),
            allowed: Vec::new(),
        }
    }
}

impl Permissions {
    /// Everything is allowed that no rule denies.
    pub(crate) fn everything() -> Self {
        Self {
            everything: true,
            ..Self::nothing()
        }
    }

    /// Nothing is allowed.
    pub(super) fn nothing() -> Self {
        Self {
            everything: false,
            connect: Grants::default(),
            publish: Grants::default(),
            subscribe: Grants::default(),
        }
    }

    pub(super) fn add(&mut self, rule: &Rule, client_id: &str, principal: &Principal) {
        let scope = || Scope {
            filters: (!rule.topics.is_empty()).then(|| rule.filters(client_id, principal)),
            max_qos: rule.max_qos,
            retain: rule.allow_retain,
            literal: rule.literal_filters,
        };
        if rule.connect {
            self.connect.add(rule, ());
        }
        if rule.publish {
            self.publish.add(rule, scope());
        }
        if rule.subscribe {
            self.subscribe.add(rule, scope());
        }
    }

    /// Whether it may connect.
    pub(crate) fn may_connect(&self) -> Result<(), Denied> {
        self.judge(&self.connect, |()| true, |()| true).map(drop)
    }

    /// Whether it may publish.
    pub(crate) fn may_publish(&self, topic: &TopicName, qos: Qos, retain: bool) -> Result<(), Denied> {
        let within = |scope: &Scope| qos <= scope.max_qos && (scope.retain || !retain);
        let matches = |scope: &Scope| scope.matches(topic);
        self.judge(&self.publish, matches, |scope| within(scope) && matches(scope))
            .map(drop)
    }

    /// Whether it may subscribe, and with which quality of service at most.
    pub(crate) fn may_subscribe(&self, filter: &TopicFilter) -> Result<Qos, Denied> {
        let allowed = self.judge(
            &self.subscribe,
            |scope| scope.any(|known| denies(known, scope.literal, filter)),
            |scope| scope.any(|known| known.covers(filter)),
        )?;
        Ok(allowed
            .map(|scope| scope.max_qos)
            .max()
            .unwrap_or(Qos::ExactlyOnce))
    }

    /// Whether it may get a message that was queued or retained.
    pub(crate) fn may_receive(&self, topic: &TopicName) -> Result<(), Denied> {
        self.judge(
            &self.subscribe,
            |scope| !scope.literal && scope.matches(topic),
            |scope| scope.matches(topic),
        )
        .map(drop)
    }

    /// The scopes that allow something, unless it is denied.
    fn judge<'a, T>(
        &self,
        grants: &'a Grants<T>,
        denies: impl Fn(&T) -> bool,
        allows: impl Fn(&T) -> bool,
    ) -> Result<impl Iterator<Item = &'a T>, Denied> {
        if let Some((rule, _)) = grants.denied.iter().find(|(_, scope)| denies(scope)) {
            return Err(Denied(Some(Arc::clone(rule))));
        }
        let mut allowed = Vec::new();
        if !self.everything {
            allowed = grants
                .allowed
                .iter()
                .map(|(_, scope)| scope)
                .filter(|scope| allows(scope))
                .collect();
            if allowed.is_empty() {
                return Err(Denied(None));
            }
        }
        Ok(allowed.into_iter())
    }
}

impl<T> Grants<T> {
    fn add(&mut self, rule: &Rule, scope: T) {
        let list = match rule.effect {
            PolicyEffect::Allow => &mut self.allowed,
            PolicyEffect::Deny => &mut self.denied,
        };
        list.push((Arc::clone(&rule.name), scope));
    }
}

impl Scope {
    fn any(&self, test: impl Fn(&TopicFilter) -> bool) -> bool {
        self.filters
            .as_ref()
            .is_none_or(|filters| filters.iter().any(test))
    }

    fn matches(&self, topic: &TopicName) -> bool {
        self.any(|filter| filter.matches(topic.as_str()))
    }
}

impl Denied {
    /// What the audit says.
    pub(crate) fn rule(&self) -> &str {
        self.0.as_deref().unwrap_or("no rule allows it")
    }
}

/// Whether a topic of a Deny rule matches a subscription.
pub(super) fn denies(known: &TopicFilter, literal: bool, wanted: &TopicFilter) -> bool {
    if literal {
        known == wanted
    } else {
        overlaps(known, wanted)
    }
}

/// Whether some topic matches both filters.
pub(super) fn overlaps(first: &TopicFilter, second: &TopicFilter) -> bool {
    let hidden = |filter: &TopicFilter, other: &TopicFilter| {
        filter.as_str().starts_with(['+', '#']) && other.as_str().starts_with('$')
    };
    if hidden(first, second) || hidden(second, first) {
        return false;
    }
    let (mut first, mut second) = (first.levels(), second.levels());
    loop {
        match (first.next(), second.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(left), Some(right)) if left == "+" || right == "+" || left == right => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policies;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::new(text).unwrap()
    }

    fn topic(text: &str) -> TopicName {
        TopicName::new(text).unwrap()
    }

    fn policies(rules: serde_json::Value) -> Policies {
        let spec = serde_json::from_value(serde_json::json!({ "rules": rules })).unwrap();
        Policies::compile([("plant", &spec)]).unwrap()
    }

    fn user(name: &str) -> Principal {
        Principal {
            username: Some(name.to_owned()),
            ..Principal::default()
        }
    }

    #[test]
    fn filters_overlap_when_some_topic_matches_both() {
        for (left, right, expected) in [
            ("#", "a/b", true),
            ("a/+", "+/b", true),
            ("a/#", "a", true),
            ("a/+", "a", false),
            ("a/b", "a/c", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/+", true),
            ("a/+/c", "a/#", true),
        ] {
            assert_eq!(
                overlaps(&filter(left), &filter(right)),
                expected,
                "{left} {right}"
            );
            assert_eq!(
                overlaps(&filter(right), &filter(left)),
                expected,
                "{right} {left}"
            );
        }
    }

    #[test]
    fn without_policies_everything_is_allowed() {
        let permissions = Policies::none().permissions("c", &Principal::default());
        assert!(permissions.may_connect().is_ok());
        assert_eq!(permissions.may_subscribe(&filter("#")), Ok(Qos::ExactlyOnce));
    }

    #[test]
    fn deny_wins_and_what_no_rule_allows_is_refused() {
        let policies = policies(serde_json::json!([
            { "name": "all", "effect": "Allow", "actions": ["Connect", "Publish", "Subscribe"] },
            { "name": "secret", "effect": "Deny", "actions": ["Publish", "Subscribe"], "topics": ["secret/#"] },
            { "name": "banned", "effect": "Deny", "actions": ["Connect"], "principals": { "users": ["mallory"] } },
        ]));
        let permissions = policies.permissions("c", &user("alice"));
        assert!(permissions.may_connect().is_ok());
        let denied = permissions
            .may_publish(&topic("secret/a"), Qos::AtMostOnce, false)
            .unwrap_err();
        assert_eq!(denied.rule(), "plant/secret");
        assert!(
            permissions.may_subscribe(&filter("#")).is_err(),
            "it overlaps what is denied"
        );
        assert!(permissions.may_subscribe(&filter("open/#")).is_ok());
        assert!(policies.permissions("c", &user("mallory")).may_connect().is_err());

        let nobody = self::policies(serde_json::json!([
            { "name": "a", "effect": "Allow", "actions": ["Connect"], "principals": { "users": ["*"] } },
        ]));
        assert_eq!(
            nobody.permissions("c", &Principal::default()).may_connect(),
            Err(Denied(None))
        );
        assert!(nobody.permissions("c", &user("x")).may_connect().is_ok());
    }

    #[test]
    fn a_filter_is_denied_literally_and_its_messages_come_by_others() {
        let policies = policies(serde_json::json!([
            { "name": "all", "effect": "Allow", "actions": ["Subscribe"], "topics": ["#"] },
            { "name": "wide", "effect": "Deny", "actions": ["Subscribe"], "topics": ["#", "a/${clientid}"],
              "literalFilters": true },
        ]));
        let permissions = policies.permissions("c", &Principal::default());
        for (wanted, allowed) in [
            ("#", false),
            ("a/c", false),
            ("a/#", true),
            ("+/c", true),
            ("a/d", true),
        ] {
            assert_eq!(
                permissions.may_subscribe(&filter(wanted)).is_ok(),
                allowed,
                "{wanted}"
            );
        }
        assert!(permissions.may_receive(&topic("a/c")).is_ok());
    }

    #[test]
    fn relayed_commands_are_allowed_unless_a_rule_denies_them() {
        let policies = policies(serde_json::json!([
            { "name": "looking", "effect": "Allow", "actions": ["Connect", "Subscribe"], "topics": ["foreshore/data/#"] },
            { "name": "no-stop", "effect": "Deny", "actions": ["Publish"], "topics": ["foreshore/commands/p/line/c/stop"] },
            { "name": "anna-looks", "effect": "Deny", "actions": ["Publish"], "topics": ["foreshore/commands/#"],
              "principals": { "users": ["*/anna"] } },
            { "name": "vendor", "effect": "Deny", "actions": ["Publish"], "topics": ["foreshore/commands/p/#"],
              "principals": { "users": ["vendor/*"] } },
        ]));
        let judge = |actor: Option<&str>, action: &str| {
            let topic = topic(&format!("foreshore/commands/p/line/c/{action}"));
            let judged = policies
                .relayed("relay", actor)
                .may_publish(&topic, Qos::AtLeastOnce, false);
            judged.map_err(|denied| denied.rule().to_owned())
        };
        assert_eq!(judge(Some("cloud/otto"), "start"), Ok(()));
        assert_eq!(judge(None, "start"), Ok(()));
        for actor in [Some("cloud/otto"), None] {
            assert_eq!(judge(actor, "stop"), Err("plant/no-stop".to_owned()));
        }
        assert_eq!(
            judge(Some("cloud/anna"), "start"),
            Err("plant/anna-looks".to_owned())
        );
        assert_eq!(
            judge(Some("vendor/otto"), "start"),
            Err("plant/vendor".to_owned())
        );
        let without = Policies::none().relayed("relay", Some("cloud/otto"));
        assert_eq!(
            without.may_publish(
                &topic("foreshore/commands/p/line/c/stop"),
                Qos::AtLeastOnce,
                false
            ),
            Ok(())
        );
    }

    #[test]
    fn allow_rules_bound_quality_and_retain() {
        let policies = policies(serde_json::json!([
            { "name": "own", "effect": "Allow", "actions": ["Publish", "Subscribe"],
              "topics": ["d/${clientid}/#"], "maxQos": "AtLeastOnce", "allowRetain": false },
        ]));
        let permissions = policies.permissions("c1", &Principal::default());
        assert!(
            permissions
                .may_publish(&topic("d/c1/x"), Qos::AtLeastOnce, false)
                .is_ok()
        );
        assert!(
            permissions
                .may_publish(&topic("d/c1/x"), Qos::ExactlyOnce, false)
                .is_err()
        );
        assert!(
            permissions
                .may_publish(&topic("d/c1/x"), Qos::AtLeastOnce, true)
                .is_err()
        );
        assert!(
            permissions
                .may_publish(&topic("d/c2/x"), Qos::AtMostOnce, false)
                .is_err()
        );
        assert_eq!(permissions.may_subscribe(&filter("d/c1/+")), Ok(Qos::AtLeastOnce));
        assert!(
            permissions.may_subscribe(&filter("d/+/x")).is_err(),
            "it asks for more than is allowed"
        );
        assert!(permissions.may_receive(&topic("d/c1/x")).is_ok());
        let injected = policies.permissions("+", &Principal::default());
        assert!(injected.may_subscribe(&filter("d/+/x")).is_err());
        assert!(
            injected
                .may_publish(&topic("d/x/y"), Qos::AtMostOnce, false)
                .is_err()
        );
    }

    #[test]
    fn every_list_of_principals_must_match() {
        let policies = policies(serde_json::json!([
            { "name": "g", "effect": "Allow", "actions": ["Connect"],
              "principals": { "groups": ["ops"], "certificate": { "O": "plant-*" } } },
        ]));
        let mut principal = user("a");
        principal.groups = vec!["ops".to_owned()];
        assert!(policies.permissions("c", &principal).may_connect().is_err());
        principal.certificate = [("O".to_owned(), vec!["plant-7".to_owned()])].into();
        assert!(policies.permissions("c", &principal).may_connect().is_ok());
    }
}
