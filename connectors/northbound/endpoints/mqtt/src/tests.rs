use std::{collections::BTreeMap, sync::Arc, time::Duration};

use foreshore_control::plan::{EndpointPlan, ObjectRef, SecretPlan, SecretValue};
use foreshore_mqtt::{
    ReasonCode,
    testing::{Behaviour, StandIn},
};
use foreshore_northbound::{
    Assets, Batch, Delivery, EndpointSetup, Output, Secrets, Sink, SinkError, SinkFactory as _, SinkSetup,
    Surroundings,
};
use foreshore_record::{DropReason, Interval, Lane, Qos, Record, SourceNumber, TopicName, property::VIA};
use foreshore_runtime::{Metrics, Shutdown};
use foreshore_tls::{AuthorityOptions, CertificateAuthority, Identity, Role, RoleIdentity, ServerName};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::MqttSinks;

pub(crate) const GENEROUS: Duration = Duration::from_secs(30);

/// What the broker that records come from is known by.
const ORIGIN: &str = "uid-broker";

pub(crate) struct Setup {
    authority: CertificateAuthority,
    pub(crate) sinks: MqttSinks,
}

impl Setup {
    pub(crate) fn new() -> Self {
        foreshore_tls::install_provider();
        let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
        let identity = identity(&authority, Role::Dataflow);
        let surroundings = Surroundings {
            identity,
            data_directory: None,
            metrics: Metrics::new(),
            assets: Assets::default(),
            reporter: None,
            shutdown: Shutdown::new(),
        };
        Self {
            authority,
            sinks: MqttSinks::new(surroundings),
        }
    }

    fn judge(&self, setup: &SinkSetup) -> String {
        let judged = self
            .sinks
            .check_endpoint(&setup.endpoint)
            .and_then(|()| self.sinks.check_sink(setup));
        judged.unwrap_err().to_string()
    }
}

fn identity(authority: &CertificateAuthority, role: Role) -> Identity {
    let names = [ServerName::try_from("localhost").unwrap()];
    let role = RoleIdentity::new(role, "plant", "runner", "u1").unwrap();
    let credentials = authority
        .issue_credentials(&role, &names, Timestamp::now())
        .unwrap();
    Identity::new(&credentials, authority.bundle()).unwrap()
}

pub(crate) fn setup_of(mqtt: Value, sink: Value, secrets: &[(&str, &[(&str, &str)])]) -> SinkSetup {
    let object = |name: &str| ObjectRef {
        namespace: "plant".to_owned(),
        name: name.to_owned(),
        uid: "1".to_owned(),
        generation: 1,
    };
    let secrets = secrets.iter().map(|(name, data)| {
        let data = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), SecretValue(value.as_bytes().to_vec())));
        let plan = SecretPlan {
            namespace: "plant".to_owned(),
            name: (*name).to_owned(),
            data: data.collect(),
        };
        ((*name).to_owned(), plan)
    });
    let endpoint = EndpointSetup {
        endpoint: EndpointPlan {
            object: object("other"),
            spec: serde_json::from_value(json!({ "mqtt": mqtt })).unwrap(),
        },
        secrets: Secrets(Arc::new(secrets.collect())),
        brokers: Arc::default(),
    };
    let mut spec = json!({ "name": "out", "endpointRef": { "name": "other" } });
    spec["mqtt"] = sink;
    SinkSetup {
        dataflow: object("flow"),
        sink: serde_json::from_value(spec).unwrap(),
        delivery: serde_json::from_value(json!({})).unwrap(),
        path: "dataflow/plant/flow->out".to_owned(),
        endpoint,
        origin: ORIGIN.to_owned(),
    }
}

pub(crate) fn to(broker: &StandIn, sink: Value) -> SinkSetup {
    setup_of(
        json!({ "address": format!("mqtt://{}", broker.address()) }),
        sink,
        &[],
    )
}

fn record(topic: &str, payload: &str) -> Record {
    Record::new(TopicName::new(topic).unwrap(), payload.to_owned())
}

