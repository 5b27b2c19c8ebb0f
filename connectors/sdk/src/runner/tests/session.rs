//! The whole role: enrolment, control session, devices, broker.

use foreshore_control::{
    Agent, AgentOptions, Authority, ControlOptions, ControlServer, Nack, Observation, Observed, PlanResource,
    Resource, RoleKey, enroll::LocalTokens, plan::ConnectionPlan,
};
use foreshore_mqtt::testing::{Behaviour, StandIn};
use foreshore_runtime::{HealthRegistry, Metrics, Shutdown, spawn};
use foreshore_tls::{
    AuthorityOptions, CertificateAuthority, ClientAuth, Identity, Role, RoleIdentity, ServerName,
};
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::*;
use crate::contract::Connector;

fn identity(authority: &CertificateAuthority, role: Role, name: &str) -> Identity {
    let who = RoleIdentity::new(role, "plant", "one", "1").unwrap();
    let names = [ServerName::try_from(name.to_owned()).unwrap()];
    let credentials = authority
        .issue_credentials(&who, &names, Timestamp::now())
        .unwrap();
    Identity::new(&credentials, authority.bundle()).unwrap()
}

/// Takes events until one is what is looked for.
async fn until<T>(
    events: &mut mpsc::Receiver<Observed>,
    mut wanted: impl FnMut(&Observation) -> Option<T>,
) -> T {
    let search = async {
        loop {
            if let Some(found) = wanted(&events.recv().await.unwrap().what) {
                return found;
            }
        }
    };
    tokio::time::timeout(SOON, search).await.unwrap()
}

/// The role's answer to the resource of a name.
async fn answer(events: &mut mpsc::Receiver<Observed>, name: &str) -> Result<(), Nack> {
    until(events, |seen| match seen {
        Observation::Ack { resource } if resource.key.name == name => Some(Ok(())),
        Observation::Nack { resource, nack } if resource.key.name == name => Some(Err(nack.clone())),
        _ => None,
    })
    .await
}

fn plan(connection: &ConnectionPlan, assets: &[&AssetPlan]) -> Vec<Resource> {
    let mut plan = vec![Resource::of(connection).unwrap(), Resource::of(&line()).unwrap()];
    plan.extend(assets.iter().map(|asset| Resource::of(*asset).unwrap()));
    plan
}

#[tokio::test]
async fn a_connector_enrols_follows_its_plan_and_goes_on_without_the_operator() {
    foreshore_tls::install_provider();
    let authority =
        Arc::new(CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap());
    let broker_identity = identity(&authority, Role::Broker, "broker.test");
    let tls = Some(Arc::new(
        broker_identity.server_config(ClientAuth::Required).unwrap(),
    ));
    let broker = StandIn::start(Behaviour {
        tls,
        ..Behaviour::default()
    })
    .await
    .unwrap();

    let tokens = LocalTokens::new();
    let issuing = Authority::new(Arc::clone(&authority), |_| Vec::new());
    let (server, mut events) =
        ControlServer::new(ControlOptions::default(), issuing, Arc::new(tokens.clone()));
    let handle = server.handle();
    handle.lead(1);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let operator = identity(&authority, Role::Operator, "127.0.0.1");
    let serving = spawn("operator", async move {
        server.serve(listener, &operator, &Shutdown::new()).await
    });

    let connection = ConnectionPlan {
        namespace: "plant".into(),
        broker: "broker".into(),
        uid: "uid-broker".into(),
        mqtt_addresses: vec![broker.address().to_owned()],
        queue_addresses: Vec::new(),
        server_name: "broker.test".into(),
    };
    let who = RoleIdentity::new(Role::Connector, "plant", "fake", "u1").unwrap();
    let role: RoleKey = who.clone();
    handle.set_plan(&role, plan(&connection, &[&filler()])).unwrap();

    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::new(AgentOptions {
        trust: Some(authority.bundle()),
        ..AgentOptions::new(
            vec![address.to_string()],
            tokens.source(who, Duration::from_secs(600)),
            directory.path().join("agent"),
        )
    })
    .unwrap();
    let connector = FakeConnector::default();
    let shutdown = Shutdown::new();
    let running = spawn(
        "connector",
        crate::run(
            Arc::new(connector.clone()) as Arc<dyn Connector>,
            agent,
            options(&directory.path().join("state")),
            Metrics::new(),
            HealthRegistry::new(),
            shutdown.clone(),
        ),
    );
    answer(&mut events, "filler").await.unwrap();
    let healthy = |seen: &Observation| match seen {
        Observation::Report(report) if report.object.kind == DevicePlan::KIND => {
            (report.reason == "Healthy").then_some(())
        }
        _ => None,
    };
    until(&mut events, healthy).await;

    let mut bad = filler();
    bad.spec.destination = serde_json::from_value(json!({ "topic": "a/{nowhere}" })).unwrap();
    handle.set_plan(&role, plan(&connection, &[&bad])).unwrap();
    let nack = answer(&mut events, "filler").await.unwrap_err();
    assert!(nack.message.starts_with("spec.destination.topic: "), "{nack}");

    // The operator is gone; data flows on.
    serving.abort();
    drop(serving);
    let emitter = connector.emitter().unwrap();
    for number in 1..=5 {
        emitter
            .emit(FakeConnector::values("filler", "fast", &[("a", number)]))
            .await
            .unwrap();
    }
    shutdown.begin(SOON);
    running.await.unwrap().unwrap();
    assert_eq!(values_of_a(&data(broker.kept())), [1, 2, 3, 4, 5]);
    assert_eq!((connector.dials().len(), connector.closed()), (1, 1));
}
