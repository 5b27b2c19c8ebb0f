//! A disk can't read a sector of a store any more. What holds of flipped bits holds of it, wherever it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use foreshore_faultfs::{FaultDisk, used_files};
use rand::{SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{
    damage::small_memtables,
    flips::{Harm, contents, copy, fill, judge},
};

/// Bytes that can't be read.
const PAGE: usize = 4096;

/// Files of each kind, which is their name without numbers, with the bytes that are used of each: the largest, and another one.
/// All files in the full tests.
fn some_files(store: &Path) -> Vec<(PathBuf, usize)> {
    let files = used_files(store).unwrap();
    if is_full() {
        return files;
    }
    let mut kinds = BTreeMap::<String, Vec<_>>::new();
    for (file, used) in files {
        let kind = file
            .to_string_lossy()
            .replace(|character: char| character.is_ascii_digit(), "");
        kinds.entry(kind).or_default().push((file, used));
    }
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut some = Vec::new();
    for mut files in kinds.into_values() {
        files.sort_by_key(|(_, used)| *used);
        some.extend(files.pop());
        some.extend(files.choose(&mut random).cloned());
    }
    some
}

fn is_full() -> bool {
    std::env::var("FORESHORE_TEST_FULL").is_ok_and(|full| !full.is_empty())
}

/// Makes a page of a file unreadable.
fn spoil(disk: &FaultDisk, file: &Path, page: usize) {
    let inode = fs::metadata(file).unwrap().ino();
    disk.spoil(inode, page as u64);
    let read = fs::read(file);
    assert!(read.is_err(), "page {page} of {}", file.display());
}

#[test]
fn after_a_kill_the_end_of_a_journal_that_can_not_be_read_is_told() {
    let home = tempfile::tempdir().unwrap();
    let disk = FaultDisk::new(1);
    let mounted = disk.mount(home.path()).unwrap_or_else(|error| panic!("{error}"));
    let store = home.path().join("store");
    fill(&store);
    fs::remove_file(store.join("clean")).unwrap();
    let journal = store.join("data/0.jnl");
    let files = used_files(&store.join("data")).unwrap();
    let (_, used) = files.into_iter().find(|(file, _)| *file == journal).unwrap();
    spoil(&disk, &journal, (used - 1) / PAGE);
    let (opened, report) = crate::open(&store, &small_memtables()).unwrap();
    assert!(!report.clean && report.damaged_journals == 1, "{report:?}");
    drop(opened);
    mounted.unmount().unwrap();
}

#[test]
fn a_sector_that_can_not_be_read_costs_what_lies_in_it_and_is_counted() {
    let home = tempfile::tempdir().unwrap();
    let filled = home.path().join("filled");
    fill(&filled);
    let whole = home.path().join("whole");
    copy(&filled, &whole);
    let (store, _) = crate::open(&whole, &small_memtables()).unwrap();
    let contents = contents(&store);
    drop(store);

    let folder = home.path().join("disk");
    fs::create_dir(&folder).unwrap();
    let disk = FaultDisk::new(1);
    let mounted = disk.mount(&folder).unwrap_or_else(|error| panic!("{error}"));
    let mut lost = 0;
    let mut lose = |file: &Path, page: usize| {
        let name = file.strip_prefix(&filled).unwrap();
        let spoilt = format!("page {page} of {}", name.display());
        println!("{spoilt}");
        let copied = folder.join("store");
        copy(&filled, &copied);
        spoil(&disk, &copied.join(name), page);
        lost += judge(&copied, &contents, &spoilt, Harm::Page);
        fs::remove_dir_all(&copied).unwrap();
    };
    for (file, used) in some_files(&filled) {
        let last = (used - 1) / PAGE;
        // A table's index and its description are at its end.
        let pages: BTreeSet<_> = [0, last / 3, last.saturating_sub(1), last].into();
        pages.into_iter().for_each(|page| lose(&file, page));
    }
    assert!(lost > 0, "no page cost anything");
    mounted.unmount().unwrap();
}
