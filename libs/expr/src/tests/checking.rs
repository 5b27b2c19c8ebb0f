use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::refused;
use crate::{Environment, Expected, Kind, MAX_LEN, Position, check};

#[test]
fn names_are_checked_with_their_place_and_the_nearest_one() {
    refused(
        "true && paylod.x > 1",
        "unknown variable at 1:9: found `paylod`, allowed: `payload`, or raw, topic, properties, contentType, \
         namespace, asset, member, time, ingestTime, qos, retain",
    );
    refused(
        "topic == 'ö' &&\n  size(payload) > size(zzz)",
        "unknown variable at 2:24: found `zzz`, allowed: payload, raw, topic, properties, contentType, namespace, \
         asset, member, time, ingestTime, qos, retain",
    );
    let found = check("[1].map(elem, elm + 1)", &Environment::record(), Expected::Any).expect_err("misspelt");
    assert!(found.allowed.starts_with("`elem`, or "), "{found}");
    assert_eq!(found.position, Position { line: 1, column: 15 });
    let found = check("topic.startWith('a')", &Environment::record(), Expected::Any).expect_err("misspelt");
    assert!(found.allowed.starts_with("`startsWith`, or "), "{found}");
    assert_eq!(found.position, Position { line: 1, column: 7 });
}

#[test]
fn functions_are_checked_with_number_and_kinds_of_arguments() {
    refused(
        "topic.contains()",
        "wrong number of arguments at 1:7: found 0, allowed: string.contains(string)",
    );
    refused(
        "contains(topic, 'a')",
        "function is written differently at 1:1: found `contains(…)`, allowed: string.contains(string)",
    );
    refused(
        "has(payload.a, payload.b)",
        "macro is written differently at 1:1: found `has(…)`, allowed: has(value.field)",
    );
    refused(
        "topic.substring('a')",
        "function does not take these kinds at 1:7: found string, string, allowed: string.substring(int), \
         string.substring(int, int)",
    );
    refused(
        "math.sqrt(topic)",
        "function does not take these kinds at 1:6: found string, allowed: math.sqrt(int|uint|double)",
    );
    refused(
        "topic.exists(t, t == 'a')",
        "macro does not take this kind at 1:1: found string, allowed: a list, or a map",
    );
}

#[test]
fn literals_are_checked() {
    refused(
        "time > timestamp('2026-13-01T00:00:00Z')",
        "wrong argument of `timestamp` at 1:8: found \"2026-13-01T00:00:00Z\" is no RFC 3339 time such as \
         2026-01-31T12:00:00Z, allowed: an argument that it takes",
    );
    refused(
        "ingestTime - time > duration('5 minutes')",
        "wrong argument of `duration` at 1:21: found \"5 minutes\" is no duration such as 1h30m, 1.5s or 250ms, \
         allowed: an argument that it takes",
    );
    refused(
        "topic.matches('a(b')",
        "pattern can't be used at 1:7: found unclosed group, allowed: a regular expression in the syntax of RE2, \
         without look-around and back-references",
    );
    refused(
        "topic.matches('((a{99}){99}){99}')",
        "pattern can't be used at 1:7: found a pattern of more than 131072 bytes when compiled, allowed: a regular \
         expression in the syntax of RE2, without look-around and back-references",
    );
    refused(
        "topic.matches(asset)",
        "pattern is not a literal at 1:7: found string, allowed: a pattern in quotation marks",
    );
    refused(
        "qos / 0 > 1 || 1 / 0 > 1",
        "expression has no value at 1:18: found division by zero, allowed: an expression with a value",
    );
    refused(
        "[1, 2][2] == qos",
        "expression has no value at 1:7: found index 2 is out of range: length is 2, allowed: an expression with a \
         value",
    );
}

#[test]
fn kinds_that_never_go_together_are_refused() {
    refused(
        "topic > 5",
        "operator `>` does not take these kinds at 1:7: found string > int, allowed: two numbers, or two strings, \
         bools, bytes, timestamps or durations",
    );
    refused(
        "properties.shift == 3",
        "operator `==` does not take these kinds at 1:18: found string == int, allowed: two values of one kind, or \
         two numbers",
    );
    refused(
        "'a' + 1",
        "operator `+` does not take these kinds at 1:5: found string + int, allowed: numbers, \
         strings, bytes, lists, durations, or a timestamp and a duration",
    );
    refused(
        "topic && true",
        "operator `&&` does not take these kinds at 1:7: found string && bool, allowed: bools",
    );
    refused(
        "!qos",
        "operator `!` does not take these kinds at 1:1: found !int, allowed: bool",
    );
    refused(
        "topic.level",
        "value has no fields at 1:6: found `.level` of string, allowed: a field of a map",
    );
    refused(
        "'a' in 'abc'",
        "operator `in` does not take these kinds at 1:5: found string in string, allowed: an \
         element in a list of its kind, or a key in a map; for texts string.contains(string)",
    );
    refused(
        "Point{x: 1}",
        "messages can't be made at 1:6: found `Point{…}`, allowed: a map: {'key': value}",
    );
}

