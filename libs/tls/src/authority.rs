//! The own certificate authority and its ordered rotation.

mod state;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::sync::watch;

use crate::{
    CertificateChain, CertificateRequest, Credentials, Error, Fingerprint, KeyPair, RoleIdentity,
    TrustBundle,
    chain::parse,
    files::{create_private_directory, read_private, write_atomic, write_private},
};
use state::{Root, State, Subject};
pub use state::{RootState, RootStatus};

/// File with the roots and their keys, mode 0600.
const STATE_FILE: &str = "authority.json";

/// File with the roots alone, for clients outside: what `mosquitto_sub --cafile` takes.
const BUNDLE_FILE: &str = "ca.crt";

/// The state file holds three roots at most in practice; this is far beyond it, in bytes.
const LARGEST_STATE: u64 = 1024 * 1024;

/// How an authority issues.
#[derive(Debug, Clone)]
pub struct AuthorityOptions {
    /// How long a root is valid. Default: ten years.
    pub root_lifetime: Duration,
    /// How long a leaf is valid; never beyond its root. Default: 24 hours.
    pub leaf_lifetime: Duration,
    /// How far before its issue a certificate begins to be valid, for peers whose clock is behind; at most a
    /// tenth of its lifetime. Default: five minutes.
    pub clock_skew: Duration,
    /// How long a retired root stays in the bundle, for clients outside that fetch it by hand. Default: 30 days.
    pub overlap: Duration,
    /// Who makes the roots that sign. Default: this authority.
    pub roots: Roots,
}

/// Who makes the roots of an authority.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Roots {
    /// It makes them itself, and a new one when the present one has used up two thirds of its life.
    #[default]
    Own,
    /// Somebody else does, such as cert-manager, and hands them to [`CertificateAuthority::offer`].
    Given,
}

impl Default for AuthorityOptions {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            root_lifetime: DAY * 3652,
            leaf_lifetime: DAY,
            clock_skew: Duration::from_secs(5 * 60),
            overlap: DAY * 30,
            roots: Roots::Own,
        }
    }
}

/// What others follow of an authority: a change of either has to reach every role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityView {
    /// The roots to trust.
    pub bundle: TrustBundle,
    /// SHA-256 of the root certificate that signs leaves now.
    pub issuer: Fingerprint,
}

/// An own certificate authority: one root that signs, and others on their way in or out.
///
/// Rotation keeps an order in which no peer ever meets a certificate that it can't judge:
/// 1. [`begin_rotation`](Self::begin_rotation) makes a new root and puts it into the bundle; the old one still
///    signs.
/// 2. When every role has acknowledged that bundle, [`complete_rotation`](Self::complete_rotation) lets the
///    new root sign; roles renew their leaves. The old root's key is destroyed, its certificate stays in the
///    bundle for [`AuthorityOptions::overlap`].
/// 3. [`prune`](Self::prune) drops retired roots whose time is over.
///
/// Each step is kept before it takes effect, on disk or elsewhere. That blocks: call the changing functions from a thread
/// that may.
#[derive(Debug)]
pub struct CertificateAuthority {
    options: AuthorityOptions,
    keeper: Keeper,
    state: ArcSwap<State>,
    /// Held while the state is changed, so that two changes do not overwrite each other.
    change: Mutex<()>,
    view: watch::Sender<AuthorityView>,
}

impl CertificateAuthority {
    /// Makes a new authority that lives in memory.
    ///
    /// # Errors
    /// [`Error::Key`] when the operating system has no random numbers.
    pub fn create(options: AuthorityOptions, now: Timestamp) -> Result<Self, Error> {
        let root = Root::create(&options, RootState::Issuing, now)?;
        Self::with_state(options, Keeper(None), State { roots: vec![root] })
    }

    /// Makes an authority that lives in memory and signs with a root that somebody else made: its certificate, and its key
    /// as PKCS #8, both in PEM. An intermediate is a root here: its certificate is what roles trust.
    ///
    /// # Errors
    /// As [`offer`](Self::offer).
    pub fn given(options: AuthorityOptions, certificate: &str, key: &str) -> Result<Self, Error> {
        let root = Root::given(certificate, key, RootState::Issuing)?;
        Self::with_state(options, Keeper(None), State { roots: vec![root] })
    }

