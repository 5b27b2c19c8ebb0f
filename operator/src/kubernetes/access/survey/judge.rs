//! What is right of a cluster, and what to do about what is not. Pure.

use std::collections::BTreeMap;

use foreshore_crds::conditions::status as truth;
use jiff::Timestamp;
use k8s_openapi::{
    api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Node, storage::v1::StorageClass},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};

use super::{Error, Finding};
use crate::object::Kind;

/// Oldest minor version of Kubernetes 1 whose API has all that is used: rules of definitions, and their defaults.
const OLDEST_MINOR: u32 = 30;
/// Processors that an image is there for, as Kubernetes calls them.
const PROCESSORS: [&str; 2] = ["amd64", "arm64"];
/// A lease that was not renewed for so many seconds has no holder any more.
const LEASE_SECONDS: i64 = 15;

pub(super) fn version(major: &str, minor: &str, version: &str) -> Finding {
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

pub(super) fn nodes(nodes: &[Node]) -> Finding {
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

pub(super) fn storage(classes: &[StorageClass]) -> Finding {
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

pub(super) fn definitions(
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

pub(super) fn deployment(deployment: &Deployment) -> Finding {
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

pub(super) fn lease(lease: &Lease, now: Timestamp) -> Finding {
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

    use super::{super::Verdict, *};

    #[test]
    fn versions_are_compared_as_numbers() {
        let verdict = |major, minor| version(major, minor, "v").verdict;
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
        assert_eq!(storage(&[]).verdict, Verdict::Wrong);
        assert_eq!(storage(&[class("slow", false)]).verdict, Verdict::Unclear);
        let found = storage(&[class("slow", false), class("fast", true)]);
        assert_eq!(
            (found.verdict, found.found.as_str()),
            (Verdict::Ok, "class fast is the default")
        );
    }

    #[test]
    fn missing_definitions_are_wrong_only_once_there_is_an_operator() {
        let none = || Ok(Kind::ALL.into_iter().map(|kind| (kind, None)).collect());
        assert_eq!(definitions(none(), false).verdict, Verdict::Ok);
        assert_eq!(definitions(none(), true).verdict, Verdict::Wrong);
    }

    #[test]
    fn a_lease_has_to_be_young() {
        let now = Timestamp::now();
        let held = |holder: &str, seconds: i64| Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                renew_time: Some(MicroTime(now - jiff::SignedDuration::from_secs(seconds))),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        assert_eq!(lease(&held("a", 2), now).verdict, Verdict::Ok);
        assert_eq!(lease(&held("a", 60), now).verdict, Verdict::Wrong);
        assert_eq!(lease(&held("", 2), now).verdict, Verdict::Wrong);
        assert_eq!(lease(&Lease::default(), now).verdict, Verdict::Wrong);
    }
}
