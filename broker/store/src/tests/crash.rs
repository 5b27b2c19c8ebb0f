//! The process ends in the middle of everything, and a disk takes no more.
//!
//! The test runs itself once more as a child that works on a store and says what was acknowledged; the child is killed,
//! and the store must hold what it said. Killing keeps the page cache: this tests our logic, not the disk's.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use foreshore_record::DropReason;

use super::{dead_letter, everything, options, publish};
use crate::{
    Applied, BrokerClock, Committer, CommitterHandle, CommitterOptions, EntryId, Limits, Operation,
    ReceiverId, Settlement, SharedStore, Store, StoreOptions,
};

/// Tells the child which store to work on.
const DIRECTORY: &str = "FORESHORE_STORE_TEST_DIRECTORY";

/// Receivers that the child works with.
const NAMES: [&str; 3] = ["dataflow/a", "dataflow/b", "session/c"];

/// What the child said before it ended.
#[derive(Debug, Default)]
struct Said {
    /// Messages that were acknowledged.
    published: BTreeSet<EntryId>,
    /// Entries whose settlement was asked for, by receiver.
    asked: BTreeMap<ReceiverId, BTreeSet<EntryId>>,
    /// Entries whose settlement was acknowledged, by receiver.
    settled: BTreeMap<ReceiverId, BTreeSet<EntryId>>,
    /// Why it ended, if it could tell.
    cause: String,
}

impl Said {
    /// Remembers a line; tells whether it was an acknowledged message.
    fn hear(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["published", id] => return self.published.insert(id.parse().unwrap()),
            [word @ ("asked" | "settled"), receiver, id] => {
                let which = if word == "asked" {
                    &mut self.asked
                } else {
                    &mut self.settled
                };
                which
                    .entry(receiver.parse().unwrap())
                    .or_default()
                    .insert(id.parse().unwrap());
            }
            ["failed", ..] => line.clone_into(&mut self.cause),
            _ => {}
        }
        false
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

/// Works on the store until something stops it.
fn child(directory: &Path, options: &StoreOptions) {
    let (store, _) = crate::open(directory, options).unwrap();
    let clock = BrokerClock::starting_at(store.position().now);
    let committer = Committer::start(Arc::clone(&store), clock, CommitterOptions::default()).unwrap();
    let handle = committer.handle();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let receivers = runtime.block_on(async {
        let put = |name: &&str| Operation::PutReceiver {
            name: (*name).to_owned(),
            limits: Limits::default(),
        };
        let applied = handle.commit(NAMES.iter().map(put).collect()).await.unwrap();
        let id = |applied: &Applied| match applied {
            Applied::Receiver { receiver, .. } => *receiver,
            other => panic!("{other:?}"),
        };
        applied.iter().map(id).collect::<Vec<_>>()
    });
    say("working");
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..4 {
            tasks.spawn(publisher(handle.clone(), receivers.clone()));
        }
        for receiver in &receivers {
            tasks.spawn(settler(handle.clone(), Arc::clone(&store), *receiver));
        }
        tasks.join_all().await;
        say(&format!("failed {}", handle.failed().await));
    });
}

async fn publisher(handle: CommitterHandle, receivers: Vec<ReceiverId>) {
    for round in 0.. {
        let batch =
            (0..1 + round % 5).map(|index| publish("0123456789", &receivers[..1 + index % receivers.len()]));
        let Ok(submitted) = handle.submit(batch.collect()).await else {
            return;
        };
        let Ok(applied) = submitted.completion.await else {
            return;
        };
        for applied in applied {
            let Applied::Published { id, .. } = applied else {
                panic!("{applied:?}")
            };
            say(&format!("published {id}"));
        }
    }
}

