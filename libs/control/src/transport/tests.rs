use std::net::SocketAddr;

use foreshore_runtime::Shutdown;
use foreshore_tls::{
    AuthorityOptions, CertificateAuthority, ClientAuth, Identity, Refusal, Role, RoleIdentity, ServerName,
};
use jiff::Timestamp;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};

use super::*;
use crate::proto::{self, control_client::ControlClient, control_server};

const DEADLINE: Duration = Duration::from_secs(60);

/// Answers an enrolment with who asked, and keeps sessions open without a word.
#[derive(Default)]
struct Echo {
    open: watch::Sender<usize>,
}

#[tonic::async_trait]
impl control_server::Control for Echo {
    async fn enroll(
        &self,
        request: Request<proto::EnrollRequest>,
    ) -> Result<Response<proto::EnrollResponse>, Status> {
        let peer = Peer::of(&request).unwrap();
        let role = peer
            .identity
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        let chain = vec![role.into_bytes().into()];
        let certificate = Some(proto::Certificate {
            chain,
            roots: Vec::new(),
        });
        Ok(Response::new(proto::EnrollResponse { certificate }))
    }

    type SessionStream = ReceiverStream<Result<proto::ToRole, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::FromRole>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (keep, messages) = tokio::sync::mpsc::channel(1);
        let open = self.open.clone();
        open.send_modify(|open| *open += 1);
        tokio::spawn(async move {
            let mut inbound = request.into_inner();
            while let Ok(Some(_)) = inbound.message().await {}
            open.send_modify(|open| *open -= 1);
            drop(keep);
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

struct Setup {
    authority: CertificateAuthority,
    server: Identity,
    address: SocketAddr,
    shutdown: Shutdown,
    open: watch::Receiver<usize>,
    serving: tokio::task::JoinHandle<Result<(), Error>>,
}

async fn serve(options: ServeOptions) -> Setup {
    let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
    let server = identity(&authority, Role::Broker, &["localhost"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = Shutdown::new();
    let echo = Echo::default();
    let open = echo.open.subscribe();
    let routes = Routes::new(control_server::ControlServer::new(echo));
    let (held, ended) = (server.clone(), shutdown.clone());
    let serving = tokio::spawn(async move { serve_tls(listener, &held, &options, routes, &ended).await });
    Setup {
        authority,
        server,
        address,
        shutdown,
        open,
        serving,
    }
}

fn identity(authority: &CertificateAuthority, role: Role, names: &[&str]) -> Identity {
    let names: Vec<_> = names
        .iter()
        .map(|name| ServerName::try_from(name.to_string()).unwrap())
        .collect();
    let role = RoleIdentity::new(role, "plant", "line", "u1").unwrap();
    let credentials = authority
        .issue_credentials(&role, &names, Timestamp::now())
        .unwrap();
    Identity::new(&credentials, authority.bundle()).unwrap()
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

async fn dial(address: SocketAddr, identity: &Identity) -> Result<tonic::transport::Channel, Error> {
    channel(
        &address.to_string(),
        identity,
        localhost(),
        &ConnectOptions::default(),
    )
    .await
}

async fn ask(channel: tonic::transport::Channel) -> Result<String, Status> {
    let answer = ControlClient::new(channel)
        .enroll(proto::EnrollRequest::default())
        .await?;
    let chain = answer.into_inner().certificate.unwrap().chain;
    Ok(String::from_utf8(chain[0].to_vec()).unwrap())
}

#[tokio::test]
async fn a_service_learns_who_asks() {
    let setup = serve(ServeOptions {
        client_auth: ClientAuth::Optional,
        ..ServeOptions::default()
    })
    .await;
    let client = identity(&setup.authority, Role::Dataflow, &[]);
    let channel = dial(setup.address, &client).await.unwrap();
    assert_eq!(ask(channel).await.unwrap(), "dataflow/plant/line/u1");
    let anonymous = Identity::anonymous(setup.authority.bundle()).unwrap();
    assert_eq!(
        ask(dial(setup.address, &anonymous).await.unwrap()).await.unwrap(),
        ""
    );
}

#[tokio::test]
async fn dialling_tells_why_it_failed() {
    let setup = serve(ServeOptions::default()).await;
    let other = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();

    let stranger = identity(&other, Role::Dataflow, &[]);
    let error = dial(setup.address, &stranger).await.unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Refused {
                refusal: Refusal::Untrusted,
                ..
            }
        ),
        "{error}"
    );

    stranger.set_bundle(setup.authority.bundle()).unwrap();
    let error = dial(setup.address, &stranger).await.unwrap_err().to_string();
    assert!(
        error.contains("not issued by an authority that it trusts"),
        "{error}"
    );

    let anonymous = Identity::anonymous(setup.authority.bundle()).unwrap();
    let error = dial(setup.address, &anonymous).await.unwrap_err().to_string();
    assert!(error.contains("requires a certificate"), "{error}");

    let client = identity(&setup.authority, Role::Dataflow, &[]);
    let name = ServerName::try_from("elsewhere").unwrap();
    let address = setup.address.to_string();
    let error = channel(&address, &client, name, &ConnectOptions::default())
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Refused {
                refusal: Refusal::WrongName { .. },
                ..
            }
        ),
        "{error}"
    );

    let options = ConnectOptions {
        expected_role: Some(Role::Operator),
        ..ConnectOptions::default()
    };
    let error = channel(&address, &client, localhost(), &options)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("broker/plant/line/u1, but should be of role operator"),
        "{error}"
    );

    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let error = dial(closed, &client).await.unwrap_err();
    assert!(
        matches!(&error, Error::Connect { reason, .. } if reason.contains("refused")),
        "{error}"
    );
    for bad in ["", "localhost", "no port:", "http://x"] {
        let error = channel(bad, &client, localhost(), &ConnectOptions::default())
            .await
            .unwrap_err();
        assert!(matches!(&error, Error::Address { .. }), "{bad}: {error}");
    }
}

#[tokio::test]
async fn a_silent_server_does_not_hold_its_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
    let client = identity(&authority, Role::Dataflow, &[]);
    let options = ConnectOptions {
        timeout: Duration::from_millis(200),
        ..ConnectOptions::default()
    };
    let error = timeout(DEADLINE, channel(&address, &client, localhost(), &options))
        .await
        .unwrap()
        .unwrap_err();
    assert!(error.to_string().contains("no answer within"), "{error}");
}

