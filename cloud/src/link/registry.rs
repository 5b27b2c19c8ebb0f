//! What an edge says about its assets, on its way into the store.

use std::time::Duration;

use foreshore_edgelink::registry::Whole;
use jiff::Timestamp;
use tokio::{sync::watch, time::timeout};
use tracing::{debug, warn};

use crate::{
    samples::AssetKey,
    store::{Context, Priority, Store, registry},
    times::nanoseconds,
};

/// Wait before what the store did not take is written again.
const RETRY: Duration = Duration::from_secs(5);

/// Writes every registry that arrives whole, the newest only, until it is written.
pub(super) async fn describe_assets(store: Store, edge: i64, mut registries: watch::Receiver<Option<Whole>>) {
    let mut written = true;
    loop {
        let changed = if written {
            registries.changed().await
        } else {
            // A newer one need not wait for its turn.
            timeout(RETRY, registries.changed()).await.unwrap_or(Ok(()))
        };
        if changed.is_err() {
            return;
        }
        let Some(whole) = registries.borrow_and_update().clone() else {
            continue;
        };
        let (version, assets) = read(whole);
        let (count, now) = (assets.len(), nanoseconds(Timestamp::now()));
        let weight = u32::try_from(count).unwrap_or(u32::MAX);
        let write =
            move |context: &mut Context<'_>| registry::describe(context, edge, &version, &assets, now);
        let result = store.write(Priority::Control, weight, write).await;
        written = result.is_ok();
        match result {
            Ok(()) => debug!(edge, assets = count, "registry of an edge"),
            Err(error) => warn!(
                edge,
                reason = error.reason(),
                "registry of an edge not kept, it is tried again: {error}"
            ),
        }
    }
}

/// The assets with what describes them; one whose description is no JSON object is there all the same.
fn read(whole: Whole) -> (Vec<u8>, Vec<(AssetKey, serde_json::Value)>) {
    let Whole { version, assets } = whole;
    let assets = assets.into_iter().map(|asset| {
        let description = serde_json::from_slice(&asset.description)
            .ok()
            .filter(serde_json::Value::is_object)
            .unwrap_or_else(|| serde_json::json!({}));
        let key = AssetKey {
            namespace: asset.namespace,
            name: asset.name,
        };
        (key, description)
    });
    (version.to_vec(), assets.collect())
}
