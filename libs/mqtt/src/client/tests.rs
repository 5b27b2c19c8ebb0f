//! The client against a broker stand-in, over TCP and TLS.

use std::{sync::Arc, time::Duration};

use crate::{
    Client, ConnectError, ConnectionState, Options, PublishError, ReasonCode, RequestError, Requester,
    Security, SubscribeError, Target,
    testing::{Behaviour, StandIn},
};
use bytes::Bytes;
use foreshore_record::{Qos, Record, SourceNumber, TopicFilter, TopicName};
use foreshore_runtime::{Shutdown, Task, spawn};

/// Generous: a deadline, never a measurement.
const SOON: Duration = Duration::from_secs(30);

fn target(address: &str) -> Target {
    Target {
        addresses: vec![address.to_owned()],
        security: Security::Plain,
    }
}

fn options(address: &str) -> Options {
    let mut options = Options::new("test", target(address));
    options.backoff_min = Duration::from_millis(5);
    options.backoff_max = Duration::from_millis(50);
    options
}

fn start(options: Options) -> (Client, Task<()>, Shutdown) {
    let (client, service) = Client::new(options);
    let shutdown = Shutdown::new();
    (client, spawn("mqtt", service.run(shutdown.clone())), shutdown)
}

fn record(topic: &str, payload: impl Into<Bytes>) -> Record {
    Record::new(TopicName::new(topic).unwrap(), payload)
}

fn numbered(sequence: u64) -> Record {
    let mut record = record("t", sequence.to_string());
    record.number = Some(SourceNumber {
        source: "connector/a/b".into(),
        epoch: 1,
        sequence,
    });
    record
}

fn sequences(records: &[Record]) -> Vec<u64> {
    records
        .iter()
        .map(|record| record.number.as_ref().unwrap().sequence)
        .collect()
}

#[tokio::test]
async fn keeps_many_messages_on_their_way_and_no_more_than_the_server_takes() {
    let broker = StandIn::start(Behaviour {
        receive_maximum: 7,
        ..Behaviour::default()
    })
    .await
    .unwrap();
    broker.hold(true);
    let (client, _task, _) = start(options(broker.address()));
    let mut receipts = Vec::new();
    for sequence in 1..=20 {
        receipts.push(client.publish(&numbered(sequence)).await.unwrap());
    }
    assert!(
        broker
            .wait_until(SOON, |broker| broker.received().len() == 7)
            .await
    );
    // Nothing more may come: what would come, comes within a round trip.
    assert!(
        !broker
            .wait_until(Duration::from_millis(100), |broker| broker.received().len() > 7)
            .await
    );
    broker.hold(false);
    for receipt in receipts {
        receipt.await.unwrap();
    }
    assert_eq!(sequences(&broker.kept()), (1..=20).collect::<Vec<_>>());
}

#[tokio::test]
async fn sends_again_what_was_not_acknowledged_when_the_connection_broke() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let (client, _task, _) = start(options(broker.address()));
    client.publish(&numbered(1)).await.unwrap().await.unwrap();
    broker.hold(true);
    let mut receipts = Vec::new();
    for sequence in 2..=50 {
        receipts.push(client.publish(&numbered(sequence)).await.unwrap());
    }
    assert!(
        broker
            .wait_until(SOON, |broker| broker.received().len() == 50)
            .await
    );
    broker.cut();
    assert!(
        broker
            .wait_until(SOON, |broker| broker.received().len() == 99)
            .await
    );
    broker.hold(false);
    for receipt in receipts {
        receipt.await.unwrap();
    }
    assert_eq!(broker.connections(), 2);
    assert_eq!(sequences(&broker.kept()), (1..=50).collect::<Vec<_>>());
    let again: Vec<_> = broker
        .received()
        .into_iter()
        .filter(|received| received.connection == 2)
        .collect();
    // The server forgot the session, so these are new messages to it.
    assert!(again.iter().all(|received| !received.dup));
}

#[tokio::test]
async fn waits_for_a_server_that_is_away_and_loses_nothing() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let (client, task, shutdown) = start(options(broker.address()));
    client.publish(&numbered(1)).await.unwrap().await.unwrap();
    broker.down(true);
    let publisher = {
        let client = client.clone();
        spawn("publisher", async move {
            for sequence in 2..=500 {
                client.publish(&numbered(sequence)).await.unwrap().await.unwrap();
            }
        })
    };
    let mut state = client.state();
    let away = |state: &ConnectionState| {
        matches!(
            state,
            ConnectionState::Connecting {
                failures: 3..,
                error: Some(_)
            }
        )
    };
    tokio::time::timeout(SOON, state.wait_for(away))
        .await
        .unwrap()
        .unwrap();
    broker.down(false);
    tokio::time::timeout(SOON, publisher).await.unwrap().unwrap();
    assert_eq!(sequences(&broker.kept()), (1..=500).collect::<Vec<_>>());
    shutdown.begin(SOON);
    task.await.unwrap();
    assert!(matches!(*client.state().borrow(), ConnectionState::Ended));
}

