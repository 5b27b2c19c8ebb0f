//! What a person's tools reach in a cluster, with that person's own rights.
//!
//! | module | what |
//! |---|---|
//! | [`survey`] | whether the cluster and the operator in it are as they have to be |
//! | [`evidence`] | what a support case needs, without Secrets |
//! | [`trial`] | a plant that is made to be looked at and removed |

pub mod evidence;
pub mod survey;
pub mod trial;

use std::fmt;

use k8s_openapi::api::{authentication::v1::SelfSubjectReview, coordination::v1::Lease, core::v1::Pod};
use kube_client::{
    Api, Client, Config,
    api::{ListParams, PostParams},
    config::KubeConfigOptions,
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Error, lease, within};
use crate::workloads::{
    pods::{
        build::{COMPONENT, SELECTOR},
        is_ready,
    },
    ports,
};

/// A cluster, as a person reaches it.
#[derive(Clone)]
pub struct Access {
    client: Client,
    /// Namespace of the operator.
    operator: String,
    /// Namespace of plants where none is named.
    namespace: String,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "pod {}/{}", self.namespace, self.name)
    }
}

impl Access {
    /// Reaches the cluster of a context of the user's kubeconfig, or of its current one; `operator` is the namespace of
    /// the operator.
    ///
    /// # Errors
    /// When there is no kubeconfig, or it is not right.
    pub async fn of_user(context: Option<String>, operator: impl Into<String>) -> Result<Self, Error> {
        let unusable = |problem: &dyn fmt::Display| Error::Unusable {
            what: "kubeconfig".to_owned(),
            problem: problem.to_string(),
        };
        let config = match context {
            None => Config::infer().await.map_err(|error| unusable(&error))?,
            Some(_) => {
                let options = KubeConfigOptions {
                    context,
                    ..KubeConfigOptions::default()
                };
                let config = Config::from_kubeconfig(&options).await;
                config.map_err(|error| unusable(&error))?
            }
        };
        let namespace = config.default_namespace.clone();
        Ok(Self {
            client: Client::try_from(config)?,
            operator: operator.into(),
            namespace,
        })
    }

    /// Namespace of plants where none is named: that of the context.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Namespace of the operator.
    #[must_use]
    pub fn operator(&self) -> &str {
        &self.operator
    }

    /// Who the API server says the user is.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn user(&self) -> Result<String, Error> {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = within(api.create(&PostParams::default(), &SelfSubjectReview::default())).await?;
        let user = review.status.and_then(|status| status.user_info);
        Ok(user.and_then(|user| user.username).unwrap_or_default())
    }

    /// The pod of the operator that leads.
    ///
    /// # Errors
    /// [`Error::Unusable`] when none leads.
    pub async fn leader(&self) -> Result<PodName, Error> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.operator);
        let lease = match within(api.get(lease::NAME)).await {
            Err(error) if error.is_not_found() => {
                return Err(Error::Unusable {
                    what: format!("operator in namespace {}", self.operator),
                    problem:
                        "none was ever there: name its namespace with --operator-namespace, or install it"
                            .to_owned(),
                });
            }
            lease => lease?,
        };
        let holder = lease.spec.and_then(|spec| spec.holder_identity);
        let name = holder.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| Error::Unusable {
            what: format!("operator in namespace {}", self.operator),
            problem: format!(
                "none leads: look at `kubectl get pods --namespace {}`",
                self.operator
            ),
        })?;
        Ok(PodName {
            namespace: self.operator.clone(),
            name,
        })
    }

    /// The pods of roles of one sort, such as `broker`, that are ready; in all namespaces where none is named.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn role_pods(&self, component: &str, namespace: Option<&str>) -> Result<Vec<PodName>, Error> {
        let labels = format!("{SELECTOR},{COMPONENT}={component}");
        let pods = self.pods(namespace, &labels).await?;
        let stays = |pod: &&Pod| pod.metadata.deletion_timestamp.is_none() && is_ready(pod);
        Ok(pods.iter().filter(stays).map(name_of).collect())
    }

    async fn pods(&self, namespace: Option<&str>, labels: &str) -> Result<Vec<Pod>, Error> {
        let api: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let list = within(api.list(&ListParams::default().labels(labels))).await?;
        Ok(list.items)
    }

    /// Connects to where a pod answers requests of tools.
    ///
    /// # Errors
    /// [`Error`]; a pod that does not answer shows only when the connection is used.
    pub async fn admin(&self, pod: &PodName) -> Result<impl AsyncRead + AsyncWrite + use<>, Error> {
        self.connect(pod, ports::ADMIN).await
    }

    /// Connects to a port of a pod, with the right to forward it.
    async fn connect(&self, pod: &PodName, port: u16) -> Result<impl AsyncRead + AsyncWrite + use<>, Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let mut forwarder = within(api.portforward(&pod.name, &[port])).await?;
        forwarder.take_stream(port).ok_or_else(|| Error::Unusable {
            what: pod.to_string(),
            problem: format!("port {port} can't be forwarded"),
        })
    }
}

fn name_of(pod: &Pod) -> PodName {
    PodName {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
    }
}
