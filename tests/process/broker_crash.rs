//! The broker alone is killed outright, again and again, under everything that it has to keep.

use std::{
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use foreshore_peers::{Program, free_port, python, script};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    plant::{START, foreshore, signal},
    site::{is_full, wait_until},
};

/// Longer than the load waits for what was acknowledged.
const END: Duration = Duration::from_secs(300);

fn start(data: &Path, port: u16) -> Child {
    foreshore()
        .args(["broker", "--anonymous", "--listen", &format!("127.0.0.1:{port}")])
        .arg("--data")
        .arg(data)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Persistent sessions that stay and that come and go, a shared subscription and retained messages, with QoS 1 and 2: at the
/// end everybody has what was acknowledged, nobody has a message of QoS 2 twice, and no session is gone.
#[test]
fn a_broker_that_is_killed_again_and_again_loses_nothing_acknowledged_and_doubles_nothing() {
    let rounds = if is_full() { 200 } else { 12 };
    let seed =
        std::env::var("FORESHORE_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    eprintln!("FORESHORE_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let data = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut broker = start(data.path(), port);
    let mut load = Command::new(python());
    load.arg(script("mqtt_mixed.py")).arg(port.to_string());
    let mut load = Program::start(load, "loading");
    for round in 0..rounds {
        // One in four dies while it starts.
        let life = if round % 4 == 3 { 0..150 } else { 200..1500 };
        sleep(Duration::from_millis(random.random_range(life)));
        broker.kill().unwrap();
        broker.wait().unwrap();
        broker = start(data.path(), port);
    }
    let listens = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    assert!(
        wait_until(START, listens),
        "the broker starts after {rounds} deaths"
    );
    signal(load.id(), "TERM");
    let told: Value = serde_json::from_str(&load.wait_for("missing", END)).unwrap();
    broker.kill().unwrap();
    broker.wait().unwrap();
    eprintln!("{rounds} deaths, acknowledged: {}", told["acknowledged"]);
    for kind in ["one", "two", "retained"] {
        assert!(
            told["acknowledged"][kind]
                .as_u64()
                .is_some_and(|count| count > 100),
            "{told:#}"
        );
    }
    for (wrong, nothing) in [
        ("missing", json!({})),
        ("twice", json!({})),
        ("unanswered", json!({})),
        ("stale", json!([])),
        ("sessions", json!([])),
    ] {
        assert_eq!(told[wrong], nothing, "{wrong}: {told:#}");
    }
}
