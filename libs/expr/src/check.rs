//! Syntax tree to compiled form: every name, function, literal and known kind is checked on the way.

mod calls;
mod macros;
mod operators;

use std::sync::Arc;

use cel::{
    IdedExpr,
    common::ast::{EntryExpr, Expr, LiteralValue},
};

use crate::{
    budget::{Budget, Meter},
    environment::Environment,
    error::{EvalError, ExprError, Position},
    function::{self, SIGNATURES},
    node::Node,
    parse,
    program::Program,
    types::{Expected, Kind, Type},
    value::{Key, Map, Value},
};

/// Something wrong with a part of an expression.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Id of the part in the syntax tree.
    id: u64,
    /// Name whose last character comes right before the part's own place in the text.
    name: String,
    message: String,
    found: String,
    allowed: String,
}

impl Fault {
    fn new(
        id: u64,
        message: impl Into<String>,
        found: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        let (message, found, allowed) = (message.into(), found.into(), allowed.into());
        Self {
            id,
            name: String::new(),
            message,
            found,
            allowed,
        }
    }

    fn of_call(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    fn locate(self, source: &str) -> ExprError {
        let position = parse::locate(source, self.id, &self.name);
        ExprError {
            position,
            message: self.message,
            found: self.found,
            allowed: self.allowed,
        }
    }
}

/// Parses an expression and checks it: syntax, every name, function and number of arguments, kinds of values where they
/// are known, and literals (times, durations, patterns, divisions by zero).
///
/// # Errors
/// Names the place, what was found there and what is allowed.
pub fn check(source: &str, environment: &Environment, expected: Expected) -> Result<Program, ExprError> {
    let tree = parse::parse(source)?;
    let mut lowering = Lowering {
        environment,
        locals: Vec::new(),
        meter: Meter::new(Budget::default()),
    };
    let lowered = lowering.lower(&tree).map_err(|fault| fault.locate(source))?;
    let kind = lowered.known.kind;
    let needed = match expected {
        Expected::Bool => Kind::Bool,
        Expected::String => Kind::String,
        Expected::Any => kind,
    };
    if kind != Kind::Dyn && kind != needed {
        return Err(ExprError {
            position: Position::START,
            message: "expression gives the wrong kind of value".to_owned(),
            found: kind.to_string(),
            allowed: needed.to_string(),
        });
    }
    Ok(Program::new(source, lowered.node, lowered.known))
}

/// A compiled part with what is known about its value.
struct Lowered {
    node: Node,
    known: Type,
}

struct Lowering<'e> {
    environment: &'e Environment,
    /// Names of elements that enclosing macros declare, the outermost first.
    locals: Vec<(String, Type)>,
    /// Folding constants has a budget too.
    meter: Meter,
}

impl Lowering<'_> {
    fn lower(&mut self, tree: &IdedExpr) -> Result<Lowered, Fault> {
        match &tree.expr {
            Expr::Literal(literal) => Ok(constant(decode_literal(literal))),
            Expr::Ident(name) => self.name(tree.id, name),
            Expr::Select(select) => {
                let operand = self.lower(&select.operand)?;
                if !matches!(operand.known.kind, Kind::Map | Kind::Dyn) {
                    let found = format!("`.{}` of {}", select.field, operand.known.kind);
                    return Err(Fault::new(
                        tree.id,
                        "value has no fields",
                        found,
                        "a field of a map",
                    ));
                }
                // The parser leaves the quotes of `quoted` names.
                let (operand, name) = (Box::new(operand.node), select.field.trim_matches('`').into());
                Ok(if select.test {
                    Lowered {
                        node: Node::Has { operand, name },
                        known: Kind::Bool.into(),
                    }
                } else {
                    let known = self.element_of(&select.operand);
                    Lowered {
                        node: Node::Field { operand, name },
                        known,
                    }
                })
            }
            Expr::Call(call) => self.call(tree.id, call),
            Expr::Comprehension(comprehension) => self.comprehension(tree.id, comprehension),
            Expr::List(list) => {
                let elements = list.elements.iter().map(|element| self.lower(element));
                let elements = elements.collect::<Result<Vec<_>, _>>()?;
                Ok(list_of(elements))
            }
            Expr::Map(map) => self.map(map.entries.iter().map(|entry| &entry.expr)),
            Expr::Struct(message) => Err(Fault::new(
                tree.id,
                "messages can't be made",
                format!("`{}{{…}}`", message.type_name),
                "a map: {'key': value}",
            )),
            Expr::Unspecified => Err(Fault::new(tree.id, "syntax error", "nothing", "a CEL expression")),
        }
    }

    fn name(&self, id: u64, name: &str) -> Result<Lowered, Fault> {
        let name = name.trim_start_matches('.');
        if let Some(local) = self.locals.iter().rposition(|(declared, _)| declared == name) {
            let known = self.locals.get(local).map_or(Type::DYN, |(_, known)| *known);
            return Ok(Lowered {
                node: Node::Local(local),
                known,
            });
        }
        if let Some(declaration) = self.environment.find(name) {
            return Ok(Lowered {
                node: Node::Variable(declaration.variable),
                known: declaration.value_type,
            });
        }
        let locals = self.locals.iter().map(|(name, _)| name.as_str());
        let names = self
            .environment
            .variables()
            .iter()
            .map(|declaration| declaration.name)
            .chain(locals);
        let found = if function_exists(name) {
            format!("function `{name}`")
        } else {
            format!("`{name}`")
        };
        Err(Fault::new(
            id,
            "unknown variable",
            found,
            nearest_first(name, names),
        ))
    }

    /// What is known about the elements of a map or list.
    fn element_of(&mut self, tree: &IdedExpr) -> Type {
        // Lowering again would repeat work for each step of a path; only names carry knowledge of elements.
        let Expr::Ident(name) = &tree.expr else {
            return Type::DYN;
        };
        self.name(tree.id, name)
            .map_or(Type::DYN, |lowered| Type::of(lowered.known.element))
    }

    fn map<'t>(&mut self, entries: impl Iterator<Item = &'t EntryExpr>) -> Result<Lowered, Fault> {
        let mut lowered = Vec::new();
        let mut element: Option<Type> = None;
        for entry in entries {
            let EntryExpr::MapEntry(entry) = entry else {
                return Err(Fault::new(
                    0,
                    "syntax error",
                    "a field",
                    "a key in quotation marks",
                ));
            };
            let key = self.lower(&entry.key)?;
            if !matches!(
                key.known.kind,
                Kind::String | Kind::Int | Kind::UInt | Kind::Bool | Kind::Dyn
            ) {
                let found = key.known.kind.as_str();
                return Err(Fault::new(
                    entry.key.id,
                    "wrong kind of key",
                    found,
                    "string, int, uint or bool",
                ));
            }
            let value = self.lower(&entry.value)?;
            element = Some(element.map_or(value.known, |known| known.join(value.known)));
            lowered.push((key.node, value.node));
        }
        let known = Type::map_of(element.map_or(Kind::Dyn, |known| known.kind));
        let constants: Option<Vec<_>> = lowered
            .iter()
            .map(|(key, value)| {
                Some((
                    key.as_constant().and_then(Key::from_value)?,
                    value.as_constant()?.clone(),
                ))
            })
            .collect();
        let node = match constants {
            Some(entries) => Node::Constant(Value::Map(Arc::new(Map::new(entries)))),
            None => Node::Map(lowered.into()),
        };
        Ok(Lowered { node, known })
    }
}

