//! What can be wrong with an expression, and what can go wrong with a record.

use std::fmt;

use crate::types::Kind;

/// A place in the text of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Line, counted from 1.
    pub line: u32,
    /// Character in the line, counted from 1.
    pub column: u32,
}

impl Position {
    /// The first character.
    pub const START: Self = Self { line: 1, column: 1 };
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.line, self.column)
    }
}

/// An expression that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} at {position}: found {found}, allowed: {allowed}")]
pub struct ExprError {
    /// Where.
    pub position: Position,
    /// What is wrong.
    pub message: String,
    /// What was found there.
    pub found: String,
    /// What is allowed there, the likeliest first.
    pub allowed: String,
}

/// Why an expression has no value for a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The payload was asked for a member, and it is not JSON.
    #[error("payload is not JSON: {cause}")]
    NotJson {
        /// What the decoder found, and where.
        cause: String,
    },
    /// A variable that this record lacks.
    #[error("record has no {variable}")]
    Absent {
        /// The variable.
        variable: &'static str,
    },
    /// A map without the member that was asked for.
    #[error("no such key: {key}")]
    NoSuchKey {
        /// The key, shortened.
        key: String,
    },
    /// An index outside of a list or a string.
    #[error("index {index} is out of range: length is {length}")]
    OutOfRange {
        /// The index.
        index: i64,
        /// How long it is.
        length: usize,
    },
    /// Kinds of values that do not go together.
    #[error("{operation} is not defined for {found}")]
    NoSuchOverload {
        /// Operator or function.
        operation: &'static str,
        /// Kinds of the values.
        found: String,
    },
    /// A value that a function can't take.
    #[error("{function}: {message}")]
    InvalidArgument {
        /// The function.
        function: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// Division or remainder by zero.
    #[error("division by zero")]
    DivisionByZero,
    /// A result outside of what its kind can hold.
    #[error("{operation} overflows")]
    Overflow {
        /// Operator or function.
        operation: &'static str,
    },
    /// A value of another kind than the expression was to give.
    #[error("expression gave {found}, {expected} is needed")]
    UnexpectedKind {
        /// What it gave.
        found: Kind,
        /// What is needed.
        expected: Kind,
    },
    /// The expression took more than its budget.
    #[error("expression took more than {limit} {what}")]
    OutOfBudget {
        /// What ran out: `steps` or `bytes`.
        what: &'static str,
        /// How much was granted.
        limit: u64,
    },
    /// A result that JSON can't represent.
    #[error("{found} has no representation in JSON")]
    NotRepresentable {
        /// What it is.
        found: &'static str,
    },
}

impl EvalError {
    pub(crate) fn overload(operation: &'static str, kinds: &[Kind]) -> Self {
        let found = kinds.iter().map(Kind::as_str).collect::<Vec<_>>().join(", ");
        Self::NoSuchOverload { operation, found }
    }

    pub(crate) fn argument(function: &'static str, message: impl fmt::Display) -> Self {
        Self::InvalidArgument {
            function,
            message: message.to_string(),
        }
    }

    pub(crate) fn no_such_key(key: &str) -> Self {
        // A key may come from the payload; a dead letter's reason stays short.
        let mut shown: String = key.chars().take(MAX_SHOWN_CHARS).collect();
        if shown.len() < key.len() {
            shown.push('…');
        }
        Self::NoSuchKey { key: shown }
    }
}

const MAX_SHOWN_CHARS: usize = 64;
