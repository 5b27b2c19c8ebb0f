//! From references to Secrets to credentials and trust.

use foreshore_control::plan::{SecretPlan, SecretValue};
use foreshore_crds::{
    conditions::reasons,
    refs::{TLS_CERTIFICATE_KEY, TLS_PRIVATE_KEY_KEY},
    v1alpha1::DeviceSpec,
};
use foreshore_tls::CertificateDer;
use rustls_pki_types::{CertificateRevocationListDer, pem::PemObject};

use crate::{
    endpoint::{Credentials, TrustMaterial},
    health::Health,
};

/// What a device is dialled with besides its plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) credentials: Credentials,
    pub(crate) trust: TrustMaterial,
}

/// Names of the Secrets that a device's manifest refers to.
pub(crate) fn secrets_of(spec: &DeviceSpec) -> Vec<&str> {
    let authentication = spec.authentication.as_ref();
    let password = authentication.and_then(|authentication| authentication.username_password.as_ref());
    let certificate = authentication.and_then(|authentication| authentication.x509.as_ref());
    let trust = spec
        .trust
        .as_ref()
        .and_then(|trust| trust.certificates_secret_ref.as_ref());
    let names = [
        password.map(|password| password.secret_ref.name.as_str()),
        certificate.map(|certificate| certificate.secret_ref.name.as_str()),
        trust.map(|secret| secret.name.as_str()),
    ];
    names.into_iter().flatten().collect()
}

/// Resolves what a device's manifest refers to; `find` gives the Secrets of its namespace.
///
/// The error is the health that the device has then.
pub(crate) fn resolve<'a>(
    spec: &DeviceSpec,
    find: impl Fn(&str) -> Option<&'a SecretPlan>,
) -> Result<Resolved, Health> {
    let secret = |name: &str| {
        find(name).ok_or_else(|| {
            Health::unhealthy(
                reasons::SECRET_NOT_FOUND,
                format!("Secret {name:?} does not exist"),
            )
            .with_next_step("create the Secret, or correct its name in the Device")
        })
    };
    let credentials = match &spec.authentication {
        Some(authentication) => match (&authentication.username_password, &authentication.x509) {
            (Some(password), _) => {
                let reference = &password.secret_ref;
                let secret = secret(&reference.name)?;
                Credentials::UsernamePassword {
                    username: text(secret, reference.effective_username_key())?,
                    password: text(secret, reference.effective_password_key())?,
                }
            }
            (None, Some(certificate)) => {
                let secret = secret(&certificate.secret_ref.name)?;
                Credentials::Certificate {
                    certificate: value(secret, TLS_CERTIFICATE_KEY)?.0.clone(),
                    key: value(secret, TLS_PRIVATE_KEY_KEY)?.0.clone(),
                }
            }
            (None, None) => Credentials::Anonymous,
        },
        None => Credentials::Anonymous,
    };
    let mut trust = TrustMaterial::default();
    if let Some(declared) = &spec.trust {
        trust.accept_untrusted = declared.effective_accept_untrusted();
        trust.accept_other_host_names = declared.effective_accept_other_host_names();
        if let Some(reference) = &declared.certificates_secret_ref {
            read_trust(secret(&reference.name)?, &mut trust)?;
        }
    }
    Ok(Resolved { credentials, trust })
}

fn value<'a>(secret: &'a SecretPlan, key: &str) -> Result<&'a SecretValue, Health> {
    secret.data.get(key).ok_or_else(|| {
        let found: Vec<_> = secret.data.keys().map(String::as_str).collect();
        let evidence = format!(
            "Secret {:?} has no key {key:?}, found {}",
            secret.name,
            found.join(", ")
        );
        Health::unhealthy(reasons::SECRET_KEY_MISSING, evidence).with_next_step("add the key to the Secret")
    })
}

fn text(secret: &SecretPlan, key: &str) -> Result<String, Health> {
    let text = value(secret, key)?.as_text();
    text.map(str::to_owned)
        .ok_or_else(|| invalid(secret, key, "is not UTF-8 text"))
}

fn invalid(secret: &SecretPlan, key: &str, reason: &str) -> Health {
    let evidence = format!("key {key:?} of Secret {:?} {reason}", secret.name);
    Health::unhealthy(reasons::SECRET_INVALID, evidence).with_next_step("correct the Secret's content")
}

/// First byte of every certificate and revocation list in DER: a SEQUENCE (X.690, section 8.9).
const SEQUENCE: u8 = 0x30;

