//! Rules in CEL that several kinds share.
//!
//! Every message reads `found …, allowed …`: the judge takes it apart, and a reader of `kubectl` sees both.
//! The library of functions is that of Kubernetes 1.33, the oldest that we support.

use kube::core::Rule;

use crate::v1alpha1::broker_policy::CERTIFICATE_FACTS;

/// A rule with a message made at run time: `found` is a CEL expression that gives a string, `allowed` plain text.
pub(crate) fn rule(expression: impl Into<String>, found: &str, allowed: &str) -> Rule {
    message(Rule::new(expression), &format!("'found ' + {found}"), allowed)
}

fn message(rule: Rule, found: &str, allowed: &str) -> Rule {
    rule.message(kube::core::Message::Expression(format!(
        "{found} + ', allowed {allowed}'"
    )))
}

/// A rule whose message needs nothing of the object: `found` is plain text too.
pub(crate) fn plain(expression: impl Into<String>, found: &str, allowed: &str) -> Rule {
    Rule::new(expression).message(kube::core::Message::Message(format!(
        "found {found}, allowed {allowed}"
    )))
}

/// One of `fields` and no other must be there.
pub(crate) fn exactly_one_of(fields: &[&str]) -> Rule {
    let rule = Rule::new(format!("{} == 1", count(fields)));
    message(rule, &found(fields), &format!("exactly one of {}", words(fields)))
}

/// At most one of `fields` may be there.
pub(crate) fn at_most_one_of(fields: &[&str]) -> Rule {
    let rule = Rule::new(format!("{} <= 1", count(fields)));
    message(rule, &found(fields), &format!("at most one of {}", words(fields)))
}

/// At least one of `fields` must be there.
pub(crate) fn at_least_one_of(fields: &[&str]) -> Rule {
    let expression = fields
        .iter()
        .map(|field| format!("has(self.{field})"))
        .collect::<Vec<_>>()
        .join(" || ");
    plain(expression, "none", &format!("at least one of {}", words(fields)))
}

/// `field` may only be there where `condition` holds, which `allowed` tells in words.
pub(crate) fn only_where(field: &str, condition: &str, allowed: &str) -> Rule {
    plain(
        format!("!has(self.{field}) || {condition}"),
        field,
        &format!("{field} only {allowed}"),
    )
    .field_path(format!(".{field}"))
}

/// A duration between two others.
pub(crate) fn duration_between(least: &str, most: &str) -> Rule {
    rule(
        format!("duration(self) >= duration('{least}') && duration(self) <= duration('{most}')"),
        "self",
        &format!("a duration from {least} to {most}"),
    )
}

/// A size of at least so much.
pub(crate) fn size_at_least(least: &str) -> Rule {
    rule(
        format!("quantity(self).compareTo(quantity('{least}')) >= 0"),
        "self",
        &format!("a size of at least {least}"),
    )
}

/// A URL with one of these schemes.
pub(crate) fn scheme(schemes: &[&str]) -> Rule {
    rule(
        schemes
            .iter()
            .map(|scheme| format!("self.startsWith('{scheme}://')"))
            .collect::<Vec<_>>()
            .join(" || "),
        "self",
        &format!("{} as the scheme", words(schemes)),
    )
}

/// Of two durations, with what holds where they are left out, the first must not be longer.
pub(crate) fn not_longer(field: &str, default: &str, than: &str, than_default: &str) -> Rule {
    rule(
        format!(
            "{} <= {}",
            duration_or(field, default),
            duration_or(than, than_default)
        ),
        &format!(
            "{field_value} + ' and ' + {than_value}",
            field_value = text_or(field, default),
            than_value = text_or(than, than_default)
        ),
        &format!("{field} no longer than {than}"),
    )
}

/// A duration, or what holds where it is left out.
pub(crate) fn duration_or(field: &str, default: &str) -> String {
    format!("(has(self.{field}) ? duration(self.{field}) : duration('{default}'))")
}

/// The text of a field, or what holds where it is left out.
pub(crate) fn text_or(field: &str, default: &str) -> String {
    format!("(has(self.{field}) ? self.{field} : '{default}')")
}

