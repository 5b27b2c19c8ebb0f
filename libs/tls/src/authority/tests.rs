use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use rustls_pki_types::ServerName;
use x509_parser::extensions::GeneralName;

use super::*;
use crate::{Role, chain::parse, peer_identity};

fn connector() -> RoleIdentity {
    RoleIdentity::new(Role::Connector, "plant", "opcua", "pod-1").unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_are_private_and_the_bundle_is_public() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("ca");
    let first =
        CertificateAuthority::open(&directory, AuthorityOptions::default(), Timestamp::now()).unwrap();
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join(STATE_FILE)), 0o600);
    assert_eq!(mode(&directory.join(BUNDLE_FILE)), 0o644);
    let public = fs::read_to_string(directory.join(BUNDLE_FILE)).unwrap();
    assert!(!public.contains("PRIVATE"), "{public}");
    assert_eq!(TrustBundle::from_pem(public.as_bytes()).unwrap(), first.bundle());
    assert_eq!(
        fs::read_dir(&directory).unwrap().count(),
        2,
        "temporary files are left"
    );

    let second =
        CertificateAuthority::open(&directory, AuthorityOptions::default(), Timestamp::now()).unwrap();
    assert_eq!(second.bundle(), first.bundle());
    let leaf = second
        .issue_credentials(&connector(), &[], Timestamp::now())
        .unwrap();
    assert_eq!(
        first.bundle().identify(leaf.chain().certificates()).unwrap(),
        connector()
    );
}

#[test]
fn keys_that_others_can_read_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let open = || CertificateAuthority::open(directory.path(), AuthorityOptions::default(), Timestamp::now());
    open().unwrap();
    let file = directory.path().join(STATE_FILE);
    for bad in [0o640, 0o604, 0o620] {
        fs::set_permissions(&file, fs::Permissions::from_mode(bad)).unwrap();
        let error = open().unwrap_err();
        assert!(
            matches!(error, Error::FileMode { mode, .. } if mode == bad),
            "{error}"
        );
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
    open().unwrap();
}

#[test]
fn a_damaged_authority_is_reported_and_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let open = || CertificateAuthority::open(directory.path(), AuthorityOptions::default(), Timestamp::now());
    open().unwrap();
    let file = directory.path().join(STATE_FILE);
    let whole = fs::read(&file).unwrap();
    for damaged in [
        &whole[..whole.len() / 2],
        b"",
        b"{\"format\":1,\"roots\":[]}",
        b"{\"format\":9,\"roots\":[]}",
    ] {
        crate::write_private(&file, damaged).unwrap();
        let error = open().unwrap_err();
        assert!(matches!(error, Error::Authority { .. }), "{error}");
        assert_eq!(fs::read(&file).unwrap(), damaged);
    }
}

#[test]
fn only_the_key_of_a_request_is_believed() {
    let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut claim = rcgen::CertificateParams::new(vec!["operator.foreshore.svc".to_owned()]).unwrap();
    claim.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    claim
        .distinguished_name
        .push(rcgen::DnType::CommonName, "operator");
    let uri = "spiffe://foreshore/operator/plant/main/1".try_into().unwrap();
    claim.subject_alt_names.push(rcgen::SanType::URI(uri));
    claim.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let request = claim.serialize_request(&key).unwrap();

    let request = CertificateRequest::from_der(request.der()).unwrap();
    let chain = authority
        .issue(&request, &connector(), &[], Timestamp::now())
        .unwrap();
    assert_eq!(peer_identity(chain.certificates()), Some(connector()));

    let leaf = parse(&chain.certificates()[0]).unwrap();
    assert!(!leaf.is_ca());
    assert_eq!(leaf.subject().to_string(), "CN=connector");
    let names = &leaf
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names;
    assert_eq!(
        names,
        &[GeneralName::URI("spiffe://foreshore/connector/plant/opcua/pod-1")]
    );
    assert!(!leaf.extended_key_usage().unwrap().unwrap().value.server_auth);
}

