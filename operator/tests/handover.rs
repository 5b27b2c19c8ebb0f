//! Hand-overs through real control sessions, and everything that may end in the middle of one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use foreshore_control::{
    Agent, AgentOptions, Change, ControlOptions, GivePlan, HandOver, Nack, PlanResource, Reporter,
    ResourceKey, Role, Stage, TakePlan, Turn, enroll::LocalTokens, handover::CAPABILITY, plan::DevicePlan,
};
use foreshore_operator::{
    Begin, Handle, Operator, Options, Platform, RoleName,
    control::{self, ControlPlane, SERVER_NAME},
    facts::{self, RoleFacts},
    kubernetes::Revisions,
    source::directory::{self, Directory},
    workloads::{Instance, InstanceState, Running, Workload, Workloads},
};
use foreshore_runtime::Shutdown;
use foreshore_tls::{AuthorityOptions, CertificateAuthority, Role as RoleKind, RoleIdentity, ServerName};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};

const DEADLINE: Duration = Duration::from_secs(60);
const DEVICES: usize = 4;

/// What an instance does with a device, by the time of the test.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Doing {
    Waiting { since: u64 },
    Serving { from: u64 },
    Given { upto: Option<u64> },
}

type States = BTreeMap<String, Doing>;

/// What all instances do, and what they have handed over.
struct World {
    began: Instant,
    states: Mutex<BTreeMap<String, States>>,
    /// By device: from when to when someone handed its data over.
    ledger: Mutex<BTreeMap<String, Vec<(u64, u64)>>>,
    /// The stage that nobody reaches now.
    held: watch::Sender<Option<Stage>>,
    /// How often each instance had something to say of each device: only the last counts.
    words: Mutex<BTreeMap<(String, String), u64>>,
}

impl World {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap()
    }

    fn close(&self, device: &str, doing: Option<Doing>) -> u64 {
        let now = self.now();
        if let Some(Doing::Serving { from }) = doing {
            let mut ledger = self.ledger.lock();
            ledger.entry(device.to_owned()).or_default().push((from, now));
        }
        now
    }

    /// Who serves each device; one that two serve fails.
    fn servers(&self) -> BTreeMap<String, String> {
        let mut servers = BTreeMap::new();
        for (uid, states) in &*self.states.lock() {
            for (device, doing) in states {
                if matches!(doing, Doing::Serving { .. }) {
                    let other = servers.insert(device.clone(), uid.clone());
                    assert_eq!(other, None, "{device} is served twice");
                }
            }
        }
        servers
    }
}

/// An instance of the connector.
struct Fake {
    world: Arc<World>,
    uid: String,
    reporter: Reporter,
    takes: BTreeMap<String, TakePlan>,
    gives: BTreeMap<String, GivePlan>,
}

impl Fake {
    fn doing(&self, device: &str) -> Option<Doing> {
        self.world.states.lock().get(&self.uid)?.get(device).copied()
    }

    fn set(&self, device: &str, doing: Option<Doing>) {
        let mut states = self.world.states.lock();
        let own = states.entry(self.uid.clone()).or_default();
        match doing {
            Some(doing) => drop(own.insert(device.to_owned(), doing)),
            None => drop(own.remove(device)),
        }
    }

    /// Says where it stands, as soon as that stage may be reached.
    fn tell(&self, device: &str, stage: Stage, number: u64, watermark: Option<u64>) {
        let told = HandOver {
            device: ResourceKey::new(DevicePlan::KIND, "plant", device),
            stage,
            number,
            epoch: 1,
            watermark: watermark
                .map_or_else(Vec::new, |upto| upto.to_be_bytes().to_vec())
                .into(),
        };
        let (reporter, mut held) = (self.reporter.clone(), self.world.held.subscribe());
        let (world, about) = (Arc::clone(&self.world), (self.uid.clone(), device.to_owned()));
        let word = {
            let mut words = world.words.lock();
            let word = words.entry(about.clone()).or_default();
            *word += 1;
            *word
        };
        tokio::spawn(async move {
            drop(held.wait_for(|held| *held != Some(stage)).await);
            let words = world.words.lock();
            if words.get(&about) == Some(&word) {
                reporter.hand_over(told);
            }
        });
    }