/// The topic of `self.destination` uses none of these placeholders, which mean nothing here.
pub(crate) fn topic_without(placeholders: &[&str]) -> Rule {
    let absent: Vec<_> = placeholders
        .iter()
        .map(|name| format!("!self.destination.topic.contains('{{{name}}}')"))
        .collect();
    let words: Vec<_> = placeholders.iter().map(|name| format!("{{{name}}}")).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    rule(
        format!(
            "!has(self.destination) || !has(self.destination.topic) || ({})",
            absent.join(" && ")
        ),
        "self.destination.topic",
        &format!("a topic without {} here", words.join(" and ")),
    )
    .field_path(".destination.topic")
}

/// Names become labels, topic levels and host names, and references are DNS labels.
pub(crate) fn object_name() -> Rule {
    rule(
        "self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')",
        "'metadata.name ' + self.metadata.name",
        "a DNS label: lower-case letters, digits and -, at most 63 characters",
    )
}

/// The scheme of `self.address` where the block `protocol` is there.
pub(crate) fn address_scheme(protocol: &str, schemes: &[&str]) -> Rule {
    let fits: Vec<_> = schemes
        .iter()
        .map(|scheme| format!("self.address.startsWith('{scheme}://')"))
        .collect();
    rule(
        format!(
            "!has(self.{protocol}) || !has(self.address) || {}",
            fits.join(" || ")
        ),
        "self.address",
        &format!("{} as the scheme beside {protocol}", words(schemes)),
    )
    .field_path(".address")
}

/// OPC UA's policy None goes with the mode None, and with no other.
pub(crate) fn opcua_security(policy: &str, mode: &str) -> Rule {
    let policy_is = |value: &str| format!("(has(self.{policy}) && self.{policy} {value})");
    let mode_is = |value: &str| format!("(has(self.{mode}) && self.{mode} {value})");
    plain(
        format!(
            "!({} && {}) && !({} && {})",
            policy_is("== 'None'"),
            mode_is("in ['Sign', 'SignAndEncrypt']"),
            policy_is("in ['Basic256Sha256', 'Aes128Sha256RsaOaep', 'Aes256Sha256RsaPss']"),
            mode_is("== 'None'"),
        ),
        &format!("only one of {policy} and {mode} is None"),
        "both or neither",
    )
}

/// A subscription lives for at least three of its keep-alives (OPC 10000-4, 5.14.2).
pub(crate) fn three_keep_alives_in_lifetime() -> Rule {
    let keep_alive = duration_or("keepAliveInterval", "5s");
    let lifetime = duration_or("subscriptionLifetime", "2m");
    rule(
        format!("{keep_alive} + {keep_alive} + {keep_alive} <= {lifetime}"),
        &format!(
            "{} + ' and ' + {}",
            text_or("keepAliveInterval", "5s"),
            text_or("subscriptionLifetime", "2m")
        ),
        "a subscriptionLifetime of at least three times keepAliveInterval",
    )
}

/// Names of attributes are usable in topics.
pub(crate) fn attribute_names() -> Rule {
    plain(
        "self.all(k, k.matches('^[A-Za-z0-9_.-]{1,63}$'))",
        "another name of an attribute",
        "names of letters, digits, _, - and ., at most 63 characters",
    )
}

/// Whoever comes is let in only when nobody else knew the client.
pub(crate) fn anonymous_last() -> Rule {
    plain(
        "self.authentication.size() == 0 || self.authentication.filter(a, has(a.anonymous)).size() == \
         (has(self.authentication[self.authentication.size() - 1].anonymous) ? 1 : 0)",
        "anonymous before other ways",
        "anonymous once, as the last way",
    )
    .field_path(".authentication")
}

/// Addresses of NATS servers.
pub(crate) fn nats_schemes() -> Rule {
    plain(
        "self.all(s, s.startsWith('nats://') || s.startsWith('tls://'))",
        "another scheme",
        "nats and tls as the scheme of each",
    )
}

/// A size between two others.
pub(crate) fn size_between(least: &str, most: &str) -> Rule {
    rule(
        format!(
            "quantity(self).compareTo(quantity('{least}')) >= 0 && quantity(self).compareTo(quantity('{most}')) <= 0"
        ),
        "self",
        &format!("a size from {least} to {most}"),
    )
}

/// Indexes of stages: there is no other way to compare positions with the functions of Kubernetes 1.33.
const INDEXES: &str = "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]";

