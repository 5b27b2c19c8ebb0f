//! Kinds of values, and what is known about a value before there is one.

use std::fmt;

/// Kind of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Known only when there is a record.
    Dyn,
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool,
    /// 64-bit integer.
    Int,
    /// Unsigned 64-bit integer.
    UInt,
    /// 64-bit floating point number.
    Double,
    /// Unicode text.
    String,
    /// Octets.
    Bytes,
    /// A point in time, to the nanosecond.
    Timestamp,
    /// A span of time, to the nanosecond.
    Duration,
    /// An ordered list.
    List,
    /// Values by key.
    Map,
}

impl Kind {
    /// The name as CEL has it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Dyn => "dyn",
            Self::Null => "null",
            Self::Bool => "bool",
            Self::Int => "int",
            Self::UInt => "uint",
            Self::Double => "double",
            Self::String => "string",
            Self::Bytes => "bytes",
            Self::Timestamp => "timestamp",
            Self::Duration => "duration",
            Self::List => "list",
            Self::Map => "map",
        }
    }

    pub(crate) const fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::UInt | Self::Double)
    }

    /// Whether a value of this kind may turn out to be one of `other`, or is compared with it as numbers are.
    pub(crate) const fn may_be(self, other: Self) -> bool {
        matches!(self, Self::Dyn)
            || matches!(other, Self::Dyn)
            || self as u8 == other as u8
            || (self.is_number() && other.is_number())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// What is known about a value before there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Its kind.
    pub kind: Kind,
    /// Kind of its elements, when it is a list or a map; [`Kind::Dyn`] otherwise.
    pub element: Kind,
}

impl Type {
    /// Nothing is known.
    pub const DYN: Self = Self::of(Kind::Dyn);

    /// A value of that kind, with any elements.
    #[must_use]
    pub const fn of(kind: Kind) -> Self {
        Self {
            kind,
            element: Kind::Dyn,
        }
    }

    /// A map with values of that kind.
    #[must_use]
    pub const fn map_of(element: Kind) -> Self {
        Self {
            kind: Kind::Map,
            element,
        }
    }

    /// A list with elements of that kind.
    #[must_use]
    pub const fn list_of(element: Kind) -> Self {
        Self {
            kind: Kind::List,
            element,
        }
    }

    /// What is known about a value that is either of two.
    pub(crate) fn join(self, other: Self) -> Self {
        if self.kind != other.kind {
            return Self::DYN;
        }
        let element = if self.element == other.element {
            self.element
        } else {
            Kind::Dyn
        };
        Self {
            kind: self.kind,
            element,
        }
    }
}

impl From<Kind> for Type {
    fn from(kind: Kind) -> Self {
        Self::of(kind)
    }
}

/// What an expression is to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expected {
    /// A truth value: filters and routes.
    Bool,
    /// Text: keys and topics.
    String,
    /// Anything: mapped values.
    Any,
}