#[tokio::test]
async fn ends_only_when_everything_is_acknowledged() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let (client, task, shutdown) = start(options(broker.address()));
    broker.hold(true);
    let mut receipts = Vec::new();
    for sequence in 1..=40 {
        receipts.push(client.publish(&numbered(sequence)).await.unwrap());
    }
    shutdown.begin(SOON);
    assert!(
        broker
            .wait_until(SOON, |broker| broker.received().len() == 40)
            .await
    );
    assert!(!task.is_finished());
    broker.hold(false);
    task.await.unwrap();
    for receipt in receipts {
        receipt.await.unwrap();
    }
    assert_eq!(
        client.publish(&numbered(41)).await.unwrap_err(),
        PublishError::Ended
    );
}

#[tokio::test]
async fn ends_when_every_handle_is_gone() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let (client, task, _shutdown) = start(options(broker.address()));
    let receipt = client.publish(&numbered(1)).await.unwrap();
    drop(client);
    receipt.await.unwrap();
    tokio::time::timeout(SOON, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_drain_deadline_bounds_the_end() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let (client, task, shutdown) = start(options(broker.address()));
    broker.hold(true);
    let receipt = client.publish(&numbered(1)).await.unwrap();
    assert!(
        broker
            .wait_until(SOON, |broker| broker.received().len() == 1)
            .await
    );
    shutdown.begin(Duration::from_millis(50));
    tokio::time::timeout(SOON, task).await.unwrap().unwrap();
    assert_eq!(receipt.await, Err(PublishError::Ended));
}

#[tokio::test]
async fn a_refusal_tells_its_reason_and_later_messages_go_on() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    broker.judge(|record| {
        if record.topic.as_str() == "forbidden" {
            ReasonCode::NOT_AUTHORIZED
        } else {
            ReasonCode::SUCCESS
        }
    });
    let (client, _task, _) = start(options(broker.address()));
    let refused = client.publish(&record("forbidden", "x")).await.unwrap();
    let taken = client.publish(&record("allowed", "x")).await.unwrap();
    let error = refused.await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server refused the message: not authorized (0x87): the judge of the test refuses it"
    );
    taken.await.unwrap();
    assert_eq!(broker.connections(), 1);
}

#[tokio::test]
async fn every_quality_of_service_arrives() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let (client, _task, _) = start(options(broker.address()));
    for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
        let mut record = record("t", vec![7; 100_000]);
        record.qos = qos;
        client.publish(&record).await.unwrap().await.unwrap();
    }
    assert!(
        broker
            .wait_until(SOON, |broker| broker.received().len() == 3)
            .await
    );
    assert_eq!(broker.received()[2].record.qos, Qos::ExactlyOnce);
}

#[tokio::test]
async fn a_message_that_is_too_large_is_told_and_not_sent() {
    let broker = StandIn::start(Behaviour {
        max_packet_size: Some(1000),
        ..Behaviour::default()
    })
    .await
    .unwrap();
    let (client, _task, _) = start(options(broker.address()));
    let receipt = client.publish(&record("t", vec![0; 1000])).await.unwrap();
    assert!(matches!(
        receipt.await,
        Err(PublishError::TooLarge { max: 1000, .. })
    ));
    client
        .publish(&record("t", vec![0; 900]))
        .await
        .unwrap()
        .await
        .unwrap();
    assert_eq!((broker.received().len(), broker.connections()), (1, 1));
}

