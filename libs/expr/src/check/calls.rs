//! Calls: which function, how many arguments, of which kinds.

use std::borrow::Cow;

use cel::common::ast::{CallExpr, Expr};
use regex::{Regex, RegexBuilder};

use super::{Fault, Lowered, Lowering, folded, nearest_first};
use crate::{
    call,
    function::{self, Function, MACROS, SIGNATURES, Signature, Style},
    node::Node,
    types::Kind,
    value::Value,
};

/// Largest compiled pattern in bytes: some thousand states, which bounds the time that it takes for each character.
const MAX_PATTERN_SIZE: usize = 128 << 10;

/// Memory that the automaton of a pattern may take, made while it runs.
const MAX_AUTOMATON_SIZE: usize = 1 << 20;

impl Lowering<'_> {
    pub(super) fn call(&mut self, id: u64, call: &CallExpr) -> Result<Lowered, Fault> {
        if call.target.is_none()
            && let Some(operator) = self.operator(id, &call.func_name, &call.args)
        {
            return operator;
        }
        let (name, style) = self.spelling(call);
        let candidates = candidates(&name, style).map_err(|fault| fault(id).of_call(&call.func_name))?;
        let receiver = call.target.as_ref().filter(|_| style == Style::Method);
        let arguments = receiver.into_iter().map(|target| &**target).chain(&call.args);
        let arguments = arguments
            .map(|argument| self.lower(argument))
            .collect::<Result<Vec<_>, _>>()?;
        let signature =
            choose(id, &candidates, &arguments).map_err(|fault| fault.of_call(&call.func_name))?;
        if signature.function == Function::Matches {
            return self
                .matches(id, arguments)
                .map_err(|fault| fault.of_call(&call.func_name));
        }
        let nodes: Vec<Node> = arguments.into_iter().map(|argument| argument.node).collect();
        let constants: Option<Vec<Cow<'_, Value<'static>>>> = nodes
            .iter()
            .map(|node| node.as_constant().map(Cow::Borrowed))
            .collect();
        let value = constants.map(|arguments| call::call(signature.function, &arguments, &mut self.meter));
        let lowered = folded(id, value, signature.result, || {
            Node::Call(signature.function, nodes.into())
        });
        lowered.map_err(|fault| fault.of_call(&call.func_name))
    }

    /// The function's name with its namespace, and how it is called.
    fn spelling(&self, call: &CallExpr) -> (String, Style) {
        match call.target.as_deref().map(|target| &target.expr) {
            None => (call.func_name.trim_start_matches('.').to_owned(), Style::Global),
            Some(Expr::Ident(prefix))
                if function::is_namespace(prefix)
                    && !self.locals.iter().any(|(declared, _)| declared == prefix) =>
            {
                (format!("{prefix}.{}", call.func_name), Style::Global)
            }
            Some(_) => (call.func_name.clone(), Style::Method),
        }
    }

    /// The pattern is compiled here, once: it has to be a literal.
    fn matches(&mut self, id: u64, arguments: Vec<Lowered>) -> Result<Lowered, Fault> {
        let [text, pattern]: [Lowered; 2] = arguments
            .try_into()
            .map_err(|_| Fault::new(id, "wrong number of arguments", "another number", "2"))?;
        let Node::Constant(Value::String(source)) = &pattern.node else {
            let allowed = "a pattern in quotation marks";
            return Err(Fault::new(
                id,
                "pattern is not a literal",
                pattern.known.kind.as_str(),
                allowed,
            ));
        };
        let regex = compile(source).map_err(|cause| {
            let allowed =
                "a regular expression in the syntax of RE2, without look-around and back-references";
            Fault::new(id, "pattern can't be used", cause, allowed)
        })?;
        let value = match &text.node {
            Node::Constant(Value::String(text)) => Some(Ok(Value::Bool(regex.is_match(text)))),
            _ => None,
        };
        folded(id, value, Kind::Bool.into(), || {
            Node::Matches(Box::new(text.node), regex)
        })
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    let mut builder = RegexBuilder::new(pattern);
    builder
        .size_limit(MAX_PATTERN_SIZE)
        .dfa_size_limit(MAX_AUTOMATON_SIZE);
    builder.build().map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => format!("a pattern of more than {limit} bytes when compiled"),
        // The last line says what is wrong, the ones before draw where.
        error => {
            let text = error.to_string();
            let last = text.lines().next_back().unwrap_or_default();
            last.trim_start_matches("error: ").to_owned()
        }
    })
}

type FaultAt = Box<dyn FnOnce(u64) -> Fault>;

/// All ways to call a function of that name.
fn candidates(name: &str, style: Style) -> Result<Vec<&'static Signature>, FaultAt> {
    let named = |signature: &&Signature| signature.name == name;
    let found: Vec<_> = SIGNATURES
        .iter()
        .filter(named)
        .filter(|signature| signature.style == style)
        .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let found = match style {
        Style::Global => format!("`{name}(…)`"),
        Style::Method => format!("`.{name}(…)`"),
    };
    let usages = SIGNATURES
        .iter()
        .filter(named)
        .map(Signature::usage)
        .collect::<Vec<_>>()
        .join(", ");
    if !usages.is_empty() {
        return Err(Box::new(move |id| {
            Fault::new(id, "function is written differently", found, usages)
        }));
    }
    if let Some((_, usage)) = MACROS.iter().find(|(known, _)| *known == name) {
        return Err(Box::new(move |id| {
            Fault::new(id, "macro is written differently", found, *usage)
        }));
    }
    let names = SIGNATURES
        .iter()
        .map(|signature| signature.name)
        .chain(MACROS.iter().map(|(name, _)| *name));
    let allowed = nearest_first(name, names);
    Err(Box::new(move |id| {
        Fault::new(id, "unknown function", found, allowed)
    }))
}

/// The way to call that takes these arguments.
fn choose<'s>(id: u64, candidates: &[&'s Signature], arguments: &[Lowered]) -> Result<&'s Signature, Fault> {
    let usages = || {
        candidates
            .iter()
            .map(|signature| signature.usage())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let takes_number = |signature: &&&Signature| signature.takes(arguments.len());
    if !candidates.iter().any(|signature| takes_number(&signature)) {
        let method = candidates
            .iter()
            .any(|signature| signature.style == Style::Method);
        let found = arguments.len() - usize::from(method && !arguments.is_empty());
        return Err(Fault::new(
            id,
            "wrong number of arguments",
            found.to_string(),
            usages(),
        ));
    }
    let fits = |signature: &&&Signature| {
        arguments.iter().enumerate().all(|(index, argument)| {
            let kinds = signature.parameter(index);
            let kind = argument.known.kind;
            kinds.is_empty() || kind == Kind::Dyn || kinds.contains(&kind)
        })
    };
    candidates
        .iter()
        .filter(takes_number)
        .find(fits)
        .copied()
        .ok_or_else(|| {
            let kinds: Vec<_> = arguments
                .iter()
                .map(|argument| argument.known.kind.as_str())
                .collect();
            Fault::new(
                id,
                "function does not take these kinds",
                kinds.join(", "),
                usages(),
            )
        })
}
