//! What peers that make no sense meet.

use std::time::Duration;

use bytes::Bytes;
use foreshore_tls::{Identity, KeyPair, ServerName};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::harness::*;
use crate::{
    enroll::LocalTokens,
    proto::{self, GoodbyeReason, control_client::ControlClient, from_role, to_role},
    resource::LARGEST_BODY,
    session::{OLDEST_PROTOCOL, PROTOCOL},
    transport::{ConnectOptions, channel},
};

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

pub(super) async fn dial(operator: &Operator, identity: &Identity) -> Channel {
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

pub(super) fn identity(operator: &Operator) -> Identity {
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