#[test]
fn the_kind_of_the_result_is_checked() {
    let gives = |source, expected| check(source, &Environment::record(), expected).map_err(|e| e.to_string());
    assert_eq!(
        gives("qos + 1", Expected::Bool).expect_err("int"),
        "expression gives the wrong kind of value at 1:1: found int, allowed: bool"
    );
    assert_eq!(
        gives("qos > 1", Expected::String).expect_err("bool"),
        "expression gives the wrong kind of value at 1:1: found bool, allowed: string"
    );
    gives("payload.ok", Expected::Bool).expect("may be one");
    assert_eq!(
        gives("topic + 'a'", Expected::String)
            .expect("text")
            .result_type()
            .kind,
        Kind::String
    );
    assert_eq!(
        gives("payload.a + 1", Expected::Any)
            .expect("number")
            .result_type()
            .kind,
        Kind::Dyn
    );
    assert_eq!(
        gives("payload.a * 1.5", Expected::Any)
            .expect("number")
            .result_type()
            .kind,
        Kind::Double
    );
}

#[test]
fn syntax_errors_are_in_plain_words() {
    refused(
        "",
        "syntax error at 1:1: found the end, allowed: a value, a name, or one of ( [ { ! -",
    );
    refused(
        "payload.x >",
        "syntax error at 1:12: found the end, allowed: a value, a name, or one of ( [ { ! -",
    );
    refused(
        "payload.x > 1 topic",
        "syntax error at 1:15: found `topic`, allowed: an operator, or the end",
    );
    refused(
        "has(payload)",
        "syntax error at 1:5: found invalid argument to has() macro, allowed: has(value.field)",
    );
    refused(
        "99999999999999999999",
        "syntax error at 1:1: found invalid int literal, allowed: -9223372036854775808 to 9223372036854775807",
    );
}

#[test]
fn positions_are_those_of_the_text() {
    // Each text holds one unknown name, `zz`, at a place that is counted here.
    for source in [
        "zz",
        "  zz",
        "'ööö' + zz",
        "true\n\t|| zz",
        "// comment\nzz // comment",
        "payload.list.exists(e, e > 1 && zz)",
        "[1, 2, {'a': [zz]}]",
        "has(payload.a) ? payload.a : zz",
        "payload.map(k, k == 'a', zz)",
    ] {
        let before: Vec<&str> = source.split("zz").next().expect("text").split('\n').collect();
        let column = before.last().expect("line").chars().count() as u32 + 1;
        let found = check(source, &Environment::record(), Expected::Any).expect_err("unknown");
        assert_eq!(
            found.position,
            Position {
                line: before.len() as u32,
                column
            },
            "{source}"
        );
        assert_eq!(found.found, "`zz`", "{source}");
    }
}

#[test]
fn what_would_exhaust_the_parser_is_refused() {
    let deep =
        |open: &str, close: &str, levels: usize| format!("{}1{}", open.repeat(levels), close.repeat(levels));
    for source in [
        "a".repeat(MAX_LEN + 1),
        deep("(", ")", 2000),
        deep("[", "]", 2000),
        deep("{1:", "}", 1000),
        deep("size(", ")", 500),
        deep("[1].map(x,", ")", 300),
        "qos>1?1:".repeat(400) + "1",
        "qos>1?1:".repeat(60) + "1",
        ["1"; 2000].join("+"),
        ["payload"; 500].join("."),
        format!("payload{}", "[0]".repeat(1000)),
        ".f(1)".repeat(400),
    ] {
        let started = Instant::now();
        assert!(
            check(&source, &Environment::record(), Expected::Any).is_err(),
            "{source}"
        );
        assert!(started.elapsed() < Duration::from_secs(30), "{source}");
    }
    for source in [
        deep("(", ")", 30),
        ["payload.a"; 90].join(" + "),
        ["topic != 'a'"; 200].join(" && "),
    ] {
        check(&source, &Environment::record(), Expected::Any).unwrap_or_else(|e| panic!("{source}: {e}"));
    }
}

/// Accepts a text, or says where in it something is wrong.
fn judged(source: &str) -> Result<(), TestCaseError> {
    if let Err(error) = check(source, &Environment::record(), Expected::Any) {
        prop_assert!(
            error.position.line as usize <= source.split('\n').count(),
            "{}: {}",
            source,
            error
        );
        prop_assert!(
            error.position.column as usize <= source.chars().count() + 1,
            "{}: {}",
            source,
            error
        );
        prop_assert!(
            !error.found.is_empty() && !error.allowed.is_empty(),
            "{}: {}",
            source,
            error
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Any text is judged, without a panic.
    #[test]
    fn any_text_is_judged(source in "\\PC{0,60}") {
        judged(&source)?;
    }

    /// Any row of words of the language is judged.
    #[test]
    fn any_row_of_words_is_judged(words in proptest::collection::vec(
        prop_oneof![
            Just("payload"), Just("topic"), Just("."), Just("a"), Just("("), Just(")"), Just("["), Just("]"),
            Just("{"), Just("}"), Just(","), Just(":"), Just("?"), Just("+"), Just("-"), Just("!"), Just("&&"),
            Just("||"), Just("=="), Just("<"), Just("in"), Just("has"), Just("map"), Just("all"), Just("size"),
            Just("1"), Just("1.5"), Just("1u"), Just("'s'"), Just("b'x'"), Just("b'''y'''"), Just("r'\\'"),
            Just("true"), Just("null"), Just("math"), Just("matches"), Just("\n"), Just("//"),
        ],
        0..40,
    )) {
        judged(&words.join(" "))?;
        judged(&words.concat())?;
    }
}
