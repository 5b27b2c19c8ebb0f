//! Another version of the charts, and back.

mod charts;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use self::charts::{Charts, NEW};
use super::{install, kill, pods::Pods};
use crate::{
    cloud::Cloud,
    cluster::{Cluster, DEADLINE, OPERATOR, PLANT, eventually, is_ready},
};

/// The releases.
const DEFINITIONS: &str = "foreshore-crds";
const RELEASE: &str = "foreshore";

/// A tag that no image has.
const NO_TAG: &str = "doesnotexist";

/// Upgrades both charts, at the full count the image too, and rolls back: data flows on, and the objects are the same as
/// before.
pub(super) async fn and_back(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    let charts = Charts::later(cluster).await?;
    let first = [
        revision(cluster, DEFINITIONS).await?,
        revision(cluster, RELEASE).await?,
    ];
    let objects = kill::objects(cluster).await?;
    let image = role_image(cluster).await?;

    operator_alone(cluster, &charts).await?;
    if cluster.full {
        with_its_image(cluster, &charts, &image).await?;
    }

    helm_rollback(cluster, RELEASE, &first[1]).await?;
    roles_run(cluster, &image).await.context("rolled back")?;
    helm_rollback(cluster, DEFINITIONS, &first[0]).await?;
    install::well(cluster).await?;
    install::flows(cluster).await?;
    same(&objects, &kill::objects(cluster).await?)
}

/// Upgrades definitions and operator: no role is restarted, and the cloud endpoint goes on committing.
async fn operator_alone(cluster: &Cluster, charts: &Charts) -> Result<()> {
    let roles = Pods::of_plant(cluster).await?;
    let operators = operators(cluster).await?;
    let cloud = Cloud::reach(cluster).await?;
    let committed = cloud.committed().await?;
    cluster
        .helm(&["upgrade", DEFINITIONS, charts.definitions(), "-n", OPERATOR])
        .await?;
    helm_upgrade(
        cluster,
        charts.operator(),
        &["resources.requests.memory=72Mi", "operator.log=debug"],
    )
    .await?;
    let during = cloud.committed().await?;
    if during <= committed {
        bail!("{committed} outputs are committed before the upgrade, {during} after it");
    }
    let leader = eventually("a new operator leads", DEADLINE, || async {
        let leader = kill::leader(cluster).await?;
        let now = self::operators(cluster).await?;
        let old = now
            .iter()
            .any(|(uid, _)| operators.iter().any(|(old, _)| old == uid));
        if old {
            bail!("an operator of before runs: {now:?}");
        }
        Ok(leader)
    })
    .await?;
    let pod = cluster.json(&["get", "pod", &leader, "-n", OPERATOR]).await?;
    if pod["metadata"]["labels"]["app.kubernetes.io/version"] != NEW {
        bail!("{leader} is of no new version: {}", pod["metadata"]["labels"]);
    }
    install::well(cluster).await?;
    eventually("data flows under the new operator", DEADLINE, || async {
        let now = cloud.committed().await?;
        Ok((now > during).then_some(()))
    })
    .await?;
    roles.stay(cluster).await
}

/// Upgrades the image, which roles run too: they are replaced, and data flows again.
async fn with_its_image(cluster: &Cluster, charts: &Charts, image: &str) -> Result<()> {
    let (repository, _) = image.rsplit_once(':').context("tag of the image")?;
    let tag = env!("CARGO_PKG_VERSION");
    let other = format!("{repository}:{tag}");
    if other == image || !is_everywhere(cluster, &other).await? {
        eprintln!("    NOT TESTED: an upgrade of the image, since not every node has {other}");
        return Ok(());
    }
    helm_upgrade(cluster, charts.operator(), &[&format!("image.tag={tag}")]).await?;
    roles_run(cluster, &other).await?;
    install::well(cluster).await?;
    install::flows(cluster).await
}

