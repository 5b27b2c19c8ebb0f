//! Values that expressions work on.
//!
//! A decoded payload borrows its texts from the record; lists and maps are shared. So copying a value is cheap, and a
//! field path copies nothing.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, OnceLock},
};

use jiff::{SignedDuration, Timestamp};

use crate::types::Kind;

/// Maps up to this size are searched from end to end; larger ones get an index at the first look-up.
const LINEAR_SEARCH_MAX: usize = 64;

/// Text, borrowed from a record or shared.
#[derive(Clone)]
pub enum Text<'r> {
    /// Part of the record.
    Borrowed(&'r str),
    /// Made by an expression, or unescaped.
    Shared(Arc<str>),
}

/// Octets, borrowed from a record or shared.
#[derive(Clone)]
pub enum Octets<'r> {
    /// Part of the record.
    Borrowed(&'r [u8]),
    /// Made by an expression.
    Shared(Arc<[u8]>),
}

/// A value.
#[derive(Clone, Debug)]
pub enum Value<'r> {
    /// `null`.
    Null,
    /// Truth value.
    Bool(bool),
    /// Integer.
    Int(i64),
    /// Unsigned integer. Numbers of a payload are unsigned only when they do not fit into an integer.
    UInt(u64),
    /// Floating point number.
    Double(f64),
    /// Text.
    String(Text<'r>),
    /// Octets.
    Bytes(Octets<'r>),
    /// Point in time.
    Timestamp(Timestamp),
    /// Span of time.
    Duration(SignedDuration),
    /// List.
    List(Arc<[Value<'r>]>),
    /// Values by key.
    Map(Arc<Map<'r>>),
}

/// Key of a map.
#[derive(Clone, Debug)]
pub enum Key<'r> {
    /// Truth value.
    Bool(bool),
    /// Integer; an unsigned one too, when it fits.
    Int(i64),
    /// Unsigned integer that does not fit into an integer.
    UInt(u64),
    /// Text.
    String(Text<'r>),
}

/// Values by key, in the order in which they were written. When a key repeats, the last one counts.
#[derive(Debug, Default)]
pub struct Map<'r> {
    entries: Vec<(Key<'r>, Value<'r>)>,
    /// Positions in order of key, made at the first look-up in a large map.
    index: OnceLock<Box<[u32]>>,
}

// === impl Text, Octets ===

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, formatter)
    }
}

impl Deref for Octets<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(octets) => octets,
            Self::Shared(octets) => octets,
        }
    }
}

impl fmt::Debug for Octets<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.len())
    }
}

// === impl Key ===

impl Key<'_> {
    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        use std::cmp::Ordering::{Greater, Less};
        match (self, other) {
            (Self::String(a), Self::String(b)) => a.deref().cmp(b),
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::UInt(a), Self::UInt(b)) => a.cmp(b),
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            _ if self.rank() < other.rank() => Less,
            _ => Greater,
        }
    }

    const fn rank(&self) -> u8 {
        match self {
            Self::Bool(_) => 0,
            Self::Int(_) => 1,
            Self::UInt(_) => 2,
            Self::String(_) => 3,
        }
    }
}

impl<'r> Key<'r> {
    /// The key that a value is; `None` for kinds that can't be keys. A double that is a whole number is the integer.
    pub(crate) fn from_value(value: &Value<'r>) -> Option<Self> {
        Some(match value {
            Value::Bool(value) => Self::Bool(*value),
            Value::Int(value) => Self::Int(*value),
            Value::UInt(value) => i64::try_from(*value).map_or(Self::UInt(*value), Self::Int),
            Value::String(text) => Self::String(text.clone()),
            _ => return None,
        })
    }

    pub(crate) fn to_value(&self) -> Value<'r> {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::UInt(value) => Value::UInt(*value),
            Self::String(text) => Value::String(text.clone()),
        }
    }
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => value.fmt(formatter),
            Self::Int(value) => value.fmt(formatter),
            Self::UInt(value) => value.fmt(formatter),
            Self::String(text) => formatter.write_str(text),
        }
    }
}

// === impl Map ===

impl<'r> Map<'r> {
    pub(crate) fn new(entries: Vec<(Key<'r>, Value<'r>)>) -> Self {
        Self {
            entries,
            index: OnceLock::new(),
        }
    }

    /// How many entries it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries, in the order in which they were written.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &(Key<'r>, Value<'r>)> {
        self.entries.iter()
    }

    /// The value of a text key.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Value<'r>> {
        if self.entries.len() > LINEAR_SEARCH_MAX {
            return self.indexed(&Key::String(Text::Borrowed(name)));
        }
        self.entries.iter().rev().find_map(|(key, value)| match key {
            Key::String(text) if **text == *name => Some(value),
            _ => None,
        })
    }

    /// The value of a key.
    pub(crate) fn get(&self, wanted: &Key<'_>) -> Option<&Value<'r>> {
        if self.entries.len() > LINEAR_SEARCH_MAX {
            return self.indexed(wanted);
        }
        let found = self
            .entries
            .iter()
            .rev()
            .find(|(key, _)| key.compare(wanted).is_eq());
        found.map(|(_, value)| value)
    }

    fn indexed(&self, wanted: &Key<'_>) -> Option<&Value<'r>> {
        let index = self.index.get_or_init(|| {
            let mut index: Box<[u32]> = (0..self.entries.len() as u32).collect();
            // Stable, so that the last of equal keys stays the last.
            index.sort_by(|a, b| self.entries[*a as usize].0.compare(&self.entries[*b as usize].0));
            index
        });
        let after = index.partition_point(|at| self.entries[*at as usize].0.compare(wanted).is_le());
        let at = *index.get(after.checked_sub(1)?)?;
        let (key, value) = self.entries.get(at as usize)?;
        key.compare(wanted).is_eq().then_some(value)
    }
}

// === impl Value ===

impl Value<'_> {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Null => Kind::Null,
            Self::Bool(_) => Kind::Bool,
            Self::Int(_) => Kind::Int,
            Self::UInt(_) => Kind::UInt,
            Self::Double(_) => Kind::Double,
            Self::String(_) => Kind::String,
            Self::Bytes(_) => Kind::Bytes,
            Self::Timestamp(_) => Kind::Timestamp,
            Self::Duration(_) => Kind::Duration,
            Self::List(_) => Kind::List,
            Self::Map(_) => Kind::Map,
        }
    }
}

impl<'r> Value<'r> {
    /// Text that the record holds.
    #[must_use]
    pub const fn borrowed(text: &'r str) -> Self {
        Self::String(Text::Borrowed(text))
    }

    /// Text of its own.
    #[must_use]
    pub fn text(text: impl Into<Arc<str>>) -> Self {
        Self::String(Text::Shared(text.into()))
    }

    pub(crate) fn octets(octets: impl Into<Arc<[u8]>>) -> Self {
        Self::Bytes(Octets::Shared(octets.into()))
    }

    /// A list.
    #[must_use]
    pub fn list(elements: Vec<Self>) -> Self {
        Self::List(elements.into())
    }

    /// A map of texts to values.
    #[must_use]
    pub fn map(entries: Vec<(String, Self)>) -> Self {
        let entries = entries
            .into_iter()
            .map(|(key, value)| (Key::String(Text::Shared(key.into())), value));
        Self::Map(Arc::new(Map::new(entries.collect())))
    }
}
