//! What the status of an object tells beside its conditions: names that were left out in its spec, and counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    object::{Kind, ObjectKey},
    resources::{Name, Valid, dataflow::ValidDataflow},
};

/// Members of a status, as its definition has them. Cheap to clone.
pub type Details = Arc<[(&'static str, Detail)]>;

/// What a member of a status tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// How many.
    Count(usize),
    /// Who, or where.
    Text(Box<str>),
}

impl From<usize> for Detail {
    fn from(count: usize) -> Self {
        Self::Count(count)
    }
}

impl From<&str> for Detail {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<&Detail> for Value {
    fn from(detail: &Detail) -> Self {
        match detail {
            Detail::Count(count) => (*count).into(),
            Detail::Text(text) => text.as_ref().into(),
        }
    }
}

/// The details of everything that is valid.
pub(crate) fn of<'a>(valid: &'a Valid) -> BTreeMap<ObjectKey, Details> {
    let mut details = All::default();
    let devices = count(valid.devices.values().map(|device| &device.connector));
    let assets = count(valid.assets.values().map(|asset| &asset.device));
    // One with several sinks at an endpoint, or with its source there too, is one dataflow.
    let endpoints = |dataflow: &'a ValidDataflow| dataflow.all_endpoints().collect::<BTreeSet<_>>();
    let flows = count(valid.dataflows.values().flat_map(endpoints));
    let number = |counts: &BTreeMap<&Name, usize>, name| counts.get(name).copied().unwrap_or_default();
    for (name, broker) in &valid.brokers {
        let listeners = broker.version.spec.listeners.len();
        details.set(name, Kind::Broker, "listenerCount", listeners);
    }
    for (name, policy) in &valid.policies {
        details.set(name, Kind::BrokerPolicy, "broker", &*policy.broker.name);
        details.set(name, Kind::BrokerPolicy, "rules", policy.version.spec.rules.len());
    }
    for (name, connector) in &valid.connectors {
        details.set(name, Kind::Connector, "broker", &*connector.broker.name);
        details.set(name, Kind::Connector, "devices", number(&devices, name));
    }
    for name in valid.simulators.keys() {
        details.set(name, Kind::Simulator, "devices", 1_usize);
    }
    for (name, device) in &valid.devices {
        details.set(name, Kind::Device, "connector", &*device.connector.name);
        details.set(name, Kind::Device, "assets", number(&assets, name));
        if let Some(address) = &device.version.spec.address {
            details.set(name, Kind::Device, "address", address.as_str());
        }
    }
    for (name, asset) in &valid.assets {
        let spec = &asset.version.spec;
        details.set(name, Kind::Asset, "device", &*asset.device.name);
        let points = spec.datasets.iter().map(|dataset| dataset.data_points.len());
        details.set(name, Kind::Asset, "dataPoints", points.sum::<usize>());
        let events = spec.event_groups.iter().map(|group| group.events.len());
        details.set(name, Kind::Asset, "events", events.sum::<usize>());
        details.set(name, Kind::Asset, "streams", spec.streams.len());
        let actions = spec.action_groups.iter().map(|group| group.actions.len());
        details.set(name, Kind::Asset, "actions", actions.sum::<usize>());
    }
    for (name, dataflow) in &valid.dataflows {
        details.set(name, Kind::Dataflow, "sinks", dataflow.version.spec.sinks.len());
    }
    for name in valid.endpoints.keys() {
        details.set(name, Kind::DataflowEndpoint, "dataflows", number(&flows, name));
    }
    let packed = details.0.into_iter().map(|(key, members)| (key, members.into()));
    packed.collect()
}

/// How often each name is there.
fn count<'a>(names: impl Iterator<Item = &'a Name>) -> BTreeMap<&'a Name, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

#[derive(Default)]
struct All(BTreeMap<ObjectKey, Vec<(&'static str, Detail)>>);

impl All {
    fn set(&mut self, name: &Name, kind: Kind, member: &'static str, value: impl Into<Detail>) {
        let details = self.0.entry(name.key(kind)).or_default();
        details.push((member, value.into()));
    }
}
