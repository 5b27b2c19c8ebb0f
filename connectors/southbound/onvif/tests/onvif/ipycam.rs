//! ipycam (PyPI): knows WS-UsernameToken on its services, `GetSystemDateAndTime` included, and HTTP Basic on pictures;
//! has no events, tells errors with the status 200, declares no namespace for some answers, and ignores when a movement
//! is to end.

use std::{process::Command, time::Duration};

use foreshore_peers::{Program, free_port, python, script};
use foreshore_record::{CommandErrorCode, property};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::plant::{Plant, eventually, size_of};

/// What the camera is started with.
#[derive(Clone, Copy)]
struct Setup {
    port: u16,
    /// How far its clock is off, as faketime takes it.
    clock: Option<&'static str>,
    believed_host: &'static str,
}

impl Setup {
    fn new() -> Self {
        Self {
            port: free_port(),
            clock: None,
            believed_host: "127.0.0.1",
        }
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}/onvif/device_service", self.port)
    }

    /// Starts the camera; its user is `admin` with the password `secret`.
    async fn start(self, plant: &Plant) -> Program {
        let directory = plant.directory();
        let start = move || {
            let mut command = Command::new(python());
            if let Some(offset) = self.clock {
                command.env("LD_PRELOAD", faketime()).env("FAKETIME", offset);
            }
            command
                .arg(script("ipycam_camera.py"))
                .args([
                    "--port",
                    &self.port.to_string(),
                    "--believed-host",
                    self.believed_host,
                ])
                .args(["--user", "admin", "--password", "secret"])
                // It keeps presets in its working directory.
                .current_dir(directory);
            Program::start(command, "camera is ready")
        };
        tokio::task::spawn_blocking(start).await.unwrap()
    }
}

/// The library of faketime. Its program would stay between us and the camera, and the camera outlive it.
fn faketime() -> String {
    let shown = Command::new("faketime")
        .args(["-f", "+0s", "printenv", "LD_PRELOAD"])
        .output();
    String::from_utf8(shown.unwrap().stdout)
        .unwrap()
        .trim()
        .to_owned()
}

fn door() -> Value {
    json!({ "streams": [{ "name": "view", "snapshot": { "interval": "200ms" } }] })
}

fn fallback() -> Value {
    json!({ "usernameTokenFallback": true })
}

