//! `foreshore check`: judges manifests without running anything.

use std::{collections::BTreeMap, fmt};

use foreshore_control::{PlanResource, plan::BrokerPolicyPlan};
use foreshore_crds::v1alpha1::BrokerPolicySpec;
use foreshore_tls::Role;
use serde::Serialize;

use crate::{
    accepted::Accepted,
    facts::Facts,
    platform::Platform,
    problem::Problem,
    reconcile::{Outcome, Reconciler},
    role::RoleName,
    source::{
        self,
        directory::{Directory, Options},
    },
};

/// What a check found.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Objects that were declared and judged.
    pub objects: usize,
    /// Everything that is wrong; empty when all is right.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether all is right.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Report {
    /// A line for each problem, and a summary.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { objects, problems } = self;
        for problem in problems {
            writeln!(formatter, "{problem}")?;
        }
        write!(formatter, "{objects} objects, {} problems", problems.len())
    }
}

/// Judges manifests as a start with nothing accepted before would. Nothing is kept: [`Options::state`] is not used.
/// Blocks: for a thread that may.
///
/// # Errors
/// When a path that was given can't be read.
pub fn check(options: Options, platform: Platform) -> Result<Report, source::Error> {
    Ok(report(&reconcile(options, platform)?))
}

/// BrokerPolicies by name.
pub type PolicySpecs = BTreeMap<String, BrokerPolicySpec>;

/// The policies of each broker that would be in force after a start with these manifests, and what else a check finds:
/// a policy that is wrong is not among them. Blocks, as [`check`] does.
///
/// # Errors
/// When a path that was given can't be read.
pub fn policies(
    options: Options,
    platform: Platform,
) -> Result<(BTreeMap<RoleName, PolicySpecs>, Report), source::Error> {
    let outcome = reconcile(options, platform)?;
    let brokers = outcome
        .plans
        .roles
        .iter()
        .filter(|(role, _)| role.role == Role::Broker);
    let policies = brokers.map(|(role, plan)| {
        let policies = plan
            .iter()
            .filter(|(key, _)| key.kind == BrokerPolicyPlan::KIND)
            // What was planned right now can be read.
            .filter_map(|(_, resource)| resource.decode::<BrokerPolicyPlan>().ok())
            .map(|policy| (policy.object.name, policy.spec));
        (role.clone(), policies.collect())
    });
    Ok((policies.collect(), report(&outcome)))
}

fn reconcile(options: Options, platform: Platform) -> Result<Outcome, source::Error> {
    let snapshot = Directory::open(Options {
        state: None,
        ..options
    })?
    .read()?;
    Ok(Reconciler::new(platform, Accepted::default()).reconcile(&snapshot, &Facts::default()))
}

fn report(outcome: &Outcome) -> Report {
    Report {
        objects: outcome.verdicts.len(),
        problems: outcome.all_problems().cloned().collect(),
    }
}
