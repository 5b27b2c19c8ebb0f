//! The map stage: a new payload, and perhaps a new topic.

use std::{borrow::Cow, io};

use bytes::Bytes;
use foreshore_crds::v1alpha1::dataflow::Map as MapSpec;
use foreshore_expr::{EvalError, Expected, Key, Kind, Meter, Program, RecordView, Value};
use foreshore_record::{Record, TopicName, topic::InvalidTopic};
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{StageError, expression};

/// Largest payload that a map makes, in bytes.
pub(super) const MAX_PAYLOAD: usize = 16 << 20;

/// MIME type of what a map makes.
const JSON: &str = "application/json";

/// A compiled map.
#[derive(Debug)]
pub(super) struct Map {
    /// Whether the payload stays as it is: only the topic is new.
    keeps_payload: bool,
    passthrough: bool,
    remove: Vec<String>,
    fields: Vec<Field>,
    topic: Option<Program>,
}

#[derive(Debug)]
struct Field {
    /// Names from the outermost object to the member.
    path: Vec<String>,
    value: Program,
}

/// Why a map has no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum MapError {
    #[error("{output}: {error}")]
    Field { output: String, error: EvalError },
    #[error("passthrough needs a payload that is an object, found {found}")]
    NotAnObject { found: Kind },
    #[error("passthrough: {0}")]
    Payload(EvalError),
    #[error("topic: {0}")]
    Topic(EvalError),
    #[error("topic: {0}")]
    InvalidTopic(#[from] InvalidTopic),
    #[error("new payload can't be written: {0}")]
    Encode(serde_json::Error),
}

impl Map {
    pub(super) fn compile(stage: &str, spec: &MapSpec) -> Result<Self, StageError> {
        let fields = spec.fields.iter().map(|field| {
            let place = format!("map.fields[{}].expression", field.output);
            let value = expression(stage, &place, &field.expression, Expected::Any)?;
            Ok(Field {
                path: field.output.split('.').map(str::to_owned).collect(),
                value,
            })
        });
        let topic = spec.topic.as_deref();
        let topic = topic
            .map(|source| expression(stage, "map.topic", source, Expected::String))
            .transpose()?;
        let passthrough = spec.effective_passthrough();
        Ok(Self {
            keeps_payload: !passthrough && spec.fields.is_empty(),
            passthrough,
            remove: spec.remove.iter().map(ToString::to_string).collect(),
            fields: fields.collect::<Result<_, StageError>>()?,
            topic,
        })
    }

    pub(super) fn apply(&self, view: &RecordView<'_>, meter: &mut Meter) -> Result<Record, MapError> {
        let mut mapped = view.record().clone();
        if let Some(topic) = &self.topic {
            mapped.topic = match topic.evaluate(view, meter).map_err(MapError::Topic)? {
                Value::String(text) => TopicName::new(&*text)?,
                other => {
                    let error = EvalError::UnexpectedKind {
                        found: other.kind(),
                        expected: Kind::String,
                    };
                    return Err(MapError::Topic(error));
                }
            };
        }
        if !self.keeps_payload {
            mapped.payload = self.payload(view, meter)?;
            mapped.properties.content_type = Some(JSON.to_owned());
            mapped.properties.payload_is_utf8 = true;
        }
        // The number names what was published, not what was made of it.
        mapped.number = None;
        Ok(mapped)
    }

    fn payload(&self, view: &RecordView<'_>, meter: &mut Meter) -> Result<Bytes, MapError> {
        let mut root = Object::default();
        if self.passthrough {
            match view.payload().map_err(MapError::Payload)? {
                Value::Map(map) => root = Object::of(map.iter()),
                other => return Err(MapError::NotAnObject { found: other.kind() }),
            }
            for name in &self.remove {
                root.remove(name);
            }
        }
        for field in &self.fields {
            let value = field.value.evaluate(view, meter);
            let value = value.map_err(|error| MapError::Field {
                output: field.path.join("."),
                error,
            })?;
            root.insert(&field.path, value);
        }
        let mut encoded = Bounded(Vec::with_capacity(view.record().payload.len().min(MAX_PAYLOAD)));
        serde_json::to_writer(&mut encoded, &root).map_err(MapError::Encode)?;
        Ok(Bytes::from(encoded.0))
    }
}

/// An object that is being made.
#[derive(Debug, Default)]
struct Object<'v, 'r> {
    members: Vec<(Cow<'v, str>, Member<'v, 'r>)>,
}

#[derive(Debug)]
enum Member<'v, 'r> {
    Kept(&'v Value<'r>),
    Made(Value<'r>),
    Object(Object<'v, 'r>),
}

impl<'v, 'r> Object<'v, 'r> {
    fn of(entries: impl Iterator<Item = &'v (Key<'r>, Value<'r>)>) -> Self
    where
        'r: 'v,
    {
        let members = entries.map(|(key, value)| {
            let name = match key {
                Key::String(text) => Cow::Borrowed(&**text),
                other => Cow::Owned(other.to_string()),
            };
            (name, Member::Kept(value))
        });
        Self {
            members: members.collect(),
        }
    }

    /// Removes a member: that of the very name, or else the one that the name leads to.
    fn remove(&mut self, name: &str) {
        let before = self.members.len();
        self.members.retain(|(present, _)| present != name);
        if self.members.len() == before
            && let Some((first, rest)) = name.split_once('.')
            && let Some((_, member)) = self.members.iter_mut().find(|(present, _)| present == first)
            && let Some(object) = member.opened()
        {
            object.remove(rest);
        }
    }

    /// Sets a member, with objects around it where there are none yet.
    fn insert(&mut self, path: &[String], value: Value<'r>) {
        let Some((name, rest)) = path.split_first() else {
            return;
        };
        let at = match self.members.iter().position(|(present, _)| present == name) {
            Some(at) => at,
            None => {
                self.members
                    .push((Cow::Owned(name.clone()), Member::Object(Object::default())));
                self.members.len() - 1
            }
        };
        let Some((_, member)) = self.members.get_mut(at) else {
            return;
        };
        if rest.is_empty() {
            *member = Member::Made(value);
            return;
        }
        if member.opened().is_none() {
            *member = Member::Object(Object::default());
        }
        if let Some(object) = member.opened() {
            object.insert(rest, value);
        }
    }
}

impl<'v, 'r> Member<'v, 'r> {
    /// The object that it is, open for changes; `None` if it is none.
    fn opened(&mut self) -> Option<&mut Object<'v, 'r>> {
        let opened = match self {
            Self::Object(_) => None,
            Self::Kept(Value::Map(map)) => Some(Object::of(map.iter())),
            Self::Made(Value::Map(map)) => {
                let entries = map
                    .iter()
                    .map(|(key, value)| (Cow::Owned(key.to_string()), Self::Made(value.clone())));
                Some(Object {
                    members: entries.collect(),
                })
            }
            Self::Kept(_) | Self::Made(_) => return None,
        };
        if let Some(object) = opened {
            *self = Self::Object(object);
        }
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }
}

impl Serialize for Object<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.members.len()))?;
        for (name, member) in &self.members {
            match member {
                Member::Kept(value) => map.serialize_entry(name, value)?,
                Member::Made(value) => map.serialize_entry(name, value)?,
                Member::Object(object) => map.serialize_entry(name, object)?,
            }
        }
        map.end()
    }
}

/// A payload that is being written, up to a length. Values share what they were made of, so that a small map can write
/// the same large value many times.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PAYLOAD {
            return Err(io::Error::other(format!("it has more than {MAX_PAYLOAD} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
