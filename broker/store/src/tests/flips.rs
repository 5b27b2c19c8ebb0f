//! A bit flips somewhere in a store that nobody has open: whatever it hits, the store starts, all but a block of rows is
//! there, and what is not is counted. The whole broker has to bear more of it in `tests/process/flipped_bits.rs`.

use std::{collections::BTreeSet, fs, path::Path};

use foreshore_faultfs::{flip_bit, used_files};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    damage::{commit, only_tables, small_memtables, text, waiting},
    publish,
};
use crate::{EntryId, Limits, Operation, Settlement, SharedStore};

/// Messages to the first receiver; every third goes to a second one too.
const COUNT: u64 = 2000;

/// Settled in the midst of the first queue, where its head does not tell.
const SETTLED: std::ops::Range<u64> = 700..800;

/// Sessions that are kept, and those that were ended.
const SESSIONS: u64 = 60;
const ENDED: std::ops::Range<u64> = 20..40;

/// Bits that flip anywhere, each in a store of its own, beside those in places that are known.
const FLIPS: usize = 20;

/// How far in front of the end of a table the number ends that says where its contents are.
const CONTENTS_END: usize = 9;

/// Where rows with the totals of paths are.
const TOTALS: &str = "keyspaces/4/";

/// More entries than a block of rows holds, twice.
const BLOCK: usize = 300;

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    /// A bit flipped.
    Bit,
    /// A page can't be read. It may hold the end of one block and the beginning of another one, and the first batches of a
    /// journal, in front of which there is none whose number tells how many are missing.
    Page,
}

fn name(session: u64) -> String {
    format!("client-{session:03}")
}

