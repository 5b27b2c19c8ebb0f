//! Starts that can't go well, and devices that let nobody in.

use std::{net::TcpListener, rc::Rc};

use crate::{
    plant::{Plant, SOON, START, TELEMETRY, foreshore},
    site::Site,
};

#[test]
fn a_data_directory_serves_one_process() {
    let mut plant = Plant::start();
    plant.wait_until_delivered(TELEMETRY, 1, START);
    let second = foreshore()
        .arg("up")
        .arg(&plant.manifests.0)
        .arg("--data")
        .arg(plant.data())
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        !second.status.success() && why.contains("in use by another foreshore"),
        "{why}"
    );
    plant.end_balanced();
}

/// Other programs listen on the ports of the broker and of the cloud's API. Everything else runs; the status names the
/// ports; when those programs end, the listeners open by themselves.
#[test]
fn a_port_in_use_is_named_and_taken_when_it_is_free() {
    let site = Rc::new(Site::new());
    let manifests = site.example("manifests");
    let mqtt = TcpListener::bind(("127.0.0.1", site.ports.mqtt)).unwrap();
    let http = TcpListener::bind(("127.0.0.1", site.ports.http)).unwrap();
    let mut plant = Plant::at(&site, &manifests, "data", &[]);
    for (kind, name, port) in [
        ("Broker", "broker", site.ports.mqtt),
        ("Cloud", "cloud", site.ports.http),
    ] {
        plant.wait_until(&format!("the port of the {kind} is told"), START, || {
            let object = plant.object(kind, name);
            object["ready"] == "False"
                && object["reason"] == "PortInUse"
                && object["message"]
                    .as_str()
                    .is_some_and(|told| told.contains(&port.to_string()))
                && object["next"].is_string()
        });
    }
    // Roles speak to the broker on a listener of their own.
    plant.wait_until_flowing("dataflow/bottling/archive->archive");
    drop((mqtt, http));
    for (kind, name) in [("Broker", "broker"), ("Cloud", "cloud")] {
        plant.wait_until(&format!("the {kind} has its port"), START, || {
            let object = plant.object(kind, name);
            object["ready"] == "True" && object["healthy"] == "True"
        });
    }
    plant.wait_until_flowing(TELEMETRY);
    plant.end_balanced();
}

/// A server whose certificate nobody vouches for, and a camera with another password: each is told as what it is, and
/// works as soon as the manifest is mended.
#[test]
fn a_device_that_is_not_trusted_or_does_not_let_us_in_says_so() {
    let mut plant = Plant::with(|manifests| {
        manifests.edit("line.yaml", "acceptUntrusted: true", "acceptUntrusted: false");
        manifests.write(
            "wrong.yaml",
            "apiVersion: v1\nkind: Secret\nmetadata: {name: wrong, namespace: bottling}\n\
             stringData: {username: foreshore, password: not-the-password}\n",
        );
        manifests.edit("camera.yaml", "name: camera-1-user", "name: wrong");
    });
    let told = |name: &str, reason: &str| {
        plant.wait_until(&format!("{name}: {reason}"), START, || {
            let device = plant.object("Device", name);
            device["healthy"] == "False"
                && device["reason"] == reason
                && device["evidence"].is_string()
                && device["next"].is_string()
        });
    };
    told("line-1", "CertificateUntrusted");
    told("camera-1", "AuthenticationFailed");
    plant
        .manifests
        .edit("line.yaml", "acceptUntrusted: false", "acceptUntrusted: true");
    plant
        .manifests
        .edit("line.yaml", "name: line-1-user", "name: wrong");
    plant
        .manifests
        .edit("camera.yaml", "name: wrong", "name: camera-1-user");
    told("line-1", "AuthenticationFailed");
    plant
        .manifests
        .edit("line.yaml", "name: wrong", "name: line-1-user");
    for name in ["line-1", "camera-1"] {
        plant.wait_until(&format!("{name} is healthy"), START, || {
            plant.object("Device", name)["healthy"] == "True"
        });
    }
    plant.wait_until("no password in the log", SOON, || {
        !plant.log().contains("not-the-password")
    });
    plant.wait_until_flowing(TELEMETRY);
    plant.end_balanced();
}
