//! Cameras that send anything but what they were asked for: bounded, survived, and told clearly.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use foreshore_record::property;
use serde_json::json;

use crate::{
    plant::Plant,
    scripted::{Answer, Camera, PICTURE, envelope},
};

fn door() -> serde_json::Value {
    json!({
        "streams": [{ "name": "view", "snapshot": { "interval": "100ms", "maxSize": "64Ki" } }],
        "eventGroups": [{ "name": "alarms", "events": [{ "name": "motion", "address": "tns1:VideoSource/MotionAlarm" }] }],
    })
}

fn xml(body: impl Into<Vec<u8>>) -> Answer {
    Answer::Http(200, "application/soap+xml", String::new(), body.into())
}

/// Answers to any operation, and what the device's condition says of each.
fn nonsense() -> Vec<(&'static str, Answer, &'static str)> {
    let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaaaa\">\
        <!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;\"><!ENTITY c \"&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;\">]>\
        <Envelope><Body><Fault><faultcode>bomb</faultcode><faultstring>&c;&c;tick</faultstring></Fault></Body></Envelope>";
    let external = "<!DOCTYPE x [<!ENTITY f SYSTEM \"file:///etc/passwd\">]>\
        <Envelope><Body><Fault><faultcode>file</faultcode><faultstring>[&f;]</faultstring></Fault></Body></Envelope>";
    let long = format!(
        "<Envelope><Body><Fault><faultcode>long</faultcode><faultstring>{}</faultstring></Fault></Body></Envelope>",
        "a ".repeat(1_000_000)
    );
    let page = |status| {
        Answer::Http(
            status,
            "text/html",
            String::new(),
            b"<html><body><h1>Login".to_vec(),
        )
    };
    let redirect = Answer::Http(
        302,
        "text/html",
        "location: /onvif/device_service\r\n".to_owned(),
        Vec::new(),
    );
    vec![
        ("a cut envelope", xml("<Envelope><Body><R><a>"), "ends early"),
        (
            "crossed elements",
            xml("<Envelope><Body></Envelope></Body>"),
            "can't be read",
        ),
        ("depth", xml("<a>".repeat(200_000)), "more than 64 levels"),
        (
            "many elements",
            xml(format!("<E><Body>{}", "<a/>".repeat(900_000))),
            "100000 elements",
        ),
        (
            "many attributes",
            xml(format!("<E {}>", "a='' ".repeat(800_000))),
            "100000 elements and attributes",
        ),
        ("megabytes", xml(vec![b' '; 5 << 20]), "larger than 4194304 bytes"),
        ("an entity bomb", xml(bomb), "fault bomb: tick"),
        ("an external entity", xml(external), "fault file: []"),
        ("a long fault", xml(long), "fault long: a a a"),
        ("nothing", xml(""), "can't be read"),
        ("bytes", xml((0..=255).collect::<Vec<u8>>()), "can't be read"),
        (
            "UTF-16",
            xml("<E/>"
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect::<Vec<u8>>()),
            "can't be read",
        ),
        (
            "no body",
            xml("<Envelope/>"),
            "\"application/soap+xml\" instead of a SOAP envelope",
        ),
        (
            "a login page",
            page(200),
            "\"text/html\" instead of a SOAP envelope",
        ),
        ("an error page", page(500), "HTTP status 500"),
        (
            "a redirection to itself",
            redirect,
            "a redirection to \"/onvif/device_service\"",
        ),
        (
            "another protocol",
            Answer::Raw(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec()),
            "does not answer",
        ),
        (
            "a broken length",
            Answer::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".to_vec()),
            "does not answer",
        ),
        (
            "half a body",
            Answer::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n<E>".to_vec()),
            "does not answer",
        ),
        (
            "many headers",
            Answer::Raw(format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(100_000)).into_bytes()),
            "does not answer",
        ),
        ("an endless answer", Answer::Endless, "larger than 4194304 bytes"),
        ("a slow answer", Answer::Drip, "does not answer"),
    ]
}