/// Fills a store and closes it in order.
pub(super) fn fill(home: &Path) {
    let (store, _) = crate::open(home, &small_memtables()).unwrap();
    let put = |name: &str| Operation::PutReceiver {
        name: name.to_owned(),
        limits: Limits::default(),
    };
    commit(&store, vec![put("dataflow/a"), put("session/b")]);
    for session in 0..SESSIONS {
        let state = "state ".repeat(100).into_bytes().into();
        let client_id = name(session);
        commit(&store, vec![Operation::PutSession { client_id, state }]);
    }
    for number in 0..COUNT {
        let receivers: &[_] = if number % 3 == 0 { &[1, 2] } else { &[1] };
        commit(&store, vec![publish(&text(number), receivers)]);
    }
    store.close().unwrap();
    drop(store);
    only_tables(home, &small_memtables());
    // The rest is in the journal alone.
    let (store, _) = crate::open(home, &small_memtables()).unwrap();
    let settlements = SETTLED.map(|number| Settlement::delivered(number + 1)).collect();
    let settled = Operation::Settle {
        receiver: 1,
        epoch: 0,
        settlements,
    };
    let ended = ENDED.map(|session| Operation::DeleteSession {
        client_id: name(session),
    });
    commit(&store, std::iter::once(settled).chain(ended).collect());
    (0..20).for_each(|_| drop(commit(&store, vec![publish("late", &[1])])));
    store.close().unwrap();
    drop(store);
    // Less of what is allocated beforehand is quicker to copy.
    for (file, used) in used_files(&home.join("data")).unwrap() {
        let opened = fs::OpenOptions::new().write(true).open(&file).unwrap();
        if file.extension().is_some_and(|extension| extension == "jnl") {
            opened.set_len(used as u64 + 1000).unwrap();
        }
    }
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// What the store holds: both queues, and the sessions.
pub(super) type Contents = (Vec<EntryId>, Vec<EntryId>, BTreeSet<String>);

/// What the store holds.
pub(super) fn contents(store: &SharedStore) -> Contents {
    let sessions = store.sessions(None, usize::MAX).unwrap();
    let names = sessions.into_iter().map(|session| session.client_id);
    (waiting(store, 1), waiting(store, 2), names.collect())
}

/// Judges what became of a store after one bit of a file flipped, or a page of it got lost; tells how many entries are lost.
pub(super) fn judge(home: &Path, whole: &Contents, flipped: &str, harm: Harm) -> usize {
    let open = || crate::open(home, &small_memtables()).unwrap();
    let (mut store, mut report) = open();
    // What is met by a read only is mended at the next start.
    let is_met = (1..3).any(|receiver| {
        let all = super::everything();
        store.read(receiver, all, crate::BrokerTime(0)).is_err() || store.totals(receiver).is_err()
    });
    let is_met = is_met
        || store.sessions(None, usize::MAX).is_err()
        || store.receivers(0, usize::MAX).is_err()
        || store.find_receiver("session/b").is_err();
    if is_met {
        drop(store);
        (store, report) = open();
        assert!(report.lost_something(), "{flipped}: {report:?}");
    }
    assert!(
        report.set_aside.len() as u64 == report.damaged_journals,
        "{flipped}: {report:?}"
    );
    for (number, name) in [(1, "dataflow/a"), (2, "session/b")] {
        assert_eq!(store.find_receiver(name).unwrap(), Some(number), "{flipped}");
        let receivers = store.receivers(number - 1, 1).unwrap();
        assert_eq!(receivers[0].name, name, "{flipped}");
    }
    let (a, b, sessions) = contents(&store);
    let kept = (a.len() + b.len()) as i64;
    let lost = (whole.0.len() + whole.1.len()) as i64 - kept;
    let told = report.lost_entries as i64 - report.returned_entries as i64;
    // The last commits may be lost with everything that knew of them, and so may totals: what came since older ones looks
    // as if it had come back.
    if report.lost_commits == 0 && !flipped.contains(TOTALS) {
        assert_eq!(lost, told, "{flipped}: {report:?}");
    }
    let (most, untold) = match harm {
        Harm::Bit => (BLOCK, 0),
        Harm::Page => (2 * BLOCK, report.damaged_journals),
    };
    assert!(lost.unsigned_abs() < most as u64, "{flipped}: {report:?}");
    if lost != 0 || sessions != whole.2 {
        assert!(report.lost_something(), "{flipped}: {report:?}");
    }
    if report.unreadable + report.lost_commits + untold == 0 {
        let back: Vec<_> = ENDED.map(name).filter(|name| sessions.contains(name)).collect();
        assert!(back.is_empty(), "{flipped}: {back:?}");
    }
    commit(&store, vec![publish("after", &[1, 2])]);
    store.close().unwrap();
    drop(store);
    let (store, report) = open();
    assert!(
        report.clean && report.damaged_places() == 0,
        "{flipped}: {report:?}"
    );
    assert_eq!(
        waiting(&store, 1).len() + waiting(&store, 2).len(),
        kept as usize + 2,
        "{flipped}"
    );
    store.close().unwrap();
    drop(store);
    let mut proved = super::offline::verify(home);
    if proved.keyspaces.iter().any(|keyspace| keyspace.unreadable > 0) {
        // Nobody has met it yet.
        fs::write(home.join("suspect"), "").unwrap();
        let (store, report) = open();
        assert!(report.lost_something(), "{flipped}: {report:?}");
        store.close().unwrap();
        drop(store);
        proved = super::offline::verify(home);
    }
    assert!(proved.findings.is_empty(), "{flipped}: {:?}", proved.findings);
    lost.unsigned_abs() as usize
}

#[test]
fn a_flipped_bit_in_any_file_costs_a_block_at_most_and_is_counted() {
    let home = tempfile::tempdir().unwrap();
    let filled = home.path().join("filled");
    fill(&filled);
    let whole = home.path().join("whole");
    copy(&filled, &whole);
    let (store, report) = crate::open(&whole, &small_memtables()).unwrap();
    assert!(report.clean && report.damaged_places() == 0, "{report:?}");
    let contents = contents(&store);
    drop(store);
    let files = used_files(&filled).unwrap();
    let mut lost = 0;
    let mut flip = |file: &Path, place: usize, bit: u32, how: &str| {
        let name = file.strip_prefix(&filled).unwrap();
        let flipped = format!("{how}: bit {bit} of byte {place} of {}", name.display());
        println!("{flipped}");
        let copied = home.path().join("flipped");
        copy(&filled, &copied);
        flip_bit(&copied.join(name), place, bit).unwrap();
        lost += judge(&copied, &contents, &flipped, Harm::Bit);
        fs::remove_dir_all(&copied).unwrap();
    };
    for (file, used) in &files {
        // Rows, and where a table's own contents are.
        flip(file, used / 3, 5, "third");
        if file.parent().is_some_and(|folder| folder.ends_with("tables")) {
            let length = fs::metadata(file).unwrap().len() as usize;
            flip(file, length - CONTENTS_END, 7, "trailer");
        }
    }
    // Each file is as likely as any other; near their ends tables keep their index and their footer.
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    for number in 0..FLIPS {
        let (file, used) = files.choose(&mut random).unwrap();
        let place = if number % 2 == 0 {
            random.random_range(0..*used)
        } else {
            used.saturating_sub(1 + random.random_range(0..300))
        };
        flip(file, place, random.random_range(0..8), &format!("seed {seed}"));
    }
    assert!(lost > 0, "no flip cost anything");
}
