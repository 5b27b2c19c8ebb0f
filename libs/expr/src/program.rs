//! Compiled expressions and their evaluation.

mod eval;

use std::{fmt, sync::Arc};

use crate::{
    budget::Meter,
    error::EvalError,
    node::Node,
    types::{Kind, Type},
    value::Value,
    view::RecordView,
};

/// A checked and compiled expression. Cloning is cheap: the compiled form is shared.
#[derive(Clone)]
pub struct Program {
    source: Arc<str>,
    root: Arc<Node>,
    result: Type,
}

impl Program {
    pub(crate) fn new(source: &str, root: Node, result: Type) -> Self {
        Self {
            source: source.into(),
            root: Arc::new(root),
            result,
        }
    }

    /// The text that it was compiled from.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// What is known about its value without a record.
    #[must_use]
    pub const fn result_type(&self) -> Type {
        self.result
    }

    /// The value for a record.
    ///
    /// # Errors
    /// When it has none for this record, or takes more than what is left of the budget.
    pub fn evaluate<'r>(&self, view: &RecordView<'r>, meter: &mut Meter) -> Result<Value<'r>, EvalError> {
        eval::evaluate(&self.root, view, meter, |value| Ok(value.clone()))
    }

    /// The truth value for a record.
    ///
    /// # Errors
    /// As [`Program::evaluate`], and when the value is no truth value.
    pub fn evaluate_bool(&self, view: &RecordView<'_>, meter: &mut Meter) -> Result<bool, EvalError> {
        eval::evaluate(&self.root, view, meter, |value| match value {
            Value::Bool(value) => Ok(*value),
            other => Err(EvalError::UnexpectedKind {
                found: other.kind(),
                expected: Kind::Bool,
            }),
        })
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Program").field(&self.source).finish()
    }
}
