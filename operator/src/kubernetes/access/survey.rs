//! Whether a cluster, and the operator in it, are as they have to be.

mod judge;

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
        coordination::v1::Lease,
        core::v1::Node,
        storage::v1::StorageClass,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube_client::{
    Api,
    api::{ListParams, PostParams},
};
use serde::Serialize;

use super::{Access, Error, lease, within};
use crate::{kubernetes::plural, object::Kind};

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// Whether it is right.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Whether something is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Verdict {
    /// It is.
    Ok,
    /// It may do, or could not be looked at.
    Unclear,
    /// It is not.
    Wrong,
}

impl Finding {
    /// It is right.
    pub fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            verdict: Verdict::Ok,
            found: found.into(),
            next: None,
        }
    }

    /// It may do, or could not be looked at.
    pub fn unclear(what: impl Into<String>, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Unclear,
            next: Some(next.into()),
            ..Self::ok(what, found)
        }
    }

    /// It is not right.
    pub fn wrong(what: impl Into<String>, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Wrong,
            next: Some(next.into()),
            ..Self::ok(what, found)
        }
    }

    /// It could not be looked at.
    fn unseen(what: &str, error: &Error) -> Self {
        Self::unclear(
            what,
            error.to_string(),
            "ask somebody who may look, or grant the right",
        )
    }
}

impl fmt::Display for Finding {
    /// A line, and below it what to do.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            verdict,
            found,
            next,
        } = self;
        let verdict = match verdict {
            Verdict::Ok => "ok",
            Verdict::Unclear => "unclear",
            Verdict::Wrong => "WRONG",
        };
        write!(formatter, "{verdict:<8}{what}: {found}")?;
        match next {
            Some(next) => write!(formatter, "\n        next: {next}"),
            None => Ok(()),
        }
    }
}

/// What was found of a cluster.
#[derive(Clone, Debug)]
pub struct Survey {
    /// In the order in which it should be read.
    pub findings: Vec<Finding>,
    /// Whether an operator is installed.
    pub installed: bool,
}

impl Access {
    /// Looks at the cluster, and at the operator where there is one.
    ///
    /// # Errors
    /// When the cluster can't be reached; what may not be looked at is a finding.
    pub async fn survey(&self) -> Result<Survey, Error> {
        let version = within(self.client.apiserver_version()).await?;
        let mut findings = vec![
            judge::version(&version.major, &version.minor, &version.git_version),
            self.nodes().await,
            self.storage().await,
        ];
        let definitions = self.definitions().await;
        let operator = self.deployments().await;
        let installed = matches!(&operator, Ok(found) if !found.is_empty());
        findings.push(judge::definitions(definitions, installed));
        match operator {
            Err(error) => findings.push(Finding::unseen("operator", &error)),
            Ok(deployments) if deployments.is_empty() => findings.push(self.may_install().await),
            Ok(deployments) => {
                findings.extend(deployments.iter().map(judge::deployment));
                findings.push(self.leadership().await);
            }
        }
        Ok(Survey { findings, installed })
    }

    async fn nodes(&self) -> Finding {
        let api: Api<Node> = Api::all(self.client.clone());
        match within(api.list(&ListParams::default())).await {
            Ok(nodes) => judge::nodes(&nodes.items),
            Err(error) => Finding::unseen("nodes", &error),
        }
    }

    async fn storage(&self) -> Finding {
        let api: Api<StorageClass> = Api::all(self.client.clone());
        match within(api.list(&ListParams::default())).await {
            Ok(classes) => judge::storage(&classes.items),
            Err(error) => Finding::unseen("storage", &error),
        }
    }

    /// The definitions of our kinds; `None` where one is missing.
    async fn definitions(&self) -> Result<BTreeMap<Kind, Option<CustomResourceDefinition>>, Error> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let mut found = BTreeMap::new();
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_ours()) {
            let name = format!("{}.foreshore.dev", plural(kind));
            found.insert(kind, within(api.get_opt(&name)).await?);
        }
        Ok(found)
    }

    async fn deployments(&self) -> Result<Vec<Deployment>, Error> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &self.operator);
        let labels = "app.kubernetes.io/name=foreshore,app.kubernetes.io/component=operator";
        let list = within(api.list(&ListParams::default().labels(labels))).await?;
        Ok(list.items)
    }

    /// Before an installation: whether the user may do it.
    async fn may_install(&self) -> Finding {
        let what = "operator";
        let needed = [
            ("apiextensions.k8s.io", "customresourcedefinitions"),
            ("rbac.authorization.k8s.io", "clusterroles"),
            ("apps", "deployments"),
        ];
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let mut refused = Vec::new();
        for (group, resource) in needed {
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(ResourceAttributes {
                        group: Some(group.to_owned()),
                        resource: Some(resource.to_owned()),
                        verb: Some("create".to_owned()),
                        namespace: Some(self.operator.clone()),
                        ..ResourceAttributes::default()
                    }),
                    ..SelfSubjectAccessReviewSpec::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            match within(api.create(&PostParams::default(), &review)).await {
                Ok(review) if review.status.as_ref().is_some_and(|status| status.allowed) => {}
                Ok(_) => refused.push(resource),
                Err(error) => return Finding::unseen(what, &error),
            }
        }
        let namespace = &self.operator;
        if refused.is_empty() {
            return Finding::ok(
                what,
                format!(
                    "none in namespace {namespace}; you may install it with the charts foreshore-crds and foreshore"
                ),
            );
        }
        Finding::unclear(
            what,
            format!(
                "none in namespace {namespace}, and you may not create {}",
                refused.join(", ")
            ),
            "let a cluster administrator install it, or name its namespace with --operator-namespace",
        )
    }

    async fn leadership(&self) -> Finding {
        let what = "leader";
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.operator);
        match within(api.get(lease::NAME)).await {
            Ok(lease) => judge::lease(&lease, Timestamp::now()),
            Err(error) => Finding::wrong(
                what,
                error.to_string(),
                format!(
                    "look at the log of the operator's pods in namespace {}",
                    self.operator
                ),
            ),
        }
    }
}
