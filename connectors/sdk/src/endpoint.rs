//! Where and how a device is dialled.

use std::{fmt, path::PathBuf};

use foreshore_crds::v1alpha1::DeviceSpec;
use foreshore_tls::CertificateDer;

use crate::plan::ObjectRef;

/// A device to dial, with everything resolved that its manifest only names.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The device.
    pub object: ObjectRef,
    /// Where it answers, a simulator's address included.
    pub address: String,
    /// What its manifest says; the protocol's own block is in here.
    pub spec: DeviceSpec,
    /// How we prove who we are.
    pub credentials: Credentials,
    /// Which of its certificates are believed.
    pub trust: TrustMaterial,
    /// A directory of this device alone, mode 0700, that survives a restart: keys, certificates, positions.
    pub state_dir: PathBuf,
}

/// How we prove who we are to a device.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Not at all.
    Anonymous,
    /// With a user name and a password.
    UsernamePassword {
        /// The user name.
        username: String,
        /// The password.
        password: String,
    },
    /// With a certificate.
    Certificate {
        /// PEM: the certificate, and those that lead to its authority.
        certificate: Vec<u8>,
        /// PEM: the private key.
        key: Vec<u8>,
    },
}

impl fmt::Debug for Credentials {
    /// Never shows a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::UsernamePassword { username, .. } => f
                .debug_struct("UsernamePassword")
                .field("username", username)
                .finish_non_exhaustive(),
            Self::Certificate { .. } => f.debug_struct("Certificate").finish_non_exhaustive(),
        }
    }
}

/// Which certificates of a device are believed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TrustMaterial {
    /// Authorities, or the very certificates of devices; empty when the manifest names none.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Certificate revocation lists, DER (RFC 5280, section 5).
    pub revocation_lists: Vec<Vec<u8>>,
    /// Takes any certificate; the runner says so in the device's health.
    pub accept_untrusted: bool,
    /// Takes a certificate for another host name.
    pub accept_other_host_names: bool,
}

impl fmt::Debug for TrustMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustMaterial")
            .field("certificates", &self.certificates.len())
            .field("revocation_lists", &self.revocation_lists.len())
            .field("accept_untrusted", &self.accept_untrusted)
            .field("accept_other_host_names", &self.accept_other_host_names)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let username = "operator".to_owned();
        let shown = format!(
            "{:?}",
            Credentials::UsernamePassword {
                username,
                password: "hunter2".to_owned()
            }
        );
        assert!(
            shown.contains("operator") && !shown.contains("hunter2"),
            "{shown}"
        );
        let key = Credentials::Certificate {
            certificate: b"c".to_vec(),
            key: b"secret".to_vec(),
        };
        assert_eq!(format!("{key:?}"), "Certificate { .. }");
    }
}
