//! Our results against those of the `cel` crate's interpreter, on expressions that are drawn at random.
//!
//! Where the interpreter gives a value, ours must be the same. It may fail where we do not (numbers of different kinds
//! in arithmetic, operands that decide although another fails). Left out is where it departs from the language:
//! equality of numbers of different kinds, fields of values that are no maps, sizes of texts that are not ASCII.

use std::{collections::HashMap, sync::Arc};

use cel::{Context, Value as Theirs, objects::Key};
use proptest::prelude::*;

use crate::{Environment, Expected, Kind, Meter, RecordView, Value, check};

const PAYLOAD: &str = r#"{"i":3,"j":-7,"z":0,"d":2.5,"e":-0.5,"s":"abc","t":"b","yes":true,"no":false,"none":null,
    "list":[1,2,3],"texts":["a","b"],"map":{"a":1,"b":2},"deep":{"deep":{"i":5}}}"#;

/// Expressions of a kind, with parts in one another down to a depth. Most of them have a value.
fn expression(kind: Kind, depth: u32) -> BoxedStrategy<String> {
    let leaf = leaf(kind);
    if depth == 0 {
        return leaf;
    }
    let part = move |kind| expression(kind, depth - 1);
    let conditional =
        (part(Kind::Bool), part(kind), part(kind)).prop_map(|(a, b, c)| format!("({a} ? {b} : {c})"));
    let made = match kind {
        Kind::Bool => truth(part).boxed(),
        Kind::Int => number(part, Kind::Int, &["+", "-", "*", "/", "%"]).boxed(),
        Kind::Double => number(part, Kind::Double, &["+", "-", "*", "/"]).boxed(),
        Kind::String => text(part).boxed(),
        _ => list(part).boxed(),
    };
    prop_oneof![2 => leaf, 1 => conditional, 6 => made].boxed()
}

fn leaf(kind: Kind) -> BoxedStrategy<String> {
    let choices: &[&str] = match kind {
        Kind::Bool => &[
            "true",
            "false",
            "payload.yes",
            "payload.no",
            "has(payload.i)",
            "has(payload.missing)",
        ],
        Kind::Int => &[
            "0",
            "1",
            "-2",
            "payload.i",
            "payload.j",
            "payload.z",
            "payload.deep.deep.i",
            "payload['i']",
        ],
        Kind::Double => &["0.5", "-2.0", "1e3", "payload.d", "payload.e"],
        Kind::String => &["''", "'a'", "\"bc\"", "payload.s", "payload.t", "payload.missing"],
        _ => &["[]", "[1, -2]", "payload.list", "[payload.i, 2]"],
    };
    prop::sample::select(choices).prop_map(str::to_owned).boxed()
}

fn truth(part: impl Fn(Kind) -> BoxedStrategy<String>) -> impl Strategy<Value = String> {
    let relation = || prop::sample::select(&["<", "<=", ">", ">=", "==", "!="][..]);
    let comparison =
        |kind| (part(kind), relation(), part(kind)).prop_map(|(a, o, b)| format!("({a} {o} {b})"));
    let order = prop::sample::select(&["<", "<=", ">", ">="][..]);
    let method = prop::sample::select(&["contains", "startsWith", "endsWith"][..]);
    let quantifier = prop::sample::select(&["all", "exists", "exists_one"][..]);
    prop_oneof![
        part(Kind::Bool).prop_map(|a| format!("!{a}")),
        (
            part(Kind::Bool),
            prop::sample::select(&["&&", "||"][..]),
            part(Kind::Bool)
        )
            .prop_map(|(a, o, b)| format!("({a} {o} {b})")),
        comparison(Kind::Int),
        comparison(Kind::Double),
        comparison(Kind::String),
        (part(Kind::Int), order, part(Kind::Double)).prop_map(|(a, o, b)| format!("({a} {o} {b})")),
        (part(Kind::Int), part(Kind::List)).prop_map(|(a, l)| format!("({a} in {l})")),
        (part(Kind::String), method, part(Kind::String)).prop_map(|(a, m, b)| format!("{a}.{m}({b})")),
        part(Kind::String).prop_map(|a| format!("{a}.matches('^a.*c?$')")),
        part(Kind::String).prop_map(|a| format!("({a} in payload.map)")),
        (part(Kind::List), quantifier, part(Kind::Int)).prop_map(|(l, q, b)| format!("{l}.{q}(x, x > {b})")),
        (part(Kind::List), part(Kind::List)).prop_map(|(a, b)| format!("({a} == {b})")),
    ]
}

