//! The broker alone with an encrypted store: what its files give away, keys that change under load, and wrong ones.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    thread::sleep,
    time::Duration,
};

use foreshore_peers::{python, script};
use rand::Rng;
use serde_json::{Value, json};

use crate::{
    alone::{Alone, Mixed, random, seed},
    plant::{Plant, SOON, TELEMETRY},
    site::{Site, wait_until},
};

/// Payloads, topics and clients of `mqtt_private.py`. (The payload of a will is kept in another form.)
const PRIVATE: [&str; 7] = [
    "press-operator-7",
    "plant/recipes/",
    "two spoons of sugar",
    "kept recipe",
    "plant/recipes/kept",
    "number of the batch",
    "plant/last-words",
];

/// Topics and clients of the load.
const LOAD: [&str; 6] = [
    "mixed/one",
    "mixed/two",
    "$share/team",
    "retained/1",
    "member-1",
    "publisher-2",
];

/// A folder of keys.
struct Keys(PathBuf);

impl Keys {
    /// A folder with one key.
    fn new(folder: PathBuf, name: &str, byte: u8) -> Self {
        fs::create_dir(&folder).unwrap();
        let keys = Self(folder);
        keys.add(name, byte);
        keys
    }

    /// Adds a key and makes it the active one.
    fn add(&self, name: &str, byte: u8) {
        let path = self.0.join(name);
        fs::write(&path, [byte; 32]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(self.0.join("active"), name).unwrap();
    }
}

/// All files below a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if let Ok(content) = fs::read(&path) {
            // A broker that runs removes files.
            found.insert(path, content);
        }
    }
    found
}

/// Which of the texts are in some file.
fn found<'t>(folder: &Path, texts: &[&'t str]) -> Vec<&'t str> {
    let files: Vec<_> = files(folder)
        .into_values()
        .map(|content| String::from_utf8_lossy(&content).into_owned())
        .collect();
    let is_found = |text: &&&str| files.iter().any(|content| content.contains(**text));
    texts.iter().filter(is_found).copied().collect()
}

/// Leaves what is private in a broker.
fn leave(broker: &Alone) {
    private(broker, "leave");
}

/// Fetches it: everything is there, and once.
fn fetch(broker: &Alone) {
    let told: Value = serde_json::from_str(&private(broker, "fetch")).unwrap();
    let expected = json!({ "session": true, "payloads": ["two spoons of sugar", "kept recipe"] });
    assert_eq!(told, expected);
}

fn private(broker: &Alone, task: &str) -> String {
    let mut command = Command::new(python());
    let command = command
        .arg(script("mqtt_private.py"))
        .arg(broker.port.to_string());
    let output = command.arg(task).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    told
}

#[test]
fn a_broker_that_is_killed_while_its_keys_change_loses_nothing_and_writes_nothing_in_the_clear() {
    let mut random = random(seed());
    let home = tempfile::tempdir().unwrap();
    // What is looked for is there where nothing is encrypted.
    let plain = home.path().join("plain");
    let mut broker = Alone::new(&plain, &home.path().join("log-of-plain"));
    broker.start();
    broker.wait_until_open();
    leave(&broker);
    let mut load = Mixed::start(broker.port);
    load.wait_for(1000);
    load.assert_nothing_lost();
    broker.kill();
    assert_eq!(found(&plain, &PRIVATE), PRIVATE);
    assert_eq!(found(&plain, &LOAD), LOAD);

    let data = home.path().join("data");
    let keys = Keys::new(home.path().join("keys"), "key-0", 7);
    let mut broker = Alone::new(&data, &home.path().join("log"));
    broker.encrypt(&keys.0);
    broker.start();
    broker.wait_until_open();
    leave(&broker);
    let mut load = Mixed::start(broker.port);
    for round in 1..=4_u8 {
        load.wait_for(300);
        let told = broker.log().len();
        keys.add(&format!("key-{round}"), 7 + round);
        if round % 2 == 0 {
            // The other key is found at a start. What was there before is not taken up with it at once.
            broker.kill();
            broker.start();
        }
        let taken_up = wait_until(SOON, || {
            broker
                .log_since(told)
                .contains("the store is opened by another key")
        });
        assert!(taken_up, "round {round}: {}", broker.log_since(told));
        // No other one is needed from now on.
        fs::remove_file(keys.0.join(format!("key-{}", round - 1))).unwrap();
        assert_eq!(found(&data, &PRIVATE), [""; 0], "round {round}");
        assert_eq!(found(&data, &LOAD), [""; 0], "round {round}");
        sleep(Duration::from_millis(random.random_range(0..500)));
        broker.kill();
        broker.start();
        broker.wait_until_open();
    }
    load.assert_nothing_lost();
    let sealed = wait_until(SOON, || {
        let metrics = broker.metrics().unwrap_or_default();
        metrics.contains("foreshore_broker_store_encryption_rewriting 0")
    });
    assert!(sealed, "{}", broker.metrics().unwrap_or_default());
    broker.stop();
    broker.verify();
    assert_eq!(found(&data, &PRIVATE), [""; 0]);
    assert_eq!(found(&data, &LOAD), [""; 0]);
    broker.start();
    broker.wait_until_open();
    fetch(&broker);
}

