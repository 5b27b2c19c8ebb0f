//! The certificate of a role: kept in files, got by enrolment, renewed over the session.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use foreshore_tls::{
    CertificateChain, Credentials, Identity, KeyPair, RoleIdentity, TrustBundle, read_bounded, read_private,
    write_atomic, write_private,
};
use jiff::Timestamp;
use tokio::time::timeout;
use tonic::{Code, transport::Channel};
use tracing::{info, warn};

use super::{Error, seal::Seal};
use crate::{
    enroll::CredentialSource,
    proto::{self, control_client::ControlClient},
    session::{LARGEST_MESSAGE, wire},
};

/// Key and chain of the role, mode 0600.
const IDENTITY_FILE: &str = "identity.pem";
/// The roots that the role trusts.
const TRUST_FILE: &str = "trust.pem";
/// The key of an enrolment that has not been answered yet, mode 0600.
const PENDING_FILE: &str = "enroll.pem";

/// None of the files comes near this size, in bytes.
const LARGEST_FILE: u64 = 1024 * 1024;

/// How long an enrolment may take; a `TokenReview` is in it.
const ENROLL_TIMEOUT: Duration = Duration::from_secs(20);

/// The certificate of this role and what is needed to get one.
pub(super) struct RoleCredentials {
    directory: PathBuf,
    identity: Identity,
    source: Arc<dyn CredentialSource>,
    seal: Arc<Seal>,
    /// Set when the operator refused the certificate, although it looks good from here.
    refused: bool,
}

