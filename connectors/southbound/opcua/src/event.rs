//! Events: which fields are asked for, and what becomes of them.

use foreshore_crds::v1alpha1::asset::{AssetEvent, OpcuaEvent};
use jiff::Timestamp;
use opcua::types::{
    AttributeId, ContentFilter, ContentFilterBuilder, EventFilter, NodeId, NumericRange, ObjectTypeId,
    Operand, QualifiedName, SimpleAttributeOperand, Variant, custom::DataTypeTree,
};
use serde_json::{Map, Value};

use crate::{
    address::{Address, UnknownNamespace},
    value,
};

/// Fields of `BaseEventType` that every event has (OPC 10000-5, 6.4.2).
const STANDARD: [&str; 6] = [
    "EventId",
    "EventType",
    "SourceName",
    "Time",
    "Message",
    "Severity",
];

/// Builds the filter of an event (OPC 10000-4, 7.22.3).
pub(crate) fn filter(event: &AssetEvent, namespaces: &[String]) -> Result<EventFilter, UnknownNamespace> {
    let opcua = event.opcua.clone().unwrap_or_default();
    let event_type = event_type(&opcua, namespaces)?;
    let mut select: Vec<_> = STANDARD
        .map(|name| {
            operand(
                ObjectTypeId::BaseEventType.into(),
                vec![QualifiedName::new(0, name)],
            )
        })
        .into();
    for field in &opcua.fields {
        let declared = field
            .type_definition
            .as_ref()
            .and_then(|text| Address::parse(text.as_str()).ok());
        let declared = declared
            .and_then(|address| address.node_id(namespaces))
            .transpose()?;
        let path = field
            .browse_path
            .as_ref()
            .and_then(|text| Address::parse(text.as_str()).ok());
        let path = path
            .and_then(|address| address.browse_names(namespaces))
            .transpose()?;
        let path = path.unwrap_or_else(|| vec![QualifiedName::new(0, field.name.as_str())]);
        select.push(operand(declared.unwrap_or_else(|| event_type.clone()), path));
    }
    Ok(EventFilter {
        select_clauses: Some(select),
        where_clause: conditions(&opcua, &event_type),
    })
}

fn event_type(opcua: &OpcuaEvent, namespaces: &[String]) -> Result<NodeId, UnknownNamespace> {
    let declared = opcua
        .event_type
        .as_ref()
        .and_then(|text| Address::parse(text.as_str()).ok());
    let declared = declared
        .and_then(|address| address.node_id(namespaces))
        .transpose()?;
    Ok(declared.unwrap_or_else(|| ObjectTypeId::BaseEventType.into()))
}

fn operand(type_definition_id: NodeId, path: Vec<QualifiedName>) -> SimpleAttributeOperand {
    SimpleAttributeOperand {
        type_definition_id,
        browse_path: Some(path),
        attribute_id: AttributeId::Value as u32,
        index_range: NumericRange::None,
    }
}

/// `OfType` and the lowest severity; source names are compared when events arrive, since few servers know `InList`.
fn conditions(opcua: &OpcuaEvent, event_type: &NodeId) -> ContentFilter {
    let of_type = *event_type != ObjectTypeId::BaseEventType;
    let severity = || {
        operand(
            ObjectTypeId::BaseEventType.into(),
            vec![QualifiedName::new(0, "Severity")],
        )
    };
    let lowest = opcua
        .min_severity
        .and_then(|severity| u16::try_from(severity).ok());
    match (of_type, lowest) {
        (false, None) => ContentFilter { elements: None },
        (true, None) => ContentFilterBuilder::new()
            .of_type(Operand::literal(event_type.clone()))
            .build(),
        (false, Some(lowest)) => ContentFilterBuilder::new()
            .gte(Operand::from(severity()), Operand::literal(lowest))
            .build(),
        (true, Some(lowest)) => ContentFilterBuilder::new()
            .and(Operand::element(1), Operand::element(2))
            .of_type(Operand::literal(event_type.clone()))
            .gte(Operand::from(severity()), Operand::literal(lowest))
            .build(),
    }
}

/// An event as it arrived.
pub(crate) struct Decoded {
    /// When it happened, if the server says.
    pub(crate) time: Option<Timestamp>,
    /// `SourceName`.
    pub(crate) source: String,
    /// All fields by name.
    pub(crate) body: Map<String, Value>,
}

/// Names the fields of an event; `None` when its source is not wanted.
pub(crate) fn decode(
    event: &AssetEvent,
    fields: &[Variant],
    types: Option<&DataTypeTree>,
) -> Option<Decoded> {
    let opcua = event.opcua.clone().unwrap_or_default();
    let names = STANDARD
        .into_iter()
        .chain(opcua.fields.iter().map(|field| field.name.as_str()));
    let body: Map<String, Value> = names
        .zip(fields)
        .map(|(name, field)| (name.to_owned(), value::to_json(field, types)))
        .collect();
    let source = body
        .get("SourceName")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let wanted =
        opcua.source_names.is_empty() || opcua.source_names.iter().any(|name| name.as_str() == source);
    let time = fields.get(3).and_then(|time| match time {
        Variant::DateTime(time) => value::timestamp(time),
        _ => None,
    });
    wanted.then_some(Decoded { time, source, body })
}