#[tokio::test]
async fn subscriptions_outlive_connections_and_end_with_their_subscriber() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let (client, _task, _) = start(options(broker.address()));
    let mut commands = client.subscriber().await.unwrap();
    commands
        .add(TopicFilter::new("commands/+/x").unwrap(), Qos::AtLeastOnce)
        .await
        .unwrap();
    let other = client.subscriber().await.unwrap();
    let again = other
        .add(TopicFilter::new("commands/+/x").unwrap(), Qos::AtLeastOnce)
        .await;
    assert!(matches!(again, Err(SubscribeError::InUse { .. })));
    other
        .add(TopicFilter::new("other").unwrap(), Qos::AtLeastOnce)
        .await
        .unwrap();

    broker.cut();
    assert!(
        broker
            .wait_until(SOON, |broker| broker.connections() == 2
                && broker.filters().len() == 2)
            .await
    );
    assert_eq!(broker.publish(&record("commands/1/x", "go")), 1);
    let delivery = commands.next().await.unwrap();
    assert_eq!(delivery.record.payload, "go");
    assert_eq!(broker.acknowledged(), 0);
    delivery.acknowledge();
    assert!(broker.wait_until(SOON, |broker| broker.acknowledged() == 1).await);

    commands
        .filters()
        .remove(TopicFilter::new("commands/+/x").unwrap())
        .await
        .unwrap();
    assert!(
        broker
            .wait_until(SOON, |broker| broker.filters() == ["other"])
            .await
    );
    drop(other);
    assert!(
        broker
            .wait_until(SOON, |broker| broker.filters().is_empty())
            .await
    );
}

#[tokio::test]
async fn an_acknowledgement_of_an_earlier_connection_is_void() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let (client, _task, _) = start(options(broker.address()));
    let mut subscriber = client.subscriber().await.unwrap();
    subscriber
        .add(TopicFilter::new("c").unwrap(), Qos::AtLeastOnce)
        .await
        .unwrap();
    broker.publish(&record("c", "1"));
    let early = subscriber.next().await.unwrap();
    broker.cut();
    assert!(
        broker
            .wait_until(SOON, |broker| broker.connections() == 2
                && broker.filters() == ["c"])
            .await
    );
    early.acknowledge();
    broker.publish(&record("c", "2"));
    subscriber.next().await.unwrap().acknowledge();
    assert!(broker.wait_until(SOON, |broker| broker.acknowledged() == 1).await);
    assert!(
        !broker
            .wait_until(Duration::from_millis(50), |broker| broker.acknowledged() > 1)
            .await
    );
}

#[tokio::test]
async fn requests_find_their_responses() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let (client, _task, _) = start(options(broker.address()));
    let requester = Requester::new(&client, TopicName::new("responses/test").unwrap())
        .await
        .unwrap();
    let nobody = requester
        .request(record("commands/a", "1"), SOON)
        .await
        .unwrap_err();
    assert!(matches!(nobody, RequestError::NobodyAnswers { .. }), "{nobody}");

    let (server, _server_task, _) = start(Options {
        client_id: "server".into(),
        ..options(broker.address())
    });
    let mut commands = server.subscriber().await.unwrap();
    commands
        .add(TopicFilter::new("commands/#").unwrap(), Qos::AtLeastOnce)
        .await
        .unwrap();
    let answering = spawn("answering", async move {
        while let Some(delivery) = commands.next().await {
            let request = delivery.acknowledge();
            if request.payload == "silence" {
                continue;
            }
            let topic = request.properties.response_topic.clone().unwrap();
            let mut response = record(&topic, request.payload.clone());
            response.properties.correlation_data = request.properties.correlation_data.clone();
            server.publish(&response).await.unwrap().await.unwrap();
        }
    });
    for number in 0..20_u8 {
        let response = requester
            .request(record("commands/a", vec![number]), SOON)
            .await
            .unwrap();
        assert_eq!(response.payload[..], [number]);
    }
    let silence = requester
        .request(record("commands/a", "silence"), Duration::from_millis(50))
        .await;
    assert!(matches!(silence, Err(RequestError::Timeout { .. })));
    drop(answering);
}

