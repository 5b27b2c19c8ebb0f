use serde_json::json;

use super::*;

fn values(text: &str) -> Vec<Value> {
    parse(text)
        .expect("valid")
        .into_iter()
        .map(|document| document.value)
        .collect()
}

fn fault(text: &str) -> (u32, u32, String) {
    let fault = parse(text).expect_err("faulty");
    (fault.position.line, fault.position.column, fault.message)
}

#[test]
fn reads_documents_with_their_places() {
    let documents = parse("# nothing\n---\n---\na: 1\n---\n# nothing\n---\n- b\n...\n").unwrap();
    let places: Vec<_> = documents
        .iter()
        .map(|document| (document.position.line, document.value.clone()))
        .collect();
    assert_eq!(places, [(4, json!({"a": 1})), (8, json!(["b"]))]);
    assert!(documents[0].index < documents[1].index);
    for document in &documents {
        assert_eq!(
            locate(
                "# nothing\n---\n---\na: 1\n---\n# nothing\n---\n- b\n...\n",
                document.index,
                ""
            ),
            Some(document.position)
        );
    }
    assert_eq!(values("\u{feff}a: 1"), [json!({"a": 1})]);
    assert!(values("").is_empty() && values("# only a comment\n").is_empty());
}

#[test]
fn quoted_text_stays_text() {
    assert_eq!(
        values("a: 'on'\nb: \"12\"\nc: |\n  x\n  y\nd: !!str 7\ne: !!int \"7\"\nf: {g: [~, on]}"),
        [json!({"a": "on", "b": "12", "c": "x\ny\n", "d": "7", "e": 7, "f": {"g": [null, true]}})]
    );
}

#[test]
fn aliases_and_merges_are_resolved() {
    assert_eq!(
        values(
            "base: &b {p: 1, q: 2}\nder: {<<: *b, q: 3}\nlist: [*b, &s text, *s]\nboth:\n  <<: [{q: 9}, *b]"
        ),
        [json!({
            "base": {"p": 1, "q": 2}, "der": {"q": 3, "p": 1}, "list": [{"p": 1, "q": 2}, "text", "text"],
            "both": {"q": 9, "p": 1}
        })]
    );
}

#[test]
fn keys_that_are_no_text_become_text_or_are_refused() {
    assert_eq!(values("1: a\n'true': b"), [json!({"1": "a", "true": "b"})]);
    assert!(fault("y: a").2.contains("reads as a boolean"));
    assert_eq!(fault("? [a]\n: b").2, "a key that is no text");
}

#[test]
fn faults_name_line_and_column() {
    assert_eq!(fault("a: 1\nb: 2\na: 3"), (3, 1, "the same key twice".to_owned()));
    let (line, _, message) = fault("a: 1\nb: [1, 2\nc: 3\n");
    assert!(
        line >= 2 && message.starts_with("not valid YAML: "),
        "{line} {message}"
    );
    assert_eq!(fault("a:\n  - !secret x").0, 2);
    assert_eq!(fault("a: .inf").2, "a number that JSON does not have");
    assert_eq!(fault("a: &x [*x]").2, "an alias inside of what it stands for");
    assert_eq!(fault("a: *x").0, 1);
    assert_eq!(fault("<<: 7").2, "'<<' takes over something that is no mapping");
}

#[test]
fn alias_bombs_go_off_in_the_bounds() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = level - 1;
        let items = vec![format!("*a{before}"); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    assert_eq!(fault(&bomb).2, "the file expands to too much");

    let long = format!(
        "a: &a {}\nb: [{}]",
        "x".repeat(100_000),
        vec!["*a"; 10_000].join(", ")
    );
    assert_eq!(fault(&long).2, "the file expands to too much");
}

#[test]
fn nesting_is_bounded() {
    for deep in ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000)] {
        assert!(parse(&deep).is_err());
    }
    let most = format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH));
    assert!(parse(&most).is_ok());
}

#[test]
fn nothing_makes_it_panic() {
    // Every prefix of a text that uses most of the syntax, and every single damaged byte of it.
    let text = "%YAML 1.2\n---\na: &x !!str 'q''q'\n\"b\\u00e4\": |2-\n   t\n? c\n: [*x, {d: >+\n e}]\n<<: {f: 1}\n...\n--- - !<tag:yaml.org,2002:int> 0x1\n";
    for end in 0..text.len() {
        if let Some(prefix) = text.get(..end) {
            drop(parse(prefix));
            assert!(locate(prefix, 0, "c[1].d").is_none_or(|position| position.line > 0));
        }
    }
    for index in 0..text.len() {
        for replacement in [
            b'{', b']', b'&', b'*', b'\t', b'\n', b'%', b':', b'\'', b'"', 0x80,
        ] {
            let mut damaged = text.as_bytes().to_vec();
            damaged[index] = replacement;
            drop(parse(&String::from_utf8_lossy(&damaged)));
        }
    }
}
