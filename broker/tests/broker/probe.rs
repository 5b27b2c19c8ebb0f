//! The broker's own look at its listeners.

use std::{sync::Arc, time::Duration};

use foreshore_broker::{
    Conduct, ListenerOptions, Method, Options, Protocol,
    options::Redirect,
    probe::{ProbeReport, Schedule},
};
use foreshore_crds::v1alpha1::broker_policy::BrokerPolicySpec;
use rmqtt_codec::{types::QoS, v5};
use rustls::server::WebPkiClientVerifier;

use crate::{
    TestBroker,
    client::{Client, GENEROUS, hello},
    options,
};

/// A certificate that is valid until the end of a year, with its key.
pub(crate) fn certificate(until: i32) -> (rcgen::Certificate, rcgen::KeyPair) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["broker".to_owned()]).unwrap();
    parameters.not_before = rcgen::date_time_ymd(2000, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(until, 12, 31);
    (parameters.self_signed(&key).unwrap(), key)
}

pub(crate) fn tls(until: i32, ask: bool) -> Arc<rustls::ServerConfig> {
    foreshore_tls::install_provider();
    let (certificate, key) = certificate(until);
    let builder = rustls::ServerConfig::builder();
    let builder = if ask {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        builder.with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let key = key.serialize_der().try_into().unwrap();
    Arc::new(
        builder
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap(),
    )
}

pub(crate) fn listener(name: &str, protocol: Protocol, authentication: Vec<Method>) -> ListenerOptions {
    ListenerOptions {
        protocol,
        ..ListenerOptions::tcp(name, ([127, 0, 0, 1], 0).into(), authentication)
    }
}

fn of<'a>(reports: &'a [ProbeReport], name: &str) -> &'a ProbeReport {
    reports.iter().find(|report| report.listener == name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_listener_is_looked_at_whatever_it_asks_of_clients() {
    let path: Arc<str> = "/mqtt".into();
    // Nobody at all can come in: only the probe does.
    let nobody = Vec::new;
    let all = [
        listener("tcp", Protocol::Tcp, nobody()),
        listener("tls", Protocol::Tls(tls(2999, false)), nobody()),
        listener(
            "ws",
            Protocol::WebSocket {
                path: Arc::clone(&path),
            },
            nobody(),
        ),
        listener("wss", Protocol::new(Some(tls(2999, false)), Some(path)), nobody()),
        listener("certificate", Protocol::Tls(tls(2999, true)), nobody()),
        listener("expired", Protocol::Tls(tls(2001, false)), nobody()),
    ];
    let broker = TestBroker::start_with(Options {
        listeners: all.into(),
        ..options()
    })
    .await;
    let reports = broker.handle.probe(GENEROUS).await;
    assert_eq!(reports.len(), 6);
    for name in ["tcp", "tls", "ws", "wss"] {
        let report = of(&reports, name);
        assert_eq!((&report.failure, &report.note), (&None, &None), "{report:?}");
        assert!(report.seconds > 0.0);
    }
    let asked = of(&reports, "certificate");
    assert!(asked.failure.is_none() && asked.note.is_some(), "{asked:?}");
    let expired = of(&reports, "expired").failure.as_deref().unwrap();
    assert!(expired.contains("xpired"), "{expired}");
    // Nothing of it is left.
    assert_eq!(broker.handle.sessions(None, 9).await.unwrap().items.len(), 0);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_and_redirections_do_not_concern_the_probe_and_nobody_sees_it() {
    let broker = TestBroker::start().await;
    let mut curious = Client::clean(broker.address, "curious").await;
    curious.subscribe("$SYS/#", QoS::AtLeastOnce).await;
    curious.subscribe("$SYS/probe/test", QoS::AtLeastOnce).await;
    curious.subscribe("marker", QoS::AtLeastOnce).await;
    assert_eq!(of(&broker.handle.probe(GENEROUS).await, "test").failure, None);
    let mut other = Client::clean(broker.address, "other").await;
    other.publish("marker", "the first that arrives").await;
    assert_eq!(curious.take().await, "the first that arrives");
    // Where nothing is allowed, and everybody is sent away.
    let nothing = BrokerPolicySpec::default();
    broker.handle.set_conduct(Conduct {
        redirect: Some(Arc::new(Redirect {
            server_reference: "elsewhere".to_owned(),
            permanent: false,
        })),
        ..Conduct::default()
    });
    assert_eq!(
        curious.expect_disconnect().await,
        v5::DisconnectReasonCode::UseAnotherServer
    );
    broker.handle.set_policies([("nothing", &nothing)]).unwrap();
    assert_eq!(of(&broker.handle.probe(GENEROUS).await, "test").failure, None);
}

#[tokio::test]
async fn what_takes_longer_than_it_may_has_failed_however_soon_it_is_noticed() {
    let broker = TestBroker::start_with(options()).await;
    for _ in 0..10 {
        let reports = broker.handle.probe(Duration::ZERO).await;
        let failure = of(&reports, "test").failure.as_deref();
        assert_eq!(failure, Some("nothing came back within 0 s"));
    }
}

#[tokio::test]
async fn whoever_calls_himself_the_probe_is_judged_as_any_other() {
    let mut options = options();
    options.listeners[0].authentication = Vec::new();
    let broker = TestBroker::start_with(options).await;
    let connect = v5::Connect {
        username: Some("$probe".into()),
        password: Some(bytes::Bytes::from_static(&[0; 32])),
        ..hello("$probe-1")
    };
    let mut client = Client::open(broker.address).await;
    client.send(v5::Packet::Connect(Box::new(connect))).await;
    let v5::Packet::ConnectAck(ack) = client.receive().await else {
        panic!("no CONNACK")
    };
    assert_eq!(ack.reason_code, v5::ConnectAckReason::BadUserNameOrPassword);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_is_told_and_counted_as_often_as_it_is_looked_for() {
    let metrics = foreshore_runtime::Metrics::new();
    let broker = TestBroker::start_with(Options {
        metrics: metrics.clone(),
        ..options()
    })
    .await;
    let mut probed = broker.handle.probed();
    broker.handle.set_probe(Some(Schedule {
        interval: Duration::from_millis(20),
        timeout: GENEROUS,
    }));
    let good = probed.wait_for(|found| found.get("test").is_some_and(|report| report.failure.is_none()));
    drop(tokio::time::timeout(GENEROUS, good).await.unwrap().unwrap());
    // Its certificate expires while it is open.
    let mut listener = options().listeners.remove(0);
    listener.protocol = Protocol::Tls(tls(2001, false));
    broker.handle.open_listener(listener).unwrap();
    let bad = probed.wait_for(|found| found.get("test").is_some_and(|report| report.failure.is_some()));
    drop(tokio::time::timeout(GENEROUS, bad).await.unwrap().unwrap());
    let failures = "foreshore_broker_probe_failures_total{broker=\"default/broker\",listener=\"test\"} ";
    let text = metrics.encode().unwrap();
    let line = text.lines().find(|line| line.starts_with(failures)).unwrap();
    let count = line.strip_prefix(failures).unwrap();
    assert!(count.parse::<u64>().unwrap() > 0);
    assert!(text.contains("foreshore_broker_probe_seconds{broker=\"default/broker\",listener=\"test\"}"));
    // A listener that is closed is not spoken of any more, and nothing is looked at where nobody wants that.
    broker.handle.close_listener("test");
    let gone = probed.wait_for(std::collections::BTreeMap::is_empty);
    drop(tokio::time::timeout(GENEROUS, gone).await.unwrap().unwrap());
    assert!(!metrics.encode().unwrap().contains(failures));
    broker.stop().await;
}
