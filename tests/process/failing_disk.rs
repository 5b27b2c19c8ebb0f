//! The broker alone on a disk that fails: power failures that take what was not synced, syncs that fail, no space.
//!
//! The disk is `tests/faultfs`, which says what it models. Every test loads the broker with everything that it has to keep,
//! and judges by what clients were told, as in `broker_crash`.

use std::{thread::sleep, time::Duration};

use foreshore_faultfs::{FaultDisk, Loss, Mounted, WriteFault};
use rand::{Rng, rngs::StdRng};
use tempfile::TempDir;

use crate::{
    alone::{Alone, Mixed, random, seed},
    plant::SOON,
    site::{is_full, wait_until},
};

/// A broker whose data is on a disk that fails.
struct Failing {
    disk: FaultDisk,
    random: StdRng,
    /// Ended before the disk is unmounted below it.
    broker: Alone,
    mounted: Option<Mounted>,
    home: TempDir,
}

impl Failing {
    /// A broker that runs.
    fn start() -> Self {
        let seed = seed();
        let home = tempfile::tempdir().unwrap();
        let mount = home.path().join("disk");
        std::fs::create_dir(&mount).unwrap();
        let mut failing = Self {
            disk: FaultDisk::new(seed),
            random: random(seed),
            broker: Alone::new(&mount.join("data"), &home.path().join("log")),
            mounted: None,
            home,
        };
        failing.mount();
        failing.broker.start();
        failing
    }

    fn mount(&mut self) {
        let mounted = self.disk.mount(&self.home.path().join("disk"));
        self.mounted = Some(mounted.unwrap_or_else(|error| panic!("{error}")));
    }

    /// Lets the broker run for a random time.
    fn run(&mut self, milliseconds: std::ops::Range<u64>) {
        sleep(Duration::from_millis(self.random.random_range(milliseconds)));
    }

    /// The power fails; the broker starts on what the disk holds then.
    fn fail_power(&mut self, loss: Loss) {
        self.disk.cut_power(loss);
        self.broker.kill();
        self.mounted.take().unwrap().unmount().unwrap();
        self.disk.restore_power();
        self.mount();
        self.broker.start();
    }

    /// Nothing is lost, and nothing is wrong in the store, neither as it is nor as the next power failure leaves it.
    fn assert_nothing_lost(mut self, load: Mixed) {
        self.fail_power(Loss::Unsynced);
        self.broker.wait_until_open();
        load.assert_nothing_lost();
        self.broker.stop();
        self.broker.verify();
        assert!(!self.broker.log().contains("part of the store was lost"));
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.broker.kill();
    }
}

/// Whether a log has the cause. Of what fails in the background the store learns no more than that it did.
fn tells(log: &str, cause: &str) -> bool {
    log.contains(cause) || log.contains("its background work failed before")
}

fn power_fails_again_and_again(loss: Loss) {
    let rounds = if is_full() { 100 } else { 6 };
    let mut failing = Failing::start();
    let load = Mixed::start(failing.broker.port);
    for round in 0..rounds {
        // One in four fails while the broker starts.
        let life = if round % 4 == 3 { 0..150 } else { 200..1500 };
        failing.run(life);
        failing.fail_power(loss);
    }
    failing.assert_nothing_lost(load);
}

#[test]
fn a_power_failure_that_takes_what_was_not_synced_loses_nothing_acknowledged_and_doubles_nothing() {
    power_fails_again_and_again(Loss::Unsynced);
}

#[test]
fn a_power_failure_that_tears_what_was_not_synced_loses_nothing_acknowledged_and_doubles_nothing() {
    power_fails_again_and_again(Loss::Torn);
}

/// A sync fails, and what it was for is on the disk in part or not at all, though the page cache shows it. The broker ends
/// with the cause; the next one starts on what the page cache shows, or after a power failure on what the disk holds, or
/// on the first and soon after on the second.
#[test]
fn after_a_sync_that_failed_the_broker_ends_and_nothing_acknowledged_is_lost() {
    let rounds = if is_full() { 60 } else { 4 };
    let mut failing = Failing::start();
    let load = Mixed::start(failing.broker.port);
    for round in 0..rounds {
        let syncs = failing.random.random_range(0..150);
        let before = failing.broker.log().len();
        failing.disk.fail_sync_after(syncs);
        let status = failing.broker.wait_for_end();
        let log = failing.broker.log_since(before);
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(tells(&log, "Input/output error"), "{log}");
        if round % 3 == 1 {
            failing.fail_power(Loss::Torn);
        } else {
            failing.broker.start();
        }
        if round % 3 == 2 {
            failing.run(0..1000);
            failing.fail_power(Loss::Unsynced);
        }
    }
    failing.assert_nothing_lost(load);
}

/// Below the watermark publishes are refused, and what waits is delivered. When writes fail all the same, the broker ends
/// with the cause, and starts again when they do not.
#[test]
fn a_full_disk_loses_nothing_acknowledged_and_the_broker_goes_on_when_there_is_space() {
    let rounds = if is_full() { 20 } else { 1 };
    let mut failing = Failing::start();
    let mut load = Mixed::start(failing.broker.port);
    for _ in 0..rounds {
        load.wait_for(100);
        let refused = load.counts().1;
        failing.disk.leave_free(256 << 20);
        assert!(
            wait_until(SOON, || load.counts().1 > refused + 100),
            "publishes are refused"
        );
        assert!(failing.broker.ended().is_none());
        failing.disk.free();
        load.wait_for(100);

        let (fault, cause) = if failing.random.random() {
            (WriteFault::NoSpace, "No space left on device")
        } else {
            (WriteFault::Io, "Input/output error")
        };
        let before = failing.broker.log().len();
        let bytes = failing.random.random_range(0..200_000);
        failing.disk.fail_writes_after(bytes, fault);
        let status = failing.broker.wait_for_end();
        let log = failing.broker.log_since(before);
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(tells(&log, cause), "{log}");
        // Nothing can be written: it says so rather than run on what it can't keep.
        failing.broker.start();
        assert_eq!(failing.broker.wait_for_end().code(), Some(1));
        failing.disk.mend_writes();
        failing.broker.start();
    }
    failing.assert_nothing_lost(load);
}
