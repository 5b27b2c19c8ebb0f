//! The roots that a process trusts.

use std::{fmt, sync::Arc};

use pem::{EncodeConfig, LineEnding, Pem};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, RevocationLists, verify::Verifiers};

/// The largest bundle accepted, in bytes: the public web's roots are a quarter of it.
pub(crate) const LARGEST_BUNDLE: usize = 1024 * 1024;

/// A SHA-256 digest that names a key, a certificate or a bundle; shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The digest of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// A digest from its 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> Self {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = hex::FromHexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

/// The root certificates that a process trusts; several while the authority rotates.
///
/// Cheap to clone. Two bundles of the same roots and revocations are equal, whatever the order in which roots were given.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustBundle {
    roots: Arc<[CertificateDer<'static>]>,
    fingerprint: Fingerprint,
    revoked: RevocationLists,
}

impl TrustBundle {
    /// A bundle of the given roots, repetitions removed.
    ///
    /// # Errors
    /// [`Error::EmptyBundle`] without a root, [`Error::Certificate`] when one can't be an anchor of trust,
    /// [`Error::TooLarge`].
    pub fn new(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, Error> {
        let mut roots: Vec<CertificateDer<'static>> = roots.into_iter().collect();
        roots.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        if roots.is_empty() {
            return Err(Error::EmptyBundle);
        }
        let size: usize = roots.iter().map(|root| root.len()).sum();
        if size > LARGEST_BUNDLE {
            return Err(Error::TooLarge {
                what: "trust bundle".to_owned(),
                found: size as u64,
                allowed: LARGEST_BUNDLE as u64,
            });
        }
        let mut digest = Sha256::new();
        for root in &roots {
            digest.update((root.len() as u64).to_be_bytes());
            digest.update(root);
        }
        let bundle = Self {
            roots: roots.into(),
            fingerprint: Fingerprint(digest.finalize().into()),
            revoked: RevocationLists::default(),
        };
        bundle.store()?;
        Ok(bundle)
    }

    /// Reads all certificates of a PEM text; other sections are skipped.
    ///
    /// # Errors
    /// As [`new`](Self::new), and [`Error::Pem`].
    pub fn from_pem(text: &[u8]) -> Result<Self, Error> {
        if text.len() > LARGEST_BUNDLE * 2 {
            return Err(Error::TooLarge {
                what: "trust bundle".to_owned(),
                found: text.len() as u64,
                allowed: LARGEST_BUNDLE as u64 * 2,
            });
        }
        Self::new(certificates_from_pem("trust bundle", text)?)
    }

    /// The same roots, but certificates of clients that these lists revoke are refused. Of whom no list speaks is trusted
    /// as before; a list goes on to count when the time of its next update has passed.
    ///
    /// # Errors
    /// [`Error::Revocation`] when a list is not of the authority that it names, or is of a form that can't be verified.
    pub fn revoking(self, lists: RevocationLists) -> Result<Self, Error> {
        lists.check(&self.roots)?;
        let bundle = Self {
            revoked: lists,
            ..self
        };
        Verifiers::new(&bundle)?;
        Ok(bundle)
    }

    /// Certificates of clients that are refused.
    #[must_use]
    pub fn revoked(&self) -> &RevocationLists {
        &self.revoked
    }

    /// The roots as PEM.
    #[must_use]
    pub fn to_pem(&self) -> String {
        certificates_to_pem(&self.roots)
    }

    /// The roots.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Names this set of roots.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn store(&self) -> Result<RootCertStore, Error> {
        let mut store = RootCertStore::empty();
        for root in self.roots.iter() {
            store.add(root.clone()).map_err(Error::certificate)?;
        }
        Ok(store)
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle")
            .field("roots", &self.roots.len())
            .field("fingerprint", &self.fingerprint)
            .field("revoked", &self.revoked)
            .finish()
    }
}

pub(crate) fn certificates_from_pem(
    what: &'static str,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Error> {
    CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::Pem {
            what,
            reason: error.to_string(),
        })
}

pub(crate) fn certificates_to_pem(certificates: &[CertificateDer<'static>]) -> String {
    let sections: Vec<Pem> = certificates
        .iter()
        .map(|certificate| Pem::new("CERTIFICATE", certificate.to_vec()))
        .collect();
    pem::encode_many_config(&sections, EncodeConfig::new().set_line_ending(LineEnding::LF))
}
