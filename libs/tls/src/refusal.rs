//! Why a peer was refused, or refused us.

use std::{error::Error as StdError, fmt, io};

use jiff::Timestamp;
use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::UnixTime;

use crate::{Role, RoleIdentity};

/// Why a TLS handshake failed, in the terms that a remedy needs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The peer's certificate was not issued by an authority of the trust bundle.
    Untrusted,
    /// The peer's certificate is over, or one of this machine and the peer has a wrong clock.
    Expired {
        /// Its last moment, where known.
        not_after: Option<Timestamp>,
    },
    /// The authority of the peer's certificate has revoked it.
    Revoked,
    /// The peer's certificate begins in the future: this machine's clock is behind, or the peer's ahead.
    NotYetValid {
        /// Its first moment, where known.
        not_before: Option<Timestamp>,
    },
    /// The peer's certificate is not for the name that was dialled.
    WrongName {
        /// The name that was dialled, where known.
        expected: Option<String>,
        /// The names in the certificate.
        presented: Vec<String>,
    },
    /// The peer's certificate may not be used as it was (a client's as a server's, or the reverse).
    WrongPurpose,
    /// The peer's certificate is good, but it is another role than the one that was dialled.
    WrongRole {
        /// The role that was dialled.
        expected: Role,
        /// Who the peer is, if it is a role of ours at all.
        presented: Option<RoleIdentity>,
    },
    /// The peer presented no certificate and had to.
    NoCertificate,
    /// The peer's certificate is damaged or uses an algorithm that we do not.
    Malformed {
        /// What the verifier says.
        reason: String,
    },
    /// The peer refused our certificate or our end of the handshake.
    ByPeer {
        /// Its alert (RFC 8446, section 6), in words.
        reason: &'static str,
    },
}

impl Refusal {
    /// Finds the reason in an error of an I/O or gRPC library, which wraps it several layers deep.
    ///
    /// `None` when the error is about something else: a closed connection, a timeout.
    #[must_use]
    pub fn find(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut next = Some(error);
        // The depth is bounded against an error that is its own source.
        for _ in 0..16 {
            let error = next?;
            let here = error.downcast_ref::<Self>().cloned();
            if let Some(refusal) = here.or_else(|| error.downcast_ref::<rustls::Error>().and_then(Self::of)) {
                return Some(refusal);
            }
            next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                // `source()` of an I/O error skips the error that it wraps.
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
        }
        None
    }

    /// The reason behind an error of the TLS library.
    #[must_use]
    pub fn of(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::InvalidCertificate(reason) => Some(Self::of_certificate(reason)),
            rustls::Error::NoCertificatesPresented => Some(Self::NoCertificate),
            rustls::Error::AlertReceived(alert) => {
                alert_in_words(*alert).map(|reason| Self::ByPeer { reason })
            }
            _ => None,
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::Untrusted,
            CertificateError::Revoked => Self::Revoked,
            CertificateError::Expired => Self::Expired { not_after: None },
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired {
                not_after: timestamp(*not_after),
            },
            CertificateError::NotValidYet => Self::NotYetValid { not_before: None },
            CertificateError::NotValidYetContext { not_before, .. } => Self::NotYetValid {
                not_before: timestamp(*not_before),
            },
            CertificateError::NotValidForName => Self::WrongName {
                expected: None,
                presented: Vec::new(),
            },
            CertificateError::NotValidForNameContext { expected, presented } => Self::WrongName {
                expected: Some(expected.to_str().into_owned()),
                presented: presented.clone(),
            },
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongPurpose
            }
            other => Self::Malformed {
                reason: other.to_string(),
            },
        }
    }

    /// A constant for conditions and metrics, as `CertificateExpired`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Untrusted => "CertificateUntrusted",
            Self::Revoked => "CertificateRevoked",
            Self::Expired { .. } => "CertificateExpired",
            Self::NotYetValid { .. } => "CertificateNotYetValid",
            Self::WrongName { .. } => "CertificateWrongName",
            Self::WrongPurpose => "CertificateWrongPurpose",
            Self::WrongRole { .. } => "CertificateWrongRole",
            Self::NoCertificate => "CertificateMissing",
            Self::Malformed { .. } => "CertificateMalformed",
            Self::ByPeer { .. } => "RefusedByPeer",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untrusted => {
                f.write_str("the peer's certificate is not issued by an authority of the trust bundle")
            }
            Self::Revoked => f.write_str("the peer's certificate is revoked"),
            Self::Expired {
                not_after: Some(moment),
            } => {
                write!(f, "the peer's certificate expired at {moment}")
            }
            Self::Expired { not_after: None } => f.write_str("the peer's certificate has expired"),
            Self::NotYetValid {
                not_before: Some(moment),
            } => {
                write!(
                    f,
                    "the peer's certificate is valid from {moment} only: compare the clocks of both machines"
                )
            }
            Self::NotYetValid { not_before: None } => {
                f.write_str("the peer's certificate is not valid yet: compare the clocks of both machines")
            }
            Self::WrongName { expected, presented } => {
                let expected = expected.as_deref().unwrap_or("the name that was dialled");
                write!(
                    f,
                    "the peer's certificate is not for {expected}, but for {presented:?}"
                )
            }
            Self::WrongPurpose => f.write_str(
                "the peer's certificate does not allow this use (server or client authentication)",
            ),
            Self::WrongRole {
                expected,
                presented: Some(presented),
            } => {
                write!(f, "the peer is {presented}, but should be of role {expected}")
            }
            Self::WrongRole {
                expected,
                presented: None,
            } => {
                write!(
                    f,
                    "the peer's certificate names no role, but should name {expected}"
                )
            }
            Self::NoCertificate => f.write_str("the peer presented no certificate and must"),
            Self::Malformed { reason } => write!(f, "the peer's certificate can't be used: {reason}"),
            Self::ByPeer { reason } => f.write_str(reason),
        }
    }
}

impl StdError for Refusal {}

fn alert_in_words(alert: AlertDescription) -> Option<&'static str> {
    match alert {
        AlertDescription::UnknownCA => {
            Some("the peer refused our certificate: not issued by an authority that it trusts")
        }
        AlertDescription::CertificateExpired => {
            Some("the peer refused our certificate: expired, or not valid yet by its clock")
        }
        AlertDescription::CertificateRevoked => Some("the peer refused our certificate: revoked"),
        AlertDescription::CertificateRequired => Some("the peer requires a certificate and got none"),
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
            Some("the peer refused our certificate: wrong name or malformed")
        }
        AlertDescription::UnsupportedCertificate => {
            Some("the peer refused our certificate: not allowed for this use")
        }
        AlertDescription::DecryptError => Some("the peer refused our certificate: bad signature"),
        AlertDescription::AccessDenied => Some("the peer denied access"),
        AlertDescription::HandshakeFailure => {
            Some("the peer found no common algorithms, or requires a certificate")
        }
        AlertDescription::ProtocolVersion => Some("the peer speaks no common version of TLS"),
        AlertDescription::UnrecognisedName => Some("the peer does not serve the name that was dialled"),
        AlertDescription::NoApplicationProtocol => Some("the peer speaks no common application protocol"),
        _ => None,
    }
}

fn timestamp(time: UnixTime) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(time.as_secs()).ok()?).ok()
}
