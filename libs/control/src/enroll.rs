//! How a role without a certificate shows who it is.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use foreshore_tls::{Fingerprint, RoleIdentity, read_bounded};
use parking_lot::Mutex;
use rand::{TryRngCore, rngs::OsRng};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The largest credential, in bytes: projected ServiceAccount tokens have about one kilobyte.
pub(crate) const LARGEST_CREDENTIAL: usize = 16 * 1024;

/// Most one-time tokens at a time.
const MOST_TOKENS: usize = 10_000;

/// Why a credential was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthenticationError {
    /// It is not good. The reason goes back to the role, whose log people read; it must not say anything that helps
    /// to guess.
    #[error("credential refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// It can't be judged now: the reviewer can't be reached.
    #[error("credential can't be judged now: {cause}")]
    Unavailable {
        /// What happened.
        cause: String,
    },
}

/// Judges bootstrap credentials.
///
/// In a cluster this is a `TokenReview` of the pod's projected `ServiceAccount` token; on one machine it is
/// [`LocalTokens`].
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// Says which role the bearer of a credential is: from what the credential proves, never from a claim of the
    /// bearer.
    ///
    /// `key` is the fingerprint of the public key that the certificate will be for; the bearer has proved that it
    /// holds it. A credential that is good for one certificate only has to be bound to the first key: its bearer
    /// tries again with the same key when the answer was lost.
    ///
    /// # Errors
    /// [`AuthenticationError`].
    async fn authenticate(
        &self,
        credential: &str,
        key: Fingerprint,
    ) -> Result<RoleIdentity, AuthenticationError>;
}

/// Why there is no bootstrap credential.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// Its file can't be read.
    #[error(transparent)]
    File(#[from] foreshore_tls::Error),
    /// Its file holds something else.
    #[error("{} is not text", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers: {reason}")]
    NoRandom {
        /// What it says.
        reason: String,
    },
    /// Too many one-time tokens wait to be used.
    #[error("{allowed} one-time tokens wait to be used already")]
    TooMany {
        /// How many may wait.
        allowed: usize,
    },
    /// Something else, of another source.
    #[error("{0}")]
    Other(String),
}

/// Gives a role its bootstrap credential each time that it needs one.
#[async_trait]
pub trait CredentialSource: Send + Sync + 'static {
    /// The credential to show.
    ///
    /// # Errors
    /// [`CredentialError`] when there is none now; it is asked for again later.
    async fn credential(&self) -> Result<String, CredentialError>;
}

/// A credential that is known from the start: good for one enrolment.
pub struct StaticCredential(pub String);

#[async_trait]
impl CredentialSource for StaticCredential {
    async fn credential(&self) -> Result<String, CredentialError> {
        Ok(self.0.clone())
    }
}

/// A credential in a file that others renew, as the kubelet does with projected `ServiceAccount` tokens.
pub struct CredentialFile(pub PathBuf);

#[async_trait]
impl CredentialSource for CredentialFile {
    async fn credential(&self) -> Result<String, CredentialError> {
        let path = self.0.clone();
        let content = tokio::task::spawn_blocking(move || read_bounded(&path, LARGEST_CREDENTIAL as u64))
            .await
            .map_err(|error| CredentialError::Other(error.to_string()))??;
        let text =
            String::from_utf8(content).map_err(|_| CredentialError::NotText { path: self.0.clone() })?;
        Ok(text.trim().to_owned())
    }
}

/// One-time tokens that a parent process makes for the roles that it starts.
///
/// A token is a public identifier and 256 random bits; only a hash of the latter is kept, and compared in constant
/// time. The first key that shows it is bound to it: another one is refused, the same one may try again until the
/// token expires. Cheap to clone; clones share their tokens.
#[derive(Clone, Default)]
pub struct LocalTokens {
    tokens: Arc<Mutex<HashMap<String, Token>>>,
}

struct Token {
    role: RoleIdentity,
    secret: [u8; 32],
    expires: Instant,
    key: Option<Fingerprint>,
}

impl LocalTokens {
    /// Without tokens yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a token for a role.
    ///
    /// # Errors
    /// [`CredentialError::NoRandom`]; [`CredentialError::TooMany`] when ten thousand wait to be used.
    pub fn issue(&self, role: RoleIdentity, lifetime: Duration) -> Result<String, CredentialError> {
        let mut random = [0; 40];
        OsRng
            .try_fill_bytes(&mut random)
            .map_err(|error| CredentialError::NoRandom {
                reason: error.to_string(),
            })?;
        let (id, secret) = random.split_at(8);
        let (id, secret) = (hex::encode(id), hex::encode(secret));
        let now = Instant::now();
        let mut tokens = self.tokens.lock();
        tokens.retain(|_, token| token.expires > now);
        if tokens.len() >= MOST_TOKENS {
            return Err(CredentialError::TooMany { allowed: MOST_TOKENS });
        }
        let token = Token {
            role,
            secret: Sha256::digest(&secret).into(),
            expires: now + lifetime,
            key: None,
        };
        tokens.insert(id.clone(), token);
        Ok(format!("{id}.{secret}"))
    }

