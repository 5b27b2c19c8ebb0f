//! A store that is encrypted: what its files give away, which keys it opens with, and what becomes of damage.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::ControlFlow,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{dead_letter, everything, message, numbered, options, publish, publish_message};
use crate::{
    Applied, Batch, Blob, BrokerTime, Limits, Operation, Publish, Settlement, Store, StoreError,
    StoreOptions,
    cipher::Age,
    engine::{Change, Engine, View},
    fjall_store::{engine::FjallEngine, files::Directory, open_queues, salvage::read_range},
    keys::{self, Table},
    offline::{ClosedStore, EncryptionState, Judges, Verification, compact},
    queue_store::QueueStore,
    record,
};

/// Writes a key of so many equal bytes, which only its owner may read.
pub(crate) fn write_key(folder: &Path, name: &str, byte: u8) {
    let path = folder.join(name);
    fs::write(&path, [byte; 32]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Adds a key that nobody had before, and makes it the active one.
pub(super) fn add_key(folder: &Path) {
    let name = format!("key-{:016x}", rand::random::<u64>());
    write_key(folder, &name, rand::random());
    fs::write(folder.join("active"), name).unwrap();
}

/// A place for a store, and keys.
struct Home {
    home: TempDir,
}

/// What is looked for in files: nothing of it may be found.
const SECRETS: [&str; 9] = [
    "payload of the recipe",
    "plant/line/secret-topic",
    "retained-payload",
    "client-of-the-press",
    "hunter2-password",
    "lock/of-the-oven",
    "value-of-the-lock",
    "connector/plant/line",
    "no such column",
];

impl Home {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("keys")).unwrap();
        let made = Self { home };
        write_key(&made.keys(), "spring", 1);
        made
    }

    fn store(&self) -> PathBuf {
        self.home.path().join("store")
    }

    fn keys(&self) -> PathBuf {
        self.home.path().join("keys")
    }

    fn activate(&self, name: &str) {
        fs::write(self.keys().join("active"), name).unwrap();
    }

    fn options(&self) -> StoreOptions {
        StoreOptions {
            encryption_keys: Some(self.keys()),
            ..options()
        }
    }

    /// Options that allow to encrypt a store that is there.
    fn migrating(&self) -> StoreOptions {
        StoreOptions {
            encrypt_existing: true,
            ..self.options()
        }
    }

    fn open(&self) -> QueueStore<FjallEngine> {
        open_queues(&self.store(), &self.options()).unwrap().0
    }

    fn migrate(&self) -> QueueStore<FjallEngine> {
        open_queues(&self.store(), &self.migrating()).unwrap().0
    }

    /// Why the store does not open, of which nothing is changed.
    fn refusal(&self, options: &StoreOptions) -> StoreError {
        let before = files(&self.store());
        let error = crate::open(&self.store(), options).err().unwrap();
        assert!(before == files(&self.store()), "the store was changed: {error}");
        error
    }

    /// Works on rows as they are on disk.
    fn raw<T>(&self, work: impl FnOnce(&FjallEngine) -> T) -> T {
        let directory = Directory::open(&self.store()).unwrap();
        work(&FjallEngine::start(&directory, &options()).unwrap())
    }

    fn verify(&self) -> Verification {
        let scratch = tempfile::tempdir().unwrap();
        let store = ClosedStore::open(&self.store(), scratch.path(), &self.options()).unwrap();
        let any = |_: &Blob| Ok(());
        store
            .verify(Judges {
                session: &any,
                will: &any,
                state: &|_| Ok(()),
            })
            .unwrap()
    }

    /// Which of the secrets are in some file.
    fn found(&self) -> Vec<&'static str> {
        let files = files(&self.store());
        let is_in = |secret: &&str| {
            let secret = secret.as_bytes();
            files
                .values()
                .any(|content| content.windows(secret.len()).any(|window| window == secret))
        };
        SECRETS.into_iter().filter(is_in).collect()
    }
}

/// All files below a folder but the lock, without the zeros at their end.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let mut content = fs::read(&path).unwrap();
            while content.ends_with(&[0; 4096]) {
                content.truncate(content.len() - 4096);
            }
            found.insert(path, content);
        }
    }
    found
}

