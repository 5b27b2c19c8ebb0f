//! Pods to instances.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use foreshore_crds::conditions::reasons;
use foreshore_tls::{Role, RoleIdentity};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::SelectAll};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod, PodStatus};
use kube_client::{Api, Client};
use kube_runtime::{
    WatchStreamExt,
    watcher::{Config, Event, watcher},
};
use tokio::{sync::watch, time::interval};
use tracing::warn;

use super::build::{COMPONENT, INSTANCE, SELECTOR, object_name};
use crate::{
    kubernetes::{
        Scope,
        listing::{Change, Listing},
        within,
    },
    role::RoleName,
    workloads::{Instance, InstanceState, Running, Workload},
};

/// Time between two looks at the nodes of pods that are not ready.
const NODES: Duration = Duration::from_secs(5);

type Desired = watch::Receiver<Arc<BTreeMap<RoleName, Workload>>>;

/// Pods, as the API tells them, and what follows.
pub(super) struct Pods {
    running: watch::Sender<Arc<Running>>,
}

impl Default for Pods {
    fn default() -> Self {
        Self {
            running: watch::Sender::new(Arc::default()),
        }
    }
}

/// What is known of pods and nodes.
#[derive(Default)]
struct Known {
    /// By namespace and name.
    pods: BTreeMap<(String, String), Pod>,
    /// What each watch told of.
    listings: BTreeMap<usize, Listing<(String, String)>>,
    /// Nodes that are not ready, with why.
    lost: BTreeMap<String, String>,
}

impl Pods {
    pub(super) fn running(&self) -> watch::Receiver<Arc<Running>> {
        self.running.subscribe()
    }

    /// Notes which workloads can't be made as they shall be, and why.
    pub(super) fn set_unmade(&self, unmade: BTreeMap<RoleName, String>) {
        self.update(|present| Running {
            instances: present.instances.clone(),
            unmade,
        });
    }

    fn update(&self, change: impl FnOnce(&Running) -> Running) {
        self.running.send_if_modified(|present| {
            let changed = change(present);
            let differs = **present != changed;
            if differs {
                *present = Arc::new(changed);
            }
            differs
        });
    }

    /// Watches until it is dropped.
    pub(super) async fn watch(self: Arc<Self>, client: Client, scope: Scope, mut desired: Desired) {
        let apis: Vec<Api<Pod>> = scope.each(|namespace| match namespace {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        });
        let mut events = SelectAll::new();
        for (stream, api) in apis.into_iter().enumerate() {
            let watch = watcher(api, Config::default().labels(SELECTOR)).default_backoff();
            events.push(watch.map(move |event| (stream, event)).boxed());
        }
        let mut known = Known::default();
        let mut nodes = interval(NODES);
        let mut looking: Option<BoxFuture<'static, Option<BTreeMap<String, String>>>> = None;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    None => return,
                    Some((_, Err(error))) => warn!(%error, "watch of pods failed, and is tried again"),
                    Some((stream, Ok(event))) => known.take(stream, event),
                },
                changed = desired.changed() => if changed.is_err() { return },
                // An API server that does not answer must not keep what pods tell from being heard.
                _ = nodes.tick(), if looking.is_none() => {
                    looking = Some(look_at(known.nodes_in_question(), client.clone()).boxed());
                }
                lost = async { looking.as_mut()?.as_mut().await }, if looking.is_some() => {
                    looking = None;
                    if let Some(lost) = lost {
                        known.lost = lost;
                    }
                }
            }
            let wanted = Arc::clone(&desired.borrow_and_update());
            let instances = known.instances(&wanted);
            self.update(|present| Running {
                instances,
                unmade: present.unmade.clone(),
            });
        }
    }
}

impl Known {
    fn take(&mut self, stream: usize, event: Event<Pod>) {
        let listing = self.listings.entry(stream).or_default();
        for change in listing.take(event, |pod| Some(key(pod))) {
            match change {
                Change::Is(key, pod) => drop(self.pods.insert(key, pod)),
                Change::Gone(key) => drop(self.pods.remove(&key)),
            }
        }
    }

    /// Nodes of pods that are not ready: a pod on a node that is lost goes on saying that it runs.
    fn nodes_in_question(&self) -> BTreeSet<String> {
        let unready = self.pods.values().filter(|pod| !is_ready(pod));
        let nodes = unready.filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
        nodes.collect()
    }

    fn instances(&self, desired: &BTreeMap<RoleName, Workload>) -> BTreeMap<RoleName, Vec<Instance>> {
        let mut instances: BTreeMap<_, Vec<_>> =
            desired.keys().map(|role| (role.clone(), Vec::new())).collect();
        for (role, instance) in self.pods.values().filter_map(|pod| self.instance(pod, desired)) {
            instances.entry(role).or_default().push(instance);
        }
        instances
    }

