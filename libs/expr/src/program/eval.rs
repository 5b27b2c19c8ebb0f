//! Evaluation: one walk over the compiled form.

use std::{borrow::Cow, sync::Arc};

use crate::{
    budget::Meter,
    call,
    error::EvalError,
    node::{Macro, MacroKind, Node},
    operator,
    types::Kind,
    value::{Key, Map, Value},
    view::RecordView,
};

type Evaluated<'a, 'r> = Result<Cow<'a, Value<'r>>, EvalError>;

/// Evaluates a compiled expression and hands its value over.
pub(super) fn evaluate<'a, 'r, T>(
    root: &'a Node,
    view: &'a RecordView<'r>,
    meter: &'a mut Meter,
    then: impl FnOnce(&Value<'r>) -> Result<T, EvalError>,
) -> Result<T, EvalError> {
    let mut scope = Scope {
        view,
        locals: Vec::new(),
        meter,
    };
    then(&*scope.evaluate(root)?)
}

struct Scope<'a, 'r> {
    view: &'a RecordView<'r>,
    /// Elements that the macros around are at, the outermost first.
    locals: Vec<Value<'r>>,
    meter: &'a mut Meter,
}

impl<'a, 'r> Scope<'a, 'r> {
    fn evaluate(&mut self, node: &'a Node) -> Evaluated<'a, 'r> {
        self.meter.steps(1)?;
        match node {
            Node::Constant(value) => Ok(Cow::Borrowed(value)),
            Node::Variable(variable) => self.view.variable(*variable),
            Node::Local(local) => Ok(Cow::Owned(
                self.locals.get(*local).cloned().unwrap_or(Value::Null),
            )),
            Node::Field { operand, name } => field(self.evaluate(operand)?, name),
            Node::Has { operand, name } => match &*self.evaluate(operand)? {
                Value::Map(map) => bool(map.field(name).is_some()),
                other => Err(EvalError::overload("has", &[other.kind()])),
            },
            Node::Index(operands) => self.index(operands),
            Node::Not(operand) => self.truth("!", operand).map(|value| owned(Value::Bool(!value))),
            Node::Negate(operand) => operator::negate(&*self.evaluate(operand)?).map(owned),
            Node::And(operands) => self.logic("&&", operands, false),
            Node::Or(operands) => self.logic("||", operands, true),
            Node::Conditional(parts) => {
                let [condition, then, otherwise] = &**parts;
                let chosen = if self.truth("?:", condition)? {
                    then
                } else {
                    otherwise
                };
                self.evaluate(chosen)
            }
            Node::Equal(operands) => self.equal(operands).map(|equal| owned(Value::Bool(equal))),
            Node::NotEqual(operands) => self.equal(operands).map(|equal| owned(Value::Bool(!equal))),
            Node::Compare(relation, operands) => {
                let (left, right) = self.pair(operands)?;
                let ordering = operator::order(relation.symbol(), &left, &right, self.meter)?;
                bool(ordering.is_some_and(|ordering| relation.holds(ordering)))
            }
            Node::Arithmetic(operator, operands) => {
                let (left, right) = self.pair(operands)?;
                operator::arithmetic(*operator, &left, &right, self.meter).map(owned)
            }
            Node::In(operands) => {
                let (value, container) = self.pair(operands)?;
                operator::contains(&container, &value, self.meter).map(|found| owned(Value::Bool(found)))
            }
            Node::List(elements) => self.list(elements),
            Node::Map(entries) => self.map(entries),
            Node::Call(function, arguments) => {
                let arguments = arguments.iter().map(|argument| self.evaluate(argument));
                let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
                call::call(*function, &arguments, self.meter).map(owned)
            }
            Node::Matches(text, pattern) => match &*self.evaluate(text)? {
                Value::String(text) => {
                    self.meter.steps(text.len())?;
                    bool(pattern.is_match(text))
                }
                other => Err(EvalError::overload("matches", &[other.kind()])),
            },
            Node::Macro(expansion) => self.expand(expansion),
        }
    }

    fn pair(
        &mut self,
        operands: &'a [Node; 2],
    ) -> Result<(Cow<'a, Value<'r>>, Cow<'a, Value<'r>>), EvalError> {
        let [left, right] = operands;
        Ok((self.evaluate(left)?, self.evaluate(right)?))
    }

    fn equal(&mut self, operands: &'a [Node; 2]) -> Result<bool, EvalError> {
        let (left, right) = self.pair(operands)?;
        operator::equal(&left, &right, self.meter)
    }

    fn truth(&mut self, operation: &'static str, node: &'a Node) -> Result<bool, EvalError> {
        match &*self.evaluate(node)? {
            Value::Bool(value) => Ok(*value),
            other => Err(EvalError::overload(operation, &[other.kind()])),
        }
    }

    /// `&&` and `||`: an operand that decides outweighs an error of the other, on either side, as CEL has it.
    fn logic(
        &mut self,
        operation: &'static str,
        operands: &'a [Node; 2],
        decisive: bool,
    ) -> Evaluated<'a, 'r> {
        let [left, right] = operands;
        match self.truth(operation, left) {
            Ok(value) if value == decisive => bool(decisive),
            Ok(_) => self
                .truth(operation, right)
                .map(|value| owned(Value::Bool(value))),
            Err(error @ EvalError::OutOfBudget { .. }) => Err(error),
            Err(error) => match self.truth(operation, right) {
                Ok(value) if value == decisive => bool(decisive),
                Err(exhausted @ EvalError::OutOfBudget { .. }) => Err(exhausted),
                _ => Err(error),
            },
        }
    }

    fn index(&mut self, operands: &'a [Node; 2]) -> Evaluated<'a, 'r> {
        let (container, at) = self.pair(operands)?;
        match container {
            Cow::Borrowed(container) => operator::index(container, &at, self.meter).map(Cow::Borrowed),
            Cow::Owned(container) => operator::index(&container, &at, self.meter).cloned().map(owned),
        }
    }

    fn list(&mut self, elements: &'a [Node]) -> Evaluated<'a, 'r> {
        self.meter.allocate(size_of_val(elements))?;
        let values = elements
            .iter()
            .map(|element| self.evaluate(element).map(Cow::into_owned));
        Ok(owned(Value::List(values.collect::<Result<Arc<[_]>, _>>()?)))
    }

    fn map(&mut self, entries: &'a [(Node, Node)]) -> Evaluated<'a, 'r> {
        self.meter.allocate(size_of_val(entries))?;
        let mut made = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let key = self.evaluate(key)?;
            let key = Key::from_value(&key).ok_or_else(|| EvalError::overload("{}", &[key.kind()]))?;
            made.push((key, self.evaluate(value)?.into_owned()));
        }
        Ok(owned(Value::Map(Arc::new(Map::new(made)))))
    }

    fn expand(&mut self, expansion: &'a Macro) -> Evaluated<'a, 'r> {
        let range = self.evaluate(&expansion.range)?.into_owned();
        // A local's number is its place; values of inner macros that ended with an error are cut off.
        self.locals.truncate(expansion.local);
        match &range {
            Value::List(elements) => self.go_through(expansion, elements.iter().cloned()),
            Value::Map(map) => self.go_through(expansion, map.iter().map(|(key, _)| key.to_value())),
            other => Err(EvalError::overload("macro", &[other.kind()])),
        }
    }

    fn go_through(
        &mut self,
        expansion: &'a Macro,
        elements: impl Iterator<Item = Value<'r>>,
    ) -> Evaluated<'a, 'r> {
        let mut outcome = Outcome::new(expansion.kind);
        for element in elements {
            self.meter.steps(1)?;
            self.locals.truncate(expansion.local);
            self.locals.push(element);
            if let Some(filter) = &expansion.filter
                && !self.truth("macro", filter)?
            {
                continue;
            }
            let finished = match expansion.kind {
                MacroKind::Collect => {
                    let value = self.evaluate(&expansion.body)?.into_owned();
                    self.meter.allocate(size_of::<Value<'_>>())?;
                    outcome.collected.push(value);
                    false
                }
                _ => outcome.judge(self.truth("macro", &expansion.body))?,
            };
            if finished {
                break;
            }
        }
        self.locals.truncate(expansion.local);
        outcome.finish().map(owned)
    }
}

/// What a macro has found so far.
struct Outcome<'r> {
    kind: MacroKind,
    matches: usize,
    decided: bool,
    /// The first error: it counts only if no element decides.
    error: Option<EvalError>,
    collected: Vec<Value<'r>>,
}