fn commit(store: &dyn Store, operations: Vec<Operation>) -> Vec<Applied> {
    let batch = Batch {
        now: BrokerTime(0),
        first_id: store.position().next_id,
        operations,
    };
    store.commit(&[batch]).unwrap().remove(0)
}

/// Writes something to every keyspace that holds what users wrote.
fn fill(store: &dyn Store) {
    let put = |name: &str| Operation::PutReceiver {
        name: name.to_owned(),
        limits: Limits::default(),
    };
    commit(store, vec![put("dataflow/a"), put("session/client-of-the-press")]);
    for _ in 0..10 {
        commit(
            store,
            vec![
                publish("payload of the recipe", &[1, 2]),
                publish("payload of the recipe", &[1]),
            ],
        );
    }
    let topic = foreshore_record::TopicName::new("plant/line/secret-topic").unwrap();
    let mut retained = foreshore_record::Record::new(topic, "retained-payload".to_owned());
    retained.retain = true;
    commit(
        store,
        vec![
            publish_message(numbered("payload of the recipe", 1, 1), &[1]),
            Operation::Publish(Publish {
                message: crate::Message {
                    record: retained.into(),
                    expires_at: None,
                },
                receivers: Vec::new(),
                update_retained: true,
                receipt: None,
            }),
            Operation::PutSession {
                client_id: "client-of-the-press".to_owned(),
                state: "hunter2-password".into(),
            },
            Operation::PutWill {
                client_id: "client-of-the-press".to_owned(),
                state: "hunter2-password".into(),
            },
            Operation::PutState {
                key: "lock/of-the-oven".into(),
                value: "value-of-the-lock".into(),
            },
            Operation::Settle {
                receiver: 1,
                epoch: 0,
                settlements: vec![Settlement {
                    id: 2,
                    emitted: 0,
                    outcome: dead_letter("no such column"),
                }],
            },
        ],
    );
}

/// Everything that was filled in, as it is read.
fn content(store: &dyn Store) -> impl PartialEq + std::fmt::Debug + use<> {
    let payloads = |receiver| {
        let page = store.read(receiver, everything(), BrokerTime(0)).unwrap();
        assert!(page.damaged.is_empty(), "{:?}", page.damaged);
        page.entries
            .into_iter()
            .map(|entry| (entry.id, entry.record))
            .collect::<Vec<_>>()
    };
    (
        (payloads(1), payloads(2)),
        // The epoch is another one in each store.
        store
            .dead_letters(1, 0, 99)
            .unwrap()
            .into_iter()
            .map(|letter| crate::DeadLetter {
                store_epoch: 0,
                ..letter
            })
            .collect::<Vec<_>>(),
        store.retained(None, 99).unwrap(),
        store.retained_message("plant/line/secret-topic").unwrap(),
        store.sessions(None, 99).unwrap(),
        store.wills(None, 99).unwrap(),
        store.state(None, usize::MAX).unwrap(),
        store.sources(None, 99).unwrap(),
        (
            store.find_receiver("dataflow/a").unwrap(),
            store.totals(1).unwrap(),
        ),
        store.find_receiver("session/client-of-the-press").unwrap(),
    )
}

fn maintain(store: &dyn Store) {
    while store.maintain(BrokerTime(0)).unwrap() {}
}

#[test]
fn no_file_of_an_encrypted_store_holds_what_clients_wrote() {
    // What is looked for is found where nothing is encrypted.
    let plain = Home::new();
    let (store, _) = crate::open(&plain.store(), &options()).unwrap();
    fill(&*store);
    assert_eq!(plain.found(), SECRETS);
    let expected = format!("{:?}", content(&*store));

    let home = Home::new();
    let store = home.open();
    fill(&store);
    assert_eq!(home.found(), [""; 0], "while it is open");
    assert_eq!(format!("{:?}", content(&store)), expected);
    store.engine().compact().unwrap();
    assert_eq!(home.found(), [""; 0], "in tables");
    assert_eq!(format!("{:?}", content(&store)), expected);
    store.close().unwrap();
    drop(store);
    compact(&home.store(), &home.options(), false).unwrap();
    assert_eq!(home.found(), [""; 0], "compacted");
    let found = home.verify();
    assert!(found.is_sound(), "{found:?}");
    let state = found.encryption.unwrap();
    assert!(state.current > 30, "{state:?}");
    assert_eq!((state.key.as_str(), state.older, state.plain), ("spring", 0, 0));
    assert_eq!(format!("{:?}", content(&home.open())), expected);
}

