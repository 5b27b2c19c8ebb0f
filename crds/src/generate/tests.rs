use std::path::Path;

use super::*;

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests");

#[test]
fn committed_manifests_are_the_generated_ones() {
    let generated = manifests().unwrap();
    let update = std::env::var_os("FORESHORE_UPDATE").is_some();
    for (file, yaml) in &generated {
        let path = Path::new(COMMITTED).join(file);
        if update {
            std::fs::create_dir_all(COMMITTED).unwrap();
            std::fs::write(&path, yaml).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == *yaml,
            "{file} is out of date: run `cargo xtask generate`"
        );
    }
    let files = std::fs::read_dir(COMMITTED).unwrap().count();
    assert_eq!(
        files,
        generated.len(),
        "crds/manifests holds files that nothing generates"
    );
}

#[test]
fn the_committed_page_of_rules_is_the_generated_one() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors/rules.md");
    let page = rules_page().unwrap();
    if std::env::var_os("FORESHORE_UPDATE").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        committed == page,
        "docs/errors/rules.md is out of date: run `cargo xtask generate`"
    );
}

#[test]
fn every_manifest_fits_client_side_apply() {
    for (file, yaml) in manifests().unwrap() {
        assert!(yaml.len() < MAX_MANIFEST, "{file} has {} bytes", yaml.len());
    }
}

/// Calls `visit` with every schema node and its path.
fn walk(path: &str, node: &Value, visit: &mut impl FnMut(&str, &Map<String, Value>)) {
    let Some(node) = node.as_object() else { return };
    visit(path, node);
    for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if let Some(child) = node.get(key) {
            walk(&format!("{path}{suffix}"), child, visit);
        }
    }
    for (name, child) in node
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        walk(&format!("{path}.{name}"), child, visit);
    }
}

fn every_spec_node(mut visit: impl FnMut(&str, &Map<String, Value>)) {
    for crd in all_crds().unwrap() {
        let schema = crd.spec.versions[0]
            .schema
            .as_ref()
            .unwrap()
            .open_api_v3_schema
            .as_ref()
            .unwrap();
        let schema = serde_json::to_value(schema).unwrap();
        walk(
            &format!("{}.spec", crd.spec.names.kind),
            &schema["properties"]["spec"],
            &mut visit,
        );
    }
}

#[test]
fn everything_that_a_user_writes_is_bounded() {
    every_spec_node(|path, node| {
        let bounded = |key: &str| node.contains_key(key);
        match node.get("type").and_then(Value::as_str) {
            Some("string") => assert!(bounded("maxLength") || bounded("enum"), "{path} has no maxLength"),
            Some("array") => assert!(bounded("maxItems"), "{path} has no maxItems"),
            Some("integer") => assert!(bounded("minimum") && bounded("maximum"), "{path} has no range"),
            Some("object") if node.contains_key("additionalProperties") => {
                assert!(bounded("maxProperties"), "{path} has no maxProperties");
            }
            _ => {}
        }
    });
}

#[test]
fn no_schema_defaults_nulls_or_unknown_formats() {
    every_spec_node(|path, node| {
        assert!(!node.contains_key("default"), "{path} has a default");
        assert!(!node.contains_key("nullable"), "{path} is nullable");
        assert!(
            !node.contains_key("anyOf") && !node.contains_key("oneOf"),
            "{path} is a union"
        );
        let format = node.get("format").and_then(Value::as_str);
        assert!(
            matches!(format, None | Some("int32" | "int64" | "double")),
            "{path} has format {format:?}"
        );
    });
}

#[test]
fn everything_that_a_user_writes_is_described() {
    every_spec_node(|path, node| {
        if !path.ends_with("[]") && !path.ends_with("{}") {
            assert!(node.contains_key("description"), "{path} has no description");
        }
    });
}

#[test]
fn lists_of_named_things_are_maps() {
    every_spec_node(|path, node| {
        let names = node.get("items").is_some_and(|items| {
            let required = items["required"].as_array().cloned().unwrap_or_default();
            required.contains(&"name".into())
        });
        if names {
            assert_eq!(node["x-kubernetes-list-type"], "map", "{path}");
            assert_eq!(
                node["x-kubernetes-list-map-keys"],
                serde_json::json!(["name"]),
                "{path}"
            );
        }
    });
}

#[test]
fn short_names_and_columns_follow_the_house_rules() {
    for crd in all_crds().unwrap() {
        let names = &crd.spec.names;
        let short = names.short_names.as_ref().unwrap();
        assert!(short.iter().all(|name| name.starts_with("fs")), "{short:?}");
        assert_eq!(
            names.categories.as_deref(),
            Some(["foreshore".to_owned()].as_slice()),
            "{}",
            names.kind
        );
        let columns: Vec<_> = crd.spec.versions[0]
            .additional_printer_columns
            .iter()
            .flatten()
            .map(|column| column.name.as_str())
            .collect();
        assert_eq!(columns.len(), 5, "{}: {columns:?}", names.kind);
        assert_eq!(
            [columns[0], columns[1], columns[2], columns[4]],
            ["Ready", "Healthy", "Reason", "Age"]
        );
        assert!(
            crd.spec.versions[0]
                .subresources
                .as_ref()
                .unwrap()
                .status
                .is_some(),
            "{}",
            names.kind
        );
    }
}
