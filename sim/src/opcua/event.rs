//! The line's alarms as OPC UA events.

use std::sync::Arc;

use opcua::{
    nodes::{BaseEventType, Event, NamespaceMap},
    types::{ByteString, LocalizedText, NodeId, UAString},
};
use parking_lot::Mutex;

use super::nodes;
use crate::line::Alarm;

/// Alarms that a method call caused and that the next tick reports.
pub(super) type PendingAlarms = Arc<Mutex<Vec<Alarm>>>;

/// An alarm of the line was raised or went away.
#[derive(Event)]
#[opcua(
    identifier = "s=BottlingAlarmType",
    namespace = "urn:foreshore:sim:bottling-line"
)]
pub(super) struct BottlingAlarm {
    base: BaseEventType,
    own_namespace_index: u16,
    alarm_name: UAString,
    active: bool,
}

impl BottlingAlarm {
    pub(super) fn new(alarm: &Alarm, namespaces: &NamespaceMap, namespace: u16) -> Self {
        let mut event = Self::new_event_now(
            Self::event_type_id(namespaces),
            ByteString::from(uuid::Uuid::new_v4().as_bytes().to_vec()),
            LocalizedText::new("en", &alarm.message),
            namespaces,
        );
        event.base.severity = alarm.severity;
        event.base.source_name = UAString::from(alarm.source.name());
        event.base.source_node = NodeId::new(namespace, alarm.source.name());
        event.alarm_name = UAString::from(alarm.name);
        event.active = alarm.active;
        debug_assert_eq!(namespaces.get_index(nodes::NAMESPACE), Some(namespace));
        event
    }
}
