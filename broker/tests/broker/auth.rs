//! Who a client is, proved in several steps (MQTT 5.0 section 4.12), with SCRAM and with tokens.
//!
//! No client of others that our tests have speaks AUTH: mosquitto's and paho's do not. The arithmetic is held against the
//! vectors of the RFCs instead, in the modules' own tests.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use foreshore_broker::{
    Limits, ListenerOptions, Method, PasswordTable, TokenIssuer, TokenOptions, Webhook, WebhookOptions,
};
use foreshore_tls::{
    AuthorityOptions, CertificateAuthority, ClientAuth, Credentials, Identity, Role, RoleIdentity, ServerName,
};
use jiff::Timestamp;
use ring::{
    digest::{SHA256, digest},
    hmac::{self, HMAC_SHA256},
    pbkdf2,
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use rmqtt_codec::{
    types::QoS,
    v3,
    v5::{
        self, Auth, AuthReasonCode, ConnectAckReason, DisconnectReasonCode, Packet, PublishAckReason,
        SubscribeAckReason,
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    TestBroker,
    client::{Client, Client3, hello, publish},
    options,
};

const SCRAM: &str = "SCRAM-SHA-256";

const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";

/// "pencil", as PostgreSQL keeps it; worked out by Python's hashlib.
const RECORD: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:\
                      wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

/// A hash, of which SCRAM can make nothing.
const HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Ok4hSwFi4zI1Q2+DLCpqbhdMlvT9uMDkhvcKVF2nCoE";

pub(crate) fn users(users: &[(&str, &str)]) -> Method {
    let users = users
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
    Method::Passwords(Arc::new(PasswordTable::new(users, &[]).unwrap()))
}

async fn start(authentication: Vec<Method>) -> TestBroker {
    let mut options = options();
    options.listeners[0].authentication = authentication;
    TestBroker::start_with(options).await
}

/// A broker of which alice's password is known, and of carol's as much as SCRAM needs.
async fn start_with_users() -> TestBroker {
    start(vec![users(&[
        ("alice", "pencil"),
        ("carol", RECORD),
        ("dave", HASH),
    ])])
    .await
}

pub(crate) fn connect(client_id: &str, method: &str, data: Option<Bytes>) -> v5::Connect {
    v5::Connect {
        auth_method: Some(method.into()),
        auth_data: data,
        ..hello(client_id)
    }
}

pub(crate) fn auth(reason_code: AuthReasonCode, method: &str, data: Option<Bytes>) -> Packet {
    Packet::Auth(Auth {
        reason_code,
        auth_method: Some(method.into()),
        auth_data: data,
        ..Auth::default()
    })
}

fn first(name: &str) -> Bytes {
    Bytes::from(format!("n,,n={name},r={NONCE}"))
}

/// The client's proof, and how the server proves itself (RFC 5802 section 3).
fn proof(name: &str, password: &str, challenge: &[u8]) -> (Bytes, Bytes) {
    let challenge = std::str::from_utf8(challenge).unwrap();
    let field = |name| {
        challenge
            .split(',')
            .find_map(|part| part.strip_prefix(name))
            .unwrap()
    };
    assert!(field("r=").starts_with(NONCE) && field("r=").len() > NONCE.len());
    let iterations = NonZeroU32::new(field("i=").parse().unwrap()).unwrap();
    let mut salted = [0; 32];
    let salt = STANDARD.decode(field("s=")).unwrap();
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        &salt,
        password.as_bytes(),
        &mut salted,
    );
    let sign = |key: &[u8], data: &[u8]| {
        hmac::sign(&hmac::Key::new(HMAC_SHA256, key), data)
            .as_ref()
            .to_vec()
    };
    let unproved = format!("c=biws,r={}", field("r="));
    let signed = format!("n={name},r={NONCE},{challenge},{unproved}");
    let key = sign(&salted, b"Client Key");
    let signature = sign(digest(&SHA256, &key).as_ref(), signed.as_bytes());
    let proof: Vec<u8> = key
        .iter()
        .zip(signature)
        .map(|(byte, mask)| byte ^ mask)
        .collect();
    let server = sign(&sign(&salted, b"Server Key"), signed.as_bytes());
    (
        format!("{unproved},p={}", STANDARD.encode(proof)).into(),
        format!("v={}", STANDARD.encode(server)).into(),
    )
}

impl Client {
    /// The next packet, which has to be AUTH.
    pub(crate) async fn auth(&mut self) -> Auth {
        match self.receive().await {
            Packet::Auth(auth) => {
                // What is left out makes no packet too large ([MQTT-3.15.2-2], [MQTT-3.15.2-3]).
                assert!(auth.reason_string.is_none() && auth.user_properties.is_empty());
                auth
            }
            other => panic!("AUTH expected, {other:?} came"),
        }
    }

    /// Opens a connection, and says with CONNECT how it means to prove who it is.
    pub(crate) async fn begin(address: SocketAddr, method: &str, data: Option<Bytes>) -> Self {
        let mut client = Self::open(address).await;
        let connect = connect("c", method, data);
        client.send(Packet::Connect(Box::new(connect))).await;
        client
    }

    /// Expects a challenge, and answers it.
    async fn prove(&mut self, name: &str, password: &str) -> Bytes {
        let auth = self.auth().await;
        assert_eq!(auth.reason_code, AuthReasonCode::ContinueAuth);
        assert_eq!(auth.auth_method.as_deref(), Some(SCRAM));
        let (last, server) = proof(name, password, &auth.auth_data.unwrap());
        self.send(self::auth(AuthReasonCode::ContinueAuth, SCRAM, Some(last)))
            .await;
        server
    }

    async fn scram(address: SocketAddr, name: &str, password: &str) -> (Self, v5::ConnectAck) {
        let mut client = Self::begin(address, SCRAM, Some(first(name))).await;
        let server = client.prove(name, password).await;
        let ack = client.connack().await;
        if ack.reason_code == ConnectAckReason::Success {
            assert_eq!(ack.auth_method.as_deref(), Some(SCRAM));
            assert_eq!(
                ack.auth_data.as_ref(),
                Some(&server),
                "the server proves itself too"
            );
        }
        (client, ack)
    }

    /// Expects CONNACK with a refusal, and the end.
    pub(crate) async fn refused(&mut self) -> (ConnectAckReason, String) {
        let ack = self.connack().await;
        assert!(ack.auth_method.is_none());
        assert!(self.next().await.is_none());
        (ack.reason_code, ack.reason_string.unwrap_or_default().to_string())
    }

    /// Expects DISCONNECT and the end, and tells why.
    pub(crate) async fn shown_out(&mut self) -> (DisconnectReasonCode, String) {
        match self.receive().await {
            Packet::Disconnect(disconnect) => {
                assert!(self.next().await.is_none());
                (
                    disconnect.reason_code,
                    disconnect.reason_string.unwrap_or_default().to_string(),
                )
            }
            other => panic!("DISCONNECT expected, {other:?} came"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_prove_by_scram_who_they_are() {
    let broker = start_with_users().await;
    for name in ["alice", "carol", "alice"] {
        let (mut client, ack) = Client::scram(broker.address, name, "pencil").await;
        assert_eq!(ack.reason_code, ConnectAckReason::Success, "{name}: {ack:?}");
        client.ping().await;
        let sessions = broker.handle.sessions(None, 10).await.unwrap().items;
        let username = sessions[0].connection.as_ref().unwrap().username.as_deref();
        assert_eq!(username, Some(name));
        client.disconnect().await;
    }
    // Who says nothing at first is asked.
    let mut client = Client::begin(broker.address, SCRAM, None).await;
    let asked = client.auth().await;
    assert_eq!(
        (asked.reason_code, asked.auth_data),
        (AuthReasonCode::ContinueAuth, None)
    );
    client
        .send(auth(AuthReasonCode::ContinueAuth, SCRAM, Some(first("alice"))))
        .await;
    client.prove("alice", "pencil").await;
    assert_eq!(client.connack().await.reason_code, ConnectAckReason::Success);
    // A record knows a password that is told, too.
    for (password, expected) in [
        ("pencil", ConnectAckReason::Success),
        ("pencils", ConnectAckReason::BadUserNameOrPassword),
    ] {
        let connect = v5::Connect {
            username: Some("carol".into()),
            password: Some(Bytes::from_static(password.as_bytes())),
            ..hello("p")
        };
        let mut client = Client::open(broker.address).await;
        client.send(Packet::Connect(Box::new(connect))).await;
        let ack = client.connack().await;
        assert_eq!(ack.reason_code, expected);
        assert!(ack.auth_method.is_none(), "[MQTT-4.12.0-6]");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_unknown_is_refused_like_who_knows_no_password() {
    let broker = start_with_users().await;
    let mut salts = Vec::new();
    for name in ["alice", "carol", "dave", "nobody", "nobody", "anybody"] {
        let mut client = Client::begin(broker.address, SCRAM, Some(first(name))).await;
        let challenge = client.auth().await.auth_data.unwrap();
        let text = String::from_utf8(challenge.to_vec()).unwrap();
        let salt = text.split(',').nth(1).unwrap().to_owned();
        assert_eq!((salt.len(), text.ends_with(",i=4096")), (26, true), "{text}");
        salts.push(salt);
        let (last, _) = proof(name, "wrong", &challenge);
        client
            .send(auth(AuthReasonCode::ContinueAuth, SCRAM, Some(last)))
            .await;
        let (reason, detail) = client.refused().await;
        assert_eq!(reason, ConnectAckReason::BadUserNameOrPassword, "{name}");
        assert_eq!(detail, "the client could not prove who it is", "{name}");
    }
    assert_eq!(salts[3], salts[4], "a name has one salt");
    let different: std::collections::BTreeSet<_> = salts.iter().collect();
    assert_eq!(different.len(), 5);
    // Channel binding is not offered, and who could bind if we could may come in.
    let mut client = Client::begin(broker.address, SCRAM, Some("p=tls-exporter,,n=alice,r=x".into())).await;
    let (reason, detail) = client.refused().await;
    assert_eq!(reason, ConnectAckReason::NotAuthorized);
    assert!(detail.contains("channel binding is not offered"), "{detail}");
    let mut client = Client::begin(broker.address, SCRAM, Some("y,,n=alice,r=x".into())).await;
    assert_eq!(client.auth().await.reason_code, AuthReasonCode::ContinueAuth);
    for method in ["SCRAM-SHA-1", "JWT", ""] {
        let mut client = Client::begin(broker.address, method, None).await;
        assert_eq!(
            client.refused().await.0,
            ConnectAckReason::BadAuthenticationMethod,
            "{method}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_may_come_before_connack() {
    let broker = start_with_users().await;
    let begun = async || {
        let mut client = Client::begin(broker.address, SCRAM, Some(first("alice"))).await;
        let challenge = client.auth().await.auth_data.unwrap();
        (client, proof("alice", "pencil", &challenge).0)
    };
    let proof_of = |last: Bytes| auth(AuthReasonCode::ContinueAuth, SCRAM, Some(last));
    let (_, last) = begun().await;
    for wrong in [
        Packet::PingRequest,
        Packet::Publish(Box::new(publish("a", "x", QoS::AtMostOnce, 0))),
        Packet::Connect(Box::new(hello("c"))),
        auth(AuthReasonCode::ContinueAuth, "SCRAM-SHA-1", Some(last.clone())),
        auth(AuthReasonCode::ReAuth, SCRAM, Some(last.clone())),
        auth(AuthReasonCode::Success, SCRAM, Some(last)),
        Packet::Auth(Auth::default()),
    ] {
        let (mut client, _) = begun().await;
        client.send(wrong.clone()).await;
        assert_eq!(
            client.refused().await.0,
            ConnectAckReason::ProtocolError,
            "{wrong:?}"
        );
    }
    // Nor together with what proves who the client is ([MQTT-3.1.2-30]).
    let (mut client, last) = begun().await;
    let mut both = bytes::BytesMut::new();
    let mut codec = v5::Codec::new(0, 0);
    for packet in [proof_of(last), Packet::PingRequest] {
        tokio_util::codec::Encoder::encode(&mut codec, packet, &mut both).unwrap();
    }
    client.send_raw(&both).await;
    assert_eq!(client.refused().await.0, ConnectAckReason::ProtocolError);
    // DISCONNECT may, and is the end.
    let (client, _) = begun().await;
    client.disconnect().await;
    // Reserved flags, and a packet that is too large.
    let (mut client, _) = begun().await;
    client.send_raw(b"\xf1\x00").await;
    assert_eq!(client.refused().await.0, ConnectAckReason::MalformedPacket);
    let (mut client, _) = begun().await;
    client.send_raw(b"\xf0\x80\x80\x08").await;
    assert_eq!(client.refused().await.0, ConnectAckReason::PacketTooLarge);
    // A client that takes no challenge gets none ([MQTT-3.1.2-24]).
    let mut client = Client::open(broker.address).await;
    let small = v5::Connect {
        max_packet_size: NonZeroU32::new(60),
        ..connect("c", SCRAM, Some(first("alice")))
    };
    client.send(Packet::Connect(Box::new(small))).await;
    assert_eq!(client.refused().await.0, ConnectAckReason::PacketTooLarge);
    // Whoever falls silent is shown out.
    broker.handle.set_limits(Limits {
        connect_timeout: Duration::from_millis(300),
        ..Limits::default()
    });
    let mut client = Client::begin(broker.address, SCRAM, None).await;
    client.auth().await;
    assert_eq!(client.refused().await.0, ConnectAckReason::NotAuthorized);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_proves_anew_who_it_is_while_data_goes_on() {
    let broker = start_with_users().await;
    let (mut client, _) = Client::scram(broker.address, "alice", "pencil").await;
    assert_eq!(
        client.subscribe("t", QoS::AtLeastOnce).await,
        SubscribeAckReason::GrantedQos1
    );
    for _ in 0..2 {
        client
            .send(auth(AuthReasonCode::ReAuth, SCRAM, Some(first("alice"))))
            .await;
        let challenge = client.auth().await;
        assert_eq!(challenge.reason_code, AuthReasonCode::ContinueAuth);
        assert_eq!(client.publish("t", "meanwhile").await, PublishAckReason::Success);
        assert_eq!(client.take().await, "meanwhile");
        let (last, server) = proof("alice", "pencil", &challenge.auth_data.unwrap());
        client
            .send(auth(AuthReasonCode::ContinueAuth, SCRAM, Some(last)))
            .await;
        let done = client.auth().await;
        assert_eq!(done.reason_code, AuthReasonCode::Success);
        assert_eq!(done.auth_method.as_deref(), Some(SCRAM));
        assert_eq!(done.auth_data, Some(server));
    }
    client.ping().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fails_to_prove_anew_who_it_is_leaves() {
    let broker = start_with_users().await;
    let reauthenticate = |name| auth(AuthReasonCode::ReAuth, SCRAM, Some(first(name)));
    let proceed = |data| auth(AuthReasonCode::ContinueAuth, SCRAM, data);
    let alice = async || Client::scram(broker.address, "alice", "pencil").await.0;

    // Out of turn, or by another method: a protocol error.
    for wrong in [
        auth(AuthReasonCode::ReAuth, "SCRAM-SHA-1", Some(first("alice"))),
        auth(AuthReasonCode::Success, SCRAM, None),
        proceed(Some(first("alice"))),
        Packet::Auth(Auth::default()),
    ] {
        let mut client = alice().await;
        client.send(wrong.clone()).await;
        assert_eq!(
            client.shown_out().await.0,
            DisconnectReasonCode::ProtocolError,
            "{wrong:?}"
        );
    }
    let mut twice = alice().await;
    twice.send(reauthenticate("alice")).await;
    twice.auth().await;
    twice.send(reauthenticate("alice")).await;
    assert_eq!(twice.shown_out().await.0, DisconnectReasonCode::ProtocolError);

    // With a wrong proof, or as somebody else: not authorized.
    for (name, password, words) in [
        ("alice", "wrong", "could not prove"),
        ("nobody", "pencil", "could not prove"),
        ("carol", "pencil", "somebody else"),
    ] {
        let mut client = alice().await;
        client.send(reauthenticate(name)).await;
        client.prove(name, password).await;
        let (reason, detail) = client.shown_out().await;
        assert_eq!(reason, DisconnectReasonCode::NotAuthorized, "{name}");
        assert!(detail.contains(words), "{detail}");
    }
    // Who said nothing of a method in CONNECT has none ([MQTT-4.12.0-7]).
    let mut plain = Client::open(broker.address).await;
    let login = v5::Connect {
        username: Some("alice".into()),
        password: Some("pencil".into()),
        ..hello("plain")
    };
    plain.send(Packet::Connect(Box::new(login))).await;
    plain.connack().await;
    plain.send(reauthenticate("alice")).await;
    assert_eq!(plain.shown_out().await.0, DisconnectReasonCode::ProtocolError);

    // The password changes between challenge and proof.
    let mut late = alice().await;
    late.send(reauthenticate("alice")).await;
    let challenge = late.auth().await.auth_data.unwrap();
    let changed = vec![users(&[("alice", "pencil2")])];
    let place = SocketAddr::from(([127, 0, 0, 1], 0));
    broker
        .handle
        .open_listener(ListenerOptions::tcp("test", place, changed))
        .unwrap();
    // It may have left already.
    let (last, _) = proof("alice", "pencil", &challenge);
    late.send(proceed(Some(last))).await;
    assert_eq!(late.shown_out().await.0, DisconnectReasonCode::NotAuthorized);

    // Nor for ever.
    let mut silent = Client::scram(broker.address, "alice", "pencil2").await.0;
    broker.handle.set_limits(Limits {
        connect_timeout: Duration::from_millis(100),
        ..Limits::default()
    });
    silent.send(reauthenticate("alice")).await;
    silent.auth().await;
    let (reason, detail) = silent.shown_out().await;
    assert_eq!(reason, DisconnectReasonCode::NotAuthorized);
    assert!(detail.contains("in time"), "{detail}");
}

/// An issuer of tokens, with its keys at an address of its own.
pub(crate) struct Issuer {
    pub(crate) url: String,
    pub(crate) authority: CertificateAuthority,
    /// Its keys as it publishes them.
    pub(crate) keys: String,
    key: Ed25519KeyPair,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    pub(crate) async fn start() -> Self {
        foreshore_tls::install_provider();
        let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
        let acceptor = acceptor(&authority, ClientAuth::None);
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let key = Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let public = URL_SAFE_NO_PAD.encode(key.public_key());
        let keys =
            json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "k1", "use": "sig", "x": public }] });
        let configuration = json!({ "issuer": url, "jwks_uri": format!("{url}/keys"), "more": true });
        let pages = BTreeMap::from([
            ("/keys", keys.to_string()),
            ("/.well-known/openid-configuration", configuration.to_string()),
        ]);
        let asked = Arc::<AtomicUsize>::default();
        let counting = Arc::clone(&asked);
        let answer = move |path: &str, _: &str| {
            if path == "/keys" {
                counting.fetch_add(1, Ordering::Relaxed);
            }
            let page = pages.get(path);
            page.map_or_else(|| (404, String::new()), |body| (200, body.clone()))
        };
        tokio::spawn(serve(listener, acceptor, answer));
        Self {
            url,
            authority,
            keys: keys.to_string(),
            key,
            asked,
        }
    }

    /// How often its keys were asked for.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn method(&self) -> Method {
        let options = TokenOptions {
            issuer: self.url.clone(),
            jwks_uri: None,
            audiences: vec!["plant".to_owned()],
            username_claim: "sub".to_owned(),
            groups_claim: Some("roles".to_owned()),
            authorities: Some(self.authority.bundle()),
        };
        Method::Jwt(Arc::new(TokenIssuer::new(options).unwrap()))
    }

    /// A token of a user that expires so many seconds from now, with further claims.
    pub(crate) fn token(&self, user: &str, expires: i64, more: &Value) -> Bytes {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let expires = i64::try_from(now).unwrap() + expires;
        let mut claims = json!({ "iss": self.url, "aud": "plant", "sub": user, "exp": expires });
        claims
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.sign(&json!({ "alg": "EdDSA", "kid": "k1", "typ": "JWT" }), &claims)
    }

    fn sign(&self, header: &Value, claims: &Value) -> Bytes {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(signed.as_bytes()));
        Bytes::from(format!("{signed}.{signature}"))
    }
}

/// A certificate for this machine, of an authority of others.
fn credentials(authority: &CertificateAuthority) -> Credentials {
    let names = [ServerName::try_from("localhost").unwrap()];
    let role = RoleIdentity::new(Role::Edge, "outside", "service", "u").unwrap();
    authority
        .issue_credentials(&role, &names, Timestamp::now())
        .unwrap()
}

fn acceptor(authority: &CertificateAuthority, client_auth: ClientAuth) -> TlsAcceptor {
    let identity = Identity::new(&credentials(authority), authority.bundle()).unwrap();
    TlsAcceptor::from(Arc::new(identity.server_config(client_auth).unwrap()))
}

/// Answers one question on each connection, by path and body.
async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    answer: impl Fn(&str, &str) -> (u16, String) + Send + Sync + 'static,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(mut stream) = acceptor.accept(stream).await else {
            continue;
        };
        let mut request = Vec::new();
        let (status, body) = loop {
            if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                break (400, String::new());
            }
            let text = std::str::from_utf8(&request).unwrap();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                break answer(head.split(' ').nth(1).unwrap(), body);
            }
        };
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        // Who asks may be gone.
        let _gone = stream.write_all(answer.as_bytes()).await;
        let _gone = stream.shutdown().await;
    }
}

