//! Who may connect, publish and subscribe where: BrokerPolicies in the form in which they are judged.
//!
//! Everything here is pure. All policies of a broker count together and their order does not matter: what a Deny rule
//! matches is refused; what is left and an Allow rule matches is allowed; everything else is refused. Where there is no
//! policy at all, whoever was authenticated may do everything.
//!
//! Our own roles may do everything but one: a command that one of them publishes for somebody else, such as one that came
//! through a cloud endpoint, is refused where a Deny rule matches (docs/adr/0005-relayed-commands.md).
//!
//! [`Policies`] are compiled once; [`Permissions`] are what they come to for one client, with its names filled in.

pub mod explain;
mod pattern;
mod permissions;

use std::{collections::BTreeMap, sync::Arc};

use foreshore_crds::v1alpha1::broker_policy::{BrokerPolicySpec, PolicyAction, PolicyEffect, PolicyRule};
use foreshore_record::{Qos, TopicFilter};

use self::pattern::{InvalidPattern, Names, Template};
use self::permissions::denies;
pub(crate) use self::permissions::{Denied, Permissions};
use crate::auth::Principal;

/// Compiled policies.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    /// `None` where there is no policy at all.
    rules: Option<Vec<Rule>>,
}

/// A compiled rule.
#[derive(Debug)]
struct Rule {
    /// Policy and rule, for the audit.
    name: Arc<str>,
    effect: PolicyEffect,
    clients: Vec<Template>,
    users: Vec<Template>,
    groups: Vec<Template>,
    certificate: Vec<(String, Template)>,
    attributes: Vec<(String, Template)>,
    connect: bool,
    publish: bool,
    subscribe: bool,
    /// Empty for everywhere.
    topics: Vec<Template>,
    max_qos: Qos,
    allow_retain: bool,
    /// Whether it denies only filters that are written like its topics.
    literal_filters: bool,
}

/// A policy that can't be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule {rule:?} of policy {policy:?}: {cause}")]
pub struct InvalidPolicy {
    /// Name of the policy.
    pub policy: String,
    /// Name of the rule.
    pub rule: String,
    /// What is wrong, and what is allowed.
    pub cause: String,
}

impl Policies {
    /// No policy: everything is allowed.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// Compiles policies, given by name.
    ///
    /// # Errors
    /// When a pattern names an unknown fact, or a topic is no topic filter.
    pub(crate) fn compile<'a>(
        policies: impl IntoIterator<Item = (&'a str, &'a BrokerPolicySpec)>,
    ) -> Result<Self, InvalidPolicy> {
        let mut rules = None;
        for (policy, spec) in policies {
            let rules = rules.get_or_insert_with(Vec::new);
            for rule in &spec.rules {
                rules.push(Rule::compile(policy, rule).map_err(|cause| InvalidPolicy {
                    policy: policy.to_owned(),
                    rule: rule.name.to_string(),
                    cause: cause.to_string(),
                })?);
            }
        }
        Ok(Self { rules })
    }

    /// What a client may do.
    pub(crate) fn permissions(&self, client_id: &str, principal: &Principal) -> Permissions {
        if principal.is_ours() {
            return Permissions::everything();
        }
        let Some(rules) = &self.rules else {
            return Permissions::everything();
        };
        let mut permissions = Permissions::nothing();
        for rule in rules.iter().filter(|rule| rule.applies_to(client_id, principal)) {
            permissions.add(rule, client_id, principal);
        }
        permissions
    }

    /// What a role of ours may publish of commands that somebody else asked it for: what no rule denies. The client is
    /// the role's, the user is who asked.
    pub(crate) fn relayed(&self, client_id: &str, actor: Option<&str>) -> Permissions {
        let principal = Principal {
            username: actor.map(str::to_owned),
            ..Principal::default()
        };
        let mut permissions = Permissions::everything();
        let denying = self
            .rules
            .iter()
            .flatten()
            .filter(|rule| rule.effect == PolicyEffect::Deny);
        for rule in denying.filter(|rule| rule.applies_to(client_id, &principal)) {
            permissions.add(rule, client_id, &principal);
        }
        permissions
    }
}

