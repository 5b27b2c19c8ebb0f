//! Changes of the definitions of our kinds.
//!
//! For a second or more after a change the API server serves open watches by the definition before it, and leaves out of
//! their objects every field that one does not know. Nothing tells those objects again, so their kind is read anew.

use std::{collections::BTreeMap, time::Duration};

use futures::{Stream, StreamExt, future};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_client::{Api, Client, core::PartialObjectMeta};
use kube_runtime::{
    WatchStreamExt,
    watcher::{self, Config, Event, watcher},
};
use tokio::time::sleep;
use tracing::warn;

use crate::{kubernetes::plural, object::Kind};

/// What both charts and `foreshore crds` label the definitions with.
const LABEL: &str = "app.kubernetes.io/part-of=foreshore";
/// Time after which every API server of a cluster serves a new definition.
const SERVED: Duration = Duration::from_secs(10);

/// A definition without its schema.
type Definition = PartialObjectMeta<CustomResourceDefinition>;

/// The kinds that have to be read anew, each [`SERVED`] after its definition changed.
pub(super) fn changes(client: Client) -> impl Stream<Item = Kind> + Send {
    let api = Api::<Definition>::all(client);
    let events = watcher(api, Config::default().labels(LABEL)).default_backoff();
    let mut known = Known::default();
    let changed = events.filter_map(move |event| future::ready(known.take(event)));
    let served = changed.map(|kind| async move {
        sleep(SERVED).await;
        kind
    });
    // More wait at once only if a kind changes twice meanwhile.
    served.buffer_unordered(Kind::ALL.len())
}

/// Definitions as they are known.
#[derive(Default)]
struct Known {
    generations: BTreeMap<Kind, (String, i64)>,
    unreadable: bool,
}

impl Known {
    /// The kind whose definition is another one now than it was. Where it could not be watched before, nothing is said: the
    /// kind itself could not be read.
    fn take(&mut self, event: watcher::Result<Event<Definition>>) -> Option<Kind> {
        let definition = match event {
            Ok(Event::Apply(definition) | Event::InitApply(definition)) => definition,
            Ok(Event::Init | Event::InitDone | Event::Delete(_)) => return None,
            Err(error) => {
                if !std::mem::replace(&mut self.unreadable, true) {
                    warn!(%error, "definitions can't be watched: new fields may be missed within seconds of a change");
                }
                return None;
            }
        };
        self.unreadable = false;
        let metadata = definition.metadata;
        let name = metadata.name?;
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.is_ours() && name == format!("{}.foreshore.dev", plural(*kind)))?;
        let version = (
            metadata.uid.unwrap_or_default(),
            metadata.generation.unwrap_or_default(),
        );
        let before = self.generations.insert(kind, version.clone());
        before.is_some_and(|before| before != version).then_some(kind)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(name: &str, uid: &str, generation: i64) -> Definition {
        serde_json::from_value(json!({
            "metadata": {"name": name, "uid": uid, "generation": generation},
        }))
        .unwrap()
    }

    #[test]
    fn a_changed_definition_names_its_kind_once() {
        let mut known = Known::default();
        let assets = |generation| definition("assets.foreshore.dev", "a", generation);
        assert_eq!(known.take(Ok(Event::Init)), None);
        assert_eq!(
            known.take(Ok(Event::InitApply(assets(1)))),
            None,
            "known from the start"
        );
        assert_eq!(known.take(Ok(Event::InitDone)), None);
        assert_eq!(
            known.take(Ok(Event::Apply(assets(1)))),
            None,
            "only its status changed"
        );
        assert_eq!(known.take(Ok(Event::Apply(assets(2)))), Some(Kind::Asset));
        assert_eq!(known.take(Ok(Event::Apply(assets(2)))), None);
        assert_eq!(known.take(Err(watcher::Error::NoResourceVersion)), None);
        // The watch was lost, and meanwhile it changed again.
        assert_eq!(known.take(Ok(Event::InitApply(assets(3)))), Some(Kind::Asset));
        // Deleted and made again.
        assert_eq!(known.take(Ok(Event::Delete(assets(3)))), None);
        let again = definition("assets.foreshore.dev", "b", 1);
        assert_eq!(known.take(Ok(Event::Apply(again))), Some(Kind::Asset));
    }

    #[test]
    fn definitions_of_others_are_nothing_to_us() {
        let mut known = Known::default();
        for name in [
            "assets.example.com",
            "secrets.foreshore.dev",
            "turbines.foreshore.dev",
        ] {
            for generation in [1, 2] {
                let definition = definition(name, "a", generation);
                assert_eq!(known.take(Ok(Event::Apply(definition))), None, "{name}");
            }
        }
    }
}
