//! What is to be observed, as monitored items: pure, from the plans of the assets.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use foreshore_connector_sdk::{Member, Refusal, plan::AssetPlan};
use foreshore_crds::v1alpha1::asset::{AssetEvent, ChangeTrigger, DataPoint, Dataset};

use crate::address::Address;

/// How often events are sent; they are few, and alarms must not wait.
const EVENT_PUBLISHING_INTERVAL: Duration = Duration::from_millis(100);

/// Name of a monitored item: asset, dataset and point, or asset, group and event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ItemKey {
    /// The dataset or event that the item feeds.
    pub(crate) member: Member,
    /// Name of the data point; empty for an event.
    pub(crate) point: Arc<str>,
}

/// What a monitored item is made from. Two equal ones need no work.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ItemPlan {
    /// Where browse paths begin.
    pub(crate) start: Option<Address>,
    /// Which node.
    pub(crate) node: Address,
    /// Subscription that the item belongs to.
    pub(crate) group: Group,
    /// Samples that the server keeps.
    pub(crate) queue_size: u32,
    /// What is watched.
    pub(crate) watch: Watch,
}

/// What is watched at a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Watch {
    /// Its value.
    Value {
        /// How often the server looks.
        sampling: Duration,
        /// Whether a full queue gives up its oldest sample.
        discard_oldest: bool,
        /// What makes a sample a change.
        trigger: ChangeTrigger,
        /// Kind (1 absolute, 2 percent) and size of the deadband.
        deadband: Option<(u32, f64)>,
        /// Part of an array.
        index_range: Option<String>,
        /// Whether the node is registered first.
        register: bool,
    },
    /// Its events.
    Events(Box<AssetEvent>),
}

/// Items with the same rhythm share a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Group {
    /// Publishing interval.
    pub(crate) interval: Duration,
    /// Priority of the subscription.
    pub(crate) priority: u8,
}

/// Everything to be observed for the given assets, by name.
pub(crate) type Items = BTreeMap<ItemKey, ItemPlan>;

/// Plans the items of all assets; addresses that [`check`] would refuse are left out.
pub(crate) fn plan(assets: &[Arc<AssetPlan>]) -> Items {
    let mut items = Items::new();
    for asset in assets.iter().filter(|asset| asset.spec.effective_enabled()) {
        let name: Arc<str> = asset.object.name.as_str().into();
        for dataset in &asset.spec.datasets {
            let member = Member::Dataset {
                asset: Arc::clone(&name),
                dataset: dataset.name.as_str().into(),
            };
            for point in &dataset.data_points {
                if let Some(plan) = point_plan(dataset, point) {
                    items.insert(
                        ItemKey {
                            member: member.clone(),
                            point: point.name.as_str().into(),
                        },
                        plan,
                    );
                }
            }
        }
        for group in &asset.spec.event_groups {
            for event in &group.events {
                let member = Member::Event {
                    asset: Arc::clone(&name),
                    group: group.name.as_str().into(),
                    event: event.name.as_str().into(),
                };
                if let Some(plan) = event_plan(event) {
                    items.insert(
                        ItemKey {
                            member,
                            point: "".into(),
                        },
                        plan,
                    );
                }
            }
        }
    }
    items
}

fn start_of(dataset: &Dataset) -> Option<Address> {
    let start = dataset.opcua.as_ref()?.start_node.as_ref()?;
    Address::parse(start.as_str()).ok()
}