/// Whether the stage at `m` gives what the input `i` names. A stage that routes gives only by its routes.
const GIVES: &str = "(has(self.stages[m].route) \
    ? ((has(self.stages[m].route.otherwise) && i == self.stages[m].name + '.' + self.stages[m].route.otherwise) \
        || self.stages[m].route.routes.exists(r, i == self.stages[m].name + '.' + r.name)) \
    : i == self.stages[m].name)";

/// Inputs of stages name what the source or a stage above gives, so that there is no circle.
pub(crate) fn stage_inputs_are_above() -> Rule {
    plain(
        format!(
            "!has(self.stages) || {INDEXES}.all(n, n >= self.stages.size() || !has(self.stages[n].inputs) \
             || self.stages[n].inputs.all(i, i == 'source' || {INDEXES}.exists(m, m < n && {GIVES})))"
        ),
        "an input that nothing above its stage gives",
        "source, the name of a stage above, or STAGE.ROUTE of one that routes",
    )
    .field_path(".stages")
}

/// Inputs of sinks name what the source or a stage gives.
pub(crate) fn sink_inputs_exist() -> Rule {
    plain(
        format!(
            "self.sinks.all(s, !has(s.inputs) || s.inputs.all(i, i == 'source' || (has(self.stages) \
             && {INDEXES}.exists(m, m < self.stages.size() && {GIVES}))))"
        ),
        "an input of a sink that nothing gives",
        "source, the name of a stage, or STAGE.ROUTE of one that routes",
    )
    .field_path(".sinks")
}

/// A stage below one that routes says which of the routes it takes.
pub(crate) fn stages_after_route_name_inputs() -> Rule {
    plain(
        format!(
            "!has(self.stages) || {INDEXES}.all(n, n == 0 || n >= self.stages.size() \
             || has(self.stages[n].inputs) || !has(self.stages[n - 1].route))"
        ),
        "a stage without inputs below a stage that routes",
        "inputs that name routes, as STAGE.ROUTE",
    )
    .field_path(".stages")
}

/// A sink below a last stage that routes says which of the routes it takes.
pub(crate) fn sinks_after_route_name_inputs() -> Rule {
    plain(
        "!has(self.stages) || self.stages.size() == 0 || !has(self.stages[self.stages.size() - 1].route) \
         || self.sinks.all(s, has(s.inputs))",
        "a sink without inputs below a stage that routes",
        "inputs that name routes, as STAGE.ROUTE",
    )
    .field_path(".sinks")
}

/// Another broker keeps what waits for the sinks of a dataflow that it is the source of, by its own rules.
pub(crate) fn queue_of_its_own(field: &str) -> Rule {
    only_where(field, "!has(self.source.endpointRef)", FOR_OUR_BROKER)
}

/// As [`queue_of_its_own`], for each sink.
pub(crate) fn sinks_queue_of_its_own() -> Rule {
    plain(
        "!has(self.source.endpointRef) || self.sinks.all(s, !has(s.buffer))",
        "buffer of a sink",
        &format!("buffer only {FOR_OUR_BROKER}"),
    )
    .field_path(".sinks")
}

const FOR_OUR_BROKER: &str = "without source.endpointRef; another broker keeps what waits by its own rules";

/// Facts of certificates that a policy can ask for.
pub(crate) fn certificate_facts() -> Rule {
    let known = CERTIFICATE_FACTS.map(|fact| format!("'{fact}'")).join(", ");
    plain(
        format!("self.all(k, k in [{known}])"),
        "another fact",
        &words(&CERTIFICATE_FACTS),
    )
}

fn count(fields: &[&str]) -> String {
    let present: Vec<_> = fields.iter().map(|field| format!("has(self.{field})")).collect();
    format!("[{}].filter(present, present).size()", present.join(", "))
}

/// `found` and which of `fields` are there, as an expression. No `join`: nothing bounds its cost at admission.
fn found(fields: &[&str]) -> String {
    let absent: Vec<_> = fields.iter().map(|field| format!("!has(self.{field})")).collect();
    let present: Vec<_> = fields
        .iter()
        .map(|field| format!("(has(self.{field}) ? ' {field}' : '')"))
        .collect();
    format!(
        "'found' + ({} ? ' none' : '') + {}",
        absent.join(" && "),
        present.join(" + ")
    )
}

/// `a, b and c`.
fn words(fields: &[&str]) -> String {
    match fields {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
