//! A camera that knows HTTP Digest alone: oxvif's mock behind Debian's lighttpd, which knows RFC 7616 with MD5 and SHA-256.
//!
//! The mock tells its own addresses, past the proxy, as a camera behind a router does; there it would ask for no password.

use std::{fs, path::Path, process::Command};

use foreshore_peers::{Program, free_port};
use serde_json::{Value, json};

use crate::{oxvif, plant::Plant};

/// `admin:cam:secret`, hashed.
const MD5: &str = "f5cda605bdf93c6ea78d1cf1bafda696";
const SHA256: &str = "119d82a480260822adc981c5909ec67a880254b8bd1b5da215bd743db112a347";

/// Starts the proxy; its port.
async fn proxy(directory: &Path, algorithm: &str, camera: u16) -> (u16, Program) {
    let port = free_port();
    let hash = if algorithm == "MD5" { MD5 } else { SHA256 };
    let (users, log) = (directory.join("users"), log_of(directory));
    fs::write(&users, format!("admin:cam:{hash}\n")).unwrap();
    fs::write(&log, "").unwrap();
    let configuration = format!(
        r#"
server.modules = ("mod_auth", "mod_authn_file", "mod_proxy", "mod_accesslog")
server.bind = "127.0.0.1"
server.port = {port}
server.document-root = "{root}"
accesslog.filename = "{log}"
accesslog.format = "%m %U %s %u"
auth.backend = "htdigest"
auth.backend.htdigest.userfile = "{users}"
auth.require = ("/" => ("method" => "digest", "realm" => "cam", "require" => "valid-user", "algorithm" => "{algorithm}"))
proxy.server = ("" => (("host" => "127.0.0.1", "port" => {camera})))
"#,
        root = directory.display(),
        log = log.display(),
        users = users.display(),
    );
    let file = directory.join("lighttpd.conf");
    fs::write(&file, configuration).unwrap();
    let start = move || {
        let mut command = Command::new(program());
        command.arg("-D").arg("-f").arg(file);
        Program::start(command, "server started")
    };
    (port, tokio::task::spawn_blocking(start).await.unwrap())
}

/// Debian puts it where only root's `PATH` looks.
fn program() -> &'static str {
    if Path::new("/usr/sbin/lighttpd").exists() {
        "/usr/sbin/lighttpd"
    } else {
        "lighttpd"
    }
}

fn log_of(directory: &Path) -> std::path::PathBuf {
    directory.join("access.log")
}

async fn digest_only(algorithm: &str) {
    let mut plant = Plant::start().await;
    let (camera, _camera) = oxvif::start(&plant).await;
    let directory = plant.directory();
    let (port, proxy) = proxy(&directory, algorithm, camera).await;
    let address = format!("http://127.0.0.1:{port}/onvif/device");

    // The wrong password first: asked for once, not again and again.
    plant.dial(&address, Some("guess"), json!({})).await;
    let spec = json!({
        "streams": [{ "name": "view", "snapshot": { "interval": "200ms" } }],
        "eventGroups": [{ "name": "alarms", "events": [{ "name": "motion", "address": "tns1:VideoSource/MotionAlarm" }] }],
    });
    plant.watch(&["GetStatus"], spec).await;
    plant.camera_is("AuthenticationFailed").await;

    plant.dial(&address, Some("secret"), json!({})).await;
    plant.camera_is("Healthy").await;
    plant.next("view").await;
    plant.next("alarms/motion").await;
    plant.invoke("GetStatus", &Value::Null).await.unwrap();
    for _ in 0..5 {
        plant.next("view").await;
    }

    // It writes its log when it ends.
    let id = proxy.id().to_string();
    assert!(Command::new("kill").arg(&id).status().unwrap().success());
    plant.camera_is("Unreachable").await;
    let log = fs::read_to_string(log_of(&directory)).unwrap();
    let count = |line: &str| log.lines().filter(|known| *known == line).count();
    for path in [
        "/onvif/device",
        "/onvif/media2",
        "/onvif/ptz",
        "/onvif/events",
        "/onvif/events/subscription_1",
    ] {
        assert!(
            count(&format!("POST {path} 200 admin")) > 0,
            "{path} was asked past the proxy:\n{log}"
        );
    }
    let pictures = count("GET /mock/snapshot.jpg 200 admin");
    assert!(pictures > 5, "pictures were asked past the proxy:\n{log}");
    // A challenge is used again: one refusal for services, one for pictures, and those of the wrong password.
    let refused = log.lines().filter(|line| line.contains(" 401 ")).count();
    assert!(
        (3..=6).contains(&refused),
        "{refused} requests were refused:\n{log}"
    );
}

#[tokio::test]
async fn digest_with_md5() {
    digest_only("MD5").await;
}

#[tokio::test]
async fn digest_with_sha_256() {
    digest_only("SHA-256").await;
}
