//! Roles as pods.
//!
//! ```text
//! workloads ─► build: objects ─► apply: what differs ─► Kubernetes API
//! instances ◄─ observe: pods ◄──────────────────────────┘
//! ```
//!
//! [`build`] is pure. [`apply`](mod@apply) owns what it builds: whatever anybody else changes of it, or deletes, is made
//! again; what others add beside it is theirs, as server-side apply has it. What a role is told does not pass here: plans travel over the control session, so that no change of an Asset
//! restarts a pod.

mod apply;
pub mod build;
mod observe;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_runtime::{Shutdown, spawn};
use foreshore_tls::RoleIdentity;
use kube_client::Client;
use tokio::sync::watch;

pub use build::{Child, ChildKey, ChildKind, Peers, Settings};
pub(crate) use observe::is_ready;

use self::{apply::Applier, observe::Pods};
use super::{Running, Workload, Workloads};
use crate::{
    control::Trust,
    kubernetes::{OperatorMetrics, Scope},
    role::RoleName,
};

/// Audience of the tokens that roles show at their enrolment.
pub const AUDIENCE: &str = "foreshore.dev/control";

/// How long the last calls may take when the operator ends.
const END: Duration = Duration::from_secs(5);

/// Roles as pods.
pub struct PodWorkloads {
    desired: watch::Sender<Arc<BTreeMap<RoleName, Workload>>>,
    pods: Arc<Pods>,
    shutdown: Shutdown,
}

impl PodWorkloads {
    /// Begins to watch pods, and makes objects as [`Workloads::apply`] says, until the shutdown begins. Pods go on
    /// running after it.
    #[must_use]
    pub fn start(
        client: &Client,
        scope: &Scope,
        settings: Settings,
        trust: Trust,
        metrics: OperatorMetrics,
        shutdown: Shutdown,
    ) -> Self {
        let desired = watch::Sender::new(Arc::default());
        let pods = Arc::new(Pods::default());
        let watching = Arc::clone(&pods).watch(client.clone(), scope.clone(), desired.subscribe());
        let ending = shutdown.clone();
        spawn("pods", async move {
            ending.or_begun(watching).await;
        })
        .detach();
        let applier = Applier::new(
            client.clone(),
            scope.clone(),
            settings,
            trust,
            Arc::clone(&pods),
            metrics,
        );
        spawn("workloads", applier.run(desired.subscribe(), shutdown.clone())).detach();
        Self {
            desired,
            pods,
            shutdown,
        }
    }

    /// What knows which role a pod is.
    #[must_use]
    pub fn identities(&self) -> Identities {
        Identities {
            desired: self.desired.subscribe(),
        }
    }
}

#[async_trait]
impl Workloads for PodWorkloads {
    async fn apply(&self, desired: BTreeMap<RoleName, Workload>) {
        self.desired.send_if_modified(|present| {
            let differs = **present != desired;
            if differs {
                *present = Arc::new(desired);
            }
            differs
        });
    }

    fn running(&self) -> watch::Receiver<Arc<Running>> {
        self.pods.running()
    }

    /// Pods run on without an operator.
    async fn end(&self) {
        self.shutdown.begin(END);
    }
}

/// Knows which role a pod is.
#[derive(Clone)]
pub struct Identities {
    desired: watch::Receiver<Arc<BTreeMap<RoleName, Workload>>>,
}

impl Identities {
    /// The role of a pod that runs as a ServiceAccount: each workload has one of its own. `None` where no workload that
    /// is wanted has that one.
    #[must_use]
    pub fn of(&self, namespace: &str, service_account: &str, pod_uid: &str) -> Option<RoleIdentity> {
        let desired = Arc::clone(&self.desired.borrow());
        let role = desired
            .keys()
            .find(|role| role.namespace == namespace && build::object_name(role) == service_account)?;
        RoleIdentity::new(role.role, role.namespace.clone(), role.name.clone(), pod_uid).ok()
    }
}