async fn settler(handle: CommitterHandle, store: SharedStore, receiver: ReceiverId) {
    let epoch = match handle
        .commit(vec![Operation::OpenPath { receiver }])
        .await
        .unwrap()[..]
    {
        [Applied::Opened(opening)] => opening.epoch,
        ref other => panic!("{other:?}"),
    };
    let mut range = everything();
    range.max_entries = 50;
    loop {
        let page = store.read(receiver, range, handle.clock().now()).unwrap();
        range.after = if page.at_end { 0 } else { page.resume_after };
        let mut settlements = Vec::new();
        for entry in page.entries {
            // Every third stays for a while, so that the order of settlement is not the order of ids.
            let settlement = match entry.id % 9 {
                1 | 4 => continue,
                2 => Settlement {
                    id: entry.id,
                    emitted: 0,
                    outcome: dead_letter("broken"),
                },
                _ => Settlement::delivered(entry.id),
            };
            say(&format!("asked {receiver} {}", entry.id));
            settlements.push(settlement);
        }
        let ids: Vec<_> = settlements.iter().map(|settlement| settlement.id).collect();
        if handle
            .commit(vec![Operation::Settle {
                receiver,
                epoch,
                settlements,
            }])
            .await
            .is_err()
        {
            return;
        }
        ids.iter().for_each(|id| say(&format!("settled {receiver} {id}")));
        if ids.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Checks that the store holds what was said, and that its ledger balances.
fn check(store: &dyn Store, said: &Said) {
    let mut waiting: BTreeMap<ReceiverId, BTreeSet<EntryId>> = BTreeMap::new();
    for receiver in store.receivers(0, 99).unwrap() {
        let page = store
            .read(receiver.id, everything(), store.position().now)
            .unwrap();
        assert!(page.damaged.is_empty());
        let ids: BTreeSet<_> = page.entries.iter().map(|entry| entry.id).collect();
        let totals = store.totals(receiver.id).unwrap().unwrap();
        assert!(totals.ledger.balances(), "{totals:?}");
        assert_eq!(totals.ledger.waiting, ids.len() as u64);
        assert_eq!(
            totals.waiting_bytes,
            page.entries
                .iter()
                .map(|entry| u64::from(entry.size))
                .sum::<u64>()
        );
        let letters = store.dead_letters(receiver.id, 0, usize::MAX).unwrap();
        assert_eq!(
            totals.ledger.dead_lettered,
            letters.len() as u64 + totals.dead_letters_evicted
        );
        waiting.insert(receiver.id, ids);
    }
    for (receiver, ids) in &said.settled {
        let back: Vec<_> = ids.intersection(&waiting[receiver]).collect();
        assert!(back.is_empty(), "settled entries wait again: {back:?}");
    }
    // Everything goes to the first receiver, some to others too.
    let first = *waiting.keys().next().unwrap();
    let nothing = BTreeSet::new();
    let asked = said.asked.get(&first).unwrap_or(&nothing);
    let missing: Vec<_> = said
        .published
        .iter()
        .filter(|id| !waiting[&first].contains(id) && !asked.contains(id))
        .collect();
    assert!(
        missing.is_empty(),
        "acknowledged messages are missing: {missing:?}"
    );
}

/// Runs the test of this name as a child.
fn run_child(test: &str, directory: &Path, through: &[&str]) -> std::process::Child {
    let program = std::env::current_exe().unwrap();
    let mut command = match through {
        [] => Command::new(program),
        [shell, arguments @ ..] => {
            let mut command = Command::new(shell);
            command.args(arguments).arg(program);
            command
        }
    };
    command
        .args(["--exact", test, "--nocapture", "--test-threads", "1"])
        .env(DIRECTORY, directory);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Folder with the keys of a store that is encrypted: beside it.
fn keys_of(directory: &Path) -> std::path::PathBuf {
    directory.with_extension("keys")
}

/// Options for a store that is encrypted if there are keys for it.
fn options_for(directory: &Path) -> StoreOptions {
    let keys = keys_of(directory);
    StoreOptions {
        encryption_keys: keys.exists().then_some(keys),
        encrypt_existing: true,
        ..options()
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    survive_kills("tests::crash::what_was_acknowledged_survives_a_kill", |_, _| {});
}

#[test]
fn what_was_acknowledged_survives_a_kill_while_it_is_encrypted_and_its_keys_change() {
    let test =
        "tests::crash::what_was_acknowledged_survives_a_kill_while_it_is_encrypted_and_its_keys_change";
    // The first round is not encrypted, so that the second finds rows to seal.
    survive_kills(test, |directory, round| {
        if round > 0 {
            let (keys, name) = (keys_of(directory), format!("key-{round}"));
            std::fs::create_dir_all(&keys).unwrap();
            super::encrypted::write_key(&keys, &name, round as u8);
            std::fs::write(keys.join("active"), name).unwrap();
        }
    });
}

fn survive_kills(test: &str, prepare: impl Fn(&Path, usize)) {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        let directory = Path::new(&directory);
        // Small memtables, so that flushes and compactions are interrupted too.
        return child(
            directory,
            &StoreOptions {
                memtable_bytes: 256 << 10,
                ..options_for(directory)
            },
        );
    }
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("store");
    let mut said = Said::default();
    let mut total = 0;
    for round in 0..6 {
        prepare(&directory, round);
        let mut child = run_child(test, &directory, &[]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after some acknowledgements, not after some time: the machine may be slow.
        let enough = 300 + 900 * round;
        let mut heard = 0;
        while heard < enough {
            heard += usize::from(said.hear(&lines.next().expect("the child ended by itself").unwrap()));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lines.for_each(|line| heard += usize::from(said.hear(&line.unwrap_or_default())));
        total += heard;
        let (store, report) = crate::open(&directory, &options_for(&directory)).unwrap();
        assert!(!report.clean && !report.lost_something(), "{report:?}");
        check(&*store, &said);
        assert!(said.settled.values().map(BTreeSet::len).sum::<usize>() > 0);
    }
    assert_eq!(total, said.published.len());
    // Even then, everything can be ended and cleared away.
    let (store, _) = crate::open(&directory, &options_for(&directory)).unwrap();
    let drop = |receiver: crate::store::Receiver| Operation::DropReceiver {
        receiver: receiver.id,
        reason: DropReason::RELEASED,
    };
    let operations = store.receivers(0, 99).unwrap().into_iter().map(drop).collect();
    let crate::Position { next_id, now, .. } = store.position();
    store
        .commit(&[crate::Batch {
            now,
            first_id: next_id,
            operations,
        }])
        .unwrap();
    while store.maintain(now).unwrap() {}
    let ended = store.ended().unwrap();
    let received: u64 = ended.iter().map(|ended| ended.counts.received).sum();
    assert!(received >= said.published.len() as u64);
    assert_eq!(ended.iter().map(|ended| ended.counts.waiting()).sum::<u64>(), 0);
}

#[test]
fn what_was_acknowledged_survives_a_write_that_fails() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return child(Path::new(&directory), &options());
    }
    let home = tempfile::tempdir().unwrap();
    let (store, _) = crate::open(home.path(), &options()).unwrap();
    store.close().unwrap();
    drop(store);
    // The system takes no more than so many blocks of a file: the journal can't grow. A signal would end the child
    // before the error does.
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\""];
    let test = "tests::crash::what_was_acknowledged_survives_a_write_that_fails";
    let mut child = run_child(test, home.path(), &limited);
    let mut said = Said::default();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        said.hear(&line.unwrap());
    }
    child.wait().unwrap();
    assert!(said.published.len() > 100, "{}", said.published.len());
    assert!(said.cause.contains("File too large"), "{:?}", said.cause);
    let (store, report) = crate::open(home.path(), &options()).unwrap();
    assert!(!report.lost_something(), "{report:?}");
    check(&*store, &said);
}
