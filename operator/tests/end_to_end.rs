//! The operator with real control sessions: manifests in a folder, roles that only write down what they are told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use foreshore_control::{
    Agent, AgentOptions, Aspect, Change, ControlOptions, Health, Nack, PlanResource, Report, Reporter,
    ResourceKey, Role,
    enroll::LocalTokens,
    plan::{ConnectionPlan, DevicePlan},
};
use foreshore_crds::conditions::reasons;
use foreshore_operator::{
    Begin, Error, Handle, Kind, ObjectKey, Operator, Options, Platform,
    control::{self, ControlPlane, SERVER_NAME},
    facts::{self, RoleFacts},
    source::directory::{self, Directory},
    status::{StatusTable, table::ObjectRow},
    workloads::local::{LocalWorkloads, RoleError, RoleRunner, Start},
};
use foreshore_runtime::Shutdown;
use foreshore_tls::{AuthorityOptions, CertificateAuthority, Role as RoleKind, ServerName};
use jiff::Timestamp;
use parking_lot::Mutex;

const DEADLINE: Duration = Duration::from_secs(60);

const BROKER: &str = "apiVersion: foreshore.dev/v1alpha1\nkind: Broker\nmetadata: {name: main}\nspec: {}\n---\n\
    apiVersion: foreshore.dev/v1alpha1\nkind: Connector\nmetadata: {name: opcua}\nspec: {protocol: opcua}\n";

fn device(address: &str) -> String {
    format!(
        "apiVersion: foreshore.dev/v1alpha1\nkind: Device\nmetadata: {{name: plc}}\nspec:\n  {address}\n  opcua: {{}}\n"
    )
}

/// What roles were told, by role.
type Told = Arc<Mutex<BTreeMap<String, BTreeMap<ResourceKey, serde_json::Value>>>>;

/// Roles that write down what they are told, and report devices as healthy.
struct Fakes {
    told: Told,
    data: PathBuf,
}

struct Fake {
    role: String,
    told: Told,
    reporter: Reporter,
}

#[async_trait]
impl Role for Fake {
    async fn apply(&mut self, change: Change) -> Result<(), Nack> {
        match change {
            Change::Set(resource) => {
                if resource.key().kind == DevicePlan::KIND {
                    let plan: DevicePlan = resource.decode()?;
                    if plan.address.contains("refused") {
                        return Err(Nack::new("BadAddress", "this one is refused"));
                    }
                    let report = Report::new(
                        "Device",
                        &plan.object,
                        Aspect::endpoint(),
                        Health::Available,
                        "Healthy",
                    );
                    self.reporter.report(report.counter("values", 1));
                }
                let body = serde_json::from_slice(resource.body()).unwrap();
                self.told
                    .lock()
                    .entry(self.role.clone())
                    .or_default()
                    .insert(resource.key().clone(), body);
            }
            Change::Remove(key) => drop(
                self.told
                    .lock()
                    .entry(self.role.clone())
                    .or_default()
                    .remove(&key),
            ),
            Change::SnapshotComplete => {}
        }
        Ok(())
    }
}

#[async_trait]
impl RoleRunner for Fakes {
    async fn run(&self, start: Start) -> Result<(), RoleError> {
        let role = start.workload.role.to_string();
        let options = AgentOptions {
            trust: Some(start.trust),
            server_name: Some(ServerName::try_from(SERVER_NAME).unwrap()),
            expected: Some(start.identity),
            ..AgentOptions::new(
                start.control,
                start.credentials,
                self.data.join(role.replace('/', "-")),
            )
        };
        let agent = Agent::new(options).map_err(RoleError::new)?;
        if start.workload.role.role == RoleKind::Broker {
            agent.reporter().tell(
                RoleFacts::default()
                    .with(facts::MQTT, "127.0.0.1:1")
                    .with(facts::QUEUE, "127.0.0.1:2"),
            );
        }
        let fake = Fake {
            role,
            told: Arc::clone(&self.told),
            reporter: agent.reporter(),
        };
        agent.run(fake, start.shutdown).await.map_err(RoleError::new)
    }
}

struct Plant {
    folder: tempfile::TempDir,
    data: tempfile::TempDir,
    told: Told,
}

