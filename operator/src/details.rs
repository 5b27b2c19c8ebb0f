//! What the status of an object tells beside its conditions: names that were left out in its spec, and counts.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{
    object::{Kind, ObjectKey},
    resources::{Name, Valid},
};

/// Members of a status, as its definition has them.
pub type Details = Map<String, Value>;

/// The details of everything that is valid.
pub(crate) fn of(valid: &Valid) -> BTreeMap<ObjectKey, Details> {
    let mut details = All::default();
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
        let devices = valid.devices.values().filter(|device| device.connector == *name);
        details.set(name, Kind::Connector, "devices", devices.count());
    }
    for name in valid.simulators.keys() {
        details.set(name, Kind::Simulator, "devices", 1);
    }
    for (name, device) in &valid.devices {
        details.set(name, Kind::Device, "connector", &*device.connector.name);
        let assets = valid.assets.values().filter(|asset| asset.device == *name);
        details.set(name, Kind::Device, "assets", assets.count());
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
        let flows = valid
            .dataflows
            .values()
            .filter(|dataflow| dataflow.endpoints.contains(name));
        details.set(name, Kind::DataflowEndpoint, "dataflows", flows.count());
    }
    details.0
}

#[derive(Default)]
struct All(BTreeMap<ObjectKey, Details>);

impl All {
    fn set(&mut self, name: &Name, kind: Kind, member: &str, value: impl Into<Value>) {
        let details = self.0.entry(name.key(kind)).or_default();
        details.insert(member.to_owned(), value.into());
    }
}
