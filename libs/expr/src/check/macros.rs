//! Macros: the parser expands them into one general loop; they are recognised again by its shape, so that each can be
//! evaluated in the way that suits it.

use cel::{
    IdedExpr,
    common::ast::{ComprehensionExpr, Expr, operators},
};

use super::{Fault, Lowered, Lowering};
use crate::{
    node::{Macro, MacroKind, Node},
    types::{Kind, Type},
};

/// What a macro says of an element.
struct Shape<'t> {
    kind: MacroKind,
    filter: Option<&'t IdedExpr>,
    body: &'t IdedExpr,
}

impl Lowering<'_> {
    pub(super) fn comprehension(&mut self, id: u64, tree: &ComprehensionExpr) -> Result<Lowered, Fault> {
        let Some(shape) = shape(tree) else {
            let allowed = "all, exists, exists_one, filter, map";
            return Err(Fault::new(id, "unknown macro", "a loop", allowed));
        };
        let range = self.lower(&tree.iter_range)?;
        let element = match range.known.kind {
            Kind::List => Type::of(range.known.element),
            Kind::Map | Kind::Dyn => Type::DYN,
            kind => {
                let found = kind.as_str();
                let id = tree.iter_range.id;
                return Err(Fault::new(
                    id,
                    "macro does not take this kind",
                    found,
                    "a list, or a map",
                ));
            }
        };
        let local = self.locals.len();
        self.locals.push((tree.iter_var.clone(), element));
        let lowered = self.body(&shape);
        self.locals.truncate(local);
        let (filter, body) = lowered?;
        let known = match shape.kind {
            MacroKind::Collect => Type::list_of(body.known.kind),
            _ => Kind::Bool.into(),
        };
        let (kind, range, body) = (shape.kind, range.node, body.node);
        Ok(Lowered {
            node: Node::Macro(Box::new(Macro {
                kind,
                range,
                local,
                filter,
                body,
            })),
            known,
        })
    }

    fn body(&mut self, shape: &Shape<'_>) -> Result<(Option<Node>, Lowered), Fault> {
        let filter = shape.filter.map(|filter| self.condition(filter)).transpose()?;
        let body = match shape.kind {
            MacroKind::Collect => self.lower(shape.body)?,
            _ => self.condition(shape.body)?,
        };
        Ok((filter.map(|filter| filter.node), body))
    }

    fn condition(&mut self, tree: &IdedExpr) -> Result<Lowered, Fault> {
        let lowered = self.lower(tree)?;
        if !lowered.known.kind.may_be(Kind::Bool) {
            let found = lowered.known.kind.as_str();
            return Err(Fault::new(
                tree.id,
                "condition of a macro is not a truth value",
                found,
                "bool",
            ));
        }
        Ok(lowered)
    }
}

/// The parts of the loop that the parser makes of a macro.
fn shape(tree: &ComprehensionExpr) -> Option<Shape<'_>> {
    let (name, arguments) = call(&tree.loop_step)?;
    let shape = |kind, filter, body| Some(Shape { kind, filter, body });
    match (name, arguments) {
        (operators::LOGICAL_AND, [_, body]) => shape(MacroKind::All, None, body),
        (operators::LOGICAL_OR, [_, body]) => shape(MacroKind::Exists, None, body),
        (operators::ADD, [_, element]) => shape(MacroKind::Collect, None, only_element(element)?),
        (operators::CONDITIONAL, [condition, step, _]) => match call(step)? {
            (operators::ADD, [_, element]) => match only_element(element) {
                Some(body) => shape(MacroKind::Collect, Some(condition), body),
                None => shape(MacroKind::ExistsOne, None, condition),
            },
            _ => None,
        },
        _ => None,
    }
}

fn call(tree: &IdedExpr) -> Option<(&str, &[IdedExpr])> {
    match &tree.expr {
        Expr::Call(call) => Some((&call.func_name, &call.args)),
        _ => None,
    }
}

/// The element of `[element]`.
fn only_element(tree: &IdedExpr) -> Option<&IdedExpr> {
    match &tree.expr {
        Expr::List(list) => list.elements.first(),
        _ => None,
    }
}