    async fn step(&self, device: &str) {
        let now = self.world.now();
        let (take, give) = (self.takes.get(device), self.gives.get(device));
        match (self.doing(device), take, give) {
            (None, _, Some(give)) => {
                self.set(device, Some(Doing::Given { upto: None }));
                self.tell(device, Stage::Given, give.number, None);
            }
            (Some(doing @ Doing::Serving { .. }), _, Some(give)) => {
                let upto = self.world.close(device, Some(doing));
                self.set(device, Some(Doing::Given { upto: Some(upto) }));
                self.tell(device, Stage::Given, give.number, Some(upto));
            }
            (Some(Doing::Given { upto }), _, Some(give)) => {
                self.tell(device, Stage::Given, give.number, upto);
            }
            (doing @ (None | Some(Doing::Waiting { .. })), Some(take), None) => {
                let since = match doing {
                    Some(Doing::Waiting { since }) => since,
                    _ => now,
                };
                let from = match &take.turn {
                    Turn::Wait => {
                        self.set(device, Some(Doing::Waiting { since }));
                        self.tell(device, Stage::Ready, take.number, None);
                        return;
                    }
                    turn @ Turn::After { .. } => {
                        let upto = turn.watermark().unwrap();
                        since.max(u64::from_be_bytes(upto.try_into().unwrap()))
                    }
                    Turn::Lost { .. } => since,
                };
                let mut held = self.world.held.subscribe();
                drop(held.wait_for(|held| *held != Some(Stage::Serving)).await);
                self.set(device, Some(Doing::Serving { from }));
                self.tell(device, Stage::Serving, take.number, None);
            }
            (Some(Doing::Given { upto }), _, None) => {
                self.set(
                    device,
                    Some(Doing::Serving {
                        from: upto.unwrap_or(now),
                    }),
                );
                self.tell(device, Stage::Serving, 0, None);
            }
            (None, None, None) => {
                self.set(device, Some(Doing::Serving { from: now }));
                self.tell(device, Stage::Serving, 0, None);
            }
            _ => {}
        }
    }
}

#[async_trait]
impl Role for Fake {
    async fn apply(&mut self, change: Change) -> Result<(), Nack> {
        match change {
            Change::Set(resource) => {
                let device = resource.key().name.clone();
                match resource.key().kind.as_str() {
                    TakePlan::KIND => drop(self.takes.insert(device.clone(), resource.decode()?)),
                    GivePlan::KIND => drop(self.gives.insert(device.clone(), resource.decode()?)),
                    DevicePlan::KIND => {
                        self.step(&device).await;
                        return Ok(());
                    }
                    _ => return Ok(()),
                }
                if self.doing(&device).is_some() {
                    self.step(&device).await;
                }
            }
            Change::Remove(key) => match key.kind.as_str() {
                TakePlan::KIND => drop(self.takes.remove(&key.name)),
                GivePlan::KIND => {
                    self.gives.remove(&key.name);
                    if self.doing(&key.name).is_some() {
                        self.step(&key.name).await;
                    }
                }
                DevicePlan::KIND => {
                    self.world.close(&key.name, self.doing(&key.name));
                    self.set(&key.name, None);
                    self.reporter.forget_hand_over(&key);
                }
                _ => {}
            },
            Change::SnapshotComplete => {}
        }
        Ok(())
    }
}

/// Workloads that the test starts and ends itself.
struct Hands {
    running: watch::Sender<Arc<Running>>,
}

#[async_trait]
impl Workloads for Hands {
    async fn apply(&self, _desired: BTreeMap<RoleName, Workload>) {}

    fn running(&self) -> watch::Receiver<Arc<Running>> {
        self.running.subscribe()
    }

    async fn end(&self) {}
}

struct Plant {
    folder: tempfile::TempDir,
    data: tempfile::TempDir,
    authority: Arc<CertificateAuthority>,
    tokens: LocalTokens,
    ports: [u16; 2],
    hands: Arc<Hands>,
    world: Arc<World>,
    agents: BTreeMap<String, JoinHandle<()>>,
    operator: Option<Handle>,
    epoch: u64,
}

