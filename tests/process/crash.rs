//! The whole process is killed outright, again and again.

use std::{thread::sleep, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    plant::{Plant, START, TELEMETRY},
    publisher::{Load, Publisher},
    site::is_full,
};

/// The dataflow of the numbers.
const NUMBERS: &str = "dataflow/bottling/numbers->cloud";

/// A client publishes as fast as the broker acknowledges, while everything — broker, dataflows, cloud endpoint, connectors —
/// is killed at random moments, some of them in the midst of a start. At the end the cloud holds each number that was
/// acknowledged, and none twice.
#[test]
fn killed_outright_under_load_it_loses_nothing_acknowledged_and_doubles_nothing() {
    let rounds = if is_full() { 20 } else { 4 };
    let seed =
        std::env::var("FORESHORE_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    eprintln!("FORESHORE_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut plant = Plant::with(|manifests| manifests.add_numbers());
    plant.wait_until_delivered(TELEMETRY, 1, START);
    let load = Load { rate: 0, size: 100 };
    let mut publisher = Publisher::start(plant.site.ports.mqtt, "numbers/load", load);
    for round in 0..rounds {
        if round % 4 == 3 {
            // While it starts.
            sleep(Duration::from_millis(random.random_range(0..3000)));
        } else {
            publisher.wait_for(100, START);
            sleep(Duration::from_millis(random.random_range(0..3000)));
        }
        plant.kill();
        plant.restart();
    }
    publisher.wait_for(100, START);
    publisher.finish();
    eprintln!(
        "{} numbers acknowledged in {rounds} lives",
        publisher.acknowledged.len()
    );
    plant.wait_until("all numbers delivered", START, || {
        plant
            .path(NUMBERS)
            .is_some_and(|path| path.waiting == 0 && path.received > 0)
    });
    let cloud = plant.cloud();
    publisher.assert_once_in(&cloud);
    for path in [NUMBERS, TELEMETRY, "dataflow/bottling/alarms->cloud"] {
        plant.wait_until_same_in(&cloud, path);
    }
    plant.end_balanced();
}
