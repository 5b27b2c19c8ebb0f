//! The proof with which an edge renews after its certificate has expired: it signs the cloud's nonce with its key.
//!
//! Signed is, with ECDSA P-256 and SHA-256, the concatenation of [`DOMAIN`], the length of the edge's name (u32, big
//! endian), the name, the length of the nonce (u32, big endian), the nonce, and the SHA-256 of the certificate signing
//! request. The proof is worth nothing for another edge, another nonce or another request.

use bytes::Bytes;
use foreshore_tls::{Fingerprint, KeyPair};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
    },
};
use sha2::{Digest, Sha256};

use crate::proto;

/// What the signed message begins with, so that the signature is good for nothing else.
pub const DOMAIN: &[u8] = b"foreshore edgelink renewal 1\0";

/// What precedes the point in the subjectPublicKeyInfo of every P-256 key (RFC 5480, section 2).
const P256_HEADER: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Why a proof can't be made or does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The key is not one that the library signs with.
    #[error("the key can't sign")]
    Key,
    /// The public key is not ECDSA P-256.
    #[error("the public key is not ECDSA P-256")]
    PublicKey,
    /// The signature is not that of the key.
    #[error("the signature does not hold")]
    Signature,
}

/// Proves that this process holds the key.
///
/// # Errors
/// [`Error::Key`].
pub fn prove(key: &KeyPair, edge: &str, nonce: &[u8], request: &[u8]) -> Result<proto::Possession, Error> {
    let document = pem::parse(key.to_pem()).map_err(|_| Error::Key)?;
    let random = SystemRandom::new();
    let signing = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.contents(), &random)
        .map_err(|_| Error::Key)?;
    let signature = signing
        .sign(&random, &message(edge, nonce, request))
        .map_err(|_| Error::Key)?;
    let public_key = [&P256_HEADER[..], signing.public_key().as_ref()].concat();
    Ok(proto::Possession {
        edge: edge.to_owned(),
        nonce: Bytes::copy_from_slice(nonce),
        public_key: public_key.into(),
        signature: Bytes::copy_from_slice(signature.as_ref()),
    })
}

/// Verifies a proof for a request and returns the fingerprint of the key that made it. Whether the nonce is one of the
/// cloud's, and the key that of the edge, is for the caller to judge.
///
/// # Errors
/// [`Error::PublicKey`], [`Error::Signature`].
pub fn verify(proof: &proto::Possession, request: &[u8]) -> Result<Fingerprint, Error> {
    let point = proof
        .public_key
        .strip_prefix(&P256_HEADER[..])
        .ok_or(Error::PublicKey)?;
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
    key.verify(&message(&proof.edge, &proof.nonce, request), &proof.signature)
        .map_err(|_| Error::Signature)?;
    Ok(Fingerprint::of(&proof.public_key))
}

fn message(edge: &str, nonce: &[u8], request: &[u8]) -> Vec<u8> {
    let mut message = DOMAIN.to_vec();
    for part in [edge.as_bytes(), nonce] {
        // Lengths beyond 4 GiB can't arrive in a frame.
        message.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        message.extend(part);
    }
    message.extend(Sha256::digest(request));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_key_nonce_edge_and_request_only() {
        let key = KeyPair::generate().unwrap();
        let proof = prove(&key, "plant", b"nonce", b"request").unwrap();
        assert_eq!(verify(&proof, b"request").unwrap(), key.fingerprint());

        assert_eq!(verify(&proof, b"another request"), Err(Error::Signature));
        let changed = proto::Possession {
            edge: "plan".to_owned(),
            nonce: Bytes::from_static(b"tnonce"),
            ..proof.clone()
        };
        assert_eq!(verify(&changed, b"request"), Err(Error::Signature));
        let other = prove(&KeyPair::generate().unwrap(), "plant", b"nonce", b"request").unwrap();
        let stolen = proto::Possession {
            signature: other.signature,
            ..proof.clone()
        };
        assert_eq!(verify(&stolen, b"request"), Err(Error::Signature));
        let malformed = proto::Possession {
            public_key: Bytes::from_static(b"0"),
            ..proof
        };
        assert_eq!(verify(&malformed, b"request"), Err(Error::PublicKey));
    }
}
