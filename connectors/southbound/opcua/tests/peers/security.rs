//! Users and certificates.

use std::time::Duration;

use foreshore_connector_sdk::testkit::secret;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::{
    plant::{Plant, Security, counter_spec, device_spec, pem},
    server::{Kind, Server},
};

/// Long enough for several tries of a connector that hammers.
const A_WHILE: Duration = Duration::from_secs(4);

fn with_user(security: Security) -> Value {
    let mut spec = device_spec(security);
    spec["authentication"] = json!({ "usernamePassword": { "secretRef": { "name": "user" } } });
    spec
}

async fn set_password(plant: &mut Plant, password: &str) {
    let user = secret("user", &[("username", "operator"), ("password", password)]);
    plant.harness.set(&user).await.unwrap();
}

fn logins(server: &mut Server, line: &str) -> usize {
    server.printed().iter().filter(|printed| *printed == line).count()
}

/// A wrong password is tried once and told; the right one is tried as soon as it is there.
async fn a_wrong_password_is_not_hammered(kind: Kind, security: Security) {
    let mut server = Server::start(kind, &[]);
    let mut plant = Plant::empty().await;
    plant.trust(&server.certificate()).await;
    set_password(&mut plant, "wrong").await;
    plant
        .put(&server.address(), with_user(security), counter_spec())
        .await;
    let evidence = plant.wait_for_reason("AuthenticationFailed").await;
    assert!(
        evidence.contains("Bad") && !evidence.contains("wrong"),
        "{evidence}"
    );
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(logins(&mut server, "login operator refused"), 1);
    set_password(&mut plant, "bottles").await;
    plant.wait_for_counter(0, 5).await;
    plant.wait_for_reason("Healthy").await;
    assert_eq!(logins(&mut server, "login operator refused"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_on_asyncua() {
    a_wrong_password_is_not_hammered(Kind::Asyncua, Security::SignAndEncrypt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_on_node_opcua() {
    a_wrong_password_is_not_hammered(Kind::Node, Security::SignAndEncrypt).await;
}

/// Over a channel without security node-opcua has the password encrypted for its certificate: then that must be trusted.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_the_server_has_encrypted_goes_over_an_open_channel() {
    let server = Server::start(Kind::Node, &[]);
    let stranger = Server::start(Kind::Asyncua, &[]);
    let mut plant = Plant::empty().await;
    plant.trust(&stranger.certificate()).await;
    set_password(&mut plant, "bottles").await;
    plant
        .put(&server.address(), with_user(Security::None), counter_spec())
        .await;
    plant.wait_for_reason("CertificateUntrusted").await;
    plant.trust(&server.certificate()).await;
    plant.wait_for_counter(0, 5).await;
}

/// A certificate that is not trusted is told with its fingerprint, and taken as soon as it is trusted: itself, or the
/// authority that signed it.
#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_certificate_is_told_and_taken_once_trusted() {
    let server = Server::start(Kind::Asyncua, &[]);
    let stranger = Server::start(Kind::Node, &[]);
    let mut plant = Plant::empty().await;
    plant.trust(&stranger.certificate()).await;
    let spec = device_spec(Security::SignAndEncrypt);
    plant.put(&server.address(), spec, counter_spec()).await;
    let evidence = plant.wait_for_reason("CertificateUntrusted").await;
    let fingerprint = hex::encode(Sha256::digest(server.certificate()));
    assert!(evidence.contains(&fingerprint), "{evidence}");
    plant.trust(&server.authority()).await;
    plant.wait_for_counter(0, 5).await;
    plant.trust(&stranger.certificate()).await;
    plant.wait_for_reason("CertificateUntrusted").await;
    plant.trust(&server.certificate()).await;
    plant.wait_for_reason("Healthy").await;
}

/// A server that sends its authority's certificate behind its own is told as what it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_certificates_is_told() {
    let issued = Server::start(Kind::Asyncua, &[]);
    let server = Server::start_prepared(Kind::Node, &["chain"], |directory| {
        let chain = [pem(&issued.certificate()), pem(&issued.authority())].concat();
        std::fs::write(directory.join("chain.pem"), chain).unwrap();
        std::fs::write(directory.join("key.pem"), issued.key()).unwrap();
    });
    for security in [Security::None, Security::SignAndEncrypt] {
        let mut plant = Plant::empty().await;
        plant.trust(&issued.authority()).await;
        plant
            .put(&server.address(), device_spec(security), counter_spec())
            .await;
        let evidence = plant.wait_for_reason("ConfigurationRefused").await;
        assert!(evidence.contains("sends 2 certificates in a chain"), "{evidence}");
    }
}

/// A user with a certificate.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_certificate_on_asyncua() {
    let mut server = Server::start(Kind::Asyncua, &[]);
    let mut plant = Plant::empty().await;
    plant.trust(&server.certificate()).await;
    let (certificate, key) = (pem(&server.certificate()), server.key());
    let user = secret("user", &[("tls.crt", &certificate), ("tls.key", &key)]);
    plant.harness.set(&user).await.unwrap();
    let mut spec = device_spec(Security::SignAndEncrypt);
    spec["authentication"] = json!({ "x509": { "secretRef": { "name": "user" } } });
    plant.put(&server.address(), spec, counter_spec()).await;
    plant.wait_for_counter(0, 5).await;
    assert_eq!(logins(&mut server, "login certificate accepted"), 1);
}
