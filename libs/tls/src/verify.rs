//! Verification of peers against the bundle of the moment.

use std::{sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    server::{
        VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    Error, Refusal, RoleIdentity, TrustBundle,
    chain::{parse, peer_identity},
    identity::Present,
    provider,
};

/// The two verifiers of one bundle, built once.
#[derive(Debug)]
pub(crate) struct Verifiers {
    server: Arc<dyn ServerCertVerifier>,
    client: Arc<dyn ClientCertVerifier>,
}

impl Verifiers {
    pub(crate) fn new(bundle: &TrustBundle) -> Result<Self, Error> {
        let roots = Arc::new(bundle.store()?);
        let server = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .build()
            .map_err(Error::certificate)?;
        let client = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .with_crls(bundle.revoked().lists().iter().cloned())
            // An authority without a list has revoked nobody.
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| match error {
                VerifierBuilderError::InvalidCrl(error) => Error::revocation(format!("{error:?}")),
                other => Error::certificate(other),
            })?;
        Ok(Self { server, client })
    }

    /// Whether a client's certificate was good once and is revoked now.
    pub(crate) fn is_revoked(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return false;
        };
        // One that has expired meanwhile may be revoked as well.
        let now = UnixTime::now().as_secs();
        let end = parse(leaf).map(|leaf| leaf.validity().not_after.timestamp());
        let end = end.ok().and_then(|end| u64::try_from(end).ok());
        let time = UnixTime::since_unix_epoch(Duration::from_secs(end.map_or(now, |end| end.min(now))));
        matches!(
            self.client.verify_client_cert(leaf, intermediates, time),
            Err(rustls::Error::InvalidCertificate(CertificateError::Revoked))
        )
    }
}

impl TrustBundle {
    /// Verifies a client's chain (leaf first) against this bundle and reads the role that it names.
    ///
    /// For listeners that trust other authorities besides ours: whatever those write into their certificates,
    /// only our own authority may say that someone is a role of ours.
    ///
    /// # Errors
    /// The [`Refusal`]; [`Refusal::Malformed`] too for a valid certificate that names no role.
    pub fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<RoleIdentity, Refusal> {
        let (leaf, intermediates) = chain.split_first().ok_or(Refusal::NoCertificate)?;
        let malformed = |reason: String| Refusal::Malformed { reason };
        let verifiers = Verifiers::new(self).map_err(|error| malformed(error.to_string()))?;
        verifiers
            .client
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map_err(|error| Refusal::of(&error).unwrap_or_else(|| malformed(error.to_string())))?;
        peer_identity(chain).ok_or_else(|| malformed("it names no role".to_owned()))
    }
}

/// Verifies servers with whatever bundle is present at the handshake.
#[derive(Debug)]
pub(crate) struct PresentServerVerifier {
    pub(crate) present: Arc<Present>,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PresentServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifiers = self.present.verifiers();
        verifiers
            .server
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Verifies clients with whatever bundle is present at the handshake.
#[derive(Debug)]
pub(crate) struct PresentClientVerifier {
    pub(crate) present: Arc<Present>,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) mandatory: bool,
}

impl ClientCertVerifier for PresentClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// No hints: the list would be that of one bundle, and clients have but one certificate for us.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.present
            .verifiers()
            .client
            .verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