impl RoleCredentials {
    /// Takes up what is stored. `trust` are the roots that the role was started with, `expected` who it was started
    /// as: a stored certificate for someone else is not used.
    pub(super) fn open(
        directory: &Path,
        trust: Option<TrustBundle>,
        expected: Option<&RoleIdentity>,
        source: Arc<dyn CredentialSource>,
        seal: Arc<Seal>,
    ) -> Result<Self, Error> {
        let stored = load_trust(&directory.join(TRUST_FILE), &seal)?;
        // Both: a rotation may have passed since the role was started with its roots, or since it stored its own. The
        // operator's word in the session then replaces them.
        let roots = [trust, stored]
            .into_iter()
            .flatten()
            .flat_map(|bundle| bundle.roots().to_vec());
        let bundle = TrustBundle::new(roots).map_err(|error| match error {
            foreshore_tls::Error::EmptyBundle => Error::NoTrust,
            other => Error::Tls(other),
        })?;
        let identity = Identity::anonymous(bundle)?;
        if let Some(credentials) = load_credentials(&directory.join(IDENTITY_FILE), &seal)? {
            let role = credentials.chain().role();
            if expected.is_some() && role != expected {
                warn!(
                    ?role,
                    ?expected,
                    "stored certificate is for another role and is not used"
                );
            } else {
                identity.replace(&credentials)?;
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            identity,
            source,
            seal,
            refused: false,
        })
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the role has to enroll before it can have a session.
    pub(super) fn must_enroll(&self) -> bool {
        self.refused || !self.is_valid()
    }

    fn is_valid(&self) -> bool {
        self.identity
            .chain()
            .is_some_and(|chain| chain.validity().not_after > Timestamp::now())
    }

    /// Takes note that the operator refused the certificate.
    pub(super) fn set_refused(&mut self) {
        self.refused = true;
    }

    /// Enrolls over a connection without certificate.
    pub(super) async fn enroll(&mut self, channel: Channel) -> Result<(), Error> {
        // After one refused enrolment the certificate is tried again: the address may have been a wrong one.
        self.refused = false;
        let key = self.pending_key().await?;
        let credential = self.source.credential().await?;
        let request = proto::EnrollRequest {
            credential,
            request: key.request()?.into(),
        };
        let mut client = ControlClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
        let answer = timeout(ENROLL_TIMEOUT, client.enroll(request))
            .await
            .map_err(|_| Error::Enroll {
                code: Code::DeadlineExceeded,
                reason: "no answer in time".to_owned(),
            })?
            .map_err(|status| Error::Enroll {
                code: status.code(),
                reason: status.message().to_owned(),
            })?;
        let (chain, bundle) =
            wire::from_certificate(answer.into_inner().certificate).map_err(Error::protocol)?;
        self.adopt(chain, bundle, &key).await?;
        remove_blocking(self.directory.join(PENDING_FILE)).await;
        if let Some(role) = self.identity.role() {
            info!(%role, "enrolled");
        }
        Ok(())
    }

    /// The key is stored before it is used, so that an enrolment whose answer was lost can be asked for again: a
    /// one-time credential belongs to the first key that showed it.
    async fn pending_key(&self) -> Result<KeyPair, Error> {
        let (path, seal) = (self.directory.join(PENDING_FILE), Arc::clone(&self.seal));
        blocking(move || {
            match read_private(&path, LARGEST_FILE) {
                Ok(content) => {
                    let key = seal.expose(&path, content).and_then(|text| {
                        KeyPair::from_pem(&String::from_utf8_lossy(&text)).map_err(|error| error.to_string())
                    });
                    match key {
                        Ok(key) => return Ok(key),
                        Err(error) => warn!(path = %path.display(), error, "pending key can't be used"),
                    }
                }
                Err(foreshore_tls::Error::File { source, .. })
                    if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let key = KeyPair::generate()?;
            write_private(&path, &seal.protect(&path, key.to_pem().as_bytes())?)?;
            Ok(key)
        })
        .await
    }

    /// Stores a new certificate, and uses it from the next connection on.
    pub(super) async fn adopt(
        &mut self,
        chain: CertificateChain,
        bundle: TrustBundle,
        key: &KeyPair,
    ) -> Result<(), Error> {
        let credentials = Credentials::new(chain, key)?;
        bundle
            .identify(credentials.chain().certificates())
            .map_err(Error::protocol)?;
        self.trust(bundle).await?;
        self.identity.replace(&credentials)?;
        let (path, text) = (self.directory.join(IDENTITY_FILE), credentials.to_pem());
        let seal = Arc::clone(&self.seal);
        let stored = blocking(move || write_private(&path, &seal.protect(&path, text.as_bytes())?)).await;
        self.refused = false;
        stored
    }

    /// Stores a new bundle, and uses it from the next connection on.
    pub(super) async fn trust(&mut self, bundle: TrustBundle) -> Result<(), Error> {
        // Stored also where it is the present one: that may be the one of the start.
        if self.identity.bundle() != bundle {
            self.identity.set_bundle(bundle.clone())?;
        }
        let (path, seal) = (self.directory.join(TRUST_FILE), Arc::clone(&self.seal));
        blocking(move || write_atomic(&path, &seal.protect(&path, bundle.to_pem().as_bytes())?)).await
    }
}

fn load_trust(path: &Path, seal: &Seal) -> Result<Option<TrustBundle>, Error> {
    match read_bounded(path, LARGEST_FILE) {
        Ok(content) => {
            let text = seal.expose(path, content);
            let bundle = text
                .and_then(|text| TrustBundle::from_pem(&text).map_err(|error| error.to_string()))
                .inspect_err(
                    |error| warn!(path = %path.display(), error, "stored trust bundle can't be used"),
                );
            Ok(bundle.ok())
        }
        Err(foreshore_tls::Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn load_credentials(path: &Path, seal: &Seal) -> Result<Option<Credentials>, Error> {
    match read_private(path, LARGEST_FILE) {
        Ok(content) => {
            let text = seal.expose(path, content);
            let credentials = text
                .and_then(|text| Credentials::from_pem(&text, &text).map_err(|error| error.to_string()))
                .inspect_err(
                    |error| warn!(path = %path.display(), error, "stored certificate can't be used"),
                );
            Ok(credentials.ok())
        }
        Err(foreshore_tls::Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Runs file access on a thread that may block.
async fn blocking<T: Send + 'static>(
    access: impl FnOnce() -> Result<T, foreshore_tls::Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(access).await {
        Ok(result) => result.map_err(Error::Tls),
        Err(error) => Err(Error::protocol(error)),
    }
}

async fn remove_blocking(path: PathBuf) {
    // A key that stays is used for the next enrolment.
    drop(tokio::task::spawn_blocking(move || std::fs::remove_file(path)).await);
}
