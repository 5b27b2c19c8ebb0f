//! The simulated camera before the eyes of a client that others wrote: onvif-zeep-async (PyPI), which Home Assistant uses.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    time::Duration,
};

use foreshore_peers::{Program, python, script};
use foreshore_sim::{
    camera::{Accepted, Options, Service},
    line::Line,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Starts a camera that knows `admin` with the password `secret`, and moves something twice a second.
async fn camera(accepted: Accepted, clock_skew_millis: i64) -> (u16, DropGuard) {
    let options = Options {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        host: None,
        seed: 1,
        user: Some(("admin".to_owned(), "secret".to_owned())),
        accepted,
        clock_skew_millis,
        motion_interval: Duration::from_millis(500),
        size: (320, 180),
    };
    let line = Arc::new(Mutex::new(Line::new(1)));
    let (service, listener) = Service::bind(options, line).await.unwrap();
    let (port, shutdown) = (service.handle().address().port(), CancellationToken::new());
    tokio::spawn(service.run(listener, shutdown.clone()));
    (port, shutdown.drop_guard())
}

/// What the client found.
async fn judge(port: u16, arguments: &'static [&str]) -> Value {
    let run = move || {
        let mut command = Command::new(python());
        command
            .arg(script("onvif_client.py"))
            .args(["--port", &port.to_string()])
            .args(arguments);
        let mut client = Program::start(command, "starting");
        client.wait_for("judged ", Duration::from_secs(120))
    };
    let line = tokio::task::spawn_blocking(run).await.unwrap();
    let (_, found) = line.split_once("judged ").unwrap();
    serde_json::from_str(found).unwrap()
}

#[tokio::test]
async fn every_answer_is_valid_by_the_schemas_and_says_what_happened() {
    let (port, _camera) = camera(Accepted::Both, 0).await;
    let found = judge(port, &["--adjust-time"]).await;
    assert_eq!(found["invalid"], json!([]), "{found:#}");
    assert!(found["answers"].as_u64() > Some(40), "{found:#}");
    let expected = json!({
        "model": "Simulated camera",
        "services": [
            "http://www.onvif.org/ver10/device/wsdl",
            "http://www.onvif.org/ver10/events/wsdl",
            "http://www.onvif.org/ver10/media/wsdl",
            "http://www.onvif.org/ver20/ptz/wsdl",
        ],
        "profile": "profile_1",
        "encoding": "JPEG",
        "picture": "ffd8",
        "unknown profile": ["NoProfile"],
        "unknown operation": ["ActionNotSupported"],
        "absolute": [0.5, -0.5, 0.25],
        "relative": [0.25, -0.25, 0.5],
        "home": [0.0, 0.0, 0.0],
        "preset": [0.25, -0.25, 0.5],
        "preset name": "gate & <door>",
        "moving": "MOVING",
        "stopped": true,
        "timed out": true,
        "unknown preset": ["NoToken"],
        "topics": ["VideoSource"],
        "topic": "tns1:VideoSource/MotionAlarm",
        "first": "Initialized",
        "changed": ["Changed", "Changed"],
        "lifetime": 120,
        "after the end": ["ResourceUnknownFault"],
        "lost": false,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&found[name], value, "{name}: {found:#}");
    }
}

#[tokio::test]
async fn a_wrong_password_opens_nothing() {
    for accepted in [Accepted::Both, Accepted::UsernameToken] {
        let (port, _camera) = camera(accepted, 0).await;
        let found = judge(port, &["--only", "login", "--password", "guess"]).await;
        assert_eq!(
            found,
            json!({ "services": ["NotAuthorized"], "picture": "refused" })
        );
        let found = judge(port, &["--only", "login"]).await;
        assert_eq!(found, json!({ "services": "ok", "picture": "ffd8" }));
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_told_and_held_to() {
    for skew in [-3_600_000, 3_600_000] {
        let (port, _camera) = camera(Accepted::UsernameToken, skew).await;
        let found = judge(port, &["--only", "login"]).await;
        assert_eq!(
            found["services"],
            json!(["NotAuthorized"]),
            "a token of another hour"
        );
        let found = judge(port, &["--only", "login", "--adjust-time"]).await;
        assert_eq!(found["services"], "ok");
    }
}
