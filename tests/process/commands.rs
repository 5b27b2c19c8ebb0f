//! Commands to machines, through the cloud endpoint.

use std::time::Duration;

use crate::{
    plant::{Plant, START, TELEMETRY},
    site::wait_until,
};

#[test]
fn a_command_writes_a_value_and_calls_a_method() {
    let mut plant = Plant::start();
    plant.wait_until_delivered(TELEMETRY, 1, START);
    let called = plant.invoke(
        "bottling/filler",
        "control/set-speed",
        r#"{"BottlesPerMinute":300}"#,
    );
    assert!(called.status.success(), "{called:?}");
    let written = plant.invoke("bottling/filler", "control/write-speed", "275.5");
    assert!(written.status.success(), "{written:?}");
    // The machine shows a new speed with its next scan, like a controller.
    let shown = wait_until(Duration::from_secs(30), || {
        let read = plant.invoke("bottling/filler", "control/read-speed", "null");
        assert!(read.status.success(), "{read:?}");
        String::from_utf8_lossy(&read.stdout).contains("275.5")
    });
    assert!(shown);
    let refused = plant.invoke("bottling/filler", "control/write-speed", "100000");
    let why =
        String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("BadOutOfRange"), "{refused:?}");
    plant.end_balanced();
}
