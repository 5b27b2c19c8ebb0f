//! Certificate authority, role identity and TLS configurations that change while they run.
//!
//! Everything of ours speaks mutual TLS with certificates of an own [`CertificateAuthority`]. A role makes
//! its own [`KeyPair`], gets a short-lived certificate for it that names the role ([`RoleIdentity`], a URI in
//! the subject alternative names), and keeps both in an [`Identity`]. The TLS configurations that an
//! `Identity` hands out read the present certificate and the present [`TrustBundle`] at each handshake, so a
//! renewal or a rotation of the authority needs no restart and disconnects nobody.
//!
//! What went wrong in a handshake is told as a [`Refusal`]: untrusted, expired, wrong name, … are different
//! troubles with different remedies, and the people who read the message must see which one they have.

mod authority;
mod bundle;
mod chain;
mod error;
mod files;
mod identity;
mod key;
mod refusal;
mod revocation;
mod role;
mod verify;

pub use authority::{AuthorityOptions, AuthorityView, CertificateAuthority, RootState, RootStatus, Roots};
pub use bundle::{Fingerprint, TrustBundle};
pub use chain::{CertificateChain, Credentials, Validity, peer_identity};
pub use error::Error;
pub use files::{create_private_directory, read_bounded, read_private, write_atomic, write_private};
pub use identity::{ClientAuth, Identity};
pub use key::{CertificateRequest, KeyPair};
pub use refusal::Refusal;
pub use revocation::RevocationLists;
pub use role::{Role, RoleIdentity};
pub use rustls_pki_types::{CertificateDer, ServerName};

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// Makes *ring* the cryptography provider of this process for libraries that ask rustls for its default.
///
/// May be called any number of times, from any thread; the first call counts. Nothing in this crate depends
/// on it, since our own configurations name their provider.
pub fn install_provider() {
    // An error means that a provider is installed already, which is what the caller wants.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// The provider that all configurations of this crate use.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    match CryptoProvider::get_default() {
        Some(provider) => Arc::clone(provider),
        None => Arc::new(rustls::crypto::ring::default_provider()),
    }
}
