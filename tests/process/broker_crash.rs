//! The broker alone is killed outright, again and again, under everything that it has to keep.

use std::{thread::sleep, time::Duration};

use rand::Rng;

use crate::{
    alone::{Alone, Mixed, random, seed},
    site::is_full,
};

#[test]
fn a_broker_that_is_killed_again_and_again_loses_nothing_acknowledged_and_doubles_nothing() {
    let rounds = if is_full() { 200 } else { 12 };
    let mut random = random(seed());
    let home = tempfile::tempdir().unwrap();
    let mut broker = Alone::new(&home.path().join("data"), &home.path().join("log"));
    broker.start();
    let load = Mixed::start(broker.port);
    for round in 0..rounds {
        // One in four dies while it starts.
        let life = if round % 4 == 3 { 0..150 } else { 200..1500 };
        sleep(Duration::from_millis(random.random_range(life)));
        broker.kill();
        broker.start();
    }
    broker.wait_until_open();
    load.assert_nothing_lost();
}