#[test]
fn a_store_that_is_there_is_encrypted_from_now_on() {
    for orderly in [true, false] {
        let home = Home::new();
        let (store, _) = crate::open(&home.store(), &options()).unwrap();
        fill(&*store);
        let expected = format!("{:?}", content(&*store));
        if orderly {
            store.close().unwrap();
        }
        drop(store);
        let store = home.migrate();
        assert_eq!(format!("{:?}", content(&store)), expected);
        let read = |store: &QueueStore<FjallEngine>| store.encryption().unwrap();
        assert!(read(&store).is_rewriting);
        // It ends in the middle; what was sealed and what was not is read.
        store.maintain(BrokerTime(0)).unwrap();
        drop(store);
        let state = home.verify().encryption.unwrap();
        assert!(state.plain > 0 && state.current > 0, "{state:?}");
        // Until that is done it is allowed or not.
        let error = home.refusal(&home.options());
        assert!(matches!(error, StoreError::NotEncrypted { .. }), "{error}");
        let store = home.migrate();
        assert_eq!(format!("{:?}", content(&store)), expected);
        maintain(&store);
        assert!(!read(&store).is_rewriting);
        assert_eq!(format!("{:?}", content(&store)), expected);
        store.close().unwrap();
        drop(store);
        let found = home.verify();
        assert!(found.is_sound(), "{found:?}");
        let EncryptionState { plain, older, .. } = found.encryption.unwrap();
        assert_eq!((plain, older), (0, 0));
        // It is encrypted now, so there is nothing that would have to be allowed.
        drop(home.open());
        // The disk still has what it had; it is compaction that leaves it out.
        assert!(!home.found().is_empty());
        compact(&home.store(), &home.options(), false).unwrap();
        assert_eq!(home.found(), [""; 0]);
        let (store, report) = open_queues(&home.store(), &home.options()).unwrap();
        assert!(report.clean && !report.lost_something(), "{report:?}");
        assert_eq!(format!("{:?}", content(&store)), expected);
    }
}

#[test]
fn a_compaction_seals_a_store_without_a_broker() {
    let home = Home::new();
    let (store, _) = crate::open(&home.store(), &options()).unwrap();
    fill(&*store);
    let expected = format!("{:?}", content(&*store));
    store.close().unwrap();
    drop(store);
    let error = compact(&home.store(), &home.options(), false).unwrap_err();
    assert!(matches!(error, StoreError::NotEncrypted { .. }), "{error}");
    compact(&home.store(), &home.migrating(), false).unwrap();
    assert_eq!(home.found(), [""; 0]);
    let found = home.verify();
    assert!(
        found.is_sound() && found.encryption.as_ref().unwrap().plain == 0,
        "{found:?}"
    );
    let store = home.open();
    assert_eq!(format!("{:?}", content(&store)), expected);
    // What comes later replaces what the emptied journal told of.
    let before = store.totals(1).unwrap().unwrap().ledger;
    commit(&store, vec![publish("after", &[1])]);
    drop(store);
    let after = home.open().totals(1).unwrap().unwrap().ledger;
    assert_eq!(
        (after.received, after.waiting),
        (before.received + 1, before.waiting + 1)
    );
}