fn role(kind: RoleKind, name: &str) -> RoleName {
    RoleName::new(kind, "plant", name)
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

impl Plant {
    async fn new() -> Self {
        foreshore_tls::install_provider();
        let (folder, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut manifests =
            "apiVersion: foreshore.dev/v1alpha1\nkind: Broker\nmetadata: {name: main}\nspec: {}\n---\n\
            apiVersion: foreshore.dev/v1alpha1\nkind: Connector\nmetadata: {name: opcua}\n\
            spec: {protocol: opcua, replicas: 2}\n"
                .to_owned();
        for device in 0..DEVICES {
            manifests += &format!(
                "---\napiVersion: foreshore.dev/v1alpha1\nkind: Device\nmetadata: {{name: d{device}}}\n\
                 spec: {{address: 'opc.tcp://plc-{device}:4840', opcua: {{}}}}\n"
            );
        }
        fs::write(folder.path().join("plant.yaml"), manifests).unwrap();
        let authority = CertificateAuthority::open(
            &data.path().join("authority"),
            AuthorityOptions::default(),
            Timestamp::now(),
        );
        let mut plant = Self {
            folder,
            data,
            authority: Arc::new(authority.unwrap()),
            tokens: LocalTokens::new(),
            ports: [free_port(), free_port()],
            hands: Arc::new(Hands {
                running: watch::Sender::new(Arc::default()),
            }),
            world: Arc::new(World {
                began: Instant::now(),
                states: Mutex::default(),
                ledger: Mutex::default(),
                held: watch::Sender::new(None),
                words: Mutex::default(),
            }),
            agents: BTreeMap::new(),
            operator: None,
            epoch: 0,
        };
        plant.lead().await;
        plant.join(RoleKind::Broker, "main", "b").await;
        plant.join(RoleKind::Connector, "opcua", "one").await;
        plant.settle(1).await;
        plant
    }

    /// Another operator leads, which knows nothing of the one before.
    async fn lead(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.shutdown(Duration::from_secs(5));
            drop(
                tokio::time::timeout(DEADLINE, operator.ended())
                    .await
                    .expect("ends"),
            );
        }
        self.epoch += 1;
        let source = Directory::open(directory::Options {
            paths: vec![self.folder.path().to_owned()],
            default_namespace: "plant".to_owned(),
            state: None,
            ..directory::Options::default()
        });
        let port = self.ports[usize::try_from(self.epoch % 2).unwrap()];
        let control = ControlPlane::bind(control::Options {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            authority: Arc::clone(&self.authority),
            authenticator: Arc::new(self.tokens.clone()),
            server: ControlOptions::default(),
            uid: self.epoch.to_string(),
        });
        let options = Options {
            source: Box::new(source.unwrap()),
            workloads: Arc::clone(&self.hands) as Arc<dyn Workloads>,
            control: control.await.unwrap(),
            platform: Platform::standalone(),
            begin: Begin::Lead {
                epoch: self.epoch,
                earlier: Revisions::default(),
            },
            status: None,
        };
        self.operator = Some(Operator::start(options, Shutdown::new()).await.unwrap());
    }

    fn change(&self, change: impl FnOnce(&mut Running)) {
        self.hands.running.send_modify(|running| {
            let mut changed = (**running).clone();
            change(&mut changed);
            *running = Arc::new(changed);
        });
    }

    /// An instance begins.
    async fn join(&mut self, kind: RoleKind, name: &str, uid: &str) {
        let instance = Instance {
            identity: RoleIdentity::new(kind, "plant", name, uid).unwrap(),
            state: InstanceState::Running {
                since: Timestamp::now(),
            },
            restarts: 0,
            leaving: false,
        };
        let role = role(kind, name);
        self.change(|running| running.instances.entry(role).or_default().push(instance));
        self.run(kind, name, uid);
    }

    fn run(&mut self, kind: RoleKind, name: &str, uid: &str) {
        let identity = RoleIdentity::new(kind, "plant", name, uid).unwrap();
        let directory: PathBuf = self.data.path().join(uid);
        let addresses = self.ports.map(|port| format!("127.0.0.1:{port}")).to_vec();
        let credentials = self.tokens.source(identity.clone(), DEADLINE);
        let options = AgentOptions {
            trust: Some(self.authority.subscribe().borrow().bundle.clone()),
            server_name: Some(ServerName::try_from(SERVER_NAME).unwrap()),
            expected: Some(identity),
            capabilities: BTreeSet::from([CAPABILITY.to_owned()]),
            retry: (Duration::from_millis(20), Duration::from_millis(200)),
            ..AgentOptions::new(addresses, credentials, directory)
        };
        let agent = Agent::new(options).unwrap();
        if kind == RoleKind::Broker {
            let facts = RoleFacts::default().with(facts::MQTT, "127.0.0.1:1");
            agent.reporter().tell(facts.with(facts::QUEUE, "127.0.0.1:2"));
        }
        let fake = Fake {
            world: Arc::clone(&self.world),
            uid: uid.to_owned(),
            reporter: agent.reporter(),
            takes: BTreeMap::new(),
            gives: BTreeMap::new(),
        };
        let task = tokio::spawn(async move { drop(agent.run(fake, Shutdown::new()).await) });
        self.agents.insert(uid.to_owned(), task);
    }

    /// Its process ends outright.
    async fn stop(&mut self, uid: &str) {
        let agent = self.agents.remove(uid).unwrap();
        agent.abort();
        drop(agent.await);
        let states = self.world.states.lock().remove(uid).unwrap_or_default();
        for (device, doing) in states {
            self.world.close(&device, Some(doing));
        }
    }

    /// It is gone for good.
    async fn kill(&mut self, uid: &str) {
        self.stop(uid).await;
        let role = role(RoleKind::Connector, "opcua");
        self.change(|running| {
            let instances = running.instances.entry(role).or_default();
            instances.retain(|one| one.identity.uid() != uid);
        });
    }

    fn leave(&self, uid: &str) {
        let role = role(RoleKind::Connector, "opcua");
        self.change(|running| {
            let instances = running.instances.entry(role).or_default();
            for one in instances.iter_mut().filter(|one| one.identity.uid() == uid) {
                one.leaving = true;
            }
        });
    }

    async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(&self.world) {
            let states = self.world.states.lock().clone();
            assert!(Instant::now() < deadline, "not in time: {what}: {states:#?}");
            self.world.servers();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until so many instances serve all devices, and everything is ready.
    async fn settle(&self, instances: usize) {
        self.until(&format!("{instances} serve"), |world| {
            let servers = world.servers();
            let serving: BTreeSet<_> = servers.values().collect();
            let states = world.states.lock();
            let devices: usize = states.values().map(BTreeMap::len).sum();
            servers.len() == DEVICES && serving.len() == instances && devices == DEVICES
        })
        .await;
        let deadline = Instant::now() + DEADLINE;
        let operator = self.operator.as_ref().unwrap();
        loop {
            let table = operator.status().await.unwrap();
            if table.summary.ready == table.summary.objects {
                return;
            }
            assert!(Instant::now() < deadline, "not ready: {table}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How often data is missing, and how often it is there twice.
    fn judge(&self) -> (usize, usize) {
        let states = std::mem::take(&mut *self.world.states.lock());
        for (device, doing) in states.into_values().flatten() {
            self.world.close(&device, Some(doing));
        }
        let (mut lost, mut doubled) = (0, 0);
        for spans in self.world.ledger.lock().values_mut() {
            spans.sort_unstable();
            for pair in spans.windows(2) {
                lost += usize::from(pair[1].0 > pair[0].1);
                doubled += usize::from(pair[1].0 < pair[0].1);
            }
        }
        (lost, doubled)
    }

    /// Stops hand-overs before a stage, and begins some.
    async fn held_before(&mut self, stage: Stage) {
        self.world.held.send_replace(Some(stage));
        self.join(RoleKind::Connector, "opcua", "two").await;
        let begun = |doing: &Doing| match stage {
            Stage::Ready | Stage::Refused => matches!(doing, Doing::Waiting { .. }),
            Stage::Given | Stage::Serving => matches!(doing, Doing::Given { .. }),
        };
        self.until("it has begun", |world| {
            world.states.lock().values().flat_map(BTreeMap::values).any(begun)
        })
        .await;
        // Whatever is still on its way gets there.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    fn go_on(&self) {
        self.world.held.send_replace(None);
    }
}

/// Before which hand-overs are stopped: while the heir joins, while the owner leaves, while the heir enters.
const STAGES: [Stage; 3] = [Stage::Ready, Stage::Given, Stage::Serving];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_to_three_to_one_is_seamless() {
    let mut plant = Plant::new().await;
    plant.join(RoleKind::Connector, "opcua", "two").await;
    plant.join(RoleKind::Connector, "opcua", "three").await;
    plant.settle(3).await;
    plant.leave("one");
    plant.settle(2).await;
    plant.kill("one").await;
    plant.leave("three");
    plant.settle(1).await;
    assert_eq!(plant.judge(), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_in_the_middle_changes_nothing() {
    for stage in STAGES {
        let mut plant = Plant::new().await;
        plant.held_before(stage).await;
        plant.lead().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        plant.go_on();
        plant.settle(2).await;
        assert_eq!(plant.judge(), (0, 0), "before {stage:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_heir_that_dies_leaves_everything_as_it_was() {
    for stage in STAGES {
        let mut plant = Plant::new().await;
        plant.held_before(stage).await;
        plant.kill("two").await;
        plant.go_on();
        plant.settle(1).await;
        assert_eq!(plant.judge(), (0, 0), "before {stage:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_dies_repeats_and_loses_nothing_that_the_heir_saw() {
    for stage in STAGES {
        let mut plant = Plant::new().await;
        plant.held_before(stage).await;
        let before = plant.world.states.lock()["two"].clone();
        plant.kill("one").await;
        plant.go_on();
        plant.settle(1).await;
        let (lost, _) = plant.judge();
        let unseen = DEVICES - before.len();
        assert!(lost <= unseen, "{lost} of {unseen} before {stage:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_begin_anew_go_on_where_they_were() {
    for stage in STAGES {
        for uid in ["one", "two"] {
            let mut plant = Plant::new().await;
            plant.held_before(stage).await;
            plant.stop(uid).await;
            plant.run(RoleKind::Connector, "opcua", uid);
            plant.go_on();
            // That one serves a device and another does, too, fails on the way.
            plant.settle(2).await;
        }
    }
}
