use foreshore_mqtt::{
    Client, Options as MqttOptions, ReasonCode, Security, Target,
    testing::{Behaviour, REFUSAL, StandIn},
};
use foreshore_record::{Qos, TopicFilter, property};
use foreshore_tls::{AuthorityOptions, CertificateAuthority, ClientAuth, Role, RoleIdentity, ServerName};
use tokio::sync::watch;

use super::{proxy::Proxy, *};

const START: &str = "/api/assets/bottling/filler/commands/control/start";

#[tokio::test]
async fn commands_that_can_not_be_carried_out_are_answered_at_once_and_audited() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let (status, answer) = cloud.post(START, &json!({})).await;
    assert_eq!((status, &answer["code"]), (404, &json!("NotFound")));

    let address = cloud.handle.edge_link_address();
    let sink = plant.link_with(&cloud, address, |_, surroundings| {
        surroundings.assets = assets(&["filler"]);
    });
    deliver_surely(&sink, Lane::Live, &outputs(1, 1)).await;
    // Connected, but the asset's broker is not known to the relay.
    let (status, answer) = cloud
        .post(START, &json!({ "input": { "speed": 5 }, "timeout": 20 }))
        .await;
    assert_eq!(
        (status, &answer["code"]),
        (503, &json!("Unavailable")),
        "{answer}"
    );
    assert!(
        answer["detail"]
            .as_str()
            .unwrap()
            .contains("the way to broker \"broker\" is not known yet"),
        "{answer}"
    );

    drop(sink);
    until(async || cloud.get("/api/edges").await["items"][0]["connected"] == json!(false)).await;
    let (status, answer) = cloud.post(START, &json!({ "timeout": 600 })).await;
    assert_eq!((status, &answer["code"]), (503, &json!("Unavailable")));
    assert!(
        answer["detail"].as_str().unwrap().contains("not connected"),
        "{answer}"
    );

    let audit = cloud.get("/api/audit").await;
    let outcomes: Vec<_> = audit["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["outcome"].clone())
        .collect();
    assert_eq!(
        outcomes,
        [json!("Unavailable"), json!("Unavailable"), json!("NotFound")]
    );
    assert_eq!(audit["items"][1]["input"], json!({ "speed": 5 }));
    cloud.stop().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_told_what_is_allowed() {
    let plant = Plant::new();
    let cloud = Running::start(plant.options()).await;
    let address = cloud.handle.http_address();
    let (status, answer) = http(address, "a-wrong-token-of-the-api", "GET", "/api/edges", "").await;
    assert_eq!(
        (status, &answer["code"], &answer["status"]),
        (401, &json!("Unauthorized"), &json!(401))
    );
    for (method, path, body, expected, part) in [
        ("GET", "/api/nothing", "", 404, "nothing at this address"),
        ("GET", "/api/assets/a/b", "", 404, "no asset a/b"),
        ("GET", "/api/assets?limt=5", "", 400, "unknown field `limt`"),
        ("GET", "/api/assets?limit=0", "", 400, "1 to 10000 are allowed"),
        ("GET", "/api/assets/a/b/values?from=yesterday", "", 400, "from"),
        ("GET", "/api/assets/a/b/values?after=x", "", 400, "not a `next`"),
        ("DELETE", "/api/edges", "", 405, "another method"),
        ("POST", START, "{", 400, "JSON"),
        ("POST", START, r#"{"timeout":-1}"#, 400, "at most 600 are allowed"),
        ("POST", START, r#"{"inptu":1}"#, 400, "unknown field `inptu`"),
        (
            "POST",
            START,
            r#"{"idempotencyKey":"a/b"}"#,
            400,
            "idempotencyKey",
        ),
    ] {
        let (status, answer) = cloud.http(method, path, body).await;
        assert_eq!(status, expected, "{method} {path} {body}: {answer}");
        assert!(
            answer["detail"].as_str().unwrap().contains(part),
            "{method} {path} {body}: {answer}"
        );
    }
    cloud.stop().await;
}

/// A broker of the namespace, and a connector that answers every command with its input once it is allowed to.
struct Field {
    broker: StandIn,
    identity: Identity,
    assets: Assets,
    answers: watch::Sender<bool>,
    _connector: (Task<()>, Task<()>),
}

impl Field {
    async fn start() -> Self {
        foreshore_tls::install_provider();
        let now = Timestamp::now();
        let authority = CertificateAuthority::create(AuthorityOptions::default(), now).unwrap();
        let identity = |role, names: &[ServerName<'static>]| {
            let role = RoleIdentity::new(role, "bottling", "it", "uid").unwrap();
            let credentials = authority.issue_credentials(&role, names, now).unwrap();
            Identity::new(&credentials, authority.bundle()).unwrap()
        };
        let names = [ServerName::try_from("localhost".to_owned()).unwrap()];
        let tls = Arc::new(
            identity(Role::Broker, &names)
                .server_config(ClientAuth::Required)
                .unwrap(),
        );
        let broker = StandIn::start(Behaviour {
            tls: Some(tls),
            ..Behaviour::default()
        })
        .await
        .unwrap();
        let identity = identity(Role::Dataflow, &[]);
        let security = Security::mutual(&identity, names[0].clone()).unwrap();
        let target = Target {
            addresses: vec![broker.address().to_owned()],
            security,
        };
        let (client, service) = Client::new(MqttOptions::new("connector", target));
        let serving = foreshore_runtime::spawn("connector client", service.run(Shutdown::new()));
        let mut commands = client.subscriber().await.unwrap();
        commands
            .add(
                TopicFilter::new("foreshore/commands/#").unwrap(),
                Qos::AtLeastOnce,
            )
            .await
            .unwrap();
        let answers = watch::Sender::new(true);
        let mut may_answer = answers.subscribe();
        let connector = foreshore_runtime::spawn("connector", async move {
            while let Some(delivery) = commands.next().await {
                let request = delivery.acknowledge();
                may_answer.wait_for(|may| *may).await.unwrap();
                let topic = TopicName::new(request.properties.response_topic.unwrap()).unwrap();
                let mut response = Record::new(topic, request.payload);
                response.properties.correlation_data = request.properties.correlation_data;
                response.properties.push_user(property::COMMAND_STATUS, "ok");
                client.publish(&response).await.unwrap().await.unwrap();
            }
        });
        Self {
            broker,
            identity,
            assets: assets(&["filler"]),
            answers,
            _connector: (serving, connector),
        }
    }

    fn link(&self, plant: &Plant, cloud: &Running, address: SocketAddr) -> CloudSink {
        plant.link_with(cloud, address, |setup, surroundings| {
            surroundings.identity = self.identity.clone();
            surroundings.assets = self.assets.clone();
            let connection = ConnectionPlan {
                namespace: "bottling".to_owned(),
                broker: "broker".to_owned(),
                uid: "uid-broker".to_owned(),
                mqtt_addresses: vec![self.broker.address().to_owned()],
                queue_addresses: Vec::new(),
                server_name: "localhost".to_owned(),
            };
            setup.brokers = Arc::new(BTreeMap::from([("broker".to_owned(), connection)]));
        })
    }

    /// Commands that arrived at the broker.
    fn commands(&self) -> Vec<Record> {
        let received = self.broker.received().into_iter().map(|received| received.record);
        received
            .filter(|record| record.topic.as_str().starts_with("foreshore/commands/"))
            .collect()
    }
}

#[tokio::test]
async fn a_command_is_carried_out_once_for_each_key() {
    let (plant, field) = (Plant::new(), Field::start().await);
    let cloud = Running::start(plant.options()).await;
    let sink = field.link(&plant, &cloud, cloud.handle.edge_link_address());
    deliver_surely(&sink, Lane::Live, &outputs(1, 1)).await;

    let body = json!({ "input": { "speed": 5 }, "idempotencyKey": "key-1" });
    let (status, first) = cloud.post(START, &body).await;
    assert_eq!(
        (status, &first["output"], &first["repeated"]),
        (200, &json!({ "speed": 5 }), &json!(false))
    );
    let (status, again) = cloud.post(START, &body).await;
    assert_eq!(
        (status, &again["id"], &again["repeated"]),
        (200, &first["id"], &json!(true))
    );
    let (status, other) = cloud
        .post(START, &json!({ "input": 6, "idempotencyKey": "key-1" }))
        .await;
    assert_eq!((status, &other["code"]), (409, &json!("IdempotencyKeyReused")));

    let commands = field.commands();
    assert_eq!(commands.len(), 1);
    assert_eq!(
        commands[0].topic.as_str(),
        "foreshore/commands/bottling/filler/control/start"
    );
    assert_eq!(
        commands[0].user_property(property::IDEMPOTENCY_KEY),
        Some("key-1")
    );
    assert_eq!(commands[0].user_property(property::ACTOR), Some("cloud/api"));
    let deadline = commands[0]
        .user_property(property::DEADLINE)
        .unwrap()
        .parse::<Timestamp>()
        .unwrap();
    assert!(deadline > Timestamp::now());
    cloud.stop().await;
}

#[tokio::test]
async fn what_a_policy_forbids_is_forbidden_and_audited() {
    let (plant, field) = (Plant::new(), Field::start().await);
    let cloud = Running::start(plant.options()).await;
    let sink = field.link(&plant, &cloud, cloud.handle.edge_link_address());
    deliver_surely(&sink, Lane::Live, &outputs(1, 1)).await;
    field.broker.judge(
        |record| match record.topic.as_str().starts_with("foreshore/commands/") {
            true => ReasonCode::NOT_AUTHORIZED,
            false => ReasonCode::SUCCESS,
        },
    );
    let (status, answer) = cloud.post(START, &json!({})).await;
    assert_eq!((status, &answer["code"]), (403, &json!("Forbidden")), "{answer}");
    // The broker's reason string, which names the rule.
    let detail = answer["detail"].as_str().unwrap();
    assert!(
        detail.contains(&format!("a policy of broker broker forbids it: {REFUSAL}")),
        "{answer}"
    );
    let audit = cloud.get("/api/audit?asset=filler").await;
    let record = &audit["items"][0];
    assert_eq!(
        (
            &record["outcome"],
            &record["edge"],
            &record["actor"],
            &record["message"]
        ),
        (
            &json!("Forbidden"),
            &json!("plant"),
            &json!("api"),
            &answer["detail"]
        )
    );
    cloud.stop().await;
}

#[tokio::test]
async fn the_audit_names_who_asked() {
    let plant = Plant::new();
    let mut options = plant.options();
    let token = |name: &str, token: &str, speaks_for_others| ApiToken {
        name: name.to_owned(),
        token: Secret::new(token),
        speaks_for_others,
    };
    let (console, local) = ("token-of-the-console", "token-of-this-process");
    options.api_tokens = vec![token("console", console, false), token("local", local, true)];
    let cloud = Running::start(options).await;
    let ask = async |headers: String| {
        let (address, body) = (cloud.handle.http_address(), "{}");
        let (status, _) = http_with(address, &headers, "POST", START, body).await;
        status
    };
    let (console, local) = (
        format!("authorization: Bearer {console}"),
        format!("authorization: Bearer {local}"),
    );
    let anna = "\r\nforeshore-actor: cli:anna";
    // There is no such asset, which is written down too.
    assert_eq!(ask(console.clone()).await, 404);
    assert_eq!(ask(local.clone() + anna).await, 404);
    assert_eq!(ask(console.clone() + anna).await, 403);
    assert_eq!(ask(local.clone() + "\r\nforeshore-actor: ").await, 403);
    let (_, audit) = http_with(cloud.handle.http_address(), &console, "GET", "/api/audit", "").await;
    let actors: Vec<_> = audit["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| &item["actor"])
        .collect();
    assert_eq!(actors, [&json!("cli:anna"), &json!("console")]);

    // Tokens change while it runs; one that is gone lets nobody in.
    let next = token("console", "another-token-of-the-console", false);
    cloud.handle.set_api_tokens(&[next]).unwrap();
    assert_eq!((ask(console).await, ask(local).await), (401, 401));
    let new = "authorization: Bearer another-token-of-the-console".to_owned();
    assert_eq!(ask(new).await, 404);
    cloud.stop().await;
}

#[tokio::test]
async fn a_command_outlives_its_stream_but_not_its_deadline() {
    let (plant, field) = (Plant::new(), Field::start().await);
    let cloud = Running::start(plant.options()).await;
    let proxy = Proxy::to(cloud.handle.edge_link_address()).await;
    let sink = field.link(&plant, &cloud, proxy.address);
    deliver_surely(&sink, Lane::Live, &outputs(1, 1)).await;

    field.answers.send_replace(false);
    let (status, late) = cloud.post(START, &json!({ "timeout": 1 })).await;
    assert_eq!((status, &late["code"]), (504, &json!("Unknown")), "{late}");

    let http_address = cloud.handle.http_address();
    let body = json!({ "input": 7, "timeout": 60 }).to_string();
    let asked = tokio::spawn(async move { http(http_address, API_TOKEN, "POST", START, &body).await });
    until(async || field.commands().len() == 2).await;
    proxy.cut();
    deliver_surely(&sink, Lane::Live, &outputs(2, 2)).await;
    field.answers.send_replace(true);
    let (status, answer) = asked.await.unwrap();
    assert_eq!((status, &answer["output"]), (200, &json!(7)), "{answer}");
    assert_eq!(
        field.commands().len(),
        2,
        "what was sent again was not carried out again"
    );
    cloud.stop().await;
}
