//! User names and passwords, and what the broker keeps of passwords.

use std::{
    collections::{BTreeSet, HashMap},
    num::NonZeroU32,
    sync::{Arc, LazyLock},
};

use argon2::{Argon2, PasswordHash, PasswordVerifier};
use foreshore_crds::v1alpha1::broker::UserGroup;
use ring::hmac::{self, HMAC_SHA512};
use subtle::ConstantTimeEq;
use tokio::sync::{OnceCell, Semaphore};

use super::scram::{self, Keys, Salting};

/// Hashes that are worked out at a time: each takes memory and a processor, so that a storm of logins must not take all.
const AT_A_TIME: usize = 2;

/// Most memory that a stored hash may ask for, in KiB; more would let one login exhaust the broker.
const MAX_MEMORY_KIB: u32 = 256 << 10;

/// What an unknown user's password is checked against, so that it takes as long as a known one's.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Ok4hSwFi4zI1Q2+DLCpqbhdMlvT9uMDkhvcKVF2nCoE";

/// Length of a salt that we make, in bytes.
const SALT: usize = 16;

/// What salts are made of where there is none: of a name always the same, and nobody else can make it. `None` when the
/// system gives no random numbers.
static SALTS: LazyLock<Option<hmac::Key>> =
    LazyLock::new(|| hmac::Key::generate(HMAC_SHA512, &ring::rand::SystemRandom::new()).ok());

/// User names with their passwords, the passwords' hashes or their SCRAM records.
#[derive(Default)]
pub struct PasswordTable {
    users: HashMap<String, Entry>,
    /// Iterations and lengths of salts by which passwords are salted: users that are made up must not stand out.
    salted: BTreeSet<(NonZeroU32, usize)>,
}

struct Entry {
    user: User,
    /// What SCRAM needs of a password that is kept as it is, once it was needed.
    keys: OnceCell<Arc<Keys>>,
}

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
    Scram(Arc<Keys>),
}

/// A password's hash or record that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "value of user {user:?} can't be used: {cause}; a password is allowed, $argon2id$ with at most {MAX_MEMORY_KIB} KiB, \
     and a SCRAM-SHA-256 record"
)]
pub struct WrongHash {
    /// The user.
    pub user: String,
    /// What is wrong.
    pub cause: String,
}

impl PasswordTable {
    /// Makes a table of users, whose values are hashes (`$argon2id$…`), SCRAM records
    /// (`SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, as PostgreSQL writes what RFC 5803 describes) or passwords.
    ///
    /// # Errors
    /// When a hash or a record is malformed, or asks for too much.
    pub fn new(
        users: impl IntoIterator<Item = (String, Vec<u8>)>,
        groups: &[UserGroup],
    ) -> Result<Self, WrongHash> {
        let mut table = Self::default();
        for (name, value) in users {
            let value = value.strip_suffix(b"\n").unwrap_or(&value);
            let secret = Secret::read(value).map_err(|cause| WrongHash {
                user: name.clone(),
                cause,
            })?;
            match &secret {
                Secret::Plain(_) => drop(table.salted.insert((scram::MIN_ITERATIONS, SALT))),
                Secret::Scram(keys) => {
                    let Salting { salt, iterations } = &keys.salting;
                    table.salted.insert((*iterations, salt.len()));
                }
                Secret::Hash(_) => {}
            }
            let is_in = |group: &&UserGroup| group.users.iter().any(|user| user.as_str() == name);
            let groups = groups
                .iter()
                .filter(is_in)
                .map(|group| group.name.to_string())
                .collect();
            let user = User { secret, groups };
            let keys = OnceCell::new();
            table.users.insert(name, Entry { user, keys });
        }
        Ok(table)
    }

    pub(crate) fn user(&self, name: Option<&str>) -> Option<&User> {
        self.users.get(name?).map(|entry| &entry.user)
    }

    /// The user of that name, if its password is still the one that `known` was let in with.
    pub(crate) fn unchanged(&self, name: &str, known: &User) -> Option<&User> {
        self.user(Some(name)).filter(|user| user.secret == known.secret)
    }

    /// How a user's password is salted, for SCRAM. A name that nobody has, or whose password is not known well enough,
    /// gets what somebody could have, and the same each time; `None` when the system gives no random numbers.
    pub(super) fn salting(&self, name: &str) -> Option<Salting> {
        let made_up = |iterations, length| {
            let tag = tag(b"salt", name)?;
            Some(Salting {
                salt: tag.as_ref().get(..length)?.to_owned(),
                iterations,
            })
        };
        match self.user(Some(name)).map(|user| &user.secret) {
            Some(Secret::Scram(keys)) => Some(keys.salting.clone()),
            Some(Secret::Plain(_)) => made_up(scram::MIN_ITERATIONS, SALT),
            Some(Secret::Hash(_)) | None => {
                let choice = tag(b"like", name)?;
                let choice = usize::from(*choice.as_ref().first()?);
                let like = self.salted.iter().nth(choice % self.salted.len().max(1));
                let (iterations, length) = like.copied().unwrap_or((scram::MIN_ITERATIONS, SALT));
                made_up(iterations, length)
            }
        }
    }

