//! What of an asset's plan its messages need: topics, quality of service, key frames.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use foreshore_crds::v1alpha1::{
    Destination, QoS,
    asset::{Dataset, KeyFrame},
};
use foreshore_record::{
    Qos, TopicName,
    topic::{InvalidTemplate, fill_template},
};

use crate::{
    contract::Refusal,
    health::Member,
    plan::{AssetPlan, DevicePlan},
};

/// Default topics.
const DATASET_TOPIC: &str = "foreshore/data/{namespace}/{asset}/{dataset}";
const EVENT_TOPIC: &str = "foreshore/events/{namespace}/{asset}/{group}/{event}";
const STREAM_TOPIC: &str = "foreshore/streams/{namespace}/{asset}/{stream}";

/// Where the messages of a member go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) topic: TopicName,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) expiry_seconds: Option<u32>,
}

/// When all points of a dataset are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyFrames {
    /// Only in the first message of a link.
    First,
    /// Every so many messages.
    Count(u32),
    /// So much time after the last.
    Interval(Duration),
}

/// A dataset as its messages need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DatasetPage {
    pub(crate) route: Route,
    pub(crate) key_frames: KeyFrames,
    pub(crate) points: BTreeSet<Arc<str>>,
}

/// An asset as its messages need it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Book {
    pub(crate) plan: Arc<AssetPlan>,
    pub(crate) datasets: BTreeMap<Arc<str>, Arc<DatasetPage>>,
    /// By group and event.
    pub(crate) events: BTreeMap<(Arc<str>, Arc<str>), Route>,
    pub(crate) streams: BTreeMap<Arc<str>, Route>,
    /// By group and action.
    pub(crate) actions: BTreeSet<(Arc<str>, Arc<str>)>,
}

struct Writer<'a> {
    device: &'a str,
    asset: &'a AssetPlan,
    refusals: Vec<Refusal>,
}

impl Book {
    /// Writes the book of an asset.
    ///
    /// # Errors
    /// Every destination that makes no topic.
    pub(crate) fn new(device: &str, asset: &Arc<AssetPlan>) -> Result<Self, Vec<Refusal>> {
        let mut writer = Writer {
            device,
            asset,
            refusals: Vec::new(),
        };
        let mut book = Self {
            plan: Arc::clone(asset),
            datasets: BTreeMap::new(),
            events: BTreeMap::new(),
            streams: BTreeMap::new(),
            actions: BTreeSet::new(),
        };
        for (index, dataset) in asset.spec.datasets.iter().enumerate() {
            let field = format!("spec.datasets[{index}]");
            if let Some(route) = writer.route(
                &field,
                DATASET_TOPIC,
                &[dataset.destination.as_ref()],
                &[("dataset", &dataset.name)],
            ) {
                book.datasets.insert(
                    Arc::from(dataset.name.as_str()),
                    Arc::new(DatasetPage::new(route, dataset)),
                );
            }
        }
        for (index, group) in asset.spec.event_groups.iter().enumerate() {
            for (inner, event) in group.events.iter().enumerate() {
                let field = format!("spec.eventGroups[{index}].events[{inner}]");
                let names = [("group", group.name.as_str()), ("event", event.name.as_str())];
                let destinations = [event.destination.as_ref(), group.destination.as_ref()];
                if let Some(route) = writer.route(&field, EVENT_TOPIC, &destinations, &names) {
                    book.events.insert(
                        (Arc::from(group.name.as_str()), Arc::from(event.name.as_str())),
                        route,
                    );
                }
            }
        }
        for (index, stream) in asset.spec.streams.iter().enumerate() {
            let field = format!("spec.streams[{index}]");
            if let Some(route) = writer.route(
                &field,
                STREAM_TOPIC,
                &[stream.destination.as_ref()],
                &[("stream", &stream.name)],
            ) {
                book.streams.insert(Arc::from(stream.name.as_str()), route);
            }
        }
        for group in &asset.spec.action_groups {
            let name: Arc<str> = Arc::from(group.name.as_str());
            book.actions.extend(
                group
                    .actions
                    .iter()
                    .map(|action| (Arc::clone(&name), Arc::from(action.name.as_str()))),
            );
        }
        if writer.refusals.is_empty() {
            Ok(book)
        } else {
            Err(writer.refusals)
        }
    }

