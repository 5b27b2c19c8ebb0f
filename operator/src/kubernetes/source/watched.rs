//! The objects of our own kinds, by their watches.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
};

use futures::{Stream, StreamExt, future, stream};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_client::{Api, api::DynamicObject};
use kube_runtime::{
    WatchStreamExt,
    watcher::{self, Config, Event, watcher},
};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tracing::warn;

use super::Statuses;
use crate::{
    kubernetes::{
        OperatorMetrics,
        listing::{Change, Listing},
        references,
    },
    object::{Kind, Meta, ObjectKey},
    packed::Packed,
    source::Sourced,
};

/// Written by `kubectl apply` beside every object, as long as the object itself.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// One of the watches.
type StreamId = usize;
type Watch = Result<Event<DynamicObject>, watcher::Error>;

/// What all watches told.
pub(super) struct Watched {
    streams: Vec<State>,
    objects: BTreeMap<ObjectKey, Sourced>,
    /// Secrets and ConfigMaps by those who name them.
    references: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Brokers that take tokens of the cluster's service accounts.
    take_service_accounts: BTreeSet<ObjectKey>,
    statuses: Statuses,
    metrics: OperatorMetrics,
}

/// How one watch stands.
struct State {
    kind: Kind,
    /// Whether it has told everything once.
    read: bool,
    listing: Listing<ObjectKey>,
    /// Why it tells nothing now.
    fault: Option<String>,
    /// Ends the watch, and begins it again.
    again: watch::Sender<()>,
}

impl Watched {
    pub(super) fn new(statuses: Statuses, metrics: OperatorMetrics) -> Self {
        Self {
            streams: Vec::new(),
            objects: BTreeMap::new(),
            references: BTreeMap::new(),
            take_service_accounts: BTreeSet::new(),
            statuses,
            metrics,
        }
    }

    /// Adds a watch.
    pub(super) fn watch(
        &mut self,
        kind: Kind,
        api: Api<DynamicObject>,
    ) -> Pin<Box<dyn Stream<Item = (StreamId, Watch)> + Send>> {
        let id = self.streams.len();
        let again = watch::Sender::new(());
        let told = again.subscribe();
        self.streams.push(State::new(kind, again));
        let watches = stream::repeat_with(move || {
            let mut told = told.clone();
            told.mark_unchanged();
            // A page is a tree of everything that is in it, while it is read.
            let events = watcher(api.clone(), Config::default().page_size(100));
            // Without a pause after an error it would ask in a circle.
            let events = events.default_backoff();
            events.take_until(async move {
                if told.changed().await.is_err() {
                    // Nobody will ask.
                    future::pending().await
                }
            })
        });
        watches.flatten().map(move |event| (id, event)).boxed()
    }

    /// Reads everything of a kind again.
    pub(super) fn read_again(&self, kind: Kind) {
        for state in self.streams.iter().filter(|state| state.kind == kind) {
            state.again.send_replace(());
        }
    }

    /// The objects as they are declared.
    pub(super) fn objects(&self) -> &BTreeMap<ObjectKey, Sourced> {
        &self.objects
    }

    /// Secrets and ConfigMaps that objects name.
    pub(super) fn references(&self) -> impl Iterator<Item = &ObjectKey> {
        self.references.values().flatten()
    }

    /// Whether a Broker takes tokens of the cluster's service accounts.
    pub(super) fn takes_service_accounts(&self) -> bool {
        !self.take_service_accounts.is_empty()
    }

    /// Whether every kind has been read once.
    pub(super) fn is_read(&self) -> bool {
        self.streams.iter().all(|state| state.read)
    }

    /// What can't be read now, and why.
    pub(super) fn faults(&self) -> impl Iterator<Item = &str> {
        self.streams.iter().filter_map(|state| state.fault.as_deref())
    }

    /// Takes what a watch told; whether anything is different from before.
    pub(super) fn take(&mut self, stream: StreamId, event: Watch) -> bool {
        let Some(state) = self.streams.get_mut(stream) else {
            return false;
        };
        let kind = state.kind;
        let event = match event {
            Ok(event) => event,
            // What the API server no longer remembers is read again at once: nothing is unknown.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => return false,
            Err(error) => {
                self.metrics.watch_errors.inc();
                return state.fail(&error);
            }
        };
        let mended = state.fault.take().is_some();
        let first = matches!(event, Event::InitDone) && !std::mem::replace(&mut state.read, true);
        let mut changed = mended || first;
        for change in state.listing.take(event, |object| key(kind, object)) {
            changed |= match change {
                Change::Is(key, object) => self.declare(key, object),
                Change::Gone(key) => self.remove(&key),
            };
        }
        changed
    }

