//! Why a client may do something, or may not: which rule decides, with the client's names filled in, and where none
//! does, which rules came nearest and what kept them from it.
//!
//! The verdict is that of [`Permissions`], by which clients are judged; the rules are read one by one beside it.

use std::{cmp::Reverse, collections::BTreeMap, fmt};

use foreshore_crds::v1alpha1::broker_policy::{BrokerPolicySpec, PolicyAction, PolicyEffect};
use foreshore_record::{Qos, TopicFilter, TopicName};
use serde::{Deserialize, Serialize};

use super::{InvalidPolicy, Permissions, Policies, Rule, pattern::Template, permissions::overlaps};
use crate::auth::Principal;

/// Most rules that are told of as nearest.
const MAX_NEAREST: usize = 5;

/// Patterns that people are shown of a longer list.
const MAX_SHOWN: usize = 6;

/// What a client wants to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "action")]
pub enum Request {
    /// It connects.
    Connect,
    /// It publishes.
    Publish {
        /// Where.
        topic: TopicName,
        /// With which quality of service.
        qos: Qos,
        /// Whether the message is to be retained.
        retain: bool,
    },
    /// It subscribes.
    Subscribe {
        /// To what. A shared subscription is judged by the filter behind `$share/GROUP/`.
        filter: TopicFilter,
    },
}

/// Who wants to do what. Our own roles, which no policy concerns but for commands, can't be asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Client identifier.
    pub client_id: String,
    /// User name, as the listener's authentication would find it; nobody who is anonymous has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Groups of the user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Facts of its certificate, such as `CN`; each may have several values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub certificate: BTreeMap<String, Vec<String>>,
    /// Attributes of the user, as a webhook's answer or the token of a service account tells them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// What it wants to do.
    pub request: Request,
}

/// Whether something is allowed, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What was asked.
    pub question: Question,
    /// Whether it is allowed.
    pub allowed: bool,
    /// Highest quality of service that is granted to a subscription.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_qos: Option<Qos>,
    /// Whether no policy is for the broker, so that everything is allowed to whoever it let in.
    pub without_policy: bool,
    /// Rules that decide: those that deny it or, where none does, those that allow it.
    pub deciding: Vec<RuleReading>,
    /// Where it is refused: the Allow rules that came nearest, the nearest first; five at most. One without an obstacle
    /// would allow it if no rule denied it.
    pub nearest: Vec<RuleReading>,
}

/// A rule, read for one question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleReading {
    /// Policy and rule, `POLICY/RULE`.
    pub rule: String,
    /// What it does with what it matches.
    pub effect: PolicyEffect,
    /// What of it matches.
    pub matches: Vec<Match>,
    /// What keeps it from matching; empty when it matches.
    pub obstacles: Vec<Obstacle>,
}

/// A part of a rule that matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// Field of the rule, such as `topics`.
    pub field: String,
    /// The pattern as the policy has it.
    pub pattern: String,
    /// The pattern with the client's own names in it.
    pub filled: String,
    /// What it matches.
    pub found: String,
}

/// A part of a rule that does not match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Obstacle {
    /// Field of the rule.
    pub field: String,
    /// What was found; empty when there is nothing that could match.
    pub found: Vec<String>,
    /// What the rule allows, with the client's own names filled in.
    pub allowed: Vec<String>,
    /// What else is to be known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Explains what policies, given by name, would say to a client.
///
/// # Errors
/// When one of them can't be compiled.
pub fn explain<'a>(
    policies: impl IntoIterator<Item = (&'a str, &'a BrokerPolicySpec)>,
    question: Question,
) -> Result<Explanation, InvalidPolicy> {
    Ok(Policies::compile(policies)?.explain(question))
}

