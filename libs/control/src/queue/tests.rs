use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use foreshore_record::{Record, TopicName};
use foreshore_runtime::Shutdown;
use foreshore_tls::{AuthorityOptions, CertificateAuthority, Identity, Role, RoleIdentity, ServerName};
use jiff::Timestamp;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    Error, Paths, ReadRange,
    client::RemotePaths,
    server::{self, Purpose},
    testing::{Fixture, MemoryPaths, run_suite},
};
use crate::transport::{ConnectOptions, ServeOptions, serve_tls};

struct InMemory(MemoryPaths);

#[async_trait]
impl Fixture for InMemory {
    fn paths(&self) -> Arc<dyn Paths> {
        Arc::new(self.0.clone())
    }

    async fn create(&self, path: &str) {
        self.0.create(path);
    }

    async fn delete(&self, path: &str) {
        self.0.delete(path);
    }

    async fn publish(&self, path: &str, record: Record) {
        self.0.publish(path, record);
    }
}

/// The same queues, seen through gRPC.
struct OverGrpc {
    behind: InMemory,
    client: RemotePaths,
}

#[async_trait]
impl Fixture for OverGrpc {
    fn paths(&self) -> Arc<dyn Paths> {
        Arc::new(self.client.clone())
    }

    async fn create(&self, path: &str) {
        self.behind.create(path).await;
    }

    async fn delete(&self, path: &str) {
        self.behind.delete(path).await;
    }

    async fn publish(&self, path: &str, record: Record) {
        self.behind.publish(path, record).await;
    }
}

struct Server {
    authority: CertificateAuthority,
    memory: MemoryPaths,
    address: String,
    shutdown: Shutdown,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        foreshore_tls::install_provider();
        let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
        let memory = MemoryPaths::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut server = Self {
            authority,
            memory,
            address,
            shutdown: Shutdown::new(),
            serving: tokio::spawn(async {}),
        };
        server.serving = server.serve(listener);
        server
    }

    fn serve(&self, listener: TcpListener) -> JoinHandle<()> {
        let identity = self.identity(Role::Broker, "main");
        let access = |role: &RoleIdentity, path: &str, purpose: Purpose| match role.role() {
            Role::Dataflow => {
                path.starts_with(&format!("dataflow/{}/", role.namespace())) && role.name() == "runner"
            }
            Role::Operator => purpose == Purpose::Inspect,
            _ => false,
        };
        let routes = server::service(Arc::new(self.memory.clone()), Arc::new(access));
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            serve_tls(listener, &identity, &ServeOptions::default(), routes, &shutdown)
                .await
                .unwrap();
        })
    }

    fn identity(&self, role: Role, name: &str) -> Identity {
        let names = [ServerName::try_from("localhost").unwrap()];
        let role = RoleIdentity::new(role, "plant", name, "u1").unwrap();
        let credentials = self
            .authority
            .issue_credentials(&role, &names, Timestamp::now())
            .unwrap();
        Identity::new(&credentials, self.authority.bundle()).unwrap()
    }

    fn client(&self, role: Role, name: &str) -> RemotePaths {
        let server_name = ServerName::try_from("localhost").unwrap();
        let addresses = [self.address.clone()];
        let identity = self.identity(role, name);
        RemotePaths::new(&addresses, &identity, &server_name, &ConnectOptions::default()).unwrap()
    }
}

fn range() -> ReadRange {
    ReadRange {
        after: 0,
        before: None,
        max_entries: 10,
        max_bytes: 1 << 20,
        wait: Duration::ZERO,
    }
}

fn record() -> Record {
    Record::new(TopicName::new("t").unwrap(), "{}")
}

#[tokio::test]
async fn queues_in_memory_pass_the_suite() {
    run_suite(&InMemory(MemoryPaths::new())).await;
}

#[tokio::test]
async fn queues_over_grpc_pass_the_suite() {
    let server = Server::start().await;
    let client = server.client(Role::Dataflow, "runner");
    run_suite(&OverGrpc {
        behind: InMemory(server.memory.clone()),
        client,
    })
    .await;
    server.shutdown.begin(Duration::from_secs(10));
    server.serving.await.unwrap();
}

#[tokio::test]
async fn a_role_gets_only_what_its_certificate_entitles_it_to() {
    let server = Server::start().await;
    let (own, foreign) = ("dataflow/plant/a->b", "dataflow/office/a->b");
    for path in [own, foreign] {
        server.memory.create(path);
        server.memory.publish(path, record());
    }
    let forbidden = |path: &str| {
        Some(Error::Forbidden {
            path: path.to_owned(),
        })
    };

    let runner = server.client(Role::Dataflow, "runner");
    assert!(runner.open(own).await.is_ok());
    assert_eq!(runner.open(foreign).await.err(), forbidden(foreign));
    assert_eq!(runner.replay(foreign, &[1]).await.err(), forbidden(foreign));
    let visible = runner.totals().await.unwrap();
    assert_eq!(
        visible
            .iter()
            .map(|totals| totals.ledger.path.as_str())
            .collect::<Vec<_>>(),
        [own]
    );

    let other = server.client(Role::Dataflow, "other-runner");
    assert_eq!(other.open(own).await.err(), forbidden(own));
    let connector = server.client(Role::Connector, "runner");
    assert_eq!(connector.open(own).await.err(), forbidden(own));
    let operator = server.client(Role::Operator, "operator");
    assert_eq!(operator.open(own).await.err(), forbidden(own));
    assert_eq!(operator.totals().await.unwrap().len(), 2);
}

#[tokio::test]
async fn after_a_restart_of_the_broker_the_path_is_opened_again() {
    let mut server = Server::start().await;
    let path = "dataflow/plant/a->b";
    server.memory.create(path);
    server.memory.publish(path, record());
    let client = server.client(Role::Dataflow, "runner");
    let opened = client.open(path).await.unwrap();
    assert_eq!(opened.read(range()).await.unwrap().entries.len(), 1);

    server.shutdown.begin(Duration::from_millis(100));
    (&mut server.serving).await.unwrap();
    assert!(matches!(
        opened.read(range()).await,
        Err(Error::Unavailable { .. })
    ));

    server.shutdown = Shutdown::new();
    server.serving = server.serve(TcpListener::bind(&server.address).await.unwrap());
    let closed = Error::Closed {
        path: path.to_owned(),
    };
    let mut found = opened.read(range()).await;
    for _ in 0..100 {
        if found.as_ref().is_err_and(|error| *error == closed) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        found = opened.read(range()).await;
    }
    assert_eq!(found.err(), Some(closed));
    let again = client.open(path).await.unwrap();
    assert!(again.epoch() > opened.epoch());
    assert_eq!(again.read(range()).await.unwrap().entries[0].attempt, 1);
}
