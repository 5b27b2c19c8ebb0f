//! Text to syntax tree, by the `cel` crate's parser, behind limits.

use std::thread;

use cel::{
    IdedExpr,
    common::ast::{EntryExpr, Expr, SourceInfo},
    parser::{ParseErrors, Parser},
};

use crate::error::{ExprError, Position};

/// Longest expression, in bytes.
pub const MAX_LEN: usize = 4096;

/// Most levels of brackets, calls and conditions in one another.
pub const MAX_NESTING: u16 = 32;

/// Most parts in one another, terms of a sum and steps of a path included: what evaluation recurses into.
const MAX_DEPTH: usize = 100;

/// Most conditional operators. Chained beyond the nesting limit they make the parser panic.
const MAX_CONDITIONS: usize = 64;

/// The parser takes up to 200 kB of stack for each level of nesting in a debug build, more than a thread of the runtime
/// has for ten of them. Pages that are not touched cost nothing.
const PARSER_STACK: usize = 64 << 20;

/// Parses an expression.
pub(crate) fn parse(source: &str) -> Result<IdedExpr, ExprError> {
    if source.len() > MAX_LEN {
        return Err(ExprError {
            position: Position::START,
            message: "expression is too long".to_owned(),
            found: format!("{} bytes", source.len()),
            allowed: format!("{MAX_LEN} bytes"),
        });
    }
    let conditions = source.matches('?').count();
    if conditions > MAX_CONDITIONS {
        return Err(ExprError {
            position: Position::START,
            message: "expression has too many conditions".to_owned(),
            found: format!("{conditions} question marks"),
            allowed: format!("{MAX_CONDITIONS}"),
        });
    }
    run_parser(source, MAX_NESTING, |parsed| {
        let tree = parsed.map_err(|errors| first_error(&errors))?;
        // Measured, and the tree dropped, where there is stack for it.
        let depth = depth(&tree);
        if depth > MAX_DEPTH {
            return Err(ExprError {
                position: Position::START,
                message: "expression is nested too deeply".to_owned(),
                found: format!("{depth} parts in one another or in a row"),
                allowed: format!("{MAX_DEPTH}"),
            });
        }
        Ok(tree)
    })?
}

/// How many parts of the tree are in one another.
fn depth(tree: &IdedExpr) -> usize {
    let deepest = |trees: &mut dyn Iterator<Item = &IdedExpr>| trees.map(depth).max().unwrap_or(0);
    1 + match &tree.expr {
        Expr::Call(call) => deepest(&mut call.args.iter().chain(call.target.as_deref())),
        Expr::Select(select) => depth(&select.operand),
        Expr::List(list) => deepest(&mut list.elements.iter()),
        Expr::Map(map) => deepest(&mut map.entries.iter().flat_map(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => [&entry.key, &entry.value],
            EntryExpr::StructField(field) => [&field.value, &field.value],
        })),
        Expr::Comprehension(loop_) => deepest(&mut [&loop_.iter_range, &loop_.loop_step].into_iter()),
        Expr::Struct(_) | Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => 0,
    }
}

/// Where the part of an accepted expression with that id stands in its text.
///
/// The parser gives positions away only together with errors. So the expression is parsed once more, as the first
/// element of a list whose second element is an integer that is too large. The list takes the first id. The place of a
/// call is its parenthesis; its name comes before.
pub(crate) fn locate(source: &str, id: u64, name_before: &str) -> Position {
    let wrapped = format!("[{source}\n,9223372036854775808]");
    let located = run_parser(&wrapped, MAX_NESTING + 1, |parsed| {
        let errors = parsed.err()?.errors;
        let info = errors.into_iter().find_map(|error| error.source_info)?;
        offset(&info, id + 1)
    });
    let Ok(Some(offset)) = located else {
        return Position::START;
    };
    let before = source.get(..offset.saturating_sub(1)).unwrap_or_default();
    end_of(before.strip_suffix(name_before).unwrap_or(before))
}

fn offset(info: &SourceInfo, id: u64) -> Option<usize> {
    let (start, _) = info.offset_for(id)?;
    usize::try_from(start).ok()
}

/// The place right after a text.
fn end_of(text: &str) -> Position {
    let line = 1 + text.matches('\n').count() as u32;
    let last = text.rsplit('\n').next().unwrap_or_default();
    Position {
        line,
        column: 1 + last.chars().count() as u32,
    }
}

/// Runs the parser on a thread of its own: for its hunger for stack, and because it panics on some malformed input.
fn run_parser<T: Send>(
    source: &str,
    max_nesting: u16,
    then: impl FnOnce(Result<IdedExpr, ParseErrors>) -> T + Send,
) -> Result<T, ExprError> {
    let not_parsed = |found: &str| ExprError {
        position: Position::START,
        message: "expression can't be parsed".to_owned(),
        found: found.to_owned(),
        allowed: "a CEL expression".to_owned(),
    };
    thread::scope(|scope| {
        let parser = thread::Builder::new()
            .name("expr-parser".to_owned())
            .stack_size(PARSER_STACK);
        let parsing = parser.spawn_scoped(scope, || {
            then(
                Parser::new()
                    .max_recursion_depth(max_nesting)
                    .enable_optional_syntax(false)
                    .parse(source),
            )
        });
        let parsing = parsing.map_err(|error| not_parsed(&format!("no thread for the parser: {error}")))?;
        parsing
            .join()
            .map_err(|_| not_parsed("something that the parser fails on"))
    })
}

fn first_error(errors: &ParseErrors) -> ExprError {
    let Some(error) = errors.errors.first() else {
        return ExprError {
            position: Position::START,
            message: "syntax error".to_owned(),
            found: "nothing".to_owned(),
            allowed: "a CEL expression".to_owned(),
        };
    };
    let coordinate = |value: isize| u32::try_from(value).unwrap_or(1).max(1);
    let position = Position {
        line: coordinate(error.pos.0),
        column: coordinate(error.pos.1),
    };
    let message = error.msg.strip_prefix("Syntax error: ").unwrap_or(&error.msg);
    if message.contains("Recursion limit") {
        return ExprError {
            position,
            message: "expression is nested too deeply".to_owned(),
            found: format!("more than {MAX_NESTING} levels"),
            allowed: format!("{MAX_NESTING} levels"),
        };
    }
    let (found, allowed) = explain(message);
    ExprError {
        position,
        message: "syntax error".to_owned(),
        found,
        allowed,
    }
}

/// Puts the parser generator's words into the user's.
fn explain(message: &str) -> (String, String) {
    let (found, expected) = message.split_once(" expecting ").unwrap_or((message, ""));
    let allowed = if expected.contains("NUM_INT") {
        "a value, a name, or one of ( [ { ! -"
    } else if expected.contains("'=='") || expected == "<EOF>" {
        "an operator, or the end"
    } else if !expected.is_empty() {
        expected
    } else {
        match found {
            "invalid argument to has() macro" => "has(value.field)",
            "argument must be a simple name" => "a name for the element",
            "invalid int literal" => "-9223372036854775808 to 9223372036854775807",
            "invalid uint literal" => "0u to 18446744073709551615u",
            "invalid double literal" => "a number of at most 1.7976931348623157e308",
            _ => "a CEL expression",
        }
    };
    let token = found
        .find('\'')
        .zip(found.rfind('\''))
        .and_then(|(from, to)| found.get(from + 1..to));
    let found = match token {
        Some("<EOF>") => "the end".to_owned(),
        Some(token) if !token.is_empty() => format!("`{token}`"),
        _ => found.to_owned(),
    };
    (found, allowed.to_owned())
}