#[test]
fn another_key_is_taken_up_while_the_store_is_open_and_the_old_one_can_go() {
    let home = Home::new();
    let store = home.open();
    fill(&store);
    let expected = format!("{:?}", content(&store));
    let state = || store.encryption().unwrap();
    maintain(&store);
    assert_eq!((state().key.as_str(), state().is_rewriting), ("spring", false));
    // A key that is there and not active changes nothing.
    write_key(&home.keys(), "autumn", 2);
    home.activate("spring");
    let look = || {
        store.engine().cipher().unwrap().look_soon();
        store.maintain(BrokerTime(0)).unwrap()
    };
    assert!(!look());
    assert_eq!((state().key.as_str(), state().problem), ("spring", None));
    // What can't be used changes nothing either, and is told of.
    home.activate("winter");
    assert!(!look());
    assert_eq!(state().key, "spring");
    assert!(state().problem.unwrap().contains("\"winter\""));
    commit(&store, vec![]);
    home.activate("autumn");
    assert!(look());
    assert_eq!((state().key.as_str(), state().is_rewriting), ("autumn", true));
    assert_eq!(state().problem, None);
    // Nothing needs the old key from now on, though rows are still sealed with keys from its time.
    fs::remove_file(home.keys().join("spring")).unwrap();
    assert_eq!(format!("{:?}", content(&store)), expected);
    drop(store);
    let before = home.verify().encryption.unwrap();
    assert!(before.key == "autumn" && before.older > 20, "{before:?}");
    let store = home.open();
    assert_eq!(format!("{:?}", content(&store)), expected);
    maintain(&store);
    assert!(!store.encryption().unwrap().is_rewriting);
    assert_eq!(format!("{:?}", content(&store)), expected);
    drop(store);
    let after = home.verify();
    assert!(after.is_sound(), "{after:?}");
    assert_eq!(after.encryption.unwrap().older, 0);
}

#[test]
fn a_row_that_was_sealed_anew_does_not_come_back_after_its_removal() {
    let home = Home::new();
    let store = home.open();
    fill(&store);
    maintain(&store);
    // What was written first is in tables. What was sealed anew is in the memtable that its removal comes to: a weak one
    // would go with it when that is flushed, and leave nothing that hides the first.
    store.engine().compact().unwrap();
    let expected = format!("{:?}", content(&store));
    write_key(&home.keys(), "autumn", 2);
    home.activate("autumn");
    store.engine().cipher().unwrap().look_soon();
    maintain(&store);
    assert!(!store.encryption().unwrap().is_rewriting);
    assert_eq!(format!("{:?}", content(&store)), expected);
    let settle = |receiver| Operation::Settle {
        receiver,
        epoch: 0,
        settlements: (1..40).map(Settlement::delivered).collect(),
    };
    commit(&store, vec![settle(1), settle(2)]);
    store.engine().flush().unwrap();
    let rows = || {
        let mut rows = Vec::new();
        for table in [Table::Queue, Table::Body] {
            let mut visit = |key: &keys::Bytes, _: &keys::Bytes| {
                rows.push((table, key.to_vec()));
                Ok(ControlFlow::Continue(()))
            };
            read_range(store.engine(), table, &[], None, &mut visit, &mut |_, _| {}).unwrap();
        }
        rows
    };
    assert_eq!(rows(), [], "flushed");
    store.engine().compact().unwrap();
    assert_eq!(rows(), [], "compacted");
}

#[test]
fn without_its_key_a_store_is_left_alone() {
    let home = Home::new();
    let store = home.open();
    fill(&store);
    let expected = format!("{:?}", content(&store));
    store.close().unwrap();
    drop(store);
    // A store that is to be read through at its next opening must not be salvaged away either.
    for is_suspect in [false, true] {
        if is_suspect {
            fs::write(home.store().join("suspect"), "something\n").unwrap();
        }
        let before = files(&home.store());
        let other = tempfile::tempdir().unwrap();
        write_key(other.path(), "summer", 7);
        let wrong = tempfile::tempdir().unwrap();
        write_key(wrong.path(), "spring", 8);
        for (folder, cause) in [
            (None, "no folder with keys was named".to_owned()),
            (Some(&other), format!("found [\"summer\"] in {:?}", other.path())),
            (
                Some(&wrong),
                format!("found another key under this name in {:?}", wrong.path()),
            ),
        ] {
            let options = StoreOptions {
                encryption_keys: folder.map(|folder| folder.path().to_owned()),
                ..options()
            };
            let scratch = tempfile::tempdir().unwrap();
            let refusals = [
                crate::open(&home.store(), &options).err().unwrap(),
                ClosedStore::open(&home.store(), scratch.path(), &options)
                    .err()
                    .unwrap(),
                compact(&home.store(), &options, false).unwrap_err(),
                compact(&home.store(), &options, true).unwrap_err(),
            ];
            for error in refusals {
                assert!(matches!(error, StoreError::NoKey { .. }), "{error}");
                let text = error.to_string();
                assert!(
                    text.contains("is encrypted with key \"spring\"") && text.contains(&cause),
                    "{text}"
                );
            }
            assert!(before == files(&home.store()), "the store was changed");
        }
    }
    // A folder that can't be used is refused before the store is touched, also where there is none.
    let missing = StoreOptions {
        encryption_keys: Some(home.home.path().join("missing")),
        ..options()
    };
    for place in [home.store(), home.home.path().join("new")] {
        let error = crate::open(&place, &missing).err().unwrap();
        assert!(matches!(error, StoreError::Keys { .. }), "{error}");
    }
    assert!(!home.home.path().join("new").exists());
    // The key may be called otherwise.
    fs::rename(home.keys().join("spring"), home.keys().join("renamed")).unwrap();
    let (store, report) = open_queues(&home.store(), &home.options()).unwrap();
    assert!(report.clean && !report.lost_something(), "{report:?}");
    assert_eq!(format!("{:?}", content(&store)), expected);
}