    /// Every member of the asset.
    pub(crate) fn members(&self) -> Vec<Member> {
        let asset: Arc<str> = Arc::from(self.plan.object.name.as_str());
        let dataset = |name: &Arc<str>| Member::Dataset {
            asset: Arc::clone(&asset),
            dataset: Arc::clone(name),
        };
        let event = |(group, event): &(Arc<str>, Arc<str>)| Member::Event {
            asset: Arc::clone(&asset),
            group: Arc::clone(group),
            event: Arc::clone(event),
        };
        let stream = |name: &Arc<str>| Member::Stream {
            asset: Arc::clone(&asset),
            stream: Arc::clone(name),
        };
        let action = |(group, action): &(Arc<str>, Arc<str>)| Member::Action {
            asset: Arc::clone(&asset),
            group: Arc::clone(group),
            action: Arc::clone(action),
        };
        self.datasets
            .keys()
            .map(dataset)
            .chain(self.events.keys().map(event))
            .chain(self.streams.keys().map(stream))
            .chain(self.actions.iter().map(action))
            .collect()
    }
}

impl DatasetPage {
    fn new(route: Route, dataset: &Dataset) -> Self {
        let key_frames = match &dataset.key_frame {
            Some(KeyFrame {
                count: Some(count), ..
            }) => KeyFrames::Count((*count).max(1)),
            Some(KeyFrame {
                interval: Some(interval),
                ..
            }) => KeyFrames::Interval(interval.get()),
            _ => KeyFrames::First,
        };
        let points = dataset
            .data_points
            .iter()
            .map(|point| Arc::from(point.name.as_str()))
            .collect();
        Self {
            route,
            key_frames,
            points,
        }
    }
}

impl Writer<'_> {
    /// The route of a member: what its own destinations leave out is taken from the asset's, then from the defaults.
    fn route(
        &mut self,
        field: &str,
        default_topic: &str,
        destinations: &[Option<&Destination>],
        names: &[(&str, &str)],
    ) -> Option<Route> {
        let merged = destinations
            .iter()
            .copied()
            .chain([self.asset.spec.destination.as_ref()])
            .fold(Destination::default(), |inner, outer| inner.or(outer));
        let template = merged.topic.as_deref().unwrap_or(default_topic);
        match self.fill(template, names) {
            Ok(topic) => Some(Route {
                topic,
                qos: match merged.effective_qos() {
                    QoS::AtMostOnce => Qos::AtMostOnce,
                    QoS::AtLeastOnce => Qos::AtLeastOnce,
                    QoS::ExactlyOnce => Qos::ExactlyOnce,
                },
                retain: merged.effective_retain(),
                // An expiry of less than a second is one second: 0 would mean never.
                expiry_seconds: merged.expiry.map(|expiry| {
                    u32::try_from(expiry.get().as_millis().div_ceil(1000))
                        .unwrap_or(u32::MAX)
                        .max(1)
                }),
            }),
            Err(error) => {
                let own = destinations
                    .iter()
                    .flatten()
                    .any(|destination| destination.topic.is_some());
                let field = if own {
                    format!("{field}.destination.topic")
                } else {
                    "spec.destination.topic".to_owned()
                };
                self.refusals
                    .push(Refusal::asset(self.asset, field, error.to_string()));
                None
            }
        }
    }

    fn fill(&self, template: &str, names: &[(&str, &str)]) -> Result<TopicName, InvalidTemplate> {
        let attributes: Vec<(String, &str)> = self
            .asset
            .spec
            .attributes
            .iter()
            .map(|(name, value)| (format!("attributes.{name}"), value.as_str()))
            .collect();
        let mut variables = vec![
            ("namespace", self.asset.object.namespace.as_str()),
            ("asset", self.asset.object.name.as_str()),
            ("device", self.device),
        ];
        variables.extend_from_slice(names);
        variables.extend(attributes.iter().map(|(name, value)| (name.as_str(), *value)));
        fill_template(template, &variables)
    }
}

