//! What is wrong with a manifest, told so that it can be mended: where, what was found, what is allowed.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use serde::Serialize;

use crate::object::ObjectKey;

/// Longest text of a manifest that a problem quotes, in characters.
const MAX_QUOTE: usize = 120;

/// One thing that is wrong with a manifest. Small to hand on, since most checks give one or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Problem(Box<Details>);

/// What a [`Problem`] tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
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
    /// What was probably meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<String>,
    /// One of `foreshore_crds::conditions::reasons`, [`crate::source::directory::UNREADABLE`] or
    /// [`crate::source::directory::STATE_NOT_KEPT`].
    pub reason: &'static str,
    /// What is wrong, for people; empty where found and allowed say it all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Deref for Problem {
    type Target = Details;

    fn deref(&self) -> &Details {
        &self.0
    }
}

impl DerefMut for Problem {
    fn deref_mut(&mut self) -> &mut Details {
        &mut self.0
    }
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
        Self(Box::new(Details {
            file: None,
            line: None,
            column: None,
            object: None,
            field: None,
            found: None,
            allowed: None,
            nearest: None,
            reason,
            message: message.into(),
        }))
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

    /// Says what was probably meant.
    #[must_use]
    pub fn nearest(mut self, nearest: Option<&str>) -> Self {
        self.nearest = nearest.map(ToOwned::to_owned);
        self
    }

    /// Everything but place and object: what a condition's message says.
    #[must_use]
    pub fn text(&self) -> String {
        let said = [self.field.as_deref().unwrap_or_default(), &self.message];
        let mut text = said
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(": ");
        let mut separator = if text.is_empty() { "" } else { ": " };
        for (word, value) in [("found", &self.found), ("allowed", &self.allowed)] {
            if let Some(value) = value {
                text.extend([separator, word, " ", value]);
                separator = ", ";
            }
        }
        if let Some(nearest) = &self.nearest {
            text.extend(["; did you mean ", nearest, "?"]);
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
    /// `file:line:column: Kind namespace/name: field: message: found …, allowed …; did you mean …?`.
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
            .found("opcau")
            .allowed("camera, opcua")
            .nearest(Some("opcua"));
        assert_eq!(
            problem.to_string(),
            "plant/line.yaml:12:5: Device bottling/line-1: spec.connectorRef.name: no Connector of that name: \
             found opcau, allowed camera, opcua; did you mean opcua?"
        );
        assert_eq!(Problem::new("x", "m").to_string(), "m");
        assert_eq!(
            Problem::new("x", "").field("spec").found("7").to_string(),
            "spec: found 7"
        );
    }

    #[test]
    fn quotes_are_one_short_line() {
        assert_eq!(quote("a\nb"), "a b");
        assert_eq!(quote(&"ä".repeat(500)).chars().count(), MAX_QUOTE + 1);
    }
}
