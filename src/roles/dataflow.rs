//! A dataflow runner: from the durable queues of a namespace's broker to the endpoints of its dataflows.

use std::sync::Arc;

use foreshore_endpoint_cloud::CloudSinkFactory;
use foreshore_endpoint_file::FileSinks;
use foreshore_endpoint_mqtt::MqttSinks;
use foreshore_northbound::{Assets, DataflowRole, RemoteQueues, RunnerOptions, SinkFactory, Surroundings};
use foreshore_operator::workloads::local::RoleError;

use super::{Assignment, DRAIN, Observability, Roles};

/// Runs dataflows until its shutdown begins, then until what is under way is settled.
pub(super) async fn run(
    roles: &Roles,
    assignment: Assignment,
    observability: Observability,
) -> Result<(), RoleError> {
    let agent = roles.agent(&assignment)?;
    let surroundings = Surroundings {
        identity: agent.identity(),
        data_directory: Some(roles.folder(&assignment).join("state")),
        metrics: observability.metrics,
        assets: Assets::default(),
        reporter: Some(agent.reporter()),
        shutdown: assignment.shutdown.clone(),
    };
    let factories: Vec<Arc<dyn SinkFactory>> = vec![
        Arc::new(CloudSinkFactory::new(surroundings.clone())),
        Arc::new(FileSinks::new(surroundings.data_directory.clone())),
        Arc::new(MqttSinks::new(surroundings.clone())),
    ];
    let queues = Arc::new(RemoteQueues::new(agent.identity()));
    let (role, runner) = DataflowRole::new(RunnerOptions {
        queues,
        factories,
        surroundings,
    });
    let ended = agent.run(role, assignment.shutdown.clone()).await;
    assignment.shutdown.begin(DRAIN);
    runner.ended().await;
    ended.map_err(RoleError::new)
}