    /// Opens the authority in a directory, making both when they do not exist.
    ///
    /// The directory gets mode 0700, `authority.json` in it (roots and keys) 0600; `ca.crt` beside it is the
    /// bundle, for clients outside.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::FileMode`] when others may read the keys, [`Error::Authority`] when the file
    /// makes no sense: it is never replaced, since every role's trust hangs on it.
    pub fn open(directory: &Path, options: AuthorityOptions, now: Timestamp) -> Result<Self, Error> {
        create_private_directory(directory)?;
        let state = match read_private(&directory.join(STATE_FILE), LARGEST_STATE) {
            Ok(content) => State::from_json(&content)?,
            Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => State {
                roots: vec![Root::create(&options, RootState::Issuing, now)?],
            },
            Err(error) => return Err(error),
        };
        let directory = directory.to_owned();
        let keep = move |state: &str, bundle: &TrustBundle| {
            write_private(&directory.join(STATE_FILE), state.as_bytes())?;
            write_atomic(&directory.join(BUNDLE_FILE), bundle.to_pem().as_bytes())
        };
        let authority = Self::with_state(options, Keeper(Some(Box::new(keep))), state)?;
        authority.persist(&authority.state.load())?;
        Ok(authority)
    }

    /// Takes an authority from the text that [`to_json`](Self::to_json) gave, and hands it to `keep` before a change of
    /// it takes effect: as JSON, a secret, and the bundle, for clients outside.
    ///
    /// # Errors
    /// [`Error::Authority`] when the text makes no sense.
    pub fn with_keeper(
        content: &[u8],
        options: AuthorityOptions,
        keep: impl Fn(&str, &TrustBundle) -> Result<(), String> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let keep = move |state: &str, bundle: &TrustBundle| keep(state, bundle).map_err(Error::authority);
        Self::with_state(options, Keeper(Some(Box::new(keep))), State::from_json(content)?)
    }

    fn with_state(options: AuthorityOptions, keeper: Keeper, state: State) -> Result<Self, Error> {
        let view = watch::Sender::new(state.view()?);
        Ok(Self {
            options,
            keeper,
            state: ArcSwap::from_pointee(state),
            change: Mutex::new(()),
            view,
        })
    }

    /// Roots and keys as JSON: a secret.
    ///
    /// # Errors
    /// [`Error::Authority`] when it can't be written as JSON.
    pub fn to_json(&self) -> Result<String, Error> {
        self.state.load().to_json()
    }

    /// The roots to trust: the one that signs, the next one, and retired ones until their time is over.
    #[must_use]
    pub fn bundle(&self) -> TrustBundle {
        self.view.borrow().bundle.clone()
    }

