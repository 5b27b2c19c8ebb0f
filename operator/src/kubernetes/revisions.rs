//! Versions that run on while a newer one is wrong, kept as ControllerRevisions.
//!
//! Whoever leads next can't see them in what is declared, and would end what runs. Each belongs to its object and goes with
//! it; there is none where everything is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use foreshore_runtime::{Shutdown, spawn};
use k8s_openapi::{
    api::apps::v1::ControllerRevision,
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        runtime::RawExtension,
    },
};
use kube_client::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};

use super::{Error, MANAGER, Scope, within};
use crate::{
    accepted::{Accepted, AcceptedVersion, Earlier, Stored},
    object::ObjectKey,
};

/// Label that tells ours from those of StatefulSets, which bear the labels of their pods.
const LABEL: &str = "foreshore.dev/runs-on";
/// Time after which what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What ran on when somebody else led.
#[derive(Default)]
pub struct Revisions {
    earlier: Earlier,
    /// What runs on now; nothing before the first pass.
    kept: watch::Sender<Option<Earlier>>,
}

/// A revision, by namespace and name.
type Name = (String, String);

impl Revisions {
    /// Reads what an earlier leader left, and writes from now on what runs on.
    ///
    /// # Errors
    /// When it can't be read: to go on without would end what runs.
    pub async fn open(client: Client, scope: &Scope, shutdown: Shutdown) -> Result<Self, Error> {
        let mut earlier = Earlier::new();
        let mut present = BTreeSet::new();
        let ours = ListParams::default().labels(LABEL);
        for api in scope.each(|namespace| api(&client, namespace)) {
            for revision in within(api.list(&ours)).await?.items {
                let name = name_of(&revision);
                present.insert(name.clone());
                match read(revision) {
                    Some((key, version)) => keep_newer(&mut earlier, key, version),
                    None => warn!(
                        namespace = name.0,
                        name = name.1,
                        "revision is not understood, and removed"
                    ),
                }
            }
        }
        if !earlier.is_empty() {
            info!(objects = earlier.len(), "versions that ran on are known");
        }
        let (kept, told) = watch::channel(None);
        spawn("revisions", async move {
            shutdown.or_begun(follow(client, told, present)).await;
        })
        .detach();
        Ok(Self { earlier, kept })
    }

    pub(crate) fn accepted(self) -> Accepted {
        Accepted::of(self.earlier, self.kept)
    }
}

/// Writes what runs on, as it changes.
async fn follow(client: Client, mut told: watch::Receiver<Option<Earlier>>, mut present: BTreeSet<Name>) {
    // Nothing goes before a pass has told what runs on now.
    if told.changed().await.is_err() {
        return;
    }
    loop {
        let wanted: BTreeMap<Name, ControllerRevision> = told
            .borrow_and_update()
            .iter()
            .flatten()
            .map(|(key, version)| {
                let revision = revision(key, version);
                (name_of(&revision), revision)
            })
            .collect();
        let mut failed = false;
        for (name, revision) in &wanted {
            if present.contains(name) {
                continue;
            }
            let api = api(&client, Some(&name.0));
            match within(api.create(&PostParams::default(), revision)).await {
                Ok(_) => drop(present.insert(name.clone())),
                // Its content never changes.
                Err(error) if error.is_conflict() => drop(present.insert(name.clone())),
                Err(error) => {
                    failed = true;
                    warn!(namespace = name.0, name = name.1, %error, "version that runs on can't be kept");
                }
            }
        }
        let over: Vec<_> = present
            .iter()
            .filter(|name| !wanted.contains_key(*name))
            .cloned()
            .collect();
        for name in over {
            let api = api(&client, Some(&name.0));
            match within(api.delete(&name.1, &DeleteParams::default())).await {
                Ok(_) => drop(present.remove(&name)),
                Err(error) if error.is_not_found() => drop(present.remove(&name)),
                Err(error) => {
                    failed = true;
                    warn!(namespace = name.0, name = name.1, %error, "version that runs no more can't be removed");
                }
            }
        }
        if failed {
            sleep(RETRY).await;
        } else if told.changed().await.is_err() {
            return;
        }
    }
}

