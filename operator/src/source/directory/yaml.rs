//! YAML text to JSON values, one a document, within bounds.
//!
//! Read through parser events, so that every fault and, on demand ([`locate`]), every field has its line and column.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, StrInput, Tag};
use serde_json::{Map, Value};

use crate::problem::{Position, quote};

mod locate;
mod scalar;

pub(crate) use locate::locate;

/// Deepest nesting of mappings and sequences.
const MAX_DEPTH: usize = 64;
/// Most values in one text, copies made by aliases included.
const MAX_NODES: usize = 1_000_000;
/// Most bytes of text in all values, copies made by aliases included.
const MAX_BYTES: usize = 32 << 20;
/// Most documents in one text.
const MAX_DOCUMENTS: usize = 10_000;

/// One document of a text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    /// Its place among the documents of the text, empty ones included.
    pub(crate) index: usize,
    /// Where its first value stands.
    pub(crate) position: Position,
    /// What it says.
    pub(crate) value: Value,
}

/// Why a text is not YAML that a manifest may be written in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) position: Position,
    pub(crate) message: String,
    pub(crate) found: Option<String>,
    pub(crate) allowed: Option<String>,
}

impl Fault {
    fn new(position: Position, message: impl Into<String>) -> Self {
        Self {
            position,
            message: message.into(),
            found: None,
            allowed: None,
        }
    }

    fn found(mut self, found: &str) -> Self {
        self.found = Some(quote(found));
        self
    }

    fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }
}

/// Reads all documents of a text; empty ones are left out.
///
/// # Errors
/// The first fault: a syntax error, a key twice in a mapping, a value that JSON does not have, a bound exceeded.
pub(crate) fn parse(text: &str) -> Result<Vec<Document>, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::default();
    for event in parser(text) {
        let (event, span) = event.map_err(|error| {
            Fault::new(
                position(*error.marker()),
                format!("not valid YAML: {}", error.info().trim_end_matches('.')),
            )
        })?;
        builder.take(event, position(span.start))?;
    }
    Ok(builder.documents)
}

fn parser(text: &str) -> Parser<'_, StrInput<'_>> {
    Parser::new_from_str(text)
}

fn position(marker: Marker) -> Position {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    Position {
        line: number(marker.line()),
        column: number(marker.col().saturating_add(1)),
    }
}

/// Puts values together from events.
#[derive(Default)]
struct Builder {
    documents: Vec<Document>,
    /// Documents begun, empty ones included.
    begun: usize,
    /// Where the document's root value stands.
    root: Option<Position>,
    frames: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    cost: Cost,
}

/// What values weigh.
#[derive(Clone, Copy, Default)]
struct Cost {
    nodes: usize,
    bytes: usize,
}

/// A value that aliases may copy.
struct Anchored {
    value: Value,
    cost: Cost,
}

/// A mapping or sequence that is not complete.
struct Frame {
    anchor: usize,
    /// The weight of everything before it.
    before: Cost,
    content: Content,
}

enum Content {
    Mapping {
        entries: Map<String, Value>,
        merged: Vec<Value>,
        key: Option<Key>,
    },
    Sequence(Vec<Value>),
}

