//! Certificates with their keys.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

use crate::{
    Error, KeyPair, RoleIdentity,
    bundle::{certificates_from_pem, certificates_to_pem},
    provider,
};

/// The largest chain accepted, in bytes.
const LARGEST_CHAIN: usize = 128 * 1024;

/// When a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: Timestamp,
    /// The last moment.
    pub not_after: Timestamp,
}

impl Validity {
    /// When to renew: at two thirds of the lifetime, which leaves a third of it for retries.
    #[must_use]
    pub fn renew_at(&self) -> Timestamp {
        let lifetime = self.not_after.duration_since(self.not_before);
        self.not_after
            .checked_sub(lifetime / 3)
            .unwrap_or(self.not_before)
    }

    /// Whether a moment lies within.
    #[must_use]
    pub fn contains(&self, moment: Timestamp) -> bool {
        self.not_before <= moment && moment <= self.not_after
    }

    /// The time left until the end, zero afterwards.
    #[must_use]
    pub fn remaining(&self, now: Timestamp) -> std::time::Duration {
        let left = self.not_after.duration_since(now);
        if left <= SignedDuration::ZERO {
            std::time::Duration::ZERO
        } else {
            left.unsigned_abs()
        }
    }
}

/// A leaf certificate and the intermediates between it and a root, leaf first.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateChain {
    certificates: Vec<CertificateDer<'static>>,
    validity: Validity,
    role: Option<RoleIdentity>,
}

impl CertificateChain {
    /// Takes a chain, leaf first.
    ///
    /// # Errors
    /// [`Error::Certificate`] when it is empty, too large or the leaf can't be parsed.
    pub fn from_der(certificates: Vec<CertificateDer<'static>>) -> Result<Self, Error> {
        let size: usize = certificates.iter().map(|certificate| certificate.len()).sum();
        if size > LARGEST_CHAIN {
            return Err(Error::TooLarge {
                what: "certificate chain".to_owned(),
                found: size as u64,
                allowed: LARGEST_CHAIN as u64,
            });
        }
        let leaf = certificates
            .first()
            .ok_or_else(|| Error::certificate("the chain is empty"))?;
        let leaf = parse(leaf)?;
        let validity = Validity {
            not_before: timestamp(leaf.validity().not_before.timestamp())?,
            not_after: timestamp(leaf.validity().not_after.timestamp())?,
        };
        let role = role_of(&leaf);
        Ok(Self {
            certificates,
            validity,
            role,
        })
    }

    /// Reads the certificates of a PEM text, leaf first; other sections are skipped.
    ///
    /// # Errors
    /// As [`from_der`](Self::from_der), and [`Error::Pem`].
    pub fn from_pem(text: &[u8]) -> Result<Self, Error> {
        let certificates = certificates_from_pem("certificate chain", text)?;
        if certificates.is_empty() {
            return Err(Error::Pem {
                what: "certificate chain",
                reason: "found no CERTIFICATE section".to_owned(),
            });
        }
        Self::from_der(certificates)
    }

    /// The chain as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        certificates_to_pem(&self.certificates)
    }

    /// The certificates, leaf first.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// When the leaf is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The role that the leaf names, if it is one of ours.
    #[must_use]
    pub fn role(&self) -> Option<&RoleIdentity> {
        self.role.as_ref()
    }
}

impl fmt::Debug for CertificateChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateChain")
            .field("certificates", &self.certificates.len())
            .field("validity", &self.validity)
            .field("role", &self.role)
            .finish()
    }
}

/// A chain and the private key of its leaf, known to belong together.
#[derive(Debug)]
pub struct Credentials {
    chain: CertificateChain,
    key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// Joins a key of ours with its chain.
    ///
    /// # Errors
    /// [`Error::Key`] when they do not belong together.
    pub fn new(chain: CertificateChain, key: &KeyPair) -> Result<Self, Error> {
        Self::checked(chain, key.private_der())
    }

    /// Reads a chain and a private key from PEM, as users put them into a Secret (`tls.crt` and `tls.key`).
    ///
    /// Both may stand in one text. Any key that rustls with *ring* can use is accepted: RSA, ECDSA P-256 and
    /// P-384, Ed25519; PKCS #8, PKCS #1 and SEC 1.
    ///
    /// # Errors
    /// [`Error::Pem`] naming the section that is missing, [`Error::Certificate`], and [`Error::Key`] when the
    /// key is unusable or not that of the certificate.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, Error> {
        let chain = CertificateChain::from_pem(chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| Error::Pem {
            what: "private key",
            reason: match error {
                rustls_pki_types::pem::Error::NoItemsFound => {
                    "found no unencrypted PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY section".to_owned()
                }
                other => other.to_string(),
            },
        })?;
        Self::checked(chain, key)
    }

    fn checked(chain: CertificateChain, key: PrivateKeyDer<'static>) -> Result<Self, Error> {
        let credentials = Self { chain, key };
        credentials.certified_key()?;
        Ok(credentials)
    }

    /// Key and chain in one PEM text: a secret.
    #[must_use]
    pub fn to_pem(&self) -> String {
        let label = match self.key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        let key = pem::encode_config(
            &pem::Pem::new(label, self.key.secret_der().to_vec()),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        );
        key + &self.chain.to_pem()
    }

    /// The chain.
    #[must_use]
    pub fn chain(&self) -> &CertificateChain {
        &self.chain
    }

    pub(crate) fn certified_key(&self) -> Result<CertifiedKey, Error> {
        CertifiedKey::from_der(self.chain.certificates.clone(), self.key.clone_key(), &provider()).map_err(
            |error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    Error::key("it is not the key of the certificate that stands first in the chain")
                }
                other => Error::key(other),
            },
        )
    }
}

/// The role that a peer's certificate names.
///
/// Believe it only of a peer that was verified against the bundle of our own authority, and of nothing else: any
/// other authority can write the same name. [`crate::TrustBundle::identify`] verifies and reads in one.
#[must_use]
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Option<RoleIdentity> {
    role_of(&parse(chain.first()?).ok()?)
}

pub(crate) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(Error::certificate("bytes after its end")),
        Err(error) => Err(Error::certificate(error)),
    }
}

/// Exactly one name of ours: of two, a reader could believe the wrong one.
fn role_of(certificate: &X509Certificate<'_>) -> Option<RoleIdentity> {
    let names = certificate.subject_alternative_name().ok()??;
    let mut ours = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if RoleIdentity::is_ours(uri) => Some(*uri),
        _ => None,
    });
    match (ours.next(), ours.next()) {
        (Some(uri), None) => RoleIdentity::from_uri(uri).ok(),
        _ => None,
    }
}

fn timestamp(seconds: i64) -> Result<Timestamp, Error> {
    Timestamp::from_second(seconds).map_err(Error::certificate)
}
