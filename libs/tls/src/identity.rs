//! The certificate and the trust of one process, exchangeable while connections live.

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use rustls::{
    ClientConfig, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    CertificateAuthority, CertificateChain, Credentials, Error, RoleIdentity, TrustBundle, provider,
    verify::{PresentClientVerifier, PresentServerVerifier, Verifiers},
};

/// What a server asks of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// A certificate that the bundle verifies; without one there is no connection.
    Required,
    /// A certificate that the bundle verifies, or none; a bad one ends the handshake.
    Optional,
    /// None is asked for.
    None,
}

/// The certificate and the trust bundle of one process.
///
/// Cheap to clone; all clones see a change at once. Configurations made from it read both at each handshake:
/// [`replace`](Self::replace) and [`set_bundle`](Self::set_bundle) take effect for the next connection and
/// leave the present ones alone.
#[derive(Debug, Clone)]
pub struct Identity {
    present: Arc<Present>,
}

/// What is in force at this moment.
#[derive(Debug)]
pub(crate) struct Present {
    certificate: ArcSwapOption<Held>,
    trust: ArcSwap<Trust>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct Held {
    key: Arc<CertifiedKey>,
    chain: CertificateChain,
}

#[derive(Debug)]
struct Trust {
    bundle: TrustBundle,
    verifiers: Arc<Verifiers>,
}

impl Identity {
    /// An identity with a certificate.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::Certificate`] when the credentials or the bundle can't be used.
    pub fn new(credentials: &Credentials, bundle: TrustBundle) -> Result<Self, Error> {
        let identity = Self::anonymous(bundle)?;
        identity.replace(credentials)?;
        Ok(identity)
    }

    /// An identity without a certificate: a client that is about to enroll.
    ///
    /// # Errors
    /// [`Error::Certificate`] when the bundle can't be used.
    pub fn anonymous(bundle: TrustBundle) -> Result<Self, Error> {
        let trust = Trust::new(bundle)?;
        let present = Present {
            certificate: ArcSwapOption::empty(),
            trust: ArcSwap::from_pointee(trust),
            changes: watch::Sender::new(0),
        };
        Ok(Self {
            present: Arc::new(present),
        })
    }

    /// Presents another certificate from the next handshake on.
    ///
    /// # Errors
    /// [`Error::Key`] when the key can't be used; the present certificate stays.
    pub fn replace(&self, credentials: &Credentials) -> Result<(), Error> {
        let held = Held {
            key: Arc::new(credentials.certified_key()?),
            chain: credentials.chain().clone(),
        };
        self.present.certificate.store(Some(Arc::new(held)));
        self.present.changes.send_modify(|number| *number += 1);
        Ok(())
    }

    /// Trusts another set of roots from the next handshake on.
    ///
    /// # Errors
    /// [`Error::Certificate`] when the bundle can't be used; the present one stays.
    pub fn set_bundle(&self, bundle: TrustBundle) -> Result<(), Error> {
        self.present.trust.store(Arc::new(Trust::new(bundle)?));
        self.present.changes.send_modify(|number| *number += 1);
        Ok(())
    }

    /// The certificate presented now.
    #[must_use]
    pub fn chain(&self) -> Option<CertificateChain> {
        self.present
            .certificate
            .load()
            .as_ref()
            .map(|held| held.chain.clone())
    }

    /// The role that the present certificate names.
    #[must_use]
    pub fn role(&self) -> Option<RoleIdentity> {
        self.present
            .certificate
            .load()
            .as_ref()
            .and_then(|held| held.chain.role().cloned())
    }

    /// The roots trusted now.
    #[must_use]
    pub fn bundle(&self) -> TrustBundle {
        self.present.trust.load().bundle.clone()
    }

    /// Whether the lists of the present bundle revoke a client's verified chain, leaf first, that was let in before.
    #[must_use]
    pub fn revokes(&self, chain: &[CertificateDer<'_>]) -> bool {
        let trust = self.present.trust.load();
        trust.bundle.revoked().may_revoke(chain) && trust.verifiers.is_revoked(chain)
    }

    /// Counts changes of certificate or bundle.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.present.changes.subscribe()
    }

