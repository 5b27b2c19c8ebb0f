//! oxvif's mock camera: looks for the operation in the content type alone, leaves its events out of `GetServices`, answers
//! pulls at once, tells faults with the status 200, grants pull points no time, and takes pictures as bitmaps.

use std::process::Command;

use foreshore_peers::{Program, free_port, oxvif_camera};
use foreshore_record::{CommandErrorCode, Record, property};
use serde_json::{Value, json};

use crate::plant::{Plant, eventually, size_of};

/// Starts the camera; its port.
pub(crate) async fn start(plant: &Plant) -> (u16, Program) {
    let (port, state) = (free_port(), plant.directory().join("camera.toml"));
    let start = move || {
        let mut command = Command::new(oxvif_camera());
        command.arg(port.to_string()).arg("--config").arg(state);
        Program::start(command, "listening on")
    };
    (port, tokio::task::spawn_blocking(start).await.unwrap())
}

fn address(port: u16) -> String {
    format!("http://127.0.0.1:{port}/onvif/device")
}

/// Asks the camera for something that no ONVIF client can: a fault, or an input to be switched.
async fn tell(port: u16, path: &str) {
    let answer = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = answer
        .post(format!("http://127.0.0.1:{port}{path}"))
        .send()
        .await
        .unwrap();
    assert!(answer.status().is_success(), "{path}: {answer:?}");
}

fn motion() -> Value {
    json!({ "eventGroups": [{ "name": "alarms", "events": [
        { "name": "motion", "address": "tns1:VideoSource/MotionAlarm" },
        { "name": "rules", "address": "tns1:RuleEngine//." },
        { "name": "input", "address": "tns1:Device/Trigger/DigitalInput", "onvif": { "source": { "InputToken": "DigitalInput_1" } } },
        { "name": "other-input", "address": "tns1:Device/Trigger/DigitalInput", "onvif": { "source": { "InputToken": "DigitalInput_2" } } },
    ]}]})
}

fn body(event: &Record) -> Value {
    serde_json::from_slice(&event.payload).unwrap()
}

