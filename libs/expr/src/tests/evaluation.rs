use super::{evaluate_with, fails, gives};
use crate::{Budget, EvalError};

#[test]
fn variables_hold_what_travels_with_the_record() {
    gives("payload.temperature.Value", "81.5");
    gives("payload['Oven.Set-Point'].Value", "80.0");
    gives("payload.`Oven.Set-Point`.Value", "80.0");
    gives("topic", r#""line/oven/data""#);
    gives("topic.split('/')[1]", r#""oven""#);
    gives("properties.shift", r#""early""#);
    gives(
        "[contentType, namespace, asset, member]",
        r#"["application/json","bottling","oven-1","state"]"#,
    );
    gives(
        "[time, ingestTime]",
        r#"["2026-01-31T12:00:00.25Z","2026-01-31T12:00:01.5Z"]"#,
    );
    gives("ingestTime - time", r#""1.25s""#);
    gives("[qos, retain]", "[1,false]");
    gives("size(raw) > 100", "true");
    gives("payload.tags", r#"["hot","oven","hot"]"#);
    gives("payload['escaped\\n']", r#""line\nbreak""#);
}

#[test]
fn numbers_of_json_go_together() {
    gives("payload.count.Value * 1.8 + 32", "68.0");
    gives("payload.count.Value / 3", "6");
    gives("payload.count.Value / 3.0 > 6.6", "true");
    gives("payload.temperature.Value - 1", "80.5");
    gives("payload.count.Value == 20.0", "true");
    gives("payload.limits[2] > 9223372036854775807", "true");
    gives("payload.limits[2] - 1", "18446744073709551614");
    gives("payload.limits[2] - 18446744073709551615u == 0", "true");
    gives("9007199254740993 > 9007199254740992.0", "true");
    gives("-7 / 2", "-3");
    gives("-7 % 3", "-1");
    gives("payload.limits.sum()", "1.8446744073709552e+19");
    fails("payload.count.Value + 9223372036854775807", "+ overflows");
    fails(
        "payload.count.Value / (payload.count.Value - 20)",
        "division by zero",
    );
    fails(
        "1.0 / (payload.count.Value - 20)",
        "a number that is infinite or not a number has no representation in JSON",
    );
}

#[test]
fn missing_members_are_errors_unless_asked_for() {
    gives("has(payload.pressure)", "false");
    gives("has(payload.temperature.Value)", "true");
    gives("has(payload.pressure) && payload.pressure.Value > 3", "false");
    gives("'count' in payload", "true");
    gives("payload.nothing == null", "true");
    fails("payload.pressure.Value > 3", "no such key: pressure");
    fails("has(payload.pressure.Value)", "no such key: pressure");
    fails("payload.tags[3]", "index 3 is out of range: length is 3");
    fails("payload.tags[-1]", "index -1 is out of range: length is 3");
    fails("payload.state.Value.x", ". is not defined for string, string");
    fails("payload.state.Value > 3", "> is not defined for string, int");
}

#[test]
fn a_deciding_operand_outweighs_an_error() {
    gives("payload.pressure > 3 || true", "true");
    gives("payload.pressure > 3 && false", "false");
    gives("false && payload.pressure > 3", "false");
    fails("payload.pressure > 3 || false", "no such key: pressure");
    fails("payload.state.Value && true", "&& is not defined for string");
}

#[test]
fn macros_go_through_lists_and_keys() {
    gives("payload.nested.list.exists(e, e.a == 2)", "true");
    gives("payload.nested.list.all(e, has(e.a))", "false");
    gives("payload.tags.exists_one(t, t == 'oven')", "true");
    gives("payload.tags.exists_one(t, t == 'hot')", "false");
    gives("payload.tags.filter(t, t != 'hot')", r#"["oven"]"#);
    gives("payload.tags.map(t, t + '!')", r#"["hot!","oven!","hot!"]"#);
    gives("payload.tags.map(t, t == 'oven', size(t))", "[4]");
    gives("[1, 2].map(x, [10, 20].map(y, x * y))", "[[10,20],[20,40]]");
    gives("[1, 2].map(x, [3].map(x, x + 1)[0] + x)", "[5,6]");
    gives("payload.nested.list.filter(e, has(e.a)).map(e, e.a).sum()", "3");
    gives("payload.exists(k, k == 'count')", "true");
    fails("payload.nested.list.all(e, e.a > 0)", "no such key: a");
    gives("payload.nested.list.all(e, e.a > 1)", "false");
}

#[test]
fn functions_work_on_texts_lists_numbers_and_times() {
    gives("'Größe'.size()", "5");
    gives(
        "'oven-1'.startsWith('oven') && 'oven-1'.endsWith('-1') && 'oven-1'.contains('n-')",
        "true",
    );
    gives("asset.matches('^oven-[0-9]+$')", "true");
    gives(
        "[' a '.trim(), 'Ab'.lowerAscii(), 'Ab'.upperAscii(), 'aba'.replace('a', 'x')]",
        r#"["a","ab","AB","xbx"]"#,
    );
    gives("['aößb'.substring(1, 3), 'abc'.substring(1)]", r#"["öß","bc"]"#);
    gives("['aöß'.indexOf('ß'), 'a'.indexOf('b')]", "[2,-1]");
    gives("['a', 'b'].join('-') + payload.tags.join()", r#""a-bhotovenhot""#);
    gives(
        "[int('7'), int(-1.9), int(time), uint(3), double(2), bool('true')]",
        "[7,-1,1769860800,3,2.0,true]",
    );
    gives(
        "[string(1), string(1.5), string(true), string(time), string(b'x')]",
        r#"["1","1.5","true","2026-01-31T12:00:00.25Z","x"]"#,
    );
    gives(
        "[math.abs(-3), math.ceil(1.2), math.floor(1.8), math.round(2.5), math.trunc(-1.5), math.sqrt(4)]",
        "[3,2.0,1.0,3.0,-1.0,2.0]",
    );
    gives(
        "[math.least(3, 1.5, 2), math.greatest(1, 3u, 2.0), [3, 1, 2].min(), ['a', 'b'].max()]",
        r#"[1.5,3,1,"b"]"#,
    );
    gives(
        "[time.getFullYear(), time.getMonth(), time.getDate(), time.getDayOfMonth(), time.getDayOfWeek(), time.getDayOfYear()]",
        "[2026,0,31,30,6,30]",
    );
    gives(
        "[time.getHours(), time.getMinutes(), time.getSeconds(), time.getMilliseconds()]",
        "[12,0,0,250]",
    );
    gives(
        "[duration('1h30m').getMinutes(), duration('-1.5s').getMilliseconds(), duration('1.5s') + duration('250ms') == duration('1750ms')]",
        "[90,-1500,true]",
    );
    gives(
        "timestamp('2026-01-31T13:00:00+01:00') + duration('250ms') == time",
        "true",
    );
    gives("payload.temperature.SourceTimestamp < string(time)", "false");
    gives("timestamp(payload.temperature.SourceTimestamp) < time", "true");
    gives(
        "time > timestamp('2026-01-01T00:00:00Z') ? 'new' : 'old'",
        r#""new""#,
    );
    gives(
        "{'t': payload.temperature.Value, 'ok': !(payload.count.Value > 30), 1: null}",
        r#"{"t":81.5,"ok":true,"1":null}"#,
    );
    gives("b'\\x00\\xff'", r#""AP8=""#);
    gives("payload.state.Value in ['Running', 'Idle']", "true");
    gives("{'a': 1} == {'a': 1.0}", "true");
    fails("int(payload.state.Value)", r#"int: "Running" is none"#);
    fails("int(payload.temperature.Value * 1e300)", "int overflows");
    fails("payload.nested.list[5 - 5].a.min()", "min is not defined for int");
}

#[test]
fn what_is_no_json_fails_only_where_it_is_asked_for() {
    let mut record = super::record();
    record.payload = (&b"\xff\xd8 picture"[..]).into();
    let view = crate::RecordView::new(&record);
    let program = |source: &str| {
        crate::check(source, &crate::Environment::record(), crate::Expected::Any).expect("program")
    };
    let found = program("payload.x")
        .evaluate(&view, &mut crate::Meter::default())
        .expect_err("no JSON");
    assert!(matches!(found, EvalError::NotJson { .. }), "{found}");
    assert!(
        program("size(raw) == 10 && topic != ''")
            .evaluate_bool(&view, &mut crate::Meter::default())
            .expect("value")
    );
    record.payload = vec![b'['; 500_000].into();
    let found = crate::decode(&record.payload).expect_err("nested too deeply");
    assert!(found.to_string().contains("recursion limit"), "{found}");
    let found = crate::decode(&vec![b' '; crate::MAX_DECODED_LEN + 1]).expect_err("too long");
    assert!(found.to_string().contains("bytes are not decoded"), "{found}");
}

#[test]
fn large_maps_are_found_through_their_index_and_the_last_of_a_repeated_name_counts() {
    let mut payload: Vec<String> = (0..1000).map(|n| format!("\"point-{n}\":{n}")).collect();
    payload.push("\"point-7\":\"again\"".to_owned());
    let payload = format!("{{{}}}", payload.join(","));
    let decoded = crate::decode(payload.as_bytes()).expect("json");
    let crate::Value::Map(map) = &decoded else {
        panic!("{decoded:?}")
    };
    for n in (0..1000).filter(|n| *n != 7) {
        let found = map.field(&format!("point-{n}"));
        assert!(
            matches!(found, Some(crate::Value::Int(value)) if *value == n),
            "{n}: {found:?}"
        );
    }
    assert!(matches!(map.field("point-7"), Some(crate::Value::String(text)) if **text == *"again"));
    assert!(map.field("point-1000").is_none() && map.field("").is_none());
}

#[test]
fn budgets_end_what_would_take_too_long_or_grow() {
    let bomb = "[0,1,2,3,4,5,6,7,8,9]";
    let nested = format!(
        "{bomb}.all(a, {bomb}.all(b, {bomb}.all(c, {bomb}.all(d, {bomb}.all(e, {bomb}.all(f, a + b + c + d + e + f + qos >= 0))))))"
    );
    let found = evaluate_with(&nested, Budget::default()).expect_err("too long");
    assert_eq!(
        found,
        EvalError::OutOfBudget {
            what: "steps",
            limit: 500_000
        }
    );
    // An error that `||` absorbs must not absorb the end of the budget.
    let hidden = format!("{nested} || true");
    assert!(matches!(
        evaluate_with(&hidden, Budget::default()),
        Err(EvalError::OutOfBudget { .. })
    ));
    let mut doubling = "topic".to_owned();
    for _ in 0..12 {
        doubling = format!("[{doubling}].map(x, x + x)[0]");
    }
    let budget = Budget {
        steps: 500_000,
        bytes: 10_000,
    };
    let found = evaluate_with(&doubling, budget).expect_err("too large");
    assert_eq!(
        found,
        EvalError::OutOfBudget {
            what: "bytes",
            limit: 10_000
        }
    );
}