#[tokio::test]
async fn nonsense_instead_of_an_envelope_is_told_and_survived() {
    let camera = Camera::start().await;
    let mut plant = Plant::start().await;
    plant.watch(&[], door()).await;
    for (index, (name, answer, expected)) in nonsense().into_iter().enumerate() {
        camera.behave();
        camera.answer("POST ", answer);
        // Another plan makes another link.
        let settings = json!({ "requestTimeout": "1s", "events": { "messageLimit": index + 1 } });
        plant.dial(&camera.address(), None, settings).await;
        let seen = plant.camera_says(expected).await;
        assert!(seen.len() < 1_000, "{name}: {} bytes of evidence", seen.len());
        // It needs no hand to go on.
        camera.behave();
        plant.camera_is("Healthy").await;
        plant.next("view").await;
    }
    // What was sent beyond the limit is what the network holds.
    assert!(camera.sent.load(Ordering::Relaxed) < 64 << 20);
}

#[tokio::test]
async fn what_becomes_something_else_than_a_camera_is_left_and_found_again() {
    let camera = Camera::start().await;
    let mut plant = Plant::start().await;
    plant.dial(&camera.address(), None, json!({})).await;
    plant.camera_is("Healthy").await;
    let page = b"<html><h1>Welcome to the hotel".to_vec();
    camera.answer("POST ", Answer::Http(200, "text/html", String::new(), page));
    let seen = plant.camera_is("ProtocolError").await;
    assert!(
        seen.contains("\"text/html\" instead of a SOAP envelope"),
        "{seen}"
    );
    camera.behave();
    plant.camera_is("Healthy").await;
}

