//! A GitOps tool makes a plant what Git says: Argo CD, with the Application and the health check of `deploy/argocd`.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::install;
use crate::{
    cluster::{Cluster, DEADLINE, OPERATOR, condition, eventually},
    gitops::{Argocd, MADE, MANAGER, Repository, made, only_wrote, same, summary, written},
};

/// Namespace of the plant that Git describes; `tests/gitops/plant` names it.
const PLANT: &str = "gitops";

/// Makes a plant from a repository, changes it there and by hand, and removes it.
pub(super) async fn follows(cluster: &Cluster) -> Result<()> {
    let programs = cluster.argocd.as_deref().context("no Argo CD")?;
    if cluster.items(&["deployments", "-n", OPERATOR]).await?.is_empty() {
        install::operator(cluster).await?;
    }
    let folder = tempfile::tempdir().context("folder for Argo CD")?;
    let argocd = Argocd::start(cluster, programs, folder.path()).await?;
    let plant = Plant {
        cluster,
        argocd: &argocd,
        repository: Repository::new(&cluster.root, folder.path()).await?,
    };
    let ended = Box::pin(plant.lives()).await;
    if ended.is_err() {
        argocd.explain();
    }
    ended?;
    argocd.remove().await
}

struct Plant<'a> {
    cluster: &'a Cluster,
    argocd: &'a Argocd<'a>,
    repository: Repository,
}