fn read_trust(secret: &SecretPlan, trust: &mut TrustMaterial) -> Result<(), Health> {
    for (key, SecretValue(content)) in &secret.data {
        let is_der = content.first() == Some(&SEQUENCE);
        let extension = key.rsplit_once('.').map(|(_, extension)| extension);
        match extension {
            Some("crt" | "pem") if is_der => trust.certificates.push(content.clone().into()),
            Some("crt" | "pem") => {
                let certificates: Result<Vec<CertificateDer<'static>>, _> =
                    CertificateDer::pem_slice_iter(content).collect();
                match certificates {
                    Ok(found) if !found.is_empty() => trust.certificates.extend(found),
                    _ => return Err(invalid(secret, key, "holds no certificate, neither PEM nor DER")),
                }
            }
            Some("crl") if is_der => trust.revocation_lists.push(content.clone()),
            Some("crl") => {
                let lists: Result<Vec<CertificateRevocationListDer<'static>>, _> =
                    CertificateRevocationListDer::pem_slice_iter(content).collect();
                match lists {
                    Ok(found) if !found.is_empty() => {
                        trust
                            .revocation_lists
                            .extend(found.iter().map(|list| list.to_vec()));
                    }
                    _ => {
                        return Err(invalid(
                            secret,
                            key,
                            "holds no revocation list, neither PEM nor DER",
                        ));
                    }
                }
            }
            _ => {}
        }
    }
    if trust.certificates.is_empty() {
        let evidence = format!(
            "Secret {:?} holds no certificate: no key ends in .crt or .pem",
            secret.name
        );
        return Err(Health::unhealthy(reasons::SECRET_INVALID, evidence)
            .with_next_step("add the certificates to trust under keys such as ca.crt"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn spec(value: serde_json::Value) -> DeviceSpec {
        serde_json::from_value(value).unwrap()
    }

    fn secret(name: &str, data: &[(&str, &[u8])]) -> SecretPlan {
        let data: BTreeMap<_, _> = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), SecretValue(value.to_vec())))
            .collect();
        SecretPlan {
            namespace: "plant".into(),
            name: name.into(),
            data,
        }
    }

    #[test]
    fn a_password_comes_from_its_secret() {
        let spec = spec(
            json!({ "authentication": { "usernamePassword": { "secretRef": { "name": "plc", "passwordKey": "pw" } } } }),
        );
        assert_eq!(secrets_of(&spec), ["plc"]);
        let plc = secret("plc", &[("username", b"operator\n"), ("pw", b"secret")]);
        let resolved = resolve(&spec, |name| (name == "plc").then_some(&plc)).unwrap();
        let expected = Credentials::UsernamePassword {
            username: "operator".into(),
            password: "secret".into(),
        };
        assert_eq!(resolved.credentials, expected);

        assert_eq!(
            resolve(&spec, |_| None).unwrap_err().reason,
            reasons::SECRET_NOT_FOUND
        );
        let lacking = secret("plc", &[("username", b"operator"), ("password", b"secret")]);
        let error = resolve(&spec, |_| Some(&lacking)).unwrap_err();
        assert_eq!(error.reason, reasons::SECRET_KEY_MISSING);
        assert!(
            error.evidence.contains("\"pw\"") && error.evidence.contains("password, username"),
            "{error:?}"
        );
        let binary = secret("plc", &[("username", b"\xff"), ("pw", b"x")]);
        assert_eq!(
            resolve(&spec, |_| Some(&binary)).unwrap_err().reason,
            reasons::SECRET_INVALID
        );
    }

    #[test]
    fn certificates_to_trust_are_read_as_pem_and_der() {
        let spec = spec(
            json!({ "trust": { "certificatesSecretRef": { "name": "ca" }, "acceptOtherHostNames": true } }),
        );
        let authority = foreshore_tls::CertificateAuthority::create(
            foreshore_tls::AuthorityOptions::default(),
            jiff::Timestamp::now(),
        )
        .unwrap();
        let pem = authority.bundle().to_pem();
        let ca = secret(
            "ca",
            &[
                ("a.crt", pem.as_bytes()),
                ("b.pem", &[0x30, 0, 0]),
                ("readme", b"x"),
            ],
        );
        let trust = resolve(&spec, |_| Some(&ca)).unwrap().trust;
        assert_eq!(
            (
                trust.certificates.len(),
                trust.accept_other_host_names,
                trust.accept_untrusted
            ),
            (2, true, false)
        );

        for (key, content) in [
            ("a.crt", &b"nonsense"[..]),
            ("a.crl", b"nonsense"),
            ("readme", b"x"),
        ] {
            let bad = secret("ca", &[(key, content)]);
            assert_eq!(
                resolve(&spec, |_| Some(&bad)).unwrap_err().reason,
                reasons::SECRET_INVALID,
                "{key}"
            );
        }
    }
}
