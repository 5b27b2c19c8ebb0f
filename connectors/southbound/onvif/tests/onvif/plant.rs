//! The connector with a broker stand-in, and what tests ask of it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use foreshore_connector_onvif::OnvifConnector;
use foreshore_connector_sdk::{
    RunnerOptions,
    testkit::{Harness, NAMESPACE, asset, device, secret},
};
use foreshore_control::Report;
use foreshore_mqtt::Requester;
use foreshore_record::{CommandError, Record, TopicName, property};
use foreshore_runtime::Task;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Generous: a deadline, never a measurement.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Name of the device.
const CAMERA: &str = "camera";
/// Name of its asset.
const DOOR: &str = "door";

/// A plant with one camera.
pub(crate) struct Plant {
    pub(crate) harness: Harness,
    requester: Option<(Requester, Task<()>)>,
    directory: TempDir,
}

impl Plant {
    /// A connector without a camera yet.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut options = RunnerOptions::new(directory.path().join("state"));
        options.report_interval = Duration::from_millis(50);
        let connector = Arc::new(OnvifConnector);
        let harness = Harness::with(connector, options, Default::default())
            .await
            .unwrap();
        Self {
            harness,
            requester: None,
            directory,
        }
    }

    /// A directory for what a camera keeps.
    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Dials a camera as `admin`, if a password is given, and with what its block `onvif` says.
    pub(crate) async fn dial(&mut self, address: &str, password: Option<&str>, onvif: Value) {
        let mut spec = json!({
            "onvif": { "requestTimeout": "2s", "keepAliveInterval": "1s" },
            "reconnect": { "initial": "100ms", "maximum": "500ms" },
        });
        for (name, value) in onvif.as_object().unwrap() {
            spec["onvif"][name] = value.clone();
        }
        if let Some(password) = password {
            spec["authentication"] = json!({ "usernamePassword": { "secretRef": { "name": "login" } } });
            let login = secret("login", &[("username", "admin"), ("password", password)]);
            self.harness.set(&login).await.unwrap();
        }
        let device = device(CAMERA, address, spec).unwrap();
        self.harness.set(&device).await.unwrap();
    }

    /// Dials a camera with what its block `trust` says of certificates; those are PEM.
    pub(crate) async fn dial_trusting(&mut self, address: &str, trust: Value, certificate: &str) {
        self.harness
            .set(&secret("certificates", &[("camera.crt", certificate)]))
            .await
            .unwrap();
        let spec = json!({
            "onvif": { "requestTimeout": "2s", "keepAliveInterval": "1s" },
            "reconnect": { "initial": "100ms", "maximum": "500ms" },
            "trust": trust,
        });
        let device = device(CAMERA, address, spec).unwrap();
        self.harness.set(&device).await.unwrap();
    }

    /// Plans the asset at the camera. Each action is named after its operation, in the group `control`.
    pub(crate) async fn watch(&mut self, operations: &[&str], mut spec: Value) {
        let action = |operation: &&str| json!({ "name": operation.to_lowercase(), "type": "Call", "onvif": { "operation": operation } });
        let actions: Vec<Value> = operations.iter().map(action).collect();
        if !actions.is_empty() {
            spec["actionGroups"] = json!([{ "name": "control", "actions": actions }]);
        }
        let asset = asset(DOOR, CAMERA, spec).unwrap();
        self.harness.set(&asset).await.unwrap();
    }

    /// Waits until the camera has a health of that reason; what was seen of it.
    pub(crate) async fn camera_is(&self, reason: &str) -> String {
        self.is("Device", CAMERA, "Endpoint", reason).await
    }

    /// Waits until a part of the asset has a health of that reason; what was seen of it.
    pub(crate) async fn part_is(&self, aspect: &str, reason: &str) -> String {
        self.is("Asset", DOOR, aspect, reason).await
    }

    /// Waits until a text was seen of the camera; all of it.
    pub(crate) async fn camera_says(&self, text: &str) -> String {
        self.says("Device", CAMERA, "Endpoint", text).await
    }

    /// Waits until a text was seen of a part of the asset; all of it.
    pub(crate) async fn part_says(&self, aspect: &str, text: &str) -> String {
        self.says("Asset", DOOR, aspect, text).await
    }

    async fn is(&self, kind: &str, name: &str, aspect: &str, reason: &str) -> String {
        let report = self.report(kind, name, aspect, |report| report.reason == reason);
        report.await.message
    }

    async fn says(&self, kind: &str, name: &str, aspect: &str, text: &str) -> String {
        let says = |report: &Report| report.message.contains(text) || report.evidence.contains(text);
        let report = self.report(kind, name, aspect, says).await;
        format!("{} {}", report.message, report.evidence)
    }

    async fn report(&self, kind: &str, name: &str, aspect: &str, holds: impl Fn(&Report) -> bool) -> Report {
        let reports = &self.harness.reports;
        let mut found = None;
        let reached = reports.wait_until(SOON, |reports| {
            found = reports.report(kind, name, aspect);
            found.as_ref().is_some_and(&holds)
        });
        assert!(reached.await, "{name} {aspect} became {found:?}");
        found.unwrap()
    }

    /// Messages of a member of the asset.
    pub(crate) fn messages(&self, member: &str) -> Vec<Record> {
        let mut records = self.harness.broker.kept();
        records.retain(|record| record.user_property(property::MEMBER) == Some(member));
        records
    }

    /// Waits for one more message of a member of the asset, and returns it.
    pub(crate) async fn next(&self, member: &str) -> Record {
        self.next_that(member, |_| true).await
    }

    /// Waits for one more message of a member of the asset for which something holds, and returns it.
    pub(crate) async fn next_that(&self, member: &str, holds: impl Fn(&Record) -> bool) -> Record {
        let known = self.messages(member).len();
        let find = || self.messages(member).into_iter().skip(known).find(&holds);
        let came = self.harness.broker.wait_until(SOON, |_| find().is_some()).await;
        let report = self.harness.reports.report("Device", CAMERA, "Endpoint");
        assert!(came, "no message of {member:?}: {report:?}");
        find().unwrap()
    }

    /// Sends a command to an action by its operation, and waits for its outcome.
    pub(crate) async fn invoke(&mut self, operation: &str, input: &Value) -> Result<Value, CommandError> {
        let action = operation.to_lowercase();
        let topic = format!("foreshore/commands/{NAMESPACE}/{DOOR}/control/{action}");
        if self.requester.is_none() {
            let filter = format!("foreshore/commands/{NAMESPACE}/{DOOR}/+/+");
            let broker = &self.harness.broker;
            assert!(
                broker
                    .wait_until(SOON, |broker| broker.filters().contains(&filter))
                    .await
            );
            let (client, task) = self.harness.client("tester").unwrap();
            let responses = TopicName::new("foreshore/responses/tester").unwrap();
            self.requester = Some((Requester::new(&client, responses).await.unwrap(), task));
        }
        let payload = serde_json::to_vec(input).unwrap();
        let request = Record::new(TopicName::new(topic).unwrap(), payload);
        let (requester, _) = self.requester.as_ref().unwrap();
        let response = requester.request(request, SOON).await.unwrap();
        match response.user_property(property::COMMAND_STATUS) {
            Some("ok") => Ok(serde_json::from_slice(&response.payload).unwrap()),
            _ => Err(serde_json::from_slice(&response.payload).unwrap()),
        }
    }
}

/// Width and height that a picture's properties tell.
pub(crate) fn size_of(picture: &Record) -> (u32, u32) {
    let number = |name| {
        picture
            .user_property(name)
            .and_then(|text| text.parse().ok())
            .unwrap_or_default()
    };
    (number(property::WIDTH), number(property::HEIGHT))
}

/// Asks until something holds, or for too long.
pub(crate) async fn eventually<T>(mut ask: impl AsyncFnMut() -> T, holds: impl Fn(&T) -> bool) -> T {
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let answer = ask().await;
        if holds(&answer) || tokio::time::Instant::now() > end {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