/// The refusals of a device and its assets that hold for every protocol.
pub(crate) fn check_protocol(protocol: &str, device: &DevicePlan) -> Option<Refusal> {
    use foreshore_crds::v1alpha1::Protocol;
    let found = match device.spec.protocol() {
        Some(Protocol::Custom) => device
            .spec
            .custom
            .as_ref()
            .map_or("custom", |custom| custom.type_.as_str()),
        Some(known) => known.as_str(),
        None => "none",
    };
    (found != protocol).then(|| {
        Refusal::device(
            "spec",
            format!("found protocol {found}, this connector speaks {protocol}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plan::ObjectRef;

    pub(crate) fn asset(spec: serde_json::Value) -> Arc<AssetPlan> {
        let object = ObjectRef {
            namespace: "plant".into(),
            name: "filler".into(),
            uid: "u".into(),
            generation: 1,
        };
        Arc::new(AssetPlan {
            object,
            device: "line".into(),
            spec: serde_json::from_value(spec).unwrap(),
        })
    }

    #[test]
    fn destinations_are_inherited_outward_and_end_in_the_defaults() {
        let asset = asset(json!({
            "deviceRef": { "name": "line" },
            "attributes": { "area": "a/1" },
            "destination": { "qos": "AtMostOnce", "expiry": "1500ms" },
            "datasets": [
                { "name": "fast", "dataPoints": [{ "name": "p", "address": "i=1" }] },
                { "name": "slow", "dataPoints": [{ "name": "p", "address": "i=1" }], "keyFrame": { "count": 5 },
                  "destination": { "topic": "uns/{attributes.area}/{device}/{dataset}", "qos": "ExactlyOnce", "retain": true } },
            ],
            "eventGroups": [{ "name": "g", "events": [{ "name": "e" }], "destination": { "retain": true } }],
            "streams": [{ "name": "s", "snapshot": {} }],
            "actionGroups": [{ "name": "ag", "actions": [{ "name": "ac", "type": "Call" }] }],
        }));
        let book = Book::new("line", &asset).unwrap();
        let fast = &book.datasets["fast"];
        assert_eq!(fast.route.topic.as_str(), "foreshore/data/plant/filler/fast");
        assert_eq!(
            (fast.route.qos, fast.route.retain, fast.route.expiry_seconds),
            (Qos::AtMostOnce, false, Some(2))
        );
        assert_eq!(fast.key_frames, KeyFrames::First);
        let slow = &book.datasets["slow"];
        assert_eq!(slow.route.topic.as_str(), "uns/a_1/line/slow");
        assert_eq!(
            (slow.route.qos, slow.route.retain, slow.key_frames),
            (Qos::ExactlyOnce, true, KeyFrames::Count(5))
        );
        let event = &book.events[&("g".into(), "e".into())];
        assert_eq!(
            (event.topic.as_str(), event.retain),
            ("foreshore/events/plant/filler/g/e", true)
        );
        assert_eq!(
            book.streams["s"].topic.as_str(),
            "foreshore/streams/plant/filler/s"
        );
        let members: Vec<_> = book.members().iter().map(ToString::to_string).collect();
        assert_eq!(
            members,
            [
                "dataset filler/fast",
                "dataset filler/slow",
                "event filler/g/e",
                "stream filler/s",
                "action filler/ag/ac"
            ]
        );
    }

    #[test]
    fn a_topic_that_is_none_is_refused_with_its_place() {
        let asset = asset(json!({
            "deviceRef": { "name": "line" },
            "destination": { "topic": "a/{site}" },
            "datasets": [{ "name": "d", "dataPoints": [{ "name": "p", "address": "i=1" }] }],
            "streams": [{ "name": "s", "snapshot": {}, "destination": { "topic": "a/{" } }],
        }));
        let refusals = Book::new("line", &asset).unwrap_err();
        let shown: Vec<_> = refusals.iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 2);
        assert!(
            shown[0].starts_with("spec.destination.topic: topic template names {site}: {namespace}"),
            "{shown:?}"
        );
        assert!(
            shown[1].starts_with("spec.streams[0].destination.topic: topic template has an unmatched brace")
        );
    }
}
