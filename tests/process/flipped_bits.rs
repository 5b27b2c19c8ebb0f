//! Bits flip in the store of a broker alone while it does not run.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use foreshore_faultfs::{flip_bit, used_files};
use foreshore_peers::{Program, python, script};
use foreshore_record::PathLedger;
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use serde::Deserialize;

use crate::{
    alone::{Alone, random, seed},
    plant::{SOON, signal},
    site::{is_full, wait_until},
};

/// Messages that wait in the store, and characters in each: most of them are in tables, the last ones in the journal.
const COUNT: u64 = 4000;
const SIZE: u64 = 1000;

/// Messages that one commit may hold: so many are on the way.
const WINDOW: u64 = 200;

/// Long enough for a loaded machine to start several times.
const END: Duration = Duration::from_secs(180);

/// The path of the session that they wait for.
const PATH: &str = "session/stock";

/// What came of a store whose bits flipped.
#[derive(Debug, Default)]
struct Outcome {
    /// Numbers that came.
    got: BTreeSet<u64>,
    /// What the metrics tell.
    damaged_places: u64,
    lost_commits: u64,
    lost_entries: u64,
    /// What the ledger tells of the session.
    path: Option<PathLedger>,
    log: String,
}

#[derive(Deserialize)]
struct Drained {
    got: BTreeSet<u64>,
    wrong: Vec<String>,
}

/// Runs the script of the stock.
fn stock(port: u16, what: &str, arguments: &[u64], ready: &str) -> Program {
    let mut command = Command::new(python());
    command
        .arg(script("mqtt_stock.py"))
        .args([&port.to_string(), what])
        .args(arguments.iter().map(u64::to_string));
    Program::start(command, ready)
}

/// Flips one bit, and says which.
fn flip(file: &Path, place: usize, bit: u32) {
    flip_bit(file, place, bit).unwrap();
    eprintln!("bit {bit} of byte {place} of {}", file.display());
}

/// Flips so many bits, each as likely as any other of the store.
fn flip_anywhere(data: &Path, count: usize, random: &mut StdRng) {
    let files = used_files(data).unwrap();
    let sum: usize = files.iter().map(|(_, used)| used).sum();
    for _ in 0..count {
        let mut place = random.random_range(0..sum);
        let (file, _) = files
            .iter()
            .find(|(_, used)| match place.checked_sub(*used) {
                Some(behind) => {
                    place = behind;
                    false
                }
                None => true,
            })
            .unwrap();
        flip(file, place, random.random_range(0..8));
    }
}

/// Flips a bit of a file that is as likely as any other file, however small it is.
fn flip_in_any_file(data: &Path, random: &mut StdRng) {
    let files = used_files(data).unwrap();
    let (file, used) = files.choose(random).unwrap();
    flip(file, random.random_range(0..*used), random.random_range(0..8));
}

/// Counters of the broker's store.
fn metric(text: &str, name: &str) -> u64 {
    let name = format!("broker_store_{name}_total ");
    let line = text.lines().find_map(|line| line.split_once(&name));
    line.and_then(|(_, value)| value.parse().ok())
        .unwrap_or_else(|| panic!("no {name} in {text}"))
}

/// Copies a folder, holes as holes.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .args(["--recursive", "--sparse=always"])
        .arg(from)
        .arg(to)
        .status();
    assert!(copied.unwrap().success());
}