#[tokio::test]
async fn a_server_that_falls_silent_is_left() {
    use tokio::io::AsyncReadExt;
    // Answers the CONNECT and nothing more.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (accepted, mut accepts) = tokio::sync::mpsc::channel(8);
    let _silent = spawn("silent", async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            tokio::io::AsyncWriteExt::write_all(&mut stream, &[0x20, 3, 0, 0, 0])
                .await
                .unwrap();
            kept.push(stream);
            accepted.send(()).await.unwrap();
        }
    });
    let mut silent = options(&address);
    silent.keep_alive = Duration::from_secs(1);
    let (_client, _task, _) = start(silent);
    for _ in 0..2 {
        tokio::time::timeout(SOON, accepts.recv()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_refused_connection_tells_why() {
    let behaviour = Behaviour {
        refuse_connections: Some(crate::codec::v5::ConnectAckReason::BadUserNameOrPassword),
        ..Behaviour::default()
    };
    let broker = StandIn::start(behaviour).await.unwrap();
    let (client, _task, _) = start(options(broker.address()));
    let mut state = client.state();
    let failed =
        |state: &ConnectionState| matches!(state, ConnectionState::Connecting { error: Some(_), .. });
    let state = tokio::time::timeout(SOON, state.wait_for(failed))
        .await
        .unwrap()
        .unwrap()
        .clone();
    let ConnectionState::Connecting {
        error: Some(error), ..
    } = state
    else {
        panic!("{state:?}")
    };
    assert!(
        error.to_string().contains("bad user name or password (0x86)"),
        "{error}"
    );
}

#[tokio::test]
async fn goes_to_another_server_and_takes_along_what_waits() {
    let (first, second) = (
        StandIn::start(Behaviour::default()).await.unwrap(),
        StandIn::start(Behaviour::default()).await.unwrap(),
    );
    first.hold(true);
    let (client, _task, _) = start(options(first.address()));
    let receipt = client.publish(&numbered(1)).await.unwrap();
    assert!(
        first
            .wait_until(SOON, |broker| broker.received().len() == 1)
            .await
    );
    client.set_target(target(second.address()));
    receipt.await.unwrap();
    assert_eq!(sequences(&second.kept()), [1]);
    assert!(first.wait_until(SOON, |broker| broker.clients().is_empty()).await);
}

mod tls {
    use foreshore_tls::{
        AuthorityOptions, CertificateAuthority, ClientAuth, Identity, Refusal, Role, RoleIdentity, ServerName,
    };
    use jiff::Timestamp;

    use super::*;

    fn identity(authority: &CertificateAuthority, role: Role, names: &[&str]) -> Identity {
        let id = RoleIdentity::new(role, "plant", "line", "u1").unwrap();
        let names: Vec<_> = names
            .iter()
            .map(|name| ServerName::try_from((*name).to_owned()).unwrap())
            .collect();
        let credentials = authority
            .issue_credentials(&id, &names, Timestamp::now())
            .unwrap();
        Identity::new(&credentials, authority.bundle()).unwrap()
    }

    fn authority() -> CertificateAuthority {
        CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap()
    }

    async fn broker(authority: &CertificateAuthority) -> StandIn {
        let identity = identity(authority, Role::Broker, &["broker.test"]);
        let tls = Some(Arc::new(identity.server_config(ClientAuth::Required).unwrap()));
        StandIn::start(Behaviour {
            tls,
            ..Behaviour::default()
        })
        .await
        .unwrap()
    }

    fn secured(address: &str, identity: &Identity) -> Options {
        let server_name = ServerName::try_from("broker.test").unwrap();
        let mut options = options(address);
        options.target.security = Security::mutual(identity, server_name).unwrap();
        options
    }

    #[tokio::test]
    async fn publishes_over_mutual_tls() {
        foreshore_tls::install_provider();
        let authority = authority();
        let broker = broker(&authority).await;
        let (client, _task, _) = start(secured(
            broker.address(),
            &identity(&authority, Role::Connector, &[]),
        ));
        let receipts: Vec<_> = futures_of(&client, 200).await;
        for receipt in receipts {
            receipt.await.unwrap();
        }
        assert_eq!(sequences(&broker.kept()), (1..=200).collect::<Vec<_>>());
    }

    async fn futures_of(client: &Client, count: u64) -> Vec<crate::Receipt> {
        let mut receipts = Vec::new();
        for sequence in 1..=count {
            receipts.push(client.publish(&numbered(sequence)).await.unwrap());
        }
        receipts
    }

    async fn refusal(options: Options) -> Refusal {
        let (client, _task, _) = start(options);
        let mut state = client.state();
        let failed =
            |state: &ConnectionState| matches!(state, ConnectionState::Connecting { error: Some(_), .. });
        let state = tokio::time::timeout(SOON, state.wait_for(failed))
            .await
            .unwrap()
            .unwrap()
            .clone();
        let ConnectionState::Connecting {
            error: Some(error), ..
        } = state
        else {
            panic!("{state:?}")
        };
        match &*error {
            ConnectError::Tls { refusal, .. } => refusal.clone(),
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn strangers_are_refused_on_either_side() {
        foreshore_tls::install_provider();
        let (ours, theirs) = (authority(), authority());
        let broker = broker(&ours).await;
        let stranger = identity(&theirs, Role::Connector, &[]);
        assert_eq!(
            refusal(secured(broker.address(), &stranger)).await,
            Refusal::Untrusted
        );
        let unknown = identity(&theirs, Role::Connector, &[]);
        unknown.set_bundle(ours.bundle()).unwrap();
        assert!(matches!(
            refusal(secured(broker.address(), &unknown)).await,
            Refusal::ByPeer { .. }
        ));
    }
}
