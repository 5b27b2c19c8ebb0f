//! Clients whose certificates are revoked while they are connected.

use std::{collections::BTreeMap, sync::Arc};

use foreshore_control::{
    Health,
    plan::{SecretPlan, SecretValue},
};
use foreshore_peers::free_port;
use foreshore_tls::{Credentials, Identity, Refusal, ServerName, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rmqtt_codec::v5::{self, DisconnectReasonCode};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    client::{Client, hello},
    role::{Plant, broker},
    websocket::Raw,
};

/// An authority that a user brings.
pub(crate) struct Authority {
    root: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { root, issuer }
    }

    pub(crate) fn issue(&self, name: &str, serial: u64, usage: ExtendedKeyUsagePurpose) -> String {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        key.serialize_pem() + &certificate.pem()
    }

    /// The certificate of a client as that of a connector that dials in with it.
    pub(crate) fn client(&self, name: &str, serial: u64) -> TlsConnector {
        let pem = self.issue(name, serial, ExtendedKeyUsagePurpose::ClientAuth);
        let credentials = Credentials::from_pem(pem.as_bytes(), pem.as_bytes()).unwrap();
        let bundle = TrustBundle::from_pem(self.root.as_bytes()).unwrap();
        let config = Identity::new(&credentials, bundle)
            .unwrap()
            .client_config()
            .unwrap();
        TlsConnector::from(Arc::new(config))
    }

    /// The Secret of clients, with a list of some year.
    fn secret(&self, list: Option<(i32, &[u64])>) -> SecretPlan {
        let list = list.map(|(year, serials)| self.list(year, serials));
        self.secret_with(list.as_deref())
    }

    fn secret_with(&self, list: Option<&str>) -> SecretPlan {
        let authority = Some(("ca.crt", self.root.as_str()));
        secret(
            "clients",
            authority.into_iter().chain(list.map(|list| ("ca.crl", list))),
        )
    }

    fn list(&self, year: i32, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(year, 1, 1),
            next_update: date_time_ymd(year, 2, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn secret<'a>(name: &str, data: impl IntoIterator<Item = (&'a str, &'a str)>) -> SecretPlan {
    let data: BTreeMap<_, _> = data
        .into_iter()
        .map(|(key, value)| (key.to_owned(), SecretValue(value.as_bytes().to_vec())))
        .collect();
    SecretPlan {
        namespace: "plant".into(),
        name: name.into(),
        data,
    }
}

/// The Secret of the listener, with its certificate and key.
pub(crate) fn server(pem: &str) -> SecretPlan {
    secret("server", [("tls.crt", pem), ("tls.key", pem)])
}

/// A broker with a listener for clients of an authority.
pub(crate) async fn start(authority: &Authority, protocol: &str) -> Plant {
    let mut plant = Plant::new();
    let pem = authority.issue("localhost", 2, ExtendedKeyUsagePurpose::ServerAuth);
    plant.set(&server(&pem)).await.unwrap();
    plant.set(&authority.secret(None)).await.unwrap();
    let listener = serde_json::json!({
        "name": "devices", "port": free_port(), "protocol": protocol,
        "tls": { "secretRef": { "name": "server" } },
        "authentication": [{ "x509": { "caSecretRef": { "name": "clients" } } }],
    });
    let plan = broker(serde_json::json!({ "listeners": [listener] }));
    plant.set(&plan).await.unwrap();
    plant
}

pub(crate) async fn dial(plant: &Plant, client: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(plant.address("devices")).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    client.connect(name, stream).await
}

pub(crate) async fn connect(plant: &Plant, client: &TlsConnector, client_id: &str) -> Client {
    let mut client = Client::over(dial(plant, client).await.unwrap());
    client.send(v5::Packet::Connect(Box::new(hello(client_id)))).await;
    assert_eq!(client.connack().await.reason_code, v5::ConnectAckReason::Success);
    client
}

/// Expects that a client learns in the handshake that it is revoked.
async fn expect_revoked(plant: &Plant, client: &TlsConnector) {
    let error = match dial(plant, client).await {
        Err(error) => error,
        // With TLS 1.3 its own side is done before the broker has judged it.
        Ok(mut stream) => stream.read_u8().await.unwrap_err(),
    };
    let refusal = Refusal::find(&error).expect("a refusal").to_string();
    assert!(refusal.ends_with("revoked"), "{refusal}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_revoked_leaves_and_nobody_else_notices() {
    let authority = Authority::new("devices");
    let mut plant = start(&authority, "Tls").await;
    let (press, robot, scale) = (
        authority.client("press", 11),
        authority.client("robot", 12),
        authority.client("scale", 13),
    );
    let mut press_inside = connect(&plant, &press, "press").await;
    let mut robot_inside = connect(&plant, &robot, "robot").await;

    plant.set(&authority.secret(Some((2024, &[11])))).await.unwrap();
    assert_eq!(
        press_inside.expect_disconnect().await,
        DisconnectReasonCode::NotAuthorized
    );
    robot_inside.ping().await;
    expect_revoked(&plant, &press).await;
    let mut scale_inside = connect(&plant, &scale, "scale").await;

    // What can't be read or trusted changes nothing, and is told.
    let stranger = Authority::new("devices").list(2025, &[13]);
    for wrong in ["no list at all", &stranger] {
        let nack = plant.set(&authority.secret_with(Some(wrong))).await.unwrap_err();
        assert_eq!(nack.reason, "SecretInvalid");
        assert!(
            nack.message
                .contains("key \"ca.crl\": certificate revocation list: "),
            "{}",
            nack.message
        );
        assert_eq!(
            plant.health("devices"),
            (Health::Unavailable, "SecretInvalid".to_owned())
        );
        expect_revoked(&plant, &press).await;
    }

    // The newer list counts: one comes back, another goes.
    plant.set(&authority.secret(Some((2025, &[13])))).await.unwrap();
    assert_eq!(plant.health("devices").0, Health::Available);
    assert_eq!(
        scale_inside.expect_disconnect().await,
        DisconnectReasonCode::NotAuthorized
    );
    connect(&plant, &press, "press").await.ping().await;
    robot_inside.ping().await;
    plant.set(&authority.secret(None)).await.unwrap();
    connect(&plant, &scale, "scale").await.ping().await;
    robot_inside.ping().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_revoked_between_handshake_and_connect_does_not_stay() {
    let authority = Authority::new("devices");
    let mut plant = start(&authority, "WebSocketTls").await;
    let (press, robot) = (authority.client("press", 11), authority.client("robot", 12));
    // The upgrade is answered after the broker has judged the certificate.
    let mut press_inside = Raw::over(dial(&plant, &press).await.unwrap(), "/mqtt").await;
    let mut robot_inside = Raw::over(dial(&plant, &robot).await.unwrap(), "/mqtt").await;
    plant.set(&authority.secret(Some((2024, &[11])))).await.unwrap();
    robot_inside.connect("robot").await;
    press_inside.connect("press").await;
    match press_inside.packet().await {
        v5::Packet::Disconnect(disconnect) => {
            assert_eq!(disconnect.reason_code, DisconnectReasonCode::NotAuthorized);
        }
        other => panic!("DISCONNECT expected, {other:?} came"),
    }
    robot_inside.ping().await;
    expect_revoked(&plant, &press).await;
}