impl<'r> Outcome<'r> {
    const fn new(kind: MacroKind) -> Self {
        Self {
            kind,
            matches: 0,
            decided: false,
            error: None,
            collected: Vec::new(),
        }
    }

    /// Takes in the condition of an element and returns whether the rest does not matter.
    fn judge(&mut self, condition: Result<bool, EvalError>) -> Result<bool, EvalError> {
        match (self.kind, condition) {
            (_, Err(error @ EvalError::OutOfBudget { .. })) | (MacroKind::ExistsOne, Err(error)) => {
                return Err(error);
            }
            (_, Err(error)) => {
                self.error.get_or_insert(error);
            }
            (MacroKind::All, Ok(holds)) => self.decided = !holds,
            (MacroKind::Exists, Ok(holds)) => self.decided = holds,
            (_, Ok(holds)) => self.matches += usize::from(holds),
        }
        Ok(self.decided)
    }

    fn finish(self) -> Result<Value<'r>, EvalError> {
        match (self.kind, self.error) {
            (MacroKind::Collect, _) => Ok(Value::list(self.collected)),
            (MacroKind::ExistsOne, _) => Ok(Value::Bool(self.matches == 1)),
            (kind, _) if self.decided => Ok(Value::Bool(kind == MacroKind::Exists)),
            (_, Some(error)) => Err(error),
            (kind, None) => Ok(Value::Bool(kind == MacroKind::All)),
        }
    }
}

fn owned<'a, 'r>(value: Value<'r>) -> Cow<'a, Value<'r>> {
    Cow::Owned(value)
}

fn bool<'a, 'r>(value: bool) -> Evaluated<'a, 'r> {
    Ok(owned(Value::Bool(value)))
}

fn field<'a, 'r>(operand: Cow<'a, Value<'r>>, name: &str) -> Evaluated<'a, 'r> {
    let missing = || EvalError::no_such_key(name);
    match operand {
        Cow::Borrowed(Value::Map(map)) => map.field(name).map(Cow::Borrowed).ok_or_else(missing),
        Cow::Owned(Value::Map(map)) => map.field(name).cloned().map(owned).ok_or_else(missing),
        other => Err(EvalError::overload(".", &[other.kind(), Kind::String])),
    }
}