/// Upgrades to an image that nobody has: the old operator leads on, data flows on, and the way back is as always.
pub(super) async fn to_nothing(cluster: &Cluster) -> Result<()> {
    install::well(cluster).await?;
    let first = revision(cluster, RELEASE).await?;
    let objects = kill::objects(cluster).await?;
    let roles = Pods::of_plant(cluster).await?;
    let before = operators(cluster).await?;
    let leader = kill::leader(cluster).await?.context("nobody leads")?;
    let cloud = Cloud::reach(cluster).await?;
    let committed = cloud.committed().await?;

    let tag = format!("image.tag={NO_TAG}");
    let upgrade = [
        "--reset-then-reuse-values",
        "--wait",
        "--timeout",
        "15s",
        "--set",
        &tag,
    ];
    let upgrade = [
        &["upgrade", RELEASE, "charts/foreshore", "-n", OPERATOR],
        &upgrade[..],
    ]
    .concat();
    if cluster.helm(&upgrade).await.is_ok() {
        bail!("an upgrade to an image that nobody has succeeded");
    }
    let now = operators(cluster).await?;
    if !now.iter().any(|(_, image)| image.ends_with(NO_TAG)) {
        bail!("no operator was to run {NO_TAG}: {now:?}");
    }
    if let Some(gone) = before.iter().find(|operator| !now.contains(operator)) {
        bail!("an operator went for one that can't run: {gone:?}");
    }
    let leads = eventually("somebody leads", DEADLINE, || kill::leader(cluster)).await?;
    if leads != leader {
        bail!("{leader} led, now {leads}");
    }
    eventually("data flows on", DEADLINE, || async {
        let now = cloud.committed().await?;
        Ok((now > committed).then_some(()))
    })
    .await?;

    helm_rollback(cluster, RELEASE, &first).await?;
    if operators(cluster).await? != before {
        bail!("not the operators of before the upgrade run after its end");
    }
    roles.stay(cluster).await?;
    install::well(cluster).await?;
    same(&objects, &kill::objects(cluster).await?)
}

async fn helm_upgrade(cluster: &Cluster, chart: &str, values: &[&str]) -> Result<()> {
    let mut upgrade = vec!["upgrade", RELEASE, chart, "-n", OPERATOR];
    upgrade.extend(["--reset-then-reuse-values", "--wait", "--timeout", "150s"]);
    for value in values {
        upgrade.extend(["--set", value]);
    }
    cluster.helm(&upgrade).await.map(drop)
}

async fn helm_rollback(cluster: &Cluster, release: &str, revision: &str) -> Result<()> {
    let rollback = ["rollback", release, revision, "-n", OPERATOR];
    cluster
        .helm(&[&rollback[..], &["--wait", "--timeout", "150s"]].concat())
        .await
        .map(drop)
}

/// The revision of a release that is in force.
async fn revision(cluster: &Cluster, release: &str) -> Result<String> {
    let status = cluster
        .helm(&["status", release, "-n", OPERATOR, "-o", "json"])
        .await?;
    let status: Value = serde_json::from_str(&status)?;
    Ok(status["version"].to_string())
}

/// Pods of the operator that are not ending, by identity, with their image.
async fn operators(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let selector = "app.kubernetes.io/component=operator";
    let pods = cluster.items(&["pods", "-n", OPERATOR, "-l", selector]).await?;
    let mut operators: Vec<_> = pods
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (
                text(&pod["metadata"]["uid"]),
                text(&pod["spec"]["containers"][0]["image"]),
            )
        })
        .collect();
    operators.sort();
    Ok(operators)
}

/// The image of all roles.
async fn role_image(cluster: &Cluster) -> Result<String> {
    let images = role_images(cluster).await?;
    match images.as_slice() {
        [image] => Ok(image.clone()),
        _ => bail!("roles run {images:?}, not one image"),
    }
}

/// Waits until each role runs this image.
async fn roles_run(cluster: &Cluster, image: &str) -> Result<()> {
    eventually("all roles run the image", DEADLINE, || async {
        let images = role_images(cluster).await?;
        if images != [image] {
            bail!("roles run {images:?}, not {image}");
        }
        Ok(Some(()))
    })
    .await
}

/// Every image that a role runs; an error where a role has no pod that is ready.
async fn role_images(cluster: &Cluster) -> Result<Vec<String>> {
    let mut images = Vec::new();
    for (component, instance) in kill::ROLES {
        let selector =
            format!("app.kubernetes.io/component={component},app.kubernetes.io/instance={instance}");
        let pods = cluster.items(&["pods", "-n", PLANT, "-l", &selector]).await?;
        if !pods.iter().any(is_ready) {
            bail!("{component} {instance} has no pod that is ready");
        }
        for pod in pods {
            let image = pod["spec"]["containers"][0]["image"].as_str();
            images.push(image.context("image of a pod")?.to_owned());
        }
    }
    images.sort();
    images.dedup();
    Ok(images)
}

/// Whether each node has an image.
async fn is_everywhere(cluster: &Cluster, image: &str) -> Result<bool> {
    let nodes = cluster.items(&["nodes"]).await?;
    Ok(nodes.iter().all(|node| {
        let images = node["status"]["images"].as_array().into_iter().flatten();
        let mut names = images.filter_map(|known| known["names"].as_array()).flatten();
        names.any(|name| name == image)
    }))
}

fn same(before: &[String], after: &[String]) -> Result<()> {
    let gone: Vec<_> = before.iter().filter(|object| !after.contains(object)).collect();
    let new: Vec<_> = after.iter().filter(|object| !before.contains(object)).collect();
    if !gone.is_empty() || !new.is_empty() {
        bail!("objects that were there before: {gone:#?}\nand that are there now: {new:#?}");
    }
    Ok(())
}