impl Policies {
    /// Says what these policies mean for a client.
    pub(crate) fn explain(&self, question: Question) -> Explanation {
        let principal = Principal {
            username: question.username.clone(),
            groups: question.groups.clone(),
            certificate: question.certificate.clone(),
            attributes: question.attributes.clone(),
            ..Principal::default()
        };
        let permissions = self.permissions(&question.client_id, &principal);
        let (allowed, max_qos) = judge(&permissions, &question.request);
        let readings: Vec<_> = self
            .rules
            .iter()
            .flatten()
            .map(|rule| {
                Reader {
                    rule,
                    question: &question,
                    principal: &principal,
                }
                .read()
            })
            .collect();
        let (deny, allow): (Vec<_>, Vec<_>) = readings
            .into_iter()
            .partition(|reading| reading.effect == PolicyEffect::Deny);
        let matching = |readings: &[RuleReading]| -> Vec<RuleReading> {
            let matching = readings.iter().filter(|reading| reading.obstacles.is_empty());
            matching.cloned().collect()
        };
        let (deciding, nearest) = if allowed {
            (matching(&allow), Vec::new())
        } else {
            (matching(&deny), nearest(allow))
        };
        Explanation {
            allowed,
            max_qos,
            without_policy: self.rules.is_none(),
            deciding,
            nearest,
            question,
        }
    }
}

/// The verdict by which clients are judged, and the quality of service that a subscription is granted.
fn judge(permissions: &Permissions, request: &Request) -> (bool, Option<Qos>) {
    match request {
        Request::Connect => (permissions.may_connect().is_ok(), None),
        Request::Publish { topic, qos, retain } => {
            (permissions.may_publish(topic, *qos, *retain).is_ok(), None)
        }
        Request::Subscribe { filter } => {
            let granted = permissions.may_subscribe(filter).ok();
            (granted.is_some(), granted)
        }
    }
}

/// Rules that would need the fewest changes, the nearest first.
fn nearest(mut readings: Vec<RuleReading>) -> Vec<RuleReading> {
    readings.sort_by_cached_key(|reading| {
        let weight = |obstacle: &Obstacle| match obstacle.field.as_str() {
            // A rule about something else is hardly the one that was meant.
            "actions" => 8,
            "topics" => 3,
            "maxQos" | "allowRetain" => 1,
            _ => 2,
        };
        let distance: u32 = reading.obstacles.iter().map(weight).sum();
        let topics = reading
            .obstacles
            .iter()
            .find(|obstacle| obstacle.field == "topics");
        (
            distance,
            Reverse(topics.map_or(0, common_levels)),
            reading.rule.clone(),
        )
    });
    readings.truncate(MAX_NEAREST);
    readings
}

/// Levels at the beginning that what was found has in common with what is allowed, where that is most.
fn common_levels(topics: &Obstacle) -> usize {
    let common = |allowed: &String| {
        let found = topics.found.iter().flat_map(|found| found.split('/'));
        found
            .zip(allowed.split('/'))
            .take_while(|(left, right)| left == right)
            .count()
    };
    topics.allowed.iter().map(common).max().unwrap_or(0)
}

/// Reads one rule for one question.
struct Reader<'q> {
    rule: &'q Rule,
    question: &'q Question,
    principal: &'q Principal,
}