fn point_plan(dataset: &Dataset, point: &DataPoint) -> Option<ItemPlan> {
    let deadband =
        dataset
            .deadband_of(point)
            .and_then(|deadband| match (deadband.absolute, deadband.percent) {
                (Some(size), _) => Some((1, size)),
                (None, Some(size)) => Some((2, size)),
                (None, None) => None,
            });
    let opcua = point.opcua.as_ref();
    let priority = dataset
        .opcua
        .as_ref()
        .and_then(|opcua| opcua.priority)
        .unwrap_or(0);
    Some(ItemPlan {
        start: start_of(dataset),
        node: Address::parse(point.address.as_str()).ok()?,
        group: Group {
            interval: dataset.effective_publishing_interval(),
            priority: u8::try_from(priority).unwrap_or(u8::MAX),
        },
        queue_size: dataset.queue_size_of(point),
        watch: Watch::Value {
            sampling: dataset.sampling_interval_of(point),
            discard_oldest: dataset.effective_discard_oldest(),
            trigger: dataset.effective_trigger(),
            deadband,
            index_range: opcua
                .and_then(|opcua| opcua.index_range.as_ref())
                .map(|range| range.as_str().to_owned()),
            register: opcua.and_then(|opcua| opcua.register).unwrap_or(false),
        },
    })
}

fn event_plan(event: &AssetEvent) -> Option<ItemPlan> {
    // The server object notifies of everything (OPC 10000-5, 8.3.2).
    let node = event
        .address
        .as_ref()
        .map_or("i=2253", |address| address.as_str());
    let opcua = event.opcua.clone().unwrap_or_default();
    Some(ItemPlan {
        start: None,
        node: Address::parse(node).ok()?,
        group: Group {
            interval: EVENT_PUBLISHING_INTERVAL,
            priority: u8::MAX,
        },
        queue_size: opcua.effective_queue_size(),
        watch: Watch::Events(Box::new(event.clone())),
    })
}

/// Finds what OPC UA can't do, in one asset.
pub(crate) fn check(asset: &AssetPlan) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut address = |field: String, text: &str| {
        if let Err(error) = Address::parse(text) {
            refusals.push(Refusal::asset(asset, field, error.to_string()));
        }
    };
    for (index, dataset) in asset.spec.datasets.iter().enumerate() {
        let path = format!("spec.datasets[{index}]");
        if let Some(start) = dataset.opcua.as_ref().and_then(|opcua| opcua.start_node.as_ref()) {
            address(format!("{path}.opcua.startNode"), start.as_str());
        }
        for (index, point) in dataset.data_points.iter().enumerate() {
            address(
                format!("{path}.dataPoints[{index}].address"),
                point.address.as_str(),
            );
        }
    }
    for (index, group) in asset.spec.event_groups.iter().enumerate() {
        for (event_index, event) in group.events.iter().enumerate() {
            let path = format!("spec.eventGroups[{index}].events[{event_index}]");
            if let Some(text) = &event.address {
                address(format!("{path}.address"), text.as_str());
            }
            let opcua = event.opcua.clone().unwrap_or_default();
            if let Some(text) = &opcua.event_type {
                address(format!("{path}.opcua.eventType"), text.as_str());
            }
            for (index, field) in opcua.fields.iter().enumerate() {
                if let Some(text) = &field.browse_path {
                    address(format!("{path}.opcua.fields[{index}].browsePath"), text.as_str());
                }
                if let Some(text) = &field.type_definition {
                    address(
                        format!("{path}.opcua.fields[{index}].typeDefinition"),
                        text.as_str(),
                    );
                }
            }
        }
    }
    for (index, group) in asset.spec.action_groups.iter().enumerate() {
        for (action_index, action) in group.actions.iter().enumerate() {
            let path = format!("spec.actionGroups[{index}].actions[{action_index}]");
            if let Some(target) = &action.target {
                address(format!("{path}.target"), target.as_str());
            }
            if let Some(object) = action.opcua.as_ref().and_then(|opcua| opcua.object_id.as_ref()) {
                address(format!("{path}.opcua.objectId"), object.as_str());
            }
        }
    }
    if !asset.spec.streams.is_empty() {
        let reason = "found streams; OPC UA servers have none, use the connector onvif or media";
        refusals.push(Refusal::asset(asset, "spec.streams", reason));
    }
    refusals
}
