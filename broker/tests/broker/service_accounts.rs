//! Pods that show the tokens of their service accounts, which the broker judges by keys that came with its plan.

use bytes::Bytes;
use foreshore_control::{Health, plan::ServiceAccountIssuerPlan};
use foreshore_peers::free_port;
use rmqtt_codec::v5::{AuthReasonCode, ConnectAckReason, DisconnectReasonCode, PublishAckReason};
use serde_json::json;

use crate::{
    auth::{Issuer, auth, connect, with_password},
    client::Client,
    role::{Plant, broker, policy},
};

const METHOD: &str = "K8S-SAT";

const USER: &str = "system:serviceaccount:plant:press";

fn told(issuer: &str, keys: &Issuer) -> ServiceAccountIssuerPlan {
    ServiceAccountIssuerPlan {
        issuer: issuer.to_owned(),
        keys: keys.keys.clone(),
    }
}

/// A broker that takes tokens of service accounts, and has been told who signs them.
async fn start(issuer: &Issuer) -> Plant {
    let mut plant = Plant::new();
    let listener = json!({
        "name": "pods", "port": free_port(), "protocol": "Tcp",
        "authentication": [{ "serviceAccount": { "audiences": ["other", "plant"] } }],
    });
    let plan = broker(json!({ "listeners": [listener] }));
    // Without keys nobody can be judged: it is told, and the agent tries again.
    let nack = plant.set(&plan).await.unwrap_err();
    assert_eq!((&*nack.reason, nack.is_passing()), ("NotYetKnown", true));
    plant.set(&told(&issuer.url, issuer)).await.unwrap();
    assert_eq!(plant.health("pods").0, Health::Available);
    plant.set(&plan).await.unwrap();
    plant
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_comes_in_with_the_token_of_its_service_account() {
    let issuer = Issuer::start().await;
    let mut plant = start(&issuer).await;
    let rules = json!([
        { "name": "all", "effect": "Allow", "actions": ["Connect"],
          "principals": { "groups": ["system:serviceaccounts"] } },
        { "name": "own", "effect": "Allow", "actions": ["Publish"], "topics": ["pods/${username}", "of/${attributes.namespace}/${attributes.serviceAccount}"],
          "principals": { "groups": ["system:serviceaccounts:plant"] } },
    ]);
    plant.set(&policy(rules)).await.unwrap();
    let address = plant.address("pods");
    let token = |user: &str| issuer.token(user, 600, &json!({}));
    let mine = format!("pods/{USER}");
    // As the password, whatever the user name, and by both methods; the user is what the token says.
    let (mut client, _) = Client::connect(address, with_password("password", token(USER))).await;
    assert_eq!(
        client.publish(&mine, "x").await,
        PublishAckReason::NoMatchingSubscribers
    );
    assert_eq!(
        client.publish("of/plant/press", "x").await,
        PublishAckReason::NoMatchingSubscribers
    );
    assert_eq!(
        client.publish("of/plant/other", "x").await,
        PublishAckReason::NotAuthorized
    );
    for method in [METHOD, "JWT"] {
        let (mut client, ack) = Client::connect(address, connect(method, method, Some(token(USER)))).await;
        assert_eq!(ack.auth_method.as_deref(), Some(method));
        assert_eq!(
            client.publish(&mine, "x").await,
            PublishAckReason::NoMatchingSubscribers
        );
        // Anew before it expires, as the SDK does when the kubelet has written another token.
        client
            .send(auth(AuthReasonCode::ReAuth, method, Some(token(USER))))
            .await;
        assert_eq!(client.auth().await.reason_code, AuthReasonCode::Success);
    }
    // Another namespace is in another group.
    let elsewhere = token("system:serviceaccount:office:press");
    let (mut client, _) = Client::connect(address, with_password("elsewhere", elsewhere)).await;
    let own = "pods/system:serviceaccount:office:press";
    assert_eq!(client.publish(own, "x").await, PublishAckReason::NotAuthorized);
    for (token, words) in [
        (token("alice"), "not that of a service account"),
        (issuer.token(USER, -61, &json!({})), "the token has expired"),
        (
            issuer.token(USER, 600, &json!({ "aud": "api" })),
            "another audience",
        ),
        (Bytes::from_static(b"no token"), "not a token of an issuer"),
    ] {
        let mut client = Client::begin(address, METHOD, Some(token)).await;
        let (reason, detail) = client.refused().await;
        assert_eq!(reason, ConnectAckReason::NotAuthorized, "{detail}");
        assert!(detail.contains(words), "{detail}");
    }
    // It stays as long as its token is valid; fifty of the sixty seconds by which clocks may differ are over.
    let short = issuer.token(USER, -50, &json!({}));
    let (mut leaves, _) = Client::connect(address, connect("leaves", METHOD, Some(short))).await;
    let (reason, detail) = leaves.shown_out().await;
    assert_eq!(
        (reason, detail.as_str()),
        (DisconnectReasonCode::NotAuthorized, "the token has expired")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_and_disconnect_nobody() {
    let (issuer, next) = (Issuer::start().await, Issuer::start().await);
    let mut plant = start(&issuer).await;
    let address = plant.address("pods");
    let old = || issuer.token(USER, 600, &json!({}));
    let new = || next.token(USER, 600, &json!({ "iss": issuer.url }));
    let (mut stays, _) = Client::connect(address, connect("stays", METHOD, Some(old()))).await;
    let refused = async |token| {
        let mut client = Client::begin(address, METHOD, Some(token)).await;
        client.refused().await.0
    };
    assert_eq!(refused(new()).await, ConnectAckReason::NotAuthorized);
    plant.set(&told(&issuer.url, &next)).await.unwrap();
    stays.ping().await;
    let (mut fresh, _) = Client::connect(address, connect("fresh", METHOD, Some(new()))).await;
    assert_eq!(refused(old()).await, ConnectAckReason::NotAuthorized);
    // Keys that make no sense change nothing.
    let nonsense = ServiceAccountIssuerPlan {
        issuer: issuer.url.clone(),
        keys: "{}".to_owned(),
    };
    assert_eq!(plant.set(&nonsense).await.unwrap_err().reason, "Invalid");
    fresh.ping().await;
    Client::connect(address, connect("again", METHOD, Some(new()))).await;
    // Another issuer is somebody else: whom the one before let in has to prove anew who it is.
    plant.set(&told(&next.url, &next)).await.unwrap();
    for client in [&mut stays, &mut fresh] {
        assert_eq!(client.shown_out().await.0, DisconnectReasonCode::NotAuthorized);
    }
    let theirs = next.token(USER, 600, &json!({}));
    Client::connect(address, connect("theirs", METHOD, Some(theirs))).await;
}