enum Key {
    Name(String),
    /// `<<`, which takes over the entries of another mapping.
    Merge,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Position) -> Result<(), Fault> {
        match event {
            Event::DocumentStart(..) => {
                self.begun += 1;
                self.root = None;
                if self.begun > MAX_DOCUMENTS {
                    return Err(
                        Fault::new(at, "too many documents").allowed(format!("{MAX_DOCUMENTS} a file"))
                    );
                }
                Ok(())
            }
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar_value(&text, style, tag.as_deref(), at)?;
                self.spend(
                    Cost {
                        nodes: 1,
                        bytes: text.len(),
                    },
                    at,
                )?;
                self.remember(
                    anchor,
                    &value,
                    Cost {
                        nodes: 1,
                        bytes: text.len(),
                    },
                    at,
                )?;
                self.place(value, Some((&text, style)), at)
            }
            Event::SequenceStart(anchor, tag) => {
                check_collection_tag(tag.as_deref(), "seq", at)?;
                self.open(anchor, Content::Sequence(Vec::new()), at)
            }
            Event::MappingStart(anchor, tag) => {
                check_collection_tag(tag.as_deref(), "map", at)?;
                self.open(
                    anchor,
                    Content::Mapping {
                        entries: Map::new(),
                        merged: Vec::new(),
                        key: None,
                    },
                    at,
                )
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(at),
            Event::Alias(anchor) => {
                let Some(anchored) = self.anchors.get(&anchor) else {
                    return Err(Fault::new(at, "an alias inside of what it stands for"));
                };
                let (value, cost) = (anchored.value.clone(), anchored.cost);
                self.spend(cost, at)?;
                self.place(value, None, at)
            }
            _ => Ok(()),
        }
    }

    /// Begins a mapping or sequence.
    fn open(&mut self, anchor: usize, content: Content, at: Position) -> Result<(), Fault> {
        self.root.get_or_insert(at);
        let before = self.cost;
        self.spend(Cost { nodes: 1, bytes: 0 }, at)?;
        if self.frames.len() >= MAX_DEPTH {
            return Err(Fault::new(at, "nested too deeply").allowed(format!("{MAX_DEPTH} levels")));
        }
        self.frames.push(Frame {
            anchor,
            before,
            content,
        });
        Ok(())
    }

    /// Ends the innermost mapping or sequence.
    fn close(&mut self, at: Position) -> Result<(), Fault> {
        let Some(Frame {
            anchor,
            before,
            content,
        }) = self.frames.pop()
        else {
            return Ok(());
        };
        let value = match content {
            Content::Sequence(items) => Value::Array(items),
            Content::Mapping {
                entries,
                merged,
                key: _,
            } => Value::Object(merge(entries, merged)),
        };
        let cost = Cost {
            nodes: self.cost.nodes - before.nodes,
            bytes: self.cost.bytes - before.bytes,
        };
        self.remember(anchor, &value, cost, at)?;
        self.place(value, None, at)
    }

    /// Keeps a copy of an anchored value, which weighs as much as any other.
    fn remember(&mut self, anchor: usize, value: &Value, cost: Cost, at: Position) -> Result<(), Fault> {
        if anchor != 0 {
            self.spend(cost, at)?;
            self.anchors.insert(
                anchor,
                Anchored {
                    value: value.clone(),
                    cost,
                },
            );
        }
        Ok(())
    }

    fn spend(&mut self, cost: Cost, at: Position) -> Result<(), Fault> {
        self.cost.nodes = self.cost.nodes.saturating_add(cost.nodes);
        self.cost.bytes = self.cost.bytes.saturating_add(cost.bytes);
        if self.cost.nodes > MAX_NODES || self.cost.bytes > MAX_BYTES {
            return Err(Fault::new(at, "the file expands to too much").allowed(format!(
                "{MAX_NODES} values and {MAX_BYTES} bytes, copies made by aliases included"
            )));
        }
        Ok(())
    }

    /// Puts a complete value where it belongs. `scalar` is how a scalar was written.
    fn place(
        &mut self,
        value: Value,
        scalar: Option<(&str, ScalarStyle)>,
        at: Position,
    ) -> Result<(), Fault> {
        let Some(frame) = self.frames.last_mut() else {
            let position = *self.root.get_or_insert(at);
            if value != Value::Null {
                self.documents.push(Document {
                    index: self.begun.saturating_sub(1),
                    position,
                    value,
                });
            }
            return Ok(());
        };
        match &mut frame.content {
            Content::Sequence(items) => items.push(value),
            Content::Mapping { entries, merged, key } => match key.take() {
                None => {
                    let name = key_of(value, scalar, at)?;
                    if let Key::Name(name) = &name
                        && entries.contains_key(name)
                    {
                        return Err(Fault::new(at, "the same key twice").found(name));
                    }
                    *key = Some(name);
                }
                Some(Key::Name(name)) => drop(entries.insert(name, value)),
                Some(Key::Merge) => merged.extend(mappings_of(value, at)?),
            },
        }
        Ok(())
    }
}

