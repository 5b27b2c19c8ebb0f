//! `BrokerPolicy`: rules for one broker's role.

use foreshore_control::plan::BrokerPolicyPlan;
use foreshore_crds::{
    conditions::reasons,
    v1alpha1::{BrokerPolicySpec, broker_policy::PolicyRule},
};
use foreshore_record::TopicFilter;

use crate::{object::Kind, plan::Planner, problem::Problem};

use super::{Faults, Name, PolicyVersion, Scope, broker};

/// What stands for the client's own in topics.
const SUBSTITUTIONS: [&str; 2] = ["${clientid}", "${username}"];

/// A BrokerPolicy that a broker can enforce.
pub(crate) struct ValidPolicy {
    pub(crate) version: PolicyVersion,
    pub(crate) broker: Name,
}

fn dereference(version: &PolicyVersion, scope: &Scope<'_>) -> Result<Name, Problem> {
    let BrokerPolicySpec { broker_ref, rules: _ } = &*version.spec;
    scope.find_or_only(
        Kind::Broker,
        &version.name.namespace,
        broker_ref.as_ref(),
        "spec.brokerRef",
        |_, _| true,
    )
}

pub(crate) fn validate(version: PolicyVersion, scope: &mut Scope<'_>) -> Result<ValidPolicy, Vec<Problem>> {
    let mut faults = Faults::default();
    let broker = faults.take(dereference(&version, scope));
    for (index, rule) in version.spec.rules.iter().enumerate() {
        check_topics(rule, &format!("spec.rules[{index}]"), &mut faults);
    }
    faults.check()?;
    match broker {
        Some(broker) => Ok(ValidPolicy { version, broker }),
        None => Err(Vec::new()),
    }
}

fn check_topics(rule: &PolicyRule, field: &str, faults: &mut Faults) {
    for (index, topic) in rule.topics.iter().enumerate() {
        let filled = SUBSTITUTIONS
            .iter()
            .fold(topic.to_string(), |text, name| text.replace(name, "x"));
        let field = format!("{field}.topics[{index}]");
        if filled.contains("${") {
            let problem = Problem::new(reasons::INVALID, "a placeholder that is not known").field(field);
            faults.add(problem.found(topic.as_str()).allowed(SUBSTITUTIONS.join(", ")));
        } else if let Err(error) = TopicFilter::new(&filled) {
            faults.add(
                Problem::new(reasons::INVALID, error.to_string())
                    .field(field)
                    .found(topic.as_str()),
            );
        }
    }
}

impl ValidPolicy {
    pub(crate) fn plan(&self, planner: &mut Planner<'_>) {
        let Self { version, broker } = self;
        let plan = BrokerPolicyPlan {
            object: version.object(),
            spec: (*version.spec).clone(),
        };
        planner.add(
            &broker::role(broker),
            &version.name.key(Kind::BrokerPolicy),
            &plan,
        );
    }
}
