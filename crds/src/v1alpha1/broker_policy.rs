//! `BrokerPolicy`: who may connect, publish and subscribe where.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::QoS;
use crate::{
    refs::LocalRef,
    rules,
    types::{ItemName, NamePattern, ObjectName, PolicyTopic},
};

/// Facts of a client's certificate that rules can name: of its subject, its alternative names, its serial number, and its
/// issuer.
pub const CERTIFICATE_FACTS: [&str; 11] = [
    "CN", "O", "OU", "C", "L", "ST", "dns", "uri", "email", "serial", "issuer",
];

/// Who may connect, publish and subscribe where.
///
/// All policies of a broker count together and the order of rules does not matter: whatever a Deny rule matches is
/// refused; what is left and an Allow rule matches is allowed; everything else is refused. Our own roles need no rule
/// for what their plans make them do; a command that comes through a cloud endpoint is carried out unless a Deny rule
/// matches it. A broker that no policy is for lets whoever it let in do everything.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "foreshore.dev",
    version = "v1alpha1",
    kind = "BrokerPolicy",
    plural = "brokerpolicies",
    namespaced,
    validation = rules::object_name(),
    status = "BrokerPolicyStatus",
    derive = "PartialEq",
    shortname = "fspolicy",
    category = "foreshore",
    doc = "Who may connect, publish and subscribe where. All policies of a broker count together and order does not matter: a matching Deny refuses; else a matching Allow permits; else it is refused. A broker that no policy is for lets whoever it let in do everything.",
    printcolumn(name = "Rules", type_ = "integer", json_path = ".status.rules")
)]
#[serde(rename_all = "camelCase")]
pub struct BrokerPolicySpec {
    /// Broker that the rules are for; may be left out where the namespace has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker_ref: Option<LocalRef>,
    /// The rules.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rules: Vec<PolicyRule>,
}

/// What a rule does with what it matches.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PolicyEffect {
    /// Permits it, unless a Deny matches too.
    #[default]
    Allow,
    /// Refuses it.
    Deny,
}

/// What a client does.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyAction {
    /// Connects.
    Connect,
    /// Publishes; a will and a retained message too, and commands to assets under `foreshore/commands/`.
    Publish,
    /// Subscribes.
    Subscribe,
}

/// A rule of a policy.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::plain("self.actions == ['Connect'] ? !has(self.topics) : (has(self.topics) && self.topics.size() > 0)", "topics missing or needless", "topics with Publish and Subscribe, none with Connect alone").field_path(".topics"), validation = rules::only_where("maxQos", "self.effect == 'Allow'", "with the effect Allow"), validation = rules::only_where("allowRetain", "self.effect == 'Allow'", "with the effect Allow"), validation = rules::only_where("literalFilters", "(self.effect == 'Deny' && self.actions == ['Subscribe'])", "with the effect Deny and the action Subscribe alone"))]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Name, unique in the policy; refusals are audited with it.
    pub name: ItemName,
    /// What the rule does with what it matches.
    pub effect: PolicyEffect,
    /// Who; everybody where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principals: Option<Principals>,
    /// What the client does.
    #[schemars(length(min = 1, max = 3))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub actions: Vec<PolicyAction>,
    /// Where, for Publish and Subscribe: topic filters in which `${clientid}`, `${username}`, `${attributes.NAME}` and
    /// `${certificate.FACT}` stand for the client's own. A value with `/`, `+` or `#` in it matches nothing, nor does a fact of
    /// which its certificate has several. A subscription is matched when the filter covers all that it asks for (Allow), or
    /// overlaps it (Deny).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub topics: Vec<PolicyTopic>,
    /// Highest quality of service that an Allow rule permits; all where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_qos: Option<QoS>,
    /// Whether an Allow rule permits retained messages; true where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_retain: Option<bool>,
    /// Whether a Deny rule refuses just the subscriptions whose filters are written as its topics are, such as one to
    /// everything by `#`; false where it is left out. Messages still come by any other filter that matches them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub literal_filters: Option<bool>,
}

/// Who: each list matches when one of its members does, and every list that is there must match. `*` in a member
/// stands for any characters.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(validation = rules::at_least_one_of(&["clients", "users", "groups", "certificate", "attributes"]))]
#[serde(rename_all = "camelCase")]
pub struct Principals {
    /// Client identifiers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub clients: Vec<NamePattern>,
    /// User names. Nobody who is anonymous has one. Of a command that comes through a cloud endpoint it is
    /// `ENDPOINT/ACTOR`: the DataflowEndpoint, and who asked there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub users: Vec<NamePattern>,
    /// Groups of users, as the listener's authentication tells them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub groups: Vec<NamePattern>,
    /// Facts of the client's certificate: `CN`, `O`, `OU`, `C`, `L`, `ST`, `dns`, `uri`, `email`, `serial`, `issuer`;
    /// all must match.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    #[x_kube(validation = rules::certificate_facts())]
    pub certificate: BTreeMap<String, NamePattern>,
    /// Attributes of the user, as the listener's authentication tells them: by a webhook's answer, or `namespace`,
    /// `serviceAccount`, `pod` and `node` of a service account's token; all must match.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    #[x_kube(validation = rules::attribute_names())]
    pub attributes: BTreeMap<String, NamePattern>,
}

/// What is known about a policy.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct BrokerPolicyStatus {
    /// Generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Broker that the rules are for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<ObjectName>,
    /// Number of rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<i32>,
}