    /// Takes a version of an object; whether it differs from the one before. Statuses are ours and change nothing.
    fn declare(&mut self, key: ObjectKey, object: DynamicObject) -> bool {
        let DynamicObject {
            types: _,
            metadata,
            mut data,
        } = object;
        let uid = metadata.uid.clone().unwrap_or_default();
        let status = data.as_object_mut().and_then(|members| members.remove("status"));
        self.statuses.lock().tell(&key, uid, status.unwrap_or_default());
        let meta = meta_of(&metadata);
        let value = manifest(&key, metadata.labels, metadata.annotations, data);
        let manifest = Packed::of(&value);
        let known = self.objects.get(&key);
        if known.is_some_and(|known| known.meta == meta && known.manifest.as_ref() == Some(&manifest)) {
            return false;
        }
        let sourced = Sourced {
            meta,
            manifest: Some(manifest),
            origin: None,
        };
        let mut references = BTreeSet::new();
        references::collect(&key.namespace, &value, &mut references);
        if references.is_empty() {
            self.references.remove(&key);
        } else {
            self.references.insert(key.clone(), references);
        }
        if key.kind == Kind::Broker && references::takes_service_accounts(&value) {
            self.take_service_accounts.insert(key.clone());
        } else {
            self.take_service_accounts.remove(&key);
        }
        self.objects.insert(key, sourced);
        true
    }

    fn remove(&mut self, key: &ObjectKey) -> bool {
        self.statuses.lock().forget(key);
        self.references.remove(key);
        self.take_service_accounts.remove(key);
        self.objects.remove(key).is_some()
    }
}

impl State {
    fn new(kind: Kind, again: watch::Sender<()>) -> Self {
        Self {
            kind,
            read: false,
            listing: Listing::default(),
            fault: None,
            again,
        }
    }

    /// Notes that a watch tells nothing; whether that is news.
    fn fail(&mut self, error: &watcher::Error) -> bool {
        let kind = self.kind;
        let missing = is_missing(error);
        let fault = if missing {
            format!("{kind} can't be read: the definition is not installed; apply the foreshore-crds chart")
        } else {
            format!("{kind} can't be read: {error}")
        };
        // A kind that is not defined has no objects; the others need not wait for it.
        let read = missing && !std::mem::replace(&mut self.read, true);
        let news = self.fault.as_ref() != Some(&fault);
        if news {
            warn!(%kind, %error, "watch failed, and is tried again");
        }
        self.fault = Some(fault);
        news || read
    }
}

fn is_missing(error: &watcher::Error) -> bool {
    let cause = match error {
        watcher::Error::InitialListFailed(cause)
        | watcher::Error::WatchStartFailed(cause)
        | watcher::Error::WatchFailed(cause) => cause,
        _ => return false,
    };
    matches!(cause, kube_client::Error::Api(status) if status.code == 404)
}

fn key(kind: Kind, object: &DynamicObject) -> Option<ObjectKey> {
    let namespace = object.metadata.namespace.clone()?;
    let name = object.metadata.name.clone()?;
    Some(ObjectKey::new(kind, namespace, name))
}

/// What tells one life and version of an object from another. Secrets and ConfigMaps have no generation: their content
/// tells.
pub(super) fn meta_of(metadata: &ObjectMeta) -> Meta {
    Meta {
        uid: metadata.uid.clone().unwrap_or_default(),
        generation: metadata.generation.unwrap_or(1),
        created: metadata
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    }
}

