use std::io;

use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::{AuthorityOptions, Refusal, Role, peer_identity};

const LOCALHOST: &str = "localhost";

fn role(role: Role) -> RoleIdentity {
    RoleIdentity::new(role, "plant", "line", "u1").unwrap()
}

fn authority() -> CertificateAuthority {
    CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap()
}

fn issue(authority: &CertificateAuthority, kind: Role, names: &[&str], now: Timestamp) -> Credentials {
    let names: Vec<_> = names
        .iter()
        .map(|name| ServerName::try_from(name.to_string()).unwrap())
        .collect();
    authority.issue_credentials(&role(kind), &names, now).unwrap()
}

fn server_of(authority: &CertificateAuthority) -> Identity {
    let credentials = issue(
        authority,
        Role::Broker,
        &[LOCALHOST, "127.0.0.1"],
        Timestamp::now(),
    );
    Identity::new(&credentials, authority.bundle()).unwrap()
}

fn client_of(authority: &CertificateAuthority) -> Identity {
    let credentials = issue(authority, Role::Connector, &[], Timestamp::now());
    Identity::new(&credentials, authority.bundle()).unwrap()
}

/// Both ends of a connection over TCP, each with its own verdict; the client's includes the first byte read,
/// since in TLS 1.3 a client learns only then that its certificate was refused.
async fn connect(
    server: &Identity,
    auth: ClientAuth,
    client: &Identity,
    name: &str,
) -> (
    io::Result<server::TlsStream<TcpStream>>,
    io::Result<client::TlsStream<TcpStream>>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server.server_config(auth).unwrap()));
    let connector = TlsConnector::from(Arc::new(client.client_config().unwrap()));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let accept = async {
        let (stream, _) = listener.accept().await?;
        let mut stream = acceptor.accept(stream).await?;
        stream.write_all(b"!").await?;
        Ok(stream)
    };
    let dial = async {
        let stream = TcpStream::connect(address).await?;
        let mut stream = connector.connect(name, stream).await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    tokio::join!(accept, dial)
}

/// Why each end failed.
async fn refusals(
    server: &Identity,
    auth: ClientAuth,
    client: &Identity,
    name: &str,
) -> (Option<Refusal>, Option<Refusal>) {
    let (accepted, dialled) = connect(server, auth, client, name).await;
    let find = |error: io::Error| Refusal::find(&error);
    (accepted.err().and_then(find), dialled.err().and_then(find))
}

#[tokio::test]
async fn both_ends_learn_who_the_other_is() {
    let authority = authority();
    let (server, client) = (server_of(&authority), client_of(&authority));
    for name in [LOCALHOST, "127.0.0.1"] {
        let (accepted, dialled) = connect(&server, ClientAuth::Required, &client, name).await;
        let (accepted, dialled) = (accepted.unwrap(), dialled.unwrap());
        let peer_of_server = peer_identity(accepted.get_ref().1.peer_certificates().unwrap());
        let peer_of_client = peer_identity(dialled.get_ref().1.peer_certificates().unwrap());
        assert_eq!(peer_of_server, Some(role(Role::Connector)));
        assert_eq!(peer_of_client, Some(role(Role::Broker)));
    }
}

#[tokio::test]
async fn a_foreign_authority_is_untrusted_on_both_ends() {
    let (ours, theirs) = (authority(), authority());
    let (server, client) = (server_of(&ours), client_of(&theirs));
    let (_, dialled) = refusals(&server, ClientAuth::Required, &client, LOCALHOST).await;
    assert_eq!(dialled, Some(Refusal::Untrusted));

    client.set_bundle(ours.bundle()).unwrap();
    for auth in [ClientAuth::Required, ClientAuth::Optional] {
        let (accepted, dialled) = refusals(&server, auth, &client, LOCALHOST).await;
        assert_eq!(accepted, Some(Refusal::Untrusted));
        let Some(Refusal::ByPeer { reason }) = dialled else {
            panic!("{dialled:?}")
        };
        assert!(
            reason.contains("not issued by an authority that it trusts"),
            "{reason}"
        );
    }
    let (accepted, dialled) = connect(&server, ClientAuth::None, &client, LOCALHOST).await;
    assert!(accepted.unwrap().get_ref().1.peer_certificates().is_none());
    dialled.unwrap();
}