/// A part whose value is known already if all that it depends on is constant.
fn folded(
    id: u64,
    value: Option<Result<Value<'static>, EvalError>>,
    known: Type,
    node: impl FnOnce() -> Node,
) -> Result<Lowered, Fault> {
    match value {
        None => Ok(Lowered { node: node(), known }),
        Some(Ok(value)) => Ok(constant(value)),
        Some(Err(EvalError::InvalidArgument { function, message })) => {
            let message_of = format!("wrong argument of `{function}`");
            Err(Fault::new(id, message_of, message, "an argument that it takes"))
        }
        Some(Err(error)) => Err(Fault::new(
            id,
            "expression has no value",
            error.to_string(),
            "an expression with a value",
        )),
    }
}

fn constant(value: Value<'static>) -> Lowered {
    let known = Type::of(value.kind());
    Lowered {
        node: Node::Constant(value),
        known,
    }
}

fn list_of(elements: Vec<Lowered>) -> Lowered {
    let element = elements.iter().map(|element| element.known).reduce(Type::join);
    let known = Type::list_of(element.map_or(Kind::Dyn, |known| known.kind));
    let constants: Option<Vec<_>> = elements
        .iter()
        .map(|element| element.node.as_constant().cloned())
        .collect();
    let node = match constants {
        Some(values) => Node::Constant(Value::list(values)),
        None => Node::List(elements.into_iter().map(|element| element.node).collect()),
    };
    Lowered { node, known }
}

fn decode_literal(literal: &LiteralValue) -> Value<'static> {
    match literal {
        LiteralValue::Boolean(value) => Value::Bool(*value.inner()),
        LiteralValue::Bytes(value) => Value::octets(value.inner()),
        LiteralValue::Double(value) => Value::Double(*value.inner()),
        LiteralValue::Int(value) => Value::Int(*value.inner()),
        LiteralValue::Null => Value::Null,
        LiteralValue::String(value) => Value::text(value.inner()),
        LiteralValue::UInt(value) => Value::UInt(*value.inner()),
    }
}

fn function_exists(name: &str) -> bool {
    function::is_namespace(name) || SIGNATURES.iter().any(|signature| signature.name == name)
}

/// Names separated by commas, the most similar one first if it is similar at all.
fn nearest_first<'n>(wanted: &str, names: impl Iterator<Item = &'n str>) -> String {
    let mut names: Vec<&str> = names.collect();
    names.dedup();
    if names.is_empty() {
        return "no name".to_owned();
    }
    let nearest = foreshore_record::nearest(wanted, names.iter().copied());
    if let Some(at) = names.iter().position(|name| Some(*name) == nearest) {
        let name = names.remove(at);
        return format!("`{name}`, or {}", names.join(", "));
    }
    names.join(", ")
}