    /// A server's configuration, for TLS 1.2 and 1.3, without application protocols.
    ///
    /// # Errors
    /// [`Error::Tls`] when the cryptography provider lacks what TLS needs.
    pub fn server_config(&self, client_auth: ClientAuth) -> Result<ServerConfig, Error> {
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match client_auth {
            ClientAuth::None => builder.with_no_client_auth(),
            ClientAuth::Required | ClientAuth::Optional => {
                builder.with_client_cert_verifier(Arc::new(PresentClientVerifier {
                    present: Arc::clone(&self.present),
                    provider,
                    mandatory: client_auth == ClientAuth::Required,
                }))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::clone(&self.present) as Arc<dyn ResolvesServerCert>);
        // A resumed session is not verified anew: a certificate that has expired since, or whose root has left
        // the bundle, would go on being accepted.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// A client's configuration, for TLS 1.2 and 1.3, without application protocols. It verifies the server's
    /// chain, validity and name, and presents the certificate if there is one.
    ///
    /// # Errors
    /// [`Error::Tls`] when the cryptography provider lacks what TLS needs.
    pub fn client_config(&self) -> Result<ClientConfig, Error> {
        let provider = provider();
        let verifier = PresentServerVerifier {
            present: Arc::clone(&self.present),
            provider: Arc::clone(&provider),
        };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            // "Dangerous" is the name of every verifier of one's own; this one asks that of rustls.
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::clone(&self.present) as Arc<dyn ResolvesClientCert>);
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// Keeps the certificate and the bundle of a role that lives beside its authority fresh: the operator's own.
    /// Never returns; drop it to end it.
    ///
    /// A failed renewal is logged and tried again; the present certificate stays in use meanwhile.
    pub async fn keep_fresh(
        &self,
        authority: &CertificateAuthority,
        role: &RoleIdentity,
        names: &[ServerName<'static>],
    ) {
        const RETRY: Duration = Duration::from_secs(10);
        let mut view = authority.subscribe();
        loop {
            let bundle = view.borrow_and_update().bundle.clone();
            if let Err(error) = self.set_bundle(bundle) {
                warn!(%error, "trust bundle can't be used");
            }
            let mut pause = RETRY;
            if let Some(due) = self.time_to_renewal(authority) {
                pause = due;
            } else {
                match authority
                    .issue_credentials(role, names, Timestamp::now())
                    .and_then(|credentials| self.replace(&credentials))
                {
                    Ok(()) => {
                        info!(%role, "own certificate renewed");
                        pause = self.time_to_renewal(authority).unwrap_or(RETRY);
                    }
                    Err(error) => warn!(%role, %error, "own certificate not renewed"),
                }
            }
            // Timers stand still while a machine sleeps: look again at the clock every minute.
            let pause = pause.min(Duration::from_secs(60));
            // A closed channel can't be: the authority is borrowed.
            drop(tokio::time::timeout(pause, view.changed()).await);
        }
    }

    /// The time until the present certificate should be renewed; `None` when that time has come.
    fn time_to_renewal(&self, authority: &CertificateAuthority) -> Option<Duration> {
        let chain = self.chain()?;
        let by_current = chain
            .certificates()
            .first()
            .is_some_and(|leaf| authority.issued_by_current(leaf));
        let left = chain.validity().renew_at().duration_since(Timestamp::now());
        (by_current && left.is_positive()).then(|| left.unsigned_abs())
    }
}

impl Present {
    pub(crate) fn verifiers(&self) -> Arc<Verifiers> {
        Arc::clone(&self.trust.load().verifiers)
    }

    fn key(&self) -> Option<Arc<CertifiedKey>> {
        self.certificate.load().as_ref().map(|held| Arc::clone(&held.key))
    }
}

impl Trust {
    fn new(bundle: TrustBundle) -> Result<Self, Error> {
        let verifiers = Arc::new(Verifiers::new(&bundle)?);
        Ok(Self { bundle, verifiers })
    }
}

impl ResolvesServerCert for Present {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.key()
    }
}

impl ResolvesClientCert for Present {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.key()
    }

    fn has_certs(&self) -> bool {
        self.certificate.load().is_some()
    }
}