async fn deliver(sink: &dyn Sink, records: Vec<Record>) -> Result<Vec<Delivery>, SinkError> {
    let outputs: Vec<Output> = (1..)
        .zip(records)
        .map(|(id, record)| Output {
            store_epoch: 1,
            id,
            index: 0,
            attempt: 0,
            record: Arc::new(record),
        })
        .collect();
    let settles = [Interval {
        store_epoch: 1,
        first: 1,
        last: outputs.len() as u64,
    }];
    let path = "dataflow/plant/flow->out";
    let batch = Batch {
        path,
        path_epoch: 1,
        lane: Lane::Live,
        settles: &settles,
        outputs: &outputs,
    };
    tokio::time::timeout(GENEROUS, sink.deliver(batch)).await.unwrap()
}

#[tokio::test]
async fn messages_keep_their_properties_and_lose_their_number() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let setup = Setup::new();
    let spec = json!({ "topic": "plant/{topic.2}/all/{topic}", "qos": "ExactlyOnce", "retain": true });
    let sink = setup.sinks.create(&to(&broker, spec)).await.unwrap();
    let mut sent = record("line/oven", "{}");
    sent.number = Some(SourceNumber {
        source: "connector/plant/line".to_owned(),
        epoch: 1,
        sequence: 7,
    });
    sent.ingested_at = Some(Timestamp::now().checked_sub(Duration::from_secs(100)).unwrap());
    sent.properties.expiry_seconds = Some(3600);
    sent.properties.content_type = Some("application/json".to_owned());
    sent.properties.push_user("shift", "early");
    assert_eq!(
        deliver(&*sink, vec![sent.clone()]).await,
        Ok(vec![Delivery::Delivered])
    );
    let received = broker.received();
    assert_eq!(received.len(), 1);
    let found = &received[0].record;
    assert_eq!(found.topic.as_str(), "plant/oven/all/line/oven");
    assert_eq!(
        (found.qos, found.retain, &found.number),
        (Qos::ExactlyOnce, true, &None)
    );
    let mut user = sent.properties.user.clone();
    user.push((VIA.to_owned(), ORIGIN.to_owned()));
    assert_eq!(found.properties.user, user);
    assert_eq!(found.properties.content_type, sent.properties.content_type);
    let left = found.properties.expiry_seconds.unwrap();
    assert!((3400..=3500).contains(&left), "{left}");
    sink.close().await;
}

#[tokio::test]
async fn records_enter_no_broker_twice() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let setup = Setup::new();
    let to = to(&broker, json!({}));
    let sink = setup.sinks.create(&to).await.unwrap();
    let mut from_elsewhere = record("t", "from elsewhere");
    from_elsewhere.properties.push_user(VIA, "elsewhere");
    let mut from_there = record("t", "from there");
    from_there.properties.push_user(VIA, "elsewhere");
    from_there
        .properties
        .push_user(VIA, &to.endpoint.endpoint.object.uid);
    let delivered = deliver(
        &*sink,
        vec![record("t", "new"), from_elsewhere.clone(), from_there],
    )
    .await;
    let dropped = Delivery::Dropped {
        reason: DropReason::LOOP,
    };
    assert_eq!(
        delivered,
        Ok(vec![Delivery::Delivered, Delivery::Delivered, dropped])
    );
    let been = |record: &Record| -> Vec<String> {
        let user = record.properties.user.iter();
        user.filter(|(name, _)| name == VIA)
            .map(|(_, at)| at.clone())
            .collect()
    };
    let received: Vec<_> = broker
        .received()
        .iter()
        .map(|received| been(&received.record))
        .collect();
    assert_eq!(
        received,
        [
            vec![ORIGIN.to_owned()],
            vec!["elsewhere".to_owned(), ORIGIN.to_owned()]
        ]
    );

    // Published anew by the broker that it is at, it is another message.
    let mut anew = to.clone();
    anew.origin.clone_from(&to.endpoint.endpoint.object.uid);
    let sink = setup.sinks.create(&anew).await.unwrap();
    from_elsewhere.properties.push_user(VIA, &anew.origin);
    assert_eq!(
        deliver(&*sink, vec![from_elsewhere]).await,
        Ok(vec![Delivery::Delivered])
    );
    assert!(been(&broker.received()[2].record).is_empty());
}