#[test]
fn a_broker_without_its_key_ends_with_a_clear_error_and_touches_nothing() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let keys = Keys::new(home.path().join("keys"), "spring", 1);
    let mut broker = Alone::new(&data, &home.path().join("log"));
    broker.encrypt(&keys.0);
    broker.start();
    broker.wait_until_open();
    leave(&broker);
    // Not in order, so that a start has something to do.
    broker.kill();

    let before = files(&data);
    let other = Keys::new(home.path().join("other"), "summer", 2);
    let same_name = Keys::new(home.path().join("same-name"), "spring", 3);
    let empty = home.path().join("empty");
    fs::create_dir(&empty).unwrap();
    for (keys, cause) in [
        (Some(&other.0), "found [\"summer\"]"),
        (Some(&same_name.0), "found another key under this name"),
        (Some(&empty), "found no key"),
        (None, "no folder with keys was named"),
    ] {
        let told = broker.log().len();
        match keys {
            Some(keys) => broker.encrypt(keys),
            None => broker.encrypt_no_more(),
        }
        broker.start();
        let status = broker.wait_for_end();
        // Text between escapes of a log, or not.
        let log = broker.log_since(told).replace('\\', "");
        assert!(!status.success(), "{log}");
        assert!(log.contains(cause), "{cause}: {log}");
        if keys != Some(&empty) {
            assert!(log.contains("is encrypted with key \"spring\""), "{log}");
        }
        assert!(files(&data) == before, "the store was changed: {log}");
    }
    broker.encrypt(&keys.0);
    broker.start();
    broker.wait_until_open();
    fetch(&broker);
    broker.stop();
}

#[test]
fn a_store_that_is_not_encrypted_is_taken_up_only_where_that_is_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let keys = Keys::new(home.path().join("keys"), "spring", 1);
    let mut broker = Alone::new(&data, &home.path().join("log"));
    broker.start();
    broker.wait_until_open();
    leave(&broker);
    broker.stop();
    let before = files(&data);
    broker.encrypt(&keys.0);
    broker.start();
    let status = broker.wait_for_end();
    assert!(!status.success() && files(&data) == before, "{}", broker.log());
    assert!(
        broker.log().contains("is to be encrypted") && broker.log().contains("--encrypt-existing"),
        "{}",
        broker.log()
    );
    broker.encrypt_existing();
    broker.start();
    broker.wait_until_open();
    fetch(&broker);
    let sealed = wait_until(SOON, || {
        broker
            .log()
            .contains("all rows of the store are sealed with the current key")
    });
    assert!(sealed, "{}", broker.log());
    broker.stop();
    // It is encrypted now, so there is nothing left to allow.
    broker.encrypt(&keys.0);
    broker.start();
    broker.wait_until_open();
    broker.stop();
    broker.verify();
}

#[test]
fn roles_of_a_plant_keep_their_certificates_and_plans_encrypted_and_start_with_them_again() {
    let site = Rc::new(Site::new());
    let manifests = site.example("manifests");
    let keys = Keys::new(site.path("keys"), "spring", 1);
    // What is looked for is there where nothing is encrypted, and is not believed where it is.
    let start = |arguments: &[&str]| {
        let plant = Plant::at(&site, &manifests, "data", arguments);
        plant.wait_until_flowing(TELEMETRY);
        plant
    };
    let roles = start(&[]).data().join("roles");
    let stored = || {
        let certificates = certificates(&roles).into_values();
        let in_clear = certificates.filter(|content| content.starts_with(b"-----BEGIN"));
        // All that the broker has, and the certificates of the others.
        (found(&roles.join("broker"), &["-----BEGIN"]), in_clear.count())
    };
    let (broker, others) = stored();
    assert!(broker.len() == 1 && others > 3, "{others}");
    let folder = keys.0.to_str().unwrap();
    // Again with the permission, because the store may not have been written anew throughout.
    let start_encrypted = || drop(start(&["--encryption-keys", folder, "--encrypt-existing"]));
    start_encrypted();
    assert_eq!(stored(), (Vec::new(), 0));
    let before = certificates(&roles);
    assert!(before.len() > 3, "{before:?}");
    start_encrypted();
    assert_eq!(stored(), (Vec::new(), 0));
    // They were used, not got anew.
    assert!(certificates(&roles) == before);
}

/// What roles keep their certificates in.
fn certificates(roles: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = files(roles);
    found.retain(|path, _| path.ends_with("session/identity.pem"));
    found
}
