//! Peers of other versions, and operators that are none.

use std::sync::Arc;

use bytes::Bytes;
use foreshore_runtime::Shutdown;
use foreshore_tls::{
    AuthorityOptions, CertificateAuthority, Fingerprint, Identity, Role, RoleIdentity, ServerName,
};
use jiff::Timestamp;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, service::Routes};

use super::{
    harness::*,
    protocol::{dial, identity},
};
use crate::{
    enroll::StaticCredential,
    proto::{self, from_role, to_role},
    resource::LARGEST_BODY,
    session::{OLDEST_PROTOCOL, PROTOCOL, negotiate},
    transport::{ServeOptions, serve_tls},
};

#[test]
fn versions_next_to_each_other_talk() {
    assert_eq!(negotiate(OLDEST_PROTOCOL, PROTOCOL), Some(PROTOCOL));
    assert_eq!(negotiate(PROTOCOL, PROTOCOL + 1), Some(PROTOCOL), "one newer");
    assert_eq!(negotiate(PROTOCOL + 1, PROTOCOL + 2), None, "two newer");
    assert_eq!(negotiate(0, OLDEST_PROTOCOL - 1), None, "too old");
}

/// Messages as a later version might define them.
mod newer {
    use crate::proto;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct FromRole {
        #[prost(message, optional, tag = "1")]
        pub(super) hello: Option<Hello>,
        #[prost(message, optional, tag = "2")]
        pub(super) held: Option<proto::Held>,
        #[prost(message, optional, tag = "5")]
        pub(super) report: Option<Report>,
        /// A message that this version does not know.
        #[prost(string, optional, tag = "900")]
        pub(super) future: Option<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Hello {
        #[prost(uint32, tag = "1")]
        pub(super) oldest_protocol: u32,
        #[prost(uint32, tag = "2")]
        pub(super) newest_protocol: u32,
        #[prost(bytes = "vec", tag = "901")]
        pub(super) future: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Report {
        #[prost(message, optional, tag = "1")]
        pub(super) object: Option<proto::ResourceKey>,
        #[prost(message, optional, tag = "2")]
        pub(super) aspect: Option<proto::Aspect>,
        /// A health that this version does not know.
        #[prost(int32, tag = "3")]
        pub(super) health: i32,
        #[prost(double, tag = "902")]
        pub(super) future: f64,
    }
}

#[tokio::test]
async fn a_newer_role_is_understood_as_far_as_possible() {
    let mut operator = Operator::start().await;
    operator
        .handle
        .set_plan(&role("raw"), vec![resource("a", "1")])
        .unwrap();
    let channel = dial(&operator, &identity(&operator)).await;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let future = newer::FromRole {
        future: Some("?".to_owned()),
        ..newer::FromRole::default()
    };
    let hello = newer::Hello {
        oldest_protocol: PROTOCOL,
        newest_protocol: PROTOCOL + 1,
        future: vec![1, 2, 3],
    };
    let held = proto::Held {
        resources: Vec::new(),
        complete: true,
    };
    let report = newer::Report {
        object: Some(key("line").into()),
        aspect: Some(proto::Aspect {
            kind: "Hologram".to_owned(),
            name: "x".to_owned(),
        }),
        health: 77,
        future: 1.5,
    };
    let (outbound, messages) = mpsc::channel(16);
    for message in [
        newer::FromRole {
            hello: Some(hello),
            ..newer::FromRole::default()
        },
        future.clone(),
        newer::FromRole {
            held: Some(held),
            ..newer::FromRole::default()
        },
        future,
        newer::FromRole {
            report: Some(report),
            ..newer::FromRole::default()
        },
    ] {
        outbound.send(message).await.unwrap();
    }
    let codec: tonic_prost::ProstCodec<newer::FromRole, proto::ToRole> = tonic_prost::ProstCodec::default();
    let path = http::uri::PathAndQuery::from_static("/foreshore.control.v1alpha1.Control/Session");
    let answer = client
        .streaming(Request::new(ReceiverStream::new(messages)), path, codec)
        .await
        .unwrap();
    let mut inbound = answer.into_inner();
    let mut set = false;
    while !set {
        let message = within("a message", inbound.message())
            .await
            .unwrap()
            .unwrap()
            .message
            .unwrap();
        match message {
            to_role::Message::Welcome(welcome) => assert_eq!(welcome.protocol, PROTOCOL),
            to_role::Message::Set(_) => set = true,
            to_role::Message::Goodbye(goodbye) => panic!("{goodbye:?}"),
            _ => {}
        }
    }
    let seen = operator
        .until("report", |seen| match seen {
            crate::Observation::Report(report) => Some(report.clone()),
            _ => None,
        })
        .await;
    assert_eq!(seen.health, crate::Health::Unknown);
    assert_eq!(seen.aspect.to_string(), "Hologram x");
}

/// An operator made by hand: says what it is given, and hands on what it hears.
struct Script {
    says: Vec<proto::ToRole>,
    heard: mpsc::Sender<proto::FromRole>,
}

#[tonic::async_trait]
impl proto::control_server::Control for Script {
    async fn enroll(
        &self,
        _: Request<proto::EnrollRequest>,
    ) -> Result<Response<proto::EnrollResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type SessionStream = ReceiverStream<Result<proto::ToRole, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::FromRole>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbound, messages) = mpsc::channel(16);
        let (says, heard) = (self.says.clone(), self.heard.clone());
        tokio::spawn(async move {
            for message in says {
                outbound.send(Ok(message)).await.unwrap();
            }
            let mut inbound = request.into_inner();
            while let Ok(Some(message)) = inbound.message().await {
                heard.send(message).await.unwrap();
            }
            drop(outbound);
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

fn set(name: &str, body: Bytes, hash: Fingerprint) -> to_role::Message {
    let resource = proto::Resource {
        key: Some(key(name).into()),
        version: 1,
        hash: Bytes::copy_from_slice(hash.as_bytes()),
        phase: 0,
        body,
    };
    to_role::Message::Set(proto::Set {
        epoch: 1,
        resource: Some(resource),
    })
}

/// An operator made by hand, of the given role, and a site whose role has a certificate already.
struct Stage {
    hears: mpsc::Receiver<proto::FromRole>,
    site: Site,
    serving: tokio::task::JoinHandle<Result<(), crate::transport::Error>>,
}

impl Stage {
    async fn set(role_of_server: Role, says: Vec<Option<to_role::Message>>) -> Self {
        let ca =
            Arc::new(CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap());
        let names = [ServerName::try_from("127.0.0.1").unwrap()];
        let own = RoleIdentity::new(role_of_server, "foreshore", "operator", "1").unwrap();
        let server = ca.issue_credentials(&own, &names, Timestamp::now()).unwrap();
        let server = Identity::new(&server, ca.bundle()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, hears) = mpsc::channel(64);
        let says = says
            .into_iter()
            .map(|message| proto::ToRole { message })
            .collect();
        let service = proto::control_server::ControlServer::new(Script { says, heard })
            .max_encoding_message_size(4 * LARGEST_BODY)
            .max_decoding_message_size(4 * LARGEST_BODY);
        let serving = tokio::spawn(async move {
            let routes = Routes::new(service);
            serve_tls(
                listener,
                &server,
                &ServeOptions::default(),
                routes,
                &Shutdown::new(),
            )
            .await
        });
        let directory = tempfile::tempdir().unwrap();
        let own = ca.issue_credentials(&role("1"), &[], Timestamp::now()).unwrap();
        foreshore_tls::write_private(&directory.path().join("identity.pem"), own.to_pem().as_bytes())
            .unwrap();
        let site = Site {
            directory,
            addresses: vec![address.to_string()],
            trust: Some(ca.bundle()),
            credential: Arc::new(StaticCredential(String::new())),
            capabilities: Vec::new(),
            tolerant: false,
            key_wrap: None,
        };
        Self { hears, site, serving }
    }
}

fn welcome(epoch: u64) -> Option<to_role::Message> {
    Some(to_role::Message::Welcome(proto::Welcome {
        protocol: 1,
        epoch,
        software: String::new(),
    }))
}

fn end_of_snapshot(epoch: u64) -> Option<to_role::Message> {
    Some(to_role::Message::EndOfSnapshot(proto::EndOfSnapshot { epoch }))
}

/// A newer operator says things that this role does not know; one resource was damaged, one is too large, one is not
/// what its kind should be: each is refused by name, and the good one gets through.
#[tokio::test]
async fn what_a_role_can_not_use_is_refused_by_name() {
    let good = resource("good", "1");
    let large = Bytes::from(vec![b' '; LARGEST_BODY + 1]);
    let says = vec![
        welcome(1),
        None,
        Some(set("damaged", good.body().clone(), Fingerprint::of(b"other"))),
        Some(set("large", large.clone(), Fingerprint::of(&large))),
        Some(set("nonsense", Bytes::from_static(b"[]"), Fingerprint::of(b"[]"))),
        Some(set("good", good.body().clone(), good.hash())),
        end_of_snapshot(1),
    ];
    let mut stage = Stage::set(Role::Operator, says).await;
    let mut running = stage.site.start();
    assert_eq!(running.did_until_complete().await, ["set good=1"]);
    let mut answers = std::collections::BTreeMap::new();
    while answers.len() < 4 {
        match within("answers", stage.hears.recv())
            .await
            .unwrap()
            .message
            .unwrap()
        {
            from_role::Message::Ack(ack) => {
                answers.insert(ack.resource.unwrap().key.unwrap().name, String::new());
            }
            from_role::Message::Nack(nack) => {
                assert_eq!(nack.reason, "InvalidResource");
                answers.insert(nack.resource.unwrap().key.unwrap().name, nack.message);
            }
            _ => {}
        }
    }
    assert!(answers["damaged"].contains("damaged on its way"), "{answers:?}");
    assert!(
        answers["large"].contains("1048577 bytes, allowed are 1048576"),
        "{answers:?}"
    );
    assert!(answers["nonsense"].contains("can't be read"), "{answers:?}");
    assert_eq!(answers["good"], "");
    running.end().await;
    stage.serving.abort();
}

#[tokio::test]
async fn messages_of_another_epoch_end_the_session() {
    let stage = Stage::set(Role::Operator, vec![welcome(2), end_of_snapshot(1)]).await;
    let mut running = stage.site.start();
    let message = running.disconnected("ProtocolError").await;
    assert!(message.contains("epoch 1 in a session of epoch 2"), "{message}");
    running.end().await;
}

/// On one machine all roles are reached under the same name: a broker that was broken into must not be able to pose
/// as the operator.
#[tokio::test]
async fn another_role_can_not_pose_as_the_operator() {
    let stage = Stage::set(Role::Broker, vec![welcome(1), end_of_snapshot(1)]).await;
    let mut running = stage.site.start();
    let message = running.disconnected("CertificateWrongRole").await;
    assert!(message.contains("broker/foreshore/operator/1"), "{message}");
    assert!(running.did_meanwhile().is_empty());
    running.end().await;
}

#[test]
fn no_secret_in_debug_output() {
    let message = set("a", Bytes::from_static(b"hunter2"), Fingerprint::of(b"hunter2"));
    let shown = format!(
        "{:?}",
        proto::ToRole {
            message: Some(message)
        }
    );
    // Neither as text nor as the list of its bytes.
    assert!(
        !shown.contains("hunter2") && !shown.contains("104, 117"),
        "{shown}"
    );
    let request = proto::EnrollRequest {
        credential: "hunter2".to_owned(),
        request: Bytes::new(),
    };
    assert!(!format!("{request:?}").contains("hunter2"));
}
