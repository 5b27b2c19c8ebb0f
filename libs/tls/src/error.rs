//! Errors of this crate.

use std::{io, path::PathBuf};

use jiff::Timestamp;

/// What can go wrong with certificates, keys and the files that hold them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried, as "read" or "write".
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The reason given by the operating system.
        source: io::Error,
    },
    /// A file with a private key may be read by others.
    #[error(
        "private key file {} has mode {mode:04o}, allowed are 0600 and stricter: run chmod 600 on it",
        path.display()
    )]
    FileMode {
        /// The file.
        path: PathBuf,
        /// The permission bits found.
        mode: u32,
    },
    /// A file or a text is larger than anything valid.
    #[error("{what} has {found} bytes, allowed are {allowed}")]
    TooLarge {
        /// What was too large.
        what: String,
        /// Its size in bytes.
        found: u64,
        /// The most that is accepted, in bytes.
        allowed: u64,
    },
    /// Text that should be PEM is not, or lacks the section that was looked for.
    #[error("{what}: {reason}")]
    Pem {
        /// What was read, as "certificate chain".
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate could not be parsed (RFC 5280).
    #[error("malformed certificate: {reason}")]
    Certificate {
        /// What the parser says.
        reason: String,
    },
    /// A list of revoked certificates can't be used (RFC 5280 section 5).
    #[error("certificate revocation list: {reason}")]
    Revocation {
        /// Why.
        reason: String,
    },
    /// A certificate signing request was refused (RFC 2986).
    #[error("certificate signing request refused: {reason}")]
    Request {
        /// Why.
        reason: String,
    },
    /// A private key is unusable or does not belong to its certificate.
    #[error("private key: {reason}")]
    Key {
        /// Why.
        reason: String,
    },
    /// A role identity is not well formed.
    #[error("role identity: {field} is {found:?}, allowed {allowed}")]
    RoleIdentity {
        /// The part that is wrong.
        field: &'static str,
        /// What was found.
        found: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A trust bundle holds no usable root.
    #[error("trust bundle holds no certificate")]
    EmptyBundle,
    /// The stored state of an authority makes no sense.
    #[error("certificate authority: {reason}")]
    Authority {
        /// Why.
        reason: String,
    },
    /// The root that should sign is not valid now.
    #[error("certificate authority: the root is valid from {not_before} to {not_after}, now is {now}")]
    RootNotValid {
        /// Beginning of validity.
        not_before: Timestamp,
        /// End of validity.
        not_after: Timestamp,
        /// The clock of this machine.
        now: Timestamp,
    },
    /// The TLS library refused a configuration.
    #[error("tls configuration: {0}")]
    Tls(#[from] rustls::Error),
}

impl Error {
    pub(crate) fn certificate(reason: impl ToString) -> Self {
        Self::Certificate {
            reason: reason.to_string(),
        }
    }

    pub(crate) fn revocation(reason: impl ToString) -> Self {
        Self::Revocation {
            reason: reason.to_string(),
        }
    }

    pub(crate) fn request(reason: impl ToString) -> Self {
        Self::Request {
            reason: reason.to_string(),
        }
    }

    pub(crate) fn key(reason: impl ToString) -> Self {
        Self::Key {
            reason: reason.to_string(),
        }
    }

    pub(crate) fn authority(reason: impl ToString) -> Self {
        Self::Authority {
            reason: reason.to_string(),
        }
    }
}
