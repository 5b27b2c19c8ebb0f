//! What peers of other versions, and peers that are up to no good, meet.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use foreshore_runtime::Shutdown;
use foreshore_tls::{AuthorityOptions, CertificateAuthority, Fingerprint, Identity, KeyPair, ServerName};
use jiff::Timestamp;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming, service::Routes, transport::Channel};

use super::harness::*;
use crate::{
    enroll::{LocalTokens, StaticCredential},
    proto::{self, GoodbyeReason, control_client::ControlClient, from_role, to_role},
    resource::LARGEST_BODY,
    session::{OLDEST_PROTOCOL, PROTOCOL, negotiate},
    transport::{ConnectOptions, ServeOptions, channel, serve_tls},
};

#[test]
fn versions_next_to_each_other_talk() {
    assert_eq!(negotiate(OLDEST_PROTOCOL, PROTOCOL), Some(PROTOCOL));
    assert_eq!(negotiate(PROTOCOL, PROTOCOL + 1), Some(PROTOCOL), "one newer");
    assert_eq!(negotiate(PROTOCOL + 1, PROTOCOL + 2), None, "two newer");
    assert_eq!(negotiate(0, OLDEST_PROTOCOL - 1), None, "too old");
}

/// A role made by hand.
struct Raw {
    outbound: mpsc::Sender<proto::FromRole>,
    inbound: Streaming<proto::ToRole>,
}

fn hello() -> proto::Hello {
    proto::Hello {
        oldest_protocol: OLDEST_PROTOCOL,
        newest_protocol: PROTOCOL,
        software: "by hand".to_owned(),
        ..proto::Hello::default()
    }
}

async fn dial(operator: &Operator, identity: &Identity) -> Channel {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    channel(
        &operator.address.to_string(),
        identity,
        name,
        &ConnectOptions::default(),
    )
    .await
    .unwrap()
}

fn identity(operator: &Operator) -> Identity {
    let credentials = operator
        .authority
        .issue_credentials(&role("raw"), &[], Timestamp::now())
        .unwrap();
    Identity::new(&credentials, operator.authority.bundle()).unwrap()
}

impl Raw {
    async fn open(operator: &Operator) -> Self {
        let channel = dial(operator, &identity(operator)).await;
        let (outbound, messages) = mpsc::channel(16);
        let answer = ControlClient::new(channel)
            .session(ReceiverStream::new(messages))
            .await
            .unwrap();
        Self {
            outbound,
            inbound: answer.into_inner(),
        }
    }

    async fn greeted(operator: &Operator) -> Self {
        let mut raw = Self::open(operator).await;
        raw.say(from_role::Message::Hello(hello())).await;
        raw.say(from_role::Message::Held(proto::Held {
            resources: Vec::new(),
            complete: true,
        }))
        .await;
        assert!(matches!(raw.hear().await, Ok(to_role::Message::Welcome(_))));
        raw
    }

    async fn say(&self, message: from_role::Message) {
        self.outbound
            .send(proto::FromRole {
                message: Some(message),
            })
            .await
            .unwrap();
    }

    async fn hear(&mut self) -> Result<to_role::Message, Status> {
        let message = within("a message", self.inbound.message()).await?;
        message
            .and_then(|message| message.message)
            .ok_or_else(|| Status::aborted("the stream ended"))
    }

    async fn goodbye(&mut self) -> proto::Goodbye {
        loop {
            if let to_role::Message::Goodbye(goodbye) = self.hear().await.unwrap() {
                return goodbye;
            }
        }
    }

    async fn refusal(&mut self) -> Status {
        loop {
            if let Err(status) = self.hear().await {
                return status;
            }
        }
    }
}

#[tokio::test]
async fn a_session_needs_a_certificate() {
    let operator = Operator::start().await;
    let anonymous = Identity::anonymous(operator.authority.bundle()).unwrap();
    let channel = dial(&operator, &anonymous).await;
    let (_outbound, messages) = mpsc::channel(1);
    let status = ControlClient::new(channel)
        .session(ReceiverStream::new(messages))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("enroll first"), "{status}");
}

#[tokio::test]
async fn enrolments_that_make_no_sense_are_refused_with_the_reason() {
    let operator = Operator::start().await;
    let anonymous = Identity::anonymous(operator.authority.bundle()).unwrap();
    let mut client = ControlClient::new(dial(&operator, &anonymous).await);
    let request = Bytes::from(KeyPair::generate().unwrap().request().unwrap());
    let token = operator.tokens.issue(role("1"), Duration::from_secs(60)).unwrap();
    let cases = [
        (
            String::new(),
            request.clone(),
            Code::Unauthenticated,
            "not a one-time token",
        ),
        (
            "a.b".to_owned(),
            request.clone(),
            Code::Unauthenticated,
            "unknown",
        ),
        ("x".repeat(20_000), request, Code::InvalidArgument, "20000 bytes"),
        (
            token.clone(),
            Bytes::new(),
            Code::InvalidArgument,
            "signing request",
        ),
        (
            token,
            Bytes::from(vec![0x30; 100_000]),
            Code::InvalidArgument,
            "100000 bytes",
        ),
    ];
    for (credential, request, code, text) in cases {
        let status = client
            .enroll(proto::EnrollRequest { credential, request })
            .await
            .unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "{status} lacks {text}");
    }
    operator.handle.stand_by();
    let status = client.enroll(proto::EnrollRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_version_too_far_away_is_told_both_ranges() {
    let operator = Operator::start().await;
    let mut raw = Raw::open(&operator).await;
    raw.say(from_role::Message::Hello(proto::Hello {
        oldest_protocol: 7,
        newest_protocol: 9,
        ..hello()
    }))
    .await;
    let status = raw.refusal().await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("7 to 9"), "{status}");
}