#[tokio::test]
async fn an_expired_certificate_is_told_from_an_untrusted_one() {
    let day = Duration::from_secs(86_400);
    let past = Timestamp::now() - day * 3;
    let authority = CertificateAuthority::create(AuthorityOptions::default(), past).unwrap();
    let (server, client) = (server_of(&authority), client_of(&authority));

    client
        .replace(&issue(&authority, Role::Connector, &[], past))
        .unwrap();
    let (accepted, dialled) = refusals(&server, ClientAuth::Required, &client, LOCALHOST).await;
    let Some(Refusal::Expired {
        not_after: Some(not_after),
    }) = accepted
    else {
        panic!("{accepted:?}")
    };
    assert_eq!(not_after.as_second(), (past + day).as_second());
    let Some(Refusal::ByPeer { reason }) = dialled else {
        panic!("{dialled:?}")
    };
    assert!(reason.contains("expired"), "{reason}");

    client
        .replace(&issue(&authority, Role::Connector, &[], Timestamp::now()))
        .unwrap();
    server
        .replace(&issue(&authority, Role::Broker, &[LOCALHOST], past))
        .unwrap();
    let (_, dialled) = refusals(&server, ClientAuth::Required, &client, LOCALHOST).await;
    assert!(matches!(dialled, Some(Refusal::Expired { .. })), "{dialled:?}");

    let future = Timestamp::now() + day;
    server
        .replace(&issue(&authority, Role::Broker, &[LOCALHOST], future))
        .unwrap();
    let (_, dialled) = refusals(&server, ClientAuth::Required, &client, LOCALHOST).await;
    let dialled = dialled.unwrap();
    assert_eq!(dialled.code(), "CertificateNotYetValid");
    assert!(dialled.to_string().contains("clocks"), "{dialled}");
}

#[tokio::test]
async fn a_wrong_name_says_which_names_there_are() {
    let authority = authority();
    let (server, client) = (server_of(&authority), client_of(&authority));
    let (_, dialled) = refusals(&server, ClientAuth::Required, &client, "broker.example").await;
    let dialled = dialled.unwrap();
    assert_eq!(dialled.code(), "CertificateWrongName");
    let text = dialled.to_string();
    assert!(
        text.contains("broker.example") && text.contains(LOCALHOST),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_certificate_does_not_make_a_server() {
    let authority = authority();
    let (server, client) = (client_of(&authority), client_of(&authority));
    let (_, dialled) = refusals(&server, ClientAuth::Required, &client, LOCALHOST).await;
    let dialled = dialled.unwrap();
    assert!(
        ["CertificateWrongPurpose", "CertificateWrongName"].contains(&dialled.code()),
        "{dialled:?}"
    );
}

#[tokio::test]
async fn a_client_without_certificate_gets_in_only_where_it_may() {
    let authority = authority();
    let server = server_of(&authority);
    let client = Identity::anonymous(authority.bundle()).unwrap();
    let (accepted, dialled) = refusals(&server, ClientAuth::Required, &client, LOCALHOST).await;
    assert_eq!(accepted, Some(Refusal::NoCertificate));
    let Some(Refusal::ByPeer { reason }) = dialled else {
        panic!("{dialled:?}")
    };
    assert!(reason.contains("requires a certificate"), "{reason}");
    let (accepted, dialled) = connect(&server, ClientAuth::Optional, &client, LOCALHOST).await;
    assert!(accepted.unwrap().get_ref().1.peer_certificates().is_none());
    dialled.unwrap();
}

/// One pair of configurations, made before the rotation, sees it through; connections from before live on.
#[tokio::test]
async fn a_rotation_disconnects_nobody_and_needs_no_restart() {
    let now = Timestamp::now();
    let authority = authority();
    let (server, client) = (server_of(&authority), client_of(&authority));
    let old_root = authority.bundle();
    let old_leaf = issue(&authority, Role::Broker, &[LOCALHOST], now);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server.server_config(ClientAuth::Required).unwrap()));
    let connector = TlsConnector::from(Arc::new(client.client_config().unwrap()));
    let dial = async || {
        let accept = async { acceptor.accept(listener.accept().await.unwrap().0).await.unwrap() };
        let name = ServerName::try_from(LOCALHOST).unwrap();
        let connect = async {
            connector
                .connect(name, TcpStream::connect(address).await.unwrap())
                .await
                .unwrap()
        };
        tokio::join!(accept, connect)
    };
    let leaf_seen = |stream: &client::TlsStream<TcpStream>| -> CertificateDer<'static> {
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };

    let (mut first_server, mut first_client) = dial().await;
    authority.begin_rotation(now).unwrap();
    for identity in [&server, &client] {
        identity.set_bundle(authority.bundle()).unwrap();
    }
    authority.complete_rotation(now).unwrap();

    // The leaves switch one after the other: old and new understand each other throughout.
    server
        .replace(&issue(&authority, Role::Broker, &[LOCALHOST], now))
        .unwrap();
    let (_, second_client) = dial().await;
    assert_ne!(leaf_seen(&second_client), leaf_seen(&first_client));
    client
        .replace(&issue(&authority, Role::Connector, &[], now))
        .unwrap();
    dial().await;

    first_client.write_all(b"still here").await.unwrap();
    let mut buffer = [0; 10];
    first_server.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"still here");

    // Once the old root has left, what it signed is refused.
    authority
        .prune(now + AuthorityOptions::default().overlap + Duration::from_secs(1))
        .unwrap();
    client.set_bundle(authority.bundle()).unwrap();
    let left_behind = Identity::new(&old_leaf, old_root).unwrap();
    let (_, dialled) = refusals(&left_behind, ClientAuth::Required, &client, LOCALHOST).await;
    assert_eq!(dialled, Some(Refusal::Untrusted));
}

