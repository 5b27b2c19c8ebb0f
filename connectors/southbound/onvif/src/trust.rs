//! Which certificates of a camera are believed.
//!
//! Cameras come with certificates that they signed themselves, often as an authority (`openssl req -x509` does so), for a
//! name or a time that was never theirs. One that the manifest names is believed as it is: it proves who the camera is
//! by its key, whatever else it says. All others are verified as usual.

use std::sync::Arc;

use foreshore_connector_sdk::TrustMaterial;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime},
};

#[derive(Debug)]
struct Verifier {
    trust: TrustMaterial,
    /// None where there is no authority to ask.
    authorities: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

/// TLS with a camera.
///
/// # Errors
/// When a revocation list can't be read, or the process has no cryptography.
pub(crate) fn configuration(trust: &TrustMaterial) -> Result<ClientConfig, Error> {
    let provider = CryptoProvider::get_default().cloned();
    let provider = provider.ok_or_else(|| Error::General("no cryptography provider".to_owned()))?;
    let mut roots = RootCertStore::empty();
    if trust.certificates.is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        roots.add_parsable_certificates(trust.certificates.iter().cloned());
    }
    let lists = trust.revocation_lists.iter().cloned();
    let authorities = if roots.is_empty() {
        None
    } else {
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .with_crls(lists.map(CertificateRevocationListDer::from))
            // An authority without a list revokes nothing.
            .allow_unknown_revocation_status();
        Some(
            builder
                .build()
                .map_err(|error| Error::General(error.to_string()))?,
        )
    };
    let verifier = Verifier {
        trust: trust.clone(),
        authorities,
        provider,
    };
    Ok(ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let named = self.trust.certificates.iter().any(|known| known == end_entity);
        if named || self.trust.accept_untrusted {
            return Ok(ServerCertVerified::assertion());
        }
        let Some(authorities) = &self.authorities else {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let verified =
            authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // The name is compared last: all else is right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.trust.accept_other_host_names => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