/// A key of a mapping. Numbers become text, as they do for kubectl; so would booleans, but nobody who writes `y:` wants
/// a key named `true`.
fn key_of(value: Value, scalar: Option<(&str, ScalarStyle)>, at: Position) -> Result<Key, Fault> {
    match (value, scalar) {
        (Value::String(text), Some((_, ScalarStyle::Plain))) if text == "<<" => Ok(Key::Merge),
        (Value::String(text), _) => Ok(Key::Name(text)),
        (Value::Number(number), _) => Ok(Key::Name(number.to_string())),
        (Value::Bool(_), Some((text, _))) => Err(Fault::new(
            at,
            "a key that YAML 1.1, and so kubectl, reads as a boolean",
        )
        .found(text)
        .allowed(format!("{text:?}, in quotes"))),
        (value, _) => Err(Fault::new(at, "a key that is no text")
            .found(&value.to_string())
            .allowed("text or a number")),
    }
}

/// What stands behind a merge key: a mapping, or a sequence of them.
fn mappings_of(value: Value, at: Position) -> Result<Vec<Value>, Fault> {
    let values = match value {
        Value::Array(items) => items,
        value => vec![value],
    };
    if values.iter().all(Value::is_object) {
        return Ok(values);
    }
    Err(Fault::new(at, "'<<' takes over something that is no mapping")
        .allowed("a mapping, or a sequence of mappings"))
}

/// Own entries win over merged ones, earlier merged mappings over later ones.
fn merge(mut entries: Map<String, Value>, merged: Vec<Value>) -> Map<String, Value> {
    for mapping in merged {
        if let Value::Object(mapping) = mapping {
            for (key, value) in mapping {
                entries.entry(key).or_insert(value);
            }
        }
    }
    entries
}

fn scalar_value(text: &str, style: ScalarStyle, tag: Option<&Tag>, at: Position) -> Result<Value, Fault> {
    let plain = || {
        scalar::resolve(text).map_err(|_| {
            Fault::new(at, "a number that JSON does not have")
                .found(text)
                .allowed("finite numbers")
        })
    };
    let Some(tag) = tag else {
        return if style == ScalarStyle::Plain {
            plain()
        } else {
            Ok(Value::String(text.to_owned()))
        };
    };
    let fits = |value: &Value| match core_suffix(tag) {
        Some("null") => value.is_null(),
        Some("bool") => value.is_boolean(),
        Some("int") => value.is_i64() || value.is_u64(),
        Some("float") => value.is_number(),
        _ => false,
    };
    match core_suffix(tag) {
        Some("str") => Ok(Value::String(text.to_owned())),
        Some("null" | "bool" | "int" | "float") => Some(plain()?).filter(fits).ok_or_else(|| {
            Fault::new(at, format!("a value that is not of its tag {}", shown(tag))).found(text)
        }),
        _ => Err(unknown_tag(tag, at)),
    }
}

fn check_collection_tag(tag: Option<&Tag>, expected: &str, at: Position) -> Result<(), Fault> {
    match tag {
        Some(tag) if core_suffix(tag) != Some(expected) => Err(unknown_tag(tag, at)),
        _ => Ok(()),
    }
}

/// What stands behind `!!`.
fn core_suffix(tag: &Tag) -> Option<&str> {
    tag.is_yaml_core_schema().then_some(tag.suffix.as_str())
}

fn shown(tag: &Tag) -> String {
    let handle = if tag.is_yaml_core_schema() {
        "!!"
    } else {
        &tag.handle
    };
    format!("{handle}{}", tag.suffix)
}

fn unknown_tag(tag: &Tag, at: Position) -> Fault {
    Fault::new(at, "a tag that has no meaning here")
        .found(&shown(tag))
        .allowed("!!str, !!int, !!float, !!bool, !!null, !!map, !!seq")
}

#[cfg(test)]
mod tests;
