//! A record as expressions see it: decoded once, and only if an expression asks for it.

use std::{borrow::Cow, cell::OnceCell};

use foreshore_record::{Record, property};
use jiff::Timestamp;

use crate::{
    environment::Variable,
    error::EvalError,
    json,
    value::{Key, Map, Octets, Text, Value},
};

/// A record with what was decoded of it so far.
#[derive(Debug)]
pub struct RecordView<'r> {
    record: &'r Record,
    payload: OnceCell<Result<Value<'r>, EvalError>>,
    properties: OnceCell<Value<'r>>,
}

impl<'r> RecordView<'r> {
    /// A view of a record; decodes nothing yet.
    #[must_use]
    pub const fn new(record: &'r Record) -> Self {
        Self {
            record,
            payload: OnceCell::new(),
            properties: OnceCell::new(),
        }
    }

    /// The record.
    #[must_use]
    pub const fn record(&self) -> &'r Record {
        self.record
    }

    /// The payload, decoded from JSON.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn payload(&self) -> Result<&Value<'r>, EvalError> {
        let decoded = self.payload.get_or_init(|| json::decode(&self.record.payload));
        decoded.as_ref().map_err(Clone::clone)
    }

    pub(crate) fn variable(&self, variable: Variable) -> Result<Cow<'_, Value<'r>>, EvalError> {
        let record = self.record;
        let value = match variable {
            Variable::Payload => return self.payload().map(Cow::Borrowed),
            Variable::Properties => return Ok(Cow::Borrowed(self.properties())),
            Variable::Raw => Value::Bytes(Octets::Borrowed(&record.payload)),
            Variable::Topic => Value::borrowed(record.topic.as_str()),
            Variable::ContentType => {
                Value::borrowed(record.properties.content_type.as_deref().unwrap_or_default())
            }
            Variable::Namespace => self.property(property::NAMESPACE),
            Variable::Asset => self.property(property::ASSET),
            Variable::Member => self.property(property::MEMBER),
            Variable::Time => Value::Timestamp(self.time()?),
            Variable::IngestTime => Value::Timestamp(self.ingest_time("ingestTime")?),
            Variable::Qos => Value::Int(i64::from(u8::from(record.qos))),
            Variable::Retain => Value::Bool(record.retain),
        };
        Ok(Cow::Owned(value))
    }

    fn property(&self, name: &str) -> Value<'r> {
        Value::borrowed(self.record.user_property(name).unwrap_or_default())
    }

    fn properties(&self) -> &Value<'r> {
        self.properties.get_or_init(|| {
            // Of equal keys the last one counts in a map, but the first one in a record.
            let user = self.record.properties.user.iter().rev();
            let entries =
                user.map(|(name, value)| (Key::String(Text::Borrowed(name)), Value::borrowed(value)));
            Value::Map(Map::new(entries.collect()).into())
        })
    }

    /// When it happened: its CloudEvents time, else when the broker took it in.
    fn time(&self) -> Result<Timestamp, EvalError> {
        let stated = self
            .record
            .user_property(property::CE_TIME)
            .and_then(|text| text.parse().ok());
        stated.map_or_else(|| self.ingest_time("time"), Ok)
    }

    fn ingest_time(&self, variable: &'static str) -> Result<Timestamp, EvalError> {
        self.record.ingested_at.ok_or(EvalError::Absent { variable })
    }
}