#[tokio::test]
async fn the_operators_own_certificate_is_kept_fresh() {
    let options = AuthorityOptions {
        leaf_lifetime: Duration::from_secs(2),
        ..AuthorityOptions::default()
    };
    let authority = CertificateAuthority::create(options, Timestamp::now()).unwrap();
    let identity = Identity::anonymous(authority.bundle()).unwrap();
    let names = [ServerName::try_from(LOCALHOST).unwrap()];
    let mut changes = identity.subscribe();
    let watch = async {
        let mut seen = Vec::new();
        while seen.len() < 3 {
            changes.changed().await.unwrap();
            if let Some(chain) = identity.chain().filter(|chain| !seen.contains(chain)) {
                assert!(chain.validity().contains(Timestamp::now()));
                seen.push(chain);
            }
        }
    };
    let operator = role(Role::Operator);
    tokio::select! {
        () = identity.keep_fresh(&authority, &operator, &names) => unreachable!(),
        outcome = tokio::time::timeout(Duration::from_secs(60), watch) => outcome.unwrap(),
    }
}

#[test]
fn certificates_of_users_are_read_with_reasons() {
    let authority = authority();
    let pem = issue(&authority, Role::Broker, &[LOCALHOST], Timestamp::now()).to_pem();
    let credentials = Credentials::from_pem(pem.as_bytes(), pem.as_bytes()).unwrap();
    Identity::new(&credentials, authority.bundle()).unwrap();

    let other = issue(&authority, Role::Broker, &[LOCALHOST], Timestamp::now()).to_pem();
    let cases: [(&str, &str, &str); 5] = [
        (&pem, &other, "not the key of the certificate"),
        ("", &pem, "found no CERTIFICATE section"),
        (&pem, "", "found no unencrypted PRIVATE KEY"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &pem,
            "malformed certificate",
        ),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", &pem, "certificate chain"),
    ];
    for (chain, key, expected) in cases {
        let error = Credentials::from_pem(chain.as_bytes(), key.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
    assert!(matches!(
        TrustBundle::from_pem(b"nothing"),
        Err(Error::EmptyBundle)
    ));
}

#[test]
fn a_role_named_by_another_authority_is_not_believed() {
    let (ours, theirs) = (authority(), authority());
    let forged = issue(&theirs, Role::Operator, &[], Timestamp::now());
    let chain = forged.chain().certificates();
    assert_eq!(peer_identity(chain), Some(role(Role::Operator)));
    assert_eq!(ours.bundle().identify(chain), Err(Refusal::Untrusted));
    assert_eq!(ours.bundle().identify(&[]), Err(Refusal::NoCertificate));
}