#[test]
fn servers_get_their_names_and_every_certificate_its_own_serial() {
    let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
    let key = KeyPair::generate().unwrap();
    let request = CertificateRequest::from_der(&key.request().unwrap()).unwrap();
    let names = [
        ServerName::try_from("broker.plant.svc").unwrap(),
        ServerName::try_from("127.0.0.1").unwrap(),
    ];
    let issue = || {
        authority
            .issue(&request, &connector(), &names, Timestamp::now())
            .unwrap()
    };
    let (one, two) = (issue(), issue());
    let (one, two) = (
        parse(&one.certificates()[0]).unwrap(),
        parse(&two.certificates()[0]).unwrap(),
    );
    assert_ne!(one.raw_serial(), two.raw_serial());
    assert!(one.extended_key_usage().unwrap().unwrap().value.server_auth);
    let found = &one
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names;
    assert!(found.contains(&GeneralName::DNSName("broker.plant.svc")));
    assert!(found.contains(&GeneralName::IPAddress(&[127, 0, 0, 1])));
}

#[test]
fn lifetimes_leave_room_for_clocks_and_never_outlive_the_root() {
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let options = AuthorityOptions {
        leaf_lifetime: Duration::from_secs(10),
        ..AuthorityOptions::default()
    };
    let authority = CertificateAuthority::create(options, now).unwrap();
    let validity = authority
        .issue_credentials(&connector(), &[], now)
        .unwrap()
        .chain()
        .validity();
    assert_eq!(validity.not_before.to_string(), "2025-12-31T23:59:59Z");
    assert_eq!(validity.not_after.to_string(), "2026-01-01T00:00:10Z");
    assert!(
        validity.renew_at() > now,
        "a certificate would be renewed as soon as it is issued"
    );
    assert!(validity.renew_at() < validity.not_after);

    let options = AuthorityOptions {
        root_lifetime: Duration::from_secs(3600),
        leaf_lifetime: Duration::from_secs(7200),
        ..AuthorityOptions::default()
    };
    let authority = CertificateAuthority::create(options, now).unwrap();
    let later = now + Duration::from_secs(1800);
    let leaf = authority.issue_credentials(&connector(), &[], later).unwrap();
    assert_eq!(leaf.chain().validity().not_after, now + Duration::from_secs(3600));
    assert!(!authority.rotation_is_due(now));
    assert!(authority.rotation_is_due(now + Duration::from_secs(3000)));
    let error = authority
        .issue_credentials(&connector(), &[], now + Duration::from_secs(3601))
        .unwrap_err();
    assert!(matches!(error, Error::RootNotValid { .. }), "{error}");
}

#[test]
fn rotation_goes_in_order_and_survives_a_restart_at_each_step() {
    let now = Timestamp::now();
    let directory = tempfile::tempdir().unwrap();
    let open = || CertificateAuthority::open(directory.path(), AuthorityOptions::default(), now).unwrap();
    let authority = open();
    let mut view = authority.subscribe();
    let old_leaf = authority.issue_credentials(&connector(), &[], now).unwrap();
    let old_bundle = authority.bundle();
    assert!(
        authority.complete_rotation(now).is_err(),
        "a rotation that never began was completed"
    );

    let next = authority.begin_rotation(now).unwrap();
    assert_eq!(
        authority.begin_rotation(now).unwrap(),
        next,
        "a second root was added"
    );
    assert_eq!(authority.bundle().roots().len(), 2);
    assert!(view.has_changed().unwrap());
    assert_ne!(view.borrow_and_update().issuer, next);
    let still_old = authority.issue_credentials(&connector(), &[], now).unwrap();
    assert!(old_bundle.identify(still_old.chain().certificates()).is_ok());

    let authority = open();
    authority.complete_rotation(now).unwrap();
    let new_leaf = authority.issue_credentials(&connector(), &[], now).unwrap();
    assert!(old_bundle.identify(new_leaf.chain().certificates()).is_err());
    assert!(authority.issued_by_current(&new_leaf.chain().certificates()[0]));
    assert!(!authority.issued_by_current(&old_leaf.chain().certificates()[0]));
    for leaf in [&old_leaf, &new_leaf] {
        assert!(authority.bundle().identify(leaf.chain().certificates()).is_ok());
    }
    let stored = fs::read_to_string(directory.path().join(STATE_FILE)).unwrap();
    assert_eq!(
        stored.matches("BEGIN PRIVATE KEY").count(),
        1,
        "the retired root's key was kept"
    );

    let authority = open();
    let (day, month) = (Duration::from_secs(86_400), Duration::from_secs(30 * 86_400));
    assert_eq!(authority.prune(now + month - day).unwrap(), 0);
    assert_eq!(authority.prune(now + month + day).unwrap(), 1);
    let authority = open();
    assert_eq!(authority.roots().len(), 1);
    assert_eq!(authority.roots()[0].fingerprint, next);
    assert!(
        authority
            .bundle()
            .identify(old_leaf.chain().certificates())
            .is_err()
    );
}

