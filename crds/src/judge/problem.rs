//! What is wrong with a document.

use std::fmt;

use serde_json::Value;

use super::path::FieldPath;

/// What sort of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProblemKind {
    /// No kind of ours in a version of ours.
    UnknownKind,
    /// A member that the schema does not know.
    UnknownField,
    /// A member that must be there is not.
    Required,
    /// A value of another type.
    Type,
    /// A text that is none of those allowed.
    NotSupported,
    /// Too many characters, elements or members.
    TooMany,
    /// A value beyond other bounds: a pattern, a range, a least length.
    Invalid,
    /// An element whose name or value another element has.
    Duplicate,
    /// Metadata against Kubernetes' own rules.
    Metadata,
    /// A rule of the kind.
    Rule,
    /// An expression of a dataflow that does not parse, or names what is not there.
    Expression,
    /// The object has more than 1 MiB.
    TooLarge,
}

impl ProblemKind {
    /// Whether rules are not looked at beside it: they could not be relied on. The API server does the same.
    #[must_use]
    pub const fn hides_rules(self) -> bool {
        matches!(
            self,
            Self::UnknownKind
                | Self::Required
                | Self::Type
                | Self::NotSupported
                | Self::TooMany
                | Self::TooLarge
        )
    }
}

/// One thing that is wrong with a document, so that a reader can put it right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub path: FieldPath,
    /// What sort of thing.
    pub kind: ProblemKind,
    /// What was found there.
    pub found: String,
    /// What is allowed there.
    pub allowed: String,
    /// What was probably meant.
    pub nearest: Option<String>,
}

impl Problem {
    pub(super) fn new(
        path: FieldPath,
        kind: ProblemKind,
        found: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        Self {
            path,
            kind,
            found: found.into(),
            allowed: allowed.into(),
            nearest: None,
        }
    }

    pub(super) fn with_nearest(mut self, nearest: Option<&str>) -> Self {
        self.nearest = nearest.map(ToOwned::to_owned);
        self
    }

    /// Without the place: `found adress, allowed …; did you mean address?`.
    #[must_use]
    pub fn message(&self) -> String {
        let Self {
            found,
            allowed,
            nearest,
            ..
        } = self;
        match nearest {
            Some(nearest) => format!("found {found}, allowed {allowed}; did you mean {nearest}?"),
            None => format!("found {found}, allowed {allowed}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.segments().is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message())
    }
}

/// Longest part of a value that a message repeats, in characters.
const MAX_FOUND: usize = 80;

/// A value as a message shows it.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Object(members) if members.is_empty() => "an empty object".to_owned(),
        Value::Object(members) => cut(&format!(
            "an object of {}",
            members.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
        )),
        Value::Array(elements) => format!("a list of {}", elements.len()),
        Value::String(_) | Value::Number(_) | Value::Bool(_) => cut(&value.to_string()),
    }
}

pub(super) fn cut(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_FOUND).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

/// `a, b and c`.
pub(super) fn enumerate<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.into_iter().collect();
    match words.as_slice() {
        [] => "nothing".to_owned(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut_at_a_character() {
        let shown = show(&Value::String("ä".repeat(200)));
        assert_eq!(shown.chars().count(), MAX_FOUND + 1);
    }
}