#[tokio::test]
async fn stalled_handshakes_do_not_stop_others() {
    let options = ServeOptions {
        handshake_timeout: Duration::from_millis(300),
        ..ServeOptions::default()
    };
    let setup = serve(ServeOptions {
        max_connections: 3,
        ..options
    })
    .await;
    let mut stalled = Vec::new();
    for _ in 0..3 {
        stalled.push(TcpStream::connect(setup.address).await.unwrap());
    }
    let client = identity(&setup.authority, Role::Dataflow, &[]);
    let channel = timeout(DEADLINE, dial(setup.address, &client))
        .await
        .unwrap()
        .unwrap();
    assert!(ask(channel).await.is_ok());
}

#[tokio::test]
async fn a_channel_uses_the_new_certificate_after_a_break() {
    let setup = serve(ServeOptions::default()).await;
    let client = identity(&setup.authority, Role::Dataflow, &[]);
    let link = Link::start(setup.address).await;
    let channel = dial(link.address, &client).await.unwrap();
    assert_eq!(ask(channel.clone()).await.unwrap(), "dataflow/plant/line/u1");
    let renamed = RoleIdentity::new(Role::Connector, "plant", "other", "u2").unwrap();
    let credentials = setup
        .authority
        .issue_credentials(&renamed, &[], Timestamp::now())
        .unwrap();
    client.replace(&credentials).unwrap();
    assert_eq!(
        ask(channel.clone()).await.unwrap(),
        "dataflow/plant/line/u1",
        "a live connection changed"
    );
    link.break_all();
    let again = async {
        loop {
            if let Ok(role) = ask(channel.clone()).await {
                break role;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(
        timeout(DEADLINE, again).await.unwrap(),
        "connector/plant/other/u2"
    );
}

/// Both ends notice that the other one is gone, although no connection was closed.
#[tokio::test]
async fn vanished_peers_are_noticed() {
    let keepalive = Keepalive {
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(300),
    };
    let mut setup = serve(ServeOptions {
        keepalive,
        ..ServeOptions::default()
    })
    .await;
    let client = identity(&setup.authority, Role::Dataflow, &[]);
    let link = Link::start(setup.address).await;
    let options = ConnectOptions {
        keepalive,
        ..ConnectOptions::default()
    };
    let channel = channel(&link.address.to_string(), &client, localhost(), &options)
        .await
        .unwrap();
    let (keep, messages) = tokio::sync::mpsc::channel(1);
    let mut inbound = ControlClient::new(channel)
        .session(ReceiverStream::new(messages))
        .await
        .unwrap()
        .into_inner();
    setup.open.wait_for(|open| *open == 1).await.unwrap();
    link.freeze();
    timeout(DEADLINE, inbound.message()).await.unwrap().unwrap_err();
    timeout(DEADLINE, setup.open.wait_for(|open| *open == 0))
        .await
        .unwrap()
        .unwrap();
    drop(keep);
}

#[tokio::test]
async fn a_shutdown_lets_requests_finish_until_its_deadline_and_cuts_the_rest() {
    let setup = serve(ServeOptions::default()).await;
    let client = identity(&setup.authority, Role::Dataflow, &[]);
    let channel = dial(setup.address, &client).await.unwrap();
    let (keep, messages) = tokio::sync::mpsc::channel(1);
    let mut inbound = ControlClient::new(channel)
        .session(ReceiverStream::new(messages))
        .await
        .unwrap()
        .into_inner();
    setup.shutdown.begin(Duration::from_millis(300));
    timeout(DEADLINE, setup.serving).await.unwrap().unwrap().unwrap();
    let status = timeout(DEADLINE, inbound.message()).await.unwrap().unwrap_err();
    assert!(
        matches!(status.code(), Code::Unknown | Code::Unavailable | Code::Internal),
        "{status}"
    );
    assert!(
        TcpStream::connect(setup.address).await.is_err(),
        "the port is still open"
    );
    drop((keep, setup.server));
}

/// A wire between client and server that can break, or stop to carry anything while it looks whole.
struct Link {
    address: SocketAddr,
    state: watch::Sender<Wire>,
}

#[derive(Clone, Copy, PartialEq)]
enum Wire {
    Whole(u32),
    Frozen,
}

impl Link {
    async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = watch::Sender::new(Wire::Whole(0));
        let changes = state.subscribe();
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut far = TcpStream::connect(server).await.unwrap();
                let mut changes = changes.clone();
                changes.mark_unchanged();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = changes.changed() => {
                            if *changes.borrow() == Wire::Frozen {
                                // Nothing is carried, and nothing is closed.
                                std::future::pending::<()>().await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, state }
    }

    fn break_all(&self) {
        self.state.send_modify(|state| {
            *state = match state {
                Wire::Whole(number) => Wire::Whole(*number + 1),
                Wire::Frozen => Wire::Whole(0),
            }
        });
    }

    fn freeze(&self) {
        self.state.send_replace(Wire::Frozen);
    }
}
