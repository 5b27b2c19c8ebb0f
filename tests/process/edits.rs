//! Manifests are edited wrongly, and mended, while a plant runs by them.

use serde_json::{Value, json};

use crate::plant::{Plant, SOON, START, TELEMETRY};

/// A wrong edit, and what the user is told about it.
struct Edit {
    file: &'static str,
    from: &'static str,
    to: &'static str,
    /// Members of a problem; of a text, a part that it must have.
    told: Value,
}

fn edits() -> Vec<Edit> {
    let edit = |file, from, to, told| Edit { file, from, to, told };
    vec![
        edit(
            "filler.yaml",
            "deviceRef:",
            "deviceReff:",
            json!({"line": 7, "field": "spec.deviceReff", "found": "unknown field deviceReff", "allowed": "deviceRef", "nearest": "deviceRef"}),
        ),
        edit(
            "filler.yaml",
            "spec:",
            "spec: [",
            json!({"line": 8, "message": "not valid YAML"}),
        ),
        edit(
            "capper.yaml",
            "kind: Asset",
            "kind: Aset",
            json!({"line": 2, "field": "kind", "found": "Aset", "allowed": "Asset", "nearest": "Asset"}),
        ),
        edit(
            "labeller.yaml",
            "name: line-1",
            "name: line-9",
            json!({"line": 8, "field": "spec.deviceRef.name", "found": "line-9", "allowed": "line-1", "reason": "NotFound"}),
        ),
        edit(
            "dataflows.yaml",
            "member != 'heartbeat'",
            "member !=",
            json!({"line": 39, "field": "spec.stages[0].filter.expression", "found": "syntax error at 1:10", "allowed": "a value", "reason": "InvalidExpression"}),
        ),
        edit(
            "dataflows.yaml",
            "member != 'heartbeat'",
            "membr != 'heartbeat'",
            json!({"line": 39, "field": "spec.stages[0].filter.expression", "found": "unknown variable", "allowed": "`member`", "reason": "InvalidExpression"}),
        ),
        edit(
            "dataflows.yaml",
            "member != 'heartbeat'",
            "hash(member) != 'heartbeat'",
            json!({"line": 39, "field": "spec.stages[0].filter.expression", "found": "hash", "reason": "InvalidExpression"}),
        ),
    ]
}

/// Whether a problem tells what is expected.
fn tells(problem: &Value, expected: &Value) -> bool {
    expected
        .as_object()
        .unwrap()
        .iter()
        .all(|(member, expected)| match (&problem[member], expected) {
            (Value::String(found), Value::String(part)) => found.contains(part.as_str()),
            (found, expected) => found == expected,
        })
}

fn problems(plant: &Plant) -> Vec<Value> {
    plant.status()["problems"].as_array().cloned().unwrap_or_default()
}

/// Waits until the status tells what is wrong with a file; whatever it spoils, what ran before runs on.
fn assert_told(plant: &Plant, file: &str, told: &Value) {
    plant.wait_until(&format!("{file}: {told}"), SOON, || {
        problems(plant).iter().any(|problem| {
            let place = problem["file"].as_str();
            place.is_some_and(|place| place.ends_with(file)) && tells(problem, told)
        })
    });
    let text = plant.status_text();
    assert!(text.contains(&format!("{file}:{}", told["line"])), "{text}");
    plant.wait_until_flowing(TELEMETRY);
    assert_eq!(
        plant.status()["summary"]["unhealthy"],
        0,
        "{}",
        plant.status_text()
    );
}

/// Waits until nothing is left of a wrong edit.
fn wait_until_mended(plant: &Plant, objects: &Value) {
    plant.wait_until("the edit is mended", SOON, || {
        let status = plant.status();
        status["problems"] == json!([]) && status["summary"]["ready"] == *objects
    });
}

/// Each wrong edit is told with file, line, field, what was found and what is allowed, and leaves running what runs. When
/// it is mended, nothing is left of it.
#[test]
fn a_wrong_edit_leaves_running_what_runs_and_says_what_is_wrong() {
    let mut plant = Plant::start();
    plant.wait_until_flowing(TELEMETRY);
    let objects = plant.status()["summary"]["objects"].clone();
    for Edit { file, from, to, told } in edits() {
        let right = plant.manifests.read(file);
        plant.manifests.edit(file, from, to);
        assert_told(&plant, file, &told);
        assert_eq!(
            plant.status()["summary"]["objects"],
            objects,
            "{}",
            plant.status_text()
        );
        plant.manifests.write(file, &right);
        wait_until_mended(&plant, &objects);
    }
    // A copy of a file declares the same objects again.
    plant
        .manifests
        .write("twice.yaml", &plant.manifests.read("filler.yaml"));
    let told = json!({"line": 1, "field": "metadata.name", "found": "filler.yaml:1", "allowed": "one declaration", "reason": "Conflict"});
    assert_told(&plant, "twice.yaml", &told);
    assert_eq!(plant.object("Asset", "filler")["healthy"], "True");
    plant.manifests.remove("twice.yaml");
    wait_until_mended(&plant, &objects);
    plant.end_balanced();
}

/// A file that goes takes with it what it declared, and no more; when it comes back, so does that.
#[test]
fn a_removed_file_removes_what_it_declared() {
    let mut plant = Plant::start();
    plant.wait_until("the palletiser delivers", START, || {
        plant.object("Asset", "palletiser")["healthy"] == "True"
    });
    let palletiser = plant.manifests.read("palletiser.yaml");
    plant.manifests.remove("palletiser.yaml");
    plant.wait_until("the palletiser is gone", SOON, || {
        plant.status().is_object() && plant.object("Asset", "palletiser").is_null()
    });
    assert_eq!(problems(&plant), Vec::<Value>::new());
    plant.wait_until_flowing(TELEMETRY);
    plant.manifests.write("palletiser.yaml", &palletiser);
    plant.wait_until("the palletiser is back", START, || {
        plant.object("Asset", "palletiser")["healthy"] == "True"
    });
    plant.end_balanced();
}
