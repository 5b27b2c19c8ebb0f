//! The OPC UA server of the line goes away and comes back.

use std::{process::Command, rc::Rc};

use foreshore_peers::{Program, free_port};

use crate::{
    plant::{Plant, SOON, START, TELEMETRY, foreshore},
    site::Site,
};

/// The simulated line as a process of its own.
struct Server {
    site: Rc<Site>,
    port: u16,
    faults: u16,
    program: Program,
}

impl Server {
    fn start(site: &Rc<Site>) -> Self {
        let (port, faults) = (free_port(), free_port());
        Self {
            site: Rc::clone(site),
            port,
            faults,
            program: Self::program(site, port, faults),
        }
    }

    fn program(site: &Site, port: u16, faults: u16) -> Program {
        let mut command: Command = foreshore();
        command
            .args(["sim", "opcua", "--listen", &format!("127.0.0.1:{port}")])
            .args(["--faults", &format!("127.0.0.1:{faults}")])
            .args(["--user", "foreshore:example-line-password", "--pki"])
            .arg(site.path("pki"));
        Program::start(command, "/faults")
    }

    fn kill(&mut self) {
        self.program.kill();
    }

    fn restart(&mut self) {
        self.program = Self::program(&self.site, self.port, self.faults);
    }

    /// Lets something go wrong.
    fn fault(&self, fault: &str) {
        foreshore_tls::install_provider();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let request = reqwest::Client::new()
            .post(format!("http://127.0.0.1:{}/faults", self.faults))
            .header("content-type", "application/json")
            .body(fault.to_owned());
        let response = runtime.block_on(request.send()).unwrap();
        assert!(response.status().is_success(), "{response:?}");
    }
}

/// The server is killed and started again; it drops its connections and refuses new ones. Each time the status
/// says what is wrong, with the evidence and the next step, and data flows again by itself.
#[test]
fn a_server_that_was_away_delivers_again_by_itself() {
    let site = Rc::new(Site::new());
    let mut server = Server::start(&site);
    let manifests = site.example("manifests");
    let address = format!("address: opc.tcp://127.0.0.1:{}/", server.port);
    manifests.edit("line.yaml", "simulatorRef:\n    name: line-1", &address);
    let mut plant = Plant::at(&site, &manifests, "data", &[]);
    plant.wait_until_flowing(TELEMETRY);

    server.kill();
    plant.wait_until("the device is told to be unhealthy", SOON, || {
        plant.object("Device", "line-1")["healthy"] == "False"
    });
    let device = plant.object("Device", "line-1");
    assert!(
        device["evidence"]
            .as_str()
            .is_some_and(|evidence| !evidence.is_empty()),
        "{device:#}"
    );
    assert!(device["next"].is_string(), "{device:#}");
    assert_eq!(plant.object("Device", "camera-1")["healthy"], "True");
    plant.wait_until("its assets are told to be unhealthy", SOON, || {
        plant.object("Asset", "filler")["healthy"] == "False"
    });
    server.restart();
    plant.wait_until("the device is healthy again", START, || {
        plant.object("Device", "line-1")["healthy"] == "True"
    });
    plant.wait_until("its assets are healthy again", START, || {
        plant.object("Asset", "filler")["healthy"] == "True"
    });
    plant.wait_until_flowing(TELEMETRY);

    server.fault(r#"{"kind":"dropConnections","seconds":8}"#);
    plant.wait_until("the device is told to be unhealthy", SOON, || {
        plant.object("Device", "line-1")["healthy"] == "False"
    });
    plant.wait_until("the device is healthy again", START, || {
        plant.object("Device", "line-1")["healthy"] == "True"
    });
    plant.wait_until_flowing(TELEMETRY);
    plant.end_balanced();
}
