//! What a user wrote stays as it was written, so that no tool of GitOps sees drift.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::install::{self, EXAMPLE};
use crate::cluster::{Cluster, PLANT};

/// What we write of an object of our kinds.
const STATUS: &str = "f:status";

/// Applies the example again: nothing differs, nothing is written, and nothing of it is anybody's but the user's.
pub(super) async fn what_users_wrote(cluster: &Cluster) -> Result<()> {
    // Other scenarios change what they apply.
    apply(cluster).await?;
    install::well(cluster).await?;
    differs_in_nothing(cluster).await?;
    let before = written(cluster).await?;
    apply(cluster).await?;
    install::well(cluster).await?;
    let after = written(cluster).await?;
    for (name, object) in &before {
        let now = after
            .get(name)
            .with_context(|| format!("{name} is gone after it was applied again"))?;
        if now != object {
            bail!("{name} was written when it was applied again; before: {object}\nafter: {now}");
        }
    }
    if after.len() != before.len() {
        bail!(
            "{} objects before, {} after they were applied again",
            before.len(),
            after.len()
        );
    }
    differs_in_nothing(cluster).await?;
    belongs_to_users(cluster).await
}

async fn apply(cluster: &Cluster) -> Result<()> {
    cluster
        .kubectl(&["apply", "--server-side", "--force-conflicts", "-k", EXAMPLE])
        .await
        .map(drop)
}

/// kubectl ends with an error where it finds a difference, as GitOps tools look for one.
async fn differs_in_nothing(cluster: &Cluster) -> Result<()> {
    let difference = cluster.kubectl(&["diff", "--server-side", "-k", EXAMPLE]).await?;
    if !difference.is_empty() {
        bail!("kubectl diff: {difference}");
    }
    Ok(())
}

/// The applied objects, without what is observed: status, and who wrote that when.
async fn written(cluster: &Cluster) -> Result<BTreeMap<String, Value>> {
    let list = cluster
        .json(&["get", "-k", EXAMPLE, "--show-managed-fields"])
        .await?;
    let mut written = BTreeMap::new();
    for mut object in list["items"].as_array().cloned().unwrap_or_default() {
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        let observed = !object["status"].is_null();
        if let Some(members) = object.as_object_mut() {
            members.remove("status");
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            // Only a status makes another version of an object without being looked at here.
            if observed {
                metadata.remove("resourceVersion");
            }
            if let Some(managers) = metadata.get_mut("managedFields").and_then(Value::as_array_mut) {
                managers.retain(|manager| manager["subresource"] != "status");
            }
        }
        written.insert(name, object);
    }
    if written.is_empty() {
        bail!("found nothing of {EXAMPLE}");
    }
    Ok(written)
}

/// Who owns which fields: all but kubectl own no more than statuses, and the operator owns these.
async fn belongs_to_users(cluster: &Cluster) -> Result<()> {
    let owned = [&["foreshore,secrets", "-n", PLANT, "--show-managed-fields"][..]].concat();
    let (mut ours, mut secrets) = (0, 0);
    for object in cluster.items(&owned).await? {
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        let is_secret = object["kind"] == "Secret";
        let mut told = false;
        for manager in object["metadata"]["managedFields"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let who = manager["manager"].as_str().unwrap_or_default();
            let fields = manager["fieldsV1"].as_object().context("fields of a manager")?;
            let only_status =
                manager["subresource"] == "status" && fields.keys().all(|field| field == STATUS);
            if only_status && !is_secret {
                told |= who.starts_with("foreshore");
            } else if !who.starts_with("kubectl") {
                bail!("{who} wrote {fields:?} of {name}");
            }
        }
        if is_secret {
            secrets += 1;
        } else if told {
            ours += 1;
        } else {
            bail!("the operator wrote no status of {name}");
        }
    }
    if ours == 0 || secrets == 0 {
        bail!("found {ours} objects and {secrets} Secrets of the example");
    }
    Ok(())
}