#[tokio::test]
async fn a_role_that_knows_a_later_leader_is_left_to_it() {
    let operator = Operator::start().await;
    let mut raw = Raw::open(&operator).await;
    raw.say(from_role::Message::Hello(proto::Hello {
        seen_epoch: 2,
        ..hello()
    }))
    .await;
    raw.say(from_role::Message::Held(proto::Held {
        resources: Vec::new(),
        complete: true,
    }))
    .await;
    assert_eq!(raw.refusal().await.code(), Code::Unavailable);
}

#[tokio::test]
async fn messages_that_make_no_sense_end_the_session_with_the_reason() {
    let operator = Operator::start().await;
    let long = proto::Report {
        message: "x".repeat(5000),
        ..proto::Report::default()
    };
    let cases = [
        (from_role::Message::Hello(hello()), "one greeting"),
        (from_role::Message::Report(long), "report.message has 5000 bytes"),
        (
            from_role::Message::Report(proto::Report::default()),
            "report.object is missing",
        ),
        (
            from_role::Message::Ack(proto::Ack::default()),
            "ack.resource is missing",
        ),
        (
            from_role::Message::TrustAck(proto::TrustAck {
                bundle: Bytes::from_static(b"x"),
            }),
            "SHA-256",
        ),
    ];
    for (message, text) in cases {
        let mut raw = Raw::greeted(&operator).await;
        raw.say(message).await;
        let goodbye = raw.goodbye().await;
        assert_eq!(goodbye.reason(), GoodbyeReason::Protocol);
        assert!(goodbye.message.contains(text), "{} lacks {text}", goodbye.message);
    }
    let mut raw = Raw::open(&operator).await;
    raw.say(from_role::Message::Leaving(proto::Leaving {})).await;
    assert!(raw.goodbye().await.message.contains("must be a hello"));
}

#[tokio::test]
async fn nothing_larger_than_a_message_is_read() {
    let operator = Operator::start().await;
    let mut raw = Raw::greeted(&operator).await;
    let document = Bytes::from(vec![b' '; 3 * LARGEST_BODY]);
    raw.say(from_role::Message::Schema(proto::Schema {
        document,
        ..proto::Schema::default()
    }))
    .await;
    loop {
        match raw.hear().await {
            Ok(to_role::Message::Goodbye(goodbye)) => panic!("it was read: {goodbye:?}"),
            Ok(_) => {}
            Err(_) => break,
        }
    }
}

#[tokio::test]
async fn a_session_does_not_outlive_its_certificate() {
    let ca = authority(Duration::from_secs(2));
    let operator = Operator::with(ca, LocalTokens::new(), None, Some(1)).await;
    let mut raw = Raw::greeted(&operator).await;
    assert_eq!(raw.goodbye().await.reason(), GoodbyeReason::Expired);
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

fn set(name: &str, body: Bytes, hash: Fingerprint) -> proto::ToRole {
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
    .into_message()
}

trait IntoMessage {
    fn into_message(self) -> proto::ToRole;
}

impl IntoMessage for to_role::Message {
    fn into_message(self) -> proto::ToRole {
        proto::ToRole { message: Some(self) }
    }
}

/// A newer operator says things that this role does not know; one resource was damaged, one is too large, one is not
/// what its kind should be: each is refused by name, and the good one gets through.
#[tokio::test]
async fn what_a_role_can_not_use_is_refused_by_name() {
    foreshore_tls::install_provider();
    let ca = Arc::new(CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap());
    let names = [ServerName::try_from("127.0.0.1").unwrap()];
    let server = ca
        .issue_credentials(&role("server"), &names, Timestamp::now())
        .unwrap();
    let server = Identity::new(&server, ca.bundle()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let good = resource("good", "1");
    let large = Bytes::from(vec![b' '; LARGEST_BODY + 1]);
    let (heard, mut hears) = mpsc::channel(64);
    let script = Script {
        heard,
        says: vec![
            to_role::Message::Welcome(proto::Welcome {
                protocol: 1,
                epoch: 1,
                software: String::new(),
            })
            .into_message(),
            proto::ToRole { message: None },
            set("damaged", good.body().clone(), Fingerprint::of(b"other")),
            set("large", large.clone(), Fingerprint::of(&large)),
            set("nonsense", Bytes::from_static(b"[]"), Fingerprint::of(b"[]")),
            set("good", good.body().clone(), good.hash()),
            to_role::Message::EndOfSnapshot(proto::EndOfSnapshot { epoch: 1 }).into_message(),
        ],
    };
    let service = proto::control_server::ControlServer::new(script)
        .max_encoding_message_size(4 * LARGEST_BODY)
        .max_decoding_message_size(4 * LARGEST_BODY);
    let serving = async move {
        serve_tls(
            listener,
            &server,
            &ServeOptions::default(),
            Routes::new(service),
            &Shutdown::new(),
        )
        .await
    };
    let serving = tokio::spawn(serving);

    let directory = tempfile::tempdir().unwrap();
    let own = ca.issue_credentials(&role("1"), &[], Timestamp::now()).unwrap();
    foreshore_tls::write_private(&directory.path().join("identity.pem"), own.to_pem().as_bytes()).unwrap();
    let site = Site {
        directory,
        addresses: vec![address.to_string()],
        trust: Some(ca.bundle()),
        credential: Arc::new(StaticCredential(String::new())),
        capabilities: Vec::new(),
    };
    let mut running = site.start();
    assert_eq!(running.did_until_complete().await, ["set good=1"]);
    let mut answers = std::collections::BTreeMap::new();
    while answers.len() < 4 {
        match within("answers", hears.recv()).await.unwrap().message.unwrap() {
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
    serving.abort();
}
