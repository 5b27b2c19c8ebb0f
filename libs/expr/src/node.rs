//! The compiled form of an expression.

use crate::{
    environment::Variable,
    function::Function,
    operator::{Arithmetic, Relation},
    value::Value,
};

/// A part of a compiled expression. Names are resolved, literals decoded, patterns compiled, constants folded.
#[derive(Debug)]
pub(crate) enum Node {
    Constant(Value<'static>),
    Variable(Variable),
    /// Element of the list that an enclosing macro goes through, counted from the outermost.
    Local(usize),
    /// `operand.name`
    Field {
        operand: Box<Node>,
        name: Box<str>,
    },
    /// `has(operand.name)`
    Has {
        operand: Box<Node>,
        name: Box<str>,
    },
    Index(Box<[Node; 2]>),
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<[Node; 2]>),
    Or(Box<[Node; 2]>),
    /// Condition, then, else.
    Conditional(Box<[Node; 3]>),
    Equal(Box<[Node; 2]>),
    NotEqual(Box<[Node; 2]>),
    Compare(Relation, Box<[Node; 2]>),
    Arithmetic(Arithmetic, Box<[Node; 2]>),
    /// `value in container`
    In(Box<[Node; 2]>),
    List(Box<[Node]>),
    Map(Box<[(Node, Node)]>),
    Call(Function, Box<[Node]>),
    Matches(Box<Node>, regex::Regex),
    Macro(Box<Macro>),
}

/// A macro that goes through a list, or through the keys of a map.
#[derive(Debug)]
pub(crate) struct Macro {
    pub(crate) kind: MacroKind,
    pub(crate) range: Node,
    /// Which local holds the element.
    pub(crate) local: usize,
    /// What an element has to fulfil to be collected; only for [`MacroKind::Collect`].
    pub(crate) filter: Option<Node>,
    /// The condition of an element, or what is collected of it.
    pub(crate) body: Node,
}

/// What a macro makes of the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MacroKind {
    All,
    Exists,
    ExistsOne,
    /// `map` and `filter`.
    Collect,
}

impl Node {
    pub(crate) const fn as_constant(&self) -> Option<&Value<'static>> {
        match self {
            Self::Constant(value) => Some(value),
            _ => None,
        }
    }
}
