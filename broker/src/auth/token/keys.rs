//! The keys of an issuer (JSON Web Key Set, RFC 7517) and what is signed with them (RFC 7518, RFC 8037). Everything here is
//! pure.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RsaParameters,
    RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use serde::Deserialize;

/// Most keys of a set that are looked at.
const MAX_KEYS: usize = 64;

/// How a token is signed: what RFC 7518 recommends and issuers use. Nothing that needs a secret of ours is among it, nor
/// `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Es256,
    Es384,
    EdDsa,
}

impl Algorithm {
    /// Names that a token may have in its header.
    pub(super) const NAMES: &str = "RS256, RS384, RS512, PS256, ES256, ES384 and EdDSA";

    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// The keys that an issuer publishes, as far as they are of use.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct KeySet(Vec<Key>);

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    id: Option<String>,
    /// The only algorithm that it is for, where the issuer says so.
    algorithm: Option<Algorithm>,
    material: Material,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct JsonWebKeySet {
    keys: Vec<serde_json::Value>,
}

/// A key as it is published (RFC 7517 section 4).
#[derive(Deserialize)]
struct JsonWebKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a set; keys that are not for signatures that we know are left out (RFC 7517 section 5).
    ///
    /// # Errors
    /// When it is no set.
    pub(super) fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let JsonWebKeySet { keys } = serde_json::from_slice(json)?;
        let keys = keys.into_iter().filter_map(Key::read).take(MAX_KEYS);
        Ok(Self(keys.collect()))
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The keys that a token may be signed with.
    pub(super) fn fitting(&self, algorithm: Algorithm, id: Option<&str>) -> Vec<Key> {
        let fits = |key: &&Key| {
            key.algorithm.is_none_or(|only| only == algorithm)
                && (id.is_none() || key.id.as_deref() == id)
                && key.material.is_for(algorithm)
        };
        self.0.iter().filter(fits).cloned().collect()
    }
}

impl Key {
    fn read(json: serde_json::Value) -> Option<Self> {
        let JsonWebKey {
            kty,
            kid,
            alg,
            usage,
            crv,
            n,
            e,
            x,
            y,
        } = serde_json::from_value(json).ok()?;
        if usage.is_some_and(|usage| usage != "sig") {
            return None;
        }
        let algorithm = match alg {
            Some(name) => Some(Algorithm::named(&name)?),
            None => None,
        };
        let bytes = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        // Uncompressed points (SEC 1 section 2.3.3).
        let point = |x, y, length| {
            let (x, y) = (bytes(x)?, bytes(y)?);
            (x.len() == length && y.len() == length).then(|| [&[4][..], &x, &y].concat())
        };
        let material = match (kty.as_str(), crv.as_deref()) {
            ("RSA", _) => Material::Rsa {
                n: number(bytes(n)?),
                e: number(bytes(e)?),
            },
            ("EC", Some("P-256")) => Material::P256(point(x, y, 32)?),
            ("EC", Some("P-384")) => Material::P384(point(x, y, 48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(x)?),
            _ => return None,
        };
        Some(Self {
            id: kid,
            algorithm,
            material,
        })
    }

    /// Whether a signature is this key's.
    pub(super) fn verifies(&self, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        let plain = |how: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(how, key).verify(signed, signature).is_ok()
        };
        let rsa = |how: &'static RsaParameters, n: &[u8], e: &[u8]| {
            RsaPublicKeyComponents { n, e }
                .verify(how, signed, signature)
                .is_ok()
        };
        match (algorithm, &self.material) {
            (Algorithm::Rs256, Material::Rsa { n, e }) => rsa(&RSA_PKCS1_2048_8192_SHA256, n, e),
            (Algorithm::Rs384, Material::Rsa { n, e }) => rsa(&RSA_PKCS1_2048_8192_SHA384, n, e),
            (Algorithm::Rs512, Material::Rsa { n, e }) => rsa(&RSA_PKCS1_2048_8192_SHA512, n, e),
            (Algorithm::Ps256, Material::Rsa { n, e }) => rsa(&RSA_PSS_2048_8192_SHA256, n, e),
            (Algorithm::Es256, Material::P256(point)) => plain(&ECDSA_P256_SHA256_FIXED, point),
            (Algorithm::Es384, Material::P384(point)) => plain(&ECDSA_P384_SHA384_FIXED, point),
            (Algorithm::EdDsa, Material::Ed25519(key)) => plain(&ED25519, key),
            _ => false,
        }
    }
}

impl Material {
    fn is_for(&self, algorithm: Algorithm) -> bool {
        match self {
            Self::Rsa { .. } => matches!(
                algorithm,
                Algorithm::Rs256 | Algorithm::Rs384 | Algorithm::Rs512 | Algorithm::Ps256
            ),
            Self::P256(_) => algorithm == Algorithm::Es256,
            Self::P384(_) => algorithm == Algorithm::Es384,
            Self::Ed25519(_) => algorithm == Algorithm::EdDsa,
        }
    }
}

/// A number without leading zeros, which some issuers write.
fn number(mut bytes: Vec<u8>) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.drain(..zeros);
    bytes
}