    fn instance(&self, pod: &Pod, desired: &BTreeMap<RoleName, Workload>) -> Option<(RoleName, Instance)> {
        let metadata = &pod.metadata;
        let labels = metadata.labels.as_ref()?;
        let role = RoleName::new(
            labels.get(COMPONENT)?.parse().ok()?,
            metadata.namespace.clone()?,
            labels.get(INSTANCE)?,
        );
        // Labels can be written by others; the account decides what a pod may do.
        if pod.spec.as_ref()?.service_account_name.as_deref() != Some(&object_name(&role)) {
            return None;
        }
        let keeps = desired
            .get(&role)
            .is_some_and(|workload| workload.shape.volume.is_some());
        // A pod that ends is replaced, but for one whose volume holds its place, and one whose devices others take first.
        let leaving = metadata.deletion_timestamp.is_some();
        if leaving && !keeps && role.role != Role::Connector {
            return None;
        }
        let uid = metadata.uid.clone()?;
        let identity = RoleIdentity::new(role.role, role.namespace.clone(), role.name.clone(), uid).ok()?;
        let status = pod.status.clone().unwrap_or_default();
        let container = status.container_statuses.as_ref().and_then(|all| all.first());
        let instance = Instance {
            identity,
            state: self.state(pod, &status, container),
            restarts: container.map_or(0, |container| {
                u64::try_from(container.restart_count).unwrap_or_default()
            }),
            leaving: leaving && !keeps,
        };
        Some((role, instance))
    }

    fn state(&self, pod: &Pod, status: &PodStatus, container: Option<&ContainerStatus>) -> InstanceState {
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let began = created.unwrap_or(Timestamp::UNIX_EPOCH);
        let failing = |reason, error: String| InstanceState::Failing {
            since: began,
            error,
            reason,
            next: began,
        };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if let Some((node, why)) = node.and_then(|node| Some((node, self.lost.get(node)?))) {
            let claim = claim(pod)
                .map(|claim| format!(" with its volume claim {claim}"))
                .unwrap_or_default();
            let message = format!("waits for node {node}{claim}: {why}");
            return failing(reasons::WAITING_FOR_NODE, message);
        }
        if let Some(container) = container {
            return of_container(container, began);
        }
        let unscheduled = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
        if let Some(condition) = unscheduled {
            let why = condition.message.clone().unwrap_or_default();
            // The scheduler's words for a volume that is where no node is.
            let reason = if why.contains("volume node affinity") {
                reasons::WAITING_FOR_NODE
            } else {
                reasons::FAILING
            };
            return failing(reason, format!("no node takes the pod: {why}"));
        }
        InstanceState::Running { since: began }
    }
}

fn of_container(container: &ContainerStatus, began: Timestamp) -> InstanceState {
    let state = container.state.clone().unwrap_or_default();
    let ended = state.terminated.clone().or_else(|| {
        let last = container.last_state.clone().unwrap_or_default();
        last.terminated
    });
    let said = ended.as_ref().map(|ended| {
        let message = ended.message.as_deref().map(last_line).unwrap_or_default();
        if message.is_empty() {
            format!("ended with exit code {}", ended.exit_code)
        } else {
            message.to_owned()
        }
    });
    let ended_at = ended
        .as_ref()
        .and_then(|ended| ended.finished_at.as_ref())
        .map_or(began, |time| time.0);
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.clone().unwrap_or_default();
        // It is about to run.
        if reason.is_empty() || ["ContainerCreating", "PodInitializing"].contains(&reason.as_str()) {
            return InstanceState::Running { since: began };
        }
        let why = waiting.message.clone().unwrap_or_default();
        let error = match said {
            Some(said) if reason == "CrashLoopBackOff" => said,
            _ => format!("{reason}: {why}"),
        };
        return InstanceState::Failing {
            since: ended_at,
            error,
            reason: reasons::FAILING,
            next: ended_at,
        };
    }
    if state.terminated.is_some() {
        return InstanceState::Failing {
            since: ended_at,
            error: said.unwrap_or_default(),
            reason: reasons::FAILING,
            next: ended_at,
        };
    }
    let since = state
        .running
        .and_then(|running| running.started_at)
        .map_or(began, |time| time.0);
    InstanceState::Running { since }
}

/// The last line of a log says why a process ended.
fn last_line(log: &str) -> &str {
    log.trim_end().lines().next_back().unwrap_or_default()
}

/// Asks which of these nodes are lost, and why; nothing when it can't be known now.
async fn look_at(nodes: BTreeSet<String>, client: Client) -> Option<BTreeMap<String, String>> {
    let api: Api<Node> = Api::all(client);
    let mut lost = BTreeMap::new();
    for node in nodes {
        match within(api.get_opt(&node)).await {
            Ok(found) => {
                let why = found.as_ref().map_or_else(gone_node, unready_node);
                lost.extend(why.map(|why| (node, why)));
            }
            Err(error) => {
                tracing::debug!(node, %error, "node can't be read");
                return None;
            }
        }
    }
    Some(lost)
}

fn key(pod: &Pod) -> (String, String) {
    let metadata = &pod.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// Whether Kubernetes calls a pod ready.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .filter(|condition| condition.type_ == "Ready")
        .any(|condition| condition.status == "True")
}

/// The volume claim of a pod.
fn claim(pod: &Pod) -> Option<&str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| volume.persistent_volume_claim.as_ref())
        .map(|claim| claim.claim_name.as_str())
        .next()
}

fn gone_node() -> Option<String> {
    Some("it is not there any more".to_owned())
}

/// Why a node is not ready; `None` when it is.
fn unready_node(node: &Node) -> Option<String> {
    let mut conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.rfind(|condition| condition.type_ == "Ready")?;
    (ready.status != "True").then(|| {
        let message = ready.message.clone().unwrap_or_default();
        format!("it is not ready: {}", message.trim_end_matches('.'))
    })
}

#[cfg(test)]
mod tests;