impl Rule {
    fn compile(policy: &str, rule: &PolicyRule) -> Result<Self, InvalidPattern> {
        let principals = rule.principals.clone().unwrap_or_default();
        let names = |patterns: &[foreshore_crds::types::NamePattern]| {
            patterns
                .iter()
                .map(|pattern| Template::parse(pattern, true))
                .collect::<Result<Vec<_>, _>>()
        };
        let facts = |patterns: &BTreeMap<String, foreshore_crds::types::NamePattern>| {
            patterns
                .iter()
                .map(|(fact, pattern)| Ok((fact.clone(), Template::parse(pattern, true)?)))
                .collect::<Result<Vec<_>, _>>()
        };
        let does = |action| rule.actions.contains(&action);
        Ok(Self {
            name: format!("{policy}/{}", rule.name).into(),
            effect: rule.effect,
            clients: names(&principals.clients)?,
            users: names(&principals.users)?,
            groups: names(&principals.groups)?,
            certificate: facts(&principals.certificate)?,
            attributes: facts(&principals.attributes)?,
            connect: does(PolicyAction::Connect),
            publish: does(PolicyAction::Publish),
            subscribe: does(PolicyAction::Subscribe),
            topics: rule
                .topics
                .iter()
                .map(|topic| {
                    let template = Template::parse(topic, false)?;
                    template
                        .filter_of_anybody()
                        .map_err(|_| InvalidPattern::topic(topic))?;
                    Ok(template)
                })
                .collect::<Result<_, _>>()?,
            max_qos: rule.max_qos.map_or(Qos::ExactlyOnce, |qos| {
                Qos::try_from(u8::from(qos)).unwrap_or(Qos::AtMostOnce)
            }),
            allow_retain: rule.allow_retain.unwrap_or(true),
            literal_filters: rule.literal_filters.unwrap_or(false),
        })
    }

    fn applies_to(&self, client_id: &str, principal: &Principal) -> bool {
        let names = principal.names(client_id);
        let any = |patterns: &[Template], values: &[&str]| {
            patterns.is_empty()
                || values
                    .iter()
                    .any(|value| patterns.iter().any(|p| p.matches(value, names)))
        };
        let groups: Vec<&str> = principal.groups.iter().map(String::as_str).collect();
        any(&self.clients, &[client_id])
            && any(&self.users, principal.username.as_deref().as_slice())
            && any(&self.groups, &groups)
            && self
                .certificate
                .iter()
                .all(|(fact, pattern)| principal.facts(fact).any(|value| pattern.matches(value, names)))
            && self.attributes.iter().all(|(name, pattern)| {
                let value = principal.attributes.get(name);
                value.is_some_and(|value| pattern.matches(value, names))
            })
    }

    /// Whether one of its topics matches a subscription: an Allow rule has to cover all that is asked for, a Deny rule
    /// any of it.
    fn matches_subscription(&self, known: &TopicFilter, wanted: &TopicFilter) -> bool {
        match self.effect {
            PolicyEffect::Allow => known.covers(wanted),
            PolicyEffect::Deny => denies(known, self.literal_filters, wanted),
        }
    }

    /// The rule's topics for one client; those into which its names can't be filled safely match nothing.
    fn filters(&self, client_id: &str, principal: &Principal) -> Vec<TopicFilter> {
        let names = principal.names(client_id);
        self.topics
            .iter()
            .filter_map(|topic| topic.filter(names).ok())
            .collect()
    }
}

impl Principal {
    /// What patterns are filled in with.
    fn names<'a>(&'a self, client_id: &'a str) -> Names<'a> {
        Names {
            client_id,
            username: self.username.as_deref(),
            attributes: &self.attributes,
            certificate: &self.certificate,
        }
    }
}
