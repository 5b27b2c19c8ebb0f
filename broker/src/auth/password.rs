//! User names and passwords.

use std::collections::HashMap;

use argon2::{Argon2, PasswordHash, PasswordVerifier};
use foreshore_crds::v1alpha1::broker::UserGroup;
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

/// Hashes that are worked out at a time: each takes memory and a processor, so that a storm of logins must not take all.
const AT_A_TIME: usize = 2;

/// Most memory that a stored hash may ask for, in KiB; more would let one login exhaust the broker.
const MAX_MEMORY_KIB: u32 = 256 << 10;

/// What an unknown user's password is checked against, so that it takes as long as a known one's.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Ok4hSwFi4zI1Q2+DLCpqbhdMlvT9uMDkhvcKVF2nCoE";

/// User names with their passwords or the passwords' hashes.
#[derive(Default)]
pub struct PasswordTable(HashMap<String, User>);

/// A user.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct User {
    secret: Secret,
    /// Groups that it is in.
    pub(crate) groups: Vec<String>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("User")
            .field("groups", &self.groups)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Eq)]
enum Secret {
    Plain(Vec<u8>),
    Hash(String),
}

/// A password's hash that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "hash of user {user:?} can't be used: {cause}; $argon2id$ with at most {MAX_MEMORY_KIB} KiB is allowed"
)]
pub struct WrongHash {
    /// The user.
    pub user: String,
    /// What is wrong.
    pub cause: String,
}

impl PasswordTable {
    /// Makes a table of users, whose values are hashes (`$argon2id$…`) or passwords.
    ///
    /// # Errors
    /// When a hash is malformed, or asks for too much memory.
    pub fn new(
        users: impl IntoIterator<Item = (String, Vec<u8>)>,
        groups: &[UserGroup],
    ) -> Result<Self, WrongHash> {
        let mut table = HashMap::new();
        for (name, value) in users {
            let value = value.strip_suffix(b"\n").unwrap_or(&value);
            let secret = match std::str::from_utf8(value) {
                Ok(text) if text.starts_with("$argon2") => {
                    check_hash(text).map_err(|cause| WrongHash {
                        user: name.clone(),
                        cause,
                    })?;
                    Secret::Hash(text.to_owned())
                }
                _ => Secret::Plain(value.to_owned()),
            };
            let is_in = |group: &&UserGroup| group.users.iter().any(|user| user.as_str() == name);
            let groups = groups
                .iter()
                .filter(is_in)
                .map(|group| group.name.to_string())
                .collect();
            table.insert(name, User { secret, groups });
        }
        Ok(Self(table))
    }

    pub(crate) fn user(&self, name: Option<&str>) -> Option<&User> {
        self.0.get(name?)
    }

    /// The user of that name, if its password is still the one that `known` was let in with.
    pub(crate) fn unchanged(&self, name: &str, known: &User) -> Option<&User> {
        self.0.get(name).filter(|user| user.secret == known.secret)
    }
}

fn check_hash(text: &str) -> Result<(), String> {
    let hash = PasswordHash::new(text).map_err(|error| error.to_string())?;
    if hash.algorithm != argon2::ARGON2ID_IDENT {
        return Err(format!("its algorithm is {}", hash.algorithm));
    }
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err("its salt or the hash itself is missing".to_owned());
    }
    match hash.params.get_decimal("m") {
        Some(memory) if memory > MAX_MEMORY_KIB => Err(format!("it asks for {memory} KiB")),
        _ => Ok(()),
    }
}

impl std::fmt::Debug for PasswordTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "PasswordTable({} users)", self.0.len())
    }
}

/// Checks passwords, few at a time.
#[derive(Debug)]
pub(crate) struct Checks(Semaphore);

impl Default for Checks {
    fn default() -> Self {
        Self(Semaphore::new(AT_A_TIME))
    }
}

impl Checks {
    /// Whether a password is a user's.
    pub(crate) async fn verify(&self, user: &User, password: &[u8]) -> bool {
        match &user.secret {
            Secret::Plain(expected) => expected.ct_eq(password).into(),
            Secret::Hash(hash) => self.verify_hash(hash.clone(), password).await,
        }
    }

    /// Takes as long as a check does.
    pub(crate) async fn pretend(&self, password: &[u8]) {
        let _never_right = self.verify_hash(NOBODY.to_owned(), password).await;
    }

    async fn verify_hash(&self, hash: String, password: &[u8]) -> bool {
        let Ok(_permit) = self.0.acquire().await else {
            return false;
        };
        let password = password.to_owned();
        let verify = move || {
            let hash = PasswordHash::new(&hash);
            hash.is_ok_and(|hash| Argon2::default().verify_password(&password, &hash).is_ok())
        };
        tokio::task::spawn_blocking(verify).await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use argon2::PasswordHasher;

    use super::*;

    #[tokio::test]
    async fn hashes_and_plain_passwords_are_checked() {
        let salt = argon2::password_hash::SaltString::from_b64("c29tZXNhbHQ").unwrap();
        let hash = Argon2::default()
            .hash_password(b"right", &salt)
            .unwrap()
            .to_string();
        let users = [
            ("hashed".to_owned(), hash.into_bytes()),
            ("plain".to_owned(), b"right\n".to_vec()),
        ];
        let groups: UserGroup =
            serde_json::from_value(serde_json::json!({ "name": "ops", "users": ["plain"] })).unwrap();
        let table = PasswordTable::new(users, &[groups]).unwrap();
        let checks = Checks::default();
        for name in ["hashed", "plain"] {
            let user = table.user(Some(name)).unwrap();
            assert!(checks.verify(user, b"right").await && !checks.verify(user, b"wrong").await);
            assert!(!checks.verify(user, b"").await);
        }
        assert_eq!(table.user(Some("plain")).unwrap().groups, ["ops"]);
        assert!(PasswordHash::new(NOBODY).is_ok());
        checks.pretend(b"x").await;
    }

    #[test]
    fn hashes_that_can_not_be_used_are_named() {
        let table = |hash: &str| PasswordTable::new([("u".to_owned(), hash.as_bytes().to_vec())], &[]);
        assert!(
            table("$argon2id$nonsense")
                .unwrap_err()
                .to_string()
                .contains("user \"u\"")
        );
        let greedy = NOBODY.replace("m=19456", "m=4000000");
        assert!(table(&greedy).unwrap_err().cause.contains("4000000 KiB"));
        assert!(table(&NOBODY.replace("argon2id", "argon2i")).is_err());
    }
}
