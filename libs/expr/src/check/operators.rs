//! Operators: which kinds go together.

use cel::{IdedExpr, common::ast::operators};

use super::{Fault, Lowered, Lowering, folded};
use crate::{
    node::Node,
    operator::{self, Arithmetic, Relation},
    types::{Kind, Type},
    value::Value,
};

const CONCRETE: [Kind; 11] = [
    Kind::Null,
    Kind::Bool,
    Kind::Int,
    Kind::UInt,
    Kind::Double,
    Kind::String,
    Kind::Bytes,
    Kind::Timestamp,
    Kind::Duration,
    Kind::List,
    Kind::Map,
];

/// Kinds that a value may turn out to have.
fn possible(kind: Kind) -> impl Iterator<Item = Kind> + Clone {
    CONCRETE
        .into_iter()
        .filter(move |concrete| kind == Kind::Dyn || kind == *concrete)
}

/// What is known about the result when an operator is applied to values of these kinds; `None` when it never works.
fn result_of(left: Kind, right: Kind, rule: impl Fn(Kind, Kind) -> Option<Kind>) -> Option<Type> {
    let pairs = possible(left).flat_map(|left| possible(right).map(move |right| (left, right)));
    pairs
        .filter_map(|(left, right)| rule(left, right).map(Type::of))
        .reduce(Type::join)
}

fn arithmetic_rule(operator: Arithmetic, left: Kind, right: Kind) -> Option<Kind> {
    use Kind::{Bytes, Double, Duration, Int, List, String, Timestamp, UInt};
    Some(match (operator, left, right) {
        (Arithmetic::Remainder, Double, _) | (Arithmetic::Remainder, _, Double) => return None,
        (_, Int, Int) => Int,
        (_, UInt, UInt) => UInt,
        // An integer unless it does not fit.
        (_, Int, UInt) | (_, UInt, Int) => Kind::Dyn,
        (_, left, right) if left.is_number() && right.is_number() => Double,
        (Arithmetic::Add, String, String) => String,
        (Arithmetic::Add, Bytes, Bytes) => Bytes,
        (Arithmetic::Add, List, List) => List,
        (Arithmetic::Add, Timestamp, Duration) | (Arithmetic::Add, Duration, Timestamp) => Timestamp,
        (Arithmetic::Add | Arithmetic::Subtract, Duration, Duration) => Duration,
        (Arithmetic::Subtract, Timestamp, Duration) => Timestamp,
        (Arithmetic::Subtract, Timestamp, Timestamp) => Duration,
        _ => return None,
    })
}

fn arithmetic_allowed(operator: Arithmetic) -> &'static str {
    match operator {
        Arithmetic::Add => "numbers, strings, bytes, lists, durations, or a timestamp and a duration",
        Arithmetic::Subtract => "numbers, durations, timestamps, or a timestamp and a duration",
        Arithmetic::Multiply | Arithmetic::Divide => "numbers",
        Arithmetic::Remainder => "integers",
    }
}

fn relation_rule(left: Kind, right: Kind) -> Option<Kind> {
    use Kind::{Bool, Bytes, Duration, String, Timestamp};
    let ordered = matches!(left, Bool | String | Bytes | Timestamp | Duration) && left == right;
    (ordered || left.is_number() && right.is_number()).then_some(Bool)
}

fn equality_rule(left: Kind, right: Kind) -> Option<Kind> {
    (left == right || left.is_number() && right.is_number()).then_some(Kind::Bool)
}

fn mismatch(id: u64, symbol: &str, operands: &[&Lowered], allowed: &str) -> Fault {
    let kinds: Vec<_> = operands
        .iter()
        .map(|operand| operand.known.kind.as_str())
        .collect();
    let found = match kinds.as_slice() {
        [left, right] => format!("{left} {symbol} {right}"),
        kinds => format!("{symbol}{}", kinds.join("")),
    };
    Fault::new(
        id,
        format!("operator `{symbol}` does not take these kinds"),
        found,
        allowed,
    )
}

fn pair(left: Lowered, right: Lowered) -> Box<[Node; 2]> {
    Box::new([left.node, right.node])
}

fn both<'n>(left: &'n Lowered, right: &'n Lowered) -> Option<(&'n Value<'static>, &'n Value<'static>)> {
    left.node.as_constant().zip(right.node.as_constant())
}

