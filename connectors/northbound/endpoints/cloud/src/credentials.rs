//! The edge's key and certificate: enrolled with the join token once, renewed from then on.

use std::{future::pending, path::Path, time::Duration};

use foreshore_control::transport::{self, ConnectOptions, channel};
use foreshore_edgelink::{Refusal, possession, proto};
use foreshore_northbound::SinkError;
use foreshore_runtime::Backoff;
use foreshore_tls::{
    CertificateChain, CertificateDer, Credentials, Identity, KeyPair, TrustBundle, create_private_directory,
    read_private, write_private,
};
use jiff::Timestamp;
use proto::provisioning_client::ProvisioningClient;
use tracing::{info, warn};

use crate::settings::Settings;

/// Largest of our own files.
const MAX_FILE: u64 = 1 << 20;

/// What the edge proves itself with.
pub(crate) struct EdgeCredentials {
    key: KeyPair,
    pub(crate) identity: Identity,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file system, or a damaged file.
    #[error("key and certificate of the edge: {0}")]
    Store(#[from] foreshore_tls::Error),
    /// No connection.
    #[error(transparent)]
    Transport(#[from] transport::Error),
    /// The cloud endpoint refused.
    #[error("the cloud endpoint refused: {}", .0.message())]
    Refused(#[source] Box<tonic::Status>),
}

/// What may help before the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Time.
    Wait,
    /// A new certificate: the cloud does not take the one that we show.
    Renew,
    /// The join token: the cloud does not know this edge, or its key.
    Enroll,
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

impl Error {
    /// What may help before the next try.
    pub(crate) fn remedy(&self) -> Remedy {
        let Self::Refused(status) = self else {
            return Remedy::Wait;
        };
        match Refusal::of(status) {
            Some(Refusal::EdgeUnknown | Refusal::KeyMismatch | Refusal::GraceOver) => Remedy::Enroll,
            _ => Remedy::Wait,
        }
    }

    /// What this means for the sinks.
    pub(crate) fn to_sink_error(&self) -> SinkError {
        let cause = self.to_string();
        match self {
            Self::Store(_) => SinkError::fatal("StorageFailed", cause),
            Self::Transport(transport::Error::Refused { .. }) => {
                SinkError::fatal("CertificateUntrusted", cause)
            }
            Self::Transport(_) => SinkError::retryable("Unreachable", cause),
            Self::Refused(status) => match Refusal::of(status) {
                Some(refusal) if !refusal.is_transient() => SinkError::fatal(refusal.as_str(), cause),
                Some(refusal) => SinkError::retryable(refusal.as_str(), cause),
                None => SinkError::retryable("Unreachable", cause),
            },
        }
    }
}

impl EdgeCredentials {
    /// Loads key and certificate, or makes a key; the certificate may be missing still.
    pub(crate) fn open(settings: &Settings) -> Result<Self, Error> {
        let directory = &settings.directory;
        create_private_directory(directory)?;
        let key = match read(&directory.join("key.pem"))? {
            Some(pem) => KeyPair::from_pem(&String::from_utf8_lossy(&pem))?,
            None => {
                let key = KeyPair::generate()?;
                write_private(&directory.join("key.pem"), key.to_pem().as_bytes())?;
                key
            }
        };
        let identity = Identity::anonymous(settings.trust.clone())?;
        if let Some(pem) = read(&directory.join("bundle.pem"))? {
            identity.set_bundle(both(settings, &TrustBundle::from_pem(&pem)?)?)?;
        }
        if let Some(pem) = read(&directory.join("chain.pem"))? {
            identity.replace(&Credentials::new(CertificateChain::from_pem(&pem)?, &key)?)?;
        }
        Ok(Self { key, identity })
    }

    /// When the certificate is to be renewed; `None` when there is none.
    pub(crate) fn renew_at(&self) -> Option<Timestamp> {
        self.identity.chain().map(|chain| chain.validity().renew_at())
    }

    /// Makes sure that there is a certificate that is valid for a while.
    pub(crate) async fn ensure(&self, settings: &Settings, now: Timestamp) -> Result<(), Error> {
        let Some(chain) = self.identity.chain() else {
            return self.enroll(settings).await;
        };
        if now < chain.validity().renew_at() {
            return Ok(());
        }
        if chain.validity().contains(now) {
            self.renew(settings).await
        } else {
            warn!(not_after = %chain.validity().not_after, "certificate of the edge has expired, renewing it by its key");
            self.renew_by_possession(settings).await
        }
    }

    /// Renews the certificate whenever that is due. Never returns; a renewal that fails is tried again, as long as the
    /// certificate lasts and beyond.
    pub(crate) async fn keep_renewed(&self, settings: &Settings) -> std::convert::Infallible {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            until(self.renew_at()).await;
            match self.ensure(settings, Timestamp::now()).await {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    warn!(%error, "certificate of the edge not renewed");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// Asks for a certificate with the join token.
    pub(crate) async fn enroll(&self, settings: &Settings) -> Result<(), Error> {
        let anonymous = Identity::anonymous(self.identity.bundle())?;
        let mut client = self.client(settings, &anonymous).await?;
        let request = proto::EnrollRequest {
            join_token: settings.join_token.clone(),
            edge: settings.edge.clone(),
            request: self.key.request()?.into(),
        };
        let credentials = client.enroll(request).await?.into_inner();
        self.take(settings, credentials)?;
        info!(edge = settings.edge, "enrolled at the cloud endpoint");
        Ok(())
    }

    /// Renews over mutual TLS, with the certificate that is valid still.
    async fn renew(&self, settings: &Settings) -> Result<(), Error> {
        let mut client = self.client(settings, &self.identity).await?;
        let request = proto::RenewRequest {
            request: self.key.request()?.into(),
            possession: None,
        };
        let credentials = client.renew(request).await?.into_inner();
        self.take(settings, credentials)?;
        info!(edge = settings.edge, "certificate of the edge renewed");
        Ok(())
    }

    /// Renews with a proof that this edge holds the key, for a certificate that has expired or is not taken.
    pub(crate) async fn renew_by_possession(&self, settings: &Settings) -> Result<(), Error> {
        let anonymous = Identity::anonymous(self.identity.bundle())?;
        let mut client = self.client(settings, &anonymous).await?;
        let challenge = client
            .challenge(proto::ChallengeRequest {
                edge: settings.edge.clone(),
            })
            .await?;
        let request = self.key.request()?;
        let nonce = challenge.into_inner().nonce;
        let proof = possession::prove(&self.key, &settings.edge, &nonce, &request)
            .map_err(|error| Error::from(tonic::Status::internal(error.to_string())))?;
        let request = proto::RenewRequest {
            request: request.into(),
            possession: Some(proof),
        };
        let credentials = client.renew(request).await?.into_inner();
        self.take(settings, credentials)
    }

    async fn client(
        &self,
        settings: &Settings,
        identity: &Identity,
    ) -> Result<ProvisioningClient<tonic::transport::Channel>, Error> {
        let options = ConnectOptions::default();
        let channel = channel(
            &settings.address,
            identity,
            settings.server_name.clone(),
            &options,
        )
        .await?;
        Ok(ProvisioningClient::new(channel))
    }

    /// Stores a certificate before it is used.
    fn take(&self, settings: &Settings, credentials: proto::Credentials) -> Result<(), Error> {
        let der = |certificates: Vec<bytes::Bytes>| {
            certificates
                .into_iter()
                .map(|der| CertificateDer::from(der.to_vec()))
                .collect::<Vec<_>>()
        };
        let chain = CertificateChain::from_der(der(credentials.chain))?;
        let bundle = TrustBundle::new(der(credentials.bundle))?;
        let usable = Credentials::new(chain.clone(), &self.key)?;
        write_private(&settings.directory.join("bundle.pem"), bundle.to_pem().as_bytes())?;
        write_private(&settings.directory.join("chain.pem"), chain.to_pem().as_bytes())?;
        self.identity.set_bundle(both(settings, &bundle)?)?;
        self.identity.replace(&usable)?;
        Ok(())
    }
}

/// The roots that the cloud told, and those of the settings: a server may show a certificate of another authority than
/// its own, and one that was set up anew has another root.
fn both(settings: &Settings, told: &TrustBundle) -> Result<TrustBundle, foreshore_tls::Error> {
    TrustBundle::new(settings.trust.roots().iter().chain(told.roots()).cloned())
}

/// Resolves at a time of the wall clock; never without one.
async fn until(time: Option<Timestamp>) {
    let Some(time) = time else { return pending().await };
    loop {
        let left = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default();
        if left.is_zero() {
            return;
        }
        // Timers stand still while a machine sleeps.
        tokio::time::sleep(left.min(Duration::from_secs(60))).await;
    }
}

/// Reads one of our own files; `None` when it is not there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match path.try_exists() {
        Ok(false) => Ok(None),
        Ok(true) | Err(_) => Ok(Some(read_private(path, MAX_FILE)?)),
    }
}
