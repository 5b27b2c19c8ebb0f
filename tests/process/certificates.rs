//! Certificates are renewed while data flows.

use std::{fs, rc::Rc};

use crate::{
    plant::{Plant, START, TELEMETRY},
    publisher::{Load, Publisher},
    site::Site,
};

/// The certificate that the edge shows to the cloud lives for seconds, and so do those that roles show to each other. Each
/// is renewed several times, and not a record is lost or doubled.
#[test]
fn certificates_are_renewed_while_data_flows() {
    let site = Rc::new(Site::new());
    let manifests = site.example("manifests");
    manifests.add_numbers();
    manifests.edit(
        "cloud.yaml",
        "  history:",
        "  certificates:\n    lifetime: 10s\n  history:",
    );
    let mut plant = Plant::at(&site, &manifests, "data", &["--certificate-lifetime", "15s"]);
    plant.wait_until_delivered(TELEMETRY, 1, START);
    let cloud = plant.cloud();
    let edge_ends = || cloud.edge().unwrap()["certificateEndsAt"].clone();
    let chain =
        |role: &str| fs::read(plant.data().join("roles").join(role).join("session/identity.pem")).unwrap();
    let roles = [
        "broker/bottling/broker",
        "dataflow/bottling/dataflows",
        "connector/bottling/opcua",
    ];
    let load = Load { rate: 200, size: 100 };
    let mut publisher = Publisher::start(site.ports.mqtt, "numbers/renewed", load);
    for _ in 0..3 {
        let (edge, of_roles) = (edge_ends(), roles.map(chain));
        plant.wait_until("a new certificate of the edge", START, || edge_ends() != edge);
        plant.wait_until("new certificates of roles", START, || {
            roles.iter().zip(&of_roles).all(|(role, old)| chain(role) != *old)
        });
        publisher.wait_for(200, START);
        plant.wait_until_flowing(TELEMETRY);
    }
    publisher.finish();
    plant.wait_until("nothing waits", START, || {
        plant
            .path("dataflow/bottling/numbers->cloud")
            .is_some_and(|path| path.waiting == 0)
    });
    publisher.assert_once_in(&cloud);
    let ledger = plant.path("dataflow/bottling/numbers->cloud").unwrap();
    assert_eq!(ledger.received, publisher.acknowledged.len() as u64);
    for path in ["dataflow/bottling/numbers->cloud", TELEMETRY] {
        plant.wait_until_same_in(&cloud, path);
    }
    // Nobody had to be told off.
    assert!(
        !plant.log().contains("certificate of the edge has expired"),
        "{}",
        plant.log()
    );
    plant.end_balanced();
}
