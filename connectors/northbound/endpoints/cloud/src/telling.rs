//! What the cloud endpoint is told of the namespace's assets.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use foreshore_control::plan::AssetSummaryPlan;
use foreshore_edgelink::{proto, registry};
use foreshore_northbound::Assets;
use tokio::sync::watch;
use tracing::{debug, warn};

/// How long a plan that changes is let come to rest.
const REST: Duration = Duration::from_millis(250);

/// Tells the cloud endpoint of assets over one stream: what it does not hold already, and every change.
pub(crate) struct Telling {
    assets: Assets,
    namespace: String,
    changes: watch::Receiver<()>,
    /// When to look at what has changed.
    due: Option<Instant>,
    /// The version that the cloud holds, or will when the parts have arrived.
    told: Bytes,
    parts: VecDeque<proto::Registry>,
}

impl Telling {
    /// Begins with the version that the cloud holds.
    pub(crate) fn new(assets: &Assets, namespace: &str, held: Bytes) -> Self {
        Self {
            assets: assets.clone(),
            namespace: namespace.to_owned(),
            changes: assets.changes(),
            due: Some(Instant::now()),
            told: held,
            parts: VecDeque::new(),
        }
    }

    /// Resolves when it is time to [`look`](Self::look). Nothing is lost when it is dropped.
    pub(crate) async fn due(&mut self) {
        if self.due.is_none() {
            match self.changes.changed().await {
                Ok(()) => self.due = Some(Instant::now() + REST),
                Err(_) => std::future::pending().await,
            }
        }
        if let Some(due) = self.due {
            tokio::time::sleep_until(due.into()).await;
        }
    }

    /// Looks at the assets. What has not been sent of an earlier version is given up.
    pub(crate) fn look(&mut self) {
        self.due = None;
        self.changes.mark_unchanged();
        // Half a plan would make the cloud believe that the other half is gone.
        if !self.assets.is_complete() {
            return;
        }
        let assets = self.assets.of(&self.namespace);
        let cut = registry::cut(assets.iter().map(|asset| describe(asset)));
        if cut.version == self.told {
            return;
        }
        if cut.undescribed > 0 || cut.left_out > 0 {
            let (undescribed, left_out) = (cut.undescribed, cut.left_out);
            warn!(
                undescribed,
                left_out, "more assets than the cloud endpoint can be told of"
            );
        }
        debug!(
            assets = assets.len(),
            parts = cut.parts.len(),
            "the cloud endpoint is told of assets"
        );
        self.told = cut.version;
        self.parts = cut.parts;
    }

    /// Whether there is something to send.
    pub(crate) fn has_parts(&self) -> bool {
        !self.parts.is_empty()
    }

    /// The next part.
    pub(crate) fn next(&mut self) -> Option<proto::Registry> {
        self.parts.pop_front()
    }
}

fn describe(asset: &AssetSummaryPlan) -> proto::Asset {
    proto::Asset {
        namespace: asset.object.namespace.clone(),
        name: asset.object.name.clone(),
        // What was read from JSON can be written as JSON.
        description: serde_json::to_vec(&asset.spec).unwrap_or_default().into(),
    }
}