    /// What SCRAM needs of a user's password; nobody's keys where there is no such user, or no such password.
    pub(super) async fn keys(&self, name: &str, salting: Salting, checks: &Checks) -> Arc<Keys> {
        let Some(Entry { user, keys }) = self.users.get(name) else {
            return Arc::new(Keys::of_nobody(salting));
        };
        match &user.secret {
            Secret::Scram(keys) => Arc::clone(keys),
            Secret::Hash(_) => Arc::new(Keys::of_nobody(salting)),
            Secret::Plain(password) => {
                let derive = async || {
                    let (password, salting) = (password.clone(), salting.clone());
                    let derived = checks.work(move || Keys::derive(&password, salting)).await;
                    derived.map(Arc::new).ok_or(())
                };
                match keys.get_or_try_init(derive).await {
                    Ok(keys) => Arc::clone(keys),
                    Err(()) => Arc::new(Keys::of_nobody(salting)),
                }
            }
        }
    }
}

/// A number of 64 bytes that belongs to a name.
fn tag(purpose: &[u8], name: &str) -> Option<hmac::Tag> {
    let mut context = hmac::Context::with_key(SALTS.as_ref()?);
    context.update(purpose);
    context.update(name.as_bytes());
    Some(context.sign())
}

impl Secret {
    fn read(value: &[u8]) -> Result<Self, String> {
        Ok(match std::str::from_utf8(value) {
            Ok(text) if text.starts_with("$argon2") => {
                check_hash(text)?;
                Self::Hash(text.to_owned())
            }
            Ok(text) if Keys::is_record(text) => Self::Scram(Arc::new(Keys::parse(text)?)),
            _ => Self::Plain(value.to_owned()),
        })
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
        write!(formatter, "PasswordTable({} users)", self.users.len())
    }
}

/// Checks what clients show, few at a time.
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
            Secret::Scram(keys) => {
                let (keys, password) = (Arc::clone(keys), password.to_owned());
                self.work(move || keys.are_of(&password)).await.unwrap_or(false)
            }
        }
    }

    /// Takes as long as a check does.
    pub(crate) async fn pretend(&self, password: &[u8]) {
        let _never_right = self.verify_hash(NOBODY.to_owned(), password).await;
    }

    async fn verify_hash(&self, hash: String, password: &[u8]) -> bool {
        let password = password.to_owned();
        let verify = move || {
            let hash = PasswordHash::new(&hash);
            hash.is_ok_and(|hash| Argon2::default().verify_password(&password, &hash).is_ok())
        };
        self.work(verify).await.unwrap_or(false)
    }

    /// Works something out that takes a while, on a thread that carries no connections.
    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let _permit = self.0.acquire().await.ok()?;
        tokio::task::spawn_blocking(work).await.ok()
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

    /// The password is "pencil"; worked out by Python's hashlib.
    const RECORD: &str = "SCRAM-SHA-256$5000:c2FsdHNhbHRzYWx0c2FsdHNhbHQ=$\
                          F4xVxTzv4azdhEnX2fLJ/6iga8mcl/tnw6tFM8taqg8=:aBzF7RZ39i9nuhCwlE2/g614Hs8kKoxVWyl1AZc69hY=";

    #[tokio::test]
    async fn records_check_passwords_and_nobody_stands_out() {
        let users = [("record", RECORD), ("hashed", NOBODY)];
        let table = |users: &[(&str, &str)]| {
            let users = users
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
            PasswordTable::new(users, &[]).unwrap()
        };
        let records = table(&users);
        let checks = Checks::default();
        let user = records.user(Some("record")).unwrap();
        assert!(checks.verify(user, b"pencil").await && !checks.verify(user, b"pencils").await);

        let salting = |table: &PasswordTable, name: &str| {
            let Salting { salt, iterations } = table.salting(name).unwrap();
            (salt, iterations.get())
        };
        assert_eq!(salting(&records, "record").0, b"saltsaltsaltsaltsalt");
        for name in ["hashed", "nobody"] {
            let (salt, iterations) = salting(&records, name);
            assert_eq!((salt.len(), iterations), (20, 5000), "{name}");
            assert_eq!(salting(&records, name).0, salt);
        }
        assert_ne!(salting(&records, "nobody").0, salting(&records, "anybody").0);
        // With both kinds of users, made-up ones are of both kinds.
        let mixed = table(&[("record", RECORD), ("plain", "pencil")]);
        let kinds: BTreeSet<_> = (0..64)
            .map(|number| salting(&mixed, &format!("u{number}")).1)
            .collect();
        assert_eq!(kinds, [4096, 5000].into());
        // Of a password the keys are worked out once.
        let of = async |name: &str| {
            let salting = mixed.salting(name).unwrap();
            mixed.keys(name, salting, &checks).await
        };
        assert!(Arc::ptr_eq(&of("plain").await, &of("plain").await));
        assert!(of("plain").await.are_of(b"pencil"));
        assert!(!of("nobody").await.are_of(b"pencil"));
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