#[test]
fn without_its_key_nothing_of_an_interrupted_salvage_is_tidied() {
    let home = Home::new();
    let store = home.open();
    fill(&store);
    let expected = format!("{:?}", content(&store));
    store.close().unwrap();
    drop(store);
    // The next opening puts the copy in its place.
    fs::rename(home.store().join("data"), home.store().join("data.new")).unwrap();
    let before = files(&home.store());
    let error = crate::open(&home.store(), &options()).err().unwrap();
    assert!(matches!(error, StoreError::NoKey { .. }), "{error}");
    assert!(before == files(&home.store()), "the store was changed");
    assert_eq!(format!("{:?}", content(&home.open())), expected);
}

#[test]
fn a_store_whose_keyring_can_not_be_written_stays_as_it_was() {
    let home = Home::new();
    let (store, _) = crate::open(&home.store(), &options()).unwrap();
    fill(&*store);
    let expected = format!("{:?}", content(&*store));
    store.close().unwrap();
    drop(store);
    let refuse = |name| {
        let in_the_way = home.store().join(name);
        fs::create_dir(&in_the_way).unwrap();
        let error = crate::open(&home.store(), &home.migrating()).err().unwrap();
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
        fs::remove_dir(&in_the_way).unwrap();
    };
    refuse("keys.new");
    // Nothing was sealed yet, so it is opened without a key.
    let (store, report) = crate::open(&home.store(), &options()).unwrap();
    assert!(report.clean && !report.lost_something(), "{report:?}");
    assert_eq!(format!("{:?}", content(&*store)), expected);
    store.close().unwrap();
    drop(store);
    // From the first keyring on it is an encrypted store: without the key, rows would be added that are not sealed.
    refuse("keys.copy.new");
    let whole = fs::read(home.store().join("keys")).unwrap();
    assert!(!home.store().join("keys.copy").exists());
    let error = home.refusal(&options());
    assert!(matches!(error, StoreError::NoKey { .. }), "{error}");
    let (store, report) = open_queues(&home.store(), &home.migrating()).unwrap();
    assert!(report.clean && !report.lost_something(), "{report:?}");
    assert_eq!(format!("{:?}", content(&store)), expected);
    // The keys are those of that time.
    let store_id = |content: &[u8]| content.get(..18).map(<[u8]>::to_vec);
    assert_eq!(
        store_id(&fs::read(home.store().join("keys.copy")).unwrap()),
        store_id(&whole)
    );
}

