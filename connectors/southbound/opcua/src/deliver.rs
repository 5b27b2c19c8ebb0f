//! From the server's messages to observations.

use std::{collections::BTreeMap, sync::Arc};

use foreshore_connector_sdk::{DatasetValues, Event, Gap, Member, Observation};
use foreshore_record::DataValue;
use jiff::Timestamp;
use opcua::types::{
    DataChangeNotification, EventNotificationList, NotificationMessage, StatusChangeNotification, StatusCode,
    custom::DataTypeTree,
};
use tracing::debug;

use crate::{event, inbox::Handles, items::ItemKey, value};

/// Info bits of a value whose queue overflowed (OPC 10000-4, 7.39.1: info type DataValue, Overflow).
const OVERFLOW: u32 = 0x480;

/// What a message holds.
#[derive(Default)]
pub(crate) struct Delivery {
    pub(crate) observations: Vec<Observation>,
    /// The server ended the subscription.
    pub(crate) ended: Option<StatusCode>,
}

/// Reads a message.
pub(crate) fn read(
    message: NotificationMessage,
    handles: &Handles,
    types: Option<&DataTypeTree>,
) -> Delivery {
    let mut delivery = Delivery::default();
    let now = Timestamp::now();
    for part in message.notification_data.into_iter().flatten() {
        if let Some(values) = part.inner_as::<DataChangeNotification>() {
            data(values, handles, types, now, &mut delivery.observations);
        } else if let Some(events) = part.inner_as::<EventNotificationList>() {
            for fields in events.events.iter().flatten() {
                let Some(target) = handles.get(fields.client_handle) else {
                    continue;
                };
                let (Some(declared), Member::Event { asset, group, event }) =
                    (&target.event, &target.key.member)
                else {
                    continue;
                };
                let fields = fields.event_fields.as_deref().unwrap_or_default();
                let Some(decoded) = event::decode(declared, fields, types) else {
                    continue;
                };
                delivery.observations.push(Observation::Event(Event {
                    asset: Arc::clone(asset),
                    group: Arc::clone(group),
                    event: Arc::clone(event),
                    time: decoded.time.unwrap_or(now),
                    source: decoded.source,
                    body: decoded.body,
                }));
            }
        } else if let Some(change) = part.inner_as::<StatusChangeNotification>() {
            delivery.ended = Some(change.status);
        }
    }
    delivery
}

fn data(
    notification: &DataChangeNotification,
    handles: &Handles,
    types: Option<&DataTypeTree>,
    now: Timestamp,
    observations: &mut Vec<Observation>,
) {
    let mut datasets: BTreeMap<Member, Vec<(Arc<str>, DataValue)>> = BTreeMap::new();
    for item in notification.monitored_items.iter().flatten() {
        let Some(target) = handles.get(item.client_handle) else {
            debug!(
                handle = item.client_handle,
                "value of an item that is no longer observed"
            );
            continue;
        };
        let ItemKey { member, point } = &target.key;
        let status = item.value.status.unwrap_or(StatusCode::Good);
        let source_timestamp = item.value.source_timestamp.as_ref().and_then(value::timestamp);
        if status.bits() & OVERFLOW == OVERFLOW {
            let cause = format!("queue of the server overflowed at {point}");
            let since = source_timestamp.unwrap_or(now);
            observations.push(Observation::Gap(Gap {
                member: member.clone(),
                since,
                until: now,
                cause,
            }));
        }
        let value = DataValue {
            value: item
                .value
                .value
                .as_ref()
                .map_or(serde_json::Value::Null, |value| value::to_json(value, types)),
            source_timestamp,
            // The info bits tell of the delivery, not of the value.
            status_code: status.bits() & 0xFFFF_0000,
        };
        datasets
            .entry(member.clone())
            .or_default()
            .push((Arc::clone(point), value));
    }
    for (member, values) in datasets {
        if let Member::Dataset { asset, dataset } = member {
            observations.push(Observation::Dataset(DatasetValues {
                asset,
                dataset,
                values,
            }));
        }
    }
}
