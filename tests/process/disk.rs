//! The disk is full, damaged, or can't be written.

use std::{fs, path::Path, rc::Rc};

use crate::{
    plant::{Plant, SOON, START, foreshore},
    publisher::{Load, Publisher},
    site::{Manifests, Site},
};

const NUMBERS: &str = "dataflow/bottling/numbers->cloud";

/// Where the broker keeps messages, below the data folder.
const STORE: &str = "roles/broker/bottling/broker/store";

/// The disk of the broker's messages fills up. Publishes are refused, and the status says why; what was acknowledged stays
/// and is delivered; when there is space again, everything goes on by itself.
#[test]
fn a_full_disk_refuses_what_is_new_and_keeps_what_was_acknowledged() {
    let site = Rc::new(Site::new());
    let manifests = site.example("manifests");
    manifests.add_numbers();
    manifests.edit(
        "broker.yaml",
        "    maxAge: 72h",
        "    maxAge: 72h\n    minFreeBytes: 64Mi",
    );
    let script = format!("mkdir -p $0/{STORE} && mount -t tmpfs -o size=256m,mode=700 tmpfs $0/{STORE}");
    let Some(mut plant) = Plant::mounted(&site, &manifests, "data", &script) else {
        return;
    };
    plant.wait_until_flowing(crate::plant::TELEMETRY);
    let load = Load { rate: 100, size: 100 };
    let mut publisher = Publisher::start(site.ports.mqtt, "numbers/disk", load);
    publisher.wait_for(100, START);

    // What somebody else puts on the disk.
    let filler = plant.data().join(STORE).join("of-somebody-else");
    fs::write(&filler, vec![1; 200 << 20]).unwrap();
    plant.wait_until("the broker is told to be unhealthy", SOON, || {
        plant.object("Broker", "broker")["healthy"] == "False"
    });
    let broker = plant.object("Broker", "broker");
    assert_eq!(broker["reason"], "StorageFailed", "{broker:#}");
    assert!(
        broker["evidence"]
            .as_str()
            .is_some_and(|told| told.contains("MiB are free")),
        "{broker:#}"
    );
    assert!(broker["next"].is_string(), "{broker:#}");
    plant.wait_until("publishes are refused", SOON, || {
        publisher.hear();
        !publisher.refused.is_empty()
    });
    assert_eq!(publisher.refused[0].1, "0x97");
    // What waits goes on to the cloud meanwhile.
    plant.wait_until("nothing waits", SOON, || {
        plant.path(NUMBERS).is_some_and(|path| path.waiting == 0)
    });

    fs::remove_file(&filler).unwrap();
    plant.wait_until("the broker is healthy again", SOON, || {
        plant.object("Broker", "broker")["healthy"] == "True"
    });
    publisher.wait_for(100, SOON);
    publisher.finish();
    plant.wait_until_flowing(crate::plant::TELEMETRY);
    plant.wait_until("nothing waits", SOON, || {
        plant.path(NUMBERS).is_some_and(|path| path.waiting == 0)
    });
    publisher.assert_once_in(&plant.cloud());
    plant.end_balanced();
}

/// Lets numbers wait for a broker that is never there.
fn to_nowhere(manifests: &Manifests) {
    manifests.add_numbers();
    manifests.write(
        "nowhere.yaml",
        "apiVersion: foreshore.dev/v1alpha1\nkind: DataflowEndpoint\nmetadata: {name: nowhere, namespace: bottling}\n\
         spec: {mqtt: {address: 'mqtt://127.0.0.1:1'}}\n",
    );
    manifests.edit(
        "numbers.yaml",
        "endpointRef:\n      name: cloud",
        "endpointRef:\n      name: nowhere",
    );
}

/// Flips bits in the middle of the store's files.
fn damage(store: &Path) {
    let mut files = Vec::new();
    let mut folders = vec![store.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                files.push((entry.metadata().unwrap().len(), entry.path()));
            }
        }
    }
    let (_, largest) = files.into_iter().max().unwrap();
    let mut content = fs::read(&largest).unwrap();
    // Files are made in advance; what is behind the last byte says nothing.
    let used = content.iter().rposition(|byte| *byte != 0).unwrap();
    for place in [used / 4, used / 2] {
        for byte in &mut content[place..place + 16] {
            *byte ^= 0x55;
        }
    }
    fs::write(&largest, content).unwrap();
}

/// Bits flip in the store's journal between two runs. It starts all the same, counts what is lost as dropped for being
/// corrupt, says so, and everything else is still there.
#[test]
fn a_damaged_store_is_opened_and_its_loss_is_counted() {
    const PATH: &str = "dataflow/bottling/numbers->cloud";
    let mut plant = Plant::with(to_nowhere);
    plant.wait_until_flowing(crate::plant::TELEMETRY);
    // So little that nothing is flushed from the journal into tables, where damage is found when it is read.
    let load = Load { rate: 500, size: 100 };
    let mut publisher = Publisher::start(plant.site.ports.mqtt, "numbers/damaged", load);
    publisher.wait_for(500, START);
    publisher.finish();
    let acknowledged = publisher.acknowledged.len() as u64;
    assert_eq!(plant.path(PATH).unwrap().waiting, acknowledged);
    plant.kill();
    damage(&plant.data().join(STORE));
    plant.restart();
    plant.wait_until_flowing(crate::plant::TELEMETRY);
    let path = plant.path(PATH).unwrap();
    assert!(path.balances(), "{path:?}");
    let lost = path.dropped.get("corrupt").copied().unwrap_or_default();
    assert!(lost > 0 && lost < acknowledged / 2, "{path:?}");
    assert_eq!(
        (path.received, path.waiting),
        (acknowledged, acknowledged - lost),
        "{path:?}"
    );
    assert!(plant.log().contains("damaged"), "{}", plant.log());
    plant.end_balanced();
}

/// A data folder that can't be written is told at once, by its name.
#[test]
fn a_data_folder_that_cant_be_written_is_named() {
    let site = Rc::new(Site::new());
    let manifests = site.example("manifests");
    fs::write(site.path("file"), "in the way").unwrap();
    let output = foreshore()
        .arg("up")
        .arg(&manifests.0)
        .arg("--data")
        .arg(site.path("file").join("data"))
        .output()
        .unwrap();
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && why.contains("file/data"),
        "{why}"
    );

    let Some(mut plant) = Plant::mounted(&site, &manifests, "data", "mount -t tmpfs -o ro tmpfs $0") else {
        return;
    };
    let status = plant.wait();
    let log = plant.log();
    assert!(
        status.code() == Some(1) && log.contains("error: data directory"),
        "{log}"
    );
    assert!(
        log.contains("Read-only file system") && log.contains("/data"),
        "{log}"
    );
}
