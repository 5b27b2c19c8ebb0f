//! The assets of the runner's plan, for endpoints that tell of them or send them commands.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use foreshore_control::plan::AssetSummaryPlan;
use parking_lot::RwLock;
use tokio::sync::watch;

/// The assets of the runner's plan. Cheap to clone; all clones see a change at once.
#[derive(Clone, Debug)]
pub struct Assets {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// By namespace and name.
    assets: RwLock<BTreeMap<(String, String), Arc<AssetSummaryPlan>>>,
    /// Whether the plan has been there as a whole: before, an asset that is missing may be about to come.
    complete: AtomicBool,
    changes: watch::Sender<()>,
}

impl Default for Assets {
    fn default() -> Self {
        let shared = Shared {
            assets: RwLock::default(),
            complete: AtomicBool::new(false),
            changes: watch::Sender::new(()),
        };
        Self {
            shared: Arc::new(shared),
        }
    }
}

impl Assets {
    /// Adds an asset, or another version of one.
    pub fn set(&self, asset: AssetSummaryPlan) {
        let key = (asset.object.namespace.clone(), asset.object.name.clone());
        self.shared.assets.write().insert(key, Arc::new(asset));
        self.shared.changes.send_replace(());
    }

    /// Forgets an asset.
    pub fn remove(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        self.shared.assets.write().remove(&key);
        self.shared.changes.send_replace(());
    }

    /// Nothing is missing from now on.
    pub fn complete(&self) {
        if !self.shared.complete.swap(true, Ordering::AcqRel) {
            self.shared.changes.send_replace(());
        }
    }

    /// Whether nothing is missing.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.shared.complete.load(Ordering::Acquire)
    }

    /// An asset.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<AssetSummaryPlan>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.shared.assets.read().get(&key).cloned()
    }

    /// All assets of a namespace, by name.
    #[must_use]
    pub fn of(&self, namespace: &str) -> Vec<Arc<AssetSummaryPlan>> {
        let assets = self.shared.assets.read();
        let first = (namespace.to_owned(), String::new());
        let of_namespace = assets
            .range(first..)
            .take_while(|((found, _), _)| found == namespace);
        of_namespace.map(|(_, asset)| Arc::clone(asset)).collect()
    }

    /// Follows changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use foreshore_control::plan::ObjectRef;
    use foreshore_crds::v1alpha1::AssetSpec;

    use super::*;

    #[test]
    fn assets_are_found_by_namespace_and_changes_are_seen() {
        let assets = Assets::default();
        let mut changes = assets.changes();
        for (namespace, name) in [("a", "x"), ("b", "y"), ("b", "z"), ("b-c", "x")] {
            let object = ObjectRef {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: "u".to_owned(),
                generation: 1,
            };
            assets.set(AssetSummaryPlan::new(object, "broker", &AssetSpec::default()));
        }
        assets.remove("b", "z");
        let names = |namespace| {
            let found = assets.of(namespace);
            found
                .iter()
                .map(|asset| asset.object.name.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!((names("b"), names("c")), (vec!["y".to_owned()], Vec::new()));
        assert!(assets.get("b", "y").is_some() && assets.get("b", "z").is_none());
        assert!(changes.has_changed().unwrap() && !assets.is_complete());
        changes.mark_unchanged();
        assets.complete();
        assert!(changes.has_changed().unwrap() && assets.is_complete());
    }
}
