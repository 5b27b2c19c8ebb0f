//! Values between OPC UA and JSON.
//!
//! Towards JSON: the compact form that the reference sends: numbers as numbers, structures as objects by field name,
//! enumerations as numbers, byte strings as base64 (OPC 10000-6, 5.4, non-reversible).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use foreshore_crds::v1alpha1::asset::OpcuaDataType;
use jiff::Timestamp;
use opcua::types::{
    Array, ByteString, DateTime, ExtensionObject, Guid, LocalizedText, NodeId, QualifiedName, UAString,
    Variant, VariantScalarTypeId,
    custom::{DataTypeTree, DynamicStructure},
};
use serde_json::{Map, Number, Value, json};

/// Structures and arrays within each other deeper than this are shown as null.
const MAX_DEPTH: usize = 32;

/// 100-nanosecond ticks between 1601 and 1970.
const TICKS_TO_UNIX: i64 = 116_444_736_000_000_000;

/// Turns an OPC UA time into ours.
pub(crate) fn timestamp(time: &DateTime) -> Option<Timestamp> {
    let nanoseconds = i128::from(time.ticks())
        .checked_sub(i128::from(TICKS_TO_UNIX))?
        .checked_mul(100)?;
    (!time.is_null())
        .then(|| Timestamp::from_nanosecond(nanoseconds).ok())
        .flatten()
}

/// Turns a value into JSON.
pub(crate) fn to_json(value: &Variant, types: Option<&DataTypeTree>) -> Value {
    json_at(value, types, 0)
}

fn json_at(value: &Variant, types: Option<&DataTypeTree>, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        return Value::Null;
    }
    match value {
        Variant::Empty => Value::Null,
        Variant::Boolean(value) => json!(value),
        Variant::SByte(value) => json!(value),
        Variant::Byte(value) => json!(value),
        Variant::Int16(value) => json!(value),
        Variant::UInt16(value) => json!(value),
        Variant::Int32(value) => json!(value),
        Variant::UInt32(value) => json!(value),
        Variant::Int64(value) => json!(value),
        Variant::UInt64(value) => json!(value),
        Variant::Float(value) => float(f64::from(*value), || value.to_string()),
        Variant::Double(value) => float(*value, || value.to_string()),
        Variant::String(text) => text.value().as_ref().map_or(Value::Null, |text| json!(text)),
        Variant::XmlElement(text) => json!(text.to_string()),
        Variant::DateTime(time) => timestamp(time).map_or(Value::Null, |time| json!(time.to_string())),
        Variant::Guid(guid) => json!(guid.to_string()),
        Variant::StatusCode(status) => json!(status.bits()),
        Variant::ByteString(bytes) => bytes
            .value
            .as_ref()
            .map_or(Value::Null, |bytes| json!(STANDARD.encode(bytes))),
        Variant::QualifiedName(name) => json!(name.name.as_ref()),
        Variant::LocalizedText(text) => json!(text.text.as_ref()),
        Variant::NodeId(id) => json!(id.to_string()),
        Variant::ExpandedNodeId(id) => json!(id.to_string()),
        Variant::ExtensionObject(object) => structure(object, types, depth),
        Variant::Variant(inner) => json_at(inner, types, depth + 1),
        Variant::DataValue(inner) => inner
            .value
            .as_ref()
            .map_or(Value::Null, |value| json_at(value, types, depth + 1)),
        Variant::DiagnosticInfo(_) => Value::Null,
        Variant::Array(array) => matrix(array, types, depth),
    }
}

/// JSON has no words for what is not a number; OPC 10000-6, 5.4.2.4 gives them as strings.
fn float(value: f64, shortest: impl FnOnce() -> String) -> Value {
    if value.is_nan() {
        return json!("NaN");
    }
    if value.is_infinite() {
        return json!(if value > 0.0 { "Infinity" } else { "-Infinity" });
    }
    // Through text, so that 0.1 as a 32-bit float stays 0.1.
    let number = shortest().parse::<f64>().ok().and_then(Number::from_f64);
    number.map_or(Value::Null, Value::Number)
}

fn matrix(array: &Array, types: Option<&DataTypeTree>, depth: usize) -> Value {
    let flat: Vec<Value> = array
        .values
        .iter()
        .map(|value| json_at(value, types, depth + 1))
        .collect();
    match array.dimensions.as_deref() {
        Some([_, inner @ ..]) if !inner.is_empty() => nest(flat, inner),
        _ => Value::Array(flat),
    }
}

