//! Where in a document something is.

use std::fmt;

use serde_json::Value;

/// A step into a document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment {
    /// A member of an object.
    Field(String),
    /// An element of a list, from 0.
    Index(usize),
}

/// Where in a document something is, written as Kubernetes writes it: `spec.datasets[0].dataPoints[2].address`;
/// empty for the document as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FieldPath(Vec<Segment>);

impl FieldPath {
    /// The document as a whole.
    #[must_use]
    pub const fn root() -> Self {
        Self(Vec::new())
    }

    /// Reads the written form. A member whose name holds a dot can't be told from two members; in Kubernetes'
    /// own form it can't either.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut segments = Vec::new();
        for part in text.split('.').filter(|part| !part.is_empty()) {
            let (name, indexes) = part
                .split_once('[')
                .map_or((part, ""), |(name, indexes)| (name, indexes));
            if !name.is_empty() {
                segments.push(Segment::Field(name.to_owned()));
            }
            for index in indexes.split(['[', ']']).filter(|index| !index.is_empty()) {
                segments.push(
                    index
                        .parse()
                        .map_or_else(|_| Segment::Field(index.to_owned()), Segment::Index),
                );
            }
        }
        Self(segments)
    }

    /// The path of a member.
    #[must_use]
    pub fn field(&self, name: impl Into<String>) -> Self {
        let mut segments = self.0.clone();
        segments.push(Segment::Field(name.into()));
        Self(segments)
    }

    /// The path of an element.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        let mut segments = self.0.clone();
        segments.push(Segment::Index(index));
        Self(segments)
    }

    /// Its steps.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    /// What lies there.
    #[must_use]
    pub fn value<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(document, |value, segment| match segment {
            Segment::Field(name) => value.get(name),
            Segment::Index(index) => value.get(index),
        })
    }

    /// The part of a schema that describes what lies there.
    #[must_use]
    pub fn schema<'a>(&self, schema: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(schema, |schema, segment| match segment {
            Segment::Field(name) => schema
                .get("properties")
                .and_then(|properties| properties.get(name))
                .or_else(|| schema.get("additionalProperties")),
            Segment::Index(_) => schema.get("items"),
        })
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Field(name) if position == 0 => f.write_str(name)?,
                Segment::Field(name) => write!(f, ".{name}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in [
            "",
            "spec",
            "spec.datasets[0].dataPoints[12].address",
            "spec.rows[0][1]",
        ] {
            assert_eq!(FieldPath::parse(text).to_string(), text);
        }
    }

    #[test]
    fn finds_values_and_schemas() {
        let document =
            serde_json::json!({"spec": {"items": [{"name": "a"}, {"name": "b"}], "map": {"k": 1}}});
        assert_eq!(
            FieldPath::parse("spec.items[1].name").value(&document),
            Some(&"b".into())
        );
        let schema = serde_json::json!({"properties": {"spec": {"properties": {
            "items": {"items": {"properties": {"name": {"type": "string"}}}},
            "map": {"additionalProperties": {"type": "integer"}},
        }}}});
        let type_of = |path: &str| {
            FieldPath::parse(path)
                .schema(&schema)
                .and_then(|node| node["type"].as_str())
        };
        assert_eq!(type_of("spec.items[1].name"), Some("string"));
        assert_eq!(type_of("spec.map.k"), Some("integer"));
        assert_eq!(type_of("spec.absent"), None);
    }
}
