//! What a role keeps, sealed: ChaCha20-Poly1305 (RFC 8439) under a key in a file of mode 0600.
//!
//! The key lies in the clear beside what it seals, which protects a copy of some files and tells damage; unless the
//! role was given a [`KeyWrap`]: then the file holds the key wrapped, certificate and roots are sealed as the plan is, and
//! nothing is believed that is not.

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use foreshore_runtime::Shutdown;
use foreshore_tls::{Error, read_private, write_private};
use parking_lot::Mutex;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use tracing::{error, info, warn};

/// Tells our files, and their format.
const MAGIC: &[u8; 4] = b"FSP1";

/// Tells a key that is wrapped from one in the clear, which is hexadecimal.
const WRAPPED: &[u8; 4] = b"FSK1";

/// Size of a key, in bytes.
const KEY_LEN: usize = 32;

/// Largest file of a key, in bytes.
const LARGEST_KEY: u64 = 4096;

/// Time between two looks at whether another key is to wrap ours.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Wraps a key with one that is kept somewhere else, so that whoever has the directory of a role has nothing of it.
pub trait KeyWrap: Send + Sync {
    /// Wraps a key with the one that is active now.
    ///
    /// # Errors
    /// When there is none that can be used.
    fn wrap(&self, key: &[u8]) -> io::Result<Vec<u8>>;

    /// Gives back what was wrapped, with whichever key.
    ///
    /// # Errors
    /// When that key is not there, or what was wrapped is damaged.
    fn unwrap(&self, wrapped: &[u8]) -> io::Result<Vec<u8>>;

    /// Whether it was wrapped with the key that is active now.
    ///
    /// # Errors
    /// As the others.
    fn is_current(&self, wrapped: &[u8]) -> io::Result<bool>;
}

/// Seals and opens what a role keeps.
pub(super) struct Seal {
    key: LessSafeKey,
    random: SystemRandom,
    wrapping: Option<Wrapping>,
}

/// How the key is kept.
struct Wrapping {
    by: Arc<dyn KeyWrap>,
    path: PathBuf,
    key: [u8; KEY_LEN],
    /// What the file holds, without its mark.
    wrapped: Mutex<Vec<u8>>,
}