fn api(client: &Client, namespace: Option<&str>) -> Api<ControllerRevision> {
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn name_of(revision: &ControllerRevision) -> Name {
    let metadata = &revision.metadata;
    (
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// A version, with its object as its owner. The name tells one life and version of the object from another.
fn revision(key: &ObjectKey, version: &AcceptedVersion) -> ControllerRevision {
    let AcceptedVersion { meta, manifest: _ } = version;
    let kind = key.kind.as_str();
    let life: String = meta.uid.chars().take(8).collect();
    let name = format!("{}-{}-{life}-{}", kind.to_lowercase(), key.name, meta.generation);
    let data = serde_json::to_value(Stored::of(key, version)).unwrap_or_default();
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(key.namespace.clone()),
            labels: Some(BTreeMap::from([
                ("app.kubernetes.io/managed-by".to_owned(), MANAGER.to_owned()),
                (LABEL.to_owned(), "true".to_owned()),
            ])),
            owner_references: Some(vec![OwnerReference {
                api_version: key.kind.api_version().to_owned(),
                kind: kind.to_owned(),
                name: key.name.clone(),
                uid: meta.uid.clone(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: meta.generation,
    }
}

fn read(revision: ControllerRevision) -> Option<(ObjectKey, AcceptedVersion)> {
    let RawExtension(data) = revision.data?;
    let stored: Stored = serde_json::from_value(data).ok()?;
    Some(stored.into())
}

/// Of two versions of an object the newer one ran last.
fn keep_newer(earlier: &mut Earlier, key: ObjectKey, version: AcceptedVersion) {
    let order = |version: &AcceptedVersion| (version.meta.created, version.meta.generation);
    match earlier.get(&key) {
        Some(known) if order(known) >= order(&version) => {}
        _ => drop(earlier.insert(key, version)),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::{
        object::{Kind, Meta},
        packed::Packed,
    };

    fn version(generation: i64) -> AcceptedVersion {
        AcceptedVersion {
            meta: Meta {
                uid: "0d9cbd25-6f0a-4c0e-a0f7-0a2d6ed2e8c1".to_owned(),
                generation,
                created: Timestamp::UNIX_EPOCH,
            },
            manifest: Packed::of(&json!({"spec": {"generation": generation}})),
        }
    }

    #[test]
    fn a_version_comes_back_as_it_was_kept_and_belongs_to_its_object() {
        let key = ObjectKey::new(Kind::Asset, "plant", "filler");
        let kept = revision(&key, &version(7));
        assert_eq!(
            name_of(&kept),
            ("plant".to_owned(), "asset-filler-0d9cbd25-7".to_owned())
        );
        let owner = &kept.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(
            (&*owner.kind, &*owner.name, &*owner.uid),
            ("Asset", "filler", &*version(7).meta.uid)
        );
        let (read_key, read_version) = read(kept).unwrap();
        assert!(read_key == key && read_version == version(7));
    }

    #[test]
    fn of_two_versions_the_newer_one_ran_last() {
        let key = ObjectKey::new(Kind::Asset, "plant", "filler");
        for order in [[3, 5], [5, 3]] {
            let mut earlier = Earlier::new();
            for generation in order {
                keep_newer(&mut earlier, key.clone(), version(generation));
            }
            assert!(earlier[&key] == version(5));
        }
    }

    #[test]
    fn what_is_not_understood_is_nothing() {
        let mut broken = revision(&ObjectKey::new(Kind::Asset, "plant", "filler"), &version(1));
        broken.data = Some(RawExtension(json!({"kind": "Turbine"})));
        assert!(read(broken).is_none());
    }
}
