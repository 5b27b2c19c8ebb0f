//! What is wrong with a manifest, told so that it can be mended: where, what was found, what is allowed.

use std::fmt;

use serde::Serialize;

use crate::object::ObjectKey;

/// Longest text of a manifest that a problem quotes, in characters.
const MAX_QUOTE: usize = 120;

/// One thing that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// File, as it was given; `None` for an object that did not come from a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Line in the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// Column in the line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// The object, where one could be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectKey>,
    /// Path of the field, such as `spec.datasets[0].name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What stands there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// What may stand there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed: Option<String>,
    /// One of `foreshore_crds::conditions::reasons`.
    pub reason: &'static str,
    /// What is wrong, for people.
    pub message: String,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Problem {
    /// A problem without a place.
    #[must_use]
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            file: None,
            line: None,
            column: None,
            object: None,
            field: None,
            found: None,
            allowed: None,
            reason,
            message: message.into(),
        }
    }

    /// Names the file.
    #[must_use]
    pub fn in_file(mut self, file: impl Into<String>) -> Self {
        self.file = Some(file.into());
        self
    }

    /// Names the place in the file.
    #[must_use]
    pub fn at(mut self, position: Position) -> Self {
        self.line = Some(position.line);
        self.column = Some(position.column);
        self
    }

    /// Names the object.
    #[must_use]
    pub fn of(mut self, object: ObjectKey) -> Self {
        self.object = Some(object);
        self
    }

    /// Names the field.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Says what was found; long texts are cut.
    #[must_use]
    pub fn found(mut self, found: impl AsRef<str>) -> Self {
        self.found = Some(quote(found.as_ref()));
        self
    }

    /// Says what is allowed.
    #[must_use]
    pub fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }

    /// Everything but place and object: what a condition's message says.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Some(field) = &self.field {
            text.push_str(field);
            text.push_str(": ");
        }
        text.push_str(&self.message);
        if let Some(found) = &self.found {
            text.push_str("; found ");
            text.push_str(found);
        }
        if let Some(allowed) = &self.allowed {
            text.push_str("; allowed: ");
            text.push_str(allowed);
        }
        text
    }

    /// `file:line:column`, as far as known.
    #[must_use]
    pub fn place(&self) -> Option<String> {
        let mut place = self.file.clone()?;
        for number in [self.line, self.column].into_iter().map_while(|number| number) {
            place.push(':');
            place.push_str(&number.to_string());
        }
        Some(place)
    }
}

impl fmt::Display for Problem {
    /// `file:line:column: Kind namespace/name: field: message; found …; allowed: …`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = self.place() {
            write!(formatter, "{place}: ")?;
        }
        if let Some(object) = &self.object {
            write!(formatter, "{object}: ")?;
        }
        formatter.write_str(&self.text())
    }
}

/// A text of a manifest as a message quotes it: one line, not too long.
#[must_use]
pub(crate) fn quote(text: &str) -> String {
    let line: String = text
        .chars()
        .take(MAX_QUOTE)
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect();
    if text.chars().nth(MAX_QUOTE).is_some() {
        format!("{line}…")
    } else {
        line
    }
}

/// The candidate that a misspelt name most likely means: at most a third of its letters differ.
#[must_use]
pub(crate) fn nearest<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Names are short; longer ones are not worth the quadratic comparison.
    const MAX_LENGTH: usize = 253;
    if found.len() > MAX_LENGTH {
        return None;
    }
    let most = (found.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= MAX_LENGTH)
        .map(|candidate| {
            (
                strsim::osa_distance(&found.to_lowercase(), &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Kind;

    #[test]
    fn a_problem_reads_as_one_line() {
        let problem = Problem::new("NotFound", "no Connector of that name")
            .in_file("plant/line.yaml")
            .at(Position { line: 12, column: 5 })
            .of(ObjectKey::new(Kind::Device, "bottling", "line-1"))
            .field("spec.connectorRef.name")
            .found("\"opcau\"")
            .allowed("opcua (did you mean that?)");
        assert_eq!(
            problem.to_string(),
            "plant/line.yaml:12:5: Device bottling/line-1: spec.connectorRef.name: no Connector of that name; \
             found \"opcau\"; allowed: opcua (did you mean that?)"
        );
        assert_eq!(Problem::new("x", "m").to_string(), "m");
    }

    #[test]
    fn quotes_are_one_short_line() {
        assert_eq!(quote("a\nb"), "a b");
        assert_eq!(quote(&"ä".repeat(500)).chars().count(), MAX_QUOTE + 1);
    }

    #[test]
    fn the_nearest_name_is_near() {
        let names = ["Device", "Dataflow", "DataflowEndpoint", "Asset"];
        assert_eq!(nearest("Devise", names), Some("Device"));
        assert_eq!(nearest("dataFlow", names), Some("Dataflow"));
        assert_eq!(nearest("Deployment", names), None);
        assert_eq!(nearest("", names), None);
    }
}
