//! Mutants: for every bound that the schema sets on something in an example, the example with that bound broken.

use foreshore_crds::judge::FieldPath;
use serde_json::{Map, Value, json};

/// A document with one thing wrong.
pub(crate) struct Mutant {
    /// Which bound was broken, and where.
    pub(crate) name: String,
    pub(crate) document: Value,
    /// Where the judge must find it.
    pub(crate) path: FieldPath,
}

/// All mutants of a document.
pub(crate) fn mutants(document: &Value, schema: &Value) -> Vec<Mutant> {
    let mut breaker = Breaker {
        document,
        mutants: Vec::new(),
    };
    breaker.node(
        &document["spec"],
        &schema["properties"]["spec"],
        &FieldPath::root().field("spec"),
    );
    breaker.mutants
}

struct Breaker<'a> {
    document: &'a Value,
    mutants: Vec<Mutant>,
}

impl Breaker<'_> {
    fn node(&mut self, value: &Value, schema: &Value, path: &FieldPath) {
        self.keywords(value, schema, path);
        match value {
            Value::Object(members) => self.object(members, schema, path),
            Value::Array(elements) => self.array(elements, schema, path),
            _ => {}
        }
    }

    /// Replaces what lies at `path`; the problem is expected there.
    fn replace(&mut self, what: &str, path: &FieldPath, value: Value) {
        self.replace_seen_at(what, path, value, path.clone());
    }

    fn replace_seen_at(&mut self, what: &str, path: &FieldPath, value: Value, seen_at: FieldPath) {
        let mut document = self.document.clone();
        let pointer: String = path
            .segments()
            .iter()
            .map(|segment| match segment {
                foreshore_crds::judge::Segment::Field(name) => format!("/{}", name.replace('/', "~1")),
                foreshore_crds::judge::Segment::Index(index) => format!("/{index}"),
            })
            .collect();
        *document.pointer_mut(&pointer).unwrap() = value;
        self.mutants.push(Mutant {
            name: format!("{what} at {path}"),
            document,
            path: seen_at,
        });
    }

    fn keywords(&mut self, value: &Value, schema: &Value, path: &FieldPath) {
        let bound = |keyword: &str| schema.get(keyword).and_then(Value::as_u64);
        let other_type = if value.is_string() {
            json!({"not": "text"})
        } else {
            json!("not that")
        };
        self.replace("another type", path, other_type);
        if value.is_number() && schema["type"] == "integer" {
            self.replace("a fraction", path, json!(1.5));
        }
        for (keyword, beyond) in [("minimum", -1.0), ("maximum", 1.0)] {
            if let Some(limit) = schema.get(keyword).and_then(Value::as_f64) {
                let number = limit + beyond;
                let number = if schema["type"] == "integer" {
                    json!(number as i64)
                } else {
                    json!(number)
                };
                self.replace(keyword, path, number);
            }
        }
        if schema.get("enum").is_some() {
            self.replace("another choice", path, json!("Neither"));
        }
        if let Some(pattern) = schema.get("pattern") {
            let judged_by = json!({"pattern": pattern});
            let against = [" #\u{0}{", "ns=2"].map(|text| json!(text));
            let against = against
                .into_iter()
                .find(|text| !jsonschema::is_valid(&judged_by, text));
            self.replace(
                "text against the pattern",
                path,
                against.expect("a text against every pattern"),
            );
        }
        if let Some(most) = bound("maxLength") {
            self.replace("maxLength", path, json!("a".repeat(most as usize + 1)));
        }
        if bound("minLength").is_some_and(|least| least > 0) {
            self.replace("minLength", path, json!(""));
        }
        if let (Some(most), Value::Array(elements)) = (bound("maxItems"), value) {
            let element = elements.first().cloned().unwrap_or(Value::Null);
            self.replace("maxItems", path, Value::Array(vec![element; most as usize + 1]));
        }
        if bound("minItems").is_some_and(|least| least > 0) {
            self.replace("minItems", path, json!([]));
        }
        if let (Some(most), Value::Object(_)) = (bound("maxProperties"), value) {
            let members: Map<_, _> = (0..=most)
                .map(|index| (format!("k{index}"), json!("v")))
                .collect();
            self.replace("maxProperties", path, Value::Object(members));
        }
    }

    fn object(&mut self, members: &Map<String, Value>, schema: &Value, path: &FieldPath) {
        if schema.get("x-kubernetes-preserve-unknown-fields").is_some() {
            return;
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        if schema.get("additionalProperties").is_none() {
            let mut more = members.clone();
            more.insert("notKnown".to_owned(), json!(1));
            self.replace_seen_at(
                "an unknown field",
                path,
                Value::Object(more),
                path.field("notKnown"),
            );
        }
        for name in schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let name = name.as_str().unwrap();
            let mut fewer = members.clone();
            fewer.remove(name);
            self.replace_seen_at("a missing field", path, Value::Object(fewer), path.field(name));
        }
        for (name, member) in members {
            let known = properties.and_then(|properties| properties.get(name));
            if let Some(schema) = known.or_else(|| schema.get("additionalProperties")) {
                self.node(member, schema, &path.field(name));
            }
        }
    }

    fn array(&mut self, elements: &[Value], schema: &Value, path: &FieldPath) {
        let unique = schema
            .get("x-kubernetes-list-type")
            .is_some_and(|kind| kind == "map" || kind == "set");
        let room = schema["maxItems"]
            .as_u64()
            .is_none_or(|most| (elements.len() as u64) < most);
        if unique
            && room
            && let Some(first) = elements.first()
        {
            let mut more = elements.to_vec();
            more.push(first.clone());
            self.replace_seen_at(
                "a duplicate",
                path,
                Value::Array(more),
                path.index(elements.len()),
            );
        }
        if let Some(schema) = schema.get("items") {
            for (index, element) in elements.iter().enumerate() {
                self.node(element, schema, &path.index(index));
            }
        }
    }
}
