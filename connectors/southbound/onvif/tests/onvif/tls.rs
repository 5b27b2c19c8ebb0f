//! A camera that speaks TLS with a certificate of its own.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedKey, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
};
use serde_json::json;
use tokio_rustls::rustls::{ServerConfig, pki_types::PrivateKeyDer};

use crate::{plant::Plant, scripted::Camera};

/// A self-signed certificate for a host.
fn certificate(host: &str, is_ca: IsCa) -> CertifiedKey<KeyPair> {
    let signing_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut parameters = CertificateParams::new([host.to_owned()]).unwrap();
    parameters.is_ca = is_ca;
    let cert = parameters.self_signed(&signing_key).unwrap();
    CertifiedKey { cert, signing_key }
}

async fn camera(certificate: &CertifiedKey<KeyPair>) -> (Camera, String) {
    let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let configuration = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .unwrap();
    let camera = Camera::start_with("127.0.0.1", Some(configuration)).await;
    let address = camera.address().replace("http:", "https:");
    (camera, address)
}

#[tokio::test]
async fn a_certificate_is_believed_only_when_the_manifest_says_so() {
    let mut plant = Plant::start().await;
    let own = certificate("127.0.0.1", IsCa::NoCa);
    let (_camera, address) = camera(&own).await;
    let another = certificate("127.0.0.1", IsCa::NoCa);
    let secret = json!({ "certificatesSecretRef": { "name": "certificates" } });

    plant
        .dial_trusting(&address, secret.clone(), &another.cert.pem())
        .await;
    let seen = plant.camera_is("CertificateUntrusted").await;
    assert!(seen.contains("certificate is not trusted"), "{seen}");
    plant.dial_trusting(&address, secret, &own.cert.pem()).await;
    plant.camera_is("Healthy").await;
    let any = json!({ "acceptUntrusted": true });
    plant.dial_trusting(&address, any, &another.cert.pem()).await;
    plant.camera_is("Healthy").await;
}

#[tokio::test]
async fn a_certificate_that_signs_itself_as_an_authority_is_believed_too() {
    let mut plant = Plant::start().await;
    let own = certificate("127.0.0.1", IsCa::Ca(BasicConstraints::Unconstrained));
    let (_camera, address) = camera(&own).await;
    let secret = json!({ "certificatesSecretRef": { "name": "certificates" } });
    plant.dial_trusting(&address, secret, &own.cert.pem()).await;
    plant.camera_is("Healthy").await;
}

#[tokio::test]
async fn another_host_name_is_believed_only_when_the_manifest_says_so() {
    let mut plant = Plant::start().await;
    let authority = certificate("authority", IsCa::Ca(BasicConstraints::Unconstrained));
    let issuer = Issuer::from_ca_cert_der(authority.cert.der(), &authority.signing_key).unwrap();
    let signing_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let parameters = CertificateParams::new(["camera.invalid".to_owned()]).unwrap();
    let cert = parameters.signed_by(&signing_key, &issuer).unwrap();
    let (_camera, address) = camera(&CertifiedKey { cert, signing_key }).await;
    let mut trust = json!({ "certificatesSecretRef": { "name": "certificates" } });
    plant
        .dial_trusting(&address, trust.clone(), &authority.cert.pem())
        .await;
    let seen = plant.camera_is("CertificateUntrusted").await;
    assert!(seen.contains("camera.invalid"), "{seen}");
    trust["acceptOtherHostNames"] = json!(true);
    plant.dial_trusting(&address, trust, &authority.cert.pem()).await;
    plant.camera_is("Healthy").await;
}