#[test]
fn a_format_from_before_the_encryption_takes_nothing_away() {
    let home = Home::new();
    let (store, _) = crate::open(&home.store(), &options()).unwrap();
    fill(&*store);
    let expected = format!("{:?}", content(&*store));
    drop(store);
    let format = fs::read(home.store().join("format")).unwrap();
    maintain(&home.migrate());
    let sealed = fs::read(home.store().join("format")).unwrap();
    assert_ne!(format, sealed);
    let restore = || fs::write(home.store().join("format"), &format).unwrap();
    restore();
    // Neither without a key, nor with another one, nor where both keyrings are spoiled.
    let other = tempfile::tempdir().unwrap();
    write_key(other.path(), "summer", 7);
    let with_other = StoreOptions {
        encryption_keys: Some(other.path().to_owned()),
        ..home.migrating()
    };
    for options in [options(), with_other] {
        let error = home.refusal(&options);
        assert!(matches!(error, StoreError::NoKey { .. }), "{error}");
        let scratch = tempfile::tempdir().unwrap();
        let error = ClosedStore::open(&home.store(), scratch.path(), &options).err();
        assert!(matches!(error, Some(StoreError::NoKey { .. })), "{error:?}");
        let error = compact(&home.store(), &options, false).unwrap_err();
        assert!(matches!(error, StoreError::NoKey { .. }), "{error}");
    }
    let keyrings = ["keys", "keys.copy"].map(|name| home.store().join(name));
    let whole = keyrings.each_ref().map(|path| fs::read(path).unwrap());
    for path in &keyrings {
        fs::write(path, "spoiled").unwrap();
    }
    let error = home.refusal(&home.migrating());
    assert!(matches!(error, StoreError::Keyring { .. }), "{error}");
    for (path, content) in keyrings.iter().zip(&whole) {
        fs::write(path, content).unwrap();
    }
    assert_eq!(format!("{:?}", content(&home.open())), expected);
    assert_eq!(fs::read(home.store().join("format")).unwrap(), sealed, "mended");
    // A format without its keyring is no new store either.
    for path in &keyrings {
        fs::remove_file(path).unwrap();
    }
    let error = home.refusal(&home.migrating());
    assert!(
        matches!(error, StoreError::Keyring { .. }) && error.to_string().contains("neither it nor its copy"),
        "{error}"
    );
}