pub(crate) fn with_password(client_id: &str, password: Bytes) -> v5::Connect {
    v5::Connect {
        username: Some("ignored".into()),
        password: Some(password),
        ..hello(client_id)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_of_a_believed_issuer_let_in() {
    let (issuer, stranger) = (Issuer::start().await, Issuer::start().await);
    let broker = start(vec![issuer.method(), users(&[("ignored", "password")])]).await;
    let none = json!({});
    let username = async || {
        let sessions = broker.handle.sessions(None, 10).await.unwrap().items;
        sessions[0].connection.as_ref().unwrap().username.clone().unwrap()
    };
    // As the password, in both versions.
    let (client, ack) = Client::connect(
        broker.address,
        with_password("c", issuer.token("alice", 600, &none)),
    )
    .await;
    assert!(ack.auth_method.is_none());
    assert_eq!(username().await, "alice");
    client.disconnect().await;
    let connect = v3::Connect {
        client_id: "c".into(),
        clean_session: true,
        username: Some("ignored".into()),
        password: Some(issuer.token("bob", 600, &none)),
        ..v3::Connect::default()
    };
    let mut client = Client3::open(broker.address, connect).await;
    match client.receive().await {
        v3::Packet::ConnectAck(ack) => assert_eq!(ack.return_code, v3::ConnectAckReason::ConnectionAccepted),
        other => panic!("CONNACK expected, {other:?} came"),
    }
    drop(client);
    // By the method of its name, at once or when it is asked.
    let mut client = Client::begin(broker.address, "JWT", Some(issuer.token("carol", 600, &none))).await;
    let ack = client.connack().await;
    assert_eq!(
        (ack.reason_code, ack.auth_method.as_deref()),
        (ConnectAckReason::Success, Some("JWT"))
    );
    assert_eq!(username().await, "carol");
    let mut client = Client::begin(broker.address, "JWT", None).await;
    assert_eq!(client.auth().await.reason_code, AuthReasonCode::ContinueAuth);
    client
        .send(auth(
            AuthReasonCode::ContinueAuth,
            "JWT",
            Some(issuer.token("dave", 600, &none)),
        ))
        .await;
    assert_eq!(client.connack().await.reason_code, ConnectAckReason::Success);
    // Its tokens are none of service accounts.
    let token = issuer.token("system:serviceaccount:a:b", 600, &none);
    let mut client = Client::begin(broker.address, "K8S-SAT", Some(token)).await;
    assert_eq!(
        client.refused().await.0,
        ConnectAckReason::BadAuthenticationMethod
    );
    // What is no token of this issuer is left to the next way.
    Client::connect(broker.address, with_password("p", "password".into())).await;

    let unsigned = {
        let claims = json!({ "iss": issuer.url, "aud": "plant", "sub": "alice", "exp": 9_999_999_999_u64 });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        Bytes::from(format!("{}.{}.", part(&json!({ "alg": "none" })), part(&claims)))
    };
    for (token, words) in [
        (issuer.token("alice", -61, &none), "the token has expired"),
        (
            issuer.token("alice", 600, &json!({ "aud": "other" })),
            "another audience",
        ),
        (
            issuer.token("alice", 600, &json!({ "nbf": 9_999_999_999_u64 })),
            "not valid yet",
        ),
        (
            stranger.token("alice", 600, &json!({ "iss": issuer.url })),
            "signature is wrong",
        ),
        (unsigned, "algorithm is \"none\""),
    ] {
        let mut client = Client::open(broker.address).await;
        client
            .send(Packet::Connect(Box::new(with_password("x", token.clone()))))
            .await;
        let (reason, detail) = client.refused().await;
        assert_eq!(reason, ConnectAckReason::NotAuthorized, "{detail}");
        assert!(detail.contains(words), "{detail}");
        let mut client = Client::begin(broker.address, "JWT", Some(token)).await;
        assert_eq!(client.refused().await, (reason, detail));
    }
    let mut client = Client::begin(broker.address, "JWT", Some(stranger.token("alice", 600, &none))).await;
    assert_eq!(client.refused().await.0, ConnectAckReason::NotAuthorized);
    // However many unknown keys are named, the issuer is not asked again at once.
    let asked = issuer.asked();
    for key in 0..20 {
        let claims = json!({ "iss": issuer.url, "aud": "plant", "sub": "alice", "exp": 9_999_999_999_u64 });
        let token = issuer.sign(
            &json!({ "alg": "EdDSA", "kid": format!("unknown{key}") }),
            &claims,
        );
        let mut client = Client::begin(broker.address, "JWT", Some(token)).await;
        let (_, detail) = client.refused().await;
        assert!(detail.contains("no such key"), "{detail}");
    }
    assert!(
        issuer.asked() - asked <= 2,
        "in as long as this takes, once in 30 s"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_stays_as_long_as_its_token_is_valid() {
    let issuer = Issuer::start().await;
    let broker = start(vec![issuer.method()]).await;
    let policy = json!({ "rules": [
        { "name": "all", "effect": "Allow", "actions": ["Connect"] },
        { "name": "ops", "effect": "Allow", "actions": ["Publish"], "principals": { "groups": ["ops"] } },
    ]});
    let policy = serde_json::from_value(policy).unwrap();
    broker.handle.set_policies([("p", &policy)]).unwrap();
    let ops = json!({ "roles": ["ops"] });
    // Within the sixty seconds by which clocks may differ.
    let short = |user| issuer.token(user, -50, &ops);
    let reauthenticate = |token| auth(AuthReasonCode::ReAuth, "JWT", Some(token));
    let enter = async |client_id: &str, token| {
        let connect = connect(client_id, "JWT", Some(token));
        Client::connect(broker.address, connect).await.0
    };
    let mut leaves = enter("leaves", short("alice")).await;
    let mut stays = enter("stays", short("alice")).await;
    stays.send(reauthenticate(issuer.token("alice", 600, &ops))).await;
    let done = stays.auth().await;
    assert_eq!(
        (done.reason_code, done.auth_method.as_deref()),
        (AuthReasonCode::Success, Some("JWT"))
    );
    assert_eq!(
        stays.publish("a", "x").await,
        PublishAckReason::NoMatchingSubscribers
    );
    let (reason, detail) = leaves.shown_out().await;
    assert_eq!(
        (reason, detail.as_str()),
        (DisconnectReasonCode::NotAuthorized, "the token has expired")
    );
    stays.ping().await;
    // Rights are those of the new token, and nobody becomes somebody else.
    stays
        .send(reauthenticate(issuer.token("alice", 600, &json!({}))))
        .await;
    assert_eq!(stays.auth().await.reason_code, AuthReasonCode::Success);
    assert_eq!(stays.publish("a", "x").await, PublishAckReason::NotAuthorized);
    stays.send(reauthenticate(issuer.token("bob", 600, &ops))).await;
    assert_eq!(stays.shown_out().await.0, DisconnectReasonCode::NotAuthorized);
    let mut expired = enter("expired", issuer.token("alice", 600, &ops)).await;
    expired
        .send(reauthenticate(issuer.token("alice", -61, &ops)))
        .await;
    let (reason, detail) = expired.shown_out().await;
    assert_eq!(
        (reason, detail.as_str()),
        (DisconnectReasonCode::NotAuthorized, "the token has expired")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_of_the_user_is_asked_who_comes() {
    foreshore_tls::install_provider();
    let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/who", listener.local_addr().unwrap().port());
    let answer = |path: &str, body: &str| {
        assert_eq!(path, "/who");
        let question: Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (&question["listener"], &question["certificate"]),
            (&json!("test"), &Value::Null)
        );
        let password = question["password"]
            .as_str()
            .map(|text| STANDARD.decode(text).unwrap());
        match (question["username"].as_str(), password.as_deref()) {
            (Some("alice"), Some(b"one")) if question["clientId"] == "alice's" => {
                let attributes = json!({ "site": "north", "line": "1/#" });
                (
                    200,
                    json!({ "username": "Alice", "groups": ["ops"], "attributes": attributes }).to_string(),
                )
            }
            (Some("bob"), _) => (403, String::new()),
            (Some("long"), _) => (200, "x".repeat(100_000)),
            (Some("wide"), _) => (
                200,
                json!({ "username": "Wide", "attributes": { "s": "x".repeat(2000) } }).to_string(),
            ),
            (Some("soon"), _) => {
                let soon = Timestamp::now() + Duration::from_secs(5);
                (
                    200,
                    json!({ "username": "soon", "expiresAt": soon.to_string() }).to_string(),
                )
            }
            _ => (500, String::new()),
        }
    };
    // The service lets in whom it knows by a certificate, too.
    tokio::spawn(serve(
        listener,
        acceptor(&authority, ClientAuth::Required),
        answer,
    ));
    let options = |shown| WebhookOptions {
        url: url.clone(),
        authorities: Some(authority.bundle()),
        credentials: shown,
        timeout: Duration::from_secs(30),
    };
    let webhook = |shown| Method::Webhook(Arc::new(Webhook::new(&options(shown)).unwrap()));
    let others = || users(&[("bob", "two"), ("long", "two"), ("wide", "two"), ("alice", "two")]);
    let broker = start(vec![webhook(Some(credentials(&authority))), others()]).await;
    let login = |client_id: &str, username: &'static str, password: &'static str| v5::Connect {
        username: Some(username.into()),
        password: Some(password.into()),
        ..hello(client_id)
    };
    let policy = json!({ "rules": [
        { "name": "all", "effect": "Allow", "actions": ["Connect"] },
        { "name": "ops", "effect": "Allow", "actions": ["Publish"], "principals": { "groups": ["ops"], "users": ["Alice"] } },
        { "name": "site", "effect": "Allow", "actions": ["Subscribe"], "principals": { "attributes": { "site": "nor*" } },
          "topics": ["sites/${attributes.site}/#", "lines/${attributes.line}", "areas/${attributes.area}"] },
        { "name": "other", "effect": "Allow", "actions": ["Subscribe"], "topics": ["other"],
          "principals": { "attributes": { "site": "nor*", "area": "*" } } },
    ]});
    let policy = serde_json::from_value(policy).unwrap();
    broker.handle.set_policies([("p", &policy)]).unwrap();
    let (mut alice, _) = Client::connect(broker.address, login("alice's", "alice", "one")).await;
    // Attributes stand in rules and topics; one that holds a wildcard, or is not there, matches nothing.
    for (filter, expected) in [
        ("sites/north/#", SubscribeAckReason::GrantedQos1),
        ("sites/south/#", SubscribeAckReason::NotAuthorized),
        ("lines/1/#", SubscribeAckReason::NotAuthorized),
        ("lines/1/a", SubscribeAckReason::NotAuthorized),
        ("areas/", SubscribeAckReason::NotAuthorized),
        ("other", SubscribeAckReason::NotAuthorized),
    ] {
        assert_eq!(
            alice.subscribe(filter, QoS::AtLeastOnce).await,
            expected,
            "{filter}"
        );
    }
    assert_eq!(
        alice.publish("a", "x").await,
        PublishAckReason::NoMatchingSubscribers
    );
    // Refused is refused; no answer, or one that is too long, leaves it to the next way.
    let refused = async |connect: v5::Connect| {
        let mut client = Client::open(broker.address).await;
        client.send(Packet::Connect(Box::new(connect))).await;
        client.refused().await.0
    };
    assert_eq!(
        refused(login("b", "bob", "two")).await,
        ConnectAckReason::NotAuthorized
    );
    Client::connect(broker.address, login("l", "long", "two")).await;
    Client::connect(broker.address, login("w", "wide", "two")).await;
    Client::connect(broker.address, login("a", "alice", "two")).await;
    assert_eq!(
        refused(login("x", "mallory", "two")).await,
        ConnectAckReason::BadUserNameOrPassword
    );
    let (mut soon, _) = Client::connect(broker.address, login("s", "soon", "x")).await;
    let (reason, detail) = soon.shown_out().await;
    assert_eq!(reason, DisconnectReasonCode::NotAuthorized);
    assert!(detail.contains("expired"), "{detail}");
    // Who shows the service no certificate gets no answer of it.
    let place = SocketAddr::from(([127, 0, 0, 1], 0));
    let without = ListenerOptions::tcp("without", place, vec![webhook(None), others()]);
    let address = broker.handle.open_listener(without).unwrap();
    let mut client = Client::open(address).await;
    client
        .send(Packet::Connect(Box::new(login("w", "alice", "one"))))
        .await;
    assert_eq!(client.refused().await.0, ConnectAckReason::BadUserNameOrPassword);
    // The service is gone from the listener, and with it whom it let in.
    broker
        .handle
        .open_listener(ListenerOptions::tcp("test", place, vec![others()]))
        .unwrap();
    assert_eq!(alice.shown_out().await.0, DisconnectReasonCode::NotAuthorized);
}