fn number(
    part: impl Fn(Kind) -> BoxedStrategy<String>,
    kind: Kind,
    operators: &'static [&'static str],
) -> impl Strategy<Value = String> {
    let from = if kind == Kind::Int {
        Kind::Double
    } else {
        Kind::Int
    };
    let convert = if kind == Kind::Int { "int" } else { "double" };
    let binary = (part(kind), prop::sample::select(operators), part(kind));
    prop_oneof![
        4 => binary.prop_map(|(a, o, b)| format!("({a} {o} {b})")),
        1 => part(kind).prop_map(|a| format!("-({a})")),
        1 => part(from).prop_map(move |a| format!("{convert}({a})")),
        1 => (part(Kind::List), part(Kind::Int)).prop_map(move |(l, i)| format!("{convert}({l}[{i}])")),
        1 => part(Kind::List).prop_map(move |l| format!("{convert}(size({l}))")),
        1 => part(Kind::String).prop_map(move |s| format!("{convert}({s}.size())")),
    ]
}

fn text(part: impl Fn(Kind) -> BoxedStrategy<String>) -> impl Strategy<Value = String> {
    prop_oneof![
        (part(Kind::String), part(Kind::String)).prop_map(|(a, b)| format!("({a} + {b})")),
        part(Kind::Int).prop_map(|a| format!("string({a})")),
    ]
}

fn list(part: impl Fn(Kind) -> BoxedStrategy<String>) -> impl Strategy<Value = String> {
    prop_oneof![
        prop::collection::vec(part(Kind::Int), 0..3).prop_map(|parts| format!("[{}]", parts.join(", "))),
        (part(Kind::List), part(Kind::List)).prop_map(|(a, b)| format!("({a} + {b})")),
        (part(Kind::List), part(Kind::Int)).prop_map(|(l, b)| format!("{l}.map(x, x + {b})")),
        (part(Kind::List), part(Kind::Int)).prop_map(|(l, b)| format!("{l}.filter(x, x < {b})")),
        (part(Kind::List), part(Kind::Int)).prop_map(|(l, b)| format!("{l}.map(x, x != {b}, x * 2)")),
    ]
}

fn to_theirs(value: &Value<'_>) -> Theirs {
    match value {
        Value::Null => Theirs::Null,
        Value::Bool(value) => Theirs::Bool(*value),
        Value::Int(value) => Theirs::Int(*value),
        Value::UInt(value) => Theirs::UInt(*value),
        Value::Double(value) => Theirs::Float(*value),
        Value::String(text) => Theirs::String(Arc::new(text.to_string())),
        Value::List(elements) => Theirs::List(Arc::new(elements.iter().map(to_theirs).collect())),
        Value::Map(map) => {
            let entries = map
                .iter()
                .map(|(key, value)| (Key::from(key.to_string()), to_theirs(value)));
            Theirs::Map(entries.collect::<HashMap<_, _>>().into())
        }
        other => panic!("not drawn: {other:?}"),
    }
}

/// Evaluates in both ways and returns what they gave, if the expression is accepted and theirs gave something.
fn both(source: &str) -> Option<(String, Result<String, String>)> {
    let payload = crate::decode(PAYLOAD.as_bytes()).expect("payload");
    let program = check(source, &Environment::record(), Expected::Any).ok()?;
    let theirs = cel::Program::compile(source).expect("accepted by us");
    let mut context = Context::default();
    context.add_variable_from_value("payload", to_theirs(&payload));
    let expected = theirs.execute(&context).ok()?;
    let record =
        foreshore_record::Record::new(foreshore_record::TopicName::new("t").expect("topic"), PAYLOAD);
    let found = program.evaluate(&RecordView::new(&record), &mut Meter::default());
    let found = found
        .map(|value| format!("{:?}", to_theirs(&value)))
        .map_err(|error| error.to_string());
    Some((format!("{expected:?}"), found))
}

fn any_expression() -> BoxedStrategy<String> {
    const KINDS: &[Kind] = &[Kind::Bool, Kind::Int, Kind::Double, Kind::String, Kind::List];
    prop::sample::select(KINDS)
        .prop_flat_map(|kind| expression(kind, 3))
        .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn results_are_those_of_the_interpreter(source in any_expression()) {
        if let Some((expected, found)) = both(&source) {
            prop_assert_eq!(Ok(expected), found, "{}", source);
        }
    }
}

#[test]
fn most_drawn_expressions_are_compared() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let compared = (0..300)
        .filter(|_| {
            let tree = any_expression().new_tree(&mut runner).expect("expression");
            both(&proptest::strategy::ValueTree::current(&tree)).is_some()
        })
        .count();
    assert!(
        compared > 100,
        "only {compared} of 300 expressions had a value in the interpreter"
    );
}