#[tokio::test]
async fn events_come_although_only_one_list_of_services_names_them() {
    let mut plant = Plant::start().await;
    let (port, _camera) = start(&plant).await;
    plant.dial(&address(port), None, json!({})).await;
    plant.watch(&[], motion()).await;
    plant.camera_is("Healthy").await;
    plant.part_is("Event alarms/motion", "Healthy").await;

    let alarm = plant.next("alarms/motion").await;
    assert_eq!(alarm.properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(alarm.user_property(property::CE_TYPE), Some(property::TYPE_EVENT));
    let alarm = body(&alarm);
    assert_eq!(alarm["Topic"], "tns1:VideoSource/MotionAlarm");
    assert_eq!(alarm["PropertyOperation"], "Changed");
    assert_eq!(alarm["Source"], json!({ "VideoSourceToken": "VS_1" }));
    assert!(
        alarm["Data"]["IsMotion"].is_boolean() && alarm["Data"]["Seq"].is_u64(),
        "{alarm}"
    );
    let rule = body(&plant.next("alarms/rules").await);
    assert_eq!(rule["Topic"], "tns1:RuleEngine/FieldDetector/ObjectsInside");

    tell(port, "/mock/digital-input/DigitalInput_1/pulse").await;
    let switched = |state: bool| move |event: &Record| body(event)["Data"]["LogicalState"] == state;
    let seen = async || plant.messages("alarms/input").len();
    eventually(seen, |count| *count >= 2).await;
    let inputs = plant.messages("alarms/input");
    assert!(
        inputs.iter().any(switched(true)) && inputs.iter().any(switched(false)),
        "{inputs:?}"
    );
    assert!(
        plant.messages("alarms/other-input").is_empty(),
        "another source's events"
    );
}

#[tokio::test]
async fn a_lost_pull_point_is_made_anew_and_its_gap_counted() {
    let mut plant = Plant::start().await;
    let (port, _camera) = start(&plant).await;
    tell(port, "/admin/inject_fault?action=CreatePullPointSubscriptionRequest&code=ter:MaxPullPoints&reason=no%20place").await;
    plant.dial(&address(port), None, json!({})).await;
    plant.watch(&[], motion()).await;
    // There is no place for us at first, and one later.
    let seen = plant.part_is("Event alarms/motion", "ProtocolError").await;
    assert!(seen.contains("no place"), "{seen}");
    plant.part_is("Event alarms/motion", "Healthy").await;
    plant.next("alarms/motion").await;
    assert_eq!(gaps(&plant), 0);

    tell(
        port,
        "/admin/inject_fault?action=PullMessagesRequest&code=wsnt:ResourceUnknownFault&reason=gone",
    )
    .await;
    let counted = async || gaps(&plant);
    assert!(eventually(counted, |gaps| *gaps > 0).await > 0);
    plant.next("alarms/motion").await;
}

fn gaps(plant: &Plant) -> u64 {
    let report = plant
        .harness
        .reports
        .report("Asset", "door", "Event alarms/motion");
    let counters = report.unwrap().counters;
    counters.get("gaps").copied().unwrap_or_default()
}

#[tokio::test]
async fn a_bitmap_is_a_bitmap_whatever_its_address_says() {
    let mut plant = Plant::start().await;
    let (port, _camera) = start(&plant).await;
    plant.dial(&address(port), None, json!({})).await;
    plant
        .watch(
            &["GetSnapshotUri"],
            json!({ "streams": [{ "name": "view", "snapshot": { "interval": "200ms" } }] }),
        )
        .await;
    plant.camera_is("Healthy").await;
    let uri = plant.invoke("GetSnapshotUri", &Value::Null).await.unwrap();
    assert!(uri["uri"].as_str().unwrap().ends_with(".jpg"), "{uri}");
    let picture = plant.next("view").await;
    assert!(picture.payload.starts_with(b"BM"));
    assert_eq!(picture.properties.content_type.as_deref(), Some("image/bmp"));
    assert_eq!(size_of(&picture), (640, 360));
}

#[tokio::test]
async fn head_picture_and_relays_obey_and_faults_are_told() {
    let mut plant = Plant::start().await;
    let (port, _camera) = start(&plant).await;
    plant.dial(&address(port), None, json!({})).await;
    let operations = [
        "AbsoluteMove",
        "ContinuousMove",
        "GetStatus",
        "GetPresets",
        "SetPreset",
        "GotoPreset",
        "RemovePreset",
        "SetHomePosition",
        "GotoHomePosition",
        "SendAuxiliaryCommand",
        "GetImagingSettings",
        "SetImagingSettings",
        "SetRelayOutputState",
        "GetProfiles",
        "GetStreamUri",
    ];
    plant.watch(&operations, json!({})).await;
    plant.camera_is("Healthy").await;

    plant
        .invoke("AbsoluteMove", &json!({ "pan": 0.5, "tilt": -0.25, "zoom": 0.5 }))
        .await
        .unwrap();
    plant.invoke("SetHomePosition", &Value::Null).await.unwrap();
    let preset = plant
        .invoke("SetPreset", &json!({ "name": "gate & <door>" }))
        .await
        .unwrap();
    plant
        .invoke("AbsoluteMove", &json!({ "pan": 0.0, "tilt": 0.0 }))
        .await
        .unwrap();
    for back in ["GotoPreset", "GotoHomePosition"] {
        let input = if back == "GotoPreset" {
            preset.clone()
        } else {
            Value::Null
        };
        plant.invoke(back, &input).await.unwrap();
        let at = plant.invoke("GetStatus", &Value::Null).await.unwrap();
        assert_eq!((&at["pan"], &at["tilt"]), (&json!(0.5), &json!(-0.25)), "{back}");
    }
    let named = json!({ "preset": preset["preset"], "name": "gate & <door>" });
    let presets = plant.invoke("GetPresets", &Value::Null).await.unwrap();
    assert!(
        presets["presets"].as_array().unwrap().contains(&named),
        "{presets}"
    );
    plant.invoke("RemovePreset", &preset).await.unwrap();
    let presets = plant.invoke("GetPresets", &Value::Null).await.unwrap();
    assert!(
        !presets["presets"].as_array().unwrap().contains(&named),
        "{presets}"
    );

    // It knows the command, and then says that it has no wiper.
    let wiper = json!({ "command": "tt:Wiper|On" });
    let refused = plant.invoke("SendAuxiliaryCommand", &wiper).await.unwrap_err();
    assert_eq!(refused.code, CommandErrorCode::DeviceFailed);
    assert_eq!(refused.device_status.as_deref(), Some("mock:UnmodeledEffect"));
    plant
        .invoke(
            "SetImagingSettings",
            &json!({ "brightness": 25, "irCutFilter": "ON" }),
        )
        .await
        .unwrap();
    let settings = plant.invoke("GetImagingSettings", &Value::Null).await.unwrap();
    let settings = &settings["ImagingSettings"];
    assert_eq!(
        (&settings["Brightness"], &settings["IrCutFilter"]),
        (&json!("25"), &json!("ON"))
    );
    let relay = json!({ "relay": "RelayOutput_1", "active": true });
    plant.invoke("SetRelayOutputState", &relay).await.unwrap();
    let uri = plant.invoke("GetStreamUri", &Value::Null).await.unwrap();
    assert!(uri["uri"].as_str().unwrap().starts_with("rtsp://"), "{uri}");

    tell(
        port,
        "/admin/inject_fault?action=GotoPreset&code=ter:Busy&reason=tour%20is%20running",
    )
    .await;
    let refused = plant
        .invoke("GotoPreset", &json!({ "preset": "Preset_1" }))
        .await
        .unwrap_err();
    assert_eq!(refused.device_status.as_deref(), Some("ter:Busy"));
    assert!(refused.message.contains("tour is running"), "{refused}");
}

#[tokio::test]
async fn the_camera_keeps_no_pull_point_of_ours_when_nobody_wants_events() {
    let mut plant = Plant::start().await;
    let (port, _camera) = start(&plant).await;
    // Faults wait in a row, each for one Unsubscribe: when ours comes, the one that the test sends gets a later one.
    let fault = async |number: u32| {
        let path =
            format!("/admin/inject_fault?action=UnsubscribeRequest&code=ter:Busy&reason=number-{number}-");
        tell(port, &path).await;
    };
    fault(0).await;
    plant.dial(&address(port), None, json!({})).await;
    plant.watch(&[], motion()).await;
    plant.part_is("Event alarms/motion", "Healthy").await;
    plant.watch(&[], json!({})).await;
    let mut round = 0;
    let ours_came = async || {
        fault(round + 1).await;
        let answer = unsubscribe(port).await;
        round += 1;
        answer.contains(&format!("number-{round}-"))
    };
    assert!(
        eventually(ours_came, |came| *came).await,
        "the connector sent no Unsubscribe"
    );
}

async fn unsubscribe(port: u16) -> String {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let action = "http://docs.oasis-open.org/wsn/bw-2/SubscriptionManager/UnsubscribeRequest";
    let request = client
        .post(format!("http://127.0.0.1:{port}/onvif/events/subscription_1"))
        .header(
            "content-type",
            format!("application/soap+xml; action=\"{action}\""),
        )
        .body("<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"><s:Body/></s:Envelope>");
    request.send().await.unwrap().text().await.unwrap()
}