impl Plant {
    fn new() -> Self {
        foreshore_tls::install_provider();
        Self {
            folder: tempfile::tempdir().unwrap(),
            data: tempfile::tempdir().unwrap(),
            told: Told::default(),
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn below(&self, name: &str) -> PathBuf {
        Path::join(self.data.path(), name)
    }

    async fn start(&self) -> Result<Handle, Error> {
        let source = Directory::open(directory::Options {
            paths: vec![self.folder.path().to_owned()],
            default_namespace: "plant".to_owned(),
            state: Some(self.below("operator")),
            ..directory::Options::default()
        })?;
        let tokens = LocalTokens::new();
        let authority = CertificateAuthority::open(
            &self.below("authority"),
            AuthorityOptions::default(),
            Timestamp::now(),
        )
        .expect("authority");
        let control = ControlPlane::bind(control::Options {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            authority: Arc::new(authority),
            authenticator: Arc::new(tokens.clone()),
            server: ControlOptions::default(),
            uid: "1".to_owned(),
        })
        .await?;
        let fakes = Fakes {
            told: Arc::clone(&self.told),
            data: self.below("roles"),
        };
        let workloads = LocalWorkloads::new(Arc::new(fakes), control.access(), tokens);
        let options = Options {
            source: Box::new(source),
            workloads: Arc::new(workloads),
            control,
            platform: Platform::standalone(),
            begin: Begin::From(self.below("operator")),
            status: None,
        };
        Operator::start(options, Shutdown::new()).await
    }

    fn address(&self) -> Option<String> {
        let told = self.told.lock();
        let plan =
            told.get("connector/plant/opcua")?
                .get(&ResourceKey::new(DevicePlan::KIND, "plant", "plc"))?;
        plan["address"].as_str().map(ToOwned::to_owned)
    }
}

/// Waits until the table is as it should be.
async fn until(handle: &Handle, what: &str, fits: impl Fn(&StatusTable) -> bool) -> StatusTable {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let table = handle.status().await.expect("the operator runs");
        if fits(&table) {
            return table;
        }
        assert!(Instant::now() < deadline, "not in time: {what}\n{table}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn plc(table: &StatusTable) -> Option<&ObjectRow> {
    table.object(&ObjectKey::new(Kind::Device, "plant", "plc"))
}

async fn end(handle: Handle) {
    handle.shutdown(Duration::from_secs(20));
    let ended = tokio::time::timeout(DEADLINE, handle.ended())
        .await
        .expect("ends");
    assert!(ended.is_ok(), "{ended:?}");
    assert!(handle.status().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_folder_to_roles_and_back() {
    let plant = Plant::new();
    plant.write("broker.yaml", BROKER);
    plant.write("plc.yaml", &device("address: opc.tcp://plc:4840"));
    let handle = plant.start().await.unwrap();
    let ready = |table: &StatusTable| table.summary.ready == 3;
    let table = until(&handle, "everything ready", ready).await;
    until(&handle, "health", |table| {
        plc(table).is_some_and(|row| row.healthy.as_deref() == Some("True"))
    })
    .await;
    assert!(
        table.problems.is_empty() && table.roles.iter().all(|role| role.connected),
        "{table}"
    );
    assert_eq!(plant.address().as_deref(), Some("opc.tcp://plc:4840"));
    {
        let told = plant.told.lock();
        let key = ResourceKey::new(ConnectionPlan::KIND, "plant", "main");
        assert_eq!(
            told["connector/plant/opcua"][&key]["mqttAddresses"][0],
            "127.0.0.1:1"
        );
    }

    // A change reaches the role while it runs.
    plant.write("plc.yaml", &device("address: opc.tcp://plc:4841"));
    until(&handle, "the new address", |_| {
        plant.address().as_deref() == Some("opc.tcp://plc:4841")
    })
    .await;
    until(&handle, "generation 2", |table| {
        plc(table).is_some_and(|row| row.generation == 2 && row.ready == "True")
    })
    .await;

    // A wrong one does not, and is told with its place.
    plant.write("plc.yaml", &device("adress: opc.tcp://plc:4842"));
    let wrong = until(&handle, "the problem", |table| !table.problems.is_empty()).await;
    let row = plc(&wrong).unwrap();
    assert_eq!(
        (row.ready.as_str(), row.reason.as_str(), row.running_generation),
        ("False", "Invalid", Some(2))
    );
    let shown = serde_json::to_value(&wrong).unwrap();
    let problem = shown["problems"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["field"] == "spec.adress")
        .unwrap();
    assert_eq!(
        (&problem["line"], &problem["nearest"]),
        (&5.into(), &"address".into())
    );
    assert_eq!(plant.address().as_deref(), Some("opc.tcp://plc:4841"));

    // One that only the role can judge is refused by the role.
    plant.write("plc.yaml", &device("address: opc.tcp://refused:4840"));
    until(&handle, "the refusal", |table| {
        plc(table).is_some_and(|row| row.reason == reasons::REFUSED_BY_ROLE)
    })
    .await;
    assert_eq!(plant.address().as_deref(), Some("opc.tcp://plc:4841"));

    // What is removed is gone.
    fs::remove_file(plant.folder.path().join("plc.yaml")).unwrap();
    until(&handle, "the removal", |table| {
        plc(table).is_none() && plant.address().is_none()
    })
    .await;
    end(handle).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_fails_only_where_nothing_was_accepted() {
    let plant = Plant::new();
    plant.write("broker.yaml", BROKER);
    plant.write("plc.yaml", &device("adress: opc.tcp://plc:4840"));
    // A second try fails as the first one did: what was right of it does not count as accepted.
    for _ in 0..2 {
        let Err(Error::Rejected { problems }) = plant.start().await else {
            panic!("started")
        };
        assert!(
            problems
                .iter()
                .any(|problem| problem.to_string().contains("did you mean address?")),
            "{problems:?}"
        );
    }

    plant.write("plc.yaml", &device("address: opc.tcp://plc:4840"));
    let handle = plant.start().await.unwrap();
    until(&handle, "everything ready", |table| table.summary.ready == 3).await;
    end(handle).await;

    plant.write("plc.yaml", "kind: [\n");
    plant.told.lock().clear();
    let handle = plant.start().await.unwrap();
    let table = until(&handle, "what was accepted", |_| plant.address().is_some()).await;
    // The wrong version of the first start was generation 1.
    assert_eq!(plc(&table).unwrap().running_generation, Some(2));
    assert_eq!(plant.address().as_deref(), Some("opc.tcp://plc:4840"));
    end(handle).await;
}