impl Reader<'_> {
    fn read(&self) -> RuleReading {
        let Rule {
            name,
            effect,
            clients,
            users,
            groups,
            certificate,
            attributes,
            connect,
            publish,
            subscribe,
            topics: _,
            max_qos: _,
            allow_retain: _,
            literal_filters: _,
        } = self.rule;
        let mut reading = RuleReading {
            rule: name.to_string(),
            effect: *effect,
            matches: Vec::new(),
            obstacles: Vec::new(),
        };
        let actions = [
            (PolicyAction::Connect, *connect),
            (PolicyAction::Publish, *publish),
            (PolicyAction::Subscribe, *subscribe),
        ];
        let asked = self.action();
        if !actions.contains(&(asked, true)) {
            let allowed = actions.iter().filter(|(_, does)| *does);
            reading.obstacles.push(Obstacle {
                field: "actions".to_owned(),
                found: vec![format!("{asked:?}")],
                allowed: allowed.map(|(action, _)| format!("{action:?}")).collect(),
                note: String::new(),
            });
        }
        self.names(
            &mut reading,
            "clients",
            clients,
            &[self.question.client_id.as_str()],
        );
        self.names(
            &mut reading,
            "users",
            users,
            self.question.username.as_deref().as_slice(),
        );
        let of: Vec<_> = self.question.groups.iter().map(String::as_str).collect();
        self.names(&mut reading, "groups", groups, &of);
        for (fact, pattern) in certificate {
            let values: Vec<_> = self.principal.facts(fact).collect();
            self.names(
                &mut reading,
                &format!("certificate.{fact}"),
                std::slice::from_ref(pattern),
                &values,
            );
        }
        for (name, pattern) in attributes {
            let value = self.principal.attributes.get(name).map(String::as_str);
            self.names(
                &mut reading,
                &format!("attributes.{name}"),
                std::slice::from_ref(pattern),
                value.as_slice(),
            );
        }
        match &self.question.request {
            Request::Connect => {}
            Request::Publish { topic, qos, retain } => {
                self.topics(&mut reading, topic.as_str(), |filter| {
                    filter.matches(topic.as_str())
                });
                self.bounds(&mut reading, *qos, *retain);
            }
            Request::Subscribe { filter } => {
                self.topics(&mut reading, filter.as_str(), |known| {
                    self.rule.matches_subscription(known, filter)
                });
            }
        }
        reading
    }

    fn action(&self) -> PolicyAction {
        match self.question.request {
            Request::Connect => PolicyAction::Connect,
            Request::Publish { .. } => PolicyAction::Publish,
            Request::Subscribe { .. } => PolicyAction::Subscribe,
        }
    }

    /// A list of patterns of which one has to match one of the client's values.
    fn names(&self, reading: &mut RuleReading, field: &str, patterns: &[Template], values: &[&str]) {
        if patterns.is_empty() {
            return;
        }
        let names = self.principal.names(&self.question.client_id);
        let matching = values.iter().find_map(|value| {
            let pattern = patterns.iter().find(|pattern| pattern.matches(value, names))?;
            Some((value, pattern))
        });
        match matching {
            Some((value, pattern)) => reading.matches.push(Match {
                field: field.to_owned(),
                pattern: pattern.to_string(),
                filled: pattern.filled(names),
                found: (*value).to_owned(),
            }),
            None => reading.obstacles.push(Obstacle {
                field: field.to_owned(),
                found: values.iter().map(|value| (*value).to_owned()).collect(),
                allowed: patterns.iter().map(|pattern| pattern.filled(names)).collect(),
                note: String::new(),
            }),
        }
    }

    /// The topics of a rule, of which one has to match.
    fn topics(&self, reading: &mut RuleReading, found: &str, test: impl Fn(&TopicFilter) -> bool) {
        let templates = &self.rule.topics;
        if templates.is_empty() {
            return;
        }
        let names = self.principal.names(&self.question.client_id);
        let (mut allowed, mut notes) = (Vec::new(), Vec::new());
        for template in templates {
            match template.filter(names) {
                Ok(filter) if test(&filter) => {
                    reading.matches.push(Match {
                        field: "topics".to_owned(),
                        pattern: template.to_string(),
                        filled: filter.to_string(),
                        found: found.to_owned(),
                    });
                    return;
                }
                Ok(filter) => {
                    if let Request::Subscribe { filter: wanted } = &self.question.request
                        && self.rule.effect == PolicyEffect::Allow
                        && overlaps(&filter, wanted)
                    {
                        notes.push(format!("{found:?} asks for more than {:?}", filter.as_str()));
                    }
                    allowed.push(filter.to_string());
                }
                Err(unfilled) => {
                    notes.push(format!("{:?} matches nothing: {unfilled}", template.to_string()))
                }
            }
        }
        notes.truncate(MAX_SHOWN);
        reading.obstacles.push(Obstacle {
            field: "topics".to_owned(),
            found: vec![found.to_owned()],
            allowed,
            note: notes.join("; "),
        });
    }

    /// What an Allow rule permits of a message besides its topic.
    fn bounds(&self, reading: &mut RuleReading, qos: Qos, retain: bool) {
        if self.rule.effect == PolicyEffect::Deny {
            return;
        }
        let mut bound = |field: &str, found: String, allowed: String| {
            reading.obstacles.push(Obstacle {
                field: field.to_owned(),
                found: vec![found],
                allowed: vec![allowed],
                note: String::new(),
            });
        };
        if qos > self.rule.max_qos {
            bound(
                "maxQos",
                u8::from(qos).to_string(),
                format!("up to {}", u8::from(self.rule.max_qos)),
            );
        }
        if retain && !self.rule.allow_retain {
            bound("allowRetain", "retained".to_owned(), "not retained".to_owned());
        }
    }
}