    /// Follows the bundle and the signing root.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<AuthorityView> {
        self.view.subscribe()
    }

    /// Every root, for status and for the controller that drives rotation.
    #[must_use]
    pub fn roots(&self) -> Vec<RootStatus> {
        self.state.load().roots.iter().map(Root::status).collect()
    }

    /// Issues a certificate for the key of a request.
    ///
    /// `identity` is what the caller vouches for; `names` are the DNS names and addresses of a server and make
    /// the certificate usable as one.
    ///
    /// # Errors
    /// [`Error::RootNotValid`] when the root has expired or the clock is before it, [`Error::Authority`].
    pub fn issue(
        &self,
        request: &CertificateRequest,
        identity: &RoleIdentity,
        names: &[ServerName<'static>],
        now: Timestamp,
    ) -> Result<CertificateChain, Error> {
        let subject = Subject {
            key: request.key(),
            identity,
            names,
        };
        self.state.load().issuing()?.issue(&self.options, &subject, now)
    }

    /// Makes a key and issues a certificate for it, for a role in this very process.
    ///
    /// # Errors
    /// As [`issue`](Self::issue), and [`Error::Key`].
    pub fn issue_credentials(
        &self,
        identity: &RoleIdentity,
        names: &[ServerName<'static>],
        now: Timestamp,
    ) -> Result<Credentials, Error> {
        let key = KeyPair::generate()?;
        let request = CertificateRequest::from_der(&key.request()?)?;
        Credentials::new(self.issue(&request, identity, names, now)?, &key)
    }

    /// Whether the root that signs now signed this certificate; if not, its owner should renew it.
    #[must_use]
    pub fn issued_by_current(&self, leaf: &CertificateDer<'_>) -> bool {
        let state = self.state.load();
        let Ok(root) = state.issuing() else { return false };
        match (parse(leaf), parse(root.certificate())) {
            // Roots that somebody else made may have one name and different keys.
            (Ok(leaf), Ok(root)) => {
                leaf.issuer().as_raw() == root.subject().as_raw()
                    && leaf.verify_signature(Some(root.public_key())).is_ok()
            }
            _ => false,
        }
    }

    /// Puts a new root into the bundle; the present one goes on signing. Returns its fingerprint. A rotation
    /// that has begun already is continued, not begun anew.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::File`].
    pub fn begin_rotation(&self, now: Timestamp) -> Result<Fingerprint, Error> {
        self.change(|state| {
            if let Some(next) = state.roots.iter().find(|root| root.state() == RootState::Next) {
                return Ok(next.fingerprint());
            }
            let root = Root::create(&self.options, RootState::Next, now)?;
            let fingerprint = root.fingerprint();
            state.roots.push(root);
            Ok(fingerprint)
        })
    }

    /// Takes a root that somebody else made as the next one; tells whether it is new. One that was offered before and does
    /// not sign yet gives way.
    ///
    /// # Errors
    /// [`Error::Certificate`], [`Error::Key`] or [`Error::Pem`] when it is none that can sign, [`Error::File`].
    pub fn offer(&self, certificate: &str, key: &str) -> Result<bool, Error> {
        let root = Root::given(certificate, key, RootState::Next)?;
        let fingerprint = root.fingerprint();
        let state = self.state.load();
        let known = state
            .roots
            .iter()
            .find(|known| known.fingerprint() == fingerprint);
        match known.map(Root::state) {
            Some(RootState::Next | RootState::Issuing) => return Ok(false),
            // Its key was destroyed; that its owner went back to it is no reason to trust it less.
            Some(RootState::Retired { .. }) | None => {}
        }
        self.change(|state| {
            state
                .roots
                .retain(|other| other.state() != RootState::Next && other.fingerprint() != fingerprint);
            state.roots.push(root.clone());
            Ok(true)
        })
    }

    /// Lets the new root sign and retires the old one. To be called once every role has acknowledged the bundle
    /// that holds the new root: one that has not will refuse the new leaves.
    ///
    /// # Errors
    /// [`Error::Authority`] when no rotation has begun, [`Error::File`].
    pub fn complete_rotation(&self, now: Timestamp) -> Result<(), Error> {
        let until = now.checked_add(self.options.overlap).map_err(Error::authority)?;
        self.change(|state| state.switch(until))
    }

    /// Drops retired roots whose time is over and returns how many there were.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn prune(&self, now: Timestamp) -> Result<usize, Error> {
        if self.state.load().expired_roots(now) == 0 {
            return Ok(0);
        }
        self.change(|state| {
            let before = state.roots.len();
            state.roots.retain(|root| !root.is_over(now));
            Ok(before - state.roots.len())
        })
    }

    /// Whether the signing root has used up two thirds of its life and a rotation should begin.
    #[must_use]
    pub fn rotation_is_due(&self, now: Timestamp) -> bool {
        let state = self.state.load();
        self.options.roots == Roots::Own
            && state
                .issuing()
                .is_ok_and(|root| root.validity().renew_at() <= now)
    }

    /// Changes a copy, stores it, and only then lets it take effect.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let guard: MutexGuard<'_, ()> = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = State::clone(&self.state.load());
        let result = change(&mut state)?;
        let view = state.view()?;
        self.persist(&state)?;
        self.state.store(Arc::new(state));
        self.view.send_if_modified(|present| {
            let changed = *present != view;
            *present = view;
            changed
        });
        drop(guard);
        Ok(result)
    }

    fn persist(&self, state: &State) -> Result<(), Error> {
        match &self.keeper.0 {
            Some(keep) => keep(&state.to_json()?, &state.view()?.bundle),
            None => Ok(()),
        }
    }
}

/// What keeps an authority over restarts; `None` for one that lives in memory.
struct Keeper(Option<Box<Keep>>);

type Keep = dyn Fn(&str, &TrustBundle) -> Result<(), Error> + Send + Sync;

impl fmt::Debug for Keeper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Keeper").field(&self.0.is_some()).finish()
    }
}