impl Seal {
    /// Takes up the key in a role's state directory, or makes one. One in the clear is not used where keys are wrapped.
    pub(super) fn open(state: &Path, by: Option<Arc<dyn KeyWrap>>) -> Result<Self, Error> {
        let path = state.join("plan.key");
        let random = SystemRandom::new();
        let found = match read_private(&path, LARGEST_KEY) {
            Ok(content) => Some(content),
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let Some(by) = by else {
            let key = match found {
                Some(content) => clear_key(&path, &content)?,
                None => {
                    let key = draw(&path, &random)?;
                    write_private(&path, hex::encode(key).as_bytes())?;
                    key
                }
            };
            return Self::new(&path, &key, None);
        };
        let wrapped = found.as_ref().and_then(|content| content.strip_prefix(WRAPPED));
        if found.is_some() && wrapped.is_none() {
            warn!(
                ?path,
                "the key in the clear, and what it seals, is not used where keys are wrapped"
            );
        }
        let failed = |source: io::Error| Error::File {
            action: "unwrap the key in",
            path: path.clone(),
            source,
        };
        let (key, wrapped) = match wrapped {
            Some(wrapped) => {
                let key = by.unwrap(wrapped).map_err(failed)?;
                let key = key.try_into();
                let key = key.map_err(|_| failed(io::Error::other("it has a wrong length")))?;
                (key, wrapped.to_vec())
            }
            None => {
                let key = draw(&path, &random)?;
                (key, Vec::new())
            }
        };
        let is_new = wrapped.is_empty();
        let wrapping = Wrapping {
            by,
            path: path.clone(),
            key,
            wrapped: Mutex::new(wrapped),
        };
        if is_new {
            wrapping.write()?;
        }
        Self::new(&path, &key, Some(wrapping))
    }

    fn new(path: &Path, key: &[u8; KEY_LEN], wrapping: Option<Wrapping>) -> Result<Self, Error> {
        let key =
            UnboundKey::new(&CHACHA20_POLY1305, key).map_err(|_| bad_key(path, "the key can't be used"))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            random: SystemRandom::new(),
            wrapping,
        })
    }

    /// Seals the content of a file. The name is authenticated too, so that files can't be exchanged for each other.
    pub(super) fn seal(&self, path: &Path, content: &[u8]) -> Result<Vec<u8>, Error> {
        let failed = |reason: &str| Error::File {
            action: "seal",
            path: path.to_owned(),
            source: io::Error::other(reason.to_owned()),
        };
        let mut nonce = [0; NONCE_LEN];
        self.random
            .fill(&mut nonce)
            .map_err(|_| failed("the operating system gave no random numbers"))?;
        let mut content = content.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(name_of(path).as_bytes()),
                &mut content,
            )
            .map_err(|_| failed("encryption failed"))?;
        Ok([MAGIC.as_slice(), &nonce, &content].concat())
    }

    /// Opens the content of a file.
    pub(super) fn unseal(&self, path: &Path, content: &[u8]) -> Result<Vec<u8>, String> {
        let sealed = content.strip_prefix(MAGIC).ok_or("it is in another format")?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or("it is too short")?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| "it is too short")?;
        let mut sealed = sealed.to_vec();
        let plain = self
            .key
            .open_in_place(nonce, Aad::from(name_of(path).as_bytes()), &mut sealed)
            .map_err(|_| "it is damaged, or sealed with another key")?;
        Ok(plain.to_vec())
    }

    /// Seals the content of a file beside the plan, where the key is not beside it.
    pub(super) fn protect<'c>(&self, path: &Path, content: &'c [u8]) -> Result<Cow<'c, [u8]>, Error> {
        match self.wrapping {
            Some(_) => self.seal(path, content).map(Cow::Owned),
            None => Ok(Cow::Borrowed(content)),
        }
    }

    /// Opens the content of such a file.
    pub(super) fn expose(&self, path: &Path, content: Vec<u8>) -> Result<Vec<u8>, String> {
        match self.wrapping {
            Some(_) => self.unseal(path, &content),
            None => Ok(content),
        }
    }

    /// Wraps the key anew each time that another key is active, until the shutdown begins.
    pub(super) async fn keep_wrapped(self: Arc<Self>, shutdown: Shutdown) {
        if self.wrapping.is_none() {
            return;
        }
        let mut problem = None;
        loop {
            let seal = Arc::clone(&self);
            let kept = tokio::task::spawn_blocking(move || seal.wrap_anew()).await;
            let found = match kept {
                Ok(kept) => kept.err().map(|error| error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            if found != problem {
                if let Some(problem) = &found {
                    error!(problem, "the key of the stored plan stays wrapped as it is");
                }
                problem = found;
            }
            if shutdown.or_begun(tokio::time::sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Wraps the key anew if another key is active.
    pub(super) fn wrap_anew(&self) -> Result<(), Error> {
        let Some(wrapping) = &self.wrapping else {
            return Ok(());
        };
        let is_current = wrapping.by.is_current(&wrapping.wrapped.lock());
        if is_current.map_err(|error| wrapping.failed(error))? {
            return Ok(());
        }
        wrapping.write()?;
        info!(path = ?wrapping.path, "the key of the stored plan is wrapped with another key");
        Ok(())
    }
}

impl Wrapping {
    fn failed(&self, source: io::Error) -> Error {
        Error::File {
            action: "wrap the key in",
            path: self.path.clone(),
            source,
        }
    }

    fn write(&self) -> Result<(), Error> {
        let mut known = self.wrapped.lock();
        let wrapped = self.by.wrap(&self.key).map_err(|error| self.failed(error))?;
        write_private(&self.path, &[WRAPPED.as_slice(), &wrapped].concat())?;
        *known = wrapped;
        Ok(())
    }
}

/// The key of a file that holds it in the clear.
fn clear_key(path: &Path, content: &[u8]) -> Result<[u8; KEY_LEN], Error> {
    if content.starts_with(WRAPPED) {
        let reason = "it is wrapped with an encryption key, and none was named: name the folder of keys, or remove the \
                      file, and the operator sends the plan anew";
        return Err(bad_key(path, reason));
    }
    let mut key = [0; KEY_LEN];
    hex::decode_to_slice(content.trim_ascii(), &mut key).map_err(|_| {
        let reason =
            "it is not a key of 64 hexadecimal digits: remove it, and the operator sends the plan anew";
        bad_key(path, reason)
    })?;
    Ok(key)
}

fn draw(path: &Path, random: &SystemRandom) -> Result<[u8; KEY_LEN], Error> {
    let mut key = [0; KEY_LEN];
    random
        .fill(&mut key)
        .map_err(|_| bad_key(path, "the operating system gave no random numbers"))?;
    Ok(key)
}

fn bad_key(path: &Path, reason: &str) -> Error {
    Error::File {
        action: "read",
        path: path.to_owned(),
        source: io::Error::other(reason.to_owned()),
    }
}

pub(super) fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
pub(in crate::session) mod tests {
    use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// Keys that exclusive-or is done with; the last one is active.
    #[derive(Default)]
    pub(in crate::session) struct Keys(Mutex<BTreeSet<u8>>);

    impl Keys {
        pub(in crate::session) fn of(keys: &[u8]) -> Arc<Self> {
            let made = Self::default();
            made.set(keys);
            Arc::new(made)
        }

        pub(in crate::session) fn set(&self, keys: &[u8]) {
            *self.0.lock() = keys.iter().copied().collect();
        }

        fn active(&self) -> io::Result<u8> {
            let last = self.0.lock().last().copied();
            last.ok_or_else(|| io::Error::other("no key is there"))
        }
    }

    impl KeyWrap for Keys {
        fn wrap(&self, key: &[u8]) -> io::Result<Vec<u8>> {
            let active = self.active()?;
            Ok([active]
                .into_iter()
                .chain(key.iter().map(|byte| byte ^ active))
                .collect())
        }

        fn unwrap(&self, wrapped: &[u8]) -> io::Result<Vec<u8>> {
            let key = wrapped.first().filter(|key| self.0.lock().contains(key));
            let key = key.ok_or_else(|| io::Error::other("key spring is not there"))?;
            Ok(wrapped.iter().skip(1).map(|byte| byte ^ key).collect())
        }

        fn is_current(&self, wrapped: &[u8]) -> io::Result<bool> {
            Ok(wrapped.first() == Some(&self.active()?))
        }
    }

    fn open(state: &Path, keys: Option<&Arc<Keys>>) -> Result<Seal, Error> {
        Seal::open(state, keys.map(|keys| Arc::clone(keys) as Arc<dyn KeyWrap>))
    }

    #[test]
    fn a_key_that_is_wrapped_is_not_in_its_file_and_opens_what_it_sealed() {
        let state = tempfile::tempdir().unwrap();
        let (path, file) = (state.path().join("plan.key"), Path::new("identity.pem"));
        let keys = Keys::of(&[5]);
        let seal = open(state.path(), Some(&keys)).unwrap();
        let sealed = seal.protect(file, b"private key").unwrap().into_owned();
        assert!(!sealed.windows(7).any(|window| window == b"private"));
        let content = fs::read(&path).unwrap();
        let key = seal.wrapping.as_ref().unwrap().key;
        assert!(!content.windows(KEY_LEN).any(|window| window == key));
        assert!(hex::decode(content.trim_ascii()).is_err());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = open(state.path(), Some(&keys)).unwrap();
        assert_eq!(again.expose(file, sealed.clone()).unwrap(), b"private key");
        // In another file, or not sealed at all, it is not believed.
        assert!(again.expose(Path::new("trust.pem"), sealed).is_err());
        assert!(again.expose(file, b"private key".to_vec()).is_err());
    }

    #[test]
    fn without_the_key_that_wraps_it_nothing_is_opened_or_written() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("plan.key");
        open(state.path(), Some(&Keys::of(&[5]))).unwrap();
        let before = fs::read(&path).unwrap();
        for (keys, cause) in [
            (Some(&Keys::of(&[6])), "key spring is not there"),
            (Some(&Keys::of(&[])), "key spring is not there"),
            (None, "name the folder of keys"),
        ] {
            let Err(Error::File { source, .. }) = open(state.path(), keys) else {
                panic!("{cause}")
            };
            assert!(source.to_string().contains(cause), "{source}");
            assert_eq!(fs::read(&path).unwrap(), before);
        }
    }

    #[test]
    fn another_key_wraps_it_and_the_old_one_can_go() {
        let state = tempfile::tempdir().unwrap();
        let file = Path::new("a.sealed");
        let keys = Keys::of(&[5]);
        let seal = open(state.path(), Some(&keys)).unwrap();
        let sealed = seal.seal(file, b"plan").unwrap();
        keys.set(&[5, 6]);
        seal.wrap_anew().unwrap();
        keys.set(&[6]);
        let again = open(state.path(), Some(&keys)).unwrap();
        assert_eq!(again.unseal(file, &sealed).unwrap(), b"plan");
        // What can't be used changes nothing.
        let before = fs::read(state.path().join("plan.key")).unwrap();
        keys.set(&[]);
        assert!(again.wrap_anew().is_err());
        assert_eq!(fs::read(state.path().join("plan.key")).unwrap(), before);
    }

    #[test]
    fn a_key_in_the_clear_is_replaced_where_keys_are_wrapped() {
        let state = tempfile::tempdir().unwrap();
        let file = Path::new("a.sealed");
        let sealed = open(state.path(), None).unwrap().seal(file, b"plan").unwrap();
        let clear = fs::read(state.path().join("plan.key")).unwrap();
        let seal = open(state.path(), Some(&Keys::of(&[5]))).unwrap();
        assert!(seal.unseal(file, &sealed).is_err());
        assert_ne!(
            seal.wrapping.as_ref().unwrap().key,
            hex::decode(clear).unwrap()[..]
        );
    }
}