impl Lowering<'_> {
    /// An operator by the name that the syntax tree gives it; `None` when the name is no operator's.
    pub(super) fn operator(
        &mut self,
        id: u64,
        name: &str,
        operands: &[IdedExpr],
    ) -> Option<Result<Lowered, Fault>> {
        Some(match (name, operands) {
            (operators::LOGICAL_NOT, [operand]) => self.not(id, operand),
            (operators::NEGATE, [operand]) => self.negate(id, operand),
            (operators::CONDITIONAL, [condition, then, otherwise]) => {
                self.conditional(id, condition, then, otherwise)
            }
            (operators::LOGICAL_AND, [left, right]) => self.logic(id, "&&", left, right, Node::And),
            (operators::LOGICAL_OR, [left, right]) => self.logic(id, "||", left, right, Node::Or),
            (_, [left, right]) => {
                let known = matches!(
                    name,
                    operators::EQUALS | operators::NOT_EQUALS | operators::IN | operators::INDEX
                ) || arithmetic_operator(name).is_some()
                    || relation(name).is_some();
                if !known {
                    return None;
                }
                self.lower(left)
                    .and_then(|left| Ok((left, self.lower(right)?)))
                    .and_then(|(left, right)| self.binary(id, name, left, right))
            }
            _ => return None,
        })
    }

    fn binary(&mut self, id: u64, name: &str, left: Lowered, right: Lowered) -> Result<Lowered, Fault> {
        if let Some(operator) = arithmetic_operator(name) {
            return self.arithmetic(id, operator, left, right);
        }
        if let Some(relation) = relation(name) {
            return self.relation(id, relation, left, right);
        }
        match name {
            operators::IN => self.membership(id, left, right),
            operators::INDEX => self.index(id, left, right),
            _ => self.equality(id, name == operators::EQUALS, left, right),
        }
    }

    fn arithmetic(
        &mut self,
        id: u64,
        operator: Arithmetic,
        left: Lowered,
        right: Lowered,
    ) -> Result<Lowered, Fault> {
        let rule = |left, right| arithmetic_rule(operator, left, right);
        let Some(known) = result_of(left.known.kind, right.known.kind, rule) else {
            return Err(mismatch(
                id,
                operator.symbol(),
                &[&left, &right],
                arithmetic_allowed(operator),
            ));
        };
        let value = both(&left, &right).map(|(a, b)| operator::arithmetic(operator, a, b, &mut self.meter));
        folded(id, value, known, || Node::Arithmetic(operator, pair(left, right)))
    }

    fn relation(
        &mut self,
        id: u64,
        relation: Relation,
        left: Lowered,
        right: Lowered,
    ) -> Result<Lowered, Fault> {
        let Some(known) = result_of(left.known.kind, right.known.kind, relation_rule) else {
            let allowed = "two numbers, or two strings, bools, bytes, timestamps or durations";
            return Err(mismatch(id, relation.symbol(), &[&left, &right], allowed));
        };
        let value = both(&left, &right).map(|(a, b)| {
            let ordering = operator::order(relation.symbol(), a, b, &mut self.meter)?;
            Ok(Value::Bool(
                ordering.is_some_and(|ordering| relation.holds(ordering)),
            ))
        });
        folded(id, value, known, || Node::Compare(relation, pair(left, right)))
    }

    fn equality(&mut self, id: u64, wanted: bool, left: Lowered, right: Lowered) -> Result<Lowered, Fault> {
        let symbol = if wanted { "==" } else { "!=" };
        let Some(known) = result_of(left.known.kind, right.known.kind, equality_rule) else {
            return Err(mismatch(
                id,
                symbol,
                &[&left, &right],
                "two values of one kind, or two numbers",
            ));
        };
        let value = both(&left, &right)
            .map(|(a, b)| operator::equal(a, b, &mut self.meter).map(|equal| Value::Bool(equal == wanted)));
        let node = if wanted { Node::Equal } else { Node::NotEqual };
        folded(id, value, known, || node(pair(left, right)))
    }

    fn membership(&mut self, id: u64, value: Lowered, container: Lowered) -> Result<Lowered, Fault> {
        let (of_value, of_container) = (value.known.kind, container.known);
        let possible = match of_container.kind {
            Kind::List => result_of(of_value, of_container.element, equality_rule).is_some(),
            Kind::Map => [Kind::String, Kind::Int, Kind::UInt, Kind::Bool]
                .iter()
                .any(|key| of_value.may_be(*key)),
            kind => kind == Kind::Dyn,
        };
        if !possible {
            let allowed =
                "an element in a list of its kind, or a key in a map; for texts string.contains(string)";
            return Err(mismatch(id, "in", &[&value, &container], allowed));
        }
        let folded_value =
            both(&value, &container).map(|(a, b)| operator::contains(b, a, &mut self.meter).map(Value::Bool));
        folded(id, folded_value, Kind::Bool.into(), || {
            Node::In(pair(value, container))
        })
    }

    fn index(&mut self, id: u64, container: Lowered, at: Lowered) -> Result<Lowered, Fault> {
        let possible = match container.known.kind {
            Kind::List => matches!(at.known.kind, Kind::Int | Kind::Dyn),
            Kind::Map => {
                matches!(
                    at.known.kind,
                    Kind::String | Kind::Int | Kind::UInt | Kind::Bool | Kind::Dyn
                )
            }
            kind => kind == Kind::Dyn,
        };
        if !possible {
            let found = format!("{}[{}]", container.known.kind, at.known.kind);
            let allowed = "list[int], or map[string|int|uint|bool]";
            return Err(Fault::new(
                id,
                "operator `[]` does not take these kinds",
                found,
                allowed,
            ));
        }
        let known = Type::of(container.known.element);
        let value = both(&container, &at)
            .map(|(container, at)| operator::index(container, at, &mut self.meter).cloned());
        folded(id, value, known, || match at.node {
            // A constant text is a field, which is the quicker look-up.
            Node::Constant(Value::String(name)) => Node::Field {
                operand: Box::new(container.node),
                name: (&*name).into(),
            },
            at => Node::Index(Box::new([container.node, at])),
        })
    }

    fn not(&mut self, id: u64, operand: &IdedExpr) -> Result<Lowered, Fault> {
        let operand = self.lower(operand)?;
        if !operand.known.kind.may_be(Kind::Bool) {
            return Err(mismatch(id, "!", &[&operand], "bool"));
        }
        Ok(Lowered {
            node: Node::Not(Box::new(operand.node)),
            known: Kind::Bool.into(),
        })
    }

    fn negate(&mut self, id: u64, operand: &IdedExpr) -> Result<Lowered, Fault> {
        let operand = self.lower(operand)?;
        let kind = operand.known.kind;
        if !matches!(kind, Kind::Int | Kind::Double | Kind::Duration | Kind::Dyn) {
            return Err(mismatch(id, "-", &[&operand], "int, double or duration"));
        }
        let value = operand.node.as_constant().map(operator::negate);
        folded(id, value, kind.into(), || Node::Negate(Box::new(operand.node)))
    }

    fn logic(
        &mut self,
        id: u64,
        symbol: &str,
        left: &IdedExpr,
        right: &IdedExpr,
        node: impl FnOnce(Box<[Node; 2]>) -> Node,
    ) -> Result<Lowered, Fault> {
        let (left, right) = (self.lower(left)?, self.lower(right)?);
        if !left.known.kind.may_be(Kind::Bool) || !right.known.kind.may_be(Kind::Bool) {
            return Err(mismatch(id, symbol, &[&left, &right], "bools"));
        }
        Ok(Lowered {
            node: node(pair(left, right)),
            known: Kind::Bool.into(),
        })
    }

    fn conditional(
        &mut self,
        id: u64,
        condition: &IdedExpr,
        then: &IdedExpr,
        otherwise: &IdedExpr,
    ) -> Result<Lowered, Fault> {
        let condition = self.lower(condition)?;
        if !condition.known.kind.may_be(Kind::Bool) {
            return Err(mismatch(id, "?:", &[&condition], "a bool before `?`"));
        }
        let (then, otherwise) = (self.lower(then)?, self.lower(otherwise)?);
        let known = then.known.join(otherwise.known);
        Ok(Lowered {
            node: Node::Conditional(Box::new([condition.node, then.node, otherwise.node])),
            known,
        })
    }
}

fn arithmetic_operator(name: &str) -> Option<Arithmetic> {
    Some(match name {
        operators::ADD => Arithmetic::Add,
        operators::SUBSTRACT => Arithmetic::Subtract,
        operators::MULTIPLY => Arithmetic::Multiply,
        operators::DIVIDE => Arithmetic::Divide,
        operators::MODULO => Arithmetic::Remainder,
        _ => return None,
    })
}

fn relation(name: &str) -> Option<Relation> {
    Some(match name {
        operators::LESS => Relation::Less,
        operators::LESS_EQUALS => Relation::LessOrEqual,
        operators::GREATER => Relation::Greater,
        operators::GREATER_EQUALS => Relation::GreaterOrEqual,
        _ => return None,
    })
}