#[test]
fn a_store_that_is_not_encrypted_is_not_taken_for_one_that_is() {
    // What somebody made who has no key, in the place of the one that was there.
    let home = Home::new();
    fill(&home.open());
    fs::remove_dir_all(home.store()).unwrap();
    let (store, _) = crate::open(&home.store(), &options()).unwrap();
    fill(&*store);
    store.close().unwrap();
    drop(store);
    let error = home.refusal(&home.options());
    assert!(matches!(error, StoreError::NotEncrypted { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("--encrypt-existing") && text.contains("encryptExisting"),
        "{text}"
    );
    // Nor where he has the rows alone exchanged: none of them is believed.
    let other = Home::new();
    fill(&other.open());
    fs::remove_dir_all(other.store().join("data")).unwrap();
    copy_folder(&home.store().join("data"), &other.store().join("data"));
    let is_believed = crate::open(&other.store(), &other.options()).is_ok_and(|(store, _)| {
        let is_kept = !store.retained(None, 9).unwrap().is_empty();
        is_kept || !store.sessions(None, 9).unwrap().is_empty() || !store.wills(None, 9).unwrap().is_empty()
    });
    assert!(!is_believed);
    // A folder in which nothing is yet is none, also where the first start came no further than that.
    let new = Home::new();
    fs::create_dir(new.store()).unwrap();
    fs::write(new.store().join("format"), "foreshore-store 1\n").unwrap();
    fill(&new.open());
    assert_eq!(new.found(), [""; 0]);
}

#[test]
fn a_keyring_from_before_does_not_take_the_place_of_the_one_in_use() {
    let home = Home::new();
    let store = home.open();
    fill(&store);
    let expected = format!("{:?}", content(&store));
    let keyrings = ["keys", "keys.copy"].map(|name| home.store().join(name));
    let old = fs::read(&keyrings[0]).unwrap();
    write_key(&home.keys(), "autumn", 2);
    home.activate("autumn");
    store.engine().cipher().unwrap().look_soon();
    maintain(&store);
    assert!(!store.encryption().unwrap().is_rewriting);
    drop(store);
    for path in &keyrings {
        // Both keys are there, so either could be opened.
        fs::write(path, &old).unwrap();
        assert_eq!(format!("{:?}", content(&home.open())), expected);
        for path in &keyrings {
            assert_ne!(fs::read(path).unwrap(), old);
        }
    }
}

#[test]
fn who_looks_at_a_store_as_it_was_before_it_was_sealed_anew_reads_it() {
    for is_plain in [true, false] {
        let home = Home::new();
        let store = if is_plain {
            fill(&*crate::open(&home.store(), &options()).unwrap().0);
            home.migrate()
        } else {
            fill(&home.open());
            // Nothing of it was read yet, and no key of it is kept ready.
            write_key(&home.keys(), "autumn", 2);
            home.activate("autumn");
            home.open()
        };
        let engine = store.engine();
        let view = engine.view();
        if !is_plain {
            engine.cipher().unwrap().look_soon();
        }
        maintain(&store);
        assert!(!store.encryption().unwrap().is_rewriting);
        engine.cipher().unwrap().forget_openers();
        let row = view.get(Table::Queue, &keys::entry(1, 4)).unwrap().unwrap();
        assert!(!row.is_empty());
        drop(view);
    }
}

#[test]
fn one_of_the_two_keyrings_is_enough() {
    let home = Home::new();
    let store = home.open();
    fill(&store);
    let expected = format!("{:?}", content(&store));
    drop(store);
    let (first, second) = (home.store().join("keys"), home.store().join("keys.copy"));
    let whole = fs::read(&first).unwrap();
    for spoiled in [&first, &second] {
        for bad in [
            whole[..20].to_vec(),
            Vec::new(),
            [&whole[..60], b"?", &whole[61..]].concat(),
        ] {
            fs::write(spoiled, bad).unwrap();
            assert_eq!(format!("{:?}", content(&home.open())), expected);
            assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap(), "mended");
        }
        fs::remove_file(spoiled).unwrap();
        assert_eq!(format!("{:?}", content(&home.open())), expected);
    }
    for path in [&first, &second] {
        fs::write(path, &whole[..60]).unwrap();
    }
    let before = files(&home.store());
    let error = crate::open(&home.store(), &home.options()).err().unwrap();
    assert!(matches!(error, StoreError::Keyring { .. }), "{error}");
    assert!(before == files(&home.store()), "the store was changed");
}

/// Ids in the queue of the first receiver that can be read and that can't.
fn ids(store: &dyn Store) -> (BTreeSet<u64>, Vec<u64>) {
    let page = store.read(1, everything(), BrokerTime(0)).unwrap();
    (page.entries.iter().map(|entry| entry.id).collect(), page.damaged)
}

#[test]
fn a_damaged_row_is_passed_over_and_told_of_as_in_a_store_that_is_not_encrypted() {
    let mut told = Vec::new();
    for is_encrypted in [false, true] {
        let home = Home::new();
        let options = if is_encrypted { home.options() } else { options() };
        fill(&*crate::open(&home.store(), &options).unwrap().0);
        home.raw(|engine| {
            // An entry, a session and a retained message; the last byte is part of the checksum, and of the tag.
            for table in [Table::Queue, Table::Session, Table::Retained] {
                let mut first = None;
                let mut visit = |key: &keys::Bytes, value: &keys::Bytes| {
                    first = Some((key.clone(), value.to_vec()));
                    Ok(ControlFlow::Break(()))
                };
                read_range(engine, table, &[], None, &mut visit, &mut |_, _| {}).unwrap();
                let (key, mut value) = first.unwrap();
                *value.last_mut().unwrap() ^= 1;
                let value = Some(value.into());
                engine.write(vec![Change { table, key, value }]).unwrap();
            }
        });
        let (store, report) = crate::open(&home.store(), &options).unwrap();
        assert!(!report.lost_something(), "{report:?}");
        let (good, damaged) = ids(&*store);
        assert_eq!((good.len(), &damaged[..]), (19, &[1][..]));
        assert!(store.sessions(None, 9).unwrap().is_empty() && store.retained(None, 9).unwrap().is_empty());
        drop(store);
        let scratch = tempfile::tempdir().unwrap();
        let closed = ClosedStore::open(&home.store(), scratch.path(), &options).unwrap();
        let any = |_: &Blob| Ok(());
        let found = closed
            .verify(Judges {
                session: &any,
                will: &any,
                state: &|_| Ok(()),
            })
            .unwrap();
        let states: Vec<_> = found
            .keyspaces
            .iter()
            .map(|space| (space.name, space.rows, space.damaged))
            .collect();
        told.push((found.damage, found.minor, states));
    }
    assert_eq!(told[0], told[1]);
    assert!(told[0].0 >= 3, "{told:?}");
}

#[test]
fn rows_that_were_exchanged_are_damaged_rows() {
    let home = Home::new();
    fill(&home.open());
    let (a, b) = (keys::entry(1, 4), keys::entry(1, 6));
    let get = |key: [u8; 16]| home.raw(|engine| engine.view().get(Table::Queue, &key).unwrap().unwrap());
    let (of_a, of_b) = (get(a), get(b));
    let put = |key: [u8; 16], value: &keys::Bytes| {
        let value = Some(value.clone());
        home.raw(|engine| {
            let key = key.as_slice().into();
            engine
                .write(vec![Change {
                    table: Table::Queue,
                    key,
                    value,
                }])
                .unwrap();
        });
    };
    put(a, &of_b);
    put(b, &of_a);
    let (good, damaged) = ids(&home.open());
    assert_eq!((good.len(), damaged), (18, vec![4, 6]));
    put(a, &of_a);
    put(b, &of_b);
    assert!(ids(&home.open()).1.is_empty());
    // The row of another store that has the same key, at the same place.
    let other = Home::new();
    fill(&other.open());
    let foreign = other.raw(|engine| engine.view().get(Table::Queue, &a).unwrap().unwrap());
    put(a, &foreign);
    assert_eq!(ids(&home.open()).1, [4]);
    // A row that is not sealed, where all are.
    let flags = super::flags();
    let plain = record::EntryFields {
        flags: &flags,
        size: 10,
        ingested_at: BrokerTime(0),
        expires_at: None,
        topic: None,
    };
    put(a, &plain.with_record(&message("from a stranger").record));
    assert_eq!(ids(&home.open()).1, [4]);
}

#[test]
fn no_row_is_sealed_as_another_one_was_whatever_came_in_between() {
    /// Number of the key, salt and count of all rows.
    fn headers(home: &Home) -> Vec<Vec<u8>> {
        let mut headers = Vec::new();
        home.raw(|engine| {
            for table in Table::ALL {
                let mut visit = |_: &keys::Bytes, value: &keys::Bytes| {
                    headers.push(value[..19].to_vec());
                    Ok(ControlFlow::Continue(()))
                };
                read_range(engine, table, &[], None, &mut visit, &mut |_, _| {}).unwrap();
            }
        });
        headers
    }
    let home = Home::new();
    fill(&home.open());
    let first = headers(&home);
    assert!(first.len() > 30);
    // The store as it is now, twice: both go on from there without knowing of each other.
    let copy = Home::new();
    copy_folder(&home.store(), &copy.store());
    let write = |home: &Home| {
        for _ in 0..3 {
            let store = home.open();
            (0..20).for_each(|_| drop(commit(&store, vec![publish("m", &[1, 2])])));
        }
    };
    write(&home);
    write(&copy);
    let all = |home| headers(home).into_iter().filter(|header| !first.contains(header));
    let later: Vec<_> = all(&home).chain(all(&copy)).collect();
    let unique: BTreeSet<_> = first.iter().chain(&later).collect();
    assert!(later.len() > 200, "{}", later.len());
    assert_eq!(unique.len(), first.len() + later.len());
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (
            from.join(entry.as_ref().unwrap().file_name()),
            to.join(entry.unwrap().file_name()),
        );
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn what_can_be_read_of_a_damaged_store_is_saved_and_stays_sealed() {
    let home = Home::new();
    super::damage::large_with(&home.store(), &home.options());
    super::damage::spoil_largest_table(&home.store());
    fs::write(home.store().join("suspect"), "something\n").unwrap();
    let (store, report) = open_queues(&home.store(), &home.options()).unwrap();
    assert!(report.unreadable > 0 && report.lost_entries > 0, "{report:?}");
    let page = store.read(1, everything(), BrokerTime(0)).unwrap();
    assert!(
        page.entries.len() > 1000 && page.damaged.is_empty(),
        "{}",
        page.entries.len()
    );
    let totals = store.totals(1).unwrap().unwrap();
    assert!(
        totals.ledger.balances() && totals.ledger.dropped["corrupt"] > 0,
        "{totals:?}"
    );
    let cipher = store.engine().cipher().unwrap();
    let mut visit = |_: &keys::Bytes, value: &keys::Bytes| {
        assert_eq!(cipher.age(value), Age::Current);
        Ok(ControlFlow::Continue(()))
    };
    read_range(
        store.engine(),
        Table::Queue,
        &[],
        None,
        &mut visit,
        &mut |_, _| {},
    )
    .unwrap();
}
