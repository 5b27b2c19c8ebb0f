//! Devices go over between the instances of a connector while their server counts.

use std::{collections::BTreeMap, fs, path::Path, rc::Rc, time::Duration};

use serde_json::Value;

use crate::{
    plant::{Plant, START},
    site::{Manifests, Site, is_full, wait_until},
};

const DEVICES: usize = 6;
/// Each device has points that count together, and change all at once.
const POINTS: usize = 4;
const INTERVAL: u64 = 50;

/// A server that counts, devices that watch it, and files that take everything down.
fn counting(site: &Site, replicas: usize) -> Manifests {
    let manifests = site.example("manifests");
    manifests.keep(&["broker.yaml", "namespace.yaml", "secrets.yaml"]);
    let points = DEVICES * POINTS;
    manifests.write(
        "counter.yaml",
        &format!(
            "apiVersion: foreshore.dev/v1alpha1\nkind: Simulator\nmetadata: {{name: counter, namespace: bottling}}\n\
             spec:\n  opcua: {{loadPoints: {points}, loadInterval: {INTERVAL}ms}}\n"
        ),
    );
    scale(&manifests, replicas);
    let mut devices = String::new();
    for device in 0..DEVICES {
        devices += &format!(
            "---\napiVersion: foreshore.dev/v1alpha1\nkind: Device\nmetadata: {{name: d{device}, namespace: bottling}}\n\
             spec:\n  simulatorRef: {{name: counter}}\n  trust: {{acceptUntrusted: true}}\n  opcua: {{}}\n\
             ---\napiVersion: foreshore.dev/v1alpha1\nkind: Asset\nmetadata: {{name: a{device}, namespace: bottling}}\n\
             spec:\n  deviceRef: {{name: d{device}}}\n  datasets:\n  - name: count\n    samplingInterval: 10ms\n    \
             publishingInterval: 200ms\n    queueSize: 200\n    dataPoints:\n"
        );
        for point in 0..POINTS {
            let node = device * POINTS + point;
            devices += &format!(
                "    - {{name: p{point}, address: 'nsu=urn:foreshore:sim:bottling-line;s=Load.{node}'}}\n"
            );
        }
    }
    manifests.write("devices.yaml", &devices);
    manifests.write(
        "archive.yaml",
        "apiVersion: foreshore.dev/v1alpha1\nkind: DataflowEndpoint\n\
         metadata: {name: archive, namespace: bottling}\nspec:\n  file: {path: archive}\n\
         ---\napiVersion: foreshore.dev/v1alpha1\nkind: Dataflow\nmetadata: {name: archive, namespace: bottling}\n\
         spec:\n  source:\n    topics: ['foreshore/data/bottling/#']\n  sinks:\n  - name: archive\n    \
         endpointRef: {name: archive}\n    file: {path: counts}\n",
    );
    manifests
}

fn scale(manifests: &Manifests, replicas: usize) {
    manifests.write(
        "connector.yaml",
        &format!(
            "apiVersion: foreshore.dev/v1alpha1\nkind: Connector\nmetadata: {{name: opcua, namespace: bottling}}\n\
             spec: {{protocol: opcua, replicas: {replicas}}}\n"
        ),
    );
}

/// What the files hold: by topic and point every value in the order of its arrival.
fn counts(folder: &Path) -> BTreeMap<(String, String), Vec<u64>> {
    let mut files = Vec::new();
    find(folder, &mut files);
    files.sort();
    let mut counts: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for file in files {
        for line in fs::read_to_string(file).unwrap().lines() {
            // The last line may still be written.
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let Some(values) = line["payload"].as_object() else {
                continue;
            };
            for (point, value) in values {
                let key = (line["topic"].as_str().unwrap().to_owned(), point.clone());
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "it counts"
                )]
                counts
                    .entry(key)
                    .or_default()
                    .push(value["Value"].as_f64().unwrap() as u64);
            }
        }
    }
    counts
}

fn find(folder: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, files);
        } else if path.to_string_lossy().contains(".jsonl") && path.to_string_lossy().contains("counts") {
            files.push(path);
        }
    }
}

/// The instances that have a session, each with the devices that it reports.
fn instances(plant: &Plant) -> BTreeMap<String, usize> {
    let mut instances = BTreeMap::new();
    for device in 0..DEVICES {
        if let Some(instance) = plant.object("Device", &format!("d{device}"))["instance"].as_str() {
            *instances.entry(instance.to_owned()).or_default() += 1;
        }
    }
    instances
}

fn settled(plant: &Plant, replicas: usize) -> bool {
    let connector = plant.object("Connector", "opcua");
    let instances = instances(plant);
    connector["ready"] == "True"
        && instances.len() == replicas
        && instances.values().sum::<usize>() == DEVICES
        && instances.values().all(|devices| *devices == DEVICES / replicas)
}

/// Every point of every device counts up by one, from the first value to the last.
fn assert_counts(plant: &Plant) -> usize {
    let counts = counts(plant.data());
    assert_eq!(counts.len(), DEVICES * POINTS, "{:?}", counts.keys());
    let (mut lost, mut doubled, mut values) = (Vec::new(), Vec::new(), 0);
    for (point, counted) in &counts {
        values += counted.len();
        for pair in counted.windows(2) {
            if pair[1] <= pair[0] {
                doubled.push((point, pair[0], pair[1]));
            } else if pair[1] > pair[0] + 1 {
                lost.push((point, pair[0], pair[1]));
            }
        }
    }
    assert!(
        lost.is_empty() && doubled.is_empty(),
        "of {values} values: lost {lost:?}, doubled or out of order {doubled:?}\n{}",
        plant
            .log()
            .lines()
            .filter(|line| line.contains("device moves") || line.contains("WARN"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    values
}

#[test]
fn one_to_three_to_one_under_load_loses_nothing_and_doubles_nothing() {
    let site = Rc::new(Site::new());
    let manifests = counting(&site, 1);
    let mut plant = Plant::at(&site, &manifests, "data", &[]);
    // An instance that comes again finds what it kept the first time.
    let rounds = if is_full() { 5 } else { 2 };
    plant.wait_until("one instance has all devices", START, || settled(&plant, 1));
    let flows = |at_least: usize| {
        let path = plant.data().to_owned();
        wait_until(START, || {
            counts(&path).values().map(Vec::len).sum::<usize>() >= at_least
        })
    };
    assert!(flows(DEVICES * POINTS * 40), "{}", plant.status_text());
    for _ in 0..rounds {
        for replicas in [3, 1] {
            let began = std::time::Instant::now();
            scale(&manifests, replicas);
            plant.wait_until("devices are spread", START, || settled(&plant, replicas));
            println!("to {replicas} instances in {:.1?}", began.elapsed());
            std::thread::sleep(Duration::from_secs(2));
        }
    }
    plant.end_balanced();
    let log = plant.log();
    let went_on = log.lines().filter(|line| line.contains(" goes on")).count();
    let gaps = log
        .lines()
        .filter(|line| line.contains("gap at the source"))
        .count();
    let values = assert_counts(&plant);
    println!(
        "{values} values of {} points, {went_on} hand-overs, {gaps} gaps",
        DEVICES * POINTS
    );
    assert!(went_on >= 8 * rounds, "{log}");
    assert_eq!(gaps, 0, "{log}");
}