    /// A source that makes a new token each time that the role has to enroll: at its start, and when a machine slept
    /// through the lifetime of its certificate.
    #[must_use]
    pub fn source(&self, role: RoleIdentity, lifetime: Duration) -> Arc<dyn CredentialSource> {
        Arc::new(LocalSource {
            tokens: self.clone(),
            role,
            lifetime,
        })
    }

    fn redeem(&self, credential: &str, key: Fingerprint) -> Result<RoleIdentity, AuthenticationError> {
        let refused = |reason: &str| AuthenticationError::Refused {
            reason: reason.to_owned(),
        };
        let (id, secret) = credential
            .split_once('.')
            .ok_or_else(|| refused("not a one-time token"))?;
        let hash: [u8; 32] = Sha256::digest(secret).into();
        let mut tokens = self.tokens.lock();
        let token = tokens
            .get_mut(id)
            .filter(|token| bool::from(token.secret.ct_eq(&hash)));
        // What follows is told only to someone who knows the secret.
        let token = token.ok_or_else(|| refused("unknown one-time token"))?;
        if token.expires <= Instant::now() {
            return Err(refused("the one-time token has expired"));
        }
        if *token.key.get_or_insert(key) != key {
            return Err(refused("the one-time token was used with another key"));
        }
        Ok(token.role.clone())
    }
}

impl fmt::Debug for LocalTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalTokens")
            .field("tokens", &self.tokens.lock().len())
            .finish()
    }
}

#[async_trait]
impl Authenticator for LocalTokens {
    async fn authenticate(
        &self,
        credential: &str,
        key: Fingerprint,
    ) -> Result<RoleIdentity, AuthenticationError> {
        self.redeem(credential, key)
    }
}

struct LocalSource {
    tokens: LocalTokens,
    role: RoleIdentity,
    lifetime: Duration,
}

#[async_trait]
impl CredentialSource for LocalSource {
    async fn credential(&self) -> Result<String, CredentialError> {
        self.tokens.issue(self.role.clone(), self.lifetime)
    }
}

#[cfg(test)]
mod tests {
    use foreshore_tls::Role;

    use super::*;

    fn role() -> RoleIdentity {
        RoleIdentity::new(Role::Connector, "plant", "opcua", "1").unwrap()
    }

    fn reason(outcome: Result<RoleIdentity, AuthenticationError>) -> String {
        outcome.unwrap_err().to_string()
    }

    #[test]
    fn a_token_belongs_to_the_first_key_that_shows_it() {
        let tokens = LocalTokens::new();
        let token = tokens.issue(role(), Duration::from_secs(60)).unwrap();
        let (one, other) = (Fingerprint::of(b"one"), Fingerprint::of(b"other"));
        assert_eq!(tokens.redeem(&token, one).unwrap(), role());
        assert_eq!(
            tokens.redeem(&token, one).unwrap(),
            role(),
            "a lost answer could not be asked for again"
        );
        assert!(reason(tokens.redeem(&token, other)).contains("another key"));
    }

    #[test]
    fn wrong_and_expired_tokens_are_refused() {
        let tokens = LocalTokens::new();
        let key = Fingerprint::of(b"key");
        let token = tokens.issue(role(), Duration::from_secs(60)).unwrap();
        assert_eq!(token.len(), 16 + 1 + 64);
        let flipped = if token.ends_with('0') { '1' } else { '0' };
        let mut wrong = token.clone();
        wrong.pop();
        wrong.push(flipped);
        let (id, _) = token.split_once('.').unwrap();
        for bad in [
            "",
            ".",
            "nonsense",
            id,
            &format!("{id}."),
            &wrong,
            &format!("00.{token}"),
        ] {
            let text = reason(tokens.redeem(bad, key));
            assert!(
                text.contains("unknown") || text.contains("not a one-time"),
                "{bad}: {text}"
            );
        }
        let over = tokens.issue(role(), Duration::ZERO).unwrap();
        assert!(reason(tokens.redeem(&over, key)).contains("expired"));
        assert!(
            tokens.redeem(&token, key).is_ok(),
            "failed attempts used the token up"
        );
    }

    #[test]
    fn tokens_do_not_pile_up() {
        let tokens = LocalTokens::new();
        for _ in 0..100 {
            tokens.issue(role(), Duration::ZERO).unwrap();
        }
        tokens.issue(role(), Duration::from_secs(60)).unwrap();
        assert_eq!(tokens.tokens.lock().len(), 1);
    }

    #[tokio::test]
    async fn a_file_is_read_anew_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let source = CredentialFile(path.clone());
        assert!(
            source
                .credential()
                .await
                .unwrap_err()
                .to_string()
                .contains("token")
        );
        std::fs::write(&path, "first\n").unwrap();
        assert_eq!(source.credential().await.unwrap(), "first");
        std::fs::write(&path, "second").unwrap();
        assert_eq!(source.credential().await.unwrap(), "second");
    }
}