#[tokio::test]
async fn one_batch_is_on_its_way_at_a_time_as_large_as_the_window() {
    let setup = Setup::new();
    let spec = json!({ "address": "mqtt://127.0.0.1:1", "maxInflight": 7 });
    let sink = setup.sinks.create(&setup_of(spec, json!({}), &[])).await.unwrap();
    let capabilities = sink.capabilities();
    assert_eq!((capabilities.max_inflight, capabilities.max_outputs), (1, 7));
}

#[tokio::test]
async fn an_acknowledgement_is_a_delivery_and_nothing_else_is() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let setup = Setup::new();
    let sink = setup.sinks.create(&to(&broker, json!({}))).await.unwrap();
    broker.hold(true);
    let records = || (0..20).map(|n| record("t", &n.to_string())).collect();
    let delivering = deliver(&*sink, records());
    let cutting = async {
        assert!(
            broker
                .wait_until(GENEROUS, |broker| broker.received().len() == 20)
                .await
        );
        broker.cut();
    };
    let (delivered, ()) = tokio::join!(delivering, cutting);
    assert!(
        matches!(delivered, Err(SinkError::Retryable { .. })),
        "{delivered:?}"
    );
    broker.hold(false);
    assert_eq!(
        deliver(&*sink, records()).await,
        Ok(vec![Delivery::Delivered; 20])
    );
    // Given up with its connection: only the engine repeats, but for what may slip through before.
    let received = broker.received().len();
    assert!((40..60).contains(&received), "{received}");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let broker = StandIn::start(Behaviour {
        max_packet_size: Some(1000),
        ..Behaviour::default()
    })
    .await
    .unwrap();
    let setup = Setup::new();
    let sink = setup
        .sinks
        .create(&to(&broker, json!({ "topic": "out/{topic.2}" })))
        .await
        .unwrap();
    broker.judge(|record| match &record.payload[..] {
        b"full" => ReasonCode::QUOTA_EXCEEDED,
        b"forbidden" => ReasonCode::NOT_AUTHORIZED,
        b"invalid" => ReasonCode(0x99),
        b"unheard" => ReasonCode::NO_MATCHING_SUBSCRIBERS,
        _ => ReasonCode::SUCCESS,
    });
    let large = "x".repeat(2000);
    let records = vec![
        record("a/b", "fine"),
        record("a/b", "unheard"),
        record("a/b", "invalid"),
        record("a/b", &large),
        record("a", "no second level"),
    ];
    let deliveries = deliver(&*sink, records).await.unwrap();
    assert_eq!(deliveries[..2], [Delivery::Delivered, Delivery::Delivered]);
    assert!(
        deliveries[2..]
            .iter()
            .all(|delivery| matches!(delivery, Delivery::DeadLetter { .. })),
        "{deliveries:?}"
    );
    assert_eq!(
        deliveries[4],
        Delivery::DeadLetter {
            reason: "topic \"a\" has no level 2".to_owned()
        }
    );
    let full = deliver(&*sink, vec![record("a/b", "full")]).await;
    assert!(
        matches!(
            full,
            Err(SinkError::Retryable {
                reason: "QuotaExceeded",
                ..
            })
        ),
        "{full:?}"
    );
    let forbidden = deliver(&*sink, vec![record("a/b", "forbidden")]).await;
    assert!(
        matches!(
            forbidden,
            Err(SinkError::Fatal {
                reason: "NotAuthorized",
                ..
            })
        ),
        "{forbidden:?}"
    );
}

