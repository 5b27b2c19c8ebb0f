//! The power fails, and the disk holds what was synced. The whole broker has to bear more of it in
//! `tests/process/failing_disk.rs`.

use std::path::PathBuf;

use foreshore_faultfs::{FaultDisk, Loss, Mounted, WriteFault};
use tempfile::TempDir;

use super::{everything, options, publish};
use crate::{Batch, BrokerTime, EntryId, Limits, OpenReport, Operation, SharedStore, StoreError};

/// A store on a disk whose power fails.
struct Powered {
    disk: FaultDisk,
    mounted: Option<Mounted>,
    home: TempDir,
}

impl Powered {
    fn new(seed: u64) -> Self {
        let mut powered = Self {
            disk: FaultDisk::new(seed),
            mounted: None,
            home: tempfile::tempdir().unwrap(),
        };
        powered.mount();
        powered
    }

    fn mount(&mut self) {
        let mounted = self.disk.mount(self.home.path());
        self.mounted = Some(mounted.unwrap_or_else(|error| panic!("{error}")));
    }

    /// Folders that are not there yet either.
    fn path(&self) -> PathBuf {
        self.home.path().join("deep/below")
    }

    fn open(&self) -> (SharedStore, OpenReport) {
        crate::open(&self.path(), &options()).unwrap()
    }

    /// The power fails while the store is open; opens what the disk holds.
    fn fail(&mut self, store: SharedStore, loss: Loss) -> (SharedStore, OpenReport) {
        self.disk.cut_power(loss);
        drop(store);
        self.mounted.take().unwrap().unmount().unwrap();
        self.disk.restore_power();
        self.mount();
        self.open()
    }
}

fn commit(store: &SharedStore, operation: Operation) -> Result<(), StoreError> {
    let batch = Batch {
        now: BrokerTime(0),
        first_id: store.position().next_id,
        operations: vec![operation],
    };
    store.commit(&[batch]).map(drop)
}

fn waiting(store: &SharedStore) -> Vec<EntryId> {
    let page = store.read(1, everything(), BrokerTime(0)).unwrap();
    assert!(page.damaged.is_empty());
    let totals = store.totals(1).unwrap().unwrap();
    assert!(totals.ledger.balances() && totals.ledger.waiting == page.entries.len() as u64);
    page.entries.iter().map(|entry| entry.id).collect()
}

fn put() -> Operation {
    Operation::PutReceiver {
        name: "dataflow/a".to_owned(),
        limits: Limits::default(),
    }
}

#[test]
fn what_was_committed_survives_a_power_failure_from_the_first_commit_on() {
    for (seed, loss) in [(1, Loss::Unsynced), (2, Loss::Torn)] {
        let mut powered = Powered::new(seed);
        let (mut store, report) = powered.open();
        assert!(report.created);
        commit(&store, put()).unwrap();
        let mut committed = Vec::new();
        for round in 1..3 {
            commit(&store, publish("m", &[1])).unwrap();
            committed.push(round);
            let report;
            (store, report) = powered.fail(store, loss);
            assert!(!report.created && !report.lost_something(), "{report:?}");
            assert_eq!(waiting(&store), committed);
        }
        // Nor is an orderly close anything but what it says.
        store.close().unwrap();
        let (store, report) = powered.fail(store, loss);
        assert!(report.clean && !report.lost_something(), "{report:?}");
        assert_eq!(waiting(&store), committed);
    }
}

/// After a failed sync the page cache shows what the disk does not hold. The next store may go on from what is shown, if
/// it writes that anew.
#[test]
fn what_is_shown_after_a_sync_that_failed_is_on_the_disk_before_anything_is_built_on_it() {
    for seed in 1..4 {
        let mut powered = Powered::new(seed);
        let (store, _) = powered.open();
        commit(&store, put()).unwrap();
        commit(&store, publish("m", &[1])).unwrap();
        powered.disk.fail_sync_after(0);
        assert!(commit(&store, publish("m", &[1])).is_err());
        assert!(!powered.disk.is_sync_to_fail());
        assert!(
            commit(&store, publish("m", &[1])).is_err(),
            "nothing is committed any more"
        );
        drop(store);
        let (store, _) = powered.open();
        let shown = waiting(&store);
        assert!(shown.starts_with(&[1]), "{shown:?}");
        commit(&store, publish("m", &[1])).unwrap();
        let after = waiting(&store);
        assert_eq!(after.len(), shown.len() + 1);
        let (store, report) = powered.fail(store, Loss::Unsynced);
        assert!(!report.lost_something(), "{report:?}");
        assert_eq!(waiting(&store), after, "seed {seed}");
    }
}

#[test]
fn a_store_whose_disk_takes_nothing_more_keeps_what_it_has() {
    for fault in [WriteFault::NoSpace, WriteFault::Io] {
        let mut powered = Powered::new(1);
        let (store, _) = powered.open();
        commit(&store, put()).unwrap();
        commit(&store, publish("m", &[1])).unwrap();
        // In the midst of a batch.
        powered.disk.fail_writes_after(50, fault);
        assert!(commit(&store, publish("m", &[1])).is_err());
        drop(store);
        let refused = crate::open(&powered.path(), &options()).err().unwrap();
        assert!(matches!(refused, StoreError::Io { .. }), "{refused}");
        powered.disk.mend_writes();
        let (store, report) = powered.open();
        assert!(!report.lost_something(), "{report:?}");
        assert_eq!(waiting(&store), [1]);
        let (store, _) = powered.fail(store, Loss::Unsynced);
        assert_eq!(waiting(&store), [1]);
    }
}