/// Folds row-major values into nested arrays.
fn nest(mut values: Vec<Value>, dimensions: &[u32]) -> Value {
    for &dimension in dimensions.iter().rev() {
        let size = usize::try_from(dimension).unwrap_or(1).max(1);
        values = values
            .chunks(size)
            .map(|row| Value::Array(row.to_vec()))
            .collect();
    }
    Value::Array(values)
}

fn structure(object: &ExtensionObject, types: Option<&DataTypeTree>, depth: usize) -> Value {
    let Some(dynamic) = object.inner_as::<DynamicStructure>() else {
        return known_structure(object);
    };
    let definition = object
        .data_type()
        .and_then(|id| types?.get_struct_type(&id.node_id));
    let Some(definition) = definition else {
        return Value::Null;
    };
    // The values of a union hold its one field; those of a structure stand in the order of its fields.
    let fields = definition.fields.iter().filter_map(|field| {
        let value = dynamic.get_field_by_name(&field.name)?;
        (!(field.is_optional && matches!(value, Variant::Empty)))
            .then(|| (field.name.clone(), json_at(value, types, depth + 1)))
    });
    Value::Object(fields.collect::<Map<_, _>>())
}

/// Structures of the standard, which the library knows at compile time, are shown by its own JSON encoding.
fn known_structure(object: &ExtensionObject) -> Value {
    use opcua::types::{EUInformation, Range};
    if let Some(range) = object.inner_as::<Range>() {
        return json!({ "Low": range.low, "High": range.high });
    }
    if let Some(unit) = object.inner_as::<EUInformation>() {
        return json!({ "UnitId": unit.unit_id, "DisplayName": unit.display_name.text.as_ref() });
    }
    json!(object.type_name())
}

/// A JSON value that does not fit a type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("found {found}, {allowed} is allowed")]
pub(crate) struct Mismatch {
    found: String,
    allowed: String,
}

/// Turns JSON into a value of a built-in type, or an array of it.
pub(crate) fn from_json(value: &Value, scalar: VariantScalarTypeId) -> Result<Variant, Mismatch> {
    if let Value::Array(items) = value {
        let values = items
            .iter()
            .map(|item| from_json(item, scalar))
            .collect::<Result<Vec<_>, _>>()?;
        return Array::new(scalar, values)
            .map(|array| Variant::Array(Box::new(array)))
            .map_err(|_| Mismatch {
                found: "an array of arrays".to_owned(),
                allowed: format!("an array of {scalar:?}"),
            });
    }
    scalar_from_json(value, scalar).ok_or_else(|| {
        let mut found = value.to_string();
        if found.chars().count() > 60 {
            found = found.chars().take(60).chain("…".chars()).collect();
        }
        Mismatch {
            found,
            allowed: format!("a value of the type {scalar:?}"),
        }
    })
}

fn scalar_from_json(value: &Value, scalar: VariantScalarTypeId) -> Option<Variant> {
    let text = value.as_str();
    Some(match scalar {
        VariantScalarTypeId::Boolean => Variant::Boolean(value.as_bool()?),
        VariantScalarTypeId::SByte => Variant::SByte(i8::try_from(value.as_i64()?).ok()?),
        VariantScalarTypeId::Byte => Variant::Byte(u8::try_from(value.as_u64()?).ok()?),
        VariantScalarTypeId::Int16 => Variant::Int16(i16::try_from(value.as_i64()?).ok()?),
        VariantScalarTypeId::UInt16 => Variant::UInt16(u16::try_from(value.as_u64()?).ok()?),
        VariantScalarTypeId::Int32 => Variant::Int32(i32::try_from(value.as_i64()?).ok()?),
        VariantScalarTypeId::UInt32 => Variant::UInt32(u32::try_from(value.as_u64()?).ok()?),
        VariantScalarTypeId::Int64 => Variant::Int64(value.as_i64()?),
        VariantScalarTypeId::UInt64 => Variant::UInt64(value.as_u64()?),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a 32-bit float is what the server asks for"
        )]
        VariantScalarTypeId::Float => Variant::Float(value.as_f64()? as f32),
        VariantScalarTypeId::Double => Variant::Double(value.as_f64()?),
        VariantScalarTypeId::String => Variant::String(UAString::from(text?)),
        VariantScalarTypeId::DateTime => Variant::DateTime(Box::new(date_time(text?)?)),
        VariantScalarTypeId::Guid => Variant::Guid(Box::new(text?.parse::<Guid>().ok()?)),
        VariantScalarTypeId::ByteString => {
            Variant::ByteString(ByteString::from(STANDARD.decode(text?).ok()?))
        }
        VariantScalarTypeId::NodeId => Variant::NodeId(Box::new(text?.parse::<NodeId>().ok()?)),
        VariantScalarTypeId::QualifiedName => Variant::QualifiedName(Box::new(QualifiedName::new(0, text?))),
        VariantScalarTypeId::LocalizedText => Variant::LocalizedText(Box::new(LocalizedText::new("", text?))),
        _ => return None,
    })
}