#[tokio::test]
async fn a_probe_tells_whether_and_why_not() {
    let broker = StandIn::start(Behaviour::default()).await.unwrap();
    let setup = Setup::new();
    let sink = setup.sinks.create(&to(&broker, json!({}))).await.unwrap();
    assert_eq!(sink.probe().await, Ok(()));
    assert_eq!(broker.clients(), ["foreshore-plant-flow-out"]);
    let nowhere = setup_of(json!({ "address": "mqtt://127.0.0.1:1" }), json!({}), &[]);
    let sink = setup.sinks.create(&nowhere).await.unwrap();
    let found = sink.probe().await;
    assert!(
        matches!(
            found,
            Err(SinkError::Retryable {
                reason: "Unreachable",
                ..
            })
        ),
        "{found:?}"
    );
}

#[tokio::test]
async fn tls_is_made_with_the_certificates_of_the_secret() {
    let setup = Setup::new();
    let server = identity(&setup.authority, Role::Broker);
    let config = server.server_config(foreshore_tls::ClientAuth::None).unwrap();
    let behaviour = Behaviour {
        tls: Some(Arc::new(config)),
        ..Behaviour::default()
    };
    let broker = StandIn::start(behaviour).await.unwrap();
    let port = broker.address().rsplit(':').next().unwrap();
    let mqtt = json!({
        "address": format!("mqtts://localhost:{port}"),
        "trust": { "certificatesSecretRef": { "name": "ca" } },
    });
    let pem = setup.authority.bundle().to_pem();
    let trusted = setup_of(mqtt.clone(), json!({}), &[("ca", &[("ca.crt", &pem)])]);
    setup.sinks.check_endpoint(&trusted.endpoint).unwrap();
    let sink = setup.sinks.create(&trusted).await.unwrap();
    assert_eq!(
        deliver(&*sink, vec![record("t", "1")]).await,
        Ok(vec![Delivery::Delivered])
    );

    let other = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
    let pem = other.bundle().to_pem();
    let untrusted = setup_of(mqtt, json!({}), &[("ca", &[("ca.crt", &pem)])]);
    let sink = setup.sinks.create(&untrusted).await.unwrap();
    let found = sink.probe().await;
    assert!(matches!(found, Err(SinkError::Fatal { .. })), "{found:?}");
}

#[test]
fn what_can_not_be_done_is_refused_with_a_reason() {
    let setup = Setup::new();
    let refused =
        |mqtt: Value, sink: Value| setup.judge(&setup_of(mqtt, sink, &[("empty", &[("note", "x")])]));
    let plain = || json!({ "address": "mqtt://localhost:1883" });
    let found = refused(json!({ "address": "ws://localhost" }), json!({}));
    assert!(
        found.starts_with("UnsupportedHere: address \"ws://localhost\""),
        "{found}"
    );
    let found = refused(json!({ "address": "mqtt://localhost:99999" }), json!({}));
    assert!(found.starts_with("EndpointInvalid: address"), "{found}");
    let found = refused(json!({ "brokerRef": { "name": "main" } }), json!({}));
    assert_eq!(found, "BrokerMissing: no connection to broker \"main\"");
    let mut user = plain();
    user["authentication"] = json!({ "usernamePassword": { "secretRef": { "name": "login" } } });
    assert_eq!(
        refused(user, json!({})),
        "SecretMissing: secret \"login\" is not there"
    );
    let mut user = plain();
    user["authentication"] = json!({ "usernamePassword": { "secretRef": { "name": "empty" } } });
    assert_eq!(
        refused(user, json!({})),
        "SecretMissing: secret \"empty\" has no key \"username\", but note"
    );
    let tls =
        json!({ "address": "mqtts://localhost", "trust": { "certificatesSecretRef": { "name": "empty" } } });
    assert!(refused(tls, json!({})).starts_with("SecretInvalid: secret \"empty\" holds no certificate"));
    let tls = json!({ "address": "mqtts://localhost", "trust": { "acceptUntrusted": true } });
    assert!(refused(tls, json!({})).starts_with("UnsupportedHere: trust.acceptUntrusted"));
    let found = refused(plain(), json!({ "topic": "{asset}" }));
    assert!(found.starts_with("TopicInvalid: topic \"{asset}\""), "{found}");
    let secrets: BTreeMap<String, SecretPlan> = BTreeMap::new();
    assert!(Secrets(Arc::new(secrets)).text("a", "b").is_err());
}