fn signal(program: &Program, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &program.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

#[tokio::test]
async fn pictures_arrive_with_time_and_size_and_the_camera_tells_of_itself() {
    let mut plant = Plant::start().await;
    let setup = Setup {
        believed_host: "camera.invalid",
        ..Setup::new()
    };
    let _camera = setup.start(&plant).await;
    plant.dial(&setup.address(), Some("secret"), fallback()).await;
    plant
        .watch(
            &[
                "GetDeviceInformation",
                "GetProfiles",
                "GetSnapshotUri",
                "GetStreamUri",
            ],
            door(),
        )
        .await;
    plant.camera_is("Healthy").await;
    plant.part_is("Stream view", "Healthy").await;

    let asked = Timestamp::now();
    let picture = plant.next("view").await;
    assert_eq!(picture.properties.content_type.as_deref(), Some("image/jpeg"));
    assert!(picture.payload.starts_with(&[0xFF, 0xD8, 0xFF]) && picture.payload.ends_with(&[0xFF, 0xD9]));
    assert_eq!(size_of(&picture), (320, 180));
    let captured: Timestamp = picture
        .user_property(property::CAPTURED_AT)
        .unwrap()
        .parse()
        .unwrap();
    assert!(
        captured.duration_since(asked).abs() < SignedDuration::from_secs(60),
        "{captured}"
    );

    let information = plant.invoke("GetDeviceInformation", &Value::Null).await.unwrap();
    assert_eq!(information["Manufacturer"], "PythonCam");
    assert_eq!(information["Model"], "Gate & Door <1>");
    let profiles = plant.invoke("GetProfiles", &Value::Null).await.unwrap();
    let main =
        json!({ "profile": "Profile_Main", "name": "MainStream", "width": 320, "height": 180, "ptz": true });
    assert_eq!(profiles["profiles"][0], main);
    // Addresses are where we found the camera, not where it believes to be.
    let uri = plant.invoke("GetSnapshotUri", &Value::Null).await.unwrap();
    assert_eq!(
        uri["uri"],
        format!("http://127.0.0.1:{}/snapshot.jpg", setup.port)
    );
    let uri = plant.invoke("GetStreamUri", &Value::Null).await.unwrap();
    assert_eq!(uri["uri"], "rtsp://127.0.0.1:8554/video_main");
}

#[tokio::test]
async fn the_head_moves_stops_and_knows_presets() {
    let mut plant = Plant::start().await;
    let setup = Setup::new();
    let _camera = setup.start(&plant).await;
    plant.dial(&setup.address(), Some("secret"), fallback()).await;
    let operations = [
        "AbsoluteMove",
        "RelativeMove",
        "ContinuousMove",
        "Stop",
        "GetStatus",
        "GetPresets",
        "SetPreset",
        "GotoPreset",
        "GotoHomePosition",
        "RemovePreset",
    ];
    plant.watch(&operations, json!({})).await;
    plant.camera_is("Healthy").await;

    assert_eq!(
        plant
            .invoke("AbsoluteMove", &json!({ "pan": 0.5, "tilt": -0.25, "zoom": 0.5 }))
            .await,
        Ok(Value::Null)
    );
    let at = plant.invoke("GetStatus", &Value::Null).await.unwrap();
    assert_eq!(
        (&at["pan"], &at["tilt"], &at["zoom"]),
        (&json!(0.5), &json!(-0.25), &json!(0.5))
    );
    plant
        .invoke("RelativeMove", &json!({ "pan": -0.25 }))
        .await
        .unwrap();
    assert_eq!(
        plant.invoke("GetStatus", &Value::Null).await.unwrap()["pan"],
        0.25
    );

    let preset = plant
        .invoke("SetPreset", &json!({ "name": "gate & door" }))
        .await
        .unwrap();
    let preset = preset["preset"].as_str().unwrap().to_owned();
    let presets = plant.invoke("GetPresets", &Value::Null).await.unwrap();
    let named = presets["presets"]
        .as_array()
        .unwrap()
        .iter()
        .find(|known| known["preset"] == preset.as_str());
    assert!(named.is_some(), "{presets}");
    plant.invoke("GotoHomePosition", &Value::Null).await.unwrap();
    assert_eq!(plant.invoke("GetStatus", &Value::Null).await.unwrap()["pan"], 0.0);
    plant
        .invoke("GotoPreset", &json!({ "preset": preset }))
        .await
        .unwrap();
    assert_eq!(
        plant.invoke("GetStatus", &Value::Null).await.unwrap()["pan"],
        0.25
    );

    // This camera forgets no presets, and says so in a fault with the status 200.
    let refused = plant
        .invoke("RemovePreset", &json!({ "preset": preset }))
        .await
        .unwrap_err();
    assert_eq!(refused.code, CommandErrorCode::DeviceFailed);
    assert!(refused.message.contains("Action not supported"), "{refused}");
}

#[tokio::test]
async fn a_movement_ends_although_the_camera_ignores_when() {
    let mut plant = Plant::start().await;
    let setup = Setup::new();
    let mut camera = setup.start(&plant).await;
    plant.dial(&setup.address(), Some("secret"), fallback()).await;
    plant
        .watch(&["ContinuousMove", "Stop", "GetStatus"], json!({}))
        .await;
    plant.camera_is("Healthy").await;

    plant
        .invoke("ContinuousMove", &json!({ "pan": -0.05, "seconds": 60 }))
        .await
        .unwrap();
    let pan = async || plant_pan(&mut plant).await;
    let at = eventually(pan, |pan| *pan < 0.0).await;
    assert!(at < 0.0, "the head does not move");
    plant.invoke("Stop", &Value::Null).await.unwrap();
    let stopped = plant_pan(&mut plant).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(plant_pan(&mut plant).await, stopped, "the head did not stop");

    plant
        .invoke("ContinuousMove", &json!({ "pan": 0.05, "seconds": 0.5 }))
        .await
        .unwrap();
    drop(camera.lines());
    // Nobody says Stop; three readings in a row tell that it came to rest before its end at 1.
    let mut last = [f64::NAN; 3];
    let rest = async || {
        last.rotate_left(1);
        last[2] = plant_pan(&mut plant).await;
        last
    };
    let at_rest = |[a, b, c]: &[f64; 3]| a == b && b == c;
    let last = eventually(rest, at_rest).await;
    assert!(at_rest(&last) && last[2] > stopped && last[2] < 1.0, "{last:?}");
}

async fn plant_pan(plant: &mut Plant) -> f64 {
    let status = plant.invoke("GetStatus", &Value::Null).await.unwrap();
    status["pan"].as_f64().unwrap()
}

#[tokio::test]
async fn a_clock_that_is_an_hour_off_is_learned_from_the_refusal() {
    for clock in ["-3600s", "+3600s"] {
        let mut plant = Plant::start().await;
        let setup = Setup {
            clock: Some(clock),
            ..Setup::new()
        };
        let _camera = setup.start(&plant).await;
        plant.dial(&setup.address(), Some("secret"), fallback()).await;
        plant.watch(&["GetSystemDateAndTime"], door()).await;
        plant.camera_is("Healthy").await;
        let picture = plant.next("view").await;
        let captured: Timestamp = picture
            .user_property(property::CAPTURED_AT)
            .unwrap()
            .parse()
            .unwrap();
        let off = captured.duration_since(Timestamp::now()).abs();
        assert!(
            off < SignedDuration::from_mins(10),
            "a picture has our time, not the camera's: {captured}"
        );
        plant.invoke("GetSystemDateAndTime", &Value::Null).await.unwrap();
    }
}

#[tokio::test]
async fn a_clock_that_is_set_while_the_link_stands_is_learned_anew() {
    let mut plant = Plant::start().await;
    let setup = Setup::new();
    let mut camera = setup.start(&plant).await;
    // So patient that the link outlives the camera's restart.
    plant
        .dial(
            &setup.address(),
            Some("secret"),
            json!({ "usernameTokenFallback": true, "keepAliveInterval": "1h" }),
        )
        .await;
    plant.watch(&["GetStatus"], json!({})).await;
    plant.camera_is("Healthy").await;
    plant.invoke("GetStatus", &Value::Null).await.unwrap();
    camera.kill();
    let _camera = Setup {
        clock: Some("+2h"),
        ..setup
    }
    .start(&plant)
    .await;
    plant.invoke("GetStatus", &Value::Null).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_said_clearly_and_not_tried_again_and_again() {
    let mut plant = Plant::start().await;
    let setup = Setup::new();
    let mut camera = setup.start(&plant).await;
    plant.dial(&setup.address(), Some("guess"), fallback()).await;
    plant.watch(&[], door()).await;
    let message = plant.camera_is("AuthenticationFailed").await;
    assert!(message.contains("refused the credentials"), "{message}");
    // Long enough for dozens of tries at the pace of other troubles.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let refused = camera
        .lines()
        .iter()
        .filter(|line| line.ends_with(" 401"))
        .count();
    assert!((1..=3).contains(&refused), "{refused} refused requests");

    // The right one is taken at once when the Secret has it.
    plant.dial(&setup.address(), Some("secret"), fallback()).await;
    plant.camera_is("Healthy").await;
    plant.next("view").await;
}

#[tokio::test]
async fn a_token_is_sent_only_where_the_manifest_allows_it() {
    let mut plant = Plant::start().await;
    let setup = Setup::new();
    let mut camera = setup.start(&plant).await;
    plant.dial(&setup.address(), Some("secret"), json!({})).await;
    plant.watch(&[], door()).await;
    plant.camera_is("AuthenticationFailed").await;
    let requests = camera.lines();
    assert_eq!(
        requests,
        ["POST /onvif/device_service 401"],
        "one request, without credentials"
    );
}

#[tokio::test]
async fn pictures_flow_again_after_the_camera_was_killed_and_after_it_was_unplugged() {
    let mut plant = Plant::start().await;
    let setup = Setup::new();
    let mut camera = setup.start(&plant).await;
    plant.dial(&setup.address(), Some("secret"), fallback()).await;
    plant.watch(&["GetStatus"], door()).await;
    plant.camera_is("Healthy").await;
    plant.next("view").await;

    camera.kill();
    let message = plant.camera_is("Unreachable").await;
    assert!(message.contains("refused"), "{message}");
    let camera = setup.start(&plant).await;
    plant.camera_is("Healthy").await;
    plant.next("view").await;

    // A camera without power still has its place in the network's tables: nothing is refused, nothing answers.
    signal(&camera, "-STOP");
    plant.camera_is("Unreachable").await;
    signal(&camera, "-CONT");
    plant.camera_is("Healthy").await;
    plant.next("view").await;
    plant.invoke("GetStatus", &Value::Null).await.unwrap();
}
