//! Commands to machines that nobody here wrote: what they say of themselves is what counts.

use std::process::{Command, Output};

use foreshore_peers::{Program, free_port, python, script};
use serde_json::{Value, json};

use crate::plant::{Plant, SOON, START, foreshore, signal};

/// The example with machines that others wrote.
struct Machines {
    plant: Plant,
    tank: Program,
    door: Program,
    /// Where the camera keeps its presets.
    _folder: tempfile::TempDir,
}

impl Machines {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = |name: &str, arguments: &[&str], ready: &str| {
            let mut command = Command::new(python());
            command.arg(script(name)).args(arguments);
            command.current_dir(folder.path());
            Program::start(command, ready)
        };
        let (tank_port, door_port) = (free_port(), free_port());
        let machines = Self {
            plant: Plant::start(),
            tank: program("commanded_opcua.py", &[&tank_port.to_string()], "ready"),
            door: program(
                "ipycam_camera.py",
                &[
                    "--port",
                    &door_port.to_string(),
                    "--user",
                    "admin",
                    "--password",
                    "secret",
                ],
                "camera is ready",
            ),
            _folder: folder,
        };
        let manifests = include_str!("commanded.yaml")
            .replace("TANK", &tank_port.to_string())
            .replace("DOOR", &door_port.to_string());
        machines.declare(&manifests);
        // Neither has sent anything, and never will.
        machines
            .plant
            .wait_until("the cloud knows both machines", START, || {
                machines.declared("tank") && machines.declared("door")
            });
        for device in ["tank-1", "door-1"] {
            machines
                .plant
                .wait_until(device, START, || machines.healthy(device) == "True");
        }
        machines
    }

    fn declare(&self, manifests: &str) {
        self.plant.manifests.write("commanded.yaml", manifests);
    }

    fn healthy(&self, device: &str) -> Value {
        self.plant.object("Device", device)["healthy"].clone()
    }

    fn invoke(&self, asset: &str, action: &str, input: &str, more: &[&str]) -> Output {
        foreshore()
            .args(["invoke", asset, action, input, "--data"])
            .arg(self.plant.data())
            .args(more)
            .output()
            .unwrap()
    }

    /// Whether the cloud lists an asset that the edge has.
    fn declared(&self, asset: &str) -> bool {
        let asset = self.plant.cloud().get(&format!("assets/bottling/{asset}"));
        asset.is_some_and(|asset| asset["declared"] == true)
    }

    /// The audit, the newest command first.
    fn audit(&self) -> Vec<Value> {
        let audit = self.plant.cloud().get("audit").unwrap();
        audit["items"].as_array().cloned().unwrap()
    }
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a command that failed says.
fn failure(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Who runs this test, as the audit has to name it.
fn myself() -> String {
    let name = Command::new("id").arg("-un").output().unwrap();
    format!("cli:{}", String::from_utf8(name.stdout).unwrap().trim())
}

#[test]
fn commands_reach_machines_through_the_cloud_and_leave_an_audit() {
    let mut machines = Machines::start();

    answer(&machines.invoke("bottling/tank", "control/write-setpoint", "42.5", &[]));
    machines.tank.wait_for("Setpoint is 42.5", SOON);
    let filled = answer(&machines.invoke("bottling/tank", "control/fill", r#"{"Litres":3}"#, &[]));
    machines.tank.wait_for("Fill called with 3.0", SOON);
    assert!(filled["output"].to_string().contains("3.0"), "{filled}");
    let place = r#"{"pan":0.5,"tilt":-0.25,"zoom":0.75}"#;
    answer(&machines.invoke("bottling/door", "ptz/move-to", place, &[]));
    machines.door.wait_for("motors to 0.5 -0.25 0.75", SOON);

    // A repeat of the key is answered, and not carried out again.
    let key = ["--idempotency-key", "one-fill"];
    let first = answer(&machines.invoke("bottling/tank", "control/fill", r#"{"Litres":4}"#, &key));
    let again = answer(&machines.invoke("bottling/tank", "control/fill", r#"{"Litres":4}"#, &key));
    assert_eq!(
        (&first["repeated"], &again["repeated"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(first["output"], again["output"]);

    let refused = machines.invoke("bottling/tank", "control/write-locked", "99", &[]);
    let why = failure(&refused);
    assert!(
        why.contains("Forbidden") && why.contains("safety/locked-from-afar"),
        "{why}"
    );
    // What comes later is carried out: had the refused one been, it would be seen by now.
    answer(&machines.invoke("bottling/tank", "control/write-setpoint", "43.5", &[]));
    machines.tank.wait_for("Setpoint is 43.5", SOON);
    let seen = machines.tank.lines();
    assert_eq!(
        seen.iter().filter(|line| line.contains("Fill called")).count(),
        1,
        "{seen:?}"
    );
    assert!(!seen.iter().any(|line| line.contains("Locked is")), "{seen:?}");

    let audit = machines.audit();
    let refused = audit
        .iter()
        .find(|record| record["action"] == "write-locked")
        .unwrap();
    assert_eq!(
        (
            &refused["outcome"],
            &refused["actor"],
            &refused["asset"],
            &refused["input"]
        ),
        (&json!("Forbidden"), &json!(myself()), &json!("tank"), &json!(99))
    );
    let why = refused["message"].as_str().unwrap();
    assert!(why.contains("safety/locked-from-afar"), "{refused}");
    assert!(machines.plant.log().contains("command refused"));
    let command = "assets/bottling/tank/commands/control/write-setpoint";
    let written = machines
        .plant
        .cloud()
        .post(command, &json!({ "input": 44.5 }))
        .unwrap();
    assert_eq!(written["outcome"], "ok", "{written}");
    machines.tank.wait_for("Setpoint is 44.5", SOON);
    assert_eq!(machines.audit()[0]["actor"], "console");
    machines.plant.end_balanced();
}

#[test]
fn a_machine_that_does_not_answer_or_is_away_is_said_to() {
    let mut machines = Machines::start();
    // It takes the request and does not answer by the deadline.
    signal(machines.tank.id(), "STOP");
    let patience = ["--timeout", "2"];
    let late = machines.invoke("bottling/tank", "control/fill", r#"{"Litres":1}"#, &patience);
    let why = failure(&late);
    assert!(why.contains("Unknown"), "{why}");
    assert_eq!(machines.audit()[0]["outcome"], "Unknown");
    signal(machines.tank.id(), "CONT");
    machines.tank.wait_for("Fill called with 1.0", SOON);

    machines.tank.kill();
    machines
        .plant
        .wait_until("the device is told to be unhealthy", SOON, || {
            machines.healthy("tank-1") == "False"
        });
    let away = machines.invoke("bottling/tank", "control/write-setpoint", "50", &[]);
    let why = failure(&away);
    assert!(
        why.contains("Unavailable") && why.contains("not connected"),
        "{why}"
    );
    assert_eq!(machines.audit()[0]["outcome"], "Unavailable");

    // An asset that is taken away is not there any more.
    let manifests = machines.plant.manifests.read("commanded.yaml");
    machines.declare(&manifests.replace("name: door\n", "name: gate\n"));
    machines
        .plant
        .wait_until("the cloud knows that it is gone", SOON, || {
            machines.declared("gate") && !machines.declared("door")
        });
    let gone = machines.invoke("bottling/door", "ptz/move-to", r#"{"pan":0}"#, &[]);
    assert!(failure(&gone).contains("NotFound"), "{gone:?}");
    machines.plant.end_balanced();
}
