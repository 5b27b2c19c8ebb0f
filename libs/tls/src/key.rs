//! Private keys and the requests that prove their possession.

use std::fmt;

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, PKCS_ECDSA_P256_SHA256, PublicKey,
    PublicKeyData,
};
use rustls_pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::{Error, Fingerprint};

/// No request of ours comes near this size, in bytes.
const LARGEST_REQUEST: usize = 8 * 1024;

/// Size of an uncompressed P-256 point (SEC 1, section 2.3.3).
const P256_POINT: usize = 65;

/// An ECDSA P-256 private key.
///
/// It never leaves the process that made it, except into a file of mode 0600.
pub struct KeyPair(rcgen::KeyPair);

impl KeyPair {
    /// Makes a new key from the operating system's random numbers.
    ///
    /// # Errors
    /// [`Error::Key`] when the operating system has none.
    pub fn generate() -> Result<Self, Error> {
        rcgen::KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(Error::key)
    }

    /// Reads a key that [`to_pem`](Self::to_pem) wrote.
    ///
    /// # Errors
    /// [`Error::Key`] when it is not a PKCS #8 ECDSA P-256 key in PEM.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(text, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(Error::key)
    }

    /// The key as PKCS #8 in PEM: a secret.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// A certificate signing request (RFC 2986, DER) that proves possession of the key and claims nothing.
    ///
    /// # Errors
    /// [`Error::Key`] when signing fails.
    pub fn request(&self) -> Result<Vec<u8>, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.0).map_err(Error::key)?;
        Ok(request.der().to_vec())
    }

    /// SHA-256 of the public key (subjectPublicKeyInfo).
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0.subject_public_key_info())
    }

    pub(crate) fn private_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }

    pub(crate) fn inner(&self) -> &rcgen::KeyPair {
        &self.0
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair")
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

/// A certificate signing request whose signature was verified.
///
/// Only the key in it is believed. Names, usages and everything else that the requester wrote are dropped: who
/// it is comes from whoever authenticated it.
#[derive(Debug, Clone)]
pub struct CertificateRequest {
    key: PublicKey,
}

impl CertificateRequest {
    /// Parses a request and verifies that the requester holds its key.
    ///
    /// # Errors
    /// [`Error::Request`] when it is malformed, too large, not signed by its key, or its key is not ECDSA P-256.
    pub fn from_der(der: &[u8]) -> Result<Self, Error> {
        if der.len() > LARGEST_REQUEST {
            return Err(Error::TooLarge {
                what: "certificate signing request".to_owned(),
                found: der.len() as u64,
                allowed: LARGEST_REQUEST as u64,
            });
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
            .map_err(Error::request)?;
        let key = request.public_key;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_POINT {
            return Err(Error::request("the key must be ECDSA P-256, signed with SHA-256"));
        }
        Ok(Self { key })
    }

    /// SHA-256 of the public key (subjectPublicKeyInfo), as [`KeyPair::fingerprint`] gives it.
    #[must_use]
    pub fn key_fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.key.subject_public_key_info())
    }

    pub(crate) fn key(&self) -> &PublicKey {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_the_key_and_proves_it() {
        let key = KeyPair::generate().unwrap();
        let der = key.request().unwrap();
        assert_eq!(
            CertificateRequest::from_der(&der).unwrap().key_fingerprint(),
            key.fingerprint()
        );

        let mut forged = der.clone();
        *forged.last_mut().unwrap() ^= 1;
        assert!(CertificateRequest::from_der(&forged).is_err());
        assert!(CertificateRequest::from_der(&der[..der.len() - 7]).is_err());
        assert!(CertificateRequest::from_der(&vec![0x30; LARGEST_REQUEST + 1]).is_err());
    }

    #[test]
    fn other_keys_are_refused_by_name() {
        for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let request = CertificateParams::default().serialize_request(&key).unwrap();
            let error = CertificateRequest::from_der(request.der()).unwrap_err();
            assert!(error.to_string().contains("ECDSA P-256"), "{error}");
        }
    }

    #[test]
    fn the_key_survives_its_file_and_stays_out_of_logs() {
        let key = KeyPair::generate().unwrap();
        let pem = key.to_pem();
        assert_eq!(KeyPair::from_pem(&pem).unwrap().fingerprint(), key.fingerprint());
        let secret: String = pem.lines().nth(1).unwrap().chars().take(20).collect();
        assert!(!format!("{key:?}").contains(&secret));
    }
}