/// Starts a broker on a store, which begins again by itself because of what it has read, and empties the queue.
fn outcome_of(data: &Path, log: &Path) -> Outcome {
    let mut broker = Alone::new(data, log);
    let mut outcome = Outcome::default();
    broker.start();
    let mut drain = stock(broker.port, "drain", &[SIZE], "draining");
    let emptied = wait_until(END, || {
        let ended = broker.ended();
        assert!(ended.is_none(), "{ended:?}: {}", broker.log());
        // While it begins again it does not answer.
        let (Some(text), Some(ledger)) = (broker.metrics(), broker.ledger()) else {
            return false;
        };
        outcome.damaged_places = metric(&text, "damaged_places");
        outcome.lost_commits = metric(&text, "lost_commits");
        outcome.lost_entries = metric(&text, "lost_entries");
        outcome.path = ledger.into_iter().find(|path| path.path == PATH);
        outcome.path.as_ref().is_some_and(|path| path.waiting == 0)
    });
    assert!(emptied, "{outcome:?}");
    signal(drain.id(), "TERM");
    let drained: Drained = serde_json::from_str(&drain.wait_for("got", SOON)).unwrap();
    assert!(drained.wrong.is_empty(), "{:?}", drained.wrong);
    outcome.got = drained.got;
    broker.stop();
    broker.verify();
    outcome.log = broker.log();
    outcome
}

/// Fills a store: by a broker that ended in order, or was killed.
fn fill(home: &Path, in_order: bool) -> PathBuf {
    let data = home.join(format!("filled-{in_order}"));
    let mut broker = Alone::new(&data, &home.join("log"));
    broker.start();
    broker.wait_until_open();
    drop(stock(broker.port, "fill", &[COUNT, SIZE], "filled"));
    if in_order {
        broker.stop();
    } else {
        broker.kill();
    }
    data
}

/// Bits flip anywhere in the store, of a broker that ended in order or was killed. It starts; what comes is what was
/// published, and nothing else; what does not come is told by log, metrics and ledger.
#[test]
fn flipped_bits_cost_what_they_hit_and_every_loss_is_detected_counted_and_reported() {
    let rounds = if is_full() { 100 } else { 6 };
    let mut random = random(seed());
    let home = tempfile::tempdir().unwrap();
    let filled = [true, false].map(|in_order| fill(home.path(), in_order));
    let data = home.path().join("data");
    for round in 0..rounds {
        copy(&filled[round % 2], &data);
        if round % 3 == 2 {
            flip_in_any_file(&data, &mut random);
        } else {
            flip_anywhere(&data, 1 << (round % 4), &mut random);
        }
        let log = home.path().join(format!("log-{round}"));
        let outcome = outcome_of(&data, &log);
        judge(&outcome, round % 2 == 0);
        fs::remove_dir_all(&data).unwrap();
    }
}

/// What did not come is told. After an orderly end nothing is lost unseen; after a kill the end of the journal may be a
/// batch that never was whole, and a bit that flips in the last one can't be told from that.
fn judge(outcome: &Outcome, in_order: bool) {
    let lost: BTreeSet<u64> = (0..COUNT)
        .filter(|number| !outcome.got.contains(number))
        .collect();
    let path = outcome.path.as_ref();
    let dropped = path.map(|path| path.dropped.get("corrupt").copied().unwrap_or_default());
    eprintln!(
        "{} lost: {} places, {} commits, {} entries; {dropped:?} in the ledger of the session",
        lost.len(),
        outcome.damaged_places,
        outcome.lost_commits,
        outcome.lost_entries
    );
    let Some(first) = lost.first() else { return };
    let told = outcome.damaged_places + outcome.lost_commits;
    let is_end = first + lost.len() as u64 == COUNT && lost.len() as u64 <= WINDOW;
    if told == 0 && !in_order && is_end {
        return;
    }
    assert!(told > 0, "{outcome:#?}");
    assert!(
        outcome.log.contains("part of the store was lost"),
        "{}",
        outcome.log
    );
    if let (Some(path), Some(dropped)) = (path, dropped) {
        assert!(path.balances(), "{path:?}");
        // Nothing that is left knows of the entries of the last commits: not the totals either.
        let is_unknown = |number: &u64| outcome.lost_commits > 0 && *number >= path.received;
        let unknown = lost.iter().copied().filter(is_unknown).count() as u64;
        let known = lost.len() as u64 - unknown;
        assert!(dropped == known && unknown <= WINDOW, "{outcome:#?}");
        assert!(outcome.lost_entries >= dropped, "{outcome:#?}");
    }
}
