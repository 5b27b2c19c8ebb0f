//! JSON to values and back.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, SeqAccess, Visitor},
    ser::{Error as _, SerializeMap, SerializeSeq},
};

use crate::{
    error::EvalError,
    value::{Key, Map, Text, Value},
};

/// Largest payload that is decoded, in bytes. A decoded payload takes up to twenty times as much memory.
pub const MAX_DECODED_LEN: usize = 8 << 20;

/// Decodes a payload, borrowing its texts.
///
/// Whole numbers become integers (unsigned when they are too large for that), all others doubles.
///
/// # Errors
/// When it is not one JSON value, is nested deeper than 128 levels, or is longer than [`MAX_DECODED_LEN`].
pub fn decode(payload: &[u8]) -> Result<Value<'_>, EvalError> {
    if payload.len() > MAX_DECODED_LEN {
        let cause = format!(
            "{} bytes are not decoded, {MAX_DECODED_LEN} are allowed",
            payload.len()
        );
        return Err(EvalError::NotJson { cause });
    }
    serde_json::from_slice(payload).map_err(|error| EvalError::NotJson {
        cause: error.to_string(),
    })
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value<'de>, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value<'de>, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value<'de>, E> {
        Ok(i64::try_from(value).map_or(Value::UInt(value), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value<'de>, E> {
        Ok(Value::Double(value))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value<'de>, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = access.next_element()? {
            elements.push(element);
        }
        Ok(Value::list(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value<'de>, A::Error> {
        let mut entries = Vec::new();
        while let Some(MemberName(name)) = access.next_key()? {
            entries.push((Key::String(name), access.next_value()?));
        }
        Ok(Value::Map(Map::new(entries).into()))
    }
}

/// Name of a member, borrowed unless it is escaped.
struct MemberName<'de>(Text<'de>);

impl<'de> Deserialize<'de> for MemberName<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(MemberNameVisitor)
    }
}

struct MemberNameVisitor;

impl<'de> Visitor<'de> for MemberNameVisitor {
    type Value = MemberName<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<MemberName<'de>, E> {
        Ok(MemberName(Text::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<MemberName<'de>, E> {
        Ok(MemberName(Text::Shared(text.into())))
    }
}

/// Timestamps become RFC 3339, durations seconds with an `s`, octets base64 (as protobuf's JSON mapping has them).
impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::UInt(value) => serializer.serialize_u64(*value),
            Self::Double(value) if value.is_finite() => serializer.serialize_f64(*value),
            Self::Double(_) => Err(S::Error::custom(NOT_A_NUMBER)),
            Self::String(text) => serializer.serialize_str(text),
            Self::Bytes(octets) => serializer.serialize_str(&base64(octets)),
            Self::Timestamp(value) => serializer.collect_str(value),
            Self::Duration(value) => serializer.serialize_str(&seconds(*value)),
            Self::List(elements) => {
                let mut list = serializer.serialize_seq(Some(elements.len()))?;
                for element in elements.iter() {
                    list.serialize_element(element)?;
                }
                list.end()
            }
            Self::Map(map) => {
                let mut members = serializer.serialize_map(Some(map.len()))?;
                for (key, value) in map.iter() {
                    match key {
                        Key::String(text) => members.serialize_entry(&**text, value)?,
                        key => members.serialize_entry(&key.to_string(), value)?,
                    }
                }
                members.end()
            }
        }
    }
}

const NOT_A_NUMBER: &str = "a number that is infinite or not a number";

impl Value<'_> {
    /// Encodes it as JSON.
    ///
    /// # Errors
    /// When it holds a number that is infinite or not a number.
    pub fn to_json(&self) -> Result<Vec<u8>, EvalError> {
        serde_json::to_vec(self).map_err(|_| EvalError::NotRepresentable { found: NOT_A_NUMBER })
    }
}

/// A duration as CEL writes it: seconds and an `s`.
pub(crate) fn seconds(duration: jiff::SignedDuration) -> String {
    let nanoseconds = duration.as_nanos();
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let magnitude = nanoseconds.unsigned_abs();
    let (whole, fraction) = (magnitude / 1_000_000_000, magnitude % 1_000_000_000);
    if fraction == 0 {
        return format!("{sign}{whole}s");
    }
    let digits = format!("{fraction:09}");
    format!("{sign}{whole}.{}s", digits.trim_end_matches('0'))
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(octets: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(octets)
}
