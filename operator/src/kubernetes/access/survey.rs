//! Whether a cluster, and the operator in it, are as they have to be.

use std::{collections::BTreeMap, fmt};

use foreshore_crds::conditions::status as truth;
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

/// Oldest minor version of Kubernetes 1 whose API has all that is used: rules of definitions, and their defaults.
const OLDEST_MINOR: u32 = 30;
/// Processors that an image is there for, as Kubernetes calls them.
const PROCESSORS: [&str; 2] = ["amd64", "arm64"];
/// A lease that was not renewed for so many seconds has no holder any more.
const LEASE_SECONDS: i64 = 15;

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
            judge_version(&version.major, &version.minor, &version.git_version),
            self.nodes().await,
            self.storage().await,
        ];
        let definitions = self.definitions().await;
        let operator = self.deployments().await;
        let installed = matches!(&operator, Ok(found) if !found.is_empty());
        findings.push(judge_definitions(definitions, installed));
        match operator {
            Err(error) => findings.push(Finding::unseen("operator", &error)),
            Ok(deployments) if deployments.is_empty() => findings.push(self.may_install().await),
            Ok(deployments) => {
                findings.extend(deployments.iter().map(judge_deployment));
                findings.push(self.leadership().await);
            }
        }
        Ok(Survey { findings, installed })
    }

    async fn nodes(&self) -> Finding {
        let api: Api<Node> = Api::all(self.client.clone());
        match within(api.list(&ListParams::default())).await {
            Ok(nodes) => judge_nodes(&nodes.items),
            Err(error) => Finding::unseen("nodes", &error),
        }
    }

    async fn storage(&self) -> Finding {
        let api: Api<StorageClass> = Api::all(self.client.clone());
        match within(api.list(&ListParams::default())).await {
            Ok(classes) => judge_storage(&classes.items),
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
            Ok(lease) => judge_lease(&lease, Timestamp::now()),
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

fn judge_version(major: &str, minor: &str, version: &str) -> Finding {
    let what = "Kubernetes";
    // Some distributions write "30+".
    let digits = |text: &str| -> Option<u32> { text.trim_end_matches('+').parse().ok() };
    match (digits(major), digits(minor)) {
        (Some(1), Some(minor)) if minor >= OLDEST_MINOR => Finding::ok(what, version),
        (Some(2..), _) => Finding::ok(what, version),
        (Some(_), Some(_)) => Finding::wrong(
            what,
            version,
            format!("1.{OLDEST_MINOR} is the oldest that does: upgrade the cluster"),
        ),
        _ => Finding::unclear(what, version, format!("1.{OLDEST_MINOR} is the oldest that does")),
    }
}

fn judge_nodes(nodes: &[Node]) -> Finding {
    let what = "nodes";
    let mut by_processor: BTreeMap<String, usize> = BTreeMap::new();
    let mut ready = 0;
    for node in nodes {
        let status = node.status.as_ref();
        let processor = status.and_then(|status| status.node_info.as_ref());
        let processor = processor
            .map(|info| info.architecture.clone())
            .unwrap_or_default();
        *by_processor.entry(processor).or_default() += 1;
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let is_ready = |condition: &k8s_openapi::api::core::v1::NodeCondition| {
            condition.type_ == "Ready" && condition.status == truth::TRUE
        };
        ready += usize::from(conditions.into_iter().flatten().any(is_ready));
    }
    let processors: Vec<_> = by_processor
        .iter()
        .map(|(processor, count)| format!("{count} {processor}"))
        .collect();
    let found = format!("{ready} of {} ready ({})", nodes.len(), processors.join(", "));
    if !PROCESSORS
        .iter()
        .any(|processor| by_processor.contains_key(*processor))
    {
        return Finding::wrong(
            what,
            found,
            format!(
                "the image is there for {}: add such a node",
                PROCESSORS.join(" and ")
            ),
        );
    }
    if ready < nodes.len() {
        return Finding::unclear(what, found, "look at `kubectl get nodes`");
    }
    Finding::ok(what, found)
}

fn judge_storage(classes: &[StorageClass]) -> Finding {
    let what = "storage";
    let is_default = |class: &&StorageClass| {
        let annotations = class.metadata.annotations.as_ref();
        annotations
            .and_then(|all| all.get("storageclass.kubernetes.io/is-default-class"))
            .is_some_and(|value| value == "true")
    };
    let names: Vec<_> = classes
        .iter()
        .filter_map(|class| class.metadata.name.as_deref())
        .collect();
    match classes.iter().find(is_default) {
        Some(class) => Finding::ok(
            what,
            format!(
                "class {} is the default",
                class.metadata.name.as_deref().unwrap_or_default()
            ),
        ),
        None if names.is_empty() => Finding::wrong(
            what,
            "the cluster has no storage class",
            "install a provisioner of volumes: brokers keep their messages on one",
        ),
        None => Finding::unclear(
            what,
            format!("no class is the default of {}", names.join(", ")),
            "name one as operator.storageClass of the chart, or in each Broker and Cloud",
        ),
    }
}

fn judge_definitions(
    found: Result<BTreeMap<Kind, Option<CustomResourceDefinition>>, Error>,
    installed: bool,
) -> Finding {
    let what = "definitions";
    let found = match found {
        Ok(found) => found,
        Err(error) => return Finding::unseen(what, &error),
    };
    let missing: Vec<_> = found
        .iter()
        .filter(|(_, definition)| definition.is_none())
        .map(|(kind, _)| kind.to_string())
        .collect();
    if missing.len() == found.len() && !installed {
        return Finding::ok(what, "none: the chart foreshore-crds installs them");
    }
    if !missing.is_empty() {
        return Finding::wrong(
            what,
            format!("missing: {}", missing.join(", ")),
            "install the chart foreshore-crds; objects of these kinds can't be declared",
        );
    }
    let refused: Vec<_> = found
        .iter()
        .filter(|(_, definition)| !definition.as_ref().is_some_and(is_established))
        .map(|(kind, _)| kind.to_string())
        .collect();
    if !refused.is_empty() {
        return Finding::wrong(
            what,
            format!("not established: {}", refused.join(", ")),
            "look at `kubectl describe crd`: another definition may have these names",
        );
    }
    Finding::ok(what, format!("{} of {} established", found.len(), found.len()))
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Established" && condition.status == truth::TRUE)
}

fn judge_deployment(deployment: &Deployment) -> Finding {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let what = format!("operator {name}");
    let wanted = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or(0);
    let updated = status.updated_replicas.unwrap_or(0);
    let found = format!("{ready} of {wanted} ready, {updated} up to date");
    if ready >= wanted && updated >= wanted {
        return Finding::ok(what, found);
    }
    let next = format!(
        "look at `kubectl describe deployment {name}`: {}",
        status
            .conditions
            .iter()
            .flatten()
            .filter(|condition| condition.status != truth::TRUE)
            .filter_map(|condition| condition.message.clone())
            .collect::<Vec<_>>()
            .join("; ")
    );
    if ready > 0 {
        Finding::unclear(what, found, next)
    } else {
        Finding::wrong(what, found, next)
    }
}

fn judge_lease(lease: &Lease, now: Timestamp) -> Finding {
    let what = "leader";
    let next = "look at the log of the operator's pods";
    let spec = lease.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    if holder.is_empty() {
        return Finding::wrong(what, "none", next);
    }
    let age = spec
        .renew_time
        .map(|renewed| now.duration_since(renewed.0).as_secs());
    match age {
        Some(age) if age <= LEASE_SECONDS => {
            Finding::ok(what, format!("{holder}, lease renewed {} s ago", age.max(0)))
        }
        Some(age) => Finding::wrong(
            what,
            format!("{holder} has not renewed its lease for {age} s"),
            next,
        ),
        None => Finding::wrong(what, format!("{holder} never renewed its lease"), next),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::coordination::v1::LeaseSpec,
        apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    };

    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        let verdict = |major, minor| judge_version(major, minor, "v").verdict;
        assert_eq!(verdict("1", "30"), Verdict::Ok);
        assert_eq!(verdict("1", "34+"), Verdict::Ok);
        assert_eq!(verdict("2", "0"), Verdict::Ok);
        assert_eq!(verdict("1", "9"), Verdict::Wrong);
        assert_eq!(verdict("1", "29"), Verdict::Wrong);
        assert_eq!(verdict("", "x"), Verdict::Unclear);
    }

    #[test]
    fn a_default_class_is_looked_for() {
        let class = |name: &str, default: bool| StorageClass {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                annotations: default.then(|| {
                    [(
                        "storageclass.kubernetes.io/is-default-class".to_owned(),
                        "true".to_owned(),
                    )]
                    .into()
                }),
                ..ObjectMeta::default()
            },
            ..StorageClass::default()
        };
        assert_eq!(judge_storage(&[]).verdict, Verdict::Wrong);
        assert_eq!(judge_storage(&[class("slow", false)]).verdict, Verdict::Unclear);
        let found = judge_storage(&[class("slow", false), class("fast", true)]);
        assert_eq!(
            (found.verdict, found.found.as_str()),
            (Verdict::Ok, "class fast is the default")
        );
    }

    #[test]
    fn missing_definitions_are_wrong_only_once_there_is_an_operator() {
        let none = || Ok(Kind::ALL.into_iter().map(|kind| (kind, None)).collect());
        assert_eq!(judge_definitions(none(), false).verdict, Verdict::Ok);
        assert_eq!(judge_definitions(none(), true).verdict, Verdict::Wrong);
    }

    #[test]
    fn a_lease_has_to_be_young() {
        let now = Timestamp::now();
        let lease = |holder: &str, seconds: i64| Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                renew_time: Some(MicroTime(now - jiff::SignedDuration::from_secs(seconds))),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        assert_eq!(judge_lease(&lease("a", 2), now).verdict, Verdict::Ok);
        assert_eq!(judge_lease(&lease("a", 60), now).verdict, Verdict::Wrong);
        assert_eq!(judge_lease(&lease("", 2), now).verdict, Verdict::Wrong);
        assert_eq!(judge_lease(&Lease::default(), now).verdict, Verdict::Wrong);
    }
}