#[test]
fn an_authority_travels_through_a_secret() {
    let authority = CertificateAuthority::create(AuthorityOptions::default(), Timestamp::now()).unwrap();
    let text = authority.to_json().unwrap();
    let kept = Arc::new(Mutex::new(None));
    let secret = Arc::clone(&kept);
    let keep = move |state: &str, _: &TrustBundle| {
        let mut secret = secret.lock().unwrap();
        // The second change can't be kept.
        match &*secret {
            Some(_) => Err("the API server is away".to_owned()),
            None => {
                *secret = Some(state.to_owned());
                Ok(())
            }
        }
    };
    let copy = CertificateAuthority::with_keeper(text.as_bytes(), AuthorityOptions::default(), keep).unwrap();
    let leaf = copy
        .issue_credentials(&connector(), &[], Timestamp::now())
        .unwrap();
    assert!(authority.issued_by_current(&leaf.chain().certificates()[0]));
    assert!(!format!("{authority:?}").contains("PRIVATE"));
    copy.begin_rotation(Timestamp::now()).unwrap();
    assert_eq!(kept.lock().unwrap().as_deref(), Some(&*copy.to_json().unwrap()));
    let before = copy.to_json().unwrap();
    assert!(copy.complete_rotation(Timestamp::now()).is_err());
    assert_eq!(
        copy.to_json().unwrap(),
        before,
        "a change that is not kept takes no effect"
    );
}

/// Certificate and key of an authority that somebody else made, in PEM.
fn elsewhere(name: &str, change: impl FnOnce(&mut rcgen::CertificateParams)) -> (String, String) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn given_roots_follow_each_other_in_order() {
    let now = Timestamp::now();
    let options = AuthorityOptions {
        roots: Roots::Given,
        ..AuthorityOptions::default()
    };
    let (certificate, key) = elsewhere("plant", |_| {});
    let authority = CertificateAuthority::given(options, &certificate, &key).unwrap();
    let leaf = authority.issue_credentials(&connector(), &[], now).unwrap();
    let leaf = leaf.chain().certificates();
    assert_eq!(authority.bundle().identify(leaf).unwrap(), connector());
    assert!(!authority.offer(&certificate, &key).unwrap(), "it signs already");
    assert!(!authority.rotation_is_due(now + Duration::from_secs(4_000_000_000)));

    // One of the same name with another key, and then another one before the first was trusted everywhere.
    let (early, early_key) = elsewhere("plant", |_| {});
    let (next, next_key) = elsewhere("plant", |_| {});
    assert!(authority.offer(&early, &early_key).unwrap());
    assert!(authority.offer(&next, &next_key).unwrap());
    assert!(!authority.offer(&next, &next_key).unwrap());
    assert_eq!(authority.roots().len(), 2);
    assert!(authority.issued_by_current(&leaf[0]));
    authority.complete_rotation(now).unwrap();
    assert!(!authority.issued_by_current(&leaf[0]), "names alone tell nothing");
    assert_eq!(authority.bundle().identify(leaf).unwrap(), connector());
    let renewed = authority.issue_credentials(&connector(), &[], now).unwrap();
    assert!(authority.issued_by_current(&renewed.chain().certificates()[0]));

    assert!(
        authority.offer(&certificate, &key).unwrap(),
        "its owner went back to it"
    );
    assert_eq!(authority.roots().len(), 2);
}

#[test]
fn what_can_not_sign_is_not_taken() {
    let (certificate, key) = elsewhere("plant", |_| {});
    let (_, other_key) = elsewhere("plant", |_| {});
    let (leaf, leaf_key) = elsewhere("leaf", |params| params.is_ca = rcgen::IsCa::ExplicitNoCa);
    let (server, server_key) = elsewhere("server", |params| {
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    });
    for (certificate, key, expected) in [
        (&certificate, &other_key, "key"),
        (&leaf, &leaf_key, "basic constraints"),
        (&server, &server_key, "key usage"),
        (&key, &key, "CERTIFICATE"),
        (&certificate, &certificate, "key"),
    ] {
        let error = CertificateAuthority::given(AuthorityOptions::default(), certificate, key).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