#[tokio::test]
async fn nonsense_instead_of_a_picture_is_told_and_survived() {
    let page =
        |status, headers: &str| Answer::Http(status, "text/html", headers.to_owned(), b"<html>".to_vec());
    let short = Answer::Raw([b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", PICTURE].concat());
    let table = [
        ("an endless picture", Answer::Endless, "larger than 65536 bytes"),
        ("a slow picture", Answer::Drip, "does not answer"),
        (
            "a login page",
            page(200, ""),
            "\"text/html\" instead of a picture",
        ),
        ("no such page", page(404, ""), "HTTP status 404"),
        (
            "a redirection to itself",
            page(302, "location: /picture.jpg\r\n"),
            "a redirection to \"/picture.jpg\"",
        ),
        ("a cut picture", short, "does not answer"),
        (
            "nothing",
            Answer::Http(200, "image/jpeg", String::new(), Vec::new()),
            "\"image/jpeg\" instead of a picture",
        ),
    ];
    let camera = Camera::start().await;
    let mut plant = Plant::start().await;
    plant.watch(&[], door()).await;
    plant
        .dial(
            &camera.address(),
            None,
            json!({ "snapshots": { "timeout": "1s" } }),
        )
        .await;
    plant.next("view").await;
    for (name, answer, expected) in table {
        camera.answer("GET ", answer);
        let seen = plant.part_says("Stream view", expected).await;
        assert!(seen.len() < 1_000, "{name}: {seen}");
        camera.behave();
        plant.part_is("Stream view", "Healthy").await;
    }
    for picture in plant.messages("view") {
        assert_eq!(
            picture.payload, PICTURE,
            "something else than a picture was published"
        );
        assert_eq!(picture.user_property(property::WIDTH), Some("640"));
    }
    assert!(
        camera.sent.load(Ordering::Relaxed) < 16 << 20,
        "an endless picture was read on"
    );
}

#[tokio::test]
async fn nonsense_instead_of_events_is_told_and_survived() {
    let camera = Camera::start().await;
    let mut plant = Plant::start().await;
    plant.watch(&[], door()).await;
    plant
        .dial(
            &camera.address(),
            None,
            json!({ "requestTimeout": "1s", "events": { "pullTimeout": "1s" } }),
        )
        .await;
    plant.next("alarms/motion").await;
    let creation: [(&str, Answer, &str); 3] = [
        ("no address", envelope("<R/>"), "address of the pull point"),
        (
            "no URL",
            envelope("<R><SubscriptionReference><Address>here</Address></SubscriptionReference></R>"),
            "here",
        ),
        ("a cut envelope", xml("<Envelope><Body>"), "ends early"),
    ];
    for (name, answer, expected) in creation {
        camera.answer("<CreatePullPointSubscription ", answer);
        camera.answer("<PullMessages ", Answer::Drip);
        let seen = plant.part_says("Event alarms/motion", expected).await;
        assert!(seen.len() < 1_000, "{name}: {seen}");
        camera.behave();
        plant.part_is("Event alarms/motion", "Healthy").await;
        plant.next("alarms/motion").await;
    }
    // Messages without what makes them messages are passed over; those beside them count.
    let mixed = "<R><NotificationMessage/><NotificationMessage><Topic/></NotificationMessage>\
        <NotificationMessage><Topic>tns1:VideoSource/MotionAlarm</Topic><Message><Message UtcTime=\"yesterday\">\
        <Data><SimpleItem/><SimpleItem Name=\"State\" Value=\"mixed\"/></Data></Message></Message></NotificationMessage></R>";
    camera.answer("<PullMessages ", envelope(mixed));
    let event = plant
        .next_that("alarms/motion", |event| {
            String::from_utf8_lossy(&event.payload).contains("mixed")
        })
        .await;
    let body: serde_json::Value = serde_json::from_slice(&event.payload).unwrap();
    assert_eq!(body["Data"], json!({ "State": "mixed" }));
}

#[tokio::test]
async fn a_camera_that_answers_pulls_at_once_is_not_asked_without_a_pause() {
    let camera = Camera::start().await;
    let mut plant = Plant::start().await;
    let events = json!({ "eventGroups": door()["eventGroups"] });
    plant.watch(&[], events).await;
    plant.dial(&camera.address(), None, json!({})).await;
    plant.part_is("Event alarms/motion", "Healthy").await;
    // Ten a second with messages, one a second without; and the question whether the camera is there.
    for (empty, rate) in [(false, 11.0), (true, 2.0)] {
        if empty {
            camera.answer("<PullMessages ", envelope("<R/>"));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let (before, begin) = (camera.requests.load(Ordering::Relaxed), Instant::now());
        tokio::time::sleep(Duration::from_secs(3)).await;
        let asked = camera.requests.load(Ordering::Relaxed) - before;
        let allowed = 2.0 * rate * begin.elapsed().as_secs_f64() + 2.0;
        assert!((asked as f64) < allowed, "{asked} requests; empty: {empty}");
    }
}

#[tokio::test]
async fn media1_serves_where_media2_is_only_listed() {
    let camera = Camera::start().await;
    let service = |version: &str| {
        let namespace = format!("http://www.onvif.org/{version}/media/wsdl");
        let address = format!("http://127.0.0.1:{}/{version}", camera.port);
        format!("<Service><Namespace>{namespace}</Namespace><XAddr>{address}</XAddr></Service>")
    };
    let services = format!("<R>{}{}</R>", service("ver20"), service("ver10"));
    camera.answer("<GetServices ", envelope(&services));
    camera.answer(
        "POST /ver20",
        Answer::Http(404, "text/html", String::new(), Vec::new()),
    );
    let mut plant = Plant::start().await;
    plant
        .watch(&["GetProfiles"], json!({ "streams": door()["streams"] }))
        .await;
    plant.dial(&camera.address(), None, json!({})).await;
    plant.camera_is("Healthy").await;
    plant.next("view").await;
    let profiles = plant.invoke("GetProfiles", &json!(null)).await.unwrap();
    assert_eq!(profiles["profiles"][0]["profile"], "p");
}

#[tokio::test]
async fn credentials_are_shown_to_no_other_host() {
    let (camera, thief) = (Camera::start().await, Camera::start_with("127.0.0.2", None).await);
    let elsewhere = format!("http://127.0.0.2:{}/", thief.port);
    let mut plant = Plant::start().await;
    plant.watch(&[], door()).await;
    let fallback = json!({ "usernameTokenFallback": true });

    let media = "http://www.onvif.org/ver10/media/wsdl";
    let services = format!("<Service><Namespace>{media}</Namespace><XAddr>{elsewhere}</XAddr></Service>");
    camera.answer("<GetServices ", envelope(&format!("<R>{services}</R>")));
    plant
        .dial(&camera.address(), Some("secret"), fallback.clone())
        .await;
    plant.camera_is("Unreachable").await;

    camera.behave();
    camera.answer(
        "<GetSnapshotUri ",
        envelope(&format!("<R><Uri>{elsewhere}</Uri></R>")),
    );
    plant.camera_is("Healthy").await;
    plant.part_is("Stream view", "Unreachable").await;

    let redirect = format!("location: {elsewhere}\r\n");
    camera.answer(
        "<GetDeviceInformation ",
        Answer::Http(307, "text/html", redirect, Vec::new()),
    );
    plant.dial(&camera.address(), Some("another"), fallback).await;
    plant.camera_says("a redirection to").await;
    assert_eq!(thief.requests.load(Ordering::Relaxed), 0);
}
