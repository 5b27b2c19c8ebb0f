//! A broker whose store is encrypted: what is on its disk, other keys while it runs, and none.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use foreshore_broker::{Broker, Error, Options, Storage};
use foreshore_store::{Encryption, StoreError, StoreOptions};
use rmqtt_codec::{types::QoS, v5};
use tempfile::TempDir;

use crate::{
    TestBroker,
    client::{Client, back, retained},
    options,
    protocol::will,
    role::{Plant, broker},
};

/// How long the broker may take to look at its keys again and to seal everything anew.
const DEADLINE: Duration = Duration::from_secs(120);

fn write_key(keys: &TempDir, name: &str, byte: u8) {
    let path = keys.path().join(name);
    fs::write(&path, [byte; 32]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn options_with(directory: &TempDir, keys: Option<&TempDir>) -> Options {
    let options_of_store = StoreOptions {
        encryption_keys: keys.map(|keys| keys.path().to_owned()),
        ..StoreOptions::default()
    };
    let storage = Storage::Directory {
        path: directory.path().to_owned(),
        options: options_of_store,
    };
    Options { storage, ..options() }
}

/// Whether some file below a folder holds these bytes.
fn holds(folder: &Path, wanted: &str) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, wanted);
        }
        let content = fs::read(path).unwrap();
        // Journals are allocated beforehand: most of them is zeros.
        let end = content
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        content[..end]
            .windows(wanted.len())
            .any(|window| window == wanted.as_bytes())
    })
}

/// Waits until the store is as it is wanted.
async fn until(broker: &TestBroker, is_wanted: impl Fn(&Encryption) -> bool) -> Encryption {
    let wait = async {
        loop {
            let encryption = broker.handle.encryption().await.unwrap();
            if is_wanted(&encryption) {
                return encryption;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap()
}

const SECRETS: [&str; 6] = [
    "press-operator-7",
    "plant/recipes/secret",
    "two spoons of sugar",
    "kept recipe",
    "plant/recipes/kept",
    "plant/last-words",
];

/// A session that is away with messages that wait for it, a retained message and a will that is delayed.
async fn work(broker: &TestBroker) {
    let connect = v5::Connect {
        last_will: Some(will("plant/last-words", Some(3000))),
        ..back("press-operator-7")
    };
    let (mut reader, _) = Client::connect(broker.address, connect).await;
    reader.subscribe("plant/recipes/#", QoS::AtLeastOnce).await;
    drop(reader);
    let mut publisher = Client::clean(broker.address, "p").await;
    publisher
        .publish("plant/recipes/secret", "two spoons of sugar")
        .await;
    publisher
        .publish_packet(retained("plant/recipes/kept", "kept recipe", QoS::AtLeastOnce, 1))
        .await;
}

async fn check(broker: &TestBroker) {
    let (mut reader, ack) = Client::connect(broker.address, back("press-operator-7")).await;
    assert!(ack.session_present);
    assert_eq!(reader.take().await, "two spoons of sugar");
    assert_eq!(reader.take().await, "kept recipe");
    let mut other = Client::clean(broker.address, "other").await;
    other.subscribe("plant/recipes/+", QoS::AtMostOnce).await;
    assert_eq!(other.take().await, "kept recipe");
}

#[tokio::test]
async fn nothing_that_clients_sent_is_on_the_disk_in_the_clear() {
    // What is looked for is there where nothing is encrypted.
    let plain = tempfile::tempdir().unwrap();
    let broker = TestBroker::start_with(options_with(&plain, None)).await;
    work(&broker).await;
    broker.stop().await;
    for secret in SECRETS {
        assert!(holds(plain.path(), secret), "{secret}");
    }
    let (directory, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_key(&keys, "spring", 1);
    let broker = TestBroker::start_with(options_with(&directory, Some(&keys))).await;
    work(&broker).await;
    broker.stop().await;
    for secret in SECRETS {
        assert!(!holds(directory.path(), secret), "{secret}");
    }
    let broker = TestBroker::start_with(options_with(&directory, Some(&keys))).await;
    check(&broker).await;
    broker.stop().await;
}

#[tokio::test]
async fn another_key_is_taken_up_while_clients_are_connected() {
    let (directory, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_key(&keys, "spring", 1);
    let broker = TestBroker::start_with(options_with(&directory, Some(&keys))).await;
    work(&broker).await;
    let mut connected = Client::clean(broker.address, "connected").await;
    connected.subscribe("live", QoS::AtLeastOnce).await;
    assert_eq!(broker.handle.encryption().await.unwrap().key, "spring");
    write_key(&keys, "autumn", 2);
    fs::write(keys.path().join("active"), "autumn").unwrap();
    let encryption = until(&broker, |encryption| {
        encryption.key == "autumn" && !encryption.is_rewriting
    })
    .await;
    assert_eq!(encryption.problem, None);
    let mut publisher = Client::clean(broker.address, "q").await;
    publisher.publish("live", "still here").await;
    assert_eq!(connected.take().await, "still here");
    broker.stop().await;
    // The old key is needed no more.
    fs::remove_file(keys.path().join("spring")).unwrap();
    let broker = TestBroker::start_with(options_with(&directory, Some(&keys))).await;
    check(&broker).await;
    broker.stop().await;
}

#[tokio::test]
async fn a_broker_without_the_key_does_not_start_and_destroys_nothing() {
    let (directory, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_key(&keys, "spring", 1);
    let broker = TestBroker::start_with(options_with(&directory, Some(&keys))).await;
    work(&broker).await;
    broker.stop().await;
    let other = tempfile::tempdir().unwrap();
    write_key(&other, "autumn", 2);
    for keys in [None, Some(&other)] {
        let error = Broker::start(options_with(&directory, keys)).await.err().unwrap();
        assert!(matches!(error, Error::Store(StoreError::NoKey { .. })), "{error}");
        assert!(error.to_string().contains("\"spring\""), "{error}");
    }
    let broker = TestBroker::start_with(options_with(&directory, Some(&keys))).await;
    check(&broker).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_with_encryption_needs_keys_and_says_whether_an_existing_store_is_encrypted() {
    let spec = |encryption: serde_json::Value| {
        let listener = serde_json::json!({
            "name": "open", "port": 0, "protocol": "Tcp", "authentication": [{ "anonymous": {} }],
        });
        broker(serde_json::json!({ "listeners": [listener], "storage": { "encryption": encryption } }))
    };
    let wanted = spec(serde_json::json!({ "secretRef": { "name": "store-keys" } }));
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let mut plant = Plant::keeping(directory, None);
    let nack = plant.set(&wanted).await.unwrap_err();
    assert_eq!(nack.reason, "UnsupportedHere");
    assert!(
        nack.message.contains("spec.storage.encryption"),
        "{}",
        nack.message
    );
    assert!(!store.exists());

    let (directory, keys) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_key(&keys, "spring", 1);
    foreshore_store::open(&directory.path().join("store"), &StoreOptions::default()).unwrap();
    let mut plant = Plant::keeping(directory, Some(keys.path().to_owned()));
    let nack = plant.set(&wanted).await.unwrap_err();
    assert_eq!(nack.reason, "StorageFailed");
    assert!(nack.message.contains("encryptExisting"), "{}", nack.message);
    let allowed = serde_json::json!({ "secretRef": { "name": "store-keys" }, "encryptExisting": true });
    plant.set(&spec(allowed)).await.unwrap();
    let mut client = Client::clean(plant.address("open"), "a").await;
    client.publish("a", "b").await;
}
