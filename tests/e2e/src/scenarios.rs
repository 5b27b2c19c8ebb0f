//! What is tested, in this order.

mod change;
mod gitops;
mod install;
mod kill;
mod node;
mod quiet;
mod rights;
mod uninstall;

use anyhow::Result;

use crate::cluster::Cluster;

/// One test.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    work: Work,
    /// Whether nodes have to be switched off for it.
    machines: bool,
}

/// The work of each, as a closed list: futures of functions have types of their own.
#[derive(Clone, Copy)]
enum Work {
    Install,
    Rights,
    Admission,
    Change,
    Drift,
    Operator,
    Roles,
    ConnectorNode,
    BrokerNode,
    Quiet,
    Gitops,
    Uninstall,
}

const fn scenario(name: &'static str, work: Work) -> Scenario {
    Scenario {
        name,
        work,
        machines: false,
    }
}

/// All of them.
pub(crate) const ALL: [Scenario; 12] = [
    scenario("install_to_data", Work::Install),
    scenario("roles_can_do_what_they_must_and_no_more", Work::Rights),
    scenario("what_is_wrong_is_refused_at_admission", Work::Admission),
    scenario("a_change_reaches_a_connector_without_a_restart", Work::Change),
    scenario("what_others_change_of_our_objects_is_made_again", Work::Drift),
    scenario("data_flows_while_operators_are_killed", Work::Operator),
    scenario("every_pod_is_killed_and_data_flows_again", Work::Roles),
    Scenario {
        name: "a_lost_node_s_connector_runs_elsewhere",
        work: Work::ConnectorNode,
        machines: true,
    },
    Scenario {
        name: "a_lost_node_s_broker_is_waited_for",
        work: Work::BrokerNode,
        machines: true,
    },
    scenario("nothing_is_written_at_rest", Work::Quiet),
    scenario("gitops_makes_a_plant_what_git_says", Work::Gitops),
    scenario("uninstall_leaves_nothing_hanging", Work::Uninstall),
];

/// Names of all scenarios.
pub(crate) fn names() -> String {
    ALL.map(|scenario| scenario.name).join(", ")
}

impl Scenario {
    /// Why it can't run here.
    pub(crate) fn left_out(&self, cluster: &Cluster) -> Option<&'static str> {
        if matches!(self.work, Work::Gitops) && cluster.argocd.is_none() {
            return Some("it needs Argo CD, which --full or its name builds");
        }
        (self.machines && !cluster.has_machines())
            .then_some("nodes of this cluster can't be switched off from here")
    }

    pub(crate) async fn run(&self, cluster: &Cluster) -> Result<()> {
        match self.work {
            Work::Install => install::to_data(cluster).await,
            Work::Rights => rights::roles(cluster).await,
            Work::Admission => rights::admission(cluster).await,
            Work::Change => change::reaches(cluster).await,
            Work::Drift => change::drift(cluster).await,
            Work::Operator => kill::operators(cluster).await,
            Work::Roles => kill::roles(cluster).await,
            Work::ConnectorNode => node::of_connector(cluster).await,
            Work::BrokerNode => node::of_broker(cluster).await,
            Work::Quiet => quiet::at_rest(cluster).await,
            Work::Gitops => gitops::follows(cluster).await,
            Work::Uninstall => uninstall::leaves_nothing(cluster).await,
        }
    }
}
