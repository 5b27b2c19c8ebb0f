//! Whether a server's certificate is trusted.
//!
//! The library compares only the first subject alternative name with the application URI and knows no certificate
//! authorities, so we judge the certificate of the chosen endpoint ourselves; the channel is then encrypted for
//! exactly that certificate (OPC 10000-4, 6.1.3).

use foreshore_connector_sdk::TrustMaterial;
use jiff::Timestamp;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// Why a certificate is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Untrusted {
    /// There is none, or it can't be read.
    #[error("the server's certificate cannot be read: {0}")]
    Unreadable(String),
    /// Nobody we trust vouches for it.
    #[error("the server's certificate is not in the trust list: subject {subject}, sha-256 {fingerprint}")]
    Unknown {
        /// Its subject.
        subject: String,
        /// Its fingerprint, to be compared by a person.
        fingerprint: String,
    },
    /// Not valid now.
    #[error("the server's certificate is valid from {from} to {until} only")]
    Time {
        /// First moment.
        from: String,
        /// Last moment.
        until: String,
    },
    /// Its authorities' certificates follow it, which the library can't read.
    #[error(
        "the server sends {certificates} certificates in a chain, of which we can read one only; set the server to send its own alone, and put its authority's into spec.trust"
    )]
    Chain {
        /// How many.
        certificates: usize,
    },
    /// It belongs to another application.
    #[error("the server's certificate is for {found}, the server calls itself {expected}")]
    Application {
        /// URIs of the certificate.
        found: String,
        /// Application URI of the endpoint.
        expected: String,
    },
}

/// Refuses a chain of certificates: the library takes the whole for one certificate, wherever it is named, in messages
/// too that are signed as they are (OpenSecureChannel) or compared (CreateSession).
pub(crate) fn refuse_chain(der: &[u8]) -> Result<(), Untrusted> {
    let mut certificates = 0;
    let mut rest = der;
    while let Ok((next, _)) = X509Certificate::from_der(rest) {
        (rest, certificates) = (next, certificates + 1);
    }
    if certificates > 1 {
        return Err(Untrusted::Chain { certificates });
    }
    Ok(())
}

/// Judges a server's certificate.
pub(crate) fn judge(
    der: &[u8],
    application_uri: &str,
    trust: &TrustMaterial,
    now: Timestamp,
) -> Result<(), Untrusted> {
    let (_, leaf) =
        X509Certificate::from_der(der).map_err(|error| Untrusted::Unreadable(error.to_string()))?;
    let (from, until) = (
        leaf.validity().not_before.timestamp(),
        leaf.validity().not_after.timestamp(),
    );
    if !(from..=until).contains(&now.as_second()) {
        let show = |second| {
            Timestamp::from_second(second).map_or_else(|_| second.to_string(), |time| time.to_string())
        };
        return Err(Untrusted::Time {
            from: show(from),
            until: show(until),
        });
    }
    let uris = uris(&leaf);
    if !uris.iter().any(|uri| uri == application_uri) {
        return Err(Untrusted::Application {
            found: uris.join(", "),
            expected: application_uri.to_owned(),
        });
    }
    let vouched = trust.accept_untrusted
        || trust
            .certificates
            .iter()
            .any(|trusted| trusted.as_ref() == der || signed_by(&leaf, trusted.as_ref()));
    if vouched {
        return Ok(());
    }
    Err(Untrusted::Unknown {
        subject: leaf.subject().to_string(),
        fingerprint: fingerprint(der),
    })
}

fn uris(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    uris.collect()
}

/// Whether an authority that we trust signed the certificate.
fn signed_by(leaf: &X509Certificate<'_>, authority: &[u8]) -> bool {
    let Ok((_, authority)) = X509Certificate::from_der(authority) else {
        return false;
    };
    authority.is_ca()
        && authority.subject() == leaf.issuer()
        && leaf.verify_signature(Some(authority.public_key())).is_ok()
}

fn fingerprint(der: &[u8]) -> String {
    use sha2::{Digest as _, Sha256};
    hex::encode(Sha256::digest(der))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A self-signed certificate with the host first and the URI second, as many vendors make them.
    fn certificate(uri: &str) -> Vec<u8> {
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        parameters
            .subject_alt_names
            .push(rcgen::SanType::URI(uri.try_into().unwrap()));
        let key = rcgen::KeyPair::generate().unwrap();
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    fn trust(certificates: &[Vec<u8>]) -> TrustMaterial {
        TrustMaterial {
            certificates: certificates.iter().map(|der| der.clone().into()).collect(),
            ..TrustMaterial::default()
        }
    }

    #[test]
    fn a_listed_certificate_is_trusted_whatever_name_comes_first() {
        let der = certificate("urn:plant");
        assert_eq!(
            judge(
                &der,
                "urn:plant",
                &trust(std::slice::from_ref(&der)),
                Timestamp::now()
            ),
            Ok(())
        );
    }

    #[test]
    fn strangers_other_applications_and_other_times_are_refused() {
        let der = certificate("urn:plant");
        let listed = trust(std::slice::from_ref(&der));
        let now = Timestamp::now();
        assert!(matches!(
            judge(&der, "urn:plant", &trust(&[]), now),
            Err(Untrusted::Unknown { .. })
        ));
        assert!(matches!(
            judge(&der, "urn:other", &listed, now),
            Err(Untrusted::Application { .. })
        ));
        assert!(matches!(
            judge(&der, "urn:plant", &listed, Timestamp::UNIX_EPOCH),
            Err(Untrusted::Time { .. })
        ));
        assert!(matches!(
            judge(b"no der", "urn:plant", &listed, now),
            Err(Untrusted::Unreadable(_))
        ));
    }

    #[test]
    fn a_chain_is_refused_with_a_count() {
        let (leaf, authority) = (certificate("urn:plant"), certificate("urn:ca"));
        assert_eq!(refuse_chain(&leaf), Ok(()));
        assert_eq!(refuse_chain(&[]), Ok(()));
        let chain = [leaf, authority].concat();
        assert_eq!(refuse_chain(&chain), Err(Untrusted::Chain { certificates: 2 }));
    }

    #[test]
    fn an_authority_vouches_for_what_it_signed() {
        let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let root = authority.self_signed(&key).unwrap().der().to_vec();
        let issuer = rcgen::Issuer::new(authority, key);
        let mut leaf = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        leaf.subject_alt_names
            .push(rcgen::SanType::URI("urn:plant".try_into().unwrap()));
        let leaf_key = rcgen::KeyPair::generate().unwrap();
        let der = leaf.signed_by(&leaf_key, &issuer).unwrap().der().to_vec();
        assert_eq!(
            judge(&der, "urn:plant", &trust(&[root]), Timestamp::now()),
            Ok(())
        );
        let stranger = certificate("urn:ca");
        assert!(judge(&der, "urn:plant", &trust(&[stranger]), Timestamp::now()).is_err());
    }
}