impl Plant<'_> {
    async fn lives(&self) -> Result<()> {
        self.begins().await.context("from nothing")?;
        self.changes().await.context("a change")?;
        self.drifts().await.context("drift")?;
        self.shrinks().await.context("objects that are gone from Git")?;
        self.is_unreadable()
            .await
            .context("a commit that can't be rendered")?;
        self.is_refused()
            .await
            .context("a commit that the API server refuses")?;
        self.is_wrong()
            .await
            .context("a commit that the operator refuses")?;
        self.rests().await.context("the same once more")?;
        self.ends().await.context("the end")
    }

    /// Everything that is committed is there, and the health check has judged each object of ours.
    async fn begins(&self) -> Result<()> {
        let commit = self.repository.commit("Begin", &[]).await?;
        self.argocd.follow(&self.repository, PLANT).await?;
        let application = self.argocd.in_force(&commit).await?;
        let folder = self.repository.plant();
        let live = self.cluster.items(&["-k", &folder.to_string_lossy()]).await?;
        let known = resources(&application);
        if live.len() != known.len() {
            bail!("{} objects are there, Argo CD knows {}", live.len(), known.len());
        }
        let ours: Vec<_> = known
            .iter()
            .filter(|resource| resource["group"] == "foreshore.dev")
            .collect();
        if ours.len() < 20 {
            bail!("found {} objects of ours", ours.len());
        }
        // Argo CD has no opinion on a kind for which it has no check.
        match ours
            .iter()
            .find(|resource| resource["health"]["status"] != "Healthy")
        {
            Some(resource) => bail!("not judged: {resource}"),
            None => Ok(()),
        }
    }

    /// A data point more in Git is read by the connector.
    async fn changes(&self) -> Result<()> {
        let before = self.filler().await?;
        let point =
            json!({"name": "Level", "address": "nsu=urn:foreshore:sim:bottling-line;s=Filler.FillLevel"});
        let patches = [set(
            "Asset",
            "filler",
            "add",
            "/spec/datasets/0/dataPoints/-",
            &point,
        )];
        let commit = self.repository.commit("Read the level", &patches).await?;
        self.argocd.in_force(&commit).await?;
        let after = self.filler().await?;
        let points = after["spec"]["datasets"][0]["dataPoints"].as_array();
        if points.is_none_or(|points| !points.contains(&point)) {
            bail!("no such data point: {}", after["spec"]["datasets"][0]);
        }
        let generation = after["metadata"]["generation"].as_i64();
        if generation != before["metadata"]["generation"].as_i64().map(|before| before + 1) {
            bail!(
                "{} became generation {generation:?}",
                before["metadata"]["generation"]
            );
        }
        for type_ in ["Accepted", "Ready"] {
            let found = condition(&after, type_);
            if found["status"] != "True" || found["observedGeneration"].as_i64() != generation {
                bail!("{type_} at generation {generation:?}: {found}");
            }
        }
        Ok(())
    }

    /// What somebody changes or deletes by hand is as Git says soon.
    async fn drifts(&self) -> Result<()> {
        let filler = ["asset", "filler", "-n", PLANT];
        let capper = ["asset", "capper", "-n", PLANT];
        let before = self.filler().await?;
        let by_hand = r#"{"spec":{"displayName":"Changed by hand"}}"#;
        self.cluster
            .kubectl(&[&["patch"][..], &filler, &["--type=merge", "-p", by_hand]].concat())
            .await?;
        self.cluster.kubectl(&[&["delete"][..], &capper].concat()).await?;
        eventually("both Assets are as in Git", DEADLINE, || async {
            let now = self.filler().await?;
            self.cluster.json(&[&["get"][..], &capper].concat()).await?;
            let changed = now["metadata"]["generation"] != before["metadata"]["generation"];
            if !changed || now["spec"] != before["spec"] {
                bail!("the filler has {}", now["spec"]["displayName"]);
            }
            Ok(Some(()))
        })
        .await?;
        let commit = self.repository.commit("Nothing", &[]).await?;
        self.argocd.in_force(&commit).await.map(drop)
    }

    /// What is not in Git any more is not in the cluster either, and nothing that was made for it.
    async fn shrinks(&self) -> Result<()> {
        let gone = [
            ("Connector", "onvif"),
            ("Simulator", "camera-1"),
            ("Device", "camera-1"),
            ("Asset", "camera"),
        ];
        let made =
            "app.kubernetes.io/managed-by=foreshore-operator,app.kubernetes.io/instance in (onvif, camera-1)";
        let made = [MADE, "-n", PLANT, "-l", made];
        if self.cluster.items(&made).await?.is_empty() {
            bail!("nothing was made for the camera");
        }
        let commit = self
            .repository
            .commit("Sell the camera", &gone.map(without))
            .await?;
        let application = self.argocd.in_force(&commit).await?;
        for (kind, name) in gone {
            let left = self.cluster.items(&[kind, "-n", PLANT]).await?;
            if left.iter().any(|object| object["metadata"]["name"] == name) {
                bail!("{kind} {name} is left; {}", summary(&application));
            }
        }
        eventually("nothing of the camera is left", DEADLINE, || async {
            match self.cluster.items(&made).await?.first() {
                Some(left) => bail!("left: {} {}", left["kind"], left["metadata"]["name"]),
                None => Ok(Some(())),
            }
        })
        .await?;
        let commit = self.repository.commit("Buy it again", &[]).await?;
        self.argocd.in_force(&commit).await.map(drop)
    }

    /// Of a commit that can't be rendered nothing is applied; the next good one is.
    async fn is_unreadable(&self) -> Result<()> {
        let before = written(self.cluster, PLANT).await?;
        let name = set("Asset", "filler", "replace", "/spec/displayName", &json!("Half"));
        let wrong = set("Asset", "filler", "replace", "/spec/no/such/place", &json!(1));
        self.repository.commit("Err", &[name, wrong]).await?;
        eventually("Argo CD tells what can't be rendered", DEADLINE, || async {
            let application = self.argocd.application().await?;
            let conditions = application["status"]["conditions"].as_array();
            let told = conditions.into_iter().flatten().any(|condition| {
                let message = condition["message"].as_str().unwrap_or_default();
                condition["type"] == "ComparisonError" && message.contains("/spec/no/such/place")
            });
            if !told {
                bail!("Argo CD is at {}", summary(&application));
            }
            Ok(Some(()))
        })
        .await?;
        same(&before, &written(self.cluster, PLANT).await?)?;
        let commit = self.repository.commit("Correct it", &[]).await?;
        self.argocd.in_force(&commit).await.map(drop)
    }

    /// An object that the API server refuses stays as it was, and what runs runs on; the next good commit is applied.
    ///
    /// Argo CD applies the other objects of that commit: its dry run does not ask the API server.
    async fn is_refused(&self) -> Result<()> {
        let (mut before, running) = (
            written(self.cluster, PLANT).await?,
            made(self.cluster, PLANT).await?,
        );
        let label = set("Asset", "filler", "replace", "/spec/displayName", &json!("Half"));
        let wrong = set("Connector", "opcua", "replace", "/spec/protocol", &json!("telex"));
        let refused = self.repository.commit("Speak telex", &[label, wrong]).await?;
        eventually("Argo CD tells what is refused", DEADLINE, || async {
            let application = self.argocd.application().await?;
            let result = &application["status"]["operationState"]["syncResult"];
            let told = result["resources"].as_array().into_iter().flatten();
            let mut told = told.filter(|resource| resource["status"] == "SyncFailed");
            let told = told.any(|resource| {
                let message = resource["message"].as_str().unwrap_or_default();
                resource["kind"] == "Connector" && message.contains("telex")
            });
            if result["revision"] != refused.as_str() || !told {
                bail!("Argo CD is at {}: {}", summary(&application), result["resources"]);
            }
            Ok(Some(()))
        })
        .await?;
        let mut after = written(self.cluster, PLANT).await?;
        for objects in [&mut before, &mut after] {
            objects.remove(r#""Asset" "filler""#).context("no filler")?;
        }
        same(&before, &after)?;
        same(&running, &made(self.cluster, PLANT).await?)?;
        let label = set("Asset", "filler", "replace", "/spec/displayName", &json!("Whole"));
        let commit = self.repository.commit("Speak OPC UA", &[label]).await?;
        self.argocd.in_force(&commit).await?;
        let filler = self.filler().await?;
        if filler["spec"]["displayName"] != "Whole" {
            bail!("the filler has {}", filler["spec"]["displayName"]);
        }
        Ok(())
    }

    /// A commit that only the operator can judge makes the plant degraded, until it is mended.
    async fn is_wrong(&self) -> Result<()> {
        let path = "/spec/stages/0/filter/expression";
        let wrong = set("Dataflow", "telemetry", "replace", path, &json!("member !="));
        let commit = self.repository.commit("Filter", &[wrong]).await?;
        eventually("Argo CD calls the plant degraded", DEADLINE, || async {
            let application = self.argocd.application().await?;
            let status = &application["status"];
            let flow = resources(&application)
                .iter()
                .find(|resource| resource["kind"] == "Dataflow" && resource["name"] == "telemetry");
            let health = flow.map_or(&Value::Null, |flow| &flow["health"]);
            let degraded = [&status["health"], health]
                .iter()
                .all(|health| health["status"] == "Degraded");
            if status["sync"]["revision"] != commit.as_str() || !degraded {
                bail!("Argo CD is at {}", summary(&application));
            }
            Ok(Some(()))
        })
        .await?;
        let commit = self.repository.commit("Filter as before", &[]).await?;
        self.argocd.in_force(&commit).await.map(drop)
    }

    /// Applied twice, nothing is written, and nobody but Argo CD has ever written a field of what is in Git.
    async fn rests(&self) -> Result<()> {
        let (before, running) = (
            written(self.cluster, PLANT).await?,
            made(self.cluster, PLANT).await?,
        );
        let commit = self.repository.commit("Nothing", &[]).await?;
        self.argocd.in_force(&commit).await?;
        let application = self.argocd.apply_again(&commit).await?;
        let applied = application["status"]["operationState"]["syncResult"]["resources"]
            .as_array()
            .map_or(0, Vec::len);
        if applied < before.len() {
            bail!("{applied} objects were applied, not {}", before.len());
        }
        self.argocd.in_force(&commit).await?;
        same(&before, &written(self.cluster, PLANT).await?)?;
        same(&running, &made(self.cluster, PLANT).await?)?;
        only_wrote(self.cluster, PLANT, MANAGER).await
    }

    /// The plant goes with its Application, and its namespace with it.
    async fn ends(&self) -> Result<()> {
        self.argocd.delete_application().await?;
        eventually("the namespace of the plant is gone", DEADLINE, || async {
            let left = self.cluster.items(&["namespaces"]).await?;
            match left
                .iter()
                .find(|namespace| namespace["metadata"]["name"] == PLANT)
            {
                Some(left) => bail!("it is still there: {}", left["status"]),
                None => Ok(Some(())),
            }
        })
        .await
    }

    async fn filler(&self) -> Result<Value> {
        self.cluster.json(&["get", "asset", "filler", "-n", PLANT]).await
    }
}

/// The objects of an Application.
fn resources(application: &Value) -> &[Value] {
    application["status"]["resources"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

/// A change to an object of the example.
fn set(kind: &str, name: &str, what: &str, path: &str, value: &Value) -> Value {
    let change = json!([{"op": what, "path": path, "value": value}]);
    json!({"target": {"kind": kind, "name": name}, "patch": change.to_string()})
}

/// The example without an object.
fn without((kind, name): (&str, &str)) -> Value {
    let object = json!({
        "$patch": "delete", "apiVersion": "foreshore.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": PLANT},
    });
    json!({"patch": object.to_string()})
}