fn date_time(text: &str) -> Option<DateTime> {
    let time: Timestamp = text.parse().ok()?;
    let ticks = i64::try_from(time.as_nanosecond() / 100)
        .ok()?
        .checked_add(TICKS_TO_UNIX)?;
    Some(DateTime::from(ticks))
}

/// The library's name of a type that a manifest names.
pub(crate) fn scalar_type(declared: OpcuaDataType) -> VariantScalarTypeId {
    match declared {
        OpcuaDataType::Boolean => VariantScalarTypeId::Boolean,
        OpcuaDataType::SByte => VariantScalarTypeId::SByte,
        OpcuaDataType::Byte => VariantScalarTypeId::Byte,
        OpcuaDataType::Int16 => VariantScalarTypeId::Int16,
        OpcuaDataType::UInt16 => VariantScalarTypeId::UInt16,
        OpcuaDataType::Int32 => VariantScalarTypeId::Int32,
        OpcuaDataType::UInt32 => VariantScalarTypeId::UInt32,
        OpcuaDataType::Int64 => VariantScalarTypeId::Int64,
        OpcuaDataType::UInt64 => VariantScalarTypeId::UInt64,
        OpcuaDataType::Float => VariantScalarTypeId::Float,
        OpcuaDataType::Double => VariantScalarTypeId::Double,
        OpcuaDataType::String => VariantScalarTypeId::String,
        OpcuaDataType::DateTime => VariantScalarTypeId::DateTime,
        OpcuaDataType::Guid => VariantScalarTypeId::Guid,
        OpcuaDataType::ByteString => VariantScalarTypeId::ByteString,
        OpcuaDataType::NodeId => VariantScalarTypeId::NodeId,
        OpcuaDataType::QualifiedName => VariantScalarTypeId::QualifiedName,
        OpcuaDataType::LocalizedText => VariantScalarTypeId::LocalizedText,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_shortest_form() {
        assert_eq!(to_json(&Variant::Float(0.1), None), json!(0.1));
        assert_eq!(to_json(&Variant::UInt64(u64::MAX), None), json!(u64::MAX));
        assert_eq!(to_json(&Variant::Double(f64::NAN), None), json!("NaN"));
        assert_eq!(
            to_json(&Variant::Double(f64::NEG_INFINITY), None),
            json!("-Infinity")
        );
    }

    #[test]
    fn a_matrix_is_nested_by_rows() {
        let values = (1..=6).map(Variant::Int32).collect::<Vec<_>>();
        let array = Array::new_multi(VariantScalarTypeId::Int32, values, vec![2, 3]).unwrap();
        assert_eq!(
            to_json(&Variant::Array(Box::new(array)), None),
            json!([[1, 2, 3], [4, 5, 6]])
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_does() {
        assert_eq!(
            from_json(&json!(7), VariantScalarTypeId::Double).unwrap(),
            Variant::Double(7.0)
        );
        assert_eq!(
            from_json(&json!([1, 2]), VariantScalarTypeId::Byte).unwrap(),
            Variant::from(vec![1u8, 2])
        );
        let error = from_json(&json!(300), VariantScalarTypeId::Byte).unwrap_err();
        assert_eq!(
            error.to_string(),
            "found 300, a value of the type Byte is allowed"
        );
        assert!(from_json(&json!("x"), VariantScalarTypeId::Boolean).is_err());
    }

    #[test]
    fn times_survive_the_way_there_and_back() {
        let text = "2026-11-21T10:42:55.1234567Z";
        let value = from_json(&json!(text), VariantScalarTypeId::DateTime).unwrap();
        assert_eq!(to_json(&value, None), json!(text));
    }
}