/// The manifest as a user would have written it.
pub(super) fn manifest(
    key: &ObjectKey,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    data: Value,
) -> Value {
    let text = |text: &str| Value::String(text.to_owned());
    let texts = |texts: BTreeMap<String, String>| {
        let members = texts
            .into_iter()
            .map(|(name, value)| (name, Value::String(value)));
        Value::Object(members.collect())
    };
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), text(&key.name));
    metadata.insert("namespace".to_owned(), text(&key.namespace));
    if let Some(labels) = labels {
        metadata.insert("labels".to_owned(), texts(labels));
    }
    let annotations = annotations.map(|mut annotations| {
        annotations.remove(LAST_APPLIED);
        annotations
    });
    if let Some(annotations) = annotations.filter(|annotations| !annotations.is_empty()) {
        metadata.insert("annotations".to_owned(), texts(annotations));
    }
    let mut members = Map::new();
    members.insert("apiVersion".to_owned(), text(key.kind.api_version()));
    members.insert("kind".to_owned(), text(key.kind.as_str()));
    members.insert("metadata".to_owned(), Value::Object(metadata));
    if let Value::Object(data) = data {
        members.extend(data);
    }
    Value::Object(members)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, generation: i64, status: &str) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "foreshore.dev/v1alpha1", "kind": "Device",
            "metadata": {
                "name": name, "namespace": "plant", "uid": format!("uid-{name}"), "generation": generation,
                "annotations": {LAST_APPLIED: "{}"}, "managedFields": [],
            },
            "spec": {"address": generation}, "status": {"now": status},
        }))
        .unwrap()
    }

    fn watched() -> Watched {
        let metrics = OperatorMetrics::new(&foreshore_runtime::Metrics::new());
        let mut watched = Watched::new(Statuses::default(), metrics);
        watched
            .streams
            .push(State::new(Kind::Device, watch::Sender::new(())));
        watched
    }

    fn names(watched: &Watched) -> Vec<String> {
        watched.objects().keys().map(|key| key.name.clone()).collect()
    }

    #[test]
    fn a_new_list_replaces_what_was_known_and_a_status_changes_nothing() {
        let mut watched = watched();
        assert!(!watched.take(0, Ok(Event::Init)));
        assert!(watched.take(0, Ok(Event::InitApply(object("a", 1, "")))));
        assert!(watched.take(0, Ok(Event::InitApply(object("b", 1, "")))));
        assert!(!watched.is_read());
        assert!(watched.take(0, Ok(Event::InitDone)));
        assert!(watched.is_read());
        assert!(
            !watched.take(0, Ok(Event::Apply(object("a", 1, "Ready")))),
            "a status is no change"
        );
        assert!(watched.take(0, Ok(Event::Apply(object("a", 2, "Ready")))));

        // The watch was lost, and meanwhile one went.
        watched.take(0, Ok(Event::Init));
        assert!(!watched.take(0, Ok(Event::InitApply(object("a", 2, "Ready")))));
        assert_eq!(names(&watched), ["a", "b"], "nothing goes while a list is read");
        assert!(watched.take(0, Ok(Event::InitDone)));
        assert_eq!(names(&watched), ["a"]);
        assert!(watched.take(0, Ok(Event::Delete(object("a", 2, "Ready")))));
        assert!(watched.objects().is_empty() && watched.statuses.lock().is_empty());
    }

    #[test]
    fn a_manifest_is_what_a_user_wrote() {
        let mut watched = watched();
        watched.take(0, Ok(Event::Apply(object("a", 3, "Ready"))));
        let sourced = watched.objects().values().next().unwrap();
        assert_eq!(
            sourced.manifest.as_ref().unwrap().value(),
            json!({
                "apiVersion": "foreshore.dev/v1alpha1", "kind": "Device",
                "metadata": {"name": "a", "namespace": "plant"}, "spec": {"address": 3},
            })
        );
        assert_eq!((&*sourced.meta.uid, sourced.meta.generation), ("uid-a", 3));
    }

    #[test]
    fn a_watch_that_expired_is_no_fault() {
        let mut watched = watched();
        watched.take(0, Ok(Event::Init));
        watched.take(0, Ok(Event::InitApply(object("a", 1, ""))));
        watched.take(0, Ok(Event::InitDone));
        let expired =
            kube_client::core::Status::failure("too old resource version", "Expired").with_code(410);
        assert!(!watched.take(0, Err(watcher::Error::WatchError(Box::new(expired)))));
        assert_eq!(watched.faults().next(), None);
        assert_eq!(
            names(&watched),
            ["a"],
            "what was known stays until it is read again"
        );
    }

    #[test]
    fn a_kind_without_definition_has_no_objects_and_is_told() {
        let mut watched = watched();
        let status = kube_client::core::Status::failure("no", "NotFound").with_code(404);
        let missing = || {
            let status = Box::new(status.clone());
            Err(watcher::Error::InitialListFailed(kube_client::Error::Api(status)))
        };
        assert!(watched.take(0, missing()));
        assert!(watched.is_read());
        assert!(watched.faults().next().unwrap().contains("not installed"));
        assert!(!watched.take(0, missing()), "told once");
        assert!(watched.take(0, Ok(Event::Init)), "mended");
        assert_eq!(watched.faults().next(), None);
    }
}
