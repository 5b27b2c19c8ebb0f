//! What is tested, in this order.

mod admission;
mod authority;
mod bad_days;
mod change;
mod drift;
mod gitops;
pub(crate) mod install;
pub(crate) mod kill;
mod many;
mod node;
mod pods;
mod quiet;
mod rights;
mod scale;
mod service_accounts;
mod tools;
mod uninstall;
mod untouched;
mod upgrade;

use anyhow::Result;

use crate::cluster::Cluster;

/// One test.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    work: Work,
    needs: Needs,
}

/// What a test needs beside a cluster.
#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    /// Time: it runs with everything at its full count, or when it is named.
    Time,
    /// Nodes and an API server that can be switched off.
    Machines,
    /// Argo CD's programs.
    ArgoCd,
}

/// The work of each, as a closed list: futures of functions have types of their own.
#[derive(Clone, Copy)]
enum Work {
    Install,
    Rights,
    Admission,
    Untouched,
    Change,
    Drift,
    Scale,
    Tools,
    LateSecret,
    Dangling,
    ServiceAccounts,
    WrongChange,
    NewerField,
    ApiAway,
    ApiThrottles,
    Disorder,
    LostDefinition,
    Operator,
    Roles,
    Many,
    Authority,
    Upgrade,
    BrokenUpgrade,
    ConnectorNode,
    BrokerNode,
    Quiet,
    Gitops,
    Uninstall,
}

const fn scenario(name: &'static str, work: Work) -> Scenario {
    needing(Needs::Nothing, name, work)
}

const fn needing(needs: Needs, name: &'static str, work: Work) -> Scenario {
    Scenario { name, work, needs }
}

/// All of them.
pub(crate) const ALL: &[Scenario] = &[
    scenario("install_to_data", Work::Install),
    scenario("roles_can_do_what_they_must_and_no_more", Work::Rights),
    scenario("what_is_wrong_is_refused_at_admission", Work::Admission),
    scenario("what_users_wrote_is_not_written", Work::Untouched),
    scenario("a_change_reaches_a_connector_without_a_restart", Work::Change),
    scenario("what_others_change_of_our_objects_is_made_again", Work::Drift),
    scenario("people_s_tools_tell_prove_and_command", Work::Tools),
    scenario("devices_go_over_when_a_connector_is_scaled", Work::Scale),
    scenario("a_secret_that_comes_late_is_waited_for", Work::LateSecret),
    scenario("who_names_nobody_is_told_so", Work::Dangling),
    scenario(
        "service_accounts_come_in_with_their_tokens",
        Work::ServiceAccounts,
    ),
    scenario("a_wrong_change_stops_nothing", Work::WrongChange),
    scenario("a_field_of_a_newer_release_is_told", Work::NewerField),
    needing(
        Needs::Machines,
        "data_flows_while_the_api_server_is_away",
        Work::ApiAway,
    ),
    needing(
        Needs::Time,
        "an_api_server_that_refuses_most_is_asked_again",
        Work::ApiThrottles,
    ),
    needing(Needs::Time, "the_worst_order_does_no_harm", Work::Disorder),
    needing(
        Needs::Time,
        "a_lost_definition_disturbs_no_other_kind",
        Work::LostDefinition,
    ),
    scenario("data_flows_while_operators_are_killed", Work::Operator),
    scenario("every_pod_is_killed_and_data_flows_again", Work::Roles),
    needing(
        Needs::Time,
        "ten_thousand_assets_are_judged_and_left_alone",
        Work::Many,
    ),
    needing(Needs::Time, "a_given_authority_is_followed", Work::Authority),
    needing(
        Needs::Time,
        "an_upgrade_keeps_data_flowing_and_rolls_back",
        Work::Upgrade,
    ),
    needing(
        Needs::Time,
        "a_broken_upgrade_changes_nothing",
        Work::BrokenUpgrade,
    ),
    needing(
        Needs::Machines,
        "a_lost_node_s_connector_runs_elsewhere",
        Work::ConnectorNode,
    ),
    needing(
        Needs::Machines,
        "a_lost_node_s_broker_is_waited_for",
        Work::BrokerNode,
    ),
    scenario("nothing_is_written_at_rest", Work::Quiet),
    needing(Needs::ArgoCd, "gitops_makes_a_plant_what_git_says", Work::Gitops),
    scenario("uninstall_leaves_nothing_hanging", Work::Uninstall),
];

/// Names of all scenarios.
pub(crate) fn names() -> String {
    ALL.iter()
        .map(|scenario| scenario.name)
        .collect::<Vec<_>>()
        .join(", ")
}

impl Scenario {
    /// Why it does not run here; `named` tells that somebody asked for it.
    pub(crate) fn left_out(&self, cluster: &Cluster, named: bool) -> Option<&'static str> {
        match self.needs {
            Needs::Time if !cluster.full && !named => Some("it runs with --full, or by its name"),
            Needs::Machines if !cluster.has_machines() => {
                Some("nodes and API server of this cluster can't be switched off from here")
            }
            Needs::ArgoCd if cluster.argocd.is_none() => {
                Some("it needs Argo CD, which --full or its name builds")
            }
            _ => None,
        }
    }

    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        match self.work {
            Work::Install => install::to_data(cluster).await,
            Work::Rights => rights::roles(cluster).await,
            Work::Admission => admission::every_rule(cluster).await,
            Work::Untouched => untouched::what_users_wrote(cluster).await,
            Work::Change => change::reaches(cluster).await,
            Work::Drift => drift::does_not_last(cluster).await,
            Work::Scale => scale::of_connector(cluster).await,
            Work::Tools => tools::tell(cluster).await,
            Work::LateSecret => bad_days::late_secret(cluster).await,
            Work::Dangling => bad_days::dangling(cluster).await,
            Work::ServiceAccounts => service_accounts::come_in(cluster).await,
            Work::WrongChange => bad_days::stops_nothing(cluster).await,
            Work::NewerField => bad_days::field_of_newer(cluster).await,
            Work::ApiAway => bad_days::away(cluster).await,
            Work::ApiThrottles => bad_days::throttles(cluster).await,
            Work::Disorder => bad_days::worst_order(cluster).await,
            Work::LostDefinition => bad_days::lost_definition(cluster).await,
            Work::Operator => kill::operators(cluster).await,
            Work::Roles => kill::roles(cluster).await,
            Work::Many => many::are_judged(cluster).await,
            Work::Authority => authority::is_followed(cluster).await,
            Work::Upgrade => upgrade::and_back(cluster).await,
            Work::BrokenUpgrade => upgrade::to_nothing(cluster).await,
            Work::ConnectorNode => node::of_connector(cluster).await,
            Work::BrokerNode => node::of_broker(cluster).await,
            Work::Quiet => quiet::at_rest(cluster).await,
            Work::Gitops => gitops::follows(cluster).await,
            Work::Uninstall => uninstall::leaves_nothing(cluster).await,
        }
    }
}