// === for people ===

impl fmt::Display for Question {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "client {:?}", self.client_id)?;
        match &self.username {
            Some(username) => write!(formatter, ", user {username:?}")?,
            None => write!(formatter, ", without a user name")?,
        }
        if !self.groups.is_empty() {
            write!(formatter, ", groups {}", quoted(&self.groups))?;
        }
        for (fact, values) in &self.certificate {
            write!(formatter, ", {fact} {}", quoted(values))?;
        }
        for (name, value) in &self.attributes {
            write!(formatter, ", attribute {name} {value:?}")?;
        }
        match &self.request {
            Request::Connect => write!(formatter, ": connect"),
            Request::Publish { topic, qos, retain } => {
                let retained = if *retain { ", retained" } else { "" };
                let (topic, qos) = (topic.as_str(), u8::from(*qos));
                write!(
                    formatter,
                    ": publish to {topic:?} with quality of service {qos}{retained}"
                )
            }
            Request::Subscribe { filter } => write!(formatter, ": subscribe to {:?}", filter.as_str()),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            question,
            allowed,
            max_qos,
            without_policy,
            deciding,
            nearest,
        } = self;
        writeln!(formatter, "{question}")?;
        let verdict = if *allowed { "allowed" } else { "refused" };
        if *without_policy {
            return writeln!(formatter, "{verdict}: no BrokerPolicy is for this broker");
        }
        if deciding.is_empty() {
            writeln!(formatter, "{verdict}: no rule allows it")?;
        }
        for reading in deciding {
            writeln!(formatter, "{verdict} by {reading}")?;
        }
        if let Some(max_qos) = max_qos {
            writeln!(formatter, "quality of service {} at most", u8::from(*max_qos))?;
        }
        if !nearest.is_empty() {
            writeln!(formatter, "nearest rules:")?;
        }
        for reading in nearest {
            writeln!(formatter, "  {reading}")?;
        }
        Ok(())
    }
}

impl fmt::Display for RuleReading {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rule,
            effect,
            matches,
            obstacles,
        } = self;
        write!(formatter, "{rule} ({effect:?})")?;
        for Match {
            field,
            pattern,
            filled,
            found,
        } in matches
        {
            write!(formatter, "\n    {field}: {found:?} matches {filled:?}")?;
            if pattern != filled {
                write!(formatter, ", which is {pattern:?} filled in")?;
            }
        }
        for Obstacle {
            field,
            found,
            allowed,
            note,
        } in obstacles
        {
            let found = if found.is_empty() {
                "nothing".to_owned()
            } else {
                quoted(found)
            };
            write!(formatter, "\n    {field}: found {found}")?;
            if !allowed.is_empty() {
                write!(formatter, ", allowed {}", quoted(allowed))?;
            }
            if !note.is_empty() {
                write!(formatter, "; {note}")?;
            }
        }
        Ok(())
    }
}

/// The first of a list.
fn quoted(texts: &[String]) -> String {
    let mut shown: Vec<_> = texts
        .iter()
        .take(MAX_SHOWN)
        .map(|text| format!("{text:?}"))
        .collect();
    if texts.len() > MAX_SHOWN {
        shown.push(format!("{} more", texts.len() - MAX_SHOWN));
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests;
